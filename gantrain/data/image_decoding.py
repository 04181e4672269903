"""Hides that many images are decoded at once: a listing becomes pictures, in order."""

import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from gantrain.config import IMAGE_SIZES
from gantrain.cpus import usable_cpus
from gantrain.data.bad_data import BadFile, BadFileError
from gantrain.data.image_files import Picture, decode_image, read_size
from gantrain.data.image_folders import ImageFile, Listing
from gantrain.progress import show_progress

DEFAULT_IMAGE_SIZE: Final = 64  # at most, where images differ in size
PARALLEL_BATCH: Final = 256  # files; bounds what is decoded but not yet taken

Result = TypeVar("Result")


def decode_listing(
    listing: Listing, image_size: int, channels: int
) -> tuple[NDArray[np.uint8], list[str], list[BadFile]]:
    """Decode all that can be decoded.

    Returns:
        Images `[count, channels, image_size, image_size]`, the names of their files, and the files
        and folders that cannot be used.
    """
    images = np.empty((len(listing.files), channels, image_size, image_size), np.uint8)
    names: list[str] = []
    bad_files = list(listing.bad_folders)
    for file, outcome in decode_files(listing, image_size, channels):
        if isinstance(outcome, BadFile):
            bad_files.append(outcome)
        else:
            images[len(names)] = outcome.pixels
            names.append(file.name)
    return images[: len(names)], names, bad_files


def decode_files(
    listing: Listing, image_size: int, channels: int
) -> Iterator[tuple[ImageFile, Picture | BadFile]]:
    """Yield each file with its picture or what is wrong with it, in the listing's order.

    How far it is, is shown.

    Raises:
        MemoryError: there is too little to decode one of them, which is named.
    """

    def decode(file: ImageFile) -> Picture | BadFile:
        try:
            return decode_image(file.read(), image_size, channels)
        except BadFileError as error:
            return BadFile(file.name, str(error))
        except MemoryError as error:
            raise MemoryError(f"while decoding {file.name}") from error

    outcomes = map_in_order(decode, listing.files)
    shown = show_progress(outcomes, len(listing.files), "decoding", "image")
    yield from zip(listing.files, shown, strict=True)


def map_in_order(
    function: Callable[[ImageFile], Result], files: Iterable[ImageFile]
) -> Iterator[Result]:
    """Apply the function in threads, for Pillow decodes without the GIL; results keep the order."""
    remaining = iter(files)
    with ThreadPoolExecutor(usable_cpus(), thread_name_prefix="decode") as executor:
        while batch := list(islice(remaining, PARALLEL_BATCH)):
            yield from executor.map(function, batch)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep Pillow from warning of oddities that do no harm; those that do are bad files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def choose_image_size(listing: Listing) -> int:
    """Choose a size from the short sides of all images, read from their headers."""

    def short_side(file: ImageFile) -> int | None:
        try:
            return min(read_size(file.read()))
        except BadFileError:
            return None

    sides = map_in_order(short_side, listing.files)
    return common_image_size([side for side in sides if side])


def common_image_size(short_sides: list[int]) -> int:
    """Keep the size that all images share, if allowed, else take the median, 64 at most."""
    if not short_sides:
        return DEFAULT_IMAGE_SIZE
    if len(set(short_sides)) == 1 and short_sides[0] in IMAGE_SIZES:
        return short_sides[0]
    median = int(statistics.median_low(short_sides))
    return max(IMAGE_SIZES.start, min(DEFAULT_IMAGE_SIZE, median // 4 * 4))


def is_grey(images: NDArray[np.uint8]) -> bool:
    """Tell whether all three channels of `[..., 3, height, width]` are equal everywhere."""
    red, green, blue = (images[..., channel, :, :] for channel in range(3))
    return np.array_equal(red, green) and np.array_equal(green, blue)
