"""Model queue, cancellation, state clean-up, lifecycle, memory growth and stress, end to end.

Named after the suites that other servers have for the same.
"""

import asyncio
import contextlib
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from grpc.aio import _server
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from onnx import helper, numpy_helper

from ganserve.memory import return_free_memory
from ganserve.models.loading import load_model
from ganserve.transport.health import LIVENESS
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.ganserve.conftest import code_of, connected, eventually, metric, scrape
from tests.ganserve.tiny import publish, write_artifact

Code = grpc.StatusCode
MEBIBYTE = 2**20


def request(count=1, start=0, **fields):
    return pb.GenerateImagesRequest(
        seed_range=pb.SeedRange(start=start, count=count), format=pb.IMAGE_FORMAT_RAW, **fields
    )


class Gate:
    """Holds back every call of a model until it is opened; counts the rows that came through."""

    def __init__(self, monkeypatch):
        self.calls = self.rows = 0
        self.error = None
        self._entered, self._open = threading.Event(), threading.Semaphore(0)
        run_batch = load_model.__globals__["Model"].run_batch

        def held(model, rows, *others):
            if threading.current_thread().name.startswith("tiny"):  # a worker; not the warm-up
                self.calls += 1
                self._entered.set()
                assert self._open.acquire(timeout=60)
                self.rows += len(rows)
                if self.error is not None:
                    raise self.error
            return run_batch(model, rows, *others)

        monkeypatch.setattr("ganserve.models.model.Model.run_batch", held)

    async def entered(self):
        assert await asyncio.to_thread(self._entered.wait, 20)

    def open(self, calls=10_000):
        self._open.release(calls)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def is_clean(server):
    """Whether nothing of any call is left."""
    return (
        server.interceptor.under_way.in_flight == 0
        and not server.interceptor.under_way.exempt_streams
        and not len(server.unread)
        and server.metrics.pending_images._value.get() == 0
        and all(version.calls == 0 for version in server.repository.index.versions)
        and not server.interceptor._deadlines._ends
        and not server.interceptor._longest_deadlines._ends
    )


async def check_clean(server):
    await eventually(lambda: is_clean(server))
    started, handled = [], []
    async with asyncio.timeout(20):
        while not started or sum(started) != sum(handled):
            samples = await scrape(server)
            started = [v for (name, _), v in samples.items() if name == "grpc_server_started_total"]
            handled = [v for (name, _), v in samples.items() if name == "grpc_server_handled_total"]


class TestModelQueue:
    async def test_a_full_queue_refuses_and_takes_again_once_there_is_room(
        self, repository, running_server, gate
    ):
        settings = {"queue_size": 8, "max_images_per_request": 8, "instances": 1}
        async with (
            running_server(repository, max_batch_size=4, **settings) as server,
            connected(server) as stub,
        ):
            first = asyncio.ensure_future(code_of(stub.GenerateImages(request(4))))
            await gate.entered()
            waiting = asyncio.ensure_future(code_of(stub.GenerateImages(request(8))))
            await eventually(lambda: server.metrics.pending_images._value.get() == 8)
            assert await code_of(stub.GenerateImages(request(1))) is Code.RESOURCE_EXHAUSTED
            assert await code_of(stub.StreamImages(request(1)).read()) is Code.RESOURCE_EXHAUSTED
            gate.open()
            assert await first is await waiting is Code.OK
            assert await code_of(stub.GenerateImages(request(8))) is Code.OK
            await check_clean(server)

    async def test_a_stream_that_was_admitted_is_never_refused(
        self, repository, running_server, gate
    ):
        settings = {"queue_size": 8, "max_images_per_request": 8, "instances": 1}
        settings |= {"max_batch_size": 2, "chunk_bytes": 4 * 48}  # two batches a message
        async with running_server(repository, **settings) as server, connected(server) as stub:
            stream = stub.StreamImages(request(8))
            first = asyncio.ensure_future(stream.read())
            await gate.entered()
            gate.open(1)
            await eventually(lambda: gate.calls == 2)
            waiting = asyncio.ensure_future(code_of(stub.GenerateImages(request(8))))
            await eventually(lambda: server.metrics.pending_images._value.get() == 8)
            gate.open(1)
            await eventually(lambda: gate.calls == 3)
            assert (await first).count == 4  # so the next message is asked for, without room
            assert server.metrics.pending_images._value.get() == 6
            gate.open()
            assert (await stream.read()).count == 4
            assert await stream.code() is await waiting is Code.OK
            await check_clean(server)

    async def test_each_model_has_a_queue_of_its_own(self, repository, running_server, gate):
        write_artifact(repository, "other")
        settings = {"queue_size": 4, "max_images_per_request": 4, "instances": 1}
        async with (
            running_server(repository, max_batch_size=4, **settings) as server,
            connected(server) as stub,
        ):
            held = [
                asyncio.ensure_future(code_of(stub.GenerateImages(request(4, model_name="tiny"))))
            ]
            await gate.entered()
            held.append(
                asyncio.ensure_future(code_of(stub.GenerateImages(request(4, model_name="tiny"))))
            )
            await eventually(lambda: server.metrics.pending_images._value.get() == 4)
            refused = stub.GenerateImages(request(1, model_name="tiny"))
            assert await code_of(refused) is Code.RESOURCE_EXHAUSTED
            assert await code_of(stub.GenerateImages(request(4, model_name="other"))) is Code.OK
            gate.open()
            assert await asyncio.gather(*held) == [Code.OK, Code.OK]

    async def test_a_request_that_waits_too_long_never_reaches_the_model(
        self, repository, running_server, gate
    ):
        async with (
            running_server(repository, instances=1) as server,
            connected(server) as stub,
        ):
            first = asyncio.ensure_future(code_of(stub.GenerateImages(request(2))))
            await gate.entered()
            late = stub.GenerateImages(request(5), timeout=3)
            await eventually(lambda: server.metrics.pending_images._value.get() == 5)
            assert await code_of(late) is Code.DEADLINE_EXCEEDED
            await eventually(lambda: server.metrics.pending_images._value.get() == 0)
            gate.open()
            assert await first is Code.OK
            assert gate.rows == 2
            abandoned = await metric(server, "ganserve_abandoned_images_total", reason="deadline")
            assert abandoned == 5


class TestCancellation:
    async def test_what_was_cancelled_while_it_waited_never_reaches_the_model(
        self, repository, running_server, gate
    ):
        async with (
            running_server(repository, instances=1, max_batch_size=4) as server,
            connected(server) as stub,
        ):
            first = asyncio.ensure_future(code_of(stub.GenerateImages(request(2))))
            await gate.entered()
            leavers = [stub.GenerateImages(request(3)) for _ in range(4)]
            stayer = asyncio.ensure_future(code_of(stub.GenerateImages(request(1))))
            await eventually(lambda: server.metrics.pending_images._value.get() == 13)
            for leaver in leavers:
                leaver.cancel()
            await eventually(lambda: server.metrics.pending_images._value.get() == 1)
            gate.open()
            assert await first is await stayer is Code.OK
            assert gate.rows == 3
            await check_clean(server)

    async def test_a_client_that_vanishes_is_cancelled_with_all_its_calls(
        self, repository, running_server, gate
    ):
        async with running_server(repository, instances=1) as server:
            async with connected(server) as stub:
                calls = [stub.GenerateImages(request(2)) for _ in range(10)]
                await gate.entered()
                await eventually(lambda: server.interceptor.under_way.in_flight == 10)
            # Its connection is closed.
            await eventually(lambda: server.interceptor.under_way.in_flight == 0)
            gate.open()
            assert {await code_of(call) for call in calls} == {Code.CANCELLED}
            await check_clean(server)


class TestStateCleanUp:
    """After the end of a call, however it came, nothing of the call is left."""

    async def test_after_success(self, repository, running_server):
        async with running_server(repository) as server, connected(server) as stub:
            assert await code_of(stub.GenerateImages(request(20))) is Code.OK
            assert sum([reply.count async for reply in stub.StreamImages(request(20))]) == 20
            await check_clean(server)

    @pytest.mark.parametrize("kind", ["GenerateImages", "StreamImages"])
    @pytest.mark.parametrize("end", ["cancel", "deadline", "error", "imposed deadline"])
    async def test_after(self, end, kind, repository, running_server, gate, caplog):
        caplog.set_level(logging.CRITICAL, "ganserve")  # the error is ours and logged in full
        settings = {"deadline_seconds": 0.2} if end == "imposed deadline" else {}
        async with (
            running_server(repository, instances=1, **settings) as server,
            connected(server) as stub,
        ):
            timeout = 0.2 if end == "deadline" else None
            call = getattr(stub, kind)(request(20), timeout=timeout)
            answer = asyncio.ensure_future(
                code_of(call if kind == "GenerateImages" else call.read())
            )
            await gate.entered()
            if end == "cancel":
                call.cancel()
            elif end == "error":
                gate.error = RuntimeError("a fault in the model")
                gate.open()
            expected = {"cancel": Code.CANCELLED, "error": Code.INTERNAL}
            assert await answer is expected.get(end, Code.DEADLINE_EXCEEDED)
            gate.error = None
            gate.open()
            await check_clean(server)
            assert await code_of(stub.GenerateImages(request(3))) is Code.OK
            await check_clean(server)

    async def test_after_a_watch(self, repository, running_server):
        async with running_server(repository) as server:
            async with grpc.aio.insecure_channel(server.address) as channel:
                watch = health_pb2_grpc.HealthStub(channel).Watch(HealthCheckRequest())
                await watch.read()
                assert server.interceptor.under_way.exempt_streams.total() == 1
            await check_clean(server)

    async def test_after_shutdown(self, repository, running_server, gate):
        async with contextlib.AsyncExitStack() as life:
            server = await life.enter_async_context(running_server(repository, instances=1))
            async with connected(server) as stub:
                calls = [
                    asyncio.ensure_future(code_of(stub.GenerateImages(request(4))))
                    for _ in range(5)
                ]
                await gate.entered()
                await eventually(lambda: server.interceptor.under_way.in_flight == 5)
                closing = asyncio.ensure_future(life.aclose())
                await eventually(lambda: server.interceptor.under_way._refusing)
                gate.open()
                assert await asyncio.gather(*calls) == [Code.OK] * 5
                await closing
        assert is_clean(server)
        assert server.repository.index.versions == []
        assert not [t for t in threading.enumerate() if t.name.startswith("tiny-")]


class TestLifecycle:
    async def test_a_failed_reload_under_load_fails_no_call(self, repository, running_server):
        async with running_server(repository) as server, connected(server) as stub:
            failures = server.metrics.model_loads.labels("tiny", "failure")
            versions = set()

            async def ask():
                while failures._value.get() < 3:
                    reply = await stub.GenerateImages(request(5))
                    versions.add(reply.model.version)

            async def spoil():
                for number, content in ((2, b"rubbish"), (3, b""), (4, b"\x08\x0a")):
                    publish(repository, "tiny", number, content)
                    await eventually(lambda wanted=number - 1: failures._value.get() == wanted)

            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                for _ in range(4):
                    tasks.create_task(ask())
                tasks.create_task(spoil())
            assert versions == {"1"}
            assert await metric(server, "ganserve_model_ready", model="tiny") == 1

    async def test_a_model_removed_under_load_answers_what_it_accepted(
        self, repository, running_server, gate
    ):
        write_artifact(repository, "other")
        async with running_server(repository, instances=1) as server, connected(server) as stub:
            held = [
                asyncio.ensure_future(code_of(stub.GenerateImages(request(3, model_name="tiny"))))
                for _ in range(4)
            ]
            await gate.entered()
            await eventually(lambda: server.interceptor.under_way.in_flight == 4)
            (repository / "tiny").rename(repository / ".tiny")
            await eventually(lambda: not server.repository.index.is_serving("tiny"))
            gone = stub.GenerateImages(request(1, model_name="tiny"))
            assert await code_of(gone) is Code.NOT_FOUND
            gate.open()
            assert set(await asyncio.gather(*held)) == {Code.OK}
            await eventually(
                lambda: {version.name for version in server.repository.index.versions} == {"other"}
            )
            assert not [labels for _, labels in await scrape(server) if ("model", "tiny") in labels]

    async def test_while_the_first_model_loads_the_server_is_alive_and_not_ready(
        self, repository, running_server, slow_loading
    ):
        async def status(stub, service):
            reply = await stub.Check(HealthCheckRequest(service=service), timeout=10)
            return HealthCheckResponse.ServingStatus.Name(reply.status)

        async with contextlib.AsyncExitStack() as life:
            server = await life.enter_async_context(running_server(repository, until_ready=False))
            channel = await life.enter_async_context(grpc.aio.insecure_channel(server.address))
            stub = health_pb2_grpc.HealthStub(channel)
            await slow_loading.has_begun()
            assert await status(stub, LIVENESS) == "SERVING"
            assert await status(stub, "") == "NOT_SERVING"
            slow_loading.end()
            await server.wait_until_ready()
            assert await status(stub, "") == await status(stub, "tiny") == "SERVING"

    async def test_shutting_down_while_a_version_loads_answers_what_was_accepted(
        self, repository, running_server, gate, slow_loading
    ):
        slow_loading.version = "2"
        async with contextlib.AsyncExitStack() as life:
            server = await life.enter_async_context(running_server(repository, instances=1))
            async with connected(server) as stub:
                call = asyncio.ensure_future(code_of(stub.GenerateImages(request(4))))
                await gate.entered()
                write_artifact(repository, version=2)
                await slow_loading.has_begun()
                closing = asyncio.ensure_future(life.aclose())
                await eventually(lambda: server.interceptor.under_way._refusing)
                gate.open()
                assert await call is Code.OK
                await closing  # does not wait for the load

    @pytest.mark.parametrize("asked", [False, True], ids=["polling", "SIGHUP"])
    async def test_while_a_version_loads_for_long_other_models_are_taken_back(
        self, asked, repository, running_server, slow_loading
    ):
        slow_loading.version = "2"
        bad = write_artifact(repository, "other")
        settings = {"poll_seconds": 0} if asked else {}
        async with running_server(repository, **settings) as server, connected(server) as stub:
            assert await code_of(stub.GenerateImages(request(model_name="other"))) is Code.OK
            write_artifact(repository, version=2)
            server.refresh_now()
            await slow_loading.has_begun()
            bad.rename(bad.with_name("withdrawn.onnx"))
            server.refresh_now()
            await eventually(lambda: server.repository.index.names == ["tiny"])
            assert await code_of(stub.GenerateImages(request(model_name="other"))) is Code.NOT_FOUND
            assert await code_of(stub.GenerateImages(request(model_name="tiny"))) is Code.OK
            assert slow_loading.is_held
            slow_loading.end()
            await eventually(lambda: server.repository.index.describe("tiny", None).number == 2)

    async def test_shutting_down_with_live_streams_ends_them_whole(
        self, repository, running_server
    ):
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(running_server(repository, chunk_bytes=1))
            async with connected(server) as stub:
                calls = [stub.StreamImages(request(100)) for _ in range(10)]
                replies = [aiter(call) for call in calls]
                firsts = [await anext(reply) for reply in replies]
                closing = asyncio.ensure_future(stack.aclose())
                rest = [[one async for one in reply] for reply in replies]
                await closing
        assert all(reply.count == 1 for reply in firsts)
        assert [len(replies) for replies in rest] == [99] * 10

    async def test_shutting_down_sends_other_calls_of_a_connection_elsewhere(
        self, tmp_path, running_server
    ):
        write_artifact(tmp_path, height=64, width=64)
        async with contextlib.AsyncExitStack() as leaving, running_server(tmp_path) as other:
            server = await leaving.enter_async_context(running_server(tmp_path))
            both = f"ipv4:{server.address},{other.address}"
            async with grpc.aio.insecure_channel(both) as channel:
                stub = ImageGenerationServiceStub(channel)
                stream = stub.StreamImages(request(512))
                await stream.read()  # and no more, so that the connection stays
                stopping = asyncio.ensure_future(leaving.aclose())
                codes = []
                for _ in range(20):
                    await asyncio.sleep(0.05)
                    codes.append(await code_of(stub.GenerateImages(request())))
                assert not stopping.done(), "the stream was not waited for"
                # What was on the way in that moment, at most.
                assert codes[2:] == [grpc.StatusCode.OK] * 18
                assert await metric(other, "grpc_server_handled_total", grpc_code="OK") >= 18
                while (await stream.read()) is not grpc.aio.EOF:
                    pass
                await stopping

    async def test_where_grpc_allows_one_stop_alone_that_one_answers_what_was_accepted(
        self, repository, running_server, gate, monkeypatch
    ):
        """A version of gRPC whose calls cannot be ended while it stops; see `accepting`."""
        monkeypatch.setattr("ganserve.transport.accepting.core_server", lambda _: None)
        graces, stop = [], _server.Server.stop

        async def note(server, grace):
            graces.append(grace)
            await stop(server, grace)

        monkeypatch.setattr(_server.Server, "stop", note)
        async with contextlib.AsyncExitStack() as stack:
            async with running_server(repository, instances=1) as server:
                stub = await stack.enter_async_context(connected(server))
                accepted = asyncio.ensure_future(code_of(stub.GenerateImages(request(2))))
                await gate.entered()
                asyncio.get_running_loop().call_later(0.2, gate.open)
            assert await accepted is Code.OK
        assert graces == [10.0]

    async def test_looking_on_demand_alone(self, repository, running_server):
        async with running_server(repository, poll_seconds=0) as server:
            write_artifact(repository, version=2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await eventually(lambda: len(server.repository.index.versions) > 1)
            server.refresh_now()
            await eventually(lambda: server.repository.index.versions[0].number == 2)

    async def test_a_demand_in_the_moment_of_the_end_does_not_hold_it_up(
        self, repository, running_server
    ):
        async with running_server(repository, poll_seconds=60) as server:
            await eventually(lambda: server._refresh_models_now._waiters)
            server.refresh_now()
            await asyncio.wait_for(server.stop_watching(), 20)

    def test_a_hangup_signal_is_the_demand(self, repository):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ganserve", "serve", "--models", str(repository)),
                *("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"),
                *("--device", "cpu", "--poll-seconds", "0", "--drain-seconds", "0"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                for line in process.stderr:
                    if "serving on" in line:
                        write_artifact(repository, version=2)
                        process.send_signal(signal.SIGHUP)
                    if "version 2 serves" in line:
                        break
                process.terminate()
                assert process.wait(60) == 0
            finally:
                process.kill()


def resident_bytes(process="self"):
    """What a process holds in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux_only
class TestMemoryGrowth:
    CALLS = 1500

    async def grow(self, running_server, repository, leak):
        """Growth over some calls of all kinds, after as many to warm up."""
        noise = random.Random(0)
        async with running_server(repository) as server, connected(server) as stub:

            async def ask():
                kind = noise.random()
                if kind < 0.05:
                    call = stub.GenerateImages(request(8))
                    asyncio.get_running_loop().call_soon(call.cancel)
                elif kind < 0.1:
                    call = stub.GenerateImages(request(8), timeout=0.0005)
                elif kind < 0.11:
                    call = stub.GenerateImages(request(0))
                else:
                    call = stub.GenerateImages(request(8, start=noise.randrange(2**63)))
                await code_of(call)
                leak(server)

            async def ask_many():
                for _ in range(self.CALLS // 50):
                    await asyncio.gather(*(ask() for _ in range(50)))
                await check_clean(server)
                gc.collect()
                return_free_memory()
                return resident_bytes()

            await ask_many()
            before = await ask_many()
            return await ask_many() - before

    async def test_calls_of_all_kinds_leave_nothing_behind(self, repository, running_server):
        growth = await self.grow(running_server, repository, lambda _: None)
        assert growth < 4 * MEBIBYTE

    async def test_a_leak_of_8_kilobytes_a_call_would_be_seen(self, repository, running_server):
        kept = []
        growth = await self.grow(
            running_server, repository, lambda _: kept.append(bytearray(b"x" * 8192))
        )
        assert growth > 8 * MEBIBYTE


def with_ballast(path, mebibytes):
    """The same model with so many more weights, which the output depends on by nothing."""
    model = onnx.load(path)
    rows = mebibytes * MEBIBYTE // 4
    constants = {
        "ballast": np.ones(rows, np.float32),
        "nothing": np.array(0, np.float32),
        "last": np.array(rows - 1, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    picked = model.graph.node[0]
    assert picked.input[0] == "latents"
    picked.input[0] = "ballasted"
    nodes = [
        helper.make_node("Clip", ["latents", "nothing", "last"], ["positions"]),
        helper.make_node("Cast", ["positions"], ["indices"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["ballast", "indices"], ["stones"]),
        helper.make_node("Mul", ["stones", "nothing"], ["zeros"]),
        helper.make_node("Add", ["latents", "zeros"], ["ballasted"]),
    ]
    sound = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(sound)
    return model.SerializeToString()


PROGRAM = """
import sys, ganserve.repository.repository as repository
from ganserve.cli import run
kept = []
if sys.argv[1] == "hold on":
    let_go = repository._let_go
    repository._let_go = lambda version: (kept.append(version.served), let_go(version))
sys.exit(run(["serve", *sys.argv[2:]]))
"""


@linux_only
class TestMemoryOfModels:
    SIZE = 24  # small enough for the C library to keep it, where nobody asks for it
    MOST = 0.5 * SIZE * MEBIBYTE  # and four versions come and go

    def remains(self, repository, kind):
        """What remains in a server's memory of a large version that came and went."""
        content = with_ballast(repository / "tiny" / "1" / "model.onnx", self.SIZE)
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, kind, "--models", str(repository)),
                *("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"),
                *("--device", "cpu", "--poll-seconds", "0.05", "--drain-seconds", "0"),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

        def wait_for(text):
            for line in process.stderr:
                if text in line:
                    return
            raise AssertionError(f"the server ended before it said {text!r}")

        def come_and_go(number):
            path = publish(repository, "tiny", number, content)
            wait_for(f"version {number} serves")
            wait_for("is retired")
            loaded = resident_bytes(process.pid)
            path.unlink()
            path.parent.rmdir()
            wait_for(f"version {number} is retired")
            return loaded

        def settled(enough):
            """What is held once it is little enough, or after a while in which it should be."""
            end = time.monotonic() + 5
            while (held := resident_bytes(process.pid)) > enough and time.monotonic() < end:
                time.sleep(0.01)
            return held

        with process:
            try:
                wait_for("serving on")
                before = resident_bytes(process.pid)
                for number in range(2, 6):
                    loaded = come_and_go(number)
                    assert loaded - before > self.SIZE * MEBIBYTE * 0.9
                return settled(before + self.MOST) - before
            finally:
                process.kill()

    def test_versions_that_went_have_given_their_memory_back(self, repository):
        assert self.remains(repository, "let go") < self.MOST

    def test_versions_that_someone_holds_on_to_would_be_seen(self, repository):
        assert self.remains(repository, "hold on") > 4 * self.SIZE * MEBIBYTE * 0.9


class TestStress:
    """A short one; all at once, and the books balance at the end."""

    async def test_everything_at_once(self, repository, running_server):
        noise = random.Random(5)
        settings = {"queue_size": 256, "max_images_per_request": 256, "chunk_bytes": 480}
        received, codes = 0, set()
        async with running_server(repository, **settings) as server:
            done = asyncio.Event()

            async def ask(stub):
                nonlocal received
                while not done.is_set():
                    kind, count = noise.random(), noise.randint(1, 60)
                    if kind < 0.1:
                        call = stub.GenerateImages(request(count))
                        asyncio.get_running_loop().call_later(noise.random() / 50, call.cancel)
                        codes.add(await code_of(call))
                    elif kind < 0.2:
                        call = stub.GenerateImages(request(count), timeout=noise.random() / 50)
                        codes.add(await code_of(call))
                    elif kind < 0.25:
                        codes.add(await code_of(stub.GenerateImages(request(0))))
                    elif kind < 0.4:
                        try:
                            async for reply in stub.StreamImages(request(count)):
                                received += reply.count
                        except grpc.aio.AioRpcError as error:
                            codes.add(error.code())
                    else:
                        try:
                            received += (await stub.GenerateImages(request(count))).count
                        except grpc.aio.AioRpcError as error:
                            codes.add(error.code())

            index = server.repository.index

            async def swap():
                for number in range(2, 10):
                    if number % 3 == 0:
                        publish(repository, "tiny", number, b"rubbish")
                        failed = server.metrics.model_loads.labels("tiny", "failure")
                        wanted = number // 3
                        await eventually(lambda f=failed, w=wanted: f._value.get() >= w)
                    else:
                        write_artifact(repository, version=number, offset=number)
                        await eventually(lambda n=number: index.describe("tiny", None).number == n)
                done.set()

            async with contextlib.AsyncExitStack() as stack, asyncio.timeout(120):
                stubs = [await stack.enter_async_context(connected(server)) for _ in range(3)]
                await asyncio.gather(swap(), *(ask(stub) for stub in stubs for _ in range(8)))
            await check_clean(server)
            allowed = {Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.INVALID_ARGUMENT, Code.OK}
            assert codes <= allowed | {Code.RESOURCE_EXHAUSTED}
            assert await metric(server, "ganserve_images_total") >= received > 0
            assert await metric(server, "grpc_server_handled_total", grpc_code="INTERNAL") == 0
