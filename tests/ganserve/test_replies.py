import numpy as np
import pytest

from ganserve.api.replies import Reply, reply_head
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.wire_format import varint

HEAD = reply_head("digits", 3, "abc", (4, 5, 3), "application/octet-stream")


def whole(**fields):
    return pb.GenerateImagesResponse(
        **{"height": 4, "width": 5, "channels": 3, "media_type": "application/octet-stream"}
        | {"model": pb.ModelIdentity(name="digits", version="3", digest="abc")}
        | fields
    )


@pytest.mark.parametrize("count", [0, 1, 2, 3, 300], ids="{} images".format)
def test_a_reply_with_pixels_is_read_as_the_message_it_stands_for(count):
    pixels = np.random.default_rng(1).integers(0, 256, (count, 4, 5, 3)).astype(np.uint8)
    rest = pb.GenerateImagesResponse(count=count, seeds=range(count), first_index=7)
    content = Reply(HEAD, rest, pixels).SerializeToString()
    expected = whole(count=count, seeds=range(count), first_index=7, pixels=pixels.tobytes())
    assert pb.GenerateImagesResponse.FromString(content) == expected


def test_pixels_need_not_be_one_block():
    pixels = np.arange(120, dtype=np.uint8).reshape(2, 4, 5, 3)[:, ::-1]
    content = Reply(HEAD, pb.GenerateImagesResponse(), pixels).SerializeToString()
    assert pb.GenerateImagesResponse.FromString(content).pixels == pixels.tobytes()


def test_a_reply_with_files_is_read_as_the_message_it_stands_for():
    rest = pb.GenerateImagesResponse(images=[b"one", b"two"], count=2)
    content = Reply(HEAD, rest, None).SerializeToString()
    assert pb.GenerateImagesResponse.FromString(content) == whole(images=[b"one", b"two"], count=2)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**21 - 1, 2**21, 2**31])
def test_numbers_are_written_as_protobuf_does(number):
    message = pb.SeedRange(start=number or 2**64 - 1)
    written = message.SerializeToString()[1:]
    assert varint(number or 2**64 - 1) == written
