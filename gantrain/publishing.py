"""Hides how an artifact becomes the next version of a model: whole, durable, its number its own."""

import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gantrain.durable_files import fsync_folder
from gantrain.errors import RunError

MODEL_FILE = "model.onnx"
# Holds the highest number ever given; `ganserve` passes over what is no number. Exporters lock it.
MARK_FILE = ".versions"
_STAGING = ".staging-"  # begins the name of a folder whose file is still being written
_DIGITS = 20  # always as many, so that a new number covers the old one whole
_LARGEST_VERSION = 2**63 - 1  # that `ganserve` takes

logger = logging.getLogger(__name__)


def publish(artifact: bytes, repository: Path, name: str) -> Path:
    """Move the artifact into place as the next version, in one step that a watcher cannot split.

    A number is never given twice, not even where its version has been removed since.

    Raises:
        RunError: the repository cannot be written.
    """
    folder = repository / name
    staging = folder / f"{_STAGING}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked_mark(folder) as mark:
            for left in folder.glob(_STAGING + "[0-9a-f]" * 16):  # by exporters that were killed
                shutil.rmtree(left, ignore_errors=True)
            staging.mkdir()
            try:
                write_durably(staging / MODEL_FILE, artifact)
                fsync_folder(staging)
                before = newest_version(folder)
                target = claim_version(staging, folder, mark)
            finally:
                discard(staging)
        fsync_folder(folder)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror}; nothing was published"
        ) from error
    if before and holds(folder / str(before) / MODEL_FILE, artifact):
        logger.warning(
            "version %s of %s is the same as version %d, byte for byte: the run has not changed",
            target.name,
            name,
            before,
        )
    return target / MODEL_FILE


def newest_version(folder: Path) -> int:
    """The highest number that is there; 0 where there is none."""
    return max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)


def holds(path: Path, content: bytes) -> bool:
    """Whether a file can be read and holds just that."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


@contextmanager
def locked_mark(folder: Path) -> Iterator[BinaryIO]:
    """The file that holds the highest number ever given, which one exporter at a time may have."""
    descriptor = os.open(folder / MARK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    with open(descriptor, "r+b", buffering=0) as mark:  # noqa: PTH123 - has no path
        fcntl.flock(mark, fcntl.LOCK_EX)  # until it is closed, or this process ends
        yield mark


def claim_version(staging: Path, folder: Path, mark: BinaryIO) -> Path:
    """Rename the staged folder to the next number, once the mark that it is taken is on the disk.

    A crash between the two skips a number; the other way round a version that nobody remembers
    could be removed and its number given again.

    Raises:
        RunError: the highest number was given, or the mark holds none.
    """
    while True:
        number = max(newest_version(folder), read_mark(mark, folder / MARK_FILE)) + 1
        if number > _LARGEST_VERSION:
            raise RunError(
                f"{folder}: expected versions below 2^63, got {number - 1} as the newest: "
                "remove it, also from .versions, or use another name; nothing was published"
            )
        mark.seek(0)
        mark.write(f"{number:0{_DIGITS}}\n".encode())
        os.fsync(mark.fileno())
        fsync_folder(folder)  # the mark may be new
        target = folder / str(number)
        try:
            return staging.rename(target)
        except OSError:
            if not target.exists():  # else somebody put it there by hand: take the next
                raise


def read_mark(mark: BinaryIO, path: Path) -> int:
    """The highest number ever given; 0 of a file that is new.

    Raises:
        RunError: the file holds something else.
    """
    mark.seek(0)
    text = mark.read(100).strip()
    if not text:
        return 0
    if not text.isdigit():
        raise RunError(
            f"{path}: expected the highest version number ever given, got {text[:40]!r}; write "
            "that number into it; nothing was published"
        )
    return int(text)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def discard(staging: Path) -> None:
    """Remove what is left of a staged folder."""
    if staging.exists():
        (staging / MODEL_FILE).unlink(missing_ok=True)
        staging.rmdir()
