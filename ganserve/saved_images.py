"""The images that `ganserve generate` asks for get to disk, all from one file of one version."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np

from ganserve.cli_options import Generate, is_folder
from ganserve.client import CallError, Client
from ganserve.client.messages import ImageFormat, ImageRequest, read_pixels
from ganserve.encoding import to_picture
from ganserve.grid import make_grid
from ganserve.v1.image_generation_pb2 import GenerateImagesResponse

# Below every sensible limit of a server on the images of one request.
_IMAGES_PER_CALL = 64


def write_images(client: Client, command: Generate) -> Path:
    """Ask for all images and write them where the command says; the path of that.

    Raises:
        CallError: the server does not make them, or what made the first does not serve any more.
        OSError: a file cannot be written.
    """
    out = Path(command.out)
    if is_folder(command.out):
        _write_files(client, command, out)
    else:
        _write_grid(client, command, out)
    return out


def _write_grid(client: Client, command: Generate, out: Path) -> None:
    parts = [read_pixels(reply) for reply in _ask(client, command, "raw")]
    _make_folder(out.parent)
    picture = to_picture(make_grid(np.concatenate(parts)))
    with _named_in_errors(out):
        picture.save(out)


def _write_files(client: Client, command: Generate, out: Path) -> None:
    _make_folder(out)
    written = Counter[int]()
    for reply in _ask(client, command, "png"):
        for seed, content in zip(reply.seeds, reply.images, strict=True):
            written[seed] += 1
            # One seed may be asked for with several classes: each image is a file of its own.
            again = f"-{written[seed]}" if written[seed] > 1 else ""
            file = out / f"{seed}{again}.png"
            with _named_in_errors(file):
                file.write_bytes(content)


@contextlib.contextmanager
def _named_in_errors(file: Path) -> Iterator[None]:
    """Name the file that is written within the block; the error of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # whose own words fit where a new file was to be made
        raise FileExistsError(f"--out {folder}: is a file, expected a folder") from None


def _ask(
    client: Client, command: Generate, image_format: ImageFormat
) -> Iterator[GenerateImagesResponse]:
    """The replies to all requests, held to the model, version and file that answer the first."""
    made_by: ImageRequest = {}
    digest = ""
    for request in _split(command):
        request.update(made_by)
        try:
            reply = client.generate_reply(image_format, **request)
        except CallError as error:
            if not made_by or error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            raise CallError(
                error.code,
                f"{error.details} (a new version came meanwhile, and the images before are of the "
                "old one: give the command again)",
            ) from error
        if made_by and reply.model.digest != digest:
            raise CallError(
                grpc.StatusCode.ABORTED,
                f"another file serves as {reply.model.name} version {reply.model.version} now, and "
                "the images before are of the old one: give the command again",
            )
        made_by = {"model": reply.model.name, "version": reply.model.version}
        digest = reply.model.digest
        yield reply


def _split(command: Generate) -> Iterator[ImageRequest]:
    """The requests of one command, each small enough for any server."""
    for start in range(0, len(command.seeds), _IMAGES_PER_CALL):
        part = slice(start, start + _IMAGES_PER_CALL)
        labels = command.class_labels
        request: ImageRequest = {
            "seeds": command.seeds[part],
            "class_labels": labels if len(labels) == 1 else labels[part],
            "version": command.version or "",
        }
        if command.truncation is not None:
            request["truncation"] = command.truncation
        yield request
