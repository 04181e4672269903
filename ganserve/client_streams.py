"""Hides how a stream goes on where its server was lost: no image comes twice, none is left out."""

import time
from collections.abc import Iterator

import grpc
import numpy as np
from numpy.typing import NDArray

from ganserve.client_messages import CallError, read_pixels
from ganserve.v1 import image_generation_pb2 as pb

# A server lost in the middle of a stream; before its first message gRPC itself tries again.
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_MOST_LOSSES = 4


class StreamProgress:
    """How far a stream has come, over all its attempts.

    An image depends on its seed and the model alone, so another server makes the same bytes once it
    is held to the model and version of the images that have come. It is asked for all of them
    again, whatever they are made of, and those that have come are passed over.
    """

    def __init__(self, message: pb.GenerateImagesRequest, timeout_seconds: float) -> None:
        self.message = message
        self._end = time.monotonic() + timeout_seconds
        self._received = 0
        self._losses = 0
        self._digest: str | None = None  # of the file that makes the images

    @property
    def remaining_seconds(self) -> float:
        """For another attempt."""
        return max(0.0, self._end - time.monotonic())

    def take(self, response: pb.GenerateImagesResponse) -> Iterator[NDArray[np.uint8]]:
        """The images of a message that are new, as one array or none.

        Raises:
            CallError: they are of another file than those that have come.
        """
        model = response.model
        if self._digest not in (None, model.digest):
            raise CallError(
                grpc.StatusCode.ABORTED,
                f"the stream was lost after {self._received} images, and now another file serves "
                f"as {model.name} version {model.version}",
            )
        self._digest = model.digest
        self.message.model_name, self.message.model_version = model.name, model.version
        images = read_pixels(response)[max(0, self._received - response.first_index) :]
        if len(images):
            self._received += len(images)
            yield images

    def may_go_on(self, code: grpc.StatusCode) -> bool:
        """Whether to try again after this failure."""
        self._losses += 1
        return code in _LOST and self._received > 0 and self._losses <= _MOST_LOSSES
