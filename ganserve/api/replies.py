"""A reply becomes bytes: what never changes is kept, and pixels are copied once."""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ganserve.v1 import image_generation_pb2 as pb
from ganserve.wire_format import BYTES, tag, varint

_PIXELS_TAG = tag(pb.GenerateImagesResponse.PIXELS_FIELD_NUMBER, BYTES)


class Reply(NamedTuple):
    """A `GenerateImagesResponse` to gRPC, which only serializes it."""

    head: bytes  # the fields that all replies of a model have in common
    message: pb.GenerateImagesResponse  # the others, but for the pixels
    pixels: NDArray[np.uint8] | None  # [count, height, width, channels]

    def SerializeToString(self) -> bytes:  # noqa: N802 - spelled as in protobuf
        """The bytes of the whole message; protobuf lets fields come in any order."""
        rest = self.message.SerializeToString()
        if self.pixels is None:
            return self.head + rest
        pixels = np.ascontiguousarray(self.pixels)
        return b"".join((self.head, rest, _PIXELS_TAG, varint(pixels.size), pixels.data))


@functools.lru_cache(maxsize=64)
def reply_head(
    name: str, version: int, digest: str, shape: tuple[int, int, int], media_type: str
) -> bytes:
    """The bytes of the fields that all replies of a version in one format have in common."""
    height, width, channels = shape
    return pb.GenerateImagesResponse(
        height=height,
        width=width,
        channels=channels,
        media_type=media_type,
        model=pb.ModelIdentity(name=name, version=str(version), digest=digest),
    ).SerializeToString()
