import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from gantrain.data.bad_data import DatasetError
from gantrain.data.data_check import check_source
from gantrain.data.datasets import load_dataset


def save(path, mode="RGB", size=(16, 16), colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour or 0).save(path)


def write_idx(path, array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    content = bytes((0, 0, 8, array.ndim)) + shape + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content))


@pytest.fixture
def mnist_like(tmp_path):
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", np.zeros((3, 20, 30)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.array([0, 2, 2]))
    return tmp_path


@pytest.fixture
def pictures(tmp_path):
    save(tmp_path / "cat" / "1.png", "L", (20, 20))
    save(tmp_path / "cat" / "2.png", "RGBA", (20, 20), "red")
    save(tmp_path / "dog" / "1.png", "L", (40, 30))
    (tmp_path / "notes.txt").write_text("words")
    return tmp_path


def test_a_folder_is_described(pictures):
    report = check_source(str(pictures))
    assert report.problem is None
    assert report.describe() == "\n".join(
        [
            f"source     {pictures} (image folder)",
            "images     3",
            "sizes      20x20 2, 40x30 1",
            "modes      L 2, RGBA 1",
            "classes    cat 2, dog 1",
            "loaded as  20x20 RGB",
            "left out   .txt 1",
        ]
    )


def test_images_that_keep_folders_from_being_classes_are_named(pictures):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        save(pictures / name)
    report = check_source(str(pictures))
    assert report.class_counts == {}
    assert (
        "classes    none, as these images lie beside the folders: a.png, b.png, c.png and 1 more\n"
        in report.describe()
    )


def test_a_bad_file_beside_the_folders_keeps_none_from_being_a_class(pictures):
    (pictures / "cover.png").symlink_to("gone.png")
    report = check_source(str(pictures))
    assert [bad.name for bad in report.bad_files] == ["cover.png"]
    assert report.class_counts == {"cat": 2, "dog": 1}
    assert report.strays == ()


def test_every_bad_file_is_named_to_the_end(pictures):
    for index in range(20):
        (pictures / "cat" / f"empty{index}.png").touch()
    (pictures / "zebra.jpg").write_text("words")
    report = check_source(str(pictures))
    assert report.count == 3
    assert len(report.bad_files) == 21
    lines = report.describe().splitlines()
    assert "bad files  21" in lines
    assert lines[-2:] == ["  cat/empty19.png: empty: zero bytes", "  zebra.jpg: not an image"]


@pytest.mark.parametrize("image_size", [None, 40])
def test_the_problem_is_what_training_would_say_less_the_advice_to_check(pictures, image_size):
    (pictures / "cat" / "empty.png").touch()
    with pytest.raises(DatasetError) as caught:
        load_dataset(str(pictures), image_size=image_size)
    size = f" --image-size {image_size}" if image_size else ""  # others may be too small for it
    advice = f" (`gantrain data check {pictures}{size}` names all)"
    assert advice in str(caught.value)
    problem = check_source(str(pictures), image_size=image_size).problem
    assert problem == str(caught.value).replace(advice, "")
    assert "or leave them out with --skip-bad-files" in problem


def test_a_folder_without_images_has_a_problem_and_no_images(tmp_path):
    report = check_source(str(tmp_path))
    assert report.count == 0
    assert "no images in it" in report.problem
    assert "loaded as" not in report.describe()


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_the_report_announces_what_loading_gives(pictures, channels):
    report = check_source(str(pictures), channels=channels)
    images = load_dataset(str(pictures), channels=channels).images
    assert images.shape == (3, report.channels, report.image_size, report.image_size)


def test_digits_are_described():
    report = check_source("digits", image_size=32)
    assert (report.count, report.image_size, report.channels) == (1797, 32, 1)
    assert report.sizes == {"8x8": 1797}
    assert sum(report.class_counts.values()) == 1797


@pytest.mark.parametrize(
    ("source", "description"),
    [
        ("sine", "points of y = sin x, x uniform on [0, 2 pi))\npoints     1024"),
        (
            "ring8",
            "points of 8 Gaussians of sigma 0.01 on a circle of radius 1)\npoints     100000",
        ),
        ("grid25", "points of 5x5 Gaussians of sigma 0.05, 2 apart)\npoints     100000"),
    ],
)
def test_points_are_described(source, description):
    report = check_source(source)
    assert report.problem is None
    assert report.describe() == f"source     {source} ({description}"


@pytest.mark.parametrize("name", ["image-size", "channels"])
def test_what_only_images_have_is_refused_for_points(name):
    with pytest.raises(DatasetError, match=f"^--{name}: ring8 holds points, not images"):
        check_source("ring8", **{name.replace("-", "_"): 8})


def test_mnist_format_files_are_described(mnist_like):
    report = check_source(str(mnist_like), image_size=28)
    assert (report.kind, report.count, report.image_size) == ("idx", 3, 28)
    assert report.sizes == {"30x20": 3}
    assert report.class_counts == {"0": 1, "1": 0, "2": 2}


def test_every_damaged_mnist_format_file_is_named(mnist_like):
    for name in ("t10k-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (mnist_like / name).write_bytes(b"<html>")
    report = check_source(str(mnist_like))
    assert [bad.name for bad in report.bad_files] == [
        "t10k-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    assert report.problem.startswith(f"{mnist_like}/t10k-images-idx3-ubyte.gz: wrong magic number")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels.idx1-ubyte"])
@pytest.mark.parametrize("prefix", ["", "stacked-mnist:"])
def test_one_mnist_format_file_leads_to_its_folder(prefix, name, tmp_path):
    write_idx(tmp_path / name, np.zeros(3))
    with pytest.raises(DatasetError, match=f"{name}: one of .* give the folder that holds them"):
        check_source(f"{prefix}{tmp_path / name}")


def test_a_source_that_is_none_is_refused():
    with pytest.raises(DatasetError, match="'nowhere': no such data set, file or folder"):
        check_source("nowhere")
