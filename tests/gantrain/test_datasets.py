import errno
import gzip
import io
import os
import shutil
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gantrain.data import image_decoding
from gantrain.data.bad_data import BadFile, DatasetError
from gantrain.data.cifar_files import BATCH_BYTES
from gantrain.data.data_check import check_source
from gantrain.data.datasets import Dataset, has_test_split, load_dataset, load_source
from gantrain.data.image_files import decode_image
from gantrain.data.point_sets import POINT_SETS
from tests.gantrain.test_idx_files import idx

DATA = Path(os.environ.get("GANTRAIN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def real(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set GANTRAIN_DATA to the folder that holds it")
    return str(path)


def save(path, colour="red", size=(16, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def noise_folder(folder, count=60):
    chance = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        height, width = chance.integers(20, 60, 2)
        pixels = chance.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def pack(folder, path):
    files = [file for file in folder.rglob("*") if file.is_file()]
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return path


def write_idx(folder, images, labels, prefix="train"):
    for name, array in (
        (f"{prefix}-images-idx3-ubyte.gz", images),
        (f"{prefix}-labels-idx1-ubyte.gz", labels),
    ):
        shape = struct.pack(f">{array.ndim}I", *array.shape)
        content = bytes((0, 0, 8, array.ndim)) + shape + array.astype(np.uint8).tobytes()
        (folder / name).write_bytes(gzip.compress(content))


# Digits


def test_digits_are_scaled_from_sixteenths_to_bytes():
    dataset = load_dataset("digits")
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert dataset.images.dtype == np.uint8
    assert dataset.images.flags.c_contiguous
    assert dataset.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0
    assert dataset.images.max() == 255
    assert dataset.class_names == tuple("0123456789")
    assert dataset.labels[:10].tolist() == list(range(10))
    assert dataset.kind == "digits"


def test_digits_are_enlarged_to_the_asked_size_and_channels():
    dataset = load_dataset("digits", image_size=32, channels=3)
    assert dataset.images.shape == (1797, 3, 32, 32)
    assert np.array_equal(dataset.images[:, 0], dataset.images[:, 2])
    assert np.median(dataset.images[..., 0]) == 0  # the left edge is background


# Folders and zips


def test_a_folder_becomes_images_in_natural_order(tmp_path):
    for number, colour in ((10, "blue"), (9, "lime"), (1, "red")):
        save(tmp_path / f"{number}.png", colour)
    dataset = load_dataset(str(tmp_path))
    assert dataset.images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert dataset.images.flags.c_contiguous
    assert (dataset.labels, dataset.class_names) == (None, ())
    assert dataset.kind == "image folder"


def test_the_result_owes_nothing_to_the_number_of_cpus_or_the_packing(tmp_path, monkeypatch):
    folder = noise_folder(tmp_path / "noise", count=300)  # more than are decoded at once
    fingerprints = set()
    for cpus in (1, 4):  # a thread for each
        monkeypatch.setattr(image_decoding, "usable_cpus", lambda cpus=cpus: cpus)
        for path in (folder, pack(folder, tmp_path / "noise.zip")):
            fingerprints.add(load_dataset(str(path), image_size=16).fingerprint())
    assert len(fingerprints) == 1


def test_every_image_lands_in_its_own_row(tmp_path, monkeypatch):
    monkeypatch.setattr(image_decoding, "usable_cpus", lambda: 4)
    folder = noise_folder(tmp_path / "noise")
    images = load_dataset(str(folder), image_size=16).images
    for index in (0, 2, 10, 59):
        expected = decode_image((folder / f"{index}.png").read_bytes(), 16, 3).pixels
        assert np.array_equal(images[index], expected)


@pytest.mark.parametrize(
    ("colours", "channels", "expected"),
    [
        pytest.param([(9, 9, 9), (7, 7, 7)], None, 1, id="grey-stored-as-rgb"),
        pytest.param([(9, 9, 9), (7, 7, 8)], None, 3, id="one-coloured"),
        pytest.param([(9, 9, 9), (7, 7, 7)], 3, 3, id="rgb-asked"),
        pytest.param([(255, 0, 0), (7, 7, 8)], 1, 1, id="grey-asked"),
    ],
)
def test_channels_come_from_the_data_unless_asked(colours, channels, expected, tmp_path):
    for index, colour in enumerate(colours):
        save(tmp_path / f"{index}.png", colour)
    images = load_dataset(str(tmp_path), channels=channels).images
    assert images.shape == (2, expected, 16, 16)
    assert images.flags.c_contiguous


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([(20, 20)] * 3, 20, id="shared"),
        pytest.param([(28, 50), (70, 28)], 28, id="shared-short-side"),
        pytest.param([(30, 30)] * 2, 28, id="shared-but-no-multiple-of-4"),
        pytest.param([(200, 200)] * 2, 64, id="shared-but-above-128"),
        pytest.param([(40, 40), (47, 47), (300, 300)], 44, id="median"),
        pytest.param([(500, 400), (640, 480)], 64, id="at-most-64"),
        pytest.param([(9, 9), (10, 10)], 8, id="at-least-8"),
    ],
)
def test_the_size_comes_from_the_data_unless_asked(sizes, expected, tmp_path):
    for index, size in enumerate(sizes):
        save(tmp_path / f"{index}.png", size=size)
    assert load_dataset(str(tmp_path)).images.shape[2:] == (expected, expected)
    assert load_dataset(str(tmp_path), image_size=16).images.shape[2:] == (16, 16)


def test_class_folders_become_labels(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/1.png"):
        save(tmp_path / "pets" / name)
    for source in (tmp_path / "pets", tmp_path, pack(tmp_path, tmp_path / "pets.zip")):
        dataset = load_dataset(str(source))
        assert dataset.class_names == ("cat", "dog")
        assert dataset.labels.tolist() == [0, 0, 1]
        assert dataset.labels.dtype == np.int64


def test_images_outside_the_class_folders_mean_no_labels(tmp_path):
    for name in ("dog/1.png", "cat/1.png", "stray.png"):
        save(tmp_path / name)
    dataset = load_dataset(str(tmp_path))
    assert (dataset.labels, dataset.strays) == (None, ("stray.png",))


def test_text_among_the_images_does_not_stop_training(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "2.png")
    (tmp_path / "README.txt").write_text("about these pictures")
    assert len(load_dataset(str(tmp_path)).images) == 2


# Bad files


def spoil(folder):
    """Add five bad files to a folder of class folders."""
    save(folder / "cat" / "small.png", size=(5, 5))
    (folder / "cat" / "empty.png").touch()
    (folder / "dog" / "text.jpg").write_text("buy milk")
    save(folder / "owl" / "cut.png", size=(60, 60))
    os.truncate(folder / "owl" / "cut.png", 70)
    (folder / "dog" / "gone.png").symlink_to("nowhere.png")


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        pytest.param("photo", "; is photos meant?", id="beside"),
        pytest.param("digitz", "; is digits meant?", id="name"),
        pytest.param("nothing/photo", "images", id="no-folder"),
        pytest.param("elsewhere", "images", id="nothing-near"),
    ],
)
def test_a_mistyped_source_is_asked_about(source: str, meant: str, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for written in (source, f"{tmp_path}/{source}"):
        with pytest.raises(DatasetError) as caught:
            load_dataset(written)
        assert str(caught.value).endswith(meant)


@pytest.fixture
def spoiled(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        save(tmp_path / name, "red" if "cat" in name else "blue")
    spoil(tmp_path)
    return str(tmp_path)


def test_bad_files_are_counted_and_the_first_are_named(spoiled):
    with pytest.raises(DatasetError) as caught:
        load_dataset(spoiled)
    assert str(caught.value) == (
        f"{spoiled}: 5 of 8 files cannot be used: cat/empty.png: empty: zero bytes, "
        "cat/small.png: too small: 5x5, both sides need at least 8 pixels for --image-size 16, "
        "dog/gone.png: cannot be read: No such file or directory and 2 more; mend or remove them "
        f"(`gantrain data check {spoiled}` names all), or leave them out with "
        "--skip-bad-files, which `gantrain train` and `gantrain evaluate` take"
    )


def test_bad_files_are_skipped_when_told_to(spoiled):
    dataset = load_dataset(spoiled, skip_bad_files=True)
    assert dataset.images[:, :, 0, 0].tolist() == [[255, 0, 0], [255, 0, 0], [0, 0, 255]]
    assert dataset.labels.tolist() == [0, 0, 1]
    assert dataset.class_names == ("cat", "dog")  # no image of an owl is left
    assert [bad.name for bad in dataset.bad_files] == [
        *("cat/empty.png", "cat/small.png", "dog/gone.png", "dog/text.jpg", "owl/cut.png"),
    ]
    assert dataset.images.flags.c_contiguous


def test_a_bad_file_beside_class_folders_is_skipped_as_if_it_were_not_there(spoiled):
    with_classes = load_dataset(spoiled, skip_bad_files=True)
    Path(spoiled, "cover.heic").write_text("neither picture nor class")
    dataset = load_dataset(spoiled, skip_bad_files=True)
    assert [bad.name for bad in dataset.bad_files if bad not in with_classes.bad_files] == [
        "cover.heic"
    ]
    assert (dataset.class_names, dataset.strays) == (("cat", "dog"), ())
    assert dataset.fingerprint() == with_classes.fingerprint()


def test_skipping_must_leave_two_images(tmp_path):
    save(tmp_path / "1.png")
    (tmp_path / "2.png").touch()
    with pytest.raises(DatasetError) as caught:
        load_dataset(str(tmp_path), skip_bad_files=True)
    assert str(caught.value) == (
        f"{tmp_path}: 1 usable image; at least 2 are needed, add more or mend the others: 1 of 2 "
        f"files cannot be used: 2.png: empty: zero bytes (`gantrain data check {tmp_path}` names "
        "all)"
    )


def test_a_picture_with_too_many_pixels_is_a_bad_file_not_a_warning(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "2.png", 0, (9_500, 9_500), mode="1")
    with pytest.raises(DatasetError, match=r"2\.png: too many pixels: 9500x9500, the limit is"):
        load_dataset(str(tmp_path))


@pytest.fixture
def as_nobody():
    """A folder that anybody may read; root may read all, so it becomes nobody for the test."""
    load_dataset("digits")  # imports what nobody might not be allowed to read
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    save(folder / "1.png")
    save(folder / "2.png")
    save(folder / "cat" / "3.png")

    def lock(path):
        path.chmod(0)
        if os.geteuid() == 0:
            os.seteuid(65534)

    user = os.geteuid()
    try:
        yield folder, lock
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        (folder / "cat").chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("locked", "message"),
    [
        pytest.param("1.png", "1 of 3 files .*: 1.png: cannot be read: Permission", id="file"),
        pytest.param("cat", "cat: folder cannot be read: Permission denied", id="subfolder"),
        pytest.param("", "^[^:]*: cannot be read: Permission denied; .* copy$", id="source"),
    ],
)
def test_what_may_not_be_read_is_named(locked, message, as_nobody):
    folder, lock = as_nobody
    lock(folder / locked)
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(folder))


@pytest.mark.parametrize(
    ("others", "locked"),
    [
        pytest.param(
            {"train-images-idx3-ubyte": idx(np.zeros((2, 8, 8), np.uint8))},
            "train-labels-idx1-ubyte",
            id="MNIST-format",
        ),
        pytest.param(
            {"batches.meta.txt": "\n".join("abcdefghij").encode()},
            "data_batch_1.bin",
            id="CIFAR-10",
        ),
    ],
)
def test_published_data_that_may_not_be_read_need_not_be_fetched_again(others, locked, as_nobody):
    folder, lock = as_nobody
    for name, content in others.items():
        (folder / name).write_bytes(content)
    (folder / locked).touch()
    os.truncate(folder / locked, BATCH_BYTES)  # no other length is looked into
    lock(folder / locked)
    message = f"{locked}: cannot be read: Permission denied; make it readable, or use a readable"
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(folder))
    problem = check_source(str(folder)).problem
    assert problem is not None
    assert message in problem


# Sources that are none


def test_a_source_that_is_there_but_cannot_be_read_is_not_called_missing(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)  # an error for whoever follows it, even for root
    with pytest.raises(DatasetError) as raised:
        load_dataset(str(loop))
    assert str(raised.value) == (
        f"{loop}: cannot be read: {os.strerror(errno.ELOOP)}; make it readable, or use a readable "
        "copy"
    )


@pytest.mark.parametrize("source", ["", "nowhere", "/nowhere/at/all.zip", "zero\0byte"])
def test_an_unknown_source_lists_what_is_known(source):
    with pytest.raises(DatasetError) as caught:
        load_dataset(source)
    assert str(caught.value) == (
        f"{source!r}: no such data set, file or folder; known are digits, sine, ring8, grid25, "
        "stacked-mnist:FOLDER, or give the path of a folder with MNIST-format idx files, of "
        "CIFAR-10's binary files (folder, .tar.gz or .tar.xz), of a CelebA folder, or of a folder "
        "or .zip of images"
    )


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / name).write_text("words")
    with pytest.raises(DatasetError, match=r"no images in it \(it holds 2 \.txt, 1 \.csv\)"):
        load_dataset(str(tmp_path))


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(DatasetError, match=r"no images in it \(it holds no files\); give a folder"):
        load_dataset(str(tmp_path))


def test_an_empty_zip_says_so(tmp_path):
    with pytest.raises(DatasetError, match=r"no images in it \(it holds no files\)"):
        load_dataset(str(pack(tmp_path, tmp_path / "empty.zip")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 30}, "image_size: expected a multiple of 4 from 8 to 128, got 30"),
        ({"image_size": 4}, "image_size: expected a multiple of 4 from 8 to 128, got 4"),
        ({"image_size": 132}, "image_size: expected a multiple of 4 from 8 to 128, got 132"),
        ({"image_size": 0}, "image_size: expected a multiple of 4 from 8 to 128, got 0"),
        ({"channels": 4}, r"channels: expected 1 \(grey\) or 3 \(RGB\), got 4"),
        ({"split": "dev"}, "split: expected train or test, got 'dev'"),
        ({"limit": 1}, "limit: expected at least 2 images, got 1"),
        (
            {"split": "test"},
            "digits: has no test split; MNIST-format files, .* and CelebA have one",
        ),
    ],
    ids=["no-multiple", "small", "large", "zero", "channels", "split", "limit", "no-test-split"],
)
def test_settings_that_no_data_can_meet_are_refused(settings, message):
    with pytest.raises(DatasetError, match=f"^{message}$"):
        load_dataset("digits", **settings)


# Points


@pytest.mark.parametrize("name", POINT_SETS)
def test_a_point_set_is_loaded_by_its_name(name):
    assert load_source(name).fingerprint() == POINT_SETS[name]().fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 28}, "--image-size: sine holds points, not images; leave it out"),
        ({"image_size": 0}, "--image-size: sine holds points, not images; leave it out"),
        ({"channels": 1}, "--channels: sine holds points, not images; leave it out"),
        ({"skip_bad_files": True}, "--skip-bad-files: sine holds points, not images; leave it out"),
        ({"limit": 100}, "--max-data-images: sine holds points, not images; leave it out"),
    ],
    ids=["image_size", "no_size", "channels", "skip_bad_files", "limit"],
)
def test_what_only_images_have_is_refused_for_points_by_name(settings, message):
    with pytest.raises(DatasetError, match=f"^{message}$"):
        load_source("sine", **settings)


def test_points_are_refused_where_images_are_needed():
    with pytest.raises(DatasetError, match="sine: holds points, but images are needed"):
        load_dataset("sine")


def test_a_source_of_images_is_loaded_with_all_settings(spoiled):
    arguments = {"image_size": 8, "channels": 1, "skip_bad_files": True, "limit": 3}
    dataset = load_source(spoiled, **arguments)
    assert dataset.images.shape == (2, 1, 8, 8)
    assert [bad.name for bad in dataset.bad_files] == ["cat/empty.png"]  # the third file
    assert dataset.fingerprint() == load_dataset(spoiled, **arguments).fingerprint()
    with pytest.raises(DatasetError, match="digits: has no test split"):
        load_dataset("digits", split="test")


# Only the first images


def test_a_limit_takes_the_first_of_a_folder_in_natural_order(tmp_path):
    folder = noise_folder(tmp_path / "noise", count=12)
    few, all_ = (load_dataset(str(folder), image_size=16, limit=limit) for limit in (11, None))
    assert np.array_equal(few.images, all_.images[:11])  # 10.png is the last of them, not the third
    assert len(load_dataset(str(folder), limit=1000).images) == 12


def test_what_lies_beyond_the_limit_is_not_opened(tmp_path):
    folder = noise_folder(tmp_path / "noise", count=3)
    (folder / "9.png").touch()
    assert len(load_dataset(str(folder), limit=3).images) == 3


def test_a_limit_takes_the_first_digits():
    few, all_ = load_dataset("digits", limit=7), load_dataset("digits")
    assert np.array_equal(few.images, all_.images[:7])
    assert few.labels.tolist() == all_.labels[:7].tolist()
    assert few.class_names == all_.class_names


def test_a_limit_takes_the_first_idx_images(tmp_path):
    images = np.arange(4 * 12 * 12).reshape(4, 12, 12) % 256
    write_idx(tmp_path, images, np.array([1, 0, 0, 5]))
    dataset = load_dataset(str(tmp_path), limit=2)
    assert np.array_equal(dataset.images[:, 0], images[:2])
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.class_names == ("0", "1", "2", "3", "4", "5")  # those of all the files


# MNIST-format files


def test_idx_files_become_labelled_images(tmp_path):
    images = np.arange(3 * 12 * 12).reshape(3, 12, 12) % 256
    write_idx(tmp_path, images, np.array([3, 0, 1]))
    write_idx(tmp_path, images[:2], np.array([3, 0]), prefix="t10k")
    dataset = load_dataset(str(tmp_path))
    assert np.array_equal(dataset.images[:, 0], images)
    assert dataset.images.flags.writeable  # torch warns of arrays that are not
    assert dataset.labels.tolist() == [3, 0, 1]
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.kind == "idx"
    assert len(load_dataset(str(tmp_path), split="test").images) == 2


def test_only_what_has_a_test_split_is_said_to_have_one(tmp_path):
    digits, pictures = tmp_path / "digits", noise_folder(tmp_path / "pictures", 3)
    digits.mkdir()
    images, labels = np.zeros((3, 12, 12)), np.array([3, 0, 1])
    write_idx(digits, images, labels)
    assert not has_test_split(str(digits))
    assert not has_test_split(f"stacked-mnist:{digits}")
    write_idx(digits, images, labels, prefix="t10k")
    assert has_test_split(str(digits))
    assert has_test_split(f"stacked-mnist:{digits}")
    for source in ("digits", "sine", str(pictures)):
        assert not has_test_split(source)
    with pytest.raises(DatasetError, match="no such data set"):
        has_test_split("nowhere")


@pytest.mark.parametrize(
    ("shape", "image_size", "expected"),
    [
        pytest.param((28, 28), None, 28, id="as-stored"),
        pytest.param((28, 28), 64, 64, id="enlarged"),
        pytest.param((30, 26), None, 24, id="next-size-below"),
    ],
)
def test_idx_images_are_resized(shape, image_size, expected, tmp_path):
    write_idx(tmp_path, np.full((2, *shape), 50), np.zeros(2))
    images = load_dataset(str(tmp_path), image_size=image_size).images
    assert images.shape == (2, 1, expected, expected)
    assert (images == 50).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        pytest.param((0, 28, 28), "the train split holds 0 images", id="none"),
        pytest.param((1, 28, 28), "the train split holds 1 images", id="one"),
        pytest.param((2, 28, 5), "its images are smaller than 8 pixels", id="too-small"),
    ],
)
def test_idx_files_without_enough_to_train_on_are_refused(shape, message, tmp_path):
    write_idx(tmp_path, np.zeros(shape), np.zeros(shape[0]))
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(tmp_path))


# The fingerprint


def dataset(images=((1, 2), (3, 4)), labels=(0, 1)):
    labels = None if labels is None else np.array(labels)
    return Dataset(np.array(images, np.uint8)[:, None, None], labels, (), "made up")


def test_the_fingerprint_is_pinned():
    assert (
        dataset().fingerprint()
        == dataset().fingerprint()
        == ("sha256:7e8888b67a99b06dd9494c0d80a1b086ba824122021f052de0bfd50e7c8e38df")
    )


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(dataset(images=((1, 2), (3, 5))), id="a-pixel"),
        pytest.param(dataset(images=((1,), (2,), (3,), (4,)), labels=(0, 1)), id="the-shape"),
        pytest.param(dataset(labels=(1, 0)), id="the-labels"),
        pytest.param(dataset(labels=None), id="no-labels"),
    ],
)
def test_the_fingerprint_changes_with(other):
    assert other.fingerprint() != dataset().fingerprint()


def test_bad_files_read_as_name_and_reason():
    assert str(BadFile("a.png", "not an image")) == "a.png: not an image"


# The bar


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_appears_on_a_terminal(terminal, tmp_path, monkeypatch):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    load_dataset(str(noise_folder(tmp_path / "noise")))
    assert ("60/60" in stderr.getvalue()) == terminal


# Real data


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_mnist_format_files_load(name):
    train = load_dataset(real(name))
    assert train.images.shape == (60_000, 1, 28, 28)
    assert np.bincount(train.labels).min() > 5_000
    assert load_dataset(real(name), split="test").images.shape == (10_000, 1, 28, 28)


def test_a_real_zip_of_transparent_pictures_loads_on_white():
    dataset = load_dataset(real("emoji/noto-emoji-128px.zip"), image_size=32)
    assert dataset.images.shape == (3577, 3, 32, 32)
    assert dataset.labels is None
    assert np.median(dataset.images[:, :, 0, 0]) == 255  # corners
