"""How calls are taken: real servers and clients of gRPC."""

import asyncio
import contextlib

import grpc
import pytest
from grpc.aio import _server
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from ganserve.accepting import _ASKED_FOR, _EagerServer, make_aio_server
from tests.ganserve.conftest import eventually

METHOD = "/test.Service/Echo"


class Service(grpc.GenericRpcHandler):
    """Answers once it is let; remembers how many calls were under way at once."""

    def __init__(self):
        self.begun = 0
        self.open = asyncio.Event()
        self.open.set()

    def service(self, handler_call_details):
        if handler_call_details.method == METHOD:
            return grpc.unary_unary_rpc_method_handler(self.answer)
        return None

    async def answer(self, request, _):
        self.begun += 1
        await self.open.wait()
        return request


@contextlib.asynccontextmanager
async def serving():
    service, server = Service(), make_aio_server(interceptors=[], options=[])
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield service, server, channel.unary_unary(METHOD)
    finally:
        await server.stop(0)


def test_the_pinned_version_of_grpc_takes_many_calls_at_a_time():
    assert hasattr(_server.cygrpc.AioServer, "_make_request_call_future")


async def test_other_servers_of_the_process_stay_as_they_are():
    server = make_aio_server(interceptors=[], options=[])
    assert isinstance(server._server, _EagerServer)
    assert type(grpc.aio.server()._server) is not _EagerServer


@pytest.mark.parametrize("count", [1, _ASKED_FOR, 5 * _ASKED_FOR])
async def test_every_call_is_answered_once_with_its_own_reply(count):
    async with serving() as (service, _, call):
        replies = await asyncio.gather(*(call(b"%d" % number) for number in range(count)))
        assert replies == [b"%d" % number for number in range(count)]
        assert service.begun == count


async def test_calls_under_way_do_not_keep_others_from_being_taken():
    async with serving() as (service, _, call):
        service.open.clear()
        calls = [asyncio.ensure_future(call(b"x")) for _ in range(4 * _ASKED_FOR)]
        await eventually(lambda: service.begun == 4 * _ASKED_FOR)
        service.open.set()
        assert await asyncio.gather(*calls) == [b"x"] * 4 * _ASKED_FOR


async def test_methods_are_not_asked_for_one_by_one():
    server, asked = make_aio_server(interceptors=[], options=[]), []
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    make = server._server._make_request_call_future
    server._server.__dict__["_make_request_call_future"] = lambda m: (asked.append(m), make(m))[1]
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await server.stop(0)
    assert asked == [None]


async def test_a_stop_answers_what_is_under_way():
    async with serving() as (service, server, call):
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


@pytest.mark.parametrize("attempt", range(10))
async def test_no_call_hangs_that_comes_while_the_server_stops(attempt):
    async with serving() as (service, server, call):
        ended = []
        callers = [asyncio.ensure_future(call_until_it_ends(call, ended)) for _ in range(48)]
        await eventually(lambda: service.begun > 100 + attempt)
        async with asyncio.timeout(10):
            await server.stop(20)  # for as long a call would wait that nobody answers
            await asyncio.gather(*callers)
    assert grpc.StatusCode.DEADLINE_EXCEEDED not in ended


async def test_a_stop_without_calls_leaves_no_task_behind():
    before = asyncio.all_tasks()
    async with serving() as (_, _, call):
        await call(b"x")
    await eventually(lambda: asyncio.all_tasks() == before)
