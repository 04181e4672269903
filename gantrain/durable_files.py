"""Hides how a file gets to the disk whole: a reader sees all of it or what was there before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gantrain.errors import RunError

PARTIAL_SUFFIX = ".partial"  # of files that are not complete yet


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` only once it is complete and on the disk.

    Raises:
        RunError: it could not be written; what was at `path` is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with writing(path):
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            fsync_folder(path.parent)
    finally:
        with suppress(OSError):  # a disk that takes no writes has no partial file either
            partial.unlink(missing_ok=True)


def atomic_link(source: Path, path: Path) -> None:
    """Let `path` be the file at `source`, also once that name is gone; both are in one folder.

    Raises:
        RunError: it could not be written; what was at `path` is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    with writing(path):
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:  # a disk that has no links
            with atomic_write(path) as file, source.open("rb") as whole:
                shutil.copyfileobj(whole, file)
            return
        partial.replace(path)
        fsync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let what goes wrong on the disk name the file and what to do; raises RunError."""
    try:
        yield
    except OSError as error:
        reason, remedy = error.strerror or error, "make room or mend the folder"
        if not path.parent.exists():  # moved or removed since it was made
            reason, remedy = f"the folder {path.parent} is no longer there", "put it back"
        raise RunError(
            f"{path} could not be written: {reason}; {remedy} and give the same command again"
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make a rename inside the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
