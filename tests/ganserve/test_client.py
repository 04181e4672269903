"""The client against real servers: right images, clear errors, and patience with restarts."""

import asyncio
import contextlib
import inspect
import io
import pickle
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from ganserve.api import service
from ganserve.client import AsyncClient, CallError, Client, ImageRequest
from ganserve.latents import draw_latents
from ganserve.security.admission import RateLimiter
from ganserve.v1 import image_generation_pb2 as pb
from tests.ganserve.conftest import eventually, free_port, metric
from tests.ganserve.tiny import reveal_pixels, write_artifact

SEEDS = [3, 0, 2**64 - 1, 3]


def expected_pixels(seeds, **shape) -> np.ndarray:
    return reveal_pixels(draw_latents(np.array(seeds, np.uint64), 4), **shape)


async def ask(server, question: Callable[[Client], Any], **settings) -> Any:
    """Put a question to a server, from another thread than the server's."""

    def put() -> Any:
        with Client(server.address, **settings) as client:
            return question(client)

    return await asyncio.to_thread(put)


async def test_seeds_become_pixels(repository, running_server):
    async with running_server(repository) as server:
        pixels = await ask(server, lambda client: client.generate(seeds=SEEDS))
    assert pixels.dtype == np.uint8
    assert (pixels == expected_pixels(SEEDS)).all()
    pixels[:] = 0  # the caller's own


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param({"seeds": range(5, 9)}, id="range"),
        pytest.param({"seeds": [5, 6, 7, 8]}, id="list"),
        pytest.param({"seeds": (seed for seed in (5, 6, 7, 8))}, id="generator"),
        pytest.param({"seeds": np.arange(5, 9, dtype=np.uint64)}, id="array"),
        pytest.param({"latents": draw_latents(np.arange(5, 9, dtype=np.uint64), 4)}, id="latents"),
    ],
)
async def test_the_same_images_are_had_in_every_way_of_asking(request_, repository, running_server):
    async with running_server(repository) as server:
        pixels = await ask(server, lambda client: client.generate(**request_))
    assert (pixels == expected_pixels(range(5, 9))).all()


async def test_a_range_with_steps_asks_for_those_seeds_alone(repository, running_server):
    async with running_server(repository) as server:
        pixels = await ask(server, lambda client: client.generate(seeds=range(0, 9, 4)))
    assert (pixels == expected_pixels([0, 4, 8])).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")], ids=["grey", "rgb"])
async def test_seeds_become_pillow_images(channels, mode, tmp_path, running_server):
    write_artifact(tmp_path / "models", channels=channels, height=4, width=8)
    async with running_server(tmp_path / "models") as server:
        images = await ask(server, lambda client: client.generate_images(seeds=SEEDS))
    assert {(image.mode, image.size) for image in images} == {(mode, (8, 4))}
    expected = expected_pixels(SEEDS, channels=channels, height=4, width=8)
    assert (np.stack(images).reshape(expected.shape) == expected).all()


@pytest.mark.parametrize("name", ["png", "webp", "jpeg"])
async def test_seeds_become_files(name, repository, running_server):
    async with running_server(repository) as server:
        files = await ask(server, lambda client: client.generate_files(name, seeds=SEEDS))
    pictures = [Image.open(io.BytesIO(content)) for content in files]
    assert [picture.format for picture in pictures] == [name.upper()] * len(SEEDS)
    if name != "jpeg":
        assert (np.stack(pictures) == expected_pixels(SEEDS)).all()


async def test_quality_is_passed_on(repository, running_server):
    async with running_server(repository) as server:
        rough, fine = [
            await ask(
                server, lambda client, q=quality: client.generate_files("jpeg", q, seeds=SEEDS)
            )
            for quality in (1, 100)
        ]
    assert sum(map(len, rough)) < sum(map(len, fine))


async def test_truncation_and_interpolation_are_passed_on(repository, running_server):
    async with running_server(repository) as server:
        walk = await ask(
            server,
            lambda client: client.generate(
                interpolation=[1, 2, 3], frames_per_segment=4, truncation=0.5
            ),
        )
    ends = reveal_pixels(draw_latents(np.array([1, 2, 3], np.uint64), 4) * np.float32(0.5))
    assert len(walk) == 9
    assert (walk[[0, 4, 8]] == ends).all()


async def test_class_labels_are_passed_on(tmp_path, running_server):
    write_artifact(tmp_path / "models", class_names=("cat", "dog"))
    async with running_server(tmp_path / "models") as server:
        pixels = await ask(
            server, lambda client: client.generate(seeds=SEEDS, class_labels=[0, 1, 1, 0])
        )
    latents = draw_latents(np.array(SEEDS, np.uint64), 4)
    assert (pixels == reveal_pixels(latents, np.array([0, 1, 1, 0]))).all()


async def test_one_label_for_all_images_may_be_a_number(tmp_path, running_server):
    write_artifact(tmp_path / "models", class_names=("cat", "dog"))
    async with running_server(tmp_path / "models") as server:
        for label in (1, np.int64(1), [1]):
            pixels = await ask(
                server,
                lambda client, label=label: client.generate(seeds=SEEDS, class_labels=label),
            )
            latents = draw_latents(np.array(SEEDS, np.uint64), 4)
            assert (pixels == reveal_pixels(latents, np.array([1] * len(SEEDS)))).all()


async def test_a_stream_brings_all_images_in_order(repository, running_server):
    async with running_server(repository, chunk_bytes=3 * 4 * 4 * 3) as server:
        chunks = await ask(server, lambda client: list(client.stream(seeds=range(8))))
    assert [len(chunk) for chunk in chunks] == [3, 3, 2]
    assert (np.concatenate(chunks) == expected_pixels(range(8))).all()


async def test_a_stream_that_is_not_read_to_its_end_is_cancelled(repository, running_server):
    async with running_server(repository, chunk_bytes=1, max_images_per_request=2000) as server:

        def read_one(client: Client) -> np.ndarray:
            stream = client.stream(seeds=range(2000))
            first = next(stream)
            stream.close()
            return first

        first = await ask(server, read_one)
        await server.interceptor.under_way.wait_until_idle()
        handled = server.metrics.handled.labels(
            "server_stream", "ganserve.v1.ImageGenerationService", "StreamImages", "CANCELLED"
        )
        assert handled.value == 1
    assert (first == expected_pixels([0])).all()


async def test_a_stream_whose_client_is_closed_says_that_it_was_cancelled(
    repository, running_server
):
    async with running_server(repository, chunk_bytes=1, max_images_per_request=2000) as server:

        def read_on(client: Client) -> None:
            stream = client.stream(seeds=range(2000))
            next(stream)
            client.close()
            list(stream)

        with pytest.raises(CallError, match="CANCELLED"):
            await ask(server, read_on)


async def test_replies_above_the_default_limit_arrive(tmp_path, running_server):
    write_artifact(tmp_path / "models", height=64, width=64)
    async with running_server(tmp_path / "models") as server:
        pixels = await ask(server, lambda client: client.generate(seeds=range(512)))
    assert pixels.nbytes > 4 * 1024 * 1024
    assert (pixels[-1] == expected_pixels([511], height=64, width=64)[0]).all()


async def test_the_model_and_version_of_a_call_or_else_of_the_client_are_asked(
    tmp_path, running_server
):
    for offset, name in [(0, "plain"), (9, "bright")]:
        write_artifact(tmp_path / "models", name, offset=offset)
    async with running_server(tmp_path / "models") as server:
        own = await ask(server, lambda client: client.generate(seeds=[1]), model="bright")
        other = await ask(
            server,
            lambda client: client.generate(seeds=[1], model="plain", version="1"),
            model="bright",
        )
        not_said = await ask(
            server, lambda client: client.generate(seeds=[1], model=None), model="bright"
        )
    assert (own == expected_pixels([1], offset=9)).all()
    assert (other == expected_pixels([1])).all()
    assert (not_said == own).all()


@pytest.mark.parametrize("version", ["1", 1, np.int64(1), "", None], ids=repr)
async def test_a_version_may_be_given_as_a_number(version, repository, running_server):
    async with running_server(repository) as server:
        reply = await ask(server, lambda client: client.generate_reply(seeds=[1], version=version))
    assert reply.model.version == "1"


async def test_models_are_listed_with_what_they_make(repository, running_server):
    async with running_server(repository) as server:
        (model,) = await ask(server, lambda client: client.models())
    assert (model.name, model.version, model.latent_dim) == ("tiny", "1", 4)
    assert (model.height, model.width, model.channels) == (4, 4, 3)


async def test_what_is_listed_is_plain_values(tmp_path, running_server):
    evaluation = {"frechet_distance": 1.5}
    write_artifact(
        tmp_path / "models", class_names=("cat", "dog"), metadata={"evaluation": evaluation}
    )
    broken = tmp_path / "models" / "zoo" / "7" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    async with running_server(tmp_path / "models") as server:
        tiny, zoo = await ask(server, lambda client: client.models())
    assert (tiny.state, tiny.error, tiny.class_names) == ("ready", "", ("cat", "dog"))
    assert dict(tiny.evaluation) == evaluation
    assert (zoo.name, zoo.version, zoo.state, zoo.height) == ("zoo", "7", "failed", 0)
    assert "expected an ONNX file" in zoo.error
    assert pickle.loads(pickle.dumps(tiny)) == tiny


@pytest.mark.parametrize(
    "name", ["generate", "generate_reply", "generate_images", "generate_files", "stream"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["threads", "asyncio"])
def test_signatures_show_what_a_request_takes(kind, name):
    shown = inspect.signature(getattr(kind, name)).parameters
    assert shown.keys() >= ImageRequest.__annotations__.keys()
    assert "request" not in shown


async def test_one_client_serves_many_threads(repository, running_server):
    async with running_server(repository) as server:
        with Client(server.address) as client:
            answers = await asyncio.gather(
                *(asyncio.to_thread(client.generate, seeds=[seed]) for seed in range(32))
            )
    assert (np.concatenate(answers) == expected_pixels(range(32))).all()


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        pytest.param({}, "got none", id="no-source"),
        pytest.param({"seeds": [1], "latents": [[0.0] * 4]}, "got latents, seeds", id="two"),
        pytest.param({"latents": [0.0] * 4}, r"latents: expected \[n, latent_dim\]", id="flat"),
        pytest.param({"seeds": [-1]}, "seeds: expected integers from 0", id="negative"),
        pytest.param({"seeds": [2**64]}, "seeds: expected integers from 0", id="too-large"),
        pytest.param({"seeds": ["one"]}, "seeds: expected integers from 0", id="word"),
        pytest.param({"seeds": range(-1, 2)}, "seeds: expected integers from 0", id="range"),
        pytest.param({"seeds": range(2**70)}, "expected at most .* got 1180591620", id="endless"),
        pytest.param(
            {"seeds": range(10**12)},
            r"^seeds: expected at most 2\^32 - 1 seeds, got 1000000000000$",
            id="too-many",
        ),
        pytest.param(
            {"seeds": range(10**12, 0, -2)}, "at most .* got 500000000000$", id="too-many-by-two"
        ),
        pytest.param(
            {"seeds": 7}, "^seeds: expected a list of integers from 0 .*, got 7$", id="one"
        ),
        pytest.param({"interpolation": 7}, "^interpolation: expected a list of", id="one-of-walk"),
        pytest.param({"interpolation": [-1, 2]}, "interpolation: expected integers", id="walk"),
        pytest.param(
            {"interpolation": [1, 2], "frames_per_segment": -1},
            "frames_per_segment: expected integers",
            id="frames",
        ),
        pytest.param(
            {"seeds": [1], "frames_per_segment": 4},
            "frames_per_segment: expected interpolation with it, got seeds",
            id="frames-of-no-walk",
        ),
        pytest.param(
            {"seeds": [1], "class_labels": [2**32]},
            r"class_labels: expected integers from 0 to 2\^32 - 1",
            id="label",
        ),
        pytest.param({"latents": [[0, 0], [0]]}, "latents: expected rows of equally", id="ragged"),
        pytest.param({"latents": [[1e300]]}, "latents: expected .*float32.*: over", id="large"),
        pytest.param({"latents": [[10**400]]}, "latents: expected .*: int too large", id="huge"),
        pytest.param({"latents": [["a"]]}, "latents: expected .* numbers: could not", id="words"),
        pytest.param(
            {"seeds": [1], "truncation": "x"}, "truncation: expected a number", id="truncation"
        ),
        pytest.param({"seeds": [1], "model": 5}, "model: expected a name", id="model"),
    ],
)
def test_what_no_request_can_say_is_refused_before_a_call(request_, problem):
    with Client("localhost:1") as client, pytest.raises(ValueError, match=problem):
        client.generate(**request_)


@pytest.mark.parametrize("quality", [-1, 50.5], ids=repr)
def test_a_quality_that_is_none_is_refused_by_name(quality):
    with Client("localhost:1") as client, pytest.raises(ValueError, match="quality: expected"):
        client.generate_files("jpeg", quality=quality, seeds=[1])


@pytest.mark.parametrize("name", ["modle", "timeout", "labels", "count"])
async def test_an_argument_that_says_nothing_is_refused_before_a_call(name):
    request = {"seeds": [1], name: 1}
    problem = f"unexpected {name}; expected some of seeds, latents, "
    with Client("localhost:1") as client:
        with pytest.raises(TypeError, match=problem):
            client.generate(**request)
        with pytest.raises(TypeError, match=problem):
            next(client.stream(**request))
    async with AsyncClient("localhost:1") as client:
        with pytest.raises(TypeError, match=problem):
            await client.generate(**request)
        with pytest.raises(TypeError, match=problem):
            await anext(client.stream(**request))


@pytest.mark.parametrize("name", ["gif", "raw"])
async def test_a_format_that_files_do_not_have_is_refused_before_a_call(name):
    problem = f"format: expected one of png, jpeg, webp, got '{name}'"
    with Client("localhost:1") as client, pytest.raises(ValueError, match=problem):
        client.generate_files(name, seeds=[1])
    async with AsyncClient("localhost:1") as client:
        with pytest.raises(ValueError, match=problem):
            await client.generate_files(name, seeds=[1])


@pytest.mark.parametrize(
    ("request_", "code", "details"),
    [
        pytest.param(
            {"seeds": []}, grpc.StatusCode.INVALID_ARGUMENT, "seeds.values: expected", id="empty"
        ),
        pytest.param(
            {"latents": np.zeros((0, 4))},
            grpc.StatusCode.INVALID_ARGUMENT,
            "latents.values: expected",
            id="no-rows",
        ),
        pytest.param(
            {"seeds": [1], "truncation": 2.0},
            grpc.StatusCode.INVALID_ARGUMENT,
            "truncation: expected",
            id="field",
        ),
        pytest.param(
            {"seeds": [1], "model": "other"},
            grpc.StatusCode.NOT_FOUND,
            "expected one of tiny",
            id="model",
        ),
    ],
)
async def test_what_the_server_refuses_is_told_with_code_and_reason(
    request_, code, details, repository, running_server
):
    async with running_server(repository) as server:
        with pytest.raises(CallError) as raised:
            await ask(server, lambda client: client.generate(**request_))
    assert raised.value.code is code
    assert details in raised.value.details
    assert str(raised.value) == f"{code.name}: {raised.value.details}"


async def test_errors_in_the_middle_of_a_stream_are_told_too(repository, running_server):
    async with running_server(repository) as server:
        with pytest.raises(CallError, match="INVALID_ARGUMENT: truncation"):
            await ask(server, lambda client: list(client.stream(seeds=[1], truncation=2)))


async def test_a_call_outlives_a_restart_of_the_server(repository, running_server):
    port = free_port()
    with Client(f"127.0.0.1:{port}") as client:
        async with running_server(repository, port=port):
            before = await asyncio.to_thread(client.generate, seeds=[7])
        call = asyncio.create_task(asyncio.to_thread(client.generate, seeds=[7]))
        async with running_server(repository, port=port):
            after = await call
    assert (before == after).all()


async def test_a_call_waits_for_a_server_that_is_still_loading(tmp_path, running_server):
    (tmp_path / "models").mkdir()
    async with running_server(tmp_path / "models", until_ready=False) as server:
        call = asyncio.create_task(ask(server, lambda client: client.generate(seeds=SEEDS)))
        refused = server.metrics.rejected_requests.labels("loading")
        while refused._value.get() == 0:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)
        write_artifact(tmp_path / "models")
        assert (await call == expected_pixels(SEEDS)).all()


async def test_a_server_that_never_loads_is_given_up_with_its_reason(tmp_path, running_server):
    (tmp_path / "models").mkdir()
    async with running_server(tmp_path / "models", until_ready=False) as server:
        with pytest.raises(
            CallError, match=f"{server.address} does not serve: there is no model"
        ) as raised:
            await ask(server, lambda client: client.generate(seeds=[1]))
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("round_robin", [False, True], ids=["one", "in-turn"])
@pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["threads", "asyncio"])
async def test_a_server_that_is_not_there_ends_the_call_at_its_deadline_with_the_reason(
    kind, round_robin
):
    address = f"127.0.0.1:{free_port()}"
    client = kind(address, timeout_seconds=1.5, round_robin=round_robin)
    reason = "(failed to connect to all addresses|connections to all backends failing); last error"
    reason += ": .*Connection refused"
    with pytest.raises(
        CallError, match=f"no result from {address} within 1.5 s: {reason}"
    ) as raised:
        await generate(client, seeds=[1])
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert raised.value.__suppress_context__, "one clear error, not gRPC's as well"
    await client.close() if isinstance(client, AsyncClient) else client.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["threads", "asyncio"])
async def test_a_stream_whose_time_is_over_says_so(kind):
    async def read(client: Client | AsyncClient) -> str:
        stream = client.stream(seeds=[1, 2], timeout_seconds=0.5)
        await next_of(stream)
        with pytest.raises(CallError) as raised:
            await next_of(stream)
        return str(raised.value)

    async with serving(Stalling()) as server, opened(kind, server) as client:
        # gRPC has two ways of saying it, and chance decides which.
        said = await asyncio.gather(*(read(client) for _ in range(24)))
    address = f"ipv4:{server.address}"
    assert {*said} == {f"DEADLINE_EXCEEDED: no result from {address} within 0.5 s"}


@pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["threads", "asyncio"])
async def test_an_address_where_nothing_answers_is_told(kind):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        host, port = full.getsockname()
        with socket.create_connection((host, port)):  # Linux drops what comes beyond the backlog
            client = kind(f"{host}:{port}", timeout_seconds=7)
            with pytest.raises(CallError, match=r"within 7 s: .*\(nothing answers: is the address"):
                await generate(client, seeds=[1])
            await client.close() if isinstance(client, AsyncClient) else client.close()


def test_a_client_without_tls_learns_in_a_short_time_too_that_it_may_need_it():
    with (
        closing_at_once() as address,
        Client(address, timeout_seconds=0.5) as client,
        pytest.raises(CallError, match=r"within 0.5 s: .*\(does it speak TLS\? then give --tls-ca"),
    ):
        client.models()


@pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["threads", "asyncio"])
async def test_a_server_far_away_is_reached(kind, repository, running_server):
    async with (
        running_server(repository) as server,
        far_away(server.address, seconds=0.6) as address,
    ):
        client = kind(address)
        assert (await generate(client, seeds=[1], timeout_seconds=20)).shape == (1, 4, 4, 3)
        await client.close() if isinstance(client, AsyncClient) else client.close()


@contextlib.contextmanager
def closing_at_once() -> Iterator[str]:
    """Closes each connection as soon as it hears something, as a server with TLS would."""
    ended = threading.Event()

    def close() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=close)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        thread.join()


@contextlib.asynccontextmanager
async def far_away(address: str, seconds: float) -> AsyncIterator[str]:
    """The address of a server whose bytes take so long, each way."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65536):
            loop.call_later(seconds, writer.write, content)
        loop.call_later(seconds, writer.close)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * seconds)  # for connecting, which takes a way there and back
        there, back = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(carry(reader, back), carry(there, writer))

    proxy = await asyncio.start_server(connect, "127.0.0.1", 0)
    async with proxy:
        yield f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        await asyncio.sleep(3 * seconds)  # for what is on its way


def test_a_server_that_is_not_there_is_not_taken_for_one_with_tls():
    with (
        Client(f"127.0.0.1:{free_port()}", retries=False) as client,
        pytest.raises(CallError, match=r"Connection refused$"),
    ):
        client.generate(seeds=[1])


def test_the_time_of_a_call_can_be_its_own():
    with (
        Client(f"127.0.0.1:{free_port()}") as client,
        pytest.raises(CallError, match=r"within 0\.2 s"),
    ):
        client.generate(seeds=[1], timeout_seconds=0.2)


async def test_a_limit_of_the_server_is_not_told_as_the_clients(tmp_path, running_server):
    write_artifact(tmp_path, height=128, width=128)
    settings = {"deadline_seconds": 0.01, "max_deadline_seconds": 0.01}
    async with running_server(tmp_path, **settings) as server:
        with pytest.raises(CallError, match=r"DEADLINE_EXCEEDED: .*0\.01 s, the server's limit"):
            await ask(server, lambda client: client.generate(seeds=range(500)))


@pytest.mark.parametrize("seconds", [float("inf"), 1e30])
async def test_a_call_may_have_all_the_time_in_the_world(seconds, repository, running_server):
    async with running_server(repository) as server:
        pixels = await ask(
            server, lambda client: client.generate(seeds=[1]), timeout_seconds=seconds
        )
        assert (pixels == expected_pixels([1])).all()
        async with AsyncClient(server.address) as client:
            await client.generate(seeds=[1], timeout_seconds=seconds)


def test_what_failed_can_be_told_in_another_process():
    error = pickle.loads(pickle.dumps(CallError(grpc.StatusCode.NOT_FOUND, "no such model")))
    assert isinstance(error, CallError)
    assert (error.code, error.details) == (grpc.StatusCode.NOT_FOUND, "no such model")
    assert str(error) == "NOT_FOUND: no such model"


def both_kinds(test):
    """For `ask`: what a thread does with a `Client`, and an event loop with an `AsyncClient`."""
    return pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["threads", "asyncio"])(test)


@both_kinds
@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
async def test_a_time_to_hedge_after_that_is_none_is_refused(kind, seconds):
    with pytest.raises(ValueError, match="hedge_after_seconds: expected 0 or more, or None, got"):
        kind("localhost:1", hedge_after_seconds=seconds)


@both_kinds
@pytest.mark.parametrize("seconds", [-1, -1e-9, float("nan"), float("-inf")])
async def test_a_time_that_no_call_can_take_is_refused(kind, seconds):
    problem = "^timeout_seconds: expected 0 or more, got "
    with pytest.raises(ValueError, match=problem):
        kind("localhost:1", timeout_seconds=seconds)
    request = {"seeds": [1], "timeout_seconds": seconds}
    if kind is AsyncClient:
        async with AsyncClient("localhost:1") as client:
            for call in (client.generate(**request), client.models(timeout_seconds=seconds)):
                with pytest.raises(ValueError, match=problem):
                    await call
            with pytest.raises(ValueError, match=problem):
                await anext(client.stream(**request))
        return
    with Client("localhost:1") as client:
        for ask in (client.generate, lambda **request: next(client.stream(**request))):
            with pytest.raises(ValueError, match=problem):
                ask(**request)
        with pytest.raises(ValueError, match=problem):
            client.models(timeout_seconds=seconds)


async def generate(client: Client | AsyncClient, **request: Any) -> np.ndarray:
    if isinstance(client, AsyncClient):
        return await client.generate(**request)
    return await asyncio.to_thread(client.generate, **request)


async def done(method: Callable[..., Any], *arguments: Any, **request: Any) -> Any:
    """What a method of either client returns."""
    if inspect.iscoroutinefunction(method):
        return await method(*arguments, **request)
    return await asyncio.to_thread(method, *arguments, **request)


@contextlib.asynccontextmanager
async def opened(
    kind: type[Client] | type[AsyncClient], *servers: Any, **settings: Any
) -> AsyncIterator[Any]:
    """A client of the servers at these addresses."""
    client = kind(f"ipv4:{','.join(server.address for server in servers)}", **settings)
    try:
        yield client
    finally:
        await client.close() if isinstance(client, AsyncClient) else client.close()


async def handled(server: Any, code: str = "OK") -> float:
    """Calls of GenerateImages."""
    return await metric(
        server, "grpc_server_handled_total", grpc_method="GenerateImages", grpc_code=code
    )


class TestAsyncClient:
    async def test_it_gives_what_the_other_gives(self, repository, running_server):
        async with running_server(repository) as server, AsyncClient(server.address) as client:
            pixels = await client.generate(seeds=SEEDS)
            images = await client.generate_images(seeds=SEEDS)
            files = await client.generate_files("webp", seeds=SEEDS)
            chunks = [chunk async for chunk in client.stream(seeds=SEEDS)]
            (model,) = await client.models()
        expected = expected_pixels(SEEDS)
        assert (pixels == expected).all()
        assert (np.stack(images) == expected).all()
        assert (np.stack([Image.open(io.BytesIO(file)) for file in files]) == expected).all()
        assert (np.concatenate(chunks) == expected).all()
        assert (model.name, model.version) == ("tiny", "1")

    async def test_many_calls_at_the_same_time(self, repository, running_server):
        async with running_server(repository) as server, AsyncClient(server.address) as client:
            answers = await asyncio.gather(*(client.generate(seeds=[seed]) for seed in range(64)))
        assert (np.concatenate(answers) == expected_pixels(range(64))).all()

    async def test_failures_are_told_with_code_and_reason(self, repository, running_server):
        async with running_server(repository) as server, AsyncClient(server.address) as client:
            with pytest.raises(CallError, match="INVALID_ARGUMENT: truncation: expected"):
                await client.generate(seeds=[1], truncation=2)
            with pytest.raises(CallError, match="NOT_FOUND: model 'other': expected one of tiny"):
                await client.generate(seeds=[1], model="other")
            with pytest.raises(CallError, match="INVALID_ARGUMENT: truncation: expected"):
                _ = [chunk async for chunk in client.stream(seeds=[1], truncation=2)]

    async def test_a_call_that_is_cancelled_ends_at_the_server_too(
        self, repository, running_server
    ):
        async with (
            running_server(repository, max_wait_seconds=60) as server,
            AsyncClient(server.address) as client,
        ):
            call = asyncio.create_task(client.generate(seeds=[1]))
            pending = server.metrics.pending_images
            await eventually(lambda: pending._value.get() == 1)
            call.cancel()
            await server.interceptor.under_way.wait_until_idle()
            assert await handled(server, "CANCELLED") == 1, "once, so it is not tried again"
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_reply_names_its_model_and_version(repository, running_server):
    write_artifact(repository, version=7, offset=9)
    async with running_server(repository) as server:
        reply = await ask(server, lambda client: client.generate_reply(seeds=[1]))
    assert (reply.model.name, reply.model.version) == ("tiny", "7")
    assert reply.pixels == expected_pixels([1], offset=9).tobytes()


@both_kinds
async def test_a_server_that_is_too_busy_says_when_to_come_back(kind, repository, running_server):
    async with running_server(repository) as server, opened(kind, server) as client:
        server.admission._rate_limiter = RateLimiter(1, 1, clock=ClockFromTheSecondLook())
        await generate(client, seeds=[1])
        assert (await generate(client, seeds=[2]) == expected_pixels([2])).all()
        refused = await handled(server, "RESOURCE_EXHAUSTED")
        assert refused == 1, "gRPC's own pauses, of 0.2 and 0.6 s, would be too short"


class ClockFromTheSecondLook:
    """Runs from the second time that it is looked at, however long that took to come."""

    def __init__(self) -> None:
        self._looks = 0
        self._began = 0.0

    def __call__(self) -> float:
        self._looks += 1
        if self._looks <= 2:
            self._began = time.monotonic()
        return time.monotonic() - self._began


@both_kinds
async def test_without_retries_a_server_that_is_too_busy_is_not_asked_again(
    kind, repository, running_server
):
    limit = {"rate_limit_images_per_second": 0.001, "rate_limit_burst_images": 1}
    async with (
        running_server(repository, **limit) as server,
        opened(kind, server, retries=False) as client,
    ):
        await generate(client, seeds=[1])
        with pytest.raises(CallError, match="RESOURCE_EXHAUSTED"):
            await generate(client, seeds=[2])
        assert await handled(server, "RESOURCE_EXHAUSTED") == 1


@both_kinds
@pytest.mark.parametrize("streams", [False, True], ids=["unary", "stream"])
async def test_a_request_that_is_too_large_is_refused_once(
    kind, streams, repository, running_server
):
    """With gRPC's own status, which names no time to come back; see also `Refusing`."""
    refusing = Refusing(grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with serving(refusing) as server, opened(kind, server) as client:
        with pytest.raises(CallError, match="RESOURCE_EXHAUSTED: of call 0"):
            await (next_of(client.stream(seeds=[1])) if streams else generate(client, seeds=[1]))
    assert refusing.calls == 1
    async with (
        running_server(repository, max_message_bytes=1024) as server,
        opened(kind, server) as client,
        asyncio.timeout(5),
    ):
        with pytest.raises(CallError, match=r"RESOURCE_EXHAUSTED: .*larger than max"):
            await generate(client, latents=np.zeros((100, 4)))


@both_kinds
@pytest.mark.parametrize("streams", [False, True], ids=["unary", "stream"])
async def test_a_server_that_is_busy_for_longer_than_the_call_has_time_is_not_waited_for(
    kind, streams
):
    refusing = Refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="60000")
    async with serving(refusing) as server, opened(kind, server) as client, asyncio.timeout(20):
        with pytest.raises(CallError, match="RESOURCE_EXHAUSTED: of call 0"):
            await (next_of(client.stream(seeds=[1])) if streams else generate(client, seeds=[1]))
    assert refusing.calls == 1


@both_kinds
@pytest.mark.parametrize("pushback", ["-1", "", "soon"])
async def test_a_server_that_wants_no_other_attempt_gets_none(kind, pushback):
    refusing = Refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback=pushback)
    async with serving(refusing) as server, opened(kind, server) as client:
        with pytest.raises(CallError, match="RESOURCE_EXHAUSTED: of call 0"):
            await generate(client, seeds=[1])
    assert refusing.calls == 1


@both_kinds
async def test_a_server_that_is_busy_for_ever_is_given_up_after_five_attempts(kind):
    refusing = Refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="1")
    async with serving(refusing) as server, opened(kind, server) as client:
        with pytest.raises(CallError, match="RESOURCE_EXHAUSTED: of call 4"):
            await generate(client, seeds=[1])
    assert refusing.calls == 5


@both_kinds
async def test_a_client_that_is_closed_waits_for_no_busy_server(kind):
    refusing = Refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="20000")
    async with serving(refusing) as server, asyncio.timeout(10):
        async with opened(kind, server) as client:
            call = asyncio.create_task(generate(client, seeds=[1]))
            await eventually(lambda: refusing.calls == 1)
            await asyncio.sleep(0.1)  # for the client to have heard it
        with pytest.raises(CallError, match="CANCELLED: the client was closed"):
            await call


class TestAClientThatIsClosed:
    """Whichever it is, in whatever it does."""

    CALLS = pytest.mark.parametrize(
        "call",
        [
            pytest.param(lambda client: done(client.generate, seeds=[1]), id="unary"),
            pytest.param(lambda client: next_of(client.stream(seeds=[1])), id="stream"),
        ],
    )

    @both_kinds
    @CALLS
    @pytest.mark.parametrize("hedged", [None, 0.05], ids=["once", "hedged"])
    async def test_ends_calls_under_way_with_an_error_that_says_so(self, kind, call, hedged):
        async with serving(Hanging()) as hanging, asyncio.timeout(20):
            async with opened(kind, hanging, hedge_after_seconds=hedged) as client:
                under_way = asyncio.create_task(call(client))
                await eventually(lambda: hanging.calls > 0)
            with pytest.raises(CallError, match="CANCELLED: the client was closed"):
                await under_way

    @both_kinds
    @CALLS
    async def test_makes_no_further_calls(self, kind, call):
        async with opened(kind, Refusing(grpc.StatusCode.NOT_FOUND)) as client:
            pass
        with pytest.raises(CallError, match="CANCELLED: the client was closed"):
            await call(client)

    @CALLS
    async def test_says_so_also_in_a_task_in_which_a_group_of_tasks_has_failed(self, call):
        async def fail():
            raise ArithmeticError

        async with serving(Hanging()) as hanging, asyncio.timeout(20):
            client = AsyncClient(hanging.address)

            async def fail_and_call():
                with contextlib.suppress(ExceptionGroup):
                    async with asyncio.TaskGroup() as group:
                        group.create_task(fail())
                await call(client)

            under_way = asyncio.create_task(fail_and_call())
            await eventually(lambda: hanging.calls > 0)
            await client.close()
            with pytest.raises(CallError, match="CANCELLED: the client was closed"):
                await under_way
            with pytest.raises(CallError, match="CANCELLED: the client was closed"):
                await fail_and_call()

    async def test_leaves_a_caller_that_was_cancelled_cancelled(self):
        async with serving(Hanging()) as hanging, AsyncClient(hanging.address) as client:
            call = asyncio.create_task(client.generate(seeds=[1]))
            await eventually(lambda: hanging.calls > 0)
            call.cancel()
            await client.close()
            with pytest.raises(asyncio.CancelledError):
                await call


class TestLatentsOfAnotherWidth:
    """The tiny model's are 4 wide, so as many numbers would be rows of its own."""

    WIDTHS = pytest.mark.parametrize("shape", [(2, 8), (8, 1)], ids=["wide", "narrow"])

    @both_kinds
    @WIDTHS
    async def test_are_refused_in_every_way_of_asking(
        self, kind, shape, repository, running_server
    ):
        said = rf"INVALID_ARGUMENT: latents.latent_dim: expected .*4, got {shape[1]}"
        latents = np.zeros(shape)
        async with running_server(repository) as server, opened(kind, server) as client:
            for method in (client.generate, client.generate_images, client.generate_files):
                with pytest.raises(CallError, match=said):
                    await done(method, latents=latents)
            for images_per_call in (1, 100):
                with pytest.raises(CallError, match=said):
                    await next_of(client.stream(images_per_call=images_per_call, latents=latents))

    @both_kinds
    @WIDTHS
    async def test_are_refused_also_where_the_server_cannot_tell(
        self, kind, shape, repository, running_server, monkeypatch
    ):
        parse = service.parse_request

        def parse_as_before(request: Any, *arguments: Any, **limits: Any) -> Any:
            request.latents.ClearField("latent_dim")
            return parse(request, *arguments, **limits)

        monkeypatch.setattr(service, "parse_request", parse_as_before)
        said = f"INVALID_ARGUMENT: latents: expected rows of 4 numbers, .*rows of {shape[1]}"
        latents = np.zeros(shape)
        async with running_server(repository) as server, opened(kind, server) as client:
            for method in (client.generate, client.generate_files):
                with pytest.raises(CallError, match=said):
                    await done(method, latents=latents)
            with pytest.raises(CallError, match=said):
                await all_of(client.stream(latents=latents))


class TestLongStreams:
    @both_kinds
    @pytest.mark.parametrize(
        "request_",
        [
            pytest.param({"seeds": range(5, 55)}, id="range"),
            pytest.param({"seeds": (seed for seed in range(5, 55))}, id="generator"),
            pytest.param({"seeds": np.arange(5, 55, dtype=np.uint64)}, id="array"),
            pytest.param(
                {"latents": draw_latents(np.arange(5, 55, dtype=np.uint64), 4)}, id="latents"
            ),
        ],
    )
    async def test_they_have_all_images_in_order_however_many_a_call_may_have(
        self, kind, request_, repository, running_server
    ):
        async with (
            running_server(repository, max_images_per_request=7) as server,
            opened(kind, server) as client,
        ):
            if not hasattr(request_["seeds" if "seeds" in request_ else "latents"], "__len__"):
                request_ = {"seeds": (seed for seed in range(5, 55))}  # for each client its own
            images = await all_of(client.stream(images_per_call=7, **request_))
            assert (images == expected_pixels(range(5, 55))).all()
            calls = await metric(
                server, "grpc_server_handled_total", grpc_method="StreamImages", grpc_code="OK"
            )
            assert calls == 8

    @both_kinds
    async def test_they_need_no_setting_where_servers_are_as_in_the_manifests(
        self, kind, repository, running_server
    ):
        async with (
            running_server(repository, max_images_per_request=128) as server,
            opened(kind, server) as client,
        ):
            images = await all_of(client.stream(seeds=range(1000)))
        assert (images == expected_pixels(range(1000))).all()

    async def test_each_image_keeps_its_label_and_truncation(self, tmp_path, running_server):
        write_artifact(tmp_path / "models", class_names=("cat", "dog"))
        labels = [seed % 2 for seed in range(20)]
        latents = draw_latents(np.arange(20, dtype=np.uint64), 4) * np.float32(0.5)
        async with (
            running_server(tmp_path / "models", max_images_per_request=7) as server,
            opened(AsyncClient, server) as client,
        ):

            async def ask(labels: list[int]) -> np.ndarray:
                return await all_of(
                    client.stream(
                        images_per_call=7, seeds=range(20), class_labels=labels, truncation=0.5
                    )
                )

            assert (await ask(labels) == reveal_pixels(latents, np.array(labels))).all()
            assert (await ask([1]) == reveal_pixels(latents, np.ones(20, np.int64))).all()
            with pytest.raises(
                ValueError, match=r"class_labels: expected 1 label .* or 20, .*got 8"
            ):
                await ask(labels[:8])

    @both_kinds
    async def test_they_do_not_mix_versions(self, kind, repository, running_server):
        async with (
            running_server(repository) as server,
            opened(kind, server) as client,
        ):
            stream = client.stream(images_per_call=4, seeds=range(12))
            assert (await next_of(stream) == expected_pixels(range(4))).all()
            write_artifact(repository, version=2, offset=9)
            await eventually(lambda: [v.number for v in server.repository.index.versions] == [2])
            said = r"NOT_FOUND: .*version 1: expected 2 \(another version came after 4 images"
            with pytest.raises(CallError, match=said):
                await next_of(stream)

    def test_a_call_has_at_least_one_image(self):
        with (
            Client("localhost:1") as client,
            pytest.raises(ValueError, match="images_per_call: expected at least 1, got 0"),
        ):
            next(client.stream(images_per_call=0, seeds=[1]))


async def all_of(stream: Any) -> np.ndarray:
    chunks = []
    while (chunk := await next_of(stream)) is not None:
        chunks.append(chunk)
    return np.concatenate(chunks)


class TestSeveralServers:
    @both_kinds
    async def test_calls_go_to_all_in_turn_and_leave_those_that_drain(
        self, kind, repository, running_server
    ):
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(running_server(repository))
            second = await stack.enter_async_context(running_server(repository))
            client = await stack.enter_async_context(
                opened(kind, first, second, round_robin=True, retries=False)
            )
            async with asyncio.timeout(30):
                while not (await handled(first) and await handled(second)):
                    await generate(client, seeds=[1])
            draining = asyncio.create_task(first.drain(60))
            async with asyncio.timeout(30):
                while True:
                    before = await handled(first)
                    for _ in range(4):
                        await generate(client, seeds=[1])
                    if await handled(first) == before:
                        break
            first.stop_now.set()
            await draining

    @both_kinds
    async def test_one_that_hangs_gets_no_more_than_its_turns(
        self, kind, repository, running_server
    ):
        async with (
            running_server(repository) as server,
            serving(Hanging()) as hanging,
            opened(kind, hanging, server, round_robin=True, retries=False) as client,
        ):

            async def fails(timeout_seconds: float) -> bool:
                try:
                    await generate(client, seeds=[1], timeout_seconds=timeout_seconds)
                except CallError as error:
                    return error.code is grpc.StatusCode.DEADLINE_EXCEEDED
                return False

            async with asyncio.timeout(30):
                while not (hanging.calls and await handled(server)):
                    await fails(0.2)
            # At the same time, for those that hang take all of it, and the others need not hurry.
            assert sum(await asyncio.gather(*(fails(3) for _ in range(6)))) == 3

    @both_kinds
    async def test_one_that_hangs_is_hedged(self, kind, repository, running_server):
        async with (
            running_server(repository) as server,
            serving(Hanging()) as hanging,
            opened(kind, hanging, server, round_robin=True, hedge_after_seconds=0.05) as client,
        ):
            hedged = False
            async with asyncio.timeout(30):
                while not hedged:
                    before = hanging.calls
                    # Until the other is connected too, both attempts go to the one that hangs.
                    with contextlib.suppress(CallError):
                        pixels = await generate(client, seeds=[5], timeout_seconds=1)
                        assert (pixels == expected_pixels([5])).all()
                        hedged = hanging.calls > before
            await eventually(lambda: hanging.cancelled == hanging.calls)

    @both_kinds
    async def test_the_attempt_that_is_not_needed_any_more_is_cancelled(self, kind):
        async with (
            serving(FirstHangs()) as server,
            opened(kind, server, hedge_after_seconds=0.05) as client,
        ):
            pixels = await generate(client, seeds=[5], timeout_seconds=60)
            assert pixels.tolist() == [[[[1]]]]
            await eventually(lambda: server.cancelled == 1)  # long before its deadline

    @both_kinds
    async def test_a_hedged_call_that_fails_says_so(self, kind, repository, running_server):
        async with (
            running_server(repository) as server,
            opened(kind, server, hedge_after_seconds=20) as client,
        ):
            with pytest.raises(CallError, match="INVALID_ARGUMENT: truncation"):
                await generate(client, seeds=[1], truncation=2)

    @both_kinds
    @pytest.mark.parametrize(
        "answered", [pytest.param(0, id="the first"), pytest.param(1, id="the second")]
    )
    async def test_of_hedged_calls_one_that_fails_leaves_it_to_the_other(self, kind, answered):
        ends = (1 - answered, grpc.StatusCode.NOT_FOUND), (answered, grpc.StatusCode.OK)
        async with (
            serving(Ordered(*ends)) as server,
            opened(kind, server, hedge_after_seconds=0.2) as client,
        ):
            assert (await generate(client, seeds=[1])).tolist() == [[[[answered]]]]

    @both_kinds
    @pytest.mark.parametrize("last", [0, 1])
    async def test_where_both_hedged_calls_fail_the_first_says_why(self, kind, last):
        codes = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND
        ends = (1 - last, codes[1 - last]), (last, codes[last])
        async with (
            serving(Ordered(*ends)) as server,
            opened(kind, server, hedge_after_seconds=0.2) as client,
        ):
            with pytest.raises(CallError, match="PERMISSION_DENIED: of call 0"):
                await generate(client, seeds=[1])

    @both_kinds
    async def test_a_hedged_call_ends_at_its_deadline(self, kind):
        async with serving(Hanging()) as hanging:
            async with opened(kind, hanging, hedge_after_seconds=0.05) as client:
                with pytest.raises(CallError, match=r"within 0\.3 s"):
                    await generate(client, seeds=[1], timeout_seconds=0.3)
            await eventually(lambda: hanging.cancelled == hanging.calls == 2)

    @both_kinds
    async def test_a_stream_whose_server_is_lost_goes_on_at_another_with_the_same_version(
        self, kind, tmp_path, running_server
    ):
        shape = {"height": 64, "width": 64}  # more than fits on the way
        write_artifact(tmp_path / "models", **shape)
        settings: dict[str, Any] = {"chunk_bytes": 4 * 64 * 64 * 3}
        async with contextlib.AsyncExitStack() as lost, contextlib.AsyncExitStack() as stack:
            first = await lost.enter_async_context(running_server(tmp_path / "models", **settings))
            write_artifact(tmp_path / "others", **shape)
            write_artifact(tmp_path / "others", version=2, offset=9, **shape)
            settings |= {"version_policy": "all"}
            other = await stack.enter_async_context(running_server(tmp_path / "others", **settings))
            client = await stack.enter_async_context(opened(kind, first, other))
            stream = client.stream(seeds=range(300))
            chunks = [await next_of(stream)]
            first.stop_now.set()
            await lost.aclose()
            while (chunk := await next_of(stream)) is not None:
                chunks.append(chunk)
        assert (np.concatenate(chunks) == expected_pixels(range(300), **shape)).all()


async def next_of(stream: Any) -> np.ndarray | None:
    if hasattr(stream, "__anext__"):
        return await anext(stream, None)
    return await asyncio.to_thread(next, stream, None)


class Hanging:
    """A server whose calls never end by themselves."""

    address = ""
    calls = cancelled = 0

    async def answer(self, _request: bytes, _context: Any) -> bytes:
        self.calls += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
        raise AssertionError


class Stalling(Hanging):
    """A server that sends one image of a stream, and then nothing."""

    async def answer(self, request: bytes, context: Any) -> bytes:
        image = pb.GenerateImagesResponse(count=1, height=1, width=1, channels=1, pixels=b"1")
        await context.write(image.SerializeToString())
        return await super().answer(request, context)


class Refusing:
    """A server that answers no call."""

    address = ""
    calls = 0

    def __init__(self, code: grpc.StatusCode, pushback: str | None = None) -> None:
        self._code = code
        self._metadata = () if pushback is None else (("grpc-retry-pushback-ms", pushback),)

    async def answer(self, _request: bytes, context: Any) -> bytes:
        call, self.calls = self.calls, self.calls + 1
        await context.abort(self._code, f"of call {call}", self._metadata)
        raise AssertionError


class FirstHangs(Hanging):
    """A server that answers all but its first call."""

    async def answer(self, request: bytes, context: Any) -> bytes:
        if self.calls == 0:
            return await super().answer(request, context)
        shape = {"count": 1, "height": 1, "width": 1, "channels": 1}
        return pb.GenerateImagesResponse(**shape, pixels=b"\1").SerializeToString()


class Ordered:
    """A server whose first two calls end in the order and with the codes that are given."""

    address = ""

    def __init__(self, *ends: tuple[int, grpc.StatusCode]) -> None:
        self._places = {call: (place, code) for place, (call, code) in enumerate(ends)}
        self._turns = [asyncio.Event() for _ in range(len(ends) + 1)]
        self._calls = 0

    async def answer(self, _request: bytes, context: Any) -> bytes:
        call, self._calls = self._calls, self._calls + 1
        place, code = self._places[call]
        if call == 1:
            self._turns[0].set()
        await self._turns[place].wait()
        try:
            if code is not grpc.StatusCode.OK:
                await context.abort(code, f"of call {call}")
        finally:
            self._turns[place + 1].set()
        shape = {"count": 1, "height": 1, "width": 1, "channels": 1}
        return pb.GenerateImagesResponse(**shape, pixels=bytes([call])).SerializeToString()


@contextlib.asynccontextmanager
async def serving(answering: Any) -> AsyncIterator[Any]:
    """Answer GenerateImages, and streams, with its `answer`, and tell it its address."""
    server = grpc.aio.server()
    handlers = {
        "GenerateImages": grpc.unary_unary_rpc_method_handler(answering.answer),
        "StreamImages": grpc.unary_stream_rpc_method_handler(answering.answer),
    }
    service = "ganserve.v1.ImageGenerationService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    answering.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield answering
    finally:
        await server.stop(0)
