"""Traces, from real calls through the real exporter to a real collector."""

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.export import SpanExportResult
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ganserve.errors import StartupError
from ganserve.models.model import Model
from ganserve.tracing import Tracing
from ganserve.v1 import image_generation_pb2 as pb
from tests.ganserve.collector import attributes_of, collecting
from tests.ganserve.conftest import code_of, connected, eventually, fetch
from tests.ganserve.tiny import write_artifact

ROOT = Path(__file__).resolve().parents[2]
METHOD = "ganserve.v1.ImageGenerationService/GenerateImages"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector():
    with collecting() as collector:
        yield collector


def traced(collector, ratio=1.0, **settings):
    """Settings of a server that sends to the collector."""
    return {"trace_endpoint": collector.endpoint, "trace_sample_ratio": ratio} | settings


def request(count=1, image_format=pb.IMAGE_FORMAT_PNG, **fields):
    seeds = pb.SeedRange(start=0, count=count)
    return pb.GenerateImagesRequest(seed_range=seeds, format=image_format, **fields)


def context(flags):
    return (("traceparent", f"00-{TRACE}-{PARENT}-{flags}"),)


async def test_a_call_is_a_span_with_its_stages_beneath_it(repository, running_server, collector):
    async with running_server(repository, **traced(collector)) as server, connected(server) as stub:
        await stub.GenerateImages(request(3), metadata=(("x-request-id", "mine"),))
    (call,) = collector.named("GenerateImages")
    assert (call.name, call.kind) == (METHOD, Span.SPAN_KIND_SERVER)
    assert call.status.code == Status.STATUS_CODE_UNSET
    attributes = attributes_of(call)
    assert attributes.pop("network.peer.port") > 0
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
        "network.peer.address": "127.0.0.1",
        "ganserve.request_id": "mine",
        "ganserve.model.name": "tiny",
        "ganserve.model.version": 1,
        "ganserve.images": 3,
    }
    assert collector.beneath(call) == ["compute", "encode", "queue"]
    queue, compute, encode = (collector.named(name)[0] for name in ("queue", "compute", "encode"))
    assert queue.end_time_unix_nano <= compute.start_time_unix_nano + 1000
    assert compute.end_time_unix_nano <= encode.start_time_unix_nano
    assert call.start_time_unix_nano <= queue.start_time_unix_nano
    assert encode.end_time_unix_nano <= call.end_time_unix_nano
    assert {resource["service.name"] for resource in collector.resources} == {"ganserve"}


async def test_calls_and_the_batch_they_rode_in_are_linked_both_ways(
    repository, running_server, collector
):
    settings = traced(collector, max_wait_seconds=60, max_batch_size=3, instances=1)
    async with running_server(repository, **settings) as server, connected(server) as stub:
        await asyncio.gather(*(stub.GenerateImages(request(images)) for images in (1, 2)))
    (batch,) = collector.named("batch")
    assert attributes_of(batch) == {
        "ganserve.model.name": "tiny",
        "ganserve.batch.images": 3,
        "ganserve.batch.requests": 2,
        "ganserve.batch.padding_images": 0,
    }
    stages = collector.named("compute")
    calls = {call.span_id: call for call in collector.named("GenerateImages")}
    assert {stage.parent_span_id for stage in stages} == calls.keys()
    assert len({*(call.trace_id for call in calls.values()), batch.trace_id}) == 3
    assert {(link.trace_id, link.span_id) for link in batch.links} == {
        (stage.trace_id, stage.span_id) for stage in stages
    }
    for stage in stages:
        assert stage.trace_id == calls[stage.parent_span_id].trace_id
        (link,) = stage.links
        assert (link.trace_id, link.span_id) == (batch.trace_id, batch.span_id)
        images = attributes_of(calls[stage.parent_span_id])["ganserve.images"]
        assert attributes_of(stage)["ganserve.images"] == images


async def test_a_stream_has_the_stages_of_each_of_its_messages(tmp_path, running_server, collector):
    write_artifact(tmp_path)
    async with (
        running_server(tmp_path, **traced(collector, chunk_bytes=1)) as server,
        connected(server) as stub,
    ):
        assert len([reply async for reply in stub.StreamImages(request(3))]) == 3
    (call,) = collector.named("StreamImages")
    assert collector.beneath(call) == ["compute"] * 3 + ["encode"] * 3 + ["queue"] * 3


async def test_the_callers_trace_is_carried_on_whatever_the_ratio(
    repository, running_server, collector
):
    async with (
        running_server(repository, **traced(collector, ratio=0.0)) as server,
        connected(server) as stub,
    ):
        await stub.GenerateImages(request(), metadata=context("01"))
        await stub.GenerateImages(request())
    (call,) = collector.named("GenerateImages")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert len(collector.named("batch")) == 1


@pytest.mark.parametrize(
    ("ratio", "metadata"),
    [
        pytest.param(0.0, (), id="by-the-ratio"),
        pytest.param(0.0, (("traceparent", "rubbish-01"),), id="by-the-ratio-for-rubbish"),
        pytest.param(1.0, context("00"), id="by-the-caller"),
    ],
)
async def test_what_is_not_sampled_is_not_sent(
    repository, running_server, collector, ratio, metadata
):
    async with (
        running_server(repository, **traced(collector, ratio)) as server,
        connected(server) as stub,
    ):
        for _ in range(3):
            await stub.GenerateImages(request(), metadata=metadata)
    assert collector.spans == []


@pytest.mark.parametrize(
    "parent",
    ["", "00-rubbish", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "x" * 5000],
    ids=["empty", "rubbish", "zero", "version", "long"],
)
async def test_a_context_that_is_none_begins_a_new_trace(
    repository, running_server, collector, parent
):
    async with running_server(repository, **traced(collector)) as server, connected(server) as stub:
        metadata = (("traceparent", parent), ("tracestate", "=,=,"))
        await stub.GenerateImages(request(), metadata=metadata)
    (call,) = collector.named("GenerateImages")
    assert (call.parent_span_id, call.trace_id.hex() != TRACE) == (b"", True)


async def test_mistakes_of_callers_are_no_errors_of_the_server(
    repository, running_server, collector
):
    async with running_server(repository, **traced(collector)) as server, connected(server) as stub:
        assert await code_of(stub.GenerateImages(request(0))) is grpc.StatusCode.INVALID_ARGUMENT
    (call,) = collector.named("GenerateImages")
    assert call.status.code == Status.STATUS_CODE_UNSET
    assert attributes_of(call)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert "error.type" not in attributes_of(call)


async def test_a_model_that_fails_is_an_error_of_the_call_and_of_the_batch(
    repository, running_server, collector, monkeypatch
):
    run_batch = Model.run_batch

    def fail(model, *rows):
        if threading.current_thread().name.startswith("models"):  # loading
            return run_batch(model, *rows)
        raise ValueError("the model's own words")

    monkeypatch.setattr("ganserve.models.model.Model.run_batch", fail)
    async with running_server(repository, **traced(collector)) as server, connected(server) as stub:
        assert await code_of(stub.GenerateImages(request())) is grpc.StatusCode.INTERNAL
    (call,), (batch,) = collector.named("GenerateImages"), collector.named("batch")
    assert call.status.code == batch.status.code == Status.STATUS_CODE_ERROR
    assert attributes_of(call)["error.type"] == "INTERNAL"
    assert attributes_of(batch)["error.type"] == "ValueError"
    assert collector.beneath(call) == ["compute", "queue"]


async def test_probes_are_not_traced(repository, running_server, collector):
    async with (
        running_server(repository, **traced(collector)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await health_pb2_grpc.HealthStub(channel).Check(HealthCheckRequest())
        unknown = channel.unary_unary("/no.Such/Method")(b"")
        assert await code_of(unknown) is grpc.StatusCode.UNIMPLEMENTED
    assert collector.spans == []


async def test_the_environment_names_the_service(
    repository, running_server, collector, monkeypatch
):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "faces")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=faces-0")
    async with running_server(repository, **traced(collector)) as server, connected(server) as stub:
        await stub.GenerateImages(request())
    (resource, *_) = collector.resources
    assert (resource["service.name"], resource["k8s.pod.name"]) == ("faces", "faces-0")


async def test_a_collector_that_is_away_hurts_nobody(repository, running_server, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    results, export = [], OTLPSpanExporter.export

    def watch(exporter, spans):
        results.append(export(exporter, spans))
        return results[-1]

    monkeypatch.setattr(OTLPSpanExporter, "export", watch)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        async with (
            running_server(repository, trace_endpoint=endpoint, trace_sample_ratio=1) as server,
            connected(server) as stub,
        ):
            for exports in (1, 2, 3):
                assert await code_of(stub.GenerateImages(request())) is grpc.StatusCode.OK
                await eventually(lambda wanted=exports: len(results) >= wanted)
    assert set(results) == {SpanExportResult.FAILURE}


def test_of_failing_exports_one_line_is_logged_in_a_while(caplog):
    tracing = Tracing("http://127.0.0.1:1", 1.0)
    source = logging.getLogger("opentelemetry.some.exporter")
    for number in range(3):
        source.error("the collector is away, %d", number)
    source.info("nothing of interest")
    tracing.close(1)
    assert [record.getMessage() for record in caplog.records] == [
        "traces: the collector is away, 0"
    ]
    source.error("as before")
    assert caplog.records[-1].name == source.name


async def test_a_collector_that_hangs_does_not_hold_up_the_end(
    repository, running_server, monkeypatch, caplog
):
    monkeypatch.setattr("ganserve.server._STOP_GRACE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                running_server(repository, trace_endpoint=endpoint, trace_sample_ratio=1)
            )
            async with connected(server) as stub:
                await stub.GenerateImages(request())
            async with asyncio.timeout(8):  # the exporter's own patience is 10 seconds
                await stack.aclose()
    assert "the last traces could not be sent within 0.2 s" in caplog.text


async def test_a_collector_that_hangs_holds_up_no_end_that_is_for_haste(repository, running_server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                running_server(repository, trace_endpoint=endpoint, trace_sample_ratio=1)
            )
            async with connected(server) as stub:
                await stub.GenerateImages(request())
            ending = asyncio.ensure_future(stack.aclose())
            await asyncio.sleep(1)
            assert not ending.done(), "the collector was not waited for"
            server.stop_now.set()
            async with asyncio.timeout(5):
                await ending


async def test_a_start_that_fails_misses_no_traces(repository, running_server, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"metrics_port": taken.getsockname()[1], "trace_endpoint": "http://localhost:1"}
        with pytest.raises(StartupError, match="metrics_port: cannot listen"):
            async with running_server(repository, **settings):
                pass
    assert caplog.messages == []


class TestExemplars:
    async def test_histograms_name_a_trace_to_scrapers_that_ask_for_it(
        self, repository, running_server, collector
    ):
        names = ("grpc_server_handling_seconds", "ganserve_queue_seconds")
        names += ("ganserve_compute_seconds", "ganserve_encode_seconds")
        async with (
            running_server(repository, **traced(collector)) as server,
            connected(server) as stub,
        ):
            await stub.GenerateImages(request(), metadata=context("01"))
            text = await asyncio.to_thread(fetch_open_metrics, server)
            assert TRACE not in await asyncio.to_thread(fetch, server, "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        (call,) = collector.named("GenerateImages")
        for name in names:
            (sample,) = [sample for sample in families[name].samples if sample.exemplar]
            labels = {"trace_id": TRACE, "span_id": call.span_id.hex()}
            assert (sample.name, sample.exemplar.labels) == (f"{name}_bucket", labels)
            assert sample.exemplar.value <= float(sample.labels["le"])

    async def test_traces_that_are_not_kept_are_not_named(
        self, repository, running_server, collector
    ):
        async with (
            running_server(repository, **traced(collector)) as server,
            connected(server) as stub,
        ):
            await stub.GenerateImages(request(), metadata=context("00"))
            text = await asyncio.to_thread(fetch_open_metrics, server)
        assert "trace_id" not in text


def fetch_open_metrics(server):
    page = Request(f"http://127.0.0.1:{server.metrics_port}/metrics")
    page.add_header("Accept", "application/openmetrics-text; version=1.0.0")
    with urlopen(page, timeout=10) as reply:
        assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
        return reply.read().decode()


IN_A_PROCESS = """
import asyncio, sys
import grpc
from ganserve.config import ServerConfig
from ganserve.server import running
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

async def call():
    settings = {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "device": "cpu"}
    async with running(ServerConfig(models=sys.argv[1], **settings)) as server:
        await server.wait_until_ready()
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = ImageGenerationServiceStub(channel)
            await stub.GenerateImages(pb.GenerateImagesRequest(seeds=pb.Seeds(values=[1])))

asyncio.run(call())
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def test_without_traces_nothing_of_opentelemetry_is_loaded(repository):
    command = [sys.executable, "-c", IN_A_PROCESS, str(repository)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "[]\n"), finished.stderr


def test_asked_for_without_opentelemetry_the_start_says_what_to_install(repository):
    program = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from ganserve.cli import run
sys.exit(run(["serve", "--models", sys.argv[1], "--trace-endpoint", "http://localhost:4317"]))
"""
    command = [sys.executable, "-c", program, str(repository)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "pip install '.[tracing]'" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr
