import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ganserve.assembly import fixed_batch_sizes
from ganserve.client import Client
from ganserve.config import ServerConfig
from ganserve.errors import StartupError
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.ganserve.certificates import Authority
from tests.ganserve.conftest import code_of, connected, eventually, fetch, metric, scrape
from tests.ganserve.tiny import publish, write_artifact

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
OK = grpc.StatusCode.OK
LINE = re.compile(r"serving on (\S+), metrics on \S+:(\d+)")


def request(*seeds):
    return pb.GenerateImagesRequest(seeds=pb.Seeds(values=seeds), format=pb.IMAGE_FORMAT_RAW)


@contextlib.asynccontextmanager
async def health_of(server):
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def check(health, service=""):
    return (await health.Check(HealthCheckRequest(service=service))).status


class TestInProcess:
    async def test_a_ready_server_says_so_everywhere(self, repository, running_server):
        async with running_server(repository) as server, health_of(server) as health:
            assert await check(health) == await check(health, "tiny") == SERVING
            assert await asyncio.to_thread(fetch, server, "/healthz") == "ok\n"
            assert await asyncio.to_thread(fetch, server, "/readyz") == "ready\n"
            assert await metric(server, "ganserve_model_ready", model="tiny") == 1
            (info,) = [dict(key[1]) for key in await scrape(server) if "model_info" in key[0]]
            assert (info["model"], info["version"]) == ("tiny", "1")
            assert info["provider"] == "CPUExecutionProvider"

    async def test_series_of_calls_begin_at_0_so_that_the_first_one_is_an_increase(
        self, repository, running_server
    ):
        async with running_server(repository) as server:
            samples = await scrape(server)
        for service, method in (
            ("ganserve.v1.ImageGenerationService", "GenerateImages"),
            ("inference.GRPCInferenceService", "ModelInfer"),
        ):
            of = {("grpc_service", service), ("grpc_method", method), ("grpc_type", "unary")}
            assert samples["grpc_server_started_total", frozenset(of)] == 0
            bucket = frozenset(of | {("le", "0.01")})
            assert samples["grpc_server_handling_seconds_bucket", bucket] == 0
            for code in ("OK", "INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED"):
                assert (
                    samples["grpc_server_handled_total", frozenset(of | {("grpc_code", code)})] == 0
                )

    async def test_an_empty_repository_waits_and_begins_to_serve_by_itself(
        self, tmp_path, running_server
    ):
        async with (
            running_server(tmp_path, until_ready=False) as server,
            health_of(server) as health,
            connected(server) as stub,
        ):
            watch = health.Watch(HealthCheckRequest())
            assert (await watch.read()).status == NOT_SERVING
            unavailable = grpc.StatusCode.UNAVAILABLE
            assert await code_of(stub.GenerateImages(request(1))) is unavailable
            assert server.why_not_ready() is not None
            write_artifact(tmp_path)
            assert (await asyncio.wait_for(watch.read(), 20)).status == SERVING
            assert await check(health, "tiny") == SERVING
            assert await code_of(stub.GenerateImages(request(1))) is OK
            watch.cancel()

    async def test_an_empty_repository_is_told_with_where_models_must_lie(
        self, tmp_path, running_server, caplog
    ):
        (tmp_path / "model.onnx").touch()
        async with running_server(tmp_path, until_ready=False):
            await eventually(lambda: "not serving" in caplog.text)
        layout = "NAME/VERSION/model.onnx, VERSION a positive integer"
        assert (
            f"not serving: there is no model in {tmp_path} (expected {layout}); looking again"
            in caplog.text
        )
        assert f"passed over, for models lie at {layout}: model.onnx" in caplog.text

    async def test_versions_that_are_not_there_are_named(self, repository, running_server, caplog):
        settings = {"version_policy": "specific", "versions": "tyni:1,tiny:7"}
        async with running_server(repository, until_ready=False, **settings) as server:
            reason = "none of --versions is there (tiny:7, tyni:1)"
            await eventually(lambda: f"not serving: {reason} in {repository}" in caplog.text)
            assert server.why_not_ready() == reason

    async def test_a_model_that_cannot_be_loaded_is_not_serving(self, repository, running_server):
        publish(repository, "broken", 1, b"rubbish")
        async with running_server(repository) as server, health_of(server) as health:
            assert await check(health, "broken") == NOT_SERVING
            assert await check(health, "tiny") == await check(health) == SERVING

    async def test_with_no_loadable_model_the_server_is_not_ready_and_says_why(
        self, tmp_path, running_server
    ):
        write_artifact(tmp_path, golden_shift=50)
        async with running_server(tmp_path, until_ready=False) as server:
            await eventually(lambda: server.why_not_ready() == "no model could be loaded")
            async with connected(server) as stub:
                models = (await stub.ListModels(pb.ListModelsRequest())).models
            assert models[0].state == pb.MODEL_STATE_FAILED
            assert "golden image of seed 0" in models[0].error
            async with health_of(server) as health:
                assert await check(health) == NOT_SERVING

    async def test_every_service_can_be_reflected(self, repository, running_server):
        async with (
            running_server(repository) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            )
            reply = await call.read()
            call.cancel()
        assert {service.name for service in reply.list_services_response.service} == {
            "ganserve.v1.ImageGenerationService",
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }

    async def test_calls_that_come_while_the_first_model_loads_are_answered(
        self, repository, running_server, slow_loading
    ):
        async with (
            running_server(repository, until_ready=False) as server,
            connected(server) as stub,
        ):
            await slow_loading.has_begun()
            stream, image = stub.StreamImages(request(1)), stub.GenerateImages(request(1))
            await stub.ListModels(pb.ListModelsRequest())  # the others have come by now
            slow_loading.end()
            assert (await stream.read()).pixels == (await image).pixels

    async def test_a_server_that_stops_while_it_loads_ends_the_calls_that_wait(
        self, repository, running_server, slow_loading, monkeypatch
    ):
        monkeypatch.setattr("ganserve.repository.model_index._FIRST_SCAN_SECONDS", 60)
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(running_server(repository, until_ready=False))
            async with connected(server) as stub:
                await slow_loading.has_begun()
                waiting = stub.GenerateImages(request(1))
                await stub.ListModels(pb.ListModelsRequest())
                async with asyncio.timeout(20):
                    await stack.aclose()
                assert await code_of(waiting) is grpc.StatusCode.UNAVAILABLE

    async def test_a_call_waits_for_a_first_model_no_longer_than_allowed(
        self, repository, running_server, slow_loading, monkeypatch
    ):
        monkeypatch.setattr("ganserve.repository.model_index._FIRST_SCAN_SECONDS", 0.1)
        async with (
            running_server(repository, until_ready=False) as server,
            connected(server) as stub,
        ):
            await slow_loading.has_begun()
            error = await code_of(stub.GenerateImages(request(1), timeout=20))
            assert error is grpc.StatusCode.UNAVAILABLE
            slow_loading.end()

    async def test_a_server_can_stop_while_it_loads(self, repository, running_server):
        async with running_server(repository, until_ready=False):
            pass

    async def test_draining_is_seen_at_once_but_calls_are_still_answered(
        self, repository, running_server, caplog
    ):
        async with (
            running_server(repository) as server,
            health_of(server) as health,
            connected(server) as stub,
        ):
            watch = health.Watch(HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            draining = asyncio.ensure_future(server.drain(60))
            assert (await watch.read()).status == NOT_SERVING
            assert await check(health, "tiny") == NOT_SERVING
            assert server.why_not_ready() == "draining"
            assert await code_of(stub.GenerateImages(request(1))) is OK
            index = server.repository.index
            for version in (2, 3):  # the repository is looked at, again and again
                write_artifact(repository, version=version)
                await eventually(lambda new=version: index.versions[0].number == new)
            assert "not serving: draining" not in caplog.text
            server.stop_now.set()
            await draining
            unavailable = grpc.StatusCode.UNAVAILABLE
            assert await code_of(stub.GenerateImages(request(1))) is unavailable
            assert await check(health) == NOT_SERVING
            watch.cancel()

    async def test_streams_under_way_are_answered_to_the_end(self, tmp_path, running_server):
        write_artifact(tmp_path, height=64, width=64)
        replies = []
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(running_server(tmp_path, chunk_bytes=1))
            async with connected(server) as stub:
                call = stub.StreamImages(request(*range(200)))
                replies.append(await call.read())
                closing = asyncio.ensure_future(stack.aclose())
                while (reply := await call.read()) is not grpc.aio.EOF:
                    replies.append(reply)
                await closing
        assert [reply.first_index for reply in replies] == list(range(200))

    async def test_a_burst_of_thousands_of_calls_is_answered(self, repository, running_server):
        calls = 3500  # gRPC would let a thousand wait and end others as CANCELLED
        async with (
            running_server(repository, queue_size=calls) as server,
            connected(server) as stub,
        ):
            waiting = [stub.GenerateImages(request(1), timeout=60) for _ in range(calls)]
            codes = await asyncio.gather(*map(code_of, waiting))
            assert Counter(codes) == {OK: calls}
            assert await metric(server, "grpc_server_started_total") == calls

    async def test_a_watcher_does_not_hold_up_the_end(self, repository, running_server):
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(running_server(repository))
            async with health_of(server) as health:
                watch = health.Watch(HealthCheckRequest())
                assert (await watch.read()).status == SERVING
                started = time.monotonic()
                await stack.aclose()
                assert (await watch.read()).status == NOT_SERVING
                assert await watch.read() is grpc.aio.EOF
                assert time.monotonic() - started < 20

    async def test_a_port_in_use_is_one_clear_line(self, repository, running_server):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(StartupError, match=rf"port: .*127.0.0.1:{port}: Address already"):
                async with running_server(repository, port=port):
                    pass
            with pytest.raises(StartupError, match=rf"metrics_port: .*127.0.0.1:{port}"):
                async with running_server(repository, metrics_port=port):
                    pass

    async def test_a_host_that_nobody_knows_is_named_as_such(self, repository, running_server):
        with pytest.raises(StartupError, match=r"^host: no address .*nowhere\.invalid"):
            async with running_server(repository, host="nowhere.invalid"):
                pass

    async def test_two_servers_never_share_a_port(self, repository, running_server):
        async with running_server(repository) as server:
            port = int(server.address.rpartition(":")[2])
            with pytest.raises(StartupError, match="Address already in use"):
                async with running_server(repository, port=port):
                    pass

    async def test_versions_swap_under_load_without_a_failed_call(self, repository, running_server):
        async with running_server(repository) as server, connected(server) as stub:
            versions = []

            async def ask():
                while not versions or versions[-1] != "5":
                    reply = await stub.GenerateImages(request(*range(20)))
                    assert len(set(reply.pixels)) > 1
                    versions.append(reply.model.version)

            async def swap():
                for version in range(1, 6):
                    if version > 1:
                        write_artifact(repository, version=version, offset=version)
                    await eventually(lambda wanted=str(version): wanted in versions)

            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                for _ in range(4):
                    tasks.create_task(ask())
                tasks.create_task(swap())
            assert {"1", "2", "3", "4", "5"} == set(versions)
            assert await metric(server, "grpc_server_handled_total", grpc_code="OK") == len(
                versions
            )


async def test_a_version_whose_threads_cannot_start_leaves_the_one_before(
    repository, running_server, monkeypatch
):
    start = threading.Thread.start

    def start_one_of_a_model(thread):
        if thread.name == "tiny-1":
            raise RuntimeError("can't start new thread")  # as Python says where there are too many
        start(thread)

    async with running_server(repository) as server, connected(server) as stub:
        monkeypatch.setattr(threading.Thread, "start", start_one_of_a_model)
        write_artifact(repository, version=2)
        states = {}
        async with asyncio.timeout(20):
            while states.get("2") != pb.MODEL_STATE_FAILED:
                models = (await stub.ListModels(pb.ListModelsRequest())).models
                states = {model.version: model.state for model in models}
        assert states == {"1": pb.MODEL_STATE_READY, "2": pb.MODEL_STATE_FAILED}
        failed = server.repository.index.describe("tiny", 2)
        assert failed.retry_at < time.monotonic() + 61  # threads may come back
        reply = await stub.GenerateImages(pb.GenerateImagesRequest(seeds=pb.Seeds(values=[7])))
        assert reply.model.version == "1"
        await eventually(lambda: [t.name for t in threading.enumerate()].count("tiny-0") == 1)


async def test_the_first_model_needs_no_new_thread_to_be_loaded_in(
    running_server, monkeypatch, tmp_path
):
    start = threading.Thread.start

    def start_another(thread):
        if thread.name.startswith("models"):
            raise RuntimeError("can't start new thread")  # as Python says where there are too many
        start(thread)

    (tmp_path / "models").mkdir()
    async with running_server(tmp_path / "models", until_ready=False) as server:
        monkeypatch.setattr(threading.Thread, "start", start_another)
        write_artifact(tmp_path / "models")
        await server.wait_until_ready()


async def test_where_no_thread_can_be_started_any_more_the_server_goes_on(
    repository, running_server, monkeypatch, tmp_path, caplog
):
    def refuse(_):
        raise RuntimeError("can't start new thread")  # as Python says where there are too many

    tokens = tmp_path / "tokens"
    tokens.write_text("correct-horse-battery-staple\n")
    settings = {"token_file": tokens, "poll_seconds": 0.05}
    metadata = (("authorization", "Bearer correct-horse-battery-staple"),)
    async with running_server(repository, **settings) as server, connected(server) as stub:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        await eventually(lambda: "no thread to read in" in caplog.text)
        await eventually(lambda: "the files of certificates and tokens: no thread" in caplog.text)
        await asyncio.sleep(0.3)  # several looks
        assert caplog.text.count("the files of certificates and tokens: no thread") == 1
        seeds = pb.GenerateImagesRequest(seeds=pb.Seeds(values=[7]))
        assert (await stub.GenerateImages(seeds, metadata=metadata)).count == 1
        monkeypatch.undo()
        write_artifact(repository, version=2)
        await eventually(lambda: server.repository.index.serving("tiny").keys() == {2})


class Process:
    """`python -m ganserve serve` as people run it."""

    def __init__(self, *flags, launcher=(), program=("-m", "ganserve"), **variables):
        interpreter = (sys.executable, "-W", "error::RuntimeWarning")
        self.process = subprocess.Popen(
            [*launcher, *interpreter, *program, "serve", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {f"GANSERVE_{name}": value for name, value in variables.items()},
        )
        self.log = []

    def wait_until_serving(self):
        for line in self.process.stderr:
            self.log.append(line)
            if found := LINE.search(line):
                return found[1]
        raise AssertionError("".join(self.log))

    def end(self):
        """Wait for the end; the exit status and everything written to stderr."""
        _, rest = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.log) + rest


@pytest.fixture
def start_process():
    processes = []

    def start(*flags, launcher=(), **variables):
        ports = {"HOST": "127.0.0.1", "PORT": "0", "METRICS_PORT": "0", "DEVICE": "cpu"}
        processes.append(Process(*map(str, flags), launcher=launcher, **(ports | variables)))
        return processes[-1]

    yield start
    for started in processes:
        with started.process:
            started.process.kill()


class TestProcess:
    def test_the_runtime_reports_to_nobody_and_nothing_is_written(
        self, repository, start_process, tmp_path, monkeypatch
    ):
        (elsewhere := tmp_path / "elsewhere").mkdir()
        for name in ("HOME", "TMPDIR", "PWD"):
            (elsewhere / name).mkdir()
            monkeypatch.setenv(name, str(elsewhere / name))
        monkeypatch.chdir(elsewhere / "PWD")
        for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        process = start_process("--models", repository, "--drain-seconds", 0)
        with Client(process.wait_until_serving()) as client:
            client.generate_files("png", seeds=[1])
        process.process.terminate()
        status, log = process.end()
        assert status == 0, log
        # Telemetry would keep its id and its database in the home folder.
        assert {*elsewhere.rglob("*")} == {*elsewhere.iterdir()}

    def test_connections_that_come_at_once_and_new_certificates_do_not_end_it(
        self, repository, start_process, tmp_path
    ):
        """gRPC (1.85) asks for certificates at each handshake, and is easily given too many."""
        authority = Authority(tmp_path / "tls")
        certificate, key = authority.issue()
        flags = ("--tls-certificate", certificate, "--tls-key", key, "--poll-seconds", 0.05)
        process = start_process("--models", repository, "--drain-seconds", 0, *flags)
        host, _, port = process.wait_until_serving().rpartition(":")
        context = ssl.create_default_context(cafile=authority.ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13's default; gRPC is not so
        context.set_alpn_protocols(["h2"])

        def shake_hands(_):
            with (
                socket.create_connection((host, int(port)), 20) as plain,
                context.wrap_socket(plain, server_hostname=host) as secured,
            ):
                return secured.getpeercert()["serialNumber"]

        seen = set()
        with ThreadPoolExecutor(8) as pool:
            for _ in range(10):
                seen |= {*pool.map(shake_hands, range(300))}
                authority.issue()
        assert process.process.poll() is None
        assert len(seen) > 5
        process.process.terminate()
        assert process.end()[0] == 0

    @pytest.mark.parametrize("connections", [200, 2**31 - 2], ids=["enough", "more than allowed"])
    def test_its_connections_do_not_use_up_the_file_descriptors(
        self, repository, start_process, connections
    ):
        """Else nothing could connect, not even a probe: many systems begin with 1,024."""
        few = ("sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh")
        flags = ("--models", repository, "--max-connections", connections)
        process = start_process(*flags, launcher=few)
        process.wait_until_serving()
        allowed, hard = resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE)
        short = "file descriptors" in "".join(process.log)
        assert (allowed > connections) != short
        assert allowed > connections or allowed == hard

    def test_a_signal_with_nothing_to_do_ends_it_at_once(self, repository, start_process):
        process = start_process("--models", repository, "--drain-seconds", 0)
        process.wait_until_serving()
        process.process.send_signal(signal.SIGINT)
        status, log = process.end()
        assert status == 0, log
        assert "stopped" in log
        assert "Traceback" not in log

    def test_a_second_signal_cuts_the_draining_short(self, repository, start_process):
        process = start_process("--models", repository, "--drain-seconds", 3600)
        process.wait_until_serving()
        process.process.terminate()
        for line in process.process.stderr:
            if "draining" in line:
                break
        process.process.terminate()
        status, log = process.end()
        assert status == 0, log

    @pytest.mark.parametrize("late", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=str)
    def test_a_signal_that_comes_when_it_has_stopped_changes_nothing(
        self, late, repository, start_process
    ):
        process = start_process("--models", repository, "--drain-seconds", 0)
        process.wait_until_serving()
        process.process.terminate()
        for line in process.process.stderr:
            if "stopped" in line:
                break
        while process.process.poll() is None:
            process.process.send_signal(late)
            time.sleep(0.0005)
        assert process.process.returncode == 0

    def test_a_repository_that_answers_no_more_does_not_hold_up_the_end(
        self, repository, start_process
    ):
        """No file system at hand hangs, as a network's does."""
        code = """
import sys, threading
from ganserve import cli
from ganserve.repository import repository_folder

looks, look = [], repository_folder.scan

def scan(root):
    looks.append(root)
    if len(looks) > 1:
        print("it hangs", file=sys.stderr, flush=True)
        threading.Event().wait()
    return look(root)

repository_folder.scan = scan
cli.main()
"""
        flags = ("--models", repository, "--drain-seconds", 0, "--poll-seconds", 0.05)
        process = start_process(*flags, program=("-c", code))
        process.wait_until_serving()
        for line in process.process.stderr:
            if "it hangs" in line:
                break
        process.process.terminate()
        status, log = process.end()
        assert status == 0, log
        assert "stopped" in log

    def test_nor_does_a_file_of_tokens_that_answers_no_more(
        self, repository, start_process, tmp_path
    ):
        tokens, pipe = tmp_path / "tokens", tmp_path / "pipe"
        tokens.write_text("correct-horse-battery-staple\n")
        os.mkfifo(pipe)
        flags = ("--token-file", tokens, "--drain-seconds", 0, "--poll-seconds", 0.05)
        process = start_process("--models", repository, *flags)
        process.wait_until_serving()
        pipe.replace(tokens)
        with tokens.open("wb"):  # opens once the server reads, which then waits for the end
            process.process.terminate()
            status, log = process.end()
        assert status == 0, log
        assert "stopped" in log

    @pytest.fixture
    def frozen_client(self):
        """Start a client of an address that calls once, keeps its connection and is suspended."""
        code = """
import sys, grpc
from ganserve.v1 import image_generation_pb2 as pb, image_generation_pb2_grpc as rpc
stub = rpc.ImageGenerationServiceStub(grpc.insecure_channel(sys.argv[1]))
request = pb.GenerateImagesRequest(seeds=pb.Seeds(values=[7]))
stub.GenerateImages(request)
print("called", flush=True)
sys.stdin.read()
"""
        clients = []

        def start(address):
            arguments = [sys.executable, "-c", code, address]
            client = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            clients.append(client)
            assert client.stdout.readline() == "called\n"
            client.send_signal(signal.SIGSTOP)
            assert os.waitid(os.P_PID, client.pid, os.WSTOPPED) is not None

        yield start
        for client in clients:
            with client:
                client.kill()

    @pytest.mark.parametrize("hurry", [False, True])
    def test_a_suspended_client_holds_up_the_end_only_so_long(
        self, repository, start_process, frozen_client, hurry
    ):
        process = start_process("--models", repository, "--drain-seconds", 0)
        frozen_client(process.wait_until_serving())
        started = time.monotonic()
        process.process.terminate()
        if hurry:
            time.sleep(1)
            process.process.terminate()
        status, log = process.end()
        took = time.monotonic() - started
        assert status == 0, log
        assert "Traceback" not in log
        assert took < (8 if hurry else 30)  # 10 seconds, and its slow machines
        assert hurry or took > 8, "it did not hold it up"

    async def test_a_signal_under_load_loses_nothing_that_was_accepted(
        self, tmp_path, start_process
    ):
        write_artifact(tmp_path, network="convolutional")
        flags = ("--drain-seconds", 0.3, "--queue-size", 100_000, "--chunk-bytes", 5_000)
        log_flags = ("--log-level", "debug", "--log-format", "json")
        process = start_process("--models", tmp_path, *flags, *log_flags)
        address = await asyncio.to_thread(process.wait_until_serving)
        ended = asyncio.create_task(asyncio.to_thread(process.end))  # a pipe does not hold its log
        outcomes, streams = [], []

        async def ask(stub):
            while not outcomes or outcomes[-1] is OK:
                outcomes.append(await code_of(stub.GenerateImages(request(*range(20)))))

        async def stream(stub):
            call = stub.StreamImages(request(*range(512)))
            streams.append(sum([reply.count async for reply in call]))

        async with grpc.aio.insecure_channel(address) as channel:
            stub = ImageGenerationServiceStub(channel)
            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                for _ in range(8):
                    tasks.create_task(ask(stub))
                    tasks.create_task(stream(stub))
                await eventually(lambda: len(outcomes) >= 20)
                process.process.terminate()
        status, log = await ended
        assert status == 0, log
        assert streams == [512] * 8
        # Refused calls were told so; no accepted one was cut off. What comes in the moment in which
        # gRPC closes the port it ends itself, as CANCELLED, and the server never sees it.
        unavailable, cancelled = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
        assert set(outcomes) <= {OK, unavailable, cancelled}
        calls = [json.loads(line) for line in log.splitlines() if '"ganserve.calls"' in line]
        codes = Counter(call["code"] for call in calls if call["method"].endswith("GenerateImages"))
        assert set(codes) <= {"OK", "UNAVAILABLE"}
        assert codes["OK"] == outcomes.count(OK) >= 20
        assert "Traceback" not in log

    def test_a_port_in_use_ends_it_with_one_line(self, repository, start_process):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            status, log = start_process("--models", repository, "--port", port).end()
        assert status == 1
        assert f"127.0.0.1:{port}: Address already in use" in log.splitlines()[-1]
        assert "Traceback" not in log

    def test_a_misspelt_variable_is_told_and_the_server_goes_on(self, repository, start_process):
        process = start_process("--models", repository, MAX_BATCHSIZE="3", DRAIN_SECONDS="0")
        process.wait_until_serving()
        process.process.terminate()
        status, log = process.end()
        assert status == 0, log
        assert "GANSERVE_MAX_BATCHSIZE is no setting" in log

    def test_a_missing_repository_ends_it_with_one_line(self, tmp_path, start_process):
        status, log = start_process("--models", tmp_path / "none").end()
        assert status == 1
        assert "none: No such file or directory" in log
        assert len(log.splitlines()) == 1

    @pytest.mark.parametrize("device", ["cuda", "tensorrt"])
    def test_a_device_that_is_not_there_ends_it_and_says_why(self, tmp_path, start_process, device):
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has GPU providers")
        # Before there is any model, and before the ports open.
        status, log = start_process("--models", tmp_path, "--device", device).end()
        assert status == 1
        (line,) = log.splitlines()
        assert line.startswith(f"ganserve serve: device {device}: expected")


@pytest.mark.parametrize(
    ("provider", "settings", "sizes"),
    [
        pytest.param("CPUExecutionProvider", {}, (), id="every size on a CPU"),
        pytest.param("CUDAExecutionProvider", {}, (1, 2, 4, 8, 16), id="powers of two on a GPU"),
        pytest.param(
            "CUDAExecutionProvider", {"max_batch_size": 12}, (1, 2, 4, 8, 12), id="and the limit"
        ),
        pytest.param("CPUExecutionProvider", {"batch_sizes": (16,)}, (16,), id="as wanted"),
    ],
)
def test_batches_are_padded_to_a_short_list_of_sizes_where_that_pays(provider, settings, sizes):
    config = ServerConfig(models="m", **settings)
    assert fixed_batch_sizes(config, provider) == sizes
