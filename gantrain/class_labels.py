"""Hides how class labels are chosen: by name or index, in turn, or in the data's proportions."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]  # [n], indices into the names of the classes

_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_NAMES_SHOWN = 10  # in an error


def labels_on_the_way(stations: Labels, frames_per_segment: int) -> Labels:
    """Labels of the frames of an interpolation: a segment has that of the station it starts from.

    Returns [frames_per_segment * (stations - 1) + 1], the last that of the last station.
    """
    return np.append(np.repeat(stations[:-1], frames_per_segment), stations[-1])


def count_classes(labels: Labels, class_names: Sequence[str]) -> tuple[int, ...]:
    """How many of the labels [n] name each class."""
    return tuple(np.bincount(labels, minlength=len(class_names)).tolist())


def labels_in_turn(classes: int, count: int) -> Labels:
    """The first class, the second and so on, and after the last the first again, [count]."""
    return np.arange(count, dtype=np.int64) % classes


def spread_labels(classes: int, count: int) -> Labels:
    """Labels [count] in turn, or of more classes than that evenly chosen ones."""
    return np.arange(count, dtype=np.int64) * max(classes, count) // count % classes


def labels_by_column(classes: int, side: int) -> Labels:
    """Labels [side * side] of a square grid in reading order, the classes from left to right."""
    return np.tile(np.arange(side, dtype=np.int64) * classes // side, side)


def proportional_labels(class_counts: Sequence[int], count: int) -> Labels:
    """Labels [count] in the proportions of the counts, every stretch of them nearly so.

    They are always the same: multiples of the golden ratio, modulo 1, fill the unit interval evenly
    from the first one on (Weyl's sequence).
    """
    ends = np.cumsum(class_counts)
    positions = (np.arange(count) + 0.5) * _GOLDEN_RATIO % 1 * ends[-1]
    labels: Labels = np.searchsorted(ends, positions, side="right").astype(np.int64)
    return labels


def choose_labels(text: str | None, class_names: Sequence[str], count: int) -> Labels | None:
    """Labels [count] from `cat,dog` or `3` or `0-9`: one for all or one each; unset: all in turn.

    None where there are no classes, as with a generator that takes no labels.

    Raises:
        ValueError: a part is no class, their number fits neither, or there are no classes.
    """
    if not class_names:
        if text is not None:
            raise ValueError("this generator takes no labels, as it was not trained --conditional")
        return None
    if text is None:
        return labels_in_turn(len(class_names), count)
    labels = parse_labels(text, class_names)
    if len(labels) not in (1, count):
        raise ValueError(f"expected 1 label or {count}, one for each seed, got {len(labels)}")
    return np.repeat(labels, count) if len(labels) == 1 else labels


def parse_labels(text: str, class_names: Sequence[str]) -> Labels:
    """The labels of `cat,dog`, `3` or `0-9`: names, indices and ranges that include both ends.

    A number that is the name of a class means that class, be it an end of a range or not; only
    other numbers are indices.

    Raises:
        ValueError: a part is neither, or a range runs backwards.
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    labels: list[int] = []
    for part in text.split(","):
        ends = _RANGE.fullmatch(part.strip())
        if ends is None or part.strip() in index_of:
            labels.append(_find_label(part.strip(), index_of))
            continue
        first, last = (_find_label(end, index_of) for end in ends.groups())
        if last < first:
            raise ValueError(f"expected the smaller end of a range first, got {part.strip()!r}")
        labels += range(first, last + 1)
    return np.array(labels, np.int64)


def _find_label(name: str, index_of: dict[str, int]) -> int:
    if name in index_of:
        return index_of[name]
    if name.isascii() and name.isdigit() and int(name) < len(index_of):
        return int(name)
    names = [*index_of][:_NAMES_SHOWN]
    more = ", ..." if len(index_of) > len(names) else ""
    raise ValueError(
        f"expected a class ({', '.join(names)}{more}) or an index from 0 to {len(index_of) - 1}, "
        f"got {name!r}"
    )
