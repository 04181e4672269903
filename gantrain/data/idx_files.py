"""Hides MNIST's idx format: four files in a folder, gzipped or not, checked before use."""

import gzip
import io
import math
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from gantrain.data.bad_data import BadFile, BadFileError, DatasetError, UnreadableFileError

GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 0x08  # the only element type that MNIST-format files use
CHUNK_BYTES = 2**20
FILE_NAME = re.compile(r"(train|t10k)-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")
FILE_PREFIXES = {"train": "train", "test": "t10k"}


def is_idx_file(path: PurePath) -> bool:
    """Tell whether the file is named as one of MNIST's four."""
    return FILE_NAME.fullmatch(path.name) is not None


def is_idx_folder(folder: Path) -> bool:
    """Tell whether the folder holds a file named as one of MNIST's four."""
    return any(is_idx_file(path) for path in folder.iterdir())


def holds_split(folder: Path, split: str) -> bool:
    """Tell whether the folder holds a file named as one of a split's two."""
    names = (path.name for path in folder.iterdir() if is_idx_file(path))
    return any(name.startswith(FILE_PREFIXES[split]) for name in names)


def read_idx_folder(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the images and labels of the split `train` or `test`.

    Returns:
        Images `[count, height, width]` and labels `[count]`.

    Raises:
        DatasetError: a file is missing, damaged, or disagrees with the other.
    """
    images_path = find_file(folder, f"{FILE_PREFIXES[split]}-images", "idx3-ubyte")
    labels_path = find_file(folder, f"{FILE_PREFIXES[split]}-labels", "idx1-ubyte")
    try:
        path = images_path
        images = read_idx(path, dimensions=3)
        path = labels_path
        labels = read_idx(path, dimensions=1)
    except BadFileError as error:
        raise DatasetError(f"{path}: {error}; {error.remedy}") from error
    if len(images) != len(labels):
        raise DatasetError(
            f"{folder}: {images_path.name} holds {len(images)} images but {labels_path.name} "
            f"{len(labels)} labels; take both from the same data set"
        )
    return images, labels.astype(np.int64)


def find_bad_files(folder: Path) -> list[BadFile]:
    """Read every MNIST-format file of the folder and return those that are damaged."""
    bad_files = []
    for path in sorted(folder.iterdir()):
        if match := FILE_NAME.fullmatch(path.name):
            stem, extension = re.split(r"[-.](?=idx)", path.name.removesuffix(".gz"))
            if path.is_dir() and path != find_file(folder, stem, extension):
                continue
            try:
                read_idx(path, dimensions=3 if "images" in match[2] else 1)
            except BadFileError as error:
                bad_files.append(BadFile(path.name, str(error), error.remedy))
    return bad_files


def find_file(folder: Path, stem: str, extension: str) -> Path:
    """Find the file in any of its spellings; an unpacked one is preferred.

    Kaggle's copy of MNIST has beside `train-images.idx3-ubyte` a folder of the other spelling.
    """
    names = (f"{stem}-{extension}", f"{stem}.{extension}")
    paths = (folder / f"{name}{packed}" for name in names for packed in ("", ".gz"))
    there = [path for path in paths if path.exists()]
    if not there:
        raise DatasetError(
            f"{folder}: {stem}-{extension} (or the same with .gz) is missing; add it"
        )
    return next((path for path in there if not path.is_dir()), there[0])


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one idx file of bytes with the given number of dimensions; raises BadFileError.

    No more memory is used than its header announces and its content fills.
    """
    header_size = 4 + 4 * dimensions
    with open_unpacked(path) as file:
        shape = read_shape(file.read(header_size), dimensions)
        announced = math.prod(shape)
        following = count_bytes(file, announced + 1)
        if following != announced:
            problem = "truncated" if following < announced else "too long"
            raise BadFileError(
                f"{problem}: its header announces {' x '.join(map(str, shape))} = {announced} "
                f"bytes, but {following if following < announced else 'more'} follow"
            )
        file.seek(header_size)
        return np.frombuffer(file.read(announced), dtype=np.uint8).reshape(shape)


def read_shape(header: bytes, dimensions: int) -> tuple[int, ...]:
    """Check the header and return what it announces; raises BadFileError."""
    magic = header[:4]
    expected_magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if magic != expected_magic:
        raise BadFileError(
            f"wrong magic number {magic.hex() or '(the file is empty)'}, expected "
            f"{expected_magic.hex()} for {'images' if dimensions == 3 else 'labels'}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise BadFileError("truncated within its header")
    return struct.unpack(f">{dimensions}I", header[4:])


def count_bytes(file: io.BufferedIOBase, limit: int) -> int:
    """Count the bytes from here to the end, or to the limit, without keeping them."""
    count = 0
    while chunk := file.read(min(CHUNK_BYTES, limit - count)):
        count += len(chunk)
    return count


@contextmanager
def open_unpacked(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open the file, unpacked if its content, not its name, says gzip; raises BadFileError.

    So does what goes wrong while it is read within the context.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFileError("not a regular file")  # to open a named pipe would wait for ever
        with path.open("rb") as file:
            packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            yield gzip.GzipFile(fileobj=file) if packed else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadFileError(f"damaged gzip file: {error}") from error
    except OSError as error:
        raise UnreadableFileError(error) from error
