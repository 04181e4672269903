"""Hides CIFAR-10's seven binary files: in a folder or in a packed tar, checked before use."""

import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from gantrain.data.bad_data import BadFile, BadFileError, DatasetError, UnreadableFileError

BATCHES: Final = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
NAMES_FILE: Final = "batches.meta.txt"
BINARY_FILES: Final = (*BATCHES["train"], *BATCHES["test"], NAMES_FILE)
PYTHON_FILES: Final = ("data_batch_1", "test_batch", "batches.meta")
PYTHON_VERSION: Final = (
    "the Python version of CIFAR-10, whose pickles could run any program; fetch the binary "
    "version, cifar-10-binary.tar.gz"
)
FOLDER: Final = "cifar-10-batches-bin"

CLASSES: Final = 10
SHAPE: Final = (3, 32, 32)  # the red, the green and the blue plane, each row by row
RECORD_BYTES: Final = 1 + 3 * 32 * 32  # a label and the pixels
BATCH_IMAGES: Final = 10_000
BATCH_BYTES: Final = BATCH_IMAGES * RECORD_BYTES
MAX_NAMES_BYTES: Final = 4096
MAX_ARCHIVE_BYTES: Final = 256 * 2**20  # unpacked; CIFAR-10 takes 176 MiB of it
MAX_MEMBERS: Final = 1000  # of an archive; CIFAR-10's has 9
CHUNK_BYTES: Final = 2**20

GZIP_MAGIC: Final = b"\x1f\x8b"
XZ_MAGIC: Final = b"\xfd7zXZ\x00"

Readers = dict[str, Callable[[], bytes]]  # by file name; they raise BadFileError


def is_cifar(path: Path) -> bool:
    """Tell whether it is a folder with a CIFAR-10 batch, or a gz or xz file, by its content."""
    if path.is_dir():
        return any(os.access(find_folder(path) / name, os.F_OK) for name in BINARY_FILES)
    return path.is_file() and read_magic(path).startswith((GZIP_MAGIC, XZ_MAGIC))


def read_cifar(
    path: Path, split: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Read the split `train` (50,000 images) or `test` (10,000).

    Returns:
        Images `[count, 3, 32, 32]`, labels `[count]`, and the names of the classes.

    Raises:
        DatasetError: a file is missing or damaged, or the path holds something else.
    """
    readers = open_files(path)
    names = BATCHES[split]
    images = np.empty((len(names), BATCH_IMAGES, *SHAPE), np.uint8)
    labels = np.empty((len(names), BATCH_IMAGES), np.int64)
    try:
        name = NAMES_FILE
        class_names = parse_names(read(readers, name))
        for index, name in enumerate(names):
            labels[index], images[index] = parse_batch(read(readers, name))
    except BadFileError as error:
        raise DatasetError(f"{path}: {name}: {error}; {error.remedy}") from error
    return images.reshape(-1, *SHAPE), labels.reshape(-1), class_names


def find_bad_files(path: Path) -> list[BadFile]:
    """Read all seven files and return those that are missing or damaged.

    Raises:
        DatasetError: the path holds something else, or an archive that cannot be unpacked.
    """
    readers = open_files(path)
    bad_files = []
    for name in BINARY_FILES:
        parse: Callable[[bytes], object] = parse_names if name == NAMES_FILE else parse_batch
        try:
            parse(read(readers, name))
        except BadFileError as error:
            bad_files.append(BadFile(name, str(error), error.remedy))
    return bad_files


def parse_batch(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return labels `[10000]` and images `[10000, 3, 32, 32]`; raises BadFileError."""
    records = np.frombuffer(content, np.uint8).reshape(BATCH_IMAGES, RECORD_BYTES)
    labels = records[:, 0]
    if (bad := np.flatnonzero(labels >= CLASSES)).size:
        raise BadFileError(
            f"image {bad[0] + 1} of {BATCH_IMAGES} has the label {labels[bad[0]]}, expected 0 to 9"
        )
    return labels, records[:, 1:].reshape(BATCH_IMAGES, *SHAPE)


def parse_names(content: bytes) -> tuple[str, ...]:
    """Return the names of the classes, one a line; raises BadFileError."""
    lines = content.decode("utf-8", errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != CLASSES or len(names) != CLASSES or not all(map(str.isprintable, names)):
        raise BadFileError(f"expected {CLASSES} class names, one a line, got {len(names)}")
    return names


def read(readers: Readers, name: str) -> bytes:
    """Read one of the files; raises BadFileError."""
    if name not in readers:
        raise BadFileError("missing")
    return readers[name]()


def open_files(path: Path) -> Readers:
    """Find the files in a folder or archive; raises DatasetError where it holds something else."""
    readers = open_folder(path) if path.is_dir() else open_archive(path)
    if not readers.keys() & {*BINARY_FILES}:
        if readers.keys() & {*PYTHON_FILES}:
            raise DatasetError(f"{path}: {PYTHON_VERSION}")
        raise DatasetError(
            f"{path}: packed, but without CIFAR-10's binary batches; unpack other archives and "
            "give the folder"
        )
    return readers


def find_folder(path: Path) -> Path:
    """Return the folder of the files: the given one, or the one below that the tar makes."""
    below = path / FOLDER
    return below if os.access(below, os.F_OK) else path


def open_folder(path: Path) -> Readers:
    """Find the files in a folder."""
    folder = find_folder(path)
    names = [name for name in BINARY_FILES if os.access(folder / name, os.F_OK)]
    return {name: partial(read_file, folder / name) for name in names}


def read_file(path: Path) -> bytes:
    """Read one file of a folder, if it is as long as it must be; raises BadFileError."""
    if not path.is_file():  # to open a named pipe would wait for ever
        raise BadFileError("not a regular file")
    try:
        check_size(path.name, path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(error) from error


def check_size(name: str, size: int) -> None:
    """Refuse a file that is not as long as its name demands; raises BadFileError."""
    if name == NAMES_FILE:
        if size > MAX_NAMES_BYTES:
            raise BadFileError(f"too long: {size} bytes for {CLASSES} class names")
    elif size != BATCH_BYTES:
        problem = "truncated" if size < BATCH_BYTES else "too long"
        raise BadFileError(
            f"{problem}: expected {BATCH_BYTES} bytes ({BATCH_IMAGES} images), got {size}"
        )


def open_archive(path: Path) -> Readers:
    """Find the files in a tar.gz or tar.xz by their names, in whatever folder; no disk is written.

    Raises:
        DatasetError: it cannot be unpacked, or not within `MAX_ARCHIVE_BYTES` of memory.
    """
    content = unpack(path)
    try:
        archive = tarfile.open(fileobj=content, mode="r:")  # noqa: SIM115 - the readers need it
        members = list(islice(archive, MAX_MEMBERS))
    except Exception as error:  # a damaged header makes tarfile raise many kinds
        raise DatasetError(
            f"{path}: packed, but no complete tar ({error}); fetch it again, or unpack it and give "
            "the folder"
        ) from error
    known = {*BINARY_FILES, *PYTHON_FILES}
    found = {PurePosixPath(member.name).name: member for member in members if member.isreg()}
    return {
        name: partial(read_member, archive, member)
        for name, member in found.items()
        if name in known
    }


def unpack(path: Path) -> io.BytesIO:
    """Unpack a gz or xz file into memory; raises DatasetError."""
    opener = gzip.open if read_magic(path).startswith(GZIP_MAGIC) else lzma.open
    content = io.BytesIO()
    try:
        with cast("BinaryIO", opener(path, "rb")) as packed:
            while chunk := packed.read(CHUNK_BYTES):
                content.write(chunk)
                if content.tell() > MAX_ARCHIVE_BYTES:
                    raise DatasetError(
                        f"{path}: unpacks to more than {MAX_ARCHIVE_BYTES} bytes, so it is not "
                        "CIFAR-10; unpack other archives and give the folder"
                    )
    except (EOFError, OSError, MemoryError, zlib.error, lzma.LZMAError) as error:
        raise DatasetError(f"{path}: damaged or incomplete ({error}); fetch it again") from error
    content.seek(0)
    return content


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read one file of an archive, if it is as long as it must be; raises BadFileError."""
    check_size(PurePosixPath(member.name).name, member.size)
    content = archive.extractfile(member)
    assert content is not None, "links are left out"
    try:
        return content.read()
    except Exception as error:  # a damaged map of a sparse file makes tarfile raise many kinds
        raise BadFileError(f"damaged in the archive: {error}") from error


def read_magic(path: Path) -> bytes:
    """Read the first bytes; none where the file cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(XZ_MAGIC))
    except OSError:
        return b""
