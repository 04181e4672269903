"""Hides how a source is looked through: one report that says what it is and names each bad file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gantrain.class_labels import count_classes
from gantrain.data import cifar_files, idx_files
from gantrain.data.bad_data import BadFile, DatasetError, list_some
from gantrain.data.celeba_folders import CelebA, count_splits, find_celeba, list_celeba
from gantrain.data.class_folders import find_strays
from gantrain.data.datasets import (
    NAMED_SOURCES,
    Dataset,
    check_settings,
    find_path,
    find_stacked_folder,
    load_dataset,
    open_images,
)
from gantrain.data.image_decoding import choose_image_size, decode_files, is_grey, quiet_decoders
from gantrain.data.image_folders import NAMES_SHOWN, Listing, find_problem, label
from gantrain.data.point_sets import POINT_SET_SUMMARIES, POINT_SETS, PointSet, find_image_setting
from gantrain.data.stacked_mnist import PREFIX, STACKED_KIND

_COUNTS_SHOWN: Final = 12


@dataclass(frozen=True)
class SourceReport:
    """What a source holds, and what `load_source` would make of it."""

    source: str
    kind: str
    count: int  # usable images of the training split, or points
    image_size: int | None  # pixels, once loaded; None where nothing can be loaded, or of points
    channels: int | None  # once loaded
    problem: str | None  # why training or evaluation would refuse the source, on one line
    sizes: Mapping[str, int] = field(default_factory=dict)  # "640x480" -> images, most first
    modes: Mapping[str, int] = field(default_factory=dict)  # Pillow's names -> images
    class_counts: Mapping[str, int] = field(default_factory=dict)  # empty without classes
    strays: tuple[str, ...] = ()  # images beside folders, which are no classes therefore
    splits: Mapping[str, int] = field(default_factory=dict)  # empty where there is no other split
    ignored: Mapping[str, int] = field(default_factory=dict)  # extension -> files left out
    bad_files: tuple[BadFile, ...] = ()
    points: bool = False  # instead of images

    def describe(self) -> str:
        """Return the report as lines for a person, with every bad file."""
        colour = "grey" if self.channels == 1 else "RGB"
        loaded = f"{self.image_size}x{self.image_size} {colour}" if self.image_size else ""
        no_classes = "" if self.points else "none"
        if self.strays:
            named = list_some([*self.strays], NAMES_SHOWN)
            no_classes += f", as these images lie beside the folders: {named}"
        rows = {
            "source": f"{self.source} ({self.kind})",
            "points" if self.points else "images": f"{self.count}",
            "splits": list_counts(self.splits),
            "sizes": list_counts(self.sizes),
            "modes": list_counts(self.modes),
            "classes": list_counts(self.class_counts) or no_classes,
            "loaded as": loaded if self.count else "",
            "left out": list_counts(self.ignored),
            "bad files": f"{len(self.bad_files)}" if self.bad_files else "",
        }
        lines = [f"{name:<10} {text}" for name, text in rows.items() if text]
        return "\n".join([*lines, *(f"  {bad}" for bad in self.bad_files)])


def list_counts(counts: Mapping[str, int]) -> str:
    """Write "RGB 20, L 3"; long lists end in the number of those left out."""
    return list_some([f"{name} {count}" for name, count in counts.items()], _COUNTS_SHOWN)


def check_source(
    source: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
) -> SourceReport:
    """Look through the whole source, past every bad file; the arguments are `load_dataset`'s.

    Raises:
        DatasetError: there is nothing to look through.
    """
    if source in POINT_SETS:
        problem = find_image_setting(source, image_size=image_size, channels=channels)
        if problem:
            raise DatasetError(problem)
        return report_points(source, POINT_SETS[source]())
    check_settings(image_size, channels)
    if source in NAMED_SOURCES:
        dataset = load_dataset(source, image_size=image_size, channels=channels)
        stored = NAMED_SOURCES[source](None, None).images.shape[2:]
        return report_dataset(source, dataset, stored)
    if source.startswith(PREFIX):
        return check_idx(source, find_stacked_folder(source), image_size, channels)
    path = find_path(source)
    if path.is_dir() and idx_files.is_idx_folder(path):
        return check_idx(source, path, image_size, channels)
    if cifar_files.is_cifar(path):
        return check_cifar(source, path, image_size, channels)
    with open_images(source, path, "train") as listing, quiet_decoders():
        report = check_listing(source, listing, image_size, channels)
    celeba = find_celeba(path) if path.is_dir() else None
    return check_celeba(report, celeba) if celeba else report


def report_points(source: str, made: PointSet) -> SourceReport:
    """Say what points there are; there are no files that could be bad."""
    kind = POINT_SET_SUMMARIES[made.kind]
    return SourceReport(source, kind, len(made.points), None, None, None, points=True)


def report_dataset(
    source: str, dataset: Dataset, stored: tuple[int, ...], mode: str = "L"
) -> SourceReport:
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
        modes={mode: count},
        class_counts=counts_by_name(dataset.labels, dataset.class_names),
    )


def report_bad_files(
    source: str, kind: str, place: str, bad_files: Sequence[BadFile]
) -> SourceReport:
    """Report on files of which none can do without the others; `place` leads to them."""
    problem = f"{place}{bad_files[0]}; {bad_files[0].remedy}"
    return SourceReport(source, kind, 0, None, None, problem, bad_files=tuple(bad_files))


def check_idx(
    source: str, folder: Path, image_size: int | None, channels: int | None
) -> SourceReport:
    """Read all MNIST-format files of the folder, the test split's too."""
    stacked = source.startswith(PREFIX)
    if bad_files := idx_files.find_bad_files(folder):
        kind = STACKED_KIND if stacked else "idx"
        return report_bad_files(source, kind, f"{folder}/", bad_files)
    dataset = load_dataset(source, image_size=image_size, channels=channels)
    images, _ = idx_files.read_idx_folder(folder, "train")
    return report_dataset(source, dataset, images.shape[1:], "RGB" if stacked else "L")


def check_cifar(
    source: str, path: Path, image_size: int | None, channels: int | None
) -> SourceReport:
    """Read all of CIFAR-10's binary files, the test split's too."""
    if bad_files := cifar_files.find_bad_files(path):
        return report_bad_files(source, "CIFAR-10", f"{path}: ", bad_files)
    dataset = load_dataset(source, image_size=image_size, channels=channels)
    report = report_dataset(source, dataset, cifar_files.SHAPE[1:], "RGB")
    images = cifar_files.BATCH_IMAGES
    splits = {name: images * len(files) for name, files in cifar_files.BATCHES.items()}
    return replace(report, splits=splits)


def check_celeba(report: SourceReport, celeba: CelebA) -> SourceReport:
    """Add CelebA's splits, and the bad files of the test split, which evaluation would refuse."""
    report = replace(report, splits=count_splits(celeba))
    if not report.splits.get("test"):
        return report
    assert report.image_size is not None
    with list_celeba(celeba, "test") as listing, quiet_decoders():
        decoded = decode_files(listing, report.image_size, 3)
        bad_files = [outcome for _, outcome in decoded if isinstance(outcome, BadFile)]
    usable = len(listing.files) - len(bad_files)
    problem = report.problem or find_problem(report.source, listing, usable, bad_files)
    return replace(report, problem=problem, bad_files=(*report.bad_files, *bad_files))


def check_listing(
    source: str, listing: Listing, image_size: int | None, channels: int | None
) -> SourceReport:
    """Decode every image of a folder or zip, as training would, and keep only the facts."""
    size = image_size or choose_image_size(listing)
    names: list[str] = []
    bad_files = list(listing.bad_folders)
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    all_grey = True
    for file, outcome in decode_files(listing, size, 3):
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
        class_counts=counts_by_name(*label(names)),
        strays=tuple(find_strays(names)),
        ignored=listing.ignored,
        bad_files=tuple(bad_files),
    )


def counts_by_name(
    labels: NDArray[np.int64] | None, class_names: tuple[str, ...]
) -> dict[str, int]:
    """Count the images of each class; empty without classes."""
    if labels is None:
        return {}
    return dict(zip(class_names, count_classes(labels, class_names), strict=True))
