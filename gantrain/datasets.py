"""Hides where images come from: a name, files, a folder or a zip becomes one uint8 Dataset."""

import hashlib
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gantrain.bad_data import BadFile, DatasetError, list_some
from gantrain.idx_files import is_idx_folder, read_idx_folder
from gantrain.image_decoding import (
    IMAGE_SIZES,
    choose_image_size,
    common_image_size,
    decode_files,
    is_grey,
    quiet_decoders,
)
from gantrain.image_files import SMALLEST_SIDE, resize_grey
from gantrain.image_folders import Listing, classes_by_folder, natural_key, open_listing

SPLITS: Final = ("train", "test")
NAMES_SHOWN: Final = 3


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory, all of one size."""

    images: NDArray[np.uint8]  # [count, channels, height, width], 1 channel (grey) or 3 (RGB)
    labels: NDArray[np.int64] | None  # [count], indices into class_names
    class_names: tuple[str, ...]  # empty where there are no labels
    kind: str  # "digits", "idx", "image folder" or "image zip"
    bad_files: tuple[BadFile, ...] = ()  # those that were skipped

    def fingerprint(self) -> str:
        """Return "sha256:..." of shape, images and labels: equal data, equal fingerprint."""
        digest = hashlib.sha256(json.dumps(self.images.shape).encode())
        digest.update(self.images.tobytes())
        if self.labels is not None:
            digest.update(b"labels")
            digest.update(self.labels.astype("<i8").tobytes())
        return f"sha256:{digest.hexdigest()}"


def load_dataset(
    source: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_files: bool = False,
    split: str = "train",
    progress: bool | None = None,
    workers: int | None = None,
) -> Dataset:
    """Load a data set by its name or its path, whose kind is found from its content.

    Args:
        source: `digits`, or the path of a folder with MNIST-format idx files, or of a folder or
            zip of images.
        image_size: pixels; None keeps a size that all images share if the networks can make it,
            and else takes the median short side, 64 at most.
        channels: 1 (grey), 3 (RGB), or None for grey where every pixel of every image is grey.
        skip_bad_files: leave out files that cannot be used instead of refusing the source.
        split: "train" or "test"; only MNIST-format files have a test split.
        progress: show a bar; None shows it where stderr is a terminal.
        workers: threads that decode; None takes one for each CPU that this process may use.

    Raises:
        DatasetError: the source cannot be used as asked.
    """
    check_settings(image_size, channels, split)
    if source in NAMED_SOURCES:
        refuse_test_split(source, split)
        return with_channels(NAMED_SOURCES[source](image_size), channels)
    path = find_path(source)
    if path.is_dir() and is_idx_folder(path):
        return with_channels(load_idx(path, split, image_size), channels)
    refuse_test_split(source, split)
    with open_listing(path) as listing, quiet_decoders():
        return load_images(source, listing, image_size, channels, skip_bad_files, progress, workers)


def check_settings(image_size: int | None, channels: int | None, split: str = "train") -> None:
    """Refuse settings that no data set can meet; raises DatasetError."""
    if image_size is not None and image_size not in IMAGE_SIZES:
        raise DatasetError(f"image_size: expected a multiple of 4 from 8 to 128, got {image_size}")
    if channels not in (None, 1, 3):
        raise DatasetError(f"channels: expected 1 (grey) or 3 (RGB), got {channels}")
    if split not in SPLITS:
        raise DatasetError(f"split: expected {' or '.join(SPLITS)}, got {split!r}")


def refuse_test_split(source: str, split: str) -> None:
    """Raise DatasetError unless the training split is asked for."""
    if split != "train":
        raise DatasetError(f"{source}: has no {split} split; only MNIST-format files have one")


def find_path(source: str) -> Path:
    """Return the path that the source names; raises DatasetError where nothing can be read."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            os.scandir(path).close()  # raises where it cannot be listed
        if source and path.exists():  # an empty path would mean the current folder
            return path
    except OSError as error:
        raise DatasetError(f"{source}: cannot be read: {error.strerror}") from error
    raise DatasetError(
        f"{source!r}: no such data set, file or folder; known are {', '.join(NAMED_SOURCES)}, or "
        "give the path of a folder with MNIST-format idx files, or of a folder or .zip of images"
    )


def load_digits(image_size: int | None) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits of 8x8 pixels.

    Their ink counts 0..16 are scaled to 0..255, and the images are enlarged by a bicubic filter.
    """
    # Here, for it takes a second that no other source should pay.
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [count, 8, 8]
    names = tuple(str(name) for name in digits.target_names)
    return Dataset(
        resize_grey(images, image_size or 8), digits.target.astype(np.int64), names, "digits"
    )


def load_idx(folder: Path, split: str, image_size: int | None) -> Dataset:
    """Load one split of a folder with MNIST-format files; classes are numbers, as in the files."""
    images, labels = read_idx_folder(folder, split)
    if len(images) < 2:
        raise DatasetError(f"{folder}: the {split} split holds {len(images)} images; give more")
    short_side = min(images.shape[1:])
    if short_side < SMALLEST_SIDE:
        raise DatasetError(f"{folder}: its images are smaller than {SMALLEST_SIDE} pixels")
    names = tuple(str(label) for label in range(labels.max() + 1))
    size = image_size or common_image_size([short_side])
    return Dataset(resize_grey(images, size), labels, names, "idx")


NAMED_SOURCES: Final[dict[str, Callable[[int | None], Dataset]]] = {"digits": load_digits}


def with_channels(dataset: Dataset, channels: int | None) -> Dataset:
    """Repeat a grey data set's only channel where RGB is asked for."""
    if channels in (None, 1):
        return dataset
    return replace(dataset, images=np.repeat(dataset.images, 3, axis=1))


def load_images(
    source: str,
    listing: Listing,
    image_size: int | None,
    channels: int | None,
    skip_bad_files: bool,
    progress: bool | None,
    workers: int | None,
) -> Dataset:
    """Decode every image of a folder or zip into one array; raises DatasetError."""
    size = image_size or choose_image_size(listing, workers)
    images = np.empty((len(listing.files), channels or 3, size, size), np.uint8)
    names: list[str] = []
    bad_files = list(listing.bad_folders)
    for file, outcome in decode_files(listing, size, channels or 3, progress, workers):
        if isinstance(outcome, BadFile):
            bad_files.append(outcome)
        else:
            images[len(names)] = outcome.pixels
            names.append(file.name)
    problem = find_problem(source, listing, len(names), [] if skip_bad_files else bad_files)
    if problem:
        raise DatasetError(problem)
    images = images[: len(names)]
    if channels is None and is_grey(images):
        images = np.ascontiguousarray(images[:, :1])
    labels, class_names = label(listing, names)
    return Dataset(images, labels, class_names, listing.kind, tuple(bad_files))


def label(listing: Listing, names: list[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return labels and class names of the named files, from the folders they lie in."""
    classes = classes_by_folder([file.name for file in listing.files])
    if classes is None:
        return None, ()
    class_of = dict(zip((file.name for file in listing.files), classes, strict=True))
    used = sorted({class_of[name] for name in names}, key=natural_key)
    if len(used) < 2:
        return None, ()
    index_of = {name: index for index, name in enumerate(used)}
    return np.array([index_of[class_of[name]] for name in names], np.int64), tuple(used)


def find_problem(
    source: str, listing: Listing, usable: int, bad_files: list[BadFile]
) -> str | None:
    """Say why no training can start on the listing: files are bad, or too few images are left."""
    if not listing.files and not listing.bad_folders:
        others = [f"{count} {extension}" for extension, count in listing.ignored.items()]
        return (
            f"{source}: no images in it (it holds {list_some(others, 5) or 'no files'}); give a "
            "folder or .zip with PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF files"
        )
    if bad_files:
        total = len(listing.files) + len(listing.bad_folders)
        return (
            f"{source}: {len(bad_files)} of {total} files cannot be used: "
            f"{list_some([str(bad) for bad in bad_files], NAMES_SHOWN)}; mend or remove them "
            f"(`gantrain data check {shlex.quote(source)}` names all) or pass --skip-bad-files"
        )
    if usable < 2:
        return f"{source}: {usable} usable images; at least 2 are needed, add more"
    return None
