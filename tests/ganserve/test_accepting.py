"""How calls are taken: real servers and clients of gRPC."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import time

import grpc
import pytest
from grpc._cython import cygrpc
from grpc.aio import _server

from ganserve.transport import accepting, direct_calls
from ganserve.transport.accepting import _ASKED_FOR, _EagerServer, make_aio_server
from ganserve.transport.core_call import CoreCall
from ganserve.transport.direct_calls import DirectMethods, core_server
from ganserve.transport.unfinished_requests import UnfinishedRequests
from ganserve.transport.unread_replies import UnreadReplies
from tests.ganserve.conftest import eventually

METHOD = "/test.Service/Echo"


@pytest.fixture(params=["direct", "through grpc.aio"])
def direct_methods(request):
    """Both ways in which calls are taken."""
    return [METHOD] if request.param == "direct" else []


class Service(grpc.GenericRpcHandler):
    """Answers once it is let; remembers how many calls were under way at once."""

    def __init__(self):
        self.begun = 0
        self.ended = []
        self.open = asyncio.Event()
        self.open.set()

    def service(self, handler_call_details):
        if handler_call_details.method == METHOD:
            return grpc.unary_unary_rpc_method_handler(self.answer)
        return None

    async def answer(self, request, context):
        self.begun += 1
        self.context = context
        if request == b"fail":
            raise ValueError(request)
        if request == b"give up":
            raise asyncio.CancelledError
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("answered")
        return request


def direct(methods, may_call=lambda _: True, **others):
    others.setdefault("unread", UnreadReplies(20, 20))
    return DirectMethods(methods, may_call, **others)


@contextlib.asynccontextmanager
async def serving(direct_methods, options=(), request_seconds=20, **settings):
    service = Service()
    service.unfinished = UnfinishedRequests(request_seconds)
    server = make_aio_server(
        interceptors=[],
        options=options,
        unfinished=service.unfinished,
        direct_methods=direct(direct_methods, **settings),
    )
    server.add_generic_rpc_handlers((service,))
    echo = grpc.unary_unary_rpc_method_handler(service.answer)
    server.add_registered_method_handlers("test.Service", {"Echo": echo})
    port = server.add_insecure_port("127.0.0.1:0")
    service.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(service.address) as channel:
            yield service, server, channel.unary_unary(METHOD)
    finally:
        await server.stop(0)


def test_the_pinned_version_of_grpc_takes_many_calls_at_a_time():
    assert hasattr(_server.cygrpc.AioServer, "_make_request_call_future")


async def test_the_pinned_version_of_grpc_lets_calls_be_taken_directly():
    server = make_aio_server(
        interceptors=[],
        options=[],
        unfinished=UnfinishedRequests(20),
        direct_methods=direct([METHOD]),
    )
    assert core_server(server._server) is not None
    await server.stop(0)


async def test_other_servers_of_the_process_stay_as_they_are():
    server = make_aio_server(
        interceptors=[],
        options=[],
        unfinished=UnfinishedRequests(20),
        direct_methods=direct([]),
    )
    assert isinstance(server._server, _EagerServer)
    assert type(grpc.aio.server()._server) is not _EagerServer


@pytest.mark.parametrize("count", [1, _ASKED_FOR, 5 * _ASKED_FOR, 1000])
async def test_every_call_is_answered_once_with_its_own_reply(count, direct_methods):
    async with serving(direct_methods) as (service, _, call):
        replies = await asyncio.gather(*(call(b"%d" % number) for number in range(count)))
        assert replies == [b"%d" % number for number in range(count)]
        assert service.begun == count


async def test_a_server_at_rest_takes_no_cpu(direct_methods):
    async with serving(direct_methods) as (_, _, call):
        assert await call(b"x") == b"x"
        before = time.thread_time()  # of this thread, which runs the event loop
        await asyncio.sleep(0.5)
        assert time.thread_time() - before < 0.02


async def test_calls_under_way_do_not_keep_others_from_being_taken(direct_methods):
    async with serving(direct_methods) as (service, _, call):
        service.open.clear()
        calls = [asyncio.ensure_future(call(b"x")) for _ in range(4 * _ASKED_FOR)]
        await eventually(lambda: service.begun == 4 * _ASKED_FOR)
        service.open.set()
        assert await asyncio.gather(*calls) == [b"x"] * 4 * _ASKED_FOR


async def test_a_path_that_is_no_text_is_refused_and_stops_no_server(direct_methods):
    async with serving(direct_methods) as (service, server, call):
        async with grpc.aio.insecure_channel(service.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await channel.unary_unary(b"/test.Service/\xc8")(b"x", timeout=20)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await call(b"x") == b"x"
        async with grpc.aio.insecure_channel(service.address) as channel:
            assert await channel.unary_unary(METHOD)(b"x", timeout=20) == b"x"
        await server.stop(0)


async def test_of_methods_that_do_not_exist_no_request_is_awaited(direct_methods):
    async with (
        serving(direct_methods) as (service, _, _),
        unfinished_call(service, method="/test.Service/Other") as unfinished,
    ):
        assert await unfinished.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_stop_answers_what_is_under_way(direct_methods):
    async with serving(direct_methods) as (service, server, call):
        service.open.clear()
        calls = [asyncio.ensure_future(call(b"x")) for _ in range(2 * _ASKED_FOR)]
        await eventually(lambda: service.begun == 2 * _ASKED_FOR)
        stopping = asyncio.ensure_future(server.stop(20))
        await asyncio.sleep(0)
        service.open.set()
        assert await asyncio.gather(*calls) == [b"x"] * 2 * _ASKED_FOR
        await stopping


async def call_until_it_ends(call, ended):
    """Call again as long as calls succeed or are cancelled."""
    while True:
        try:
            await call(b"x", timeout=20)
        except grpc.aio.AioRpcError as error:
            ended.append(error.code())
            if error.code() is not grpc.StatusCode.CANCELLED:
                return


async def test_calls_that_come_while_the_server_stops_do_not_hang(direct_methods):
    """gRPC itself leaves a call unanswered in one stop of a hundred, until the grace is over.

    Through grpc.aio, on a machine with eight other busy processes, in up to three stops of ten.
    """
    slow = 0
    for attempt in range(10):
        async with serving(direct_methods) as (service, server, call):
            ended = []
            callers = [asyncio.ensure_future(call_until_it_ends(call, ended)) for _ in range(48)]
            await eventually(lambda: service.begun > 100 + attempt)  # noqa: B023 - awaited here
            async with asyncio.timeout(20):
                began = time.monotonic()
                await server.stop(2)  # for as long a call would wait that nobody answers
                slow += time.monotonic() - began > 1.9
                await asyncio.gather(*callers)
        assert grpc.StatusCode.DEADLINE_EXCEEDED not in ended
    assert slow <= (2 if direct_methods else 5)


async def test_a_stop_without_calls_leaves_no_task_behind(direct_methods):
    before = asyncio.all_tasks()
    async with serving(direct_methods) as (_, _, call):
        await call(b"x")
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_a_call_that_is_over_is_held_by_nobody():
    """Or its message, which may be large, would stay in memory until another comes."""
    async with serving([METHOD]) as (service, _, call):
        gc.collect()  # those of other tests
        for _ in range(10):  # whose last event comes in the thread or in the event loop
            assert await call(b"x") == b"x"
            del service.context
            # Not by `isinstance`, at which some objects of other libraries warn.
            await eventually(lambda: not any(type(held) is CoreCall for held in gc.get_objects()))


async def test_a_call_that_is_taken_directly_does_not_reach_grpc_aio(monkeypatch):
    asked = []
    monkeypatch.setattr(Service, "service", lambda _, details: asked.append(details))
    async with serving([METHOD]) as (_, _, call):
        with pytest.raises(grpc.aio.AioRpcError, match="unknown method") as error:
            await call(b"x")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert [type(details).__module__ for details in asked] == ["ganserve.transport.core_call"]


async def test_where_calls_cannot_be_taken_directly_grpc_aio_answers(monkeypatch):
    monkeypatch.setattr(accepting, "core_server", lambda _: None)
    async with serving([METHOD]) as (_, _, call):
        assert await call(b"x") == b"x"


async def test_other_methods_are_answered_beside_direct_ones():
    async with serving(["/test.Service/Another"]) as (_, _, call):
        assert await call(b"x") == b"x"


@pytest.mark.parametrize("how", ["cancel", "deadline", "disconnect"])
async def test_who_leaves_is_not_worked_for(how, direct_methods):
    async with serving(direct_methods) as (service, _, _):
        service.open.clear()
        channel = grpc.aio.insecure_channel(service.address)
        call = channel.unary_unary(METHOD)(b"x", timeout=0.3 if how == "deadline" else None)
        await eventually(lambda: service.begun == 1)
        if how == "cancel":
            call.cancel()
        elif how == "disconnect":
            await channel.close()
        await eventually(lambda: service.ended == ["cancelled"])
        await channel.close()


@pytest.mark.parametrize("seconds", [-3600, 3600])
async def test_the_time_that_remains_does_not_change_with_the_clock(seconds, monkeypatch):
    async with serving([METHOD]) as (service, _, call):
        service.open.clear()
        answer = asyncio.ensure_future(call(b"x", timeout=20))
        await eventually(lambda: service.begun == 1)
        time_before = time.time
        monkeypatch.setattr(time, "time", lambda: time_before() + seconds)
        assert 0 < service.context.time_remaining() < 60
        service.open.set()
        assert await answer == b"x"


async def test_what_a_handler_raises_is_an_error_of_its_call_alone(direct_methods):
    async with serving(direct_methods) as (_, _, call):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"fail", timeout=20)
        assert error.value.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
        assert await call(b"x") == b"x"


async def test_a_reply_that_cannot_be_sent_is_an_error_and_not_unread(monkeypatch):
    def send(*_):
        raise MemoryError

    unread = UnreadReplies(20, 20)
    monkeypatch.setattr(CoreCall, "send", send)
    async with serving([METHOD], unread=unread) as (_, _, call):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"x", timeout=20)
        assert error.value.code() is grpc.StatusCode.INTERNAL
        assert (len(unread), unread.bytes) == (0, 0)


async def test_a_handler_that_gives_up_leaves_no_caller_waiting():
    async with serving([METHOD]) as (_, _, call):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"give up", timeout=20)
        assert error.value.code() is grpc.StatusCode.CANCELLED
        assert await call(b"x") == b"x"


async def test_a_message_that_is_too_long_is_refused(direct_methods):
    options = [("grpc.max_receive_message_length", 100)]
    async with serving(direct_methods, options) as (service, _, call):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(bytes(101), timeout=20)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert service.begun == 0
        assert await call(bytes(100)) == bytes(100)


@pytest.mark.parametrize("messages", [0, 2])
async def test_another_number_of_messages_than_one_loses_no_other_call(messages, direct_methods):
    async with serving(direct_methods) as (service, _, call):
        async with grpc.aio.insecure_channel(service.address) as channel:
            odd = channel.stream_unary(METHOD)(iter([b"x"] * messages), timeout=3)
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await odd
        assert await call(b"x") == b"x"


@contextlib.asynccontextmanager
async def unfinished_call(service, metadata=(), method=METHOD):
    """A call whose request does not come."""

    async def nothing():
        await asyncio.Event().wait()
        yield b""

    async with grpc.aio.insecure_channel(service.address) as channel:
        yield channel.stream_unary(method)(nothing(), metadata=metadata)


async def test_a_request_that_does_not_come_in_time_is_refused(direct_methods, caplog):
    async with serving(direct_methods, request_seconds=0.2) as (service, _, call):
        async with unfinished_call(service) as unfinished, asyncio.timeout(10):
            assert await unfinished.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "within 0.2 s" in await unfinished.details()
        assert service.begun == 0
        assert await call(b"x") == b"x"
    assert "did not come whole (1)" in caplog.text


async def test_a_request_that_comes_is_not_refused_later(direct_methods):
    async with serving(direct_methods, request_seconds=0.1) as (service, _, call):
        service.open.clear()
        answer = asyncio.ensure_future(call(b"x"))
        await asyncio.sleep(0.4)
        service.open.set()
        assert await answer == b"x"


async def test_arrivals_that_find_no_memory_do_not_use_up_those_asked_for(monkeypatch):
    lost = 0

    class ShortOfMemory(cygrpc.CompletionQueue):
        """Has none for a call with a certain header."""

        def poll(self, deadline=None):
            nonlocal lost
            event = super().poll(deadline)
            if ("odd", "1") in (getattr(event, "invocation_metadata", None) or ()):
                lost += 1
                raise MemoryError
            return event

    monkeypatch.setattr(cygrpc, "CompletionQueue", ShortOfMemory)
    async with serving([METHOD]) as (_, _, call):
        odd = [
            call(b"x", metadata=(("odd", "1"),), timeout=0.5)
            for _ in range(2 * direct_calls._ASKED_FOR)
        ]
        ended = await asyncio.gather(*odd, return_exceptions=True)
        assert {error.code() for error in ended} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert await call(b"x", timeout=20) == b"x"
    assert lost == 2 * direct_calls._ASKED_FOR


@pytest.mark.parametrize("others", [0, 40], ids=["in the thread", "in the event loop too"])
async def test_a_message_that_finds_no_memory_is_refused_alone(others, monkeypatch, caplog):
    class ShortOfMemory(cygrpc.CompletionQueue):
        """Has none for a message of three bytes."""

        def poll(self, deadline=None):
            event = super().poll(deadline)
            for operation in getattr(event, "batch_operations", None) or ():
                if getattr(operation, "message", lambda: None)() == b"big":
                    raise MemoryError
            return event

    monkeypatch.setattr(cygrpc, "CompletionQueue", ShortOfMemory)
    async with serving([METHOD], request_seconds=0.3) as (_, _, call), asyncio.timeout(20):
        calls = [call(b"big" if number % 2 else b"x") for number in range(1, others + 2)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        codes = [error.code() for error in ended if error != b"x"]
        assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * (others // 2 + 1)
        assert await call(b"x") == b"x"
    assert "a call was lost" in caplog.text


async def test_looks_at_unread_replies_end_with_a_stop_and_not_with_one_that_fails(monkeypatch):
    class ShortOfMemory(UnreadReplies):
        looks = 0

        def give_up_late(self):
            self.looks += 1
            if self.looks == 2:
                raise MemoryError
            return 0

    monkeypatch.setattr(direct_calls, "BETWEEN_LOOKS", 0.01)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    unread = ShortOfMemory(20, 20)
    async with serving([METHOD], unread=unread):
        await eventually(lambda: unread.looks > 2)
    looks = unread.looks
    await asyncio.sleep(0.1)
    assert unread.looks == looks


async def test_a_stop_does_not_wait_for_requests_that_do_not_come(direct_methods):
    async with serving(direct_methods) as (service, server, call):
        assert await call(b"x") == b"x"
        async with unfinished_call(service) as unfinished:
            await eventually(lambda: len(service.unfinished) == 1)
            async with asyncio.timeout(5):
                await server.stop(20)
                assert await unfinished.code() is grpc.StatusCode.UNAVAILABLE
            assert len(service.unfinished) == 0


async def test_requests_of_strangers_are_not_waited_for():
    def may_call(metadata):
        return ("known", "yes") in [tuple(pair) for pair in metadata]

    async with serving([METHOD], may_call=may_call) as (service, _, call):
        async with unfinished_call(service) as stranger, asyncio.timeout(10):
            assert await stranger == b""  # what their handler, which must refuse, would say
        async with unfinished_call(service, [("known", "yes")]) as known:
            await eventually(lambda: len(service.unfinished) == 1)
            assert not known.done()
        assert await call(b"x", metadata=[("known", "yes")]) == b"x"


HASTY_STOPS = """
import asyncio, random
import sys
import grpc
from ganserve.transport import accepting
from ganserve.transport.accepting import make_aio_server
from ganserve.transport.direct_calls import DirectMethods
from ganserve.transport.unfinished_requests import UnfinishedRequests
from ganserve.transport.unread_replies import UnreadReplies

if sys.argv[1] != "the pinned one":
    accepting.core_server = lambda _: None
if sys.argv[1] == "one that takes calls one by one too":
    del accepting._EagerServer._make_request_call_future

async def stop_hastily(moments):
    server = make_aio_server(
        interceptors=(),
        options=(),
        unfinished=UnfinishedRequests(20),
        direct_methods=DirectMethods((), lambda _: True, UnreadReplies(20, 20)),
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        stops = [asyncio.ensure_future(server.stop(1e6))]
        for _ in range(moments.randrange(4)):
            await asyncio.sleep(0)
        for grace in (0, moments.random() * 0.003, 0):
            stops.append(asyncio.ensure_future(server.stop(grace)))
        await asyncio.gather(*stops)

async def main():
    moments = random.Random(1)
    for _ in range(400):
        await stop_hastily(moments)
    print("all stopped")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "version",
    ["the pinned one", "a core that ends no calls", "one that takes calls one by one too"],
)
def test_stops_that_overtake_each_other_do_not_end_the_process(version):
    """In gRPC 1.85 one of them frees what the other uses."""
    process = subprocess.run(
        [sys.executable, "-c", HASTY_STOPS, version], capture_output=True, text=True, timeout=120
    )
    assert process.stdout == "all stopped\n", process.stderr[-2000:]
    assert process.returncode == 0
