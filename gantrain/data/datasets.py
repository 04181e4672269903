"""Hides where data come from: a name, files, a folder or an archive becomes one data set."""

import hashlib
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gantrain.config import IMAGE_SIZES
from gantrain.data.bad_data import BadFile, DatasetError, list_some, unreadable
from gantrain.data.celeba_folders import count_splits, find_celeba, list_celeba
from gantrain.data.cifar_files import is_cifar, read_cifar
from gantrain.data.class_folders import find_strays
from gantrain.data.idx_files import holds_split, is_idx_file, is_idx_folder, read_idx_folder
from gantrain.data.image_decoding import (
    choose_image_size,
    common_image_size,
    decode_listing,
    is_grey,
    quiet_decoders,
)
from gantrain.data.image_files import SMALLEST_SIDE, resize_colour, resize_grey, turn_grey
from gantrain.data.image_folders import NAMES_SHOWN, Listing, find_problem, label, open_listing
from gantrain.data.meant_sources import refuse_other_data, suggest_source
from gantrain.data.point_sets import POINT_SETS, PointSet, find_image_setting
from gantrain.data.stacked_mnist import CLASS_NAMES, PREFIX, STACKED_KIND, stack_digits

SPLITS: Final = ("train", "test")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory, all of one size."""

    images: NDArray[np.uint8]  # [count, channels, height, width], 1 channel (grey) or 3 (RGB)
    labels: NDArray[np.int64] | None  # [count], indices into class_names
    class_names: tuple[str, ...]  # empty where there are no labels
    # "digits", "idx", "stacked MNIST", "CIFAR-10", "CelebA folder", "image folder" or "image zip"
    kind: str
    bad_files: tuple[BadFile, ...] = ()  # those that were skipped
    strays: tuple[str, ...] = ()  # images beside folders, which are no classes therefore
    folder: Path | None = None  # every image that is put below it becomes one of the data

    @property
    def examples(self) -> NDArray[np.uint8]:
        """The images, by the name that a `PointSet` has for its points."""
        return self.images

    def fingerprint(self) -> str:
        """Return "sha256:..." of shape, images and labels: equal data, equal fingerprint."""
        digest = hashlib.sha256(json.dumps(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)  # a copy might take gigabytes
        if self.labels is not None:
            digest.update(b"labels")
            digest.update(self.labels.astype("<i8").tobytes())
        return f"sha256:{digest.hexdigest()}"


def load_source(
    source: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_files: bool = False,
    limit: int | None = None,
) -> Dataset | PointSet:
    """Load what `load_dataset` knows, or a point set by its name: `sine`, `ring8`, `grid25`.

    Raises:
        DatasetError: the source cannot be used as asked; a point set takes none of the settings.
    """
    if source in POINT_SETS:
        problem = find_image_setting(
            source,
            image_size=image_size,
            channels=channels,
            skip_bad_files=skip_bad_files,
            max_data_images=limit,
        )
        if problem:
            raise DatasetError(problem)
        return POINT_SETS[source]()
    return load_dataset(
        source,
        image_size=image_size,
        channels=channels,
        skip_bad_files=skip_bad_files,
        limit=limit,
    )


def load_dataset(
    source: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_files: bool = False,
    split: str = "train",
    limit: int | None = None,
) -> Dataset:
    """Load a data set of images by its name or its path, whose kind is found from its content.

    Args:
        source: `digits`; `stacked-mnist:` and the path of a folder with MNIST-format idx files; or
            the path of such a folder, of CIFAR-10's binary files (folder, tar.gz or tar.xz), of a
            CelebA folder, or of a folder or zip of images.
        image_size: pixels; None keeps a size that all images share if the networks can make it,
            and else takes the median short side, 64 at most. Of images that are no squares, as
            CelebA's 178x218, the centre square is taken: 178x178 there, as most papers do.
        channels: 1 (grey), 3 (RGB), or None for grey where every pixel of every image is grey.
        skip_bad_files: leave out files that cannot be used instead of refusing the source.
        split: "train" or "test"; a folder or zip of images has no test split, nor have digits.
        limit: use only the first so many images, those of a folder or zip in natural order of
            their names, so that of class folders it takes the first classes; None uses all.

    Raises:
        DatasetError: the source cannot be used as asked.
    """
    check_settings(image_size, channels, split, limit)
    if source in POINT_SETS:
        raise DatasetError(f"{source}: holds points, but images are needed; name another source")
    if source in NAMED_SOURCES:
        refuse_test_split(source, split)
        return with_channels(NAMED_SOURCES[source](image_size, limit), channels)
    if source.startswith(PREFIX):
        return load_stacked(source, split, image_size, channels, limit)
    path = find_path(source)
    if path.is_dir() and is_idx_folder(path):
        return with_channels(load_idx(path, split, image_size, limit), channels)
    if is_cifar(path):
        return with_channels(load_cifar(path, split, image_size, limit), channels)
    with open_images(source, path, split) as listing, quiet_decoders():
        some = replace(listing, files=listing.files[:limit])
        return load_images(source, some, image_size, channels, skip_bad_files)


def check_settings(
    image_size: int | None, channels: int | None, split: str = "train", limit: int | None = None
) -> None:
    """Refuse settings that no data set can meet; raises DatasetError."""
    if image_size is not None and image_size not in IMAGE_SIZES:
        raise DatasetError(f"image_size: expected a multiple of 4 from 8 to 128, got {image_size}")
    if channels not in (None, 1, 3):
        raise DatasetError(f"channels: expected 1 (grey) or 3 (RGB), got {channels}")
    if split not in SPLITS:
        raise DatasetError(f"split: expected {' or '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 2:
        raise DatasetError(f"limit: expected at least 2 images, got {limit}")


def refuse_test_split(source: str, split: str) -> None:
    """Raise DatasetError unless the training split is asked for."""
    if split != "train":
        raise DatasetError(
            f"{source}: has no {split} split; MNIST-format files, stacked-mnist, CIFAR-10 and "
            "CelebA have one"
        )


def has_test_split(source: str) -> bool:
    """Tell whether a source that can be loaded has a test split beside its training split.

    MNIST-format files without the two files of the test split have none, nor has CelebA without
    the list of its splits, or without an image of that split.
    """
    if source in NAMED_SOURCES or source in POINT_SETS:
        return False
    path = find_stacked_folder(source) if source.startswith(PREFIX) else find_path(source)
    if path.is_dir() and is_idx_folder(path):
        return holds_split(path, "test")
    if is_cifar(path):
        return True
    celeba = find_celeba(path) if path.is_dir() else None
    return celeba is not None and bool(count_splits(celeba).get("test"))


def find_path(source: str) -> Path:
    """Return the path that the source names; raises DatasetError where nothing can be read."""
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            os.scandir(path).close()  # raises where it cannot be listed
        path.stat()  # raises where `exists` would take other errors for absence
        found = source != ""  # an empty path would mean the current folder
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a zero byte
        found = False
    except OSError as error:
        raise unreadable(source, error) from error
    if found and path.is_file() and is_idx_file(path):
        raise DatasetError(
            f"{source}: one of several MNIST-format idx files; give the folder that holds them"
        )
    if found:
        return path
    names = ", ".join((*NAMED_SOURCES, *POINT_SETS, f"{PREFIX}FOLDER"))
    raise DatasetError(
        f"{source!r}: no such data set, file or folder; known are {names}, or give the path of a "
        "folder with MNIST-format idx files, of CIFAR-10's binary files (folder, .tar.gz or "
        ".tar.xz), of a CelebA folder, or of a folder or .zip of images"
        + suggest_source(path, [*NAMED_SOURCES, *POINT_SETS])
    )


def find_stacked_folder(source: str) -> Path:
    """Return the folder that a source names after `stacked-mnist:`; raises DatasetError."""
    name = source.removeprefix(PREFIX)
    if name not in ("", *NAMED_SOURCES, *POINT_SETS):
        folder = find_path(name)
        if folder.is_dir() and is_idx_folder(folder):
            return folder
    raise DatasetError(
        f"{source}: expected a folder with MNIST-format idx files after {PREFIX}, got {name!r}"
    )


@contextmanager
def open_images(source: str, path: Path, split: str) -> Iterator[Listing]:
    """List the images of a folder or zip, of CelebA those of the split; raises DatasetError."""
    if path.is_dir() and (celeba := find_celeba(path)):
        with list_celeba(celeba, split) as listing:
            yield listing
        return
    refuse_test_split(source, split)
    with open_listing(path) as listing:
        if not listing.files:
            refuse_other_data(source, path, listing.others)
        yield listing


def load_digits(image_size: int | None, limit: int | None) -> Dataset:
    """Load scikit-learn's 1,797 handwritten digits of 8x8 pixels.

    Their ink counts 0..16 are scaled to 0..255, and the images are enlarged by a bicubic filter.
    """
    # Here, for it takes a second that no other source should pay.
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    images = np.rint(digits.images[:limit] * (255 / 16)).astype(np.uint8)  # [count, 8, 8]
    labels = digits.target[:limit].astype(np.int64)
    names = tuple(str(name) for name in digits.target_names)
    return Dataset(resize_grey(images, image_size or 8), labels, names, "digits")


def load_idx(folder: Path, split: str, image_size: int | None, limit: int | None) -> Dataset:
    """Load one split of a folder with MNIST-format files; classes are numbers, as in the files."""
    images, labels = read_idx_folder(folder, split)
    if len(images) < 2:
        raise DatasetError(f"{folder}: the {split} split holds {len(images)} images; give more")
    short_side = min(images.shape[1:])
    if short_side < SMALLEST_SIDE:
        raise DatasetError(f"{folder}: its images are smaller than {SMALLEST_SIDE} pixels")
    names = tuple(str(label) for label in range(labels.max() + 1))
    size = image_size or common_image_size([short_side])
    return Dataset(resize_grey(images[:limit], size), labels[:limit], names, "idx")


def load_stacked(
    source: str, split: str, image_size: int | None, channels: int | None, limit: int | None
) -> Dataset:
    """Load Stacked-MNIST, made of the folder that the source names after its prefix."""
    if channels == 1:
        raise DatasetError("--channels: stacked-mnist tells its digits by colour, so it needs 3")
    digits = load_idx(find_stacked_folder(source), split, image_size, None)
    assert digits.labels is not None
    images, labels = stack_digits(digits.images, digits.labels, split, limit)
    return Dataset(images, labels, CLASS_NAMES, STACKED_KIND)


def load_cifar(path: Path, split: str, image_size: int | None, limit: int | None) -> Dataset:
    """Load one split of CIFAR-10's binary files, 32x32 pixels."""
    images, labels, names = read_cifar(path, split)
    images = resize_colour(images[:limit], image_size or images.shape[-1])
    return Dataset(images, labels[:limit], names, "CIFAR-10")


NAMED_SOURCES: Final[dict[str, Callable[[int | None, int | None], Dataset]]] = {
    "digits": load_digits
}


def with_channels(dataset: Dataset, channels: int | None) -> Dataset:
    """Turn a data set grey, or repeat its only channel, where that is asked for."""
    if channels in (None, dataset.images.shape[1]):
        return dataset
    if channels == 1:
        return replace(dataset, images=turn_grey(dataset.images))
    return replace(dataset, images=np.repeat(dataset.images, 3, axis=1))


def load_images(
    source: str,
    listing: Listing,
    image_size: int | None,
    channels: int | None,
    skip_bad_files: bool,
) -> Dataset:
    """Decode every image of a folder or zip into one array; raises DatasetError."""
    size = image_size or choose_image_size(listing)
    images, names, bad_files = decode_listing(listing, size, channels or 3)
    check = f"gantrain data check {shlex.quote(source)}"
    if image_size:  # of another size others may be too small
        check += f" --image-size {image_size}"
    problem = find_problem(
        source, listing, len(names), bad_files, skip_bad_files=skip_bad_files, check=check
    )
    if problem:
        raise DatasetError(problem)
    if channels is None and is_grey(images):
        images = np.ascontiguousarray(images[:, :1])
    # Of the usable files alone: what is left out must not decide what the others are.
    labels, class_names = label(names)
    strays = tuple(find_strays(names))
    return Dataset(
        images, labels, class_names, listing.kind, tuple(bad_files), strays, listing.folder
    )


def tell_left_out(data: Dataset | PointSet) -> None:
    """Log which files `skip_bad_files` has left out, if any."""
    if data.bad_files:
        total = len(data.examples) + len(data.bad_files)
        named = list_some([str(bad) for bad in data.bad_files], NAMES_SHOWN)
        logger.info("left out %d of %d files: %s", len(data.bad_files), total, named)
