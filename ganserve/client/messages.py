"""What is asked becomes a message, and a reply an array."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict, TypeVar, get_args

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ganserve.client.failures import CallError
from ganserve.v1 import image_generation_pb2 as pb

EncodedFormat = Literal["png", "jpeg", "webp"]
ImageFormat = Literal["raw"] | EncodedFormat
_FORMATS = {
    name: pb.ImageFormat.Value(f"IMAGE_FORMAT_{name.upper()}")
    for name in ("raw", *get_args(EncodedFormat))
}
Method = TypeVar("Method", bound=Callable[..., Any])


def shows_request(method: Method) -> Method:
    """Have a method with `**request: Unpack[ImageRequest]` show what that takes.

    Type checkers see it anyway; `help` and notebooks read the signature.
    """
    whole = inspect.signature(method)
    *others, _ = whole.parameters.values()
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=...)
        for name in ImageRequest.__annotations__
    ]
    method.__signature__ = whole.replace(parameters=[*others, *named])  # type: ignore[attr-defined]
    return method


class ImageRequest(TypedDict, total=False):
    """What can be asked of a model: exactly one of `seeds`, `latents` and `interpolation`.

    Attributes:
        seeds: One image a seed, each an integer from 0 to 2^64 - 1; a `range` of 2^32 - 1 at most.
        latents: One image a row of [n, latent_dim], all values finite.
        interpolation: At least two seeds; images on the way from each to the next, with
            `frames_per_segment` of them from one seed to the next and the last seed at the end.
        frames_per_segment: At least 1; goes with `interpolation`.
        class_labels: Classes for a conditional model, one for all images, alone or in a list, or
            one for each.
        truncation: In (0, 1], 1 by default; smaller gives more typical and less varied images.
        model: The model's name; by default the client's.
        version: The model's version; by default the newest.
        timeout_seconds: How long the call may take, further attempts included; by default the
            client's. Of a stream that takes several calls each may take so long.
    """

    seeds: Iterable[int]
    latents: ArrayLike
    interpolation: Sequence[int]
    frames_per_segment: int
    class_labels: Iterable[int] | int
    truncation: float
    model: str
    version: str | int
    timeout_seconds: float


def check_encoded(image_format: str) -> None:
    """Refuse what is no format of files.

    Raises:
        ValueError: it is none.
    """
    known = get_args(EncodedFormat)
    if image_format not in known:
        raise ValueError(f"format: expected one of {', '.join(known)}, got {image_format!r}")


def build_message(
    request: ImageRequest,
    default_model: str,
    image_format: ImageFormat,
    quality: int | None = None,
) -> pb.GenerateImagesRequest:
    """Build the message of a request.

    Raises:
        TypeError: the request has a name that says nothing.
        ValueError: no message can say this.
    """
    known = ImageRequest.__annotations__
    if not request.keys() <= known.keys():
        unknown = ", ".join(sorted(request.keys() - known.keys()))
        raise TypeError(f"unexpected {unknown}; expected some of {', '.join(known)}")
    if image_format != "raw":
        check_encoded(image_format)
    sources = [name for name in ("interpolation", "latents", "seeds") if name in request]
    if len(sources) != 1:
        raise ValueError(
            f"expected one of seeds, latents and interpolation, got {', '.join(sources) or 'none'}"
        )
    if "frames_per_segment" in request and sources != ["interpolation"]:
        raise ValueError(f"frames_per_segment: expected interpolation with it, got {sources[0]}")
    model, version = request.get("model"), request.get("version")
    message = pb.GenerateImagesRequest(
        model_version="" if version is None else str(version),
        format=_FORMATS[image_format],
    )
    with _named("model", "a name"):
        message.model_name = default_model if model is None else model
    if (truncation := request.get("truncation")) is not None:
        with _named("truncation", "a number"):
            message.truncation = truncation
    if quality is not None:
        with _named("quality", "an integer from 1 to 100"):
            message.quality = quality
    if "class_labels" in request:
        labels = request["class_labels"]
        with _named("class_labels", "integers from 0 to 2^32 - 1"):
            message.class_labels.extend(labels if isinstance(labels, Iterable) else [labels])
    if "seeds" in request:
        seeds = request["seeds"]
        _check_list("seeds", seeds)
        _check_range(seeds)
        with _named("seeds", "integers from 0 to 2^64 - 1"):
            _set_seeds(message, seeds)
    elif "latents" in request:
        with _named("latents", "rows of equally many float32 numbers"), np.errstate(over="raise"):
            latents = np.asarray(request["latents"], np.float32)
        if latents.ndim != 2:
            raise ValueError(f"latents: expected [n, latent_dim], got {list(latents.shape)}")
        message.latents.values.extend(latents.ravel().tolist())
        message.latents.latent_dim = latents.shape[1]
        message.latents.SetInParent()  # else no rows would look like no source
    else:
        _check_list("interpolation", request["interpolation"])
        with _named("interpolation", "integers from 0 to 2^64 - 1"):
            message.interpolation.seeds.extend(request["interpolation"])
        with _named("frames_per_segment", "integers from 1 to 2^32 - 1"):
            message.interpolation.frames_per_segment = request.get("frames_per_segment", 0)
    return message


def count_images(message: pb.GenerateImagesRequest) -> int:
    """How many images a message asks for."""
    match message.WhichOneof("source"):
        case "seed_range":
            return message.seed_range.count
        case "seeds":
            return len(message.seeds.values)
        case "latents":
            return len(message.latents.values) // max(message.latents.latent_dim, 1)
        case _:
            walk = message.interpolation
            return walk.frames_per_segment * (len(walk.seeds) - 1) + 1


def check_count(message: pb.GenerateImagesRequest, images: int) -> None:
    """Make sure that a call brought as many images as it asked for.

    Raises:
        CallError: it did not. Servers refuse latents of another length than the model's, but older
            ones, which do not know that a request says how long its rows are, cut the numbers into
            rows of their own; the error says so.
    """
    expected = count_images(message)
    if images == expected:
        return
    if images and message.WhichOneof("source") == "latents":
        raise CallError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"latents: expected rows of {len(message.latents.values) // images} numbers, the "
            f"model's latent_dim, got rows of {message.latents.latent_dim}",
        )
    raise CallError(
        grpc.StatusCode.DATA_LOSS, f"expected {expected} images from the server, got {images}"
    )


def read_pixels(response: pb.GenerateImagesResponse) -> NDArray[np.uint8]:
    """The images of a reply in RAW, [n, height, width, channels]; the caller's own."""
    shape = (response.count, response.height, response.width, response.channels)
    return np.frombuffer(bytearray(response.pixels), np.uint8).reshape(shape)  # copied: writable


class _named:  # noqa: N801 - a context manager, of a third of what a generator's costs
    """Name the field in protobuf's or NumPy's error about a value."""

    def __init__(self, field: str, expected: str) -> None:
        self._field, self._expected = field, expected

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, TypeError | ValueError | ArithmeticError):
            raise ValueError(f"{self._field}: expected {self._expected}: {error}") from None


def _check_list(field: str, seeds: object) -> None:
    if not isinstance(seeds, Iterable):
        raise ValueError(f"{field}: expected a list of integers from 0 to 2^64 - 1, got {seeds!r}")


def _check_range(seeds: Iterable[int]) -> None:
    """Refuse a range of more seeds than a message can say, which may all be seeds."""
    if isinstance(seeds, range):
        count = -((seeds.start - seeds.stop) // seeds.step)  # len() fails above 2^63
        if count >= 2**32:
            raise ValueError(f"seeds: expected at most 2^32 - 1 seeds, got {count}")


def _set_seeds(message: pb.GenerateImagesRequest, seeds: Iterable[int]) -> None:
    if isinstance(seeds, range) and seeds.step == 1 and seeds:
        message.seed_range.start = seeds.start
        message.seed_range.count = seeds.stop - seeds.start
        return
    message.seeds.values.extend(seeds)
    message.seeds.SetInParent()  # else no seeds would look like no source
