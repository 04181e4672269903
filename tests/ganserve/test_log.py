"""The log as programs read it, and the ids that join it to answers and traces."""

import asyncio
import contextlib
import json
import logging
import re
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_status import rpc_status

from ganserve.calls import split_peer
from ganserve.inference.v2 import open_inference_pb2 as infer_pb
from ganserve.inference.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from ganserve.log_format import JsonFormatter, TextFormatter
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.ganserve.collector import attributes_of, collecting
from tests.ganserve.conftest import connected, eventually
from tests.ganserve.test_server import Process

TOKEN = "correct-horse-battery-staple"
GENERATE = "ganserve.v1.ImageGenerationService/GenerateImages"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def request(count=1, **fields):
    return pb.GenerateImagesRequest(seed_range=pb.SeedRange(start=0, count=count), **fields)


async def outcome(call):
    """The code of a call, its details, and the request id that came with its end."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call
    trailing = dict(await call.trailing_metadata())
    return await call.code(), await call.details(), trailing.get("x-request-id")


@contextlib.contextmanager
def logging_as_json(level=logging.DEBUG):
    """What the server logs meanwhile, read back line by line."""
    lines, source = [], logging.getLogger("ganserve")
    handler, before = logging.Handler(), source.level
    handler.setFormatter(JsonFormatter())
    handler.emit = lambda record: lines.append(json.loads(handler.format(record)))
    source.addHandler(handler)
    source.setLevel(level)
    try:
        yield lines
    finally:
        source.removeHandler(handler)
        source.setLevel(before)


def of_calls(lines):
    return [line for line in lines if line["logger"] == "ganserve.calls"]


async def test_a_process_logs_json_that_agrees_with_answers_and_traces(repository, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    flags = ["--models", str(repository), "--drain-seconds", "0", "--token-file", str(tokens)]
    flags += ["--log-format", "json", "--log-level", "debug", "--trace-sample-ratio", "1"]
    ports = {"HOST": "127.0.0.1", "PORT": "0", "METRICS_PORT": "0", "DEVICE": "cpu"}
    with collecting() as collector:
        process = Process(*flags, TRACE_ENDPOINT=collector.endpoint, **ports)
        try:
            address = await asyncio.to_thread(process.wait_until_serving)
            async with grpc.aio.insecure_channel(address) as channel:
                stub = ImageGenerationServiceStub(channel)
                bearer = ("authorization", f"Bearer {TOKEN}")
                given = ("x-request-id", "from-outside.7")
                outcomes = [
                    await outcome(stub.GenerateImages(request(3), metadata=(bearer, given))),
                    await outcome(stub.GenerateImages(request(0), metadata=(bearer,))),
                    await outcome(stub.GenerateImages(request(), metadata=())),
                ]
                await health_pb2_grpc.HealthStub(channel).Check(HealthCheckRequest())
            process.process.terminate()
            status, log = await asyncio.to_thread(process.end)
        finally:
            with process.process:
                process.process.kill()
    assert status == 0, log
    assert TOKEN not in log
    lines = [json.loads(line) for line in log.splitlines()]
    for line in lines:
        assert TIMESTAMP.fullmatch(line["timestamp"])
        assert {"level", "logger", "message"} < line.keys()
    calls = of_calls(lines)
    assert [(line["code"], line["request_id"]) for line in calls] == [
        (code.name, request_id) for code, _, request_id in outcomes
    ]
    assert [line["code"] for line in calls] == ["OK", "INVALID_ARGUMENT", "UNAUTHENTICATED"]
    assert calls[0]["request_id"] == "from-outside.7"
    assert {line["method"] for line in calls} == {GENERATE}
    model = {key: calls[0][key] for key in ("model", "version", "images", "level")}
    assert model == {"model": "tiny", "version": 1, "images": 3, "level": "DEBUG"}
    assert calls[0]["duration_seconds"] > 0
    assert calls[0]["peer"].startswith("127.0.0.1:")
    spans = {attributes_of(s)["ganserve.request_id"]: s for s in collector.named("GenerateImages")}
    for line in calls[:2]:
        span = spans.pop(line["request_id"])
        assert (line["trace_id"], line["span_id"]) == (span.trace_id.hex(), span.span_id.hex())
    assert spans == {}  # none for whoever has no token
    assert "trace_id" not in calls[2]


async def test_our_own_mistakes_are_logged_with_the_id_that_the_caller_sees(
    repository, running_server, monkeypatch
):
    def fail(*_):
        raise ZeroDivisionError("the cause")

    monkeypatch.setattr("ganserve.api.service.rows_of", fail)
    with logging_as_json() as lines:
        async with running_server(repository) as server, connected(server) as stub:
            call = stub.GenerateImages(request(), metadata=(("x-request-id", "a-7/x"),))
            assert await outcome(call) == (
                *(grpc.StatusCode.INTERNAL, "internal error, id a-7/x"),
                "a-7/x",
            )
    (error,) = [line for line in lines if line["level"] == "ERROR"]
    assert error["request_id"] == "a-7/x"
    assert "Traceback (most recent call last)" in error["exception"]
    assert "ZeroDivisionError: the cause" in error["exception"]
    assert [line["code"] for line in of_calls(lines)] == ["INTERNAL"]


@pytest.mark.parametrize(
    "given",
    ["", " ", "a b", "a" * 129, 'x"y', "new\\nline", "semi;colon", "<b>"],
    ids=["empty", "space", "words", "long", "quote", "backslash", "semicolon", "tag"],
)
async def test_an_id_that_is_no_plain_word_is_replaced(repository, running_server, given):
    async with running_server(repository) as server, connected(server) as stub:
        call = stub.GenerateImages(request(), metadata=(("x-request-id", given),))
        _, _, answered = await outcome(call)
    assert re.fullmatch("[0-9a-f]{32}", answered)


async def test_every_answer_has_an_id_of_its_own(repository, running_server):
    async with running_server(repository) as server, connected(server) as stub:
        ids = {(await outcome(stub.GenerateImages(request())))[2] for _ in range(20)}
        stream = stub.StreamImages(request())
        assert [reply.count async for reply in stream] == [1]
        ids.add(dict(await stream.trailing_metadata())["x-request-id"])
    assert len(ids) == 21


async def test_a_refusal_keeps_its_details_beside_the_id(repository, running_server):
    async with running_server(repository) as server, connected(server) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.GenerateImages(request(0), metadata=(("x-request-id", "mine"),))
    assert dict(error.value.trailing_metadata())["x-request-id"] == "mine"
    assert len(rpc_status.from_call(error.value).details) == 1


async def test_the_other_protocol_is_logged_alike(repository, running_server):
    with logging_as_json() as lines:
        async with (
            running_server(repository) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            infer = infer_pb.ModelInferRequest(model_name="tiny")
            infer.inputs.add(name="seeds", datatype="UINT64", shape=[2]).contents.uint64_contents[
                :
            ] = [1, 2]
            await GRPCInferenceServiceStub(channel).ModelInfer(infer)
    (line,) = of_calls(lines)
    assert line["method"] == "inference.GRPCInferenceService/ModelInfer"
    assert (line["model"], line["version"], line["images"]) == ("tiny", 1, 2)


async def test_a_stream_is_logged_alike(repository, running_server):
    with logging_as_json() as lines:
        async with running_server(repository) as server, connected(server) as stub:
            _ = [reply async for reply in stub.StreamImages(request(2))]
    (line,) = of_calls(lines)
    assert line["method"] == "ganserve.v1.ImageGenerationService/StreamImages"
    assert (line["model"], line["version"], line["images"]) == ("tiny", 1, 2)


async def test_where_the_address_of_a_peer_ends_is_seen_with_ipv6_too(repository, running_server):
    with logging_as_json() as lines:
        async with running_server(repository, host="::1") as server, connected(server) as stub:
            await stub.GenerateImages(request())
    (line,) = of_calls(lines)
    assert re.fullmatch(r"\[::1\]:\d+", line["peer"])


async def test_calls_are_logged_at_debug_alone(repository, running_server):
    with logging_as_json(logging.INFO) as lines:
        async with running_server(repository) as server, connected(server) as stub:
            await stub.GenerateImages(request())
            await eventually(lambda: server.interceptor.under_way.in_flight == 0)
    assert of_calls(lines) == []
    assert "serving on" in " ".join(line["message"] for line in lines)


@pytest.fixture
def many_lines():
    """A record whose message and exception hold what forges lines and commands terminals."""
    try:
        raise ValueError("two\nlines\x1b[31m")
    except ValueError:
        return logging.LogRecord(
            *("ganserve", logging.ERROR, "file.py", 1, "a\n%s\u2028\x1b[31m", ("b\r",)),
            exc_info=sys.exc_info(),
        )


def test_a_line_stays_one_line_whatever_it_holds(many_lines):
    line = JsonFormatter().format(many_lines)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == "a\nb\r\u2028\x1b[31m"


def test_a_line_of_text_does_too_and_a_traceback_stands_indented_below_it(many_lines):
    line, *traceback = TextFormatter().format(many_lines).split("\n")
    assert line.endswith(r" ERROR ganserve: a\nb\r\u2028\x1b[31m")
    assert traceback[0] == "  Traceback (most recent call last):"
    assert traceback[-2:] == ["  ValueError: two", r"  lines\x1b[31m"]
    assert all(one.isprintable() and one.startswith("  ") for one in traceback)


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:127.0.0.1:5", ("127.0.0.1", 5)),
        ("ipv6:%5B2001:db8::1%5D:443", ("2001:db8::1", 443)),
        ("unix:/run/ganserve.sock", ("/run/ganserve.sock", None)),
        ("unix:", ("unix:", None)),
    ],
    ids=["ipv4", "ipv6", "socket", "nameless"],
)
def test_a_peer_is_an_address_and_a_port(peer, expected):
    assert split_peer(peer) == expected
