"""Hides which data were probably meant by a path that is not there, or that holds no images."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from gantrain.data.bad_data import DatasetError, list_some
from gantrain.data.cifar_files import BINARY_FILES, PYTHON_FILES, PYTHON_VERSION
from gantrain.data.idx_files import is_idx_file
from gantrain.data.image_folders import natural_key
from gantrain.typos import suggest

PYTHON_NAMES: Final = frozenset((*PYTHON_FILES, "cifar-10-python.tar.gz"))
SHOWN: Final = 3


def refuse_other_data(source: str, path: Path, names: Sequence[str]) -> None:
    """Raise DatasetError where there are other data among the files of a folder or zip.

    Args:
        source: what was asked for, at the path.
        path: a folder or a zip without images.
        names: of the files in it, relative, with forward slashes.
    """
    if places := find_places(names):
        if path.is_dir():
            advice, places = "give", [str(path / place) for place in places]
        else:
            advice = "unpack it and give"
            places = ["the folder" if place == "." else place for place in places]
        one_of = "one of " if len(places) > 1 else ""
        raise DatasetError(
            f"{source}: no images in it; {advice} {one_of}{list_some(places, SHOWN)}"
        )
    if any(PurePosixPath(name).name in PYTHON_NAMES for name in names):
        raise DatasetError(f"{source}: {PYTHON_VERSION}")


def suggest_source(path: Path, names: Sequence[str]) -> str:
    """`; is NEAREST meant?` of these names and of what lies beside a path that is not there."""
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):  # the last of a zero byte
        beside = []
    return suggest(path.name, [*names, *beside])


def find_places(names: Sequence[str]) -> list[str]:
    """Return which folders hold MNIST-format files or CIFAR-10's, and which files are packed data.

    Of folders within each other the outermost: Kaggle's MNIST has each file in a folder as well.
    """
    places: set[PurePosixPath] = set()
    for path in sorted(map(PurePosixPath, names), key=lambda path: len(path.parts)):
        name = path.name.lower()
        if is_idx_file(path) or path.name in BINARY_FILES:
            place = path.parent
        elif name.endswith(".zip") or name.startswith("cifar-10-binary.tar."):
            place = path
        else:
            continue
        if places.isdisjoint((place, *place.parents)):
            places.add(place)
    return sorted(map(str, places), key=natural_key)
