import gzip
import os
import struct
import tracemalloc

import numpy as np
import pytest

from gantrain.data.bad_data import DatasetError
from gantrain.data.idx_files import find_bad_files, is_idx_folder, read_idx_folder

IMAGES = np.arange(3 * 10 * 12, dtype=np.uint8).reshape(3, 10, 12)
LABELS = np.array([2, 0, 1], np.uint8)


def idx(array, element_type=8):
    header = bytes((0, 0, element_type, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_split(folder, prefix="train", separator="-", suffix="", pack=bytes):
    (folder / f"{prefix}-images{separator}idx3-ubyte{suffix}").write_bytes(pack(idx(IMAGES)))
    (folder / f"{prefix}-labels{separator}idx1-ubyte{suffix}").write_bytes(pack(idx(LABELS)))
    return folder


@pytest.mark.parametrize("separator", ["-", "."], ids=["dash", "dot"])
@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        pytest.param("", bytes, id="plain"),
        pytest.param(".gz", gzip.compress, id="gzipped"),
        pytest.param(".gz", bytes, id="unpacked-by-the-browser"),
    ],
)
def test_every_spelling_is_read(separator, suffix, pack, tmp_path):
    write_split(tmp_path, separator=separator, suffix=suffix, pack=pack)
    assert is_idx_folder(tmp_path)
    images, labels = read_idx_folder(tmp_path, "train")
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert labels.dtype == np.int64


def test_the_test_split_is_read_from_its_own_files(tmp_path):
    write_split(tmp_path, prefix="t10k")
    assert len(read_idx_folder(tmp_path, "test")[0]) == 3
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte .* is missing; add it"):
        read_idx_folder(tmp_path, "train")


def test_a_folder_of_other_files_is_not_one(tmp_path):
    (tmp_path / "train-images.png").touch()
    assert not is_idx_folder(tmp_path)


IMAGES_FILE = "train-images-idx3-ubyte"
LABELS_FILE = "train-labels-idx1-ubyte"
packed = gzip.compress(idx(IMAGES))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        pytest.param(
            IMAGES_FILE,
            idx(LABELS),
            "wrong magic number 00000801, expected 00000803 for images",
            id="labels-as-images",
        ),
        pytest.param(
            LABELS_FILE,
            idx(IMAGES),
            "wrong magic number 00000803, expected 00000801 for labels",
            id="images-as-labels",
        ),
        pytest.param(
            IMAGES_FILE, idx(IMAGES, 0x0D), "wrong magic number 00000d03", id="other-element-type"
        ),
        pytest.param(IMAGES_FILE, b"", r"wrong magic number \(the file is empty\)", id="empty"),
        pytest.param(
            IMAGES_FILE, b"<html>404</html>", "wrong magic number 3c68746d", id="web-page"
        ),
        pytest.param(IMAGES_FILE, idx(IMAGES)[:9], "truncated within its header", id="no-header"),
        pytest.param(
            IMAGES_FILE,
            idx(IMAGES)[:-1],
            "truncated: its header announces 3 x 10 x 12 = 360 bytes, but 359 follow",
            id="truncated",
        ),
        pytest.param(
            IMAGES_FILE,
            idx(IMAGES) + b"\0",
            "too long: its header announces 3 x 10 x 12 = 360 bytes, but more follow",
            id="too-long",
        ),
        pytest.param(
            IMAGES_FILE,
            gzip.compress(idx(IMAGES)[:-1]),
            "truncated: its header announces 3 x 10 x 12 = 360 bytes, but 359 follow",
            id="truncated-before-packing",
        ),
        pytest.param(
            IMAGES_FILE,
            gzip.compress(idx(IMAGES) + bytes(9)),
            "too long: its header announces 3 x 10 x 12 = 360 bytes, but more follow",
            id="too-long-when-unpacked",
        ),
        pytest.param(
            IMAGES_FILE,
            packed[:-8] + bytes(4) + packed[-4:],
            "damaged gzip file: CRC check failed",
            id="other-checksum",
        ),
        pytest.param(
            IMAGES_FILE,
            bytes((0, 0, 8, 3)) + b"\xff" * 12,
            "truncated: its header announces 4294967295 x",
            id="absurd-header",
        ),
        pytest.param(IMAGES_FILE, packed[:-9], "damaged gzip file", id="truncated-gzip"),
        pytest.param(
            IMAGES_FILE,
            packed[:40] + bytes(20) + packed[60:],
            "damaged gzip file",
            id="damaged-gzip",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(name, content, reason, tmp_path):
    path = write_split(tmp_path) / name
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{name}: {reason}") as caught:
        read_idx_folder(tmp_path, "train")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert [bad.name for bad in find_bad_files(tmp_path)] == [name]


def test_a_folder_of_the_other_spelling_is_passed_over(tmp_path):
    write_split(tmp_path, separator=".")
    for name in (IMAGES_FILE, LABELS_FILE):
        (tmp_path / name).mkdir()
    assert np.array_equal(read_idx_folder(tmp_path, "train")[0], IMAGES)
    assert find_bad_files(tmp_path) == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "named-pipe"])
def test_what_is_no_file_is_refused_without_waiting(make, tmp_path):
    (write_split(tmp_path) / LABELS_FILE).unlink()
    make(tmp_path / LABELS_FILE)
    with pytest.raises(DatasetError, match=f"{LABELS_FILE}: not a regular file"):
        read_idx_folder(tmp_path, "train")
    assert [bad.name for bad in find_bad_files(tmp_path)] == [LABELS_FILE]


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        pytest.param((10, 28, 28), "too long", id="small-header"),
        pytest.param((2**32 - 1,) * 3, "truncated", id="absurd-header"),
    ],
)
def test_a_small_file_that_unpacks_to_much_takes_no_memory(shape, problem, tmp_path):
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape)
    path = write_split(tmp_path) / IMAGES_FILE
    path.write_bytes(gzip.compress(header + bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(DatasetError, match=f"{IMAGES_FILE}: {problem}"):
        read_idx_folder(tmp_path, "train")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


def test_images_and_labels_must_be_as_many(tmp_path):
    (write_split(tmp_path) / LABELS_FILE).write_bytes(idx(LABELS[:2]))
    with pytest.raises(DatasetError, match=f"{IMAGES_FILE} holds 3 images but {LABELS_FILE} 2"):
        read_idx_folder(tmp_path, "train")


def test_missing_labels_are_named(tmp_path):
    (write_split(tmp_path) / LABELS_FILE).unlink()
    with pytest.raises(DatasetError, match=f"{LABELS_FILE} .* is missing"):
        read_idx_folder(tmp_path, "train")
