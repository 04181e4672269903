"""Hides channel, retries and messages behind calls that take seeds and return images."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Literal, Self, TypedDict, Unpack

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ganserve.channel_security import ChannelSecurity, open_channel
from ganserve.encoding import to_picture
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

# gRPC repeats a call that the server could not take, for example while it starts or drains: soon,
# for the sake of another replica, and then over 8 s, which a restart may need. gRPC varies each
# pause at random, stops at the deadline and allows 5 attempts at most.
_RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "backoffMultiplier": 3,
    "maxBackoff": "6s",
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICE = pb.DESCRIPTOR.services_by_name["ImageGenerationService"].full_name
_SERVICE_CONFIG = {
    "methodConfig": [{"name": [{"service": _SERVICE}], "retryPolicy": _RETRY_POLICY}]
}
_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # A call can be repeated only while its whole request is still held.
    ("grpc.per_rpc_retry_buffer_size", 16 * 1024 * 1024),
    # The caller decides how much it asks for.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that comes back is found within a second, not after minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

EncodedFormat = Literal["png", "jpeg", "webp"]


class CallError(Exception):
    """A call that failed for good: `code` says in which way, `details` why."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


class ImageRequest(TypedDict, total=False):
    """What can be asked of a model: exactly one of `seeds`, `latents` and `interpolation`.

    Attributes:
        seeds: One image a seed, each an integer from 0 to 2^64 - 1.
        latents: One image a row of [n, latent_dim], all values finite.
        interpolation: At least two seeds; images on the way from each to the next, with
            `frames_per_segment` of them from one seed to the next and the last seed at the end.
        frames_per_segment: At least 1; goes with `interpolation`.
        class_labels: Classes for a conditional model, one for all images or one for each.
        truncation: In (0, 1], 1 by default; smaller gives more typical and less varied images.
        model: The model's name; by default the client's.
        version: The model's version; by default the newest.
        timeout_seconds: How long the call may take, further attempts included; by default the
            client's.
    """

    seeds: Iterable[int]
    latents: ArrayLike
    interpolation: Sequence[int]
    frames_per_segment: int
    class_labels: Iterable[int]
    truncation: float
    model: str
    version: str
    timeout_seconds: float


class Client:
    """Asks one server for images; may be shared between threads.

    A call that finds the server starting, draining or restarting is made again until it succeeds,
    5 attempts are used up or its time is over. What fails for good raises `CallError`.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str = "",
        timeout_seconds: float = 30.0,
        security: ChannelSecurity | None = None,
    ) -> None:
        """Connect to HOST:PORT once a call needs it.

        Args:
            address: The server, HOST:PORT.
            model: The model's name where a call gives none; empty is the server's default.
            timeout_seconds: How long a call may take where it gives no time of its own.
            security: TLS and token, where the server asks for them.

        Raises:
            OSError: a file of `security` cannot be read.
        """
        self._address = address
        self._model = model
        self._timeout_seconds = timeout_seconds
        security = security or ChannelSecurity()
        self._metadata = security.metadata()
        self._channel = open_channel(address, security, _CHANNEL_OPTIONS)
        self._stub = ImageGenerationServiceStub(self._channel)

    def generate(self, **request: Unpack[ImageRequest]) -> NDArray[np.uint8]:
        """Generate images as an array [n, height, width, channels]; see `ImageRequest`."""
        message = _build_message(request, self._model, "raw")
        return _read_pixels(self._generate(message, request))

    def generate_images(self, **request: Unpack[ImageRequest]) -> list[Image.Image]:
        """Generate images as Pillow images, grey or RGB; see `ImageRequest`."""
        return [to_picture(pixels) for pixels in self.generate(**request)]

    def generate_files(
        self,
        format: EncodedFormat = "png",  # noqa: A002 - the word of the public proto
        quality: int | None = None,
        **request: Unpack[ImageRequest],
    ) -> list[bytes]:
        """Generate images as the contents of one file each; see `ImageRequest`.

        Args:
            format: `png` is lossless, and so is `webp` unless `quality` is given.
            quality: 1 to 100, for `jpeg` and `webp`.
            request: What to generate.
        """
        message = _build_message(request, self._model, format)
        if quality is not None:
            message.quality = quality
        return list(self._generate(message, request).images)

    def stream(self, **request: Unpack[ImageRequest]) -> Iterator[NDArray[np.uint8]]:
        """Generate images as arrays [some, height, width, channels], in order, as they are made."""
        message = _build_message(request, self._model, "raw")
        timeout = request.get("timeout_seconds", self._timeout_seconds)
        with self._readable_errors(timeout):
            call = self._stub.StreamImages(message, timeout=timeout, metadata=self._metadata)
            try:
                for response in call:
                    yield _read_pixels(response)
            finally:
                call.cancel()  # the caller may have stopped early

    def models(self, *, timeout_seconds: float | None = None) -> list[pb.Model]:
        """List what serves and what could not be loaded, by name, newest version first."""
        timeout = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        with self._readable_errors(timeout):
            reply = self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout, metadata=self._metadata
            )
            return list(reply.models)

    def close(self) -> None:
        """Close the connection; calls under way fail with CANCELLED."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _generate(
        self, message: pb.GenerateImagesRequest, request: ImageRequest
    ) -> pb.GenerateImagesResponse:
        timeout = request.get("timeout_seconds", self._timeout_seconds)
        with self._readable_errors(timeout):
            return self._stub.GenerateImages(message, timeout=timeout, metadata=self._metadata)

    @contextlib.contextmanager
    def _readable_errors(self, timeout: float) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise _to_call_error(error, self._address, timeout) from None


def _to_call_error(error: grpc.RpcError, address: str, timeout: float) -> CallError:
    assert isinstance(error, grpc.Call)  # so is every error of a call that was started
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"no result from {address} within {timeout:g} s"
    elif code is grpc.StatusCode.UNAVAILABLE:
        details = f"{address} does not serve: {details}"
    return CallError(code, details)


def _build_message(
    request: ImageRequest, default_model: str, image_format: str
) -> pb.GenerateImagesRequest:
    sources = sorted({"seeds", "latents", "interpolation"} & request.keys())
    if len(sources) != 1:
        raise ValueError(
            f"expected one of seeds, latents and interpolation, got {', '.join(sources) or 'none'}"
        )
    message = pb.GenerateImagesRequest(
        model_name=request.get("model", default_model),
        model_version=request.get("version", ""),
        truncation=request.get("truncation"),
        format=pb.ImageFormat.Value(f"IMAGE_FORMAT_{image_format.upper()}"),
    )
    with _named("class_labels", "from 0 to 2^32 - 1"):
        message.class_labels.extend(request.get("class_labels", ()))
    if "seeds" in request:
        with _named("seeds", "from 0 to 2^64 - 1"):
            _set_seeds(message, request["seeds"])
    elif "latents" in request:
        latents = np.asarray(request["latents"], np.float32)
        if latents.ndim != 2:
            raise ValueError(f"latents: expected [n, latent_dim], got {list(latents.shape)}")
        message.latents.values.extend(latents.ravel().tolist())
        message.latents.SetInParent()  # else no rows would look like no source
    else:
        with _named("interpolation", "from 0 to 2^64 - 1"):
            message.interpolation.seeds.extend(request["interpolation"])
        with _named("frames_per_segment", "from 1 to 2^32 - 1"):
            message.interpolation.frames_per_segment = request.get("frames_per_segment", 0)
    return message


@contextlib.contextmanager
def _named(field: str, expected: str) -> Iterator[None]:
    """Name the field in protobuf's error about a value."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field}: expected integers {expected}: {error}") from None


def _set_seeds(message: pb.GenerateImagesRequest, seeds: Iterable[int]) -> None:
    if isinstance(seeds, range) and seeds.step == 1 and seeds:
        message.seed_range.start = seeds.start
        message.seed_range.count = seeds.stop - seeds.start
        return
    message.seeds.values.extend(seeds)
    message.seeds.SetInParent()  # else no seeds would look like no source


def _read_pixels(response: pb.GenerateImagesResponse) -> NDArray[np.uint8]:
    shape = (response.count, response.height, response.width, response.channels)
    return np.frombuffer(bytearray(response.pixels), np.uint8).reshape(shape)  # copied: writable
