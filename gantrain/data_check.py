"""Hides how a source is looked through: one report that says what it is and names each bad file."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gantrain.bad_data import BadFile, list_some
from gantrain.datasets import (
    NAMED_SOURCES,
    Dataset,
    check_settings,
    find_path,
    find_problem,
    label,
    load_dataset,
)
from gantrain.idx_files import find_bad_files, is_idx_folder, read_idx_folder
from gantrain.image_decoding import choose_image_size, decode_files, is_grey, quiet_decoders
from gantrain.image_folders import Listing, open_listing


@dataclass(frozen=True)
class SourceReport:
    """What a source holds, and what `load_dataset` would make of it."""

    source: str
    kind: str
    count: int  # usable images
    image_size: int | None  # pixels, once loaded; None where nothing can be loaded
    channels: int | None  # once loaded
    problem: str | None  # why training would refuse the source, on one line
    sizes: Mapping[str, int] = field(default_factory=dict)  # "640x480" -> images, most first
    modes: Mapping[str, int] = field(default_factory=dict)  # Pillow's names -> images
    class_counts: Mapping[str, int] = field(default_factory=dict)  # empty without classes
    ignored: Mapping[str, int] = field(default_factory=dict)  # extension -> files left out
    bad_files: tuple[BadFile, ...] = ()

    def describe(self) -> str:
        """Return the report as lines for a person, with every bad file."""
        colour = "grey" if self.channels == 1 else "RGB"
        rows = {
            "source": f"{self.source} ({self.kind})",
            "images": f"{self.count}",
            "sizes": list_counts(self.sizes),
            "modes": list_counts(self.modes),
            "classes": list_counts(self.class_counts) or "none",
            "loaded as": f"{self.image_size}x{self.image_size} {colour}" if self.count else "",
            "left out": list_counts(self.ignored),
            "bad files": f"{len(self.bad_files)}" if self.bad_files else "",
        }
        lines = [f"{name:<10} {text}" for name, text in rows.items() if text]
        return "\n".join([*lines, *(f"  {bad}" for bad in self.bad_files)])


def list_counts(counts: Mapping[str, int], shown: int = 12) -> str:
    """Write "RGB 20, L 3"; long lists end in the number of those left out."""
    return list_some([f"{name} {count}" for name, count in counts.items()], shown)


def check_source(
    source: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    progress: bool | None = None,
    workers: int | None = None,
) -> SourceReport:
    """Look through the whole source, past every bad file; the arguments are `load_dataset`'s.

    Raises:
        DatasetError: there is nothing to look through.
    """
    check_settings(image_size, channels)
    if source in NAMED_SOURCES:
        dataset = load_dataset(source, image_size=image_size, channels=channels)
        return report_dataset(source, dataset, NAMED_SOURCES[source](None).images.shape[2:])
    path = find_path(source)
    if path.is_dir() and is_idx_folder(path):
        return check_idx(source, path, image_size, channels)
    with open_listing(path) as listing, quiet_decoders():
        return check_listing(source, listing, image_size, channels, progress, workers)


def report_dataset(source: str, dataset: Dataset, stored: tuple[int, ...]) -> SourceReport:
    """Report on a data set that was loaded whole; `stored` is its images' height and width."""
    count, channels, image_size, _ = dataset.images.shape
    return SourceReport(
        source=source,
        kind=dataset.kind,
        count=count,
        image_size=image_size,
        channels=channels,
        problem=None,
        sizes={f"{stored[1]}x{stored[0]}": count},
        modes={"L": count},
        class_counts=count_classes(dataset.labels, dataset.class_names),
    )


def check_idx(
    source: str, folder: Path, image_size: int | None, channels: int | None
) -> SourceReport:
    """Read all MNIST-format files of the folder, the test split's too."""
    if bad_files := find_bad_files(folder):
        problem = f"{folder / bad_files[0].name}: {bad_files[0].reason}; fetch it again"
        return SourceReport(source, "idx", 0, None, None, problem, bad_files=tuple(bad_files))
    dataset = load_dataset(source, image_size=image_size, channels=channels)
    images, _ = read_idx_folder(folder, "train")
    return report_dataset(source, dataset, images.shape[1:])


def check_listing(
    source: str,
    listing: Listing,
    image_size: int | None,
    channels: int | None,
    progress: bool | None,
    workers: int | None,
) -> SourceReport:
    """Decode every image of a folder or zip, as training would, and keep only the facts."""
    size = image_size or choose_image_size(listing, workers)
    names: list[str] = []
    bad_files = list(listing.bad_folders)
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    all_grey = True
    for file, outcome in decode_files(listing, size, 3, progress, workers):
        if isinstance(outcome, BadFile):
            bad_files.append(outcome)
        else:
            names.append(file.name)
            sizes[f"{outcome.width}x{outcome.height}"] += 1
            modes[outcome.mode] += 1
            all_grey = all_grey and is_grey(outcome.pixels)
    return SourceReport(
        source=source,
        kind=listing.kind,
        count=len(names),
        image_size=size,
        channels=channels or (1 if all_grey else 3),
        problem=find_problem(source, listing, len(names), bad_files),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        class_counts=count_classes(*label(listing, names)),
        ignored=listing.ignored,
        bad_files=tuple(bad_files),
    )


def count_classes(labels: NDArray[np.int64] | None, class_names: tuple[str, ...]) -> dict[str, int]:
    """Count the images of each class."""
    if labels is None:
        return {}
    counts = np.bincount(labels, minlength=len(class_names)).tolist()
    return dict(zip(class_names, counts, strict=True))
