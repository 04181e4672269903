"""The calls that a stream is made of: no image comes twice, none is left out.

A long stream takes several calls, one after the other, each of them within what servers allow; and
where a server is lost, another one goes on.
"""

import math
from collections.abc import Iterator, Sequence

import grpc
import numpy as np
from numpy.typing import NDArray

from ganserve.client.failures import CallError
from ganserve.client.messages import (
    ImageRequest,
    build_message,
    check_count,
    count_images,
    read_pixels,
)
from ganserve.client.patience import MOST_ATTEMPTS, Patience
from ganserve.v1 import image_generation_pb2 as pb

# What the Kubernetes manifests allow, a quarter of a server's default. Larger calls gain nothing:
# the pause between two of them is that of an empty call.
IMAGES_PER_CALL = 128
# A server lost in the middle of a stream; before its first message gRPC itself tries again. UNKNOWN
# is a reply's end without a status, as HAProxy ends those of a lost server; ours never says it.
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
_MOST_LOSSES = 4  # of one call


def build_messages(
    request: ImageRequest, default_model: str, images_per_call: int
) -> Iterator[pb.GenerateImagesRequest]:
    """The messages that together ask for the images of a request, as pixels, in their order.

    A walk (`interpolation`) is one message. So is what asks for no more than one call may.

    Raises:
        TypeError: as `build_message`.
        ValueError: as `build_message`; `images_per_call` is below 1; or labels and images are not
            equally many.
    """
    if images_per_call < 1:
        raise ValueError(f"images_per_call: expected at least 1, got {images_per_call}")
    whole = build_message(request, default_model, "raw")
    count = count_images(whole)
    if count <= images_per_call or whole.WhichOneof("source") == "interpolation":
        yield whole
        return
    labels = whole.class_labels[:]
    if len(labels) not in (0, 1, count):
        raise ValueError(
            f"class_labels: expected 1 label for all images or {count}, one for each, got "
            f"{len(labels)}"
        )
    common = pb.GenerateImagesRequest(
        model_name=whole.model_name, model_version=whole.model_version, format=whole.format
    )
    if whole.HasField("truncation"):
        common.truncation = whole.truncation
    for first in range(0, count, images_per_call):
        message = pb.GenerateImagesRequest()
        message.CopyFrom(common)
        last = min(first + images_per_call, count)
        _copy_source(whole, message, first, last)
        message.class_labels.extend(labels if len(labels) == 1 else labels[first:last])
        yield message


def _copy_source(
    whole: pb.GenerateImagesRequest,
    message: pb.GenerateImagesRequest,
    first: int,
    last: int,
) -> None:
    """Ask for the images from `first` to before `last`."""
    match whole.WhichOneof("source"):
        case "seed_range":
            message.seed_range.start = whole.seed_range.start + first
            message.seed_range.count = last - first
        case "seeds":
            message.seeds.values.extend(whole.seeds.values[first:last])
        case _:
            values: Sequence[float] = whole.latents.values
            latent_dim = whole.latents.latent_dim
            message.latents.latent_dim = latent_dim
            message.latents.values.extend(values[first * latent_dim : last * latent_dim])


class StreamProgress:
    """How far a stream has come, over all its calls.

    Attributes:
        made_by: The model and version of the images that have come.
        images: How many have.
        retries: Whether a call is made again.
    """

    def __init__(self, *, retries: bool = True) -> None:
        self.made_by: pb.ModelIdentity | None = None
        self.images = 0
        self.retries = retries

    def begin(self, message: pb.GenerateImagesRequest, timeout_seconds: float) -> "CallProgress":
        """Go on with the next call."""
        return CallProgress(self, message, timeout_seconds)


class CallProgress:
    """How far one call of a stream has come, over its attempts.

    An image depends on its seed and the model alone, so another server makes the same bytes once it
    is held to the model and version of the images that have come. It is asked again for all images
    of the call that was lost, whatever they are made of, and those that have come are passed over.
    """

    def __init__(
        self, stream: StreamProgress, message: pb.GenerateImagesRequest, timeout_seconds: float
    ) -> None:
        self.message = message
        self._stream = stream
        # To give up half a stream would waste what it has had.
        attempts = math.inf if stream.images else MOST_ATTEMPTS
        self._patience = Patience(timeout_seconds, attempts if stream.retries else 1)
        self._received = 0
        self._losses_left = _MOST_LOSSES if stream.retries else 0
        self._hold_to_model()

    @property
    def remaining_seconds(self) -> float:
        """For another attempt."""
        return self._patience.remaining_seconds

    def take(self, response: pb.GenerateImagesResponse) -> NDArray[np.uint8] | None:
        """The images of a message that are new, if any are.

        Raises:
            CallError: they are of another file than those that have come, or not the next ones.
        """
        stream, model = self._stream, response.model
        if stream.made_by is None:
            stream.made_by = pb.ModelIdentity()
            stream.made_by.CopyFrom(model)  # or all of the response would stay
            self._hold_to_model()
        if stream.made_by.digest != model.digest:
            raise CallError(
                grpc.StatusCode.ABORTED,
                f"after {stream.images} images of the stream another file serves as {model.name} "
                f"version {model.version}: ask for all again",
            )
        if response.first_index > self._received:
            raise CallError(
                grpc.StatusCode.DATA_LOSS,
                f"expected image {self._received} of the call next, got {response.first_index}",
            )
        images = read_pixels(response)[max(0, self._received - response.first_index) :]
        self._received += len(images)
        stream.images += len(images)
        return images if len(images) else None

    def end(self) -> None:
        """Make sure that all images of the call have come.

        Raises:
            CallError: as `check_count`.
        """
        check_count(self.message, self._received)

    def pause_after(self, error: grpc.RpcError) -> float:
        """The seconds to wait before another attempt.

        Raises:
            CallError: the version of the images that have come serves no more.
            grpc.RpcError: `error`, where another attempt would help nothing.
        """
        assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # a call that was started
        code = error.code()
        if code in _LOST and self._received > 0 and self._losses_left:
            self._losses_left -= 1
            return 0.0
        if code is grpc.StatusCode.NOT_FOUND and self._stream.made_by is not None:
            raise CallError(
                code,
                f"{error.details()} (another version came after {self._stream.images} images of "
                "the stream: ask for the rest, or for all again)",
            )
        return self._patience.pause_after(error)

    def _hold_to_model(self) -> None:
        if self._stream.made_by is not None:
            self.message.model_name = self._stream.made_by.name
            self.message.model_version = self._stream.made_by.version
