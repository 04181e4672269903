"""Hides whether images lie in a folder or a zip: lists, sorts and reads their files."""

import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gantrain.data.bad_data import (
    BadFile,
    BadFileError,
    DatasetError,
    UnreadableFileError,
    list_some,
    printable,
    unreadable,
)
from gantrain.data.class_folders import classes_by_folder, find_splits
from gantrain.data.image_files import looks_like_image

# HEIF cannot be decoded, but who has such pictures should hear of it.
IMAGE_EXTENSIONS: Final = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"),
        *(".heic", ".heif"),
    )
)
MAX_FILE_BYTES: Final = 256 * 2**20
SIGNATURE_BYTES: Final = 12
ENCRYPTED: Final = 0x1  # of a zip entry's flags
NAMES_SHOWN: Final = 3


@dataclass(frozen=True)
class ImageFile:
    """A file that is meant to be an image; `read` raises BadFileError where it cannot be read."""

    name: str  # relative to the folder or zip, with forward slashes
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Listing:
    """What a folder or a zip holds."""

    kind: str
    files: tuple[ImageFile, ...]  # in natural order of their names
    others: tuple[str, ...]  # names of files that are no images, likewise
    bad_folders: tuple[BadFile, ...]
    folder: Path | None = None  # all images below it are listed; None of a zip

    @property
    def ignored(self) -> dict[str, int]:
        """Extension -> files that are no images, most first."""
        suffixes = (PurePosixPath(name).suffix.lower() for name in self.others)
        counts = Counter(suffix or "no extension" for suffix in suffixes)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@contextmanager
def open_listing(path: Path) -> Iterator[Listing]:
    """List the images of a folder or a zip, which stays open for reading within the context.

    Raises:
        DatasetError: neither a folder nor a readable zip; or its folders are splits of one data
            set, as `train` and `test`.
    """
    with list_folder(path) if path.is_dir() else list_zip(path) as listing:
        refuse_splits(path, find_splits([file.name for file in listing.files]))
        yield listing


def refuse_splits(path: Path, splits: Mapping[str, bool]) -> None:
    """Raise DatasetError where there are splits, which would be learned as if they were classes."""
    if not splits:
        return
    training = [name for name, is_training in splits.items() if is_training]
    advice = (
        f"give {' or '.join(str(path / name) for name in training)}"
        if path.is_dir()
        else f"pack {' or '.join(training)} alone"
    )
    raise DatasetError(
        f"{path}: its folders {' and '.join(splits)} are splits of one data set, not classes: "
        f"{advice}, or rename them to use the images of all"
    )


@contextmanager
def list_folder(folder: Path) -> Iterator[Listing]:
    """List the images in the folder and below; links are followed, hidden files left out."""
    bad_folders: list[BadFile] = []
    files, others = [], []
    for path in walk(folder, bad_folders):
        name = printable(path.relative_to(folder).as_posix())
        read = partial(read_file, path)
        if is_image(name, partial(read_start, path)):
            files.append(ImageFile(name, read))
        else:
            others.append(name)
    yield replace(make_listing("image folder", files, others, bad_folders), folder=folder)


def walk(folder: Path, bad_folders: list[BadFile]) -> Iterator[Path]:
    """Yield every file that is not hidden.

    Folders that cannot be listed go to `bad_folders`, and those that links give a second time.
    """

    def note(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        bad_folders.append(BadFile(printable(name), f"folder cannot be read: {error.strerror}"))

    seen: dict[Path, Path] = {}  # where a folder really lies -> the path that it was met by
    for parent, subfolders, names in os.walk(folder, onerror=note, followlinks=True):
        path = Path(parent)
        first = seen.setdefault(path.resolve(), path)
        if first != path:
            subfolders.clear()
            if first not in path.parents:  # links that lead round in circles add nothing
                name, other = (printable(p.relative_to(folder).as_posix()) for p in (path, first))
                reason = f"the same folder as {other}: remove the link, or let it lead elsewhere"
                bad_folders.append(BadFile(name, reason))
            continue
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        yield from (Path(parent, name) for name in names if not is_hidden(name))


@contextmanager
def list_zip(path: Path) -> Iterator[Listing]:
    """List the images in the zip."""
    with open_zip(path) as archive:
        files, others = [], []
        for entry in archive.infolist():
            name = printable(entry.filename.replace("\\", "/"))  # some of Windows' packers use \\
            if entry.is_dir() or any(map(is_hidden, PurePosixPath(name).parts)):
                continue
            if is_image(name, partial(read_entry_start, archive, entry)):
                files.append(ImageFile(name, partial(read_entry, archive, entry)))
            else:
                others.append(name)
        yield make_listing("image zip", files, others, [])


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open the archive; raises DatasetError with what the file is instead."""
    if not path.is_file():  # to open a named pipe would wait for ever
        raise DatasetError(f"{path}: neither a folder nor a file; give a folder or .zip of images")
    try:
        with path.open("rb") as file:
            start = file.read(SIGNATURE_BYTES)
        return zipfile.ZipFile(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged directory makes zipfile raise many kinds
        if start.startswith(b"PK"):
            problem = f"damaged or incomplete zip ({error}); fetch or pack it again"
        elif looks_like_image(start):
            problem = "a single image; give the folder that holds your images"
        elif not start:
            problem = "empty file; give a folder or a .zip of images"
        else:
            problem = "neither a folder nor a zip; unpack other archives and give the folder"
        raise DatasetError(f"{path}: {problem}") from error


def make_listing(
    kind: str, files: list[ImageFile], others: list[str], bad_folders: list[BadFile]
) -> Listing:
    """Sort what was found, so that the order owes nothing to the file system."""
    return Listing(
        kind=kind,
        files=tuple(sorted(files, key=lambda file: natural_key(file.name))),
        others=tuple(sorted(others, key=natural_key)),
        bad_folders=tuple(sorted(bad_folders, key=lambda bad: natural_key(bad.name))),
    )


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort 2.png before 10.png."""
    # 18 digits at a time: int() refuses absurdly long numbers.
    parts = re.split(r"([0-9]{1,18})", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_hidden(name: str) -> bool:
    """Tell files that no person put there: dot files, and macOS' shadow folder in zips."""
    # A zip that was packed from beside the folder, as `zip -r x.zip ../photos`, holds `../photos`.
    return (name.startswith(".") and name != "..") or name == "__MACOSX"


def is_image(name: str, read_start: Callable[[], bytes]) -> bool:
    """Tell whether the file is meant to be an image: by its name, else by its first bytes."""
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS or looks_like_image(read_start())


def read_file(path: Path) -> bytes:
    """Read one file of a folder; raises BadFileError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadFileError("not a regular file")  # to open a named pipe would wait for ever
        check_file_size(status.st_size)
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(error) from error


def read_start(path: Path) -> bytes:
    """Read the first bytes; none where the file cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(SIGNATURE_BYTES)
    except OSError:
        return b""


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read one file of a zip; raises BadFileError."""
    if entry.flag_bits & ENCRYPTED:
        raise BadFileError("encrypted: pack the zip without a password")
    check_file_size(entry.file_size)  # zipfile unpacks no more than this
    try:
        return archive.read(entry)
    except Exception as error:  # a damaged entry makes zipfile and its decoders raise many kinds
        raise BadFileError(f"damaged in the zip: {str(error) or type(error).__name__}") from error


def read_entry_start(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read the first bytes; none where the entry cannot be read."""
    try:
        with archive.open(entry) as file:
            return file.read(SIGNATURE_BYTES)
    except Exception:  # whatever is wrong with it, its name says that it is no image
        return b""


def check_file_size(size: int) -> None:
    """Refuse a file that no sensible image fills; raises BadFileError."""
    if size > MAX_FILE_BYTES:
        raise BadFileError(f"too large: {size} bytes, the limit is {MAX_FILE_BYTES}")


def label(names: list[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return labels and class names of the named files, from the folders they lie in."""
    classes = classes_by_folder(names)
    if classes is None:
        return None, ()
    class_names = sorted({*classes}, key=natural_key)
    index_of = {name: index for index, name in enumerate(class_names)}
    return np.array([index_of[name] for name in classes], np.int64), tuple(class_names)


def find_problem(
    source: str,
    listing: Listing,
    usable: int,
    bad_files: Sequence[BadFile],
    *,
    skip_bad_files: bool = False,
    check: str = "",
) -> str | None:
    """Say why no training can start on the listing: files are bad, or too few images are left.

    `check` is the command that would name every bad file, where this is not it.
    """
    if not listing.files and not listing.bad_folders:
        others = [f"{count} {extension}" for extension, count in listing.ignored.items()]
        return (
            f"{source}: no images in it (it holds {list_some(others, 5) or 'no files'}); give a "
            "folder or .zip with PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF files"
        )
    total = len(listing.files) + len(listing.bad_folders)
    named = list_some([str(bad) for bad in bad_files], NAMES_SHOWN)
    bad = f"{len(bad_files)} of {total} files cannot be used: {named}"
    all_of_them = f" (`{check}` names all)" if check else ""
    if usable < 2:
        images = "image" if usable == 1 else "images"
        few = f"{source}: {usable} usable {images}; at least 2 are needed, add more"
        return f"{few} or mend the others: {bad}{all_of_them}" if bad_files else few
    if bad_files and not skip_bad_files:
        return (
            f"{source}: {bad}; mend or remove them{all_of_them}, or leave them out with "
            "--skip-bad-files, which `gantrain train` and `gantrain evaluate` take"
        )
    return None
