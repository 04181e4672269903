"""Hides CelebA's layout: aligned faces in one folder, and beside it the list of its splits."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from gantrain.data.bad_data import DatasetError, list_some, unreadable
from gantrain.data.image_folders import Listing, list_folder

FOLDER: Final = "img_align_celeba"
FACE: Final = re.compile(r"\d{6}\.(jpg|png)")
PARTITION_LIST: Final = "list_eval_partition"
LISTS: Final = (PARTITION_LIST, "list_attr_celeba")  # each as .txt, or as .csv from Kaggle
LIST_HEADER: Final = ["image_id", "partition"]  # of the .csv
SPLITS: Final = {"0": "train", "1": "validation", "2": "test"}  # by their number in the list
NAMES_SHOWN: Final = 3


@dataclass(frozen=True)
class CelebA:
    """Where a copy of CelebA lies."""

    images: Path  # the folder of 000001.jpg and so on, 178x218 pixels
    partition: Path | None  # the list that tells which image is in which split


def find_celeba(path: Path) -> CelebA | None:
    """Tell whether a folder is `img_align_celeba` or holds it, by names of folders and files.

    The folder of faces goes by its published name, or has one of CelebA's lists in it or beside it.
    """
    images = find_faces(path.absolute())
    if images.name != FOLDER and not any(
        find_list([images, images.parent], name) for name in LISTS
    ):
        return None
    if not holds_faces(images):
        return None
    above = (images, images.parent, images.parent.parent)
    places = [place for folder in above for place in (folder, folder / "Eval")]  # as published
    return CelebA(images, find_list(places, PARTITION_LIST))


def holds_faces(folder: Path) -> bool:
    """Tell whether files are named as CelebA's; a folder that may not be read holds none."""
    try:
        with os.scandir(folder) as entries:
            return any(FACE.fullmatch(entry.name) for entry in entries)
    except OSError:
        return False


def find_faces(path: Path) -> Path:
    """Descend to the folder of faces; Kaggle's copy has it within one of the same name."""
    for _ in range(2):
        for below in (path / FOLDER, path / "Img" / FOLDER):
            if os.access(below, os.F_OK):
                path = below
                break
    return path


def find_list(places: list[Path], name: str) -> Path | None:
    """Find one of CelebA's lists."""
    paths = (place / f"{name}.{extension}" for place in places for extension in ("txt", "csv"))
    return next((path for path in paths if os.access(path, os.F_OK)), None)


@contextmanager
def list_celeba(celeba: CelebA, split: str) -> Iterator[Listing]:
    """List the faces of the split `train` or `test`; without the partition list, all are `train`.

    Raises:
        DatasetError: there is no such split, or the list does not fit the images.
    """
    if split != "train" and celeba.partition is None:
        raise DatasetError(
            f"{celeba.images}: without {PARTITION_LIST}.txt beside it, it has no {split} split; "
            "add that list of CelebA"
        )
    with list_folder(celeba.images) as listing:
        files = listing.files
        if celeba.partition is not None:
            splits = split_files(celeba, listing)
            files = tuple(file for file in files if splits[file.name] == split)
            if not files:
                raise DatasetError(
                    f"{celeba.images}: none of its {len(listing.files)} images is in the {split} "
                    f"split of {celeba.partition.name}; add those images"
                )
        yield replace(listing, kind="CelebA folder", files=files)


def count_splits(celeba: CelebA) -> dict[str, int]:
    """Count the images of each split, none without the partition list; raises DatasetError."""
    if celeba.partition is None:
        return {}
    with list_folder(celeba.images) as listing:
        counts = Counter(split_files(celeba, listing).values())
    return {name: counts[name] for name in SPLITS.values()}


def split_files(celeba: CelebA, listing: Listing) -> dict[str, str]:
    """Return the split of every file by its name; raises DatasetError."""
    assert celeba.partition is not None
    splits = read_partition(celeba.partition)
    stems = {file.name: PurePosixPath(file.name).stem for file in listing.files}
    unknown = [name for name, stem in stems.items() if stem not in splits]
    if unknown:
        raise DatasetError(
            f"{celeba.partition}: does not name {len(unknown)} of the images in {celeba.images}: "
            f"{list_some(unknown, NAMES_SHOWN)}; fetch the list again or move these images away"
        )
    return {name: splits[stem] for name, stem in stems.items()}


def read_partition(path: Path) -> dict[str, str]:
    """Read which split an image is in, by its file's name without `.jpg`; raises DatasetError.

    Without, for the same faces are published as PNG files too.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise unreadable(path, error) from error
    splits = {}
    for number, line in enumerate(lines, start=1):
        fields = line.replace(",", " ").split()
        if not fields or fields == LIST_HEADER:
            continue
        if len(fields) != 2 or fields[1] not in SPLITS:
            raise DatasetError(
                f"{path}: line {number}: expected a file name and 0, 1 or 2, got "
                f"{line[:80]!r}; fetch it again"
            )
        splits[PurePosixPath(fields[0]).stem] = SPLITS[fields[1]]
    return splits
