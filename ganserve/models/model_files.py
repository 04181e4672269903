"""The layout of the repository's folder, NAME/VERSION/model.onnx, and how its files are read."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ganserve.errors import ModelError, StartupError

_PIECE_BYTES = 256 * 1024
LAYOUT = "NAME/VERSION/model.onnx, VERSION a positive integer"
_LARGEST_VERSION = 2**63 - 1  # the Open Inference Protocol has versions of 64 bits, with a sign
_MOST_DIGITS = 19
# Files in the wrong place are looked for so far: the folder may be anything.
_DEEPEST = 3
_MOST_FOLDERS = 1000
_MOST_NAMED = 3


class Stamp(NamedTuple):
    """What changes with a file's content.

    The time of the last change alone would not do: archives and images may set it to the same for
    all files, of which those of one architecture have the same size, and each file system begins
    anew to number its inodes.
    """

    device: int
    inode: int
    size: int
    modified_nanoseconds: int
    changed_nanoseconds: int  # of the inode, which nobody can set


@dataclass(frozen=True)
class Candidate:
    """A version's file on disk; without a stamp it cannot be examined, and loading it will say why.

    The stamp may change though the content does not.
    """

    name: str
    version: int
    path: Path
    stamp: Stamp | None


def check_root(root: Path) -> None:
    """Make sure that the repository can be read.

    Raises:
        StartupError: it is missing, no folder, not readable, or that of a model.
    """
    try:
        holds_versions = any(_candidate(root.name, entry) for entry in root.iterdir())
        is_of_a_model = holds_versions and not scan(root)[0]
    except OSError as error:
        raise StartupError(
            f"models: expected a folder with NAME/VERSION/model.onnx, got {root}: {error.strerror}"
        ) from error
    if is_of_a_model:
        raise StartupError(
            f"models: expected a folder with NAME/VERSION/model.onnx, got {root}, which is that of "
            "a model: give the folder above it"
        )


def scan(root: Path) -> tuple[dict[str, list[Candidate]], dict[str, OSError]]:
    """Find all versions, newest first, by model; a model without any is left out.

    What is not a version is passed over: names that are no positive integer, such as a folder that
    is still being written, and folders without the file. So is a model whose name no message or
    metric could carry. A version that cannot be read is one like any other: it hides no others.

    Returns:
        The versions, and the models of which nothing is known because their folders could not be
        read.

    Raises:
        OSError: the root itself cannot be read.
    """
    found, unreadable = {}, {}
    for folder in root.iterdir():
        if folder.name.startswith(".") or not folder.name.isprintable():
            continue
        try:
            candidates = _candidates(folder)
        except OSError as error:
            unreadable[folder.name] = error
        else:
            if candidates:
                found[folder.name] = candidates
    return found, unreadable


def misplaced_files(root: Path) -> list[str]:
    """Some of the ONNX files below a root in which `scan` finds no version, as paths below it.

    Hidden folders are left out, such as one that is still being written.
    """
    found: list[str] = []
    for looked, (folder, folders, files) in enumerate(os.walk(root)):  # passes over errors
        place = Path(folder).relative_to(root)
        found += [str(place / file) for file in sorted(files) if file.endswith(".onnx")]
        is_deep = len(place.parts) == _DEEPEST
        folders[:] = [] if is_deep else sorted(name for name in folders if name[0] != ".")
        if looked == _MOST_FOLDERS or len(found) >= _MOST_NAMED:
            break
    return found[:_MOST_NAMED]


def read_model_file(path: Path, max_bytes: int) -> memoryview:
    """Read a file, if it is one and no larger than allowed.

    In pieces, because the kernel would copy all of it without a pause for the other threads, and
    into memory that nothing was written to, because Python would write to it under its lock.

    Raises:
        ModelError: it is no file, or too large.
        OSError: it cannot be read.
    """
    with _opened(path, max_bytes) as (file, size):
        content = np.empty(size, np.uint8).data
        read = 0
        while count := file.readinto(content[read : read + _PIECE_BYTES]):
            read += count
        return content[:read].toreadonly()  # it may have become shorter meanwhile


def has_content(path: Path, size: int, digest: str) -> bool:
    """Whether a file can be read, has this size and this SHA-256.

    It takes no memory to speak of: there may be none left beside the model that serves.
    """
    try:
        with _opened(path, size) as (file, found):
            return found == size and hashlib.file_digest(file, "sha256").hexdigest() == digest
    except (OSError, ModelError):
        return False


@contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[tuple[FileIO, int]]:
    """A file, if it is one and no larger than allowed, and its size in bytes.

    Raises:
        ModelError: it is no file, or too large.
        OSError: it cannot be read.
    """
    # Without waiting: a pipe under this name would otherwise hold up every load after it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor has no path
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("expected a file, got a pipe, a device or the like")
        if status.st_size > max_bytes:
            raise ModelError(
                f"expected a file of at most {max_bytes} bytes, got {status.st_size}: see "
                "--max-model-bytes"
            )
        yield file, status.st_size


def can_be_read(path: Path) -> bool:
    """Whether a file opens and gives at least its first byte."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - as above
            file.read(1)
    except OSError:
        return False
    return True


def _candidates(folder: Path) -> list[Candidate]:
    try:
        entries = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # removed since it was listed, or no model
        return []
    candidates = [candidate for entry in entries if (candidate := _candidate(folder.name, entry))]
    return sorted(candidates, key=lambda candidate: -candidate.version)


def parse_version_number(text: str) -> int | None:
    """The number that a folder's name, or a request, gives a version; None if it is none."""
    # More digits than any version has would make the conversion itself costly.
    is_short = len(text) <= _MOST_DIGITS
    if not (is_short and text.isascii() and text.isdigit() and text[0] != "0"):
        return None
    number = int(text)
    return number if number <= _LARGEST_VERSION else None


def _candidate(name: str, folder: Path) -> Candidate | None:
    number = parse_version_number(folder.name)
    if number is None:
        return None
    path = folder / "model.onnx"
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        _check_is_there(folder)
        return None
    except OSError:  # such as another user's folder; it may be there, so what serves of it stays
        return Candidate(name, number, path, None)
    stamp = Stamp(
        *(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    )
    return Candidate(name, number, path, stamp)


def _check_is_there(folder: Path) -> None:
    """Make sure that the folder of a version, which was listed, is still there.

    If it is not, a link above it may point to other folders by now, with versions of their own.

    Raises:
        OSError: it is not.
    """
    if not os.path.lexists(folder):
        problem = "replaced while it was looked through"
        raise OSError(errno.ESTALE, problem, str(folder.parent))
