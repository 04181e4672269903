"""The images that `ganserve generate` asks for get to disk, all from one file of one version."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ganserve.cli_options import Generate, is_folder
from ganserve.client import Client, ImageRequest
from ganserve.encoding import ImageFormat, encode_image, to_picture
from ganserve.grid import make_grid

# Below every sensible limit of a server on the images of one request.
_IMAGES_PER_CALL = 64


def write_images(client: Client, command: Generate) -> Path:
    """Ask for all images and write them where the command says; the path of that.

    Raises:
        CallError: the server does not make them, or what made the first does not serve any more.
        OSError: a file cannot be written.
    """
    out = Path(command.out)
    images = _ask(client, command)
    if is_folder(command.out):
        _write_files(command.seeds, images, out)
    else:
        _write_grid(images, out)
    return out


def _ask(client: Client, command: Generate) -> Iterator[NDArray[np.uint8]]:
    """The images in the order of their seeds, [height, width, channels] each."""
    request: ImageRequest = {
        "seeds": command.seeds,
        "class_labels": command.class_labels,
        "version": command.version or "",
    }
    if command.truncation is not None:
        request["truncation"] = command.truncation
    return itertools.chain.from_iterable(client.stream(_IMAGES_PER_CALL, **request))


def _write_grid(images: Iterator[NDArray[np.uint8]], out: Path) -> None:
    grid = make_grid(np.stack([*images]))
    _make_folder(out.parent)
    to_picture(grid).save(out)


def _write_files(seeds: Sequence[int], images: Iterator[NDArray[np.uint8]], out: Path) -> None:
    _make_folder(out)
    written = Counter[int]()
    for seed, pixels in zip(seeds, images, strict=True):
        written[seed] += 1
        # One seed may be asked for with several classes: each image is a file of its own.
        again = f"-{written[seed]}" if written[seed] > 1 else ""
        (out / f"{seed}{again}.png").write_bytes(encode_image(pixels, ImageFormat.PNG))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # whose own words fit where a new file was to be made
        raise FileExistsError(f"--out {folder}: is a file, expected a folder") from None
