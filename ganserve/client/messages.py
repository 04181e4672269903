"""What is asked becomes a message, a reply an array, and a failure an error that says why."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict, TypeVar, get_args

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ganserve.addresses import check_address
from ganserve.v1 import image_generation_pb2 as pb

EncodedFormat = Literal["png", "jpeg", "webp"]
ImageFormat = Literal["raw"] | EncodedFormat
_FORMATS = {
    name: pb.ImageFormat.Value(f"IMAGE_FORMAT_{name.upper()}")
    for name in ("raw", *get_args(EncodedFormat))
}
Method = TypeVar("Method", bound=Callable[..., Any])


# What gRPC says where it has waited long enough; a server that ends a call before says why.
_DEADLINE_AT_CLIENT = "Deadline Exceeded"
# What it says where no connection could be made, before the reason of the last attempt.
_NO_CONNECTION = "last error: "
# What it says where the other end closed the connection, as one that waits for a handshake does.
_CLOSED = ("Socket closed", "Connection reset")
# A call that gRPC does not make again, so that it says at once why no connection can be made.
CONNECTION_CHECK = "/grpc.health.v1.Health/Check"
CONNECTION_CHECK_SECONDS = 0.02
CONNECTIVITY_SECONDS = 0.5  # told at once, by a thread that must get its turn on a busy machine
_LONGEST_TIMEOUT = 1e9  # seconds, 31 years; gRPC's clock ends somewhere beyond


class CallError(Exception):
    """A call that failed for good: `code` says in which way, `details` why."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}"


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


def closed_error() -> CallError:
    """What a call ends with whose client is closed, before it or meanwhile."""
    return CallError(grpc.StatusCode.CANCELLED, "the client was closed")


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


def check_hedging(seconds: float | None) -> None:
    """Refuse a time after which nobody could ask a second time.

    Raises:
        ValueError: it is none.
    """
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"hedge_after_seconds: expected 0 or more, or None, got {seconds}")


def check_server(address: str) -> None:
    """Refuse what is no address of a server.

    Raises:
        ValueError: it is none.
    """
    try:
        check_address(address)
    except ValueError as error:
        raise ValueError(f"address: {error}") from None


def check_timeout(seconds: float) -> None:
    """Refuse what no call could take: less than no time, or no number.

    Raises:
        ValueError: it is that.
    """
    if not seconds >= 0:  # nor is NaN
        raise ValueError(f"timeout_seconds: expected 0 or more, got {seconds}")


def check_encoded(image_format: str) -> None:
    """Refuse what is no format of files.

    Raises:
        ValueError: it is none.
    """
    known = get_args(EncodedFormat)
    if image_format not in known:
        raise ValueError(f"format: expected one of {', '.join(known)}, got {image_format!r}")


def choose_timeout(asked: float | None, default: float) -> float:
    """The seconds that a call may take, as gRPC takes them: infinity becomes a very long time.

    Raises:
        ValueError: as `check_timeout`.
    """
    seconds = default if asked is None else asked
    check_timeout(seconds)
    return min(seconds, _LONGEST_TIMEOUT)


def is_late(error: grpc.RpcError) -> bool:
    """Whether a call's time was over at the client, which does not say what it was waiting for."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # a call that was started
    return (
        error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and error.details() == _DEADLINE_AT_CLIENT
    )


def to_call_error(
    error: grpc.RpcError, address: str, timeout: float, *, tls: bool, no_connection: str = ""
) -> CallError:
    """Say in a line what failed.

    Args:
        error: What gRPC raised.
        address: The server, as its caller knows it.
        timeout: How long the call could take, in seconds.
        tls: Whether the client speaks TLS.
        no_connection: Of a call that `is_late`, why there is no connection, if there is none.
    """
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # a call that was started
    code, details = error.code(), error.details() or ""
    if is_late(error):
        details = f"no result from {address} within {timeout:g} s"
        if no_connection:
            details += f": {no_connection}{_hint(no_connection, tls)}"
    elif code is grpc.StatusCode.UNAVAILABLE:
        details = f"{address} does not serve: {details}{_hint(details, tls)}"
    return CallError(code, details)


def no_connection_of(error: grpc.RpcError) -> str:
    """Why a call that was to say so found no connection; empty if it found one, or does not say."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # a call that was started
    return (error.details() or "") if error.code() is grpc.StatusCode.UNAVAILABLE else ""


def _hint(details: str, tls: bool) -> str:
    """What to do where the two ends seem to want different kinds of connection; else empty."""
    _, not_connected, reason = details.partition(_NO_CONNECTION)
    if not_connected and any(word in reason for word in _CLOSED):
        if tls:
            return (
                " (does it ask for clients' certificates? then give --tls-certificate and "
                "--tls-key, of an authority that it knows)"
            )
        return " (does it speak TLS? then give --tls-ca, in Python tls_ca)"
    if not_connected and tls and "WRONG_VERSION_NUMBER" in reason:
        return " (does it speak no TLS? then leave out --tls-ca, in Python tls_ca)"
    return ""


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
        model_name=default_model if model is None else model,
        model_version="" if version is None else str(version),
        format=_FORMATS[image_format],
    )
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
        _check_count(seeds)
        with _named("seeds", "integers from 0 to 2^64 - 1"):
            _set_seeds(message, seeds)
    elif "latents" in request:
        with _named("latents", "rows of equally many numbers"):
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
        if isinstance(error, TypeError | ValueError):
            raise ValueError(f"{self._field}: expected {self._expected}: {error}") from None


def _check_list(field: str, seeds: object) -> None:
    if not isinstance(seeds, Iterable):
        raise ValueError(f"{field}: expected a list of integers from 0 to 2^64 - 1, got {seeds!r}")


def _check_count(seeds: Iterable[int]) -> None:
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
