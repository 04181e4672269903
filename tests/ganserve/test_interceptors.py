import asyncio
import contextlib
import logging
import re
import time

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from ganserve.api.interceptors import Interceptor
from ganserve.calls import current_deadline
from ganserve.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Loading,
    Overloaded,
    ShuttingDown,
    UnknownModel,
)
from ganserve.metrics import Metrics
from ganserve.transport.unread_replies import UnreadReplies
from tests.ganserve.conftest import eventually, failure

SERVICE = "test.Service"


class Large:
    """A reply that knows how to serialize itself, and finds no memory for it."""

    def SerializeToString(self):  # noqa: N802 - spelled as in protobuf
        raise MemoryError("for a secret number of bytes")


class Behaviours:
    """Handlers that answer, fail or wait, as a test wants."""

    def __init__(self):
        self.error = None
        self.entered = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.left = asyncio.Event()

    async def unary(self, request, _):
        if self.error is not None:
            raise self.error
        return request

    async def large(self, *_):
        return Large()

    async def large_stream(self, *_):
        yield Large()

    async def abort(self, _, context):
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "as the handler wants")

    async def wait(self, request, _):
        self.entered.release()
        await self.gate.wait()
        return request

    async def stream(self, request, _):
        try:
            for _ in range(3):
                yield request
            if self.error is not None:
                raise self.error
        finally:
            self.left.set()

    async def endless(self, request, _):
        try:
            while True:
                self.entered.release()
                yield request
                await self.gate.wait()
        finally:
            self.left.set()

    async def flood(self, *_):
        try:
            while True:
                yield b"x" * 100_000
        finally:
            self.left.set()

    async def chat(self, requests, _):
        async for request in requests:
            yield request

    async def collect(self, requests, _):
        return b"".join([request async for request in requests])


@contextlib.asynccontextmanager
async def running(behaviours, *, deserialize=None, options=(), **settings):
    defaults = {"deadline_seconds": 20, "max_deadline_seconds": 60, "max_calls": 1000}
    defaults |= {"unread": UnreadReplies(20, 60), "has_token": lambda _: True}
    interceptor = Interceptor(Metrics(CollectorRegistry()), **defaults | settings)
    server = grpc.aio.server(interceptors=[interceptor])
    serialize = Large.SerializeToString  # any: messages serialize themselves
    large_stream = behaviours.large_stream
    handlers = {
        "Large": grpc.unary_unary_rpc_method_handler(behaviours.large, None, serialize),
        "LargeStream": grpc.unary_stream_rpc_method_handler(large_stream, None, serialize),
        "Unary": grpc.unary_unary_rpc_method_handler(behaviours.unary),
        "Abort": grpc.unary_unary_rpc_method_handler(behaviours.abort),
        "Wait": grpc.unary_unary_rpc_method_handler(behaviours.wait),
        "Stream": grpc.unary_stream_rpc_method_handler(behaviours.stream),
        "Endless": grpc.unary_stream_rpc_method_handler(behaviours.endless),
        "Flood": grpc.unary_stream_rpc_method_handler(behaviours.flood),
        "Chat": grpc.stream_stream_rpc_method_handler(behaviours.chat, deserialize),
        "Collect": grpc.stream_unary_rpc_method_handler(behaviours.collect),
    }
    for service in (SERVICE, "test.Exempt"):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            channel.interceptor = interceptor
            yield channel
    finally:
        behaviours.gate.set()
        await server.stop(0)
        check_started_equals_handled(interceptor)


def unary(channel, method="Unary", service=SERVICE, **arguments):
    return channel.unary_unary(f"/{service}/{method}")(b"request", **arguments)


def stream(channel, method="Stream", **arguments):
    return channel.unary_stream(f"/{SERVICE}/{method}")(b"request", **arguments)


def samples(interceptor, name):
    return [
        sample
        for family in interceptor._metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    ]


def check_started_equals_handled(interceptor):
    """The property that must hold after every test."""
    started = samples(interceptor, "grpc_server_started_total")
    handled = samples(interceptor, "grpc_server_handled_total")
    timed = samples(interceptor, "grpc_server_handling_seconds_count")
    assert started
    for sample in started:
        same = [s.value for s in handled if sample.labels.items() <= s.labels.items()]
        assert sum(same) == sample.value, sample
        assert [s.value for s in timed if s.labels == sample.labels] == [sample.value]


def handled(channel):
    """(type, method, code) to count."""
    return {
        tuple(sample.labels[f"grpc_{key}"] for key in ("type", "method", "code")): sample.value
        for sample in samples(channel.interceptor, "grpc_server_handled_total")
    }


async def handled_soon(channel, key, count=1):
    """Wait for a call to be counted; the server learns of a cancel after the client."""
    await eventually(lambda: handled(channel).get(key) == count)


async def anything(call):
    async for _ in call:
        pass


async def test_each_kind_of_call_is_answered_and_counted():
    async with running(Behaviours()) as channel:
        assert await unary(channel) == b"request"
        assert [reply async for reply in stream(channel)] == [b"request"] * 3
        collect = channel.stream_unary(f"/{SERVICE}/Collect")
        assert await collect(iter([b"a", b"b"])) == b"ab"
        chat = channel.stream_stream(f"/{SERVICE}/Chat")(iter([b"a", b"b"]))
        assert [reply async for reply in chat] == [b"a", b"b"]
        assert handled(channel) == {
            ("unary", "Unary", "OK"): 1,
            ("server_stream", "Stream", "OK"): 1,
            ("client_stream", "Collect", "OK"): 1,
            ("bidi_stream", "Chat", "OK"): 1,
        }


@pytest.mark.parametrize("method", ["Unary", "Stream"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(InvalidRequest("seeds", "expected 1"), "INVALID_ARGUMENT", id="invalid"),
        pytest.param(UnknownModel("model 'x'"), "NOT_FOUND", id="unknown model"),
        pytest.param(Overloaded("full", 0.25), "RESOURCE_EXHAUSTED", id="overloaded"),
        pytest.param(Loading("loading"), "UNAVAILABLE", id="loading"),
        pytest.param(ShuttingDown("shutting down"), "UNAVAILABLE", id="shutting down"),
        pytest.param(DeadlineExceeded("late"), "DEADLINE_EXCEEDED", id="deadline"),
    ],
)
async def test_a_failure_a_caller_may_see_becomes_its_status(method, error, code):
    behaviours = Behaviours()
    behaviours.error = error
    async with running(behaviours) as channel:
        if method == "Unary":
            seen = await failure(unary(channel))
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                _ = [reply async for reply in stream(channel)]
            seen = raised.value
        assert (seen.code().name, seen.details()) == (code, str(error))
        assert [count for key, count in handled(channel).items() if key[1:] == (method, code)] == [
            1
        ]
        rejected = channel.interceptor._metrics.rejected_requests.labels(error.reason)
        assert rejected._value.get() == 1


async def test_an_invalid_request_carries_its_field():
    behaviours = Behaviours()
    behaviours.error = InvalidRequest("quality", "expected 1 to 100, got 0")
    async with running(behaviours) as channel:
        status = rpc_status.from_call(await failure(unary(channel)))
    detail = BadRequest()
    assert status.details[0].Unpack(detail)
    (violation,) = detail.field_violations
    assert (violation.field, violation.description) == ("quality", "expected 1 to 100, got 0")


@pytest.mark.parametrize("letter", ["m", "\N{SNOWMAN}"], ids=["ascii", "unicode"])
async def test_a_long_list_of_models_still_arrives_as_what_it_is(letter):
    behaviours = Behaviours()
    behaviours.error = InvalidRequest("name", f"expected one of {letter * 30_000}")
    async with running(behaviours) as channel:
        seen = await failure(unary(channel))
    assert seen.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert seen.details().startswith(f"name: expected one of {letter * 100}")
    assert seen.details().endswith(f"{letter}...")


async def test_an_overload_says_when_to_come_back():
    behaviours = Behaviours()
    behaviours.error = Overloaded("full", 0.25)
    async with running(behaviours) as channel:
        status = rpc_status.from_call(await failure(unary(channel)))
    detail = RetryInfo()
    assert status.details[0].Unpack(detail)
    assert detail.retry_delay.ToTimedelta().total_seconds() == 0.25


async def test_our_own_mistake_is_logged_in_full_and_answered_with_its_id_alone(caplog):
    behaviours = Behaviours()
    behaviours.error = ZeroDivisionError("a secret detail")
    async with running(behaviours) as channel:
        seen = await failure(unary(channel))
        assert handled(channel) == {("unary", "Unary", "INTERNAL"): 1}
    assert seen.code() is grpc.StatusCode.INTERNAL
    error_id = re.fullmatch("internal error, id ([0-9a-f]{32})", seen.details())[1]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error_id in record.getMessage()
    assert "a secret detail" in caplog.text


async def test_a_reply_that_cannot_be_serialized_is_our_own_mistake_too(caplog):
    async with running(Behaviours()) as channel:
        calls = unary(channel, "Large"), anything(stream(channel, "LargeStream"))
        for seen in [await failure(call) for call in calls]:
            error_id = re.fullmatch("internal error, id ([0-9a-f]{32})", seen.details())[1]
            assert f"id {error_id}" in caplog.text
        assert handled(channel) == {
            ("unary", "Large", "INTERNAL"): 1,
            ("server_stream", "LargeStream", "INTERNAL"): 1,
        }


@pytest.mark.parametrize("method", ["Unary", "Stream"])
async def test_a_fault_of_tracing_fails_no_call(method, caplog):
    class Tracer:
        def begin(self, *_):
            raise ArithmeticError("a fault of tracing")

    async with running(Behaviours(), tracer=Tracer()) as channel:
        await (unary(channel) if method == "Unary" else anything(stream(channel)))
        async with asyncio.timeout(20):
            await channel.interceptor.under_way.wait_until_idle()
    assert f"{SERVICE}/{method}: a call is not traced" in caplog.text


async def test_a_call_that_cannot_begin_is_neither_counted_nor_waited_for(monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr("ganserve.api.methods.request_id_of", fail)
    async with running(Behaviours()) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await unary(channel)
        monkeypatch.undo()
        assert await unary(channel) == b"request"
        async with asyncio.timeout(20):
            await channel.interceptor.under_way.wait_until_idle()


async def test_the_status_of_a_handler_that_aborts_is_kept():
    async with running(Behaviours()) as channel:
        seen = await failure(unary(channel, "Abort"))
        assert (seen.code(), seen.details()) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "as the handler wants",
        )
        await handled_soon(channel, ("unary", "Abort", "ALREADY_EXISTS"))


async def test_unknown_methods_share_one_label():
    async with running(Behaviours()) as channel:
        for index in range(5):
            seen = await failure(unary(channel, f"Method{index}", f"service.{index}"))
            assert seen.code() is grpc.StatusCode.UNIMPLEMENTED
        # gRPC answers these by itself, so the caller may know before they are counted.
        await handled_soon(channel, ("unknown", "unknown", "UNIMPLEMENTED"), 5)
        assert len(handled(channel)) == 1


@pytest.mark.parametrize("path", ["/", "//", "nonsense", "/a/b/c", "/test.Service/"])
async def test_odd_paths_are_unknown_methods(path):
    async with running(Behaviours()) as channel:
        seen = await failure(channel.unary_unary(path)(b""))
        assert seen.code() is grpc.StatusCode.UNIMPLEMENTED
        await unary(channel)


async def test_a_call_that_its_caller_cancels_counts_as_cancelled():
    behaviours = Behaviours()
    async with running(behaviours) as channel:
        call = unary(channel, "Wait", timeout=20)
        await behaviours.entered.acquire()
        call.cancel()
        await handled_soon(channel, ("unary", "Wait", "CANCELLED"))


async def test_a_handler_that_aborts_too_late_is_no_mistake_of_ours(caplog):
    class Late(Behaviours):
        async def wait(self, request, context):
            try:
                return await super().wait(request, context)
            except asyncio.CancelledError:  # the caller has gone
                await self.abort(request, context)

    behaviours = Late()
    async with running(behaviours) as channel:
        call = unary(channel, "Wait", timeout=20)
        await behaviours.entered.acquire()
        call.cancel()
        await handled_soon(channel, ("unary", "Wait", "CANCELLED"))
    assert [record for record in caplog.records if record.levelno == logging.ERROR] == []


async def test_a_call_that_its_deadline_ends_counts_as_such():
    behaviours = Behaviours()
    async with running(behaviours) as channel:
        seen = await failure(unary(channel, "Wait", timeout=0.1))
        assert seen.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await handled_soon(channel, ("unary", "Wait", "DEADLINE_EXCEEDED"))


async def test_a_deadline_that_grpc_rounded_up_counts_as_such():
    behaviours = Behaviours()
    async with running(behaviours) as channel:
        for _ in range(3):  # sent as 1.01 s
            await failure(unary(channel, "Wait", timeout=1.0002))
        await handled_soon(channel, ("unary", "Wait", "DEADLINE_EXCEEDED"), count=3)


async def test_a_stream_whose_reader_leaves_is_closed_at_once():
    behaviours = Behaviours()
    async with running(behaviours) as channel:
        call = stream(channel, "Endless", timeout=20)
        assert await call.read() == b"request"
        call.cancel()
        await handled_soon(channel, ("server_stream", "Endless", "CANCELLED"))
        assert behaviours.left.is_set()


@pytest.mark.parametrize(
    ("seconds", "code"), [(20, "CANCELLED"), (0.3, "DEADLINE_EXCEEDED")], ids=["cancel", "deadline"]
)
async def test_a_stream_whose_reader_leaves_without_reading_is_no_mistake_of_ours(seconds, code):
    behaviours = Behaviours()
    async with running(behaviours) as channel:
        call = channel.unary_stream(f"/{SERVICE}/Flood")(b"request", timeout=seconds)
        assert await call.read() == b"x" * 100_000
        if code == "CANCELLED":
            call.cancel()
        await handled_soon(channel, ("server_stream", "Flood", code))
        assert behaviours.left.is_set()


async def test_a_stream_that_is_not_read_ends_at_the_servers_deadline():
    async with running(Behaviours(), deadline_seconds=0.1) as channel:
        call = channel.unary_stream(f"/{SERVICE}/Flood")(b"request")
        assert await call.read() == b"x" * 100_000
        await handled_soon(channel, ("server_stream", "Flood", "DEADLINE_EXCEEDED"))


async def test_a_stream_whose_first_message_is_not_read_in_time_still_gets_a_status():
    # A message larger than the window leaves whole only once it is read.
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535)]
    async with running(Behaviours(), options=narrow, deadline_seconds=0.2) as channel:
        calls = [channel.unary_stream(f"/{SERVICE}/Flood")(b"request") for _ in range(4)]
        await handled_soon(channel, ("server_stream", "Flood", "DEADLINE_EXCEEDED"), count=4)
        async with asyncio.timeout(10):
            for call in calls:
                seen = await failure(anything(call))
                assert seen.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert "longer than 0.2 s" in seen.details()


async def test_a_caller_without_a_deadline_gets_the_servers():
    async with running(Behaviours(), deadline_seconds=0.05) as channel:
        seen = await failure(unary(channel, "Wait"))
        assert seen.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "longer than 0.05 s" in seen.details()
        assert handled(channel) == {("unary", "Wait", "DEADLINE_EXCEEDED"): 1}


@pytest.mark.parametrize("is_stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    ("of_grpc", "expected"),
    [
        pytest.param(None, 20, id="the server's where there is none"),
        pytest.param(40, 40, id="gRPC's, though it be later than the server's"),
        pytest.param(5, 5, id="gRPC's, earlier than the server's"),
        pytest.param(3600, 60, id="the longest, earlier than gRPC's"),
    ],
)
async def test_a_call_knows_its_deadline(of_grpc, expected, is_stream):
    seen = []

    class Curious(Behaviours):
        async def unary(self, request, _):
            seen.append(current_deadline())
            return request

        async def stream(self, request, _):
            seen.append(await asyncio.create_task(deadline_elsewhere()))
            yield request

    async def deadline_elsewhere():  # in a task that the call has started
        return current_deadline()

    async with running(Curious()) as channel:
        before = time.monotonic()
        if is_stream:
            await anything(stream(channel, timeout=of_grpc))
        else:
            await unary(channel, timeout=of_grpc)
        after = time.monotonic()
    (deadline,) = seen
    # gRPC sends what its caller allows rounded up, by 1 % at most.
    assert before + 0.99 * expected <= deadline <= after + 1.01 * expected


async def test_a_stream_without_a_deadline_gets_the_servers():
    async with running(Behaviours(), deadline_seconds=0.05) as channel:
        call = stream(channel, "Endless")
        assert await call.read() == b"request"
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_timeout_within_a_handler_is_our_own_mistake():
    behaviours = Behaviours()
    behaviours.error = TimeoutError("somewhere inside")
    async with running(behaviours) as channel:
        assert (await failure(unary(channel))).code() is grpc.StatusCode.INTERNAL


async def test_exempt_services_have_no_deadline_and_no_gate():
    behaviours = Behaviours()
    settings = {"deadline_seconds": 0.05, "exempt_services": ["test.Exempt"]}
    async with running(behaviours, **settings) as channel:
        call = asyncio.ensure_future(unary(channel, "Wait", "test.Exempt"))
        await behaviours.entered.acquire()
        assert (await failure(unary(channel, "Wait"))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        channel.interceptor.under_way.refuse_new()
        await channel.interceptor.under_way.wait_until_idle()
        assert await unary(channel, "Unary", "test.Exempt") == b"request"
        behaviours.gate.set()
        assert await call == b"request"


async def test_new_calls_are_refused_while_those_under_way_are_answered():
    behaviours = Behaviours()
    async with running(behaviours) as channel:
        call = asyncio.ensure_future(unary(channel, "Wait"))
        await behaviours.entered.acquire()
        channel.interceptor.under_way.refuse_new()
        idle = asyncio.ensure_future(channel.interceptor.under_way.wait_until_idle())
        assert (await failure(unary(channel))).code() is grpc.StatusCode.UNAVAILABLE
        assert not idle.done()
        behaviours.gate.set()
        assert await call == b"request"
        await asyncio.wait_for(idle, 20)


async def test_bytes_that_are_no_message_are_the_callers_mistake_in_streams_too():
    def deserialize(content):
        if content == b"rubbish":
            raise DecodeError
        return content.decode()

    class Chatty(Behaviours):
        async def chat(self, requests, _):
            async for request in requests:
                assert isinstance(request, str)
                yield request.encode()

    async with running(Chatty(), deserialize=deserialize) as channel:
        chat = channel.stream_stream(f"/{SERVICE}/Chat")()
        await chat.write(b"a")
        assert await chat.read() == b"a"
        await chat.write(b"rubbish")
        assert (await failure(chat.read())).code() is grpc.StatusCode.INVALID_ARGUMENT
