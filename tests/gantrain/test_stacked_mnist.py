import os
import struct
from pathlib import Path

import numpy as np
import pytest

from gantrain.data.bad_data import DatasetError
from gantrain.data.data_check import check_source
from gantrain.data.datasets import load_dataset
from gantrain.data.stacked_mnist import stack_digits
from gantrain.presets import resolve
from gantrain.training.run_setup import settle_config

DATA = Path(os.environ.get("GANTRAIN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def write_idx(path, array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(bytes((0, 0, 8, array.ndim)) + shape + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist_like(tmp_path):
    """Ten images of each split, whose every pixel tells split and label."""
    for prefix, brightness in (("train", 100), ("t10k", 200)):
        labels = np.arange(10)[::-1]
        images = np.zeros((10, 8, 8)) + (brightness + labels)[:, None, None]
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", labels)
    return tmp_path


@pytest.mark.parametrize(
    ("split", "count", "brightness"), [("train", 128_000, 100), ("test", 26_000, 200)]
)
def test_red_green_and_blue_are_the_hundreds_tens_and_ones(mnist_like, split, count, brightness):
    dataset = load_dataset(f"stacked-mnist:{mnist_like}", split=split)
    assert dataset.images.shape == (count, 3, 8, 8)
    assert dataset.images.dtype == np.uint8
    assert dataset.images.flags.c_contiguous
    digits = dataset.images[:, :, 0, 0].astype(np.int64) - brightness  # [count, 3]
    assert np.array_equal(digits @ [100, 10, 1], dataset.labels)
    assert dataset.labels.dtype == np.int64
    assert (dataset.class_names[0], dataset.class_names[7]) == ("000", "007")
    assert len(dataset.class_names) == 1000
    assert dataset.kind == "stacked MNIST"


@pytest.mark.parametrize(("asked", "taken"), [("auto", "off"), ("on", "on")])
def test_digits_are_not_mirrored_unless_that_is_asked_for(mnist_like, asked, taken):
    source = f"stacked-mnist:{mnist_like}"
    config = resolve({"data": source, "run_dir": "unused", "flip": asked})
    assert settle_config(config, load_dataset(source)).flip == taken


def test_all_thousand_modes_are_there_and_alike(mnist_like):
    labels = load_dataset(f"stacked-mnist:{mnist_like}").labels
    counts = np.bincount(labels, minlength=1000)
    # 128 expected in each: the statistic is chi-squared with 999 degrees of freedom.
    assert abs(((counts - 128) ** 2 / 128).sum() - 999) < 4 * np.sqrt(2 * 999)


def test_the_stacks_never_change(mnist_like):
    source = f"stacked-mnist:{mnist_like}"
    assert load_dataset(source, limit=6).labels.tolist() == [10, 364, 234, 979, 760, 16]
    test = load_dataset(source, limit=6, split="test")
    assert test.labels.tolist() == [241, 356, 148, 64, 653, 574]


def test_a_limit_makes_the_first_stacks(mnist_like):
    source = f"stacked-mnist:{mnist_like}"
    few, all_ = load_dataset(source, limit=50), load_dataset(source)
    assert len(few.images) == 50
    assert np.array_equal(few.images, all_.images[:50])
    assert np.array_equal(few.labels, all_.labels[:50])
    assert len(load_dataset(source, limit=10**6).images) == 128_000


def test_digits_are_resized_before_they_are_stacked(mnist_like):
    source = f"stacked-mnist:{mnist_like}"
    assert load_dataset(source, image_size=16, limit=5).images.shape == (5, 3, 16, 16)
    assert load_dataset(source, channels=3, limit=5).images.shape == (5, 3, 8, 8)


def test_the_report_tells_what_is_loaded(mnist_like):
    report = check_source(f"stacked-mnist:{mnist_like}")
    assert report.problem is None
    assert (report.kind, report.count) == ("stacked MNIST", 128_000)
    assert (report.image_size, report.channels) == (8, 3)
    assert report.modes == {"RGB": 128_000}
    assert len(report.class_counts) == 1000


def test_a_damaged_file_below_is_named(mnist_like):
    (mnist_like / "train-labels-idx1-ubyte").write_bytes(b"<html>")
    with pytest.raises(DatasetError, match="train-labels-idx1-ubyte: wrong magic number"):
        load_dataset(f"stacked-mnist:{mnist_like}")
    report = check_source(f"stacked-mnist:{mnist_like}")
    assert report.kind == "stacked MNIST"
    assert report.problem.startswith(f"{mnist_like}/train-labels-idx1-ubyte: wrong magic number")


@pytest.mark.parametrize("place", ["", "digits", "sine", "{}/empty"])
@pytest.mark.parametrize("use", [load_dataset, check_source])
def test_a_place_without_digits_is_refused(place, use, tmp_path):
    (tmp_path / "empty").mkdir()
    place = place.format(tmp_path)
    message = (
        f"^stacked-mnist:{place}: expected a folder with MNIST-format idx files after "
        f"stacked-mnist:, got '{place}'$"
    )
    with pytest.raises(DatasetError, match=message):
        use(f"stacked-mnist:{place}")


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(DatasetError, match=r"^'nowhere': no such data set, file or folder"):
        load_dataset("stacked-mnist:nowhere")


@pytest.mark.parametrize("use", [load_dataset, check_source])
def test_grey_stacks_are_refused(mnist_like, use):
    with pytest.raises(DatasetError, match=r"^--channels: stacked-mnist .* so it needs 3$"):
        use(f"stacked-mnist:{mnist_like}", channels=1)


def test_labels_that_are_no_digits_are_refused():
    letters = np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 10, 25])
    with pytest.raises(DatasetError, match="labels 0 to 9, got a label 25; give a folder of"):
        stack_digits(*letters, "train")


def test_real_digits_are_stacked():
    if not (DATA / "mnist").is_dir():
        pytest.skip(f"{DATA / 'mnist'} is not there; set GANTRAIN_DATA to the folder above it")
    grey = load_dataset(str(DATA / "mnist"), split="test")
    stacked = load_dataset(f"stacked-mnist:{DATA / 'mnist'}", split="test")
    assert stacked.images.shape == (26_000, 3, 28, 28)
    assert len(np.unique(stacked.labels)) == 1000
    digits = {
        (image.tobytes(), label)
        for image, label in zip(grey.images, grey.labels.tolist(), strict=True)
    }
    for image, label in zip(stacked.images[:500], stacked.labels[:500].tolist(), strict=True):
        for plane, digit in zip(image, (label // 100, label // 10 % 10, label % 10), strict=True):
            assert (plane.tobytes(), digit) in digits
