"""CIFAR-10's layout, filled with patterns: full files, for their size is part of the format."""

import gzip
import io
import lzma
import os
import re
import shutil
import tarfile

import numpy as np
import pytest

from gantrain.data.bad_data import DatasetError
from gantrain.data.cifar_files import find_bad_files, is_cifar, read_cifar
from gantrain.data.data_check import check_source
from gantrain.data.datasets import load_dataset

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
COUNT = 10_000


def batch(number):
    """Red falls from the batch's number by row, green by column; blue and the label count up."""
    records = np.empty((COUNT, 3073), np.uint8)
    records[:, 0] = np.arange(COUNT) % 10
    planes = records[:, 1:].reshape(COUNT, 3, 32, 32)
    planes[:, 0] = 200 + number - np.arange(32)[:, None]
    planes[:, 1] = 100 - np.arange(32)
    planes[:, 2] = (np.arange(COUNT) % 256)[:, None, None]
    return records.tobytes()


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    for number, name in enumerate(BINARY):
        (folder / name).write_bytes(batch(number))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")  # as published
    (folder / "readme.html").write_text("<html>")
    yield folder
    shutil.rmtree(folder.parent)  # 190 MB, which pytest would keep


def pack(folder, path, mode, **options):
    with tarfile.open(path, mode, **options) as archive:
        archive.add(folder, folder.name)
    return path


@pytest.fixture(scope="session")
def packed(sound):
    gz = pack(sound, sound.parent / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1)
    return {"gz": gz, "xz": pack(sound, sound.parent / "download", "w:xz", preset=0)}


@pytest.fixture
def copy(sound, tmp_path):
    """A copy whose files may be replaced, not written to: they are links."""
    return shutil.copytree(sound, tmp_path / "cifar", copy_function=os.link)


def replace_file(path, content):
    path.unlink()
    path.write_bytes(content)


# What is sound


def check_test_split(images, labels, names):
    assert images.shape == (COUNT, 3, 32, 32)
    assert images.dtype == np.uint8
    assert images[300, :, 2, 3].tolist() == [205 - 2, 100 - 3, 300 % 256]
    assert labels[[0, 9, 9_998]].tolist() == [0, 9, 8]
    assert labels.dtype == np.int64
    assert names == NAMES


def test_both_splits_are_read_from_the_folder_or_the_one_above(sound):
    for path in (sound, sound.parent):
        assert is_cifar(path)
        check_test_split(*read_cifar(path, "test"))
    images, labels, _ = read_cifar(sound, "train")
    assert images.shape == (50_000, 3, 32, 32)
    assert images[::COUNT, 0, 0, 0].tolist() == [200, 201, 202, 203, 204]  # the batches in order
    assert np.bincount(labels).tolist() == [5_000] * 10


@pytest.mark.parametrize("packing", ["gz", "xz"])
def test_an_archive_is_known_by_its_content_and_read_without_touching_the_disk(packed, packing):
    path = packed[packing]
    before = sorted(path.parent.rglob("*"))
    assert is_cifar(path)
    check_test_split(*read_cifar(path, "test"))
    assert sorted(path.parent.rglob("*")) == before


def test_a_data_set_is_loaded(sound):
    dataset = load_dataset(str(sound), split="test")
    check_test_split(dataset.images, dataset.labels, dataset.class_names)
    assert dataset.kind == "CIFAR-10"
    assert dataset.images.flags.writeable  # torch warns of arrays that are not
    assert dataset.images.flags.c_contiguous


def test_a_limit_takes_the_first_images_before_any_are_resized(sound):
    dataset = load_dataset(str(sound), image_size=16, channels=1, limit=12)
    assert dataset.images.shape == (12, 1, 16, 16)
    assert dataset.labels.tolist() == [*range(10), 0, 1]
    assert dataset.class_names == NAMES


def test_the_report_tells_classes_and_splits(sound):
    report = check_source(str(sound))
    assert report.problem is None
    assert report.describe() == "\n".join(
        [
            f"source     {sound} (CIFAR-10)",
            "images     50000",
            "splits     train 50000, test 10000",
            "sizes      32x32 50000",
            "modes      RGB 50000",
            "classes    " + ", ".join(f"{name} 5000" for name in NAMES),
            "loaded as  32x32 RGB",
        ]
    )


# Files that are not


def with_label(content, label):
    return content[: 17 * 3073] + bytes([label]) + content[17 * 3073 + 1 :]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        pytest.param("data_batch_3.bin", None, "missing", id="missing"),
        pytest.param("batches.meta.txt", None, "missing", id="no-names"),
        pytest.param(
            "data_batch_2.bin",
            lambda content: content[:-1],
            r"truncated: expected 30730000 bytes \(10000 images\), got 30729999",
            id="truncated",
        ),
        pytest.param(
            "data_batch_2.bin",
            lambda content: content[: 5 * 3073],
            "truncated: .*got 15365",
            id="whole-records",
        ),
        pytest.param("data_batch_5.bin", lambda _: b"", "truncated: .*got 0", id="empty"),
        pytest.param(
            "data_batch_1.bin",
            lambda content: content + b"\0",
            "too long: .*got 30730001",
            id="too-long",
        ),
        pytest.param(
            "data_batch_4.bin",
            lambda content: with_label(content, 10),
            "image 18 of 10000 has the label 10, expected 0 to 9",
            id="label-out-of-range",
        ),
        pytest.param(
            "batches.meta.txt",
            lambda _: b"cat\ndog\n",
            "expected 10 class names, one a line, got 2",
            id="two-names",
        ),
        pytest.param(
            "batches.meta.txt",
            lambda _: bytes(5000),
            "too long: 5000 bytes for 10 class names",
            id="no-text",
        ),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(name, change, reason, copy):
    if change is None:
        (copy / name).unlink()
    else:
        replace_file(copy / name, change((copy / name).read_bytes()))
    with pytest.raises(DatasetError, match=f"^{copy}: {name}: {reason}; fetch it again$") as caught:
        read_cifar(copy, "train")
    (bad,) = find_bad_files(copy)
    assert re.fullmatch(f"{name}: {reason}", str(bad))
    report = check_source(str(copy))
    assert report.problem == str(caught.value)
    assert (report.kind, report.bad_files) == ("CIFAR-10", (bad,))


def test_every_bad_file_is_named_by_the_check_that_of_the_other_split_too(copy):
    (copy / "test_batch.bin").unlink()
    replace_file(copy / "data_batch_1.bin", b"<html>")
    assert [bad.name for bad in find_bad_files(copy)] == ["data_batch_1.bin", "test_batch.bin"]


def test_only_the_files_of_the_split_are_needed(copy):
    for number in range(1, 6):
        (copy / f"data_batch_{number}.bin").unlink()
    check_test_split(*read_cifar(copy, "test"))


def test_a_named_pipe_is_refused_without_waiting(copy):
    (copy / "data_batch_1.bin").unlink()
    os.mkfifo(copy / "data_batch_1.bin")
    with pytest.raises(DatasetError, match=r"data_batch_1\.bin: not a regular file"):
        read_cifar(copy, "train")


# Archives that are not


def tar_of(*members):
    """An uncompressed tar of (name, content) or TarInfo."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return content.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def lying_about_its_size(size):
    info = tarfile.TarInfo("data_batch_1.bin")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)


META = ("x/batches.meta.txt", "\n".join(NAMES).encode())
OTHER = "packed, but without CIFAR-10's binary batches; unpack other archives and give the folder"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(gzip.compress(b"<html>"), "packed, but no complete tar", id="no-tar"),
        pytest.param(gzip.compress(tar_of(("a.png", b"pixels"))), OTHER, id="other-tar"),
        pytest.param(
            gzip.compress(tar_of(("cifar-10-batches-py/data_batch_1", b"pickle"))),
            "the Python version of CIFAR-10, .* fetch the binary version",
            id="python-version",
        ),
        pytest.param(
            gzip.compress(tar_of(META))[:-9], "damaged or incomplete .*; fetch it again", id="cut"
        ),
        pytest.param(
            lzma.compress(tar_of(META))[:-9],
            "damaged or incomplete .*; fetch it again",
            id="cut-xz",
        ),
        pytest.param(
            gzip.compress(tar_of(META))[:40] + bytes(90), "damaged or incomplete", id="overwritten"
        ),
        pytest.param(
            gzip.compress(tar_of(META, link("x/data_batch_1.bin", "/dev/zero"))),
            "data_batch_1.bin: missing",
            id="link-to-a-device",
        ),
        pytest.param(
            gzip.compress(tar_of(META, link("data_batch_1.bin", META[0], tarfile.LNKTYPE))),
            "data_batch_1.bin: missing",
            id="hard-link",
        ),
        pytest.param(
            gzip.compress(tar_of(META, ("../../data_batch_1.bin", b"outside"))),
            "data_batch_1.bin: truncated: .* got 7",
            id="path-out-of-the-folder",
        ),
        pytest.param(
            gzip.compress(tar_of(("batches.meta.txt", bytes(10**6)))),
            "batches.meta.txt: too long: 1000000 bytes",
            id="names-of-a-megabyte",
        ),
        pytest.param(
            gzip.compress(lying_about_its_size(2**50)),
            "packed, but no complete tar",
            id="size-of-a-petabyte",
        ),
        pytest.param(
            gzip.compress(tar_of(*[(f"{i}.png", b"") for i in range(1001)], META)),
            OTHER,
            id="too-many-files",
        ),
    ],
)
def test_an_archive_that_holds_something_else_is_refused(content, message, tmp_path):
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"^{path}: {message}") as caught:
        read_cifar(path, "train")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_is_unpacked_no_further_than_cifar_reaches(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(2**28 + 1), compresslevel=1))
    with pytest.raises(DatasetError, match="unpacks to more than 268435456 bytes, so it is not"):
        read_cifar(path, "train")


def test_other_folders_and_files_are_none(tmp_path):
    (tmp_path / "data_batch_1.png").touch()
    (tmp_path / "words.txt").write_text("buy milk")
    assert not is_cifar(tmp_path)
    assert not is_cifar(tmp_path / "words.txt")
