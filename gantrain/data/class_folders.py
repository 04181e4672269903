"""Hides what the folders that images lie in mean: classes, or splits of one data set."""

import re
from pathlib import PurePosixPath
from typing import Final

TRAINING: Final = frozenset(("train", "training"))
HELD_OUT: Final = frozenset(
    ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "pred")
)
UNNAMED: Final = frozenset(("/", ".."))  # in a zip; who unpacks it leaves them out too
WORD: Final = re.compile(r"[A-Z]*[a-z]+|[A-Z]+")  # seg_train, test1, trainA


def classes_by_folder(names: list[str]) -> list[str] | None:
    """Return each file's class, the folder it lies in, or None where folders are no classes.

    Folders that all files share are passed over. Folders are classes where there are at least two
    and every file lies in one.
    """
    parts = below_shared_folders(names)
    if not parts or any(len(part) == 1 for part in parts):
        return None
    return [part[0] for part in parts]


def find_strays(names: list[str]) -> list[str]:
    """Return the files without which the folders beside them would be classes."""
    parts = below_shared_folders(names)
    strays = {name for name, part in zip(names, parts, strict=True) if len(part) == 1}
    others = [name for name in names if name not in strays]
    return [name for name in names if name in strays] if classes_by_folder(others) else []


def find_splits(names: list[str]) -> dict[str, bool]:
    """Return the folders that are splits of one data set, and whether they are for training.

    Paths to them, in the order of the files. Folders are splits where every one is named as one,
    as `train`, `test_set` or `valB`, and some are for training, some not: a class may be called
    `train` too.
    """
    parts = below_shared_folders(names)
    shared = PurePosixPath(names[0]).parts[: -len(parts[0])] if names else ()
    splits = {}
    for folder in dict.fromkeys(part[0] for part in parts if len(part) > 1):
        words = {word.lower() for word in WORD.findall(folder)}
        if not words & (TRAINING | HELD_OUT):
            return {}
        splits["/".join((*shared, folder))] = bool(words & TRAINING)
    return splits if len({*splits.values()}) == 2 else {}


def below_shared_folders(names: list[str]) -> list[tuple[str, ...]]:
    """Return the parts of each file's path below the folders that all files share."""
    parts = [tuple(p for p in PurePosixPath(name).parts if p not in UNNAMED) for name in names]
    shared = 0
    while parts and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [p[shared:] for p in parts]
