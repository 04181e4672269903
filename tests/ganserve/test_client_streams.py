import grpc
import numpy as np
import pytest

from ganserve.client.failures import CallError
from ganserve.client.messages import count_images
from ganserve.client.streams import StreamProgress, build_messages
from ganserve.v1 import image_generation_pb2 as pb

Code = grpc.StatusCode


def chunk(first, *values, version="3", name="faces", digest="sha256:1"):
    """Images of one grey pixel each."""
    return pb.GenerateImagesResponse(
        pixels=bytes(values),
        count=len(values),
        height=1,
        width=1,
        channels=1,
        first_index=first,
        model=pb.ModelIdentity(name=name, version=version, digest=digest),
    )


def begin(stream):
    return stream.begin(pb.GenerateImagesRequest(), timeout_seconds=60)


def begin_range(count):
    message = pb.GenerateImagesRequest(seed_range=pb.SeedRange(start=0, count=count))
    return StreamProgress().begin(message, timeout_seconds=60)


def progress(**settings):
    return begin(StreamProgress(**settings))


def failure(code, pushback=None):
    """What a call raises."""
    metadata = () if pushback is None else (("grpc-retry-pushback-ms", pushback),)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), "said")


def goes_on(call, error):
    """Whether there is another attempt after this failure."""
    try:
        call.pause_after(error)
    except grpc.RpcError:
        return False
    return True


def test_each_message_of_a_long_stream_asks_the_same_model():
    request = {"seeds": range(5), "model": "faces", "version": 3, "truncation": 0.5}
    messages = list(build_messages(request, "", 2))
    assert [count_images(message) for message in messages] == [2, 2, 1]
    for message in messages:
        assert (message.model_name, message.model_version) == ("faces", "3")
        assert (message.truncation, message.format) == (0.5, pb.IMAGE_FORMAT_RAW)


def test_a_walk_is_one_message_however_long_it_is():
    (message,) = build_messages({"interpolation": [1, 2], "frames_per_segment": 9}, "", 4)
    assert count_images(message) == 10


def test_another_attempt_leaves_out_what_has_come_and_nothing_else():
    call = progress()
    first = [chunk(0, 10, 11, 12)]
    again = [chunk(0, 10, 11), chunk(2, 12, 13), chunk(4, 14)]  # in chunks of another size
    taken = [call.take(response) for response in first + again]
    assert taken[1] is None
    taken = [images for images in taken if images is not None]
    assert np.concatenate(taken).ravel().tolist() == [10, 11, 12, 13, 14]


SOURCES = {
    "range": {"seed_range": pb.SeedRange(start=0, count=5)},
    "seeds": {"seeds": pb.Seeds(values=[7, 0, 7, 1, 2])},
    "latents": {"latents": pb.Latents(values=[0.0] * 20, latent_dim=4)},
    "walk": {"interpolation": pb.Interpolation(seeds=[0, 1, 2], frames_per_segment=2)},
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_call_that_ends_without_all_its_images_is_an_error(source):
    message = pb.GenerateImagesRequest(**source)
    call = StreamProgress().begin(message, timeout_seconds=60)
    with pytest.raises(CallError, match="DATA_LOSS: expected 5 images from the server, got 0"):
        call.end()
    call.take(chunk(0, 10, 11, 12, 13, 14))
    call.end()


def test_images_left_out_are_an_error():
    call = begin_range(5)
    call.take(chunk(0, 10))
    with pytest.raises(CallError, match="DATA_LOSS: expected image 1 of the call next, got 2"):
        call.take(chunk(2, 12))


def test_another_attempt_is_held_to_the_model_and_version_that_have_come():
    call = progress()
    call.take(chunk(0, 10, version="7", name="other"))
    assert (call.message.model_name, call.message.model_version) == ("other", "7")


def test_another_file_of_the_same_version_does_not_go_on_with_the_stream():
    call = progress()
    call.take(chunk(0, 10, 11))
    with pytest.raises(
        CallError, match=r"ABORTED: .*after 2 images.*another file .*faces version 3"
    ):
        call.take(chunk(2, 12, digest="sha256:2"))


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.CANCELLED, Code.UNKNOWN])
def test_a_server_may_be_lost_four_times(code):
    call = progress()
    call.take(chunk(0, 10))
    assert [goes_on(call, failure(code)) for _ in range(6)] == [True] * 4 + [False] * 2


def test_a_stream_that_has_not_begun_is_left_to_grpcs_own_attempts():
    assert not goes_on(progress(), failure(Code.UNAVAILABLE))


@pytest.mark.parametrize("code", [Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.RESOURCE_EXHAUSTED])
def test_what_another_server_would_say_too_ends_the_stream(code):
    call = progress()
    call.take(chunk(0, 10))
    assert not goes_on(call, failure(code))


def test_a_client_without_retries_loses_its_stream_with_its_server():
    call = progress(retries=False)
    call.take(chunk(0, 10))
    assert not goes_on(call, failure(Code.UNAVAILABLE))
    assert not goes_on(call, failure(Code.RESOURCE_EXHAUSTED, "10"))


def test_a_stream_waits_for_a_busy_server_as_often_as_it_asks_once_there_are_images():
    stream, busy = StreamProgress(), failure(Code.RESOURCE_EXHAUSTED, "250")
    call = begin(stream)
    assert call.pause_after(busy) == 0.25
    assert [goes_on(call, busy) for _ in range(4)] == [True] * 3 + [False]
    call.take(chunk(0, 10))
    call = begin(stream)
    assert all(goes_on(call, busy) for _ in range(100))


def test_the_next_call_begins_anew_and_is_held_to_the_same_model():
    stream = StreamProgress()
    begin(stream).take(chunk(0, 10, 11, version="7", name="other"))
    call = begin(stream)
    assert (call.message.model_name, call.message.model_version) == ("other", "7")
    images = call.take(chunk(0, 12, 13, version="7", name="other"))
    assert images.ravel().tolist() == [12, 13]


def test_where_the_version_serves_no_more_the_stream_ends_and_says_where():
    call = progress()
    call.take(chunk(0, 10, 11))
    with pytest.raises(CallError, match=r"NOT_FOUND: said \(another version came after 2 images"):
        call.pause_after(failure(Code.NOT_FOUND))
    assert not goes_on(progress(), failure(Code.NOT_FOUND))
