"""Hides the layout of the repository's folder: NAME/VERSION/model.onnx."""

import os
from dataclasses import dataclass
from pathlib import Path

from ganserve.errors import StartupError


@dataclass(frozen=True)
class Candidate:
    """A version's file on disk. `stamp` changes with its content."""

    name: str
    version: int
    path: Path
    stamp: tuple[int, int, int]  # inode, size, nanoseconds of the last change


def check_root(root: Path) -> None:
    """Make sure that the repository can be read.

    Raises:
        StartupError: it is missing, no folder, or not readable.
    """
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        raise StartupError(
            f"models: expected a folder with NAME/VERSION/model.onnx, got {root}: {error.strerror}"
        ) from error


def scan(root: Path) -> dict[str, list[Candidate]]:
    """Find all versions, newest first, by model; a model without any is left out.

    What is not a version is passed over: names that are no positive integer, such as a folder that
    is still being written, and folders without the file.
    """
    found = {}
    for folder in root.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            candidates = [c for entry in folder.iterdir() if (c := _candidate(folder.name, entry))]
            if candidates:
                found[folder.name] = sorted(candidates, key=lambda c: -c.version)
    return found


def _candidate(name: str, folder: Path) -> Candidate | None:
    number = folder.name
    if not (number.isascii() and number.isdigit() and number[0] != "0" and len(number) <= 18):
        return None
    path = folder / "model.onnx"
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Candidate(name, int(number), path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
