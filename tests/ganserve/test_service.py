import asyncio
import gc
import hashlib
import io
import re
import shutil
import weakref

import grpc
import numpy as np
import pytest
from PIL import Image

from ganserve.api.service import prefetch
from ganserve.latents import draw_latents, interpolate_latents, truncate
from ganserve.models.model import Model
from ganserve.repository.versions import ModelState
from ganserve.v1 import image_generation_pb2 as pb
from tests.ganserve.conftest import connected, eventually, failure, metric, retry_seconds, settle
from tests.ganserve.silent_reader import silent_reader
from tests.ganserve.tiny import publish, reveal_pixels, write_artifact

RAW, PNG, JPEG, WEBP = 1, 2, 3, 4
STREAM = "/ganserve.v1.ImageGenerationService/StreamImages"


def request(*seeds, **fields):
    return pb.GenerateImagesRequest(seeds=pb.Seeds(values=seeds), **{"format": RAW} | fields)


def expected(*seeds, **settings):
    return reveal_pixels(draw_latents(np.array(seeds, np.uint64), 4), **settings)


def pixels_of(response):
    shape = (response.count, response.height, response.width, response.channels)
    return np.frombuffer(response.pixels, np.uint8).reshape(shape)


async def refusal(call):
    error = await failure(call)
    return error.code().name, error.details()


async def test_raw_pixels_are_one_block(repository, running_server):
    async with running_server(repository) as server, connected(server) as stub:
        response = await stub.GenerateImages(request(7, 0, 2**64 - 1))
    assert (pixels_of(response) == expected(7, 0, 2**64 - 1)).all()
    assert list(response.seeds) == [7, 0, 2**64 - 1]
    assert list(response.images) == []
    assert (response.count, response.height, response.width, response.channels) == (3, 4, 4, 3)
    assert (response.media_type, response.first_index) == ("application/octet-stream", 0)


async def test_the_answer_names_its_model_and_times(repository, running_server):
    digest = hashlib.sha256((repository / "tiny/1/model.onnx").read_bytes()).hexdigest()
    async with running_server(repository) as server, connected(server) as stub:
        response = await stub.GenerateImages(request(1, format=PNG))
    assert response.model == pb.ModelIdentity(name="tiny", version="1", digest=digest)
    assert response.timing.queue_seconds > 0
    assert response.timing.compute_seconds > 0
    assert response.timing.encode_seconds > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("number", "kind", "quality"),
    [
        pytest.param(0, "PNG", None, id="unspecified is PNG"),
        pytest.param(PNG, "PNG", None, id="png"),
        pytest.param(JPEG, "JPEG", 95, id="jpeg"),
        pytest.param(WEBP, "WEBP", None, id="webp"),
    ],
)
async def test_images_are_encoded_one_by_one(
    tmp_path, running_server, number, kind, quality, channels
):
    write_artifact(tmp_path, channels=channels)
    async with running_server(tmp_path) as server, connected(server) as stub:
        response = await stub.GenerateImages(request(5, 6, format=number, quality=quality))
    assert response.pixels == b""
    assert response.media_type == f"image/{kind.lower()}"
    for content, pixels in zip(response.images, expected(5, 6, channels=channels), strict=True):
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.size) == (kind, (4, 4))
        made = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(4, 4, channels)
        if kind != "JPEG":
            assert (made == pixels).all()


async def test_ranges_latents_and_interpolations_are_generated(repository, running_server):
    latents = draw_latents(np.array([3, 4], np.uint64), 4)
    walk = truncate(interpolate_latents(np.array([3, 4], np.uint64), 5, 4), 0.5)
    async with running_server(repository) as server, connected(server) as stub:
        by_range = await stub.GenerateImages(
            pb.GenerateImagesRequest(seed_range=pb.SeedRange(start=3, count=2), format=RAW)
        )
        by_latents = await stub.GenerateImages(
            pb.GenerateImagesRequest(latents=pb.Latents(values=latents.ravel()), format=RAW)
        )
        interpolation = pb.Interpolation(seeds=[3, 4], frames_per_segment=5)
        by_walk = await stub.GenerateImages(
            pb.GenerateImagesRequest(interpolation=interpolation, format=RAW, truncation=0.5)
        )
    assert list(by_range.seeds) == [3, 4]
    assert list(by_latents.seeds) == list(by_walk.seeds) == []
    assert (pixels_of(by_range) == expected(3, 4)).all()
    assert by_latents.pixels == by_range.pixels
    assert (pixels_of(by_walk) == reveal_pixels(walk)).all()


async def test_latents_of_seeds_are_truncated(repository, running_server):
    latents = truncate(draw_latents(np.array([3, 4], np.uint64), 4), 0.5)
    message = request(3, 4, truncation=0.5)
    async with running_server(repository, chunk_bytes=48) as server, connected(server) as stub:
        whole = await stub.GenerateImages(message)
        chunks = [reply async for reply in stub.StreamImages(message)]
    assert (pixels_of(whole) == reveal_pixels(latents)).all()
    assert len(chunks) == 2
    assert b"".join(chunk.pixels for chunk in chunks) == whole.pixels


async def test_a_conditional_model_takes_labels(tmp_path, running_server):
    write_artifact(tmp_path, class_names=["cat", "dog"])
    latents = draw_latents(np.array([1, 2], np.uint64), 4)
    async with running_server(tmp_path, chunk_bytes=48) as server, connected(server) as stub:
        each = await stub.GenerateImages(request(1, 2, class_labels=[0, 1]))
        chunks = [reply async for reply in stub.StreamImages(request(1, 2, class_labels=[0, 1]))]
        one = [reply async for reply in stub.StreamImages(request(1, 2, class_labels=[1]))]
        code, details = await refusal(stub.GenerateImages(request(1, class_labels=[2])))
    assert (pixels_of(each) == reveal_pixels(latents, np.array([0, 1]))).all()
    assert len(chunks) == 2
    assert b"".join(chunk.pixels for chunk in chunks) == each.pixels
    assert b"".join(chunk.pixels for chunk in one) == (
        reveal_pixels(latents, np.array([1, 1])).tobytes()
    )
    assert (code, details.split(":")[0]) == ("INVALID_ARGUMENT", "class_labels")


async def test_a_stream_answers_in_order_in_chunks(repository, running_server):
    async with running_server(repository, chunk_bytes=3 * 48) as server, connected(server) as stub:
        replies = [reply async for reply in stub.StreamImages(request(*range(20, 28)))]
        whole = await stub.GenerateImages(request(*range(20, 28)))
    assert [reply.count for reply in replies] == [3, 3, 2]
    assert [reply.first_index for reply in replies] == [0, 3, 6]
    assert [seed for reply in replies for seed in reply.seeds] == list(range(20, 28))
    assert b"".join(reply.pixels for reply in replies) == whole.pixels


async def test_a_chunk_holds_at_least_one_image(repository, running_server):
    async with running_server(repository, chunk_bytes=1) as server, connected(server) as stub:
        replies = [reply async for reply in stub.StreamImages(request(1, 2))]
    assert [reply.count for reply in replies] == [1, 1]


async def test_a_reader_that_does_not_read_holds_the_model_back(tmp_path, running_server):
    write_artifact(tmp_path, height=128, width=128)
    settings = {"chunk_bytes": 1, "instances": 1}
    async with running_server(tmp_path, **settings) as server, connected(server) as stub:
        call = stub.StreamImages(request(*range(512)))
        first = await call.read()
        made, before = 0.0, -1.0
        while made != before:  # until the connection is full
            await asyncio.sleep(0.2)
            made, before = await metric(server, "ganserve_batch_images_sum"), made
        assert made < 256
        rest = [(await call.read()).pixels for _ in range(511)]
        assert await call.read() is grpc.aio.EOF
    assert first.pixels + b"".join(rest) == expected(*range(512), height=128, width=128).tobytes()


async def test_bad_calls_are_refused_by_name(repository, running_server):
    async with running_server(repository, max_images_per_request=4) as server:
        async with connected(server) as stub:
            assert await refusal(stub.GenerateImages(request(*range(5)))) == (
                "INVALID_ARGUMENT",
                "seeds.values: expected 1 to 4 seeds, got 5",
            )
            assert await refusal(stub.GenerateImages(request(1, model_name="dog"))) == (
                "NOT_FOUND",
                "model 'dog': expected one of tiny",
            )
            assert await refusal(stub.GenerateImages(request(1, model_version="7"))) == (
                "NOT_FOUND",
                "model 'tiny' version 7: expected 1",
            )
            assert await refusal(stub.GetModel(pb.GetModelRequest(version="x"))) == (
                "INVALID_ARGUMENT",
                "version: expected a positive integer below 2^63, got 'x'",
            )
            stream = stub.StreamImages(request())
            assert (await refusal(stream.read()))[0] == "INVALID_ARGUMENT"
        assert await metric(server, "ganserve_rejected_requests_total") == 5
        assert await metric(server, "ganserve_images_total") == 0


async def test_more_pixels_than_one_message_can_hold_are_refused(tmp_path, running_server):
    write_artifact(tmp_path, height=256, width=256)
    settings = {"max_images_per_request": 10_922, "queue_size": 10_922}
    async with running_server(tmp_path, **settings) as server, connected(server) as stub:
        many = pb.GenerateImagesRequest(seed_range=pb.SeedRange(count=10_922), format=RAW)
        code, details = await refusal(stub.GenerateImages(many))
        assert code == "INVALID_ARGUMENT"
        assert details.startswith("format: expected at most 10921 images of this model as pixels")
        stream = stub.StreamImages(many)
        assert len((await stream.read()).pixels) == 2 * 256 * 256 * 3
        stream.cancel()


async def test_more_files_than_one_message_can_hold_are_refused(
    repository, running_server, monkeypatch
):
    monkeypatch.setattr("ganserve.api.request._LARGEST_REPLY_BYTES", 1000)
    async with running_server(repository) as server, connected(server) as stub:
        most = await stub.GenerateImages(request(*range(5), format=PNG))
        assert sum(map(len, most.images)) < 1000
        error = await failure(stub.GenerateImages(request(*range(20), format=PNG)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        told = error.details()
        assert re.match("format: expected files of at most 1000 bytes in one reply, got", told)


@pytest.mark.parametrize("method", ["GenerateImages", "StreamImages"])
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    repository, running_server, method
):
    async with running_server(repository) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            open_call = channel.unary_unary if method == "GenerateImages" else channel.unary_stream
            call = open_call(f"/ganserve.v1.ImageGenerationService/{method}")(b"\xff\xff\xff")
            code, details = await refusal(call if method == "GenerateImages" else call.read())
        assert (code, details.split(":")[0]) == ("INVALID_ARGUMENT", "request")
        counted = {"grpc_method": method, "grpc_code": "INVALID_ARGUMENT"}
        assert await metric(server, "grpc_server_handled_total", **counted) == 1


async def test_models_are_listed_with_those_that_could_not_be_loaded(repository, running_server):
    write_artifact(repository, "cats", class_names=["tabby", "black"], channels=1)
    publish(repository, "cats", 2, b"rubbish")
    async with running_server(repository) as server, connected(server) as stub:
        models = (await stub.ListModels(pb.ListModelsRequest())).models
        one = (await stub.GetModel(pb.GetModelRequest(name="cats"))).model
        failed = (await stub.GetModel(pb.GetModelRequest(name="cats", version="2"))).model
    assert [(model.name, model.version, model.state) for model in models] == [
        ("cats", "2", pb.MODEL_STATE_FAILED),
        ("cats", "1", pb.MODEL_STATE_READY),
        ("tiny", "1", pb.MODEL_STATE_READY),
    ]
    assert "expected an ONNX file" in models[0].error
    assert (one, failed) == (models[1], models[0])
    assert (one.latent_dim, one.height, one.width, one.channels) == (4, 4, 4, 1)
    assert list(one.class_names) == ["tabby", "black"]
    assert one.seed_contract == "philox4x32-10/box-muller/1"
    assert one.execution_provider == "CPUExecutionProvider"
    assert list(one.evaluation) == [pb.EvaluationResult(name="frechet_distance_pixels", value=1.5)]


async def test_without_a_name_each_call_names_its_own_field(repository, running_server):
    write_artifact(repository, "cats")
    expected_details = ": expected one of cats, tiny, got none"
    async with running_server(repository) as server, connected(server) as stub:
        assert await refusal(stub.GetModel(pb.GetModelRequest())) == (
            "INVALID_ARGUMENT",
            "name" + expected_details,
        )
        assert await refusal(stub.GenerateImages(request(1))) == (
            "INVALID_ARGUMENT",
            "model_name" + expected_details,
        )


@pytest.mark.parametrize("kind", ["GenerateImages", "StreamImages"])
async def test_more_than_the_encoder_keeps_up_with_is_refused(tmp_path, running_server, kind):
    write_artifact(tmp_path, height=256, width=256)
    settings = {"queue_size": 8, "max_images_per_request": 4, "encoder_threads": 1}
    async with running_server(tmp_path, **settings) as server, connected(server) as stub:
        refusals, answers = [], []

        async def generate(message):
            if kind == "GenerateImages":
                return (await stub.GenerateImages(message)).images
            return [image async for reply in stub.StreamImages(message) for image in reply.images]

        async def ask():
            while not refusals:
                try:
                    answers.append(await generate(request(*range(4), format=PNG)))
                except grpc.aio.AioRpcError as error:
                    if "wait to be encoded, the limit is 8" in error.details():
                        refusals.append(error)

        async with asyncio.timeout(60):
            await asyncio.gather(*(ask() for _ in range(8)))
        assert {error.code() for error in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(retry_seconds(error) > 0 for error in refusals)
        assert (await stub.GenerateImages(request(1))).count == 1  # RAW needs no encoder
        assert len({tuple(images) for images in answers}) == 1


async def test_images_are_counted_as_they_are_received(repository, running_server):
    async with running_server(repository) as server, connected(server) as stub:
        await asyncio.gather(*(stub.GenerateImages(request(*range(n))) for n in range(1, 9)))
        await stub.GenerateImages(request(1, 2, format=PNG))
        _ = [reply async for reply in stub.StreamImages(request(*range(10)))]
        labels = {"model": "tiny", "version": "1"}
        assert await metric(server, "ganserve_images_total", **labels) == 36 + 2 + 10
        assert await metric(server, "ganserve_batch_images_sum", model="tiny") == 36 + 2 + 10
        assert await metric(server, "ganserve_encode_seconds_count", format="png") == 1
        assert await metric(server, "ganserve_encode_seconds_sum", format="png") > 0
        assert await metric(server, "ganserve_encode_seconds_count", format="raw") == 9
        assert await metric(server, "ganserve_encode_seconds_sum", format="raw") == 0
        assert await metric(server, "ganserve_queue_seconds_count") == 10
        assert await metric(server, "ganserve_pending_images") == 0
        generated = {"grpc_method": "GenerateImages", "grpc_code": "OK"}
        assert await metric(server, "grpc_server_handled_total", **generated) == 9


async def test_a_reply_of_a_stream_is_counted_before_it_can_be_received(repository, running_server):
    settings = {"chunk_bytes": 48}
    async with (
        running_server(repository, **settings) as server,
        silent_reader(server.address) as silent,
    ):
        silent.ask(STREAM, request(*range(10)).SerializeToString())
        version = {"model": "tiny", "version": "1"}
        counted = server.metrics.registry.get_sample_value
        # No reply can leave, so the first waits, the second is made and no third.
        await eventually(lambda: counted("ganserve_images_total", version) == 1)
        await eventually(lambda: counted("ganserve_batch_images_sum", {"model": "tiny"}) == 2)
        assert await metric(server, "ganserve_images_total") == 1


async def test_an_image_that_waits_for_its_reader_does_not_keep_its_batch(
    repository, running_server, monkeypatch
):
    made, run_batch = [], Model.run_batch

    def note_batch(model, latents, labels=None):
        images = run_batch(model, latents, labels)
        made.append(weakref.ref(images))
        return images

    monkeypatch.setattr(Model, "run_batch", note_batch)
    settings = {"chunk_bytes": 1, "max_batch_size": 8, "max_wait_seconds": 60, "instances": 1}
    async with (
        running_server(repository, **settings) as server,
        silent_reader(server.address) as silent,
    ):
        before = len(made)
        for _ in range(8):
            silent.ask(STREAM, request(*range(100)).SerializeToString())
        # A first chunk of each is sent, and a second waits.
        await eventually(lambda: len(made) == before + 2)
        await eventually(lambda: all(batch() is None for batch in made))


async def test_what_a_stream_makes_ahead_is_over_before_its_version_may_go(
    repository, running_server
):
    # The first message fills a batch, the second waits for company.
    settings = {"chunk_bytes": 2 * 48, "max_batch_size": 2, "max_wait_seconds": 60}
    settings |= {"instances": 1}
    async with running_server(repository, **settings) as server:
        async with silent_reader(server.address) as silent:
            silent.ask(STREAM, request(1, 2, 3).SerializeToString())
            index = server.repository.index
            batcher = index.versions[0].served.batcher
            await eventually(lambda: batcher._queue.waiting == 1)
            shutil.rmtree(repository / "tiny")
            await eventually(lambda: index.versions[0].state is ModelState.RETIRING)
        await eventually(lambda: not index.versions)
        cancelled = {"reason": "cancelled"}
        assert await metric(server, "ganserve_abandoned_images_total", **cancelled) == 1


async def test_a_full_queue_refuses_and_the_accepted_are_answered(tmp_path, running_server):
    write_artifact(tmp_path, network="convolutional")
    # The first two fill the queue and wait for a batch that it has no room to complete.
    settings = {"queue_size": 32, "max_images_per_request": 16, "instances": 1}
    settings |= {"max_batch_size": 64, "max_wait_seconds": 1}
    async with running_server(tmp_path, **settings) as server, connected(server) as stub:
        calls = [stub.GenerateImages(request(*range(16))) for _ in range(40)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        answered = [reply for reply in outcomes if isinstance(reply, pb.GenerateImagesResponse)]
        refused = [error for error in outcomes if isinstance(error, grpc.aio.AioRpcError)]
        assert len(answered) + len(refused) == 40
        assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(answered) >= 2
        assert len({reply.pixels for reply in answered}) == 1
        assert await metric(server, "ganserve_images_total") == 16 * len(answered)
        full = {"reason": "queue_full"}
        assert await metric(server, "ganserve_rejected_requests_total", **full) == len(refused)


async def test_a_client_that_goes_away_leaves_the_others_unharmed(tmp_path, running_server):
    write_artifact(tmp_path, network="convolutional")
    async with running_server(tmp_path) as server, connected(server) as stub:
        alone = await stub.GenerateImages(request(*range(16)))
        async with connected(server) as leaver:
            leaving = [leaver.GenerateImages(request(*range(64))) for _ in range(8)]
            staying = [stub.GenerateImages(request(*range(16))) for _ in range(8)]
            await staying[0]
        for reply in await asyncio.gather(*staying):
            assert reply.pixels == alone.pixels
        await asyncio.gather(*leaving, return_exceptions=True)
        assert (await stub.GenerateImages(request(*range(16)))).pixels == alone.pixels


async def test_padding_is_counted_and_changes_no_image(repository, running_server):
    async with running_server(repository) as server, connected(server) as stub:
        plain = [await stub.GenerateImages(request(*range(n))) for n in (1, 3, 16)]
        assert await metric(server, "ganserve_padding_images_total") == 0
    sizes = {"max_batch_size": 16, "batch_sizes": (4, 16), "instances": 1}
    async with running_server(repository, **sizes) as server, connected(server) as stub:
        padded = [await stub.GenerateImages(request(*range(n))) for n in (1, 3, 16)]
        assert await metric(server, "ganserve_padding_images_total", model="tiny") == 3 + 1
        assert await metric(server, "ganserve_batch_images_sum", model="tiny") == 20
        assert await metric(server, "ganserve_images_total", model="tiny") == 20
    assert [reply.pixels for reply in padded] == [reply.pixels for reply in plain]


async def test_while_one_reply_is_sent_the_next_is_made_and_no_more():
    made, released = [], asyncio.Semaphore(0)

    async def make(start):
        made.append(start)
        await released.acquire()
        return f"reply {start}"

    replies = prefetch(make, range(0, 12, 4))
    first = asyncio.ensure_future(anext(replies))
    await settle()
    assert made == [0]
    released.release()
    assert await first == "reply 0"
    await settle()
    assert made == [0, 4]  # while the consumer has the first in its hands
    released.release()
    await settle()
    assert made == [0, 4]
    assert await anext(replies) == "reply 4"
    released.release()
    assert [reply async for reply in replies] == ["reply 8"]
    assert made == [0, 4, 8]


async def test_whoever_stops_reading_stops_what_is_made_ahead():
    cancelled = asyncio.Event()

    async def make(start):
        if start:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return "reply"

    replies = prefetch(make, range(3))
    assert await anext(replies) == "reply"
    await asyncio.sleep(0)
    await replies.aclose()
    assert cancelled.is_set()


async def test_a_fault_ahead_is_raised_in_its_turn():
    async def make(start):
        if start:
            raise ArithmeticError("ahead")
        return "reply"

    replies = prefetch(make, range(3))
    assert await anext(replies) == "reply"
    await asyncio.sleep(0)
    with pytest.raises(ArithmeticError):
        await anext(replies)


async def test_a_fault_ahead_that_nobody_waits_for_is_silent():
    loop, told = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: told.append(context))

    async def make(start):
        if start:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # a fault before that is silenced by the cancelling
                raise ArithmeticError("ahead") from None
        return "reply"

    replies = prefetch(make, range(3))
    await anext(replies)
    await asyncio.sleep(0)
    await replies.aclose()
    del replies
    gc.collect()
    assert told == []


async def test_images_of_a_stream_are_counted_as_they_are_taken(tmp_path, running_server):
    write_artifact(tmp_path, height=128, width=128)
    async with running_server(tmp_path, chunk_bytes=1) as server, connected(server) as stub:
        whole = [reply async for reply in stub.StreamImages(request(*range(20)))]
        assert len(whole) == 20
        assert await metric(server, "ganserve_images_total") == 20
