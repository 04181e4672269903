import asyncio
import contextlib

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ganserve.transport.health import LIVENESS, Health
from tests.ganserve.conftest import settle

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


@contextlib.asynccontextmanager
async def running(health):
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield health_pb2_grpc.HealthStub(channel)
    finally:
        await server.stop(0)


async def check(stub, service=""):
    return (await stub.Check(HealthCheckRequest(service=service))).status


async def test_the_server_begins_as_not_serving():
    async with running(Health()) as stub:
        assert await check(stub) == NOT_SERVING


async def test_each_service_has_its_own_status():
    health = Health()
    health.set("a", True)
    health.set("b", False)
    async with running(health) as stub:
        assert [await check(stub, name) for name in ("", "a", "b")] == [
            NOT_SERVING,
            SERVING,
            NOT_SERVING,
        ]


async def test_a_check_of_an_unknown_service_is_not_found():
    health = Health()
    health.set("gone", True)
    health.keep_only({""})
    async with running(health) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await check(stub, "gone")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_sees_every_change():
    health = Health()
    async with running(health) as stub:
        watch = stub.Watch(HealthCheckRequest(service="a"))
        assert (await watch.read()).status == SERVICE_UNKNOWN
        health.set("a", False)
        assert (await watch.read()).status == NOT_SERVING
        health.set("a", False)  # no change
        health.set("a", True)
        assert (await watch.read()).status == SERVING
        health.keep_only({""})
        assert (await watch.read()).status == SERVICE_UNKNOWN
        watch.cancel()


async def test_watchers_are_woken_by_changes_alone():
    class Counting(Health):
        looks = 0

        def _status(self, service):
            self.looks += 1
            return super()._status(service)

    health = Counting()
    watch = health.Watch(HealthCheckRequest(service="a"), None)
    assert (await anext(watch)).status == SERVICE_UNKNOWN
    waiting = asyncio.ensure_future(anext(watch))
    await settle()
    for _ in range(3):  # as at every scan
        health.set("", False)
        health.set("b", True)
        health.keep_only({"", "b"})
        await settle()
    assert health.looks == 3  # the first, another before it waits, and one where b appeared
    health.keep_only({""})
    await settle()
    assert health.looks == 4
    health.set("a", True)
    assert (await waiting).status == SERVING
    await watch.aclose()


async def test_a_watcher_that_leaves_does_not_cut_off_the_others():
    health = Health()
    async with running(health) as stub:
        leaver, stayer = (stub.Watch(HealthCheckRequest()) for _ in range(2))
        for watch in (leaver, stayer):
            assert (await watch.read()).status == NOT_SERVING
        leaver.cancel()
        assert await leaver.code() is grpc.StatusCode.CANCELLED
        await check(stub)  # the server has noticed by then
        health.set("", True)
        assert (await asyncio.wait_for(stayer.read(), 20)).status == SERVING
        stayer.cancel()


async def test_shutting_down_is_not_serving_for_good():
    health = Health()
    health.set("a", True)
    async with running(health) as stub:
        watch = stub.Watch(HealthCheckRequest(service="a"))
        assert (await watch.read()).status == SERVING
        health.shut_down()
        assert (await watch.read()).status == NOT_SERVING
        health.set("a", True)
        health.set("", True)
        assert await check(stub) == await check(stub, "a") == NOT_SERVING
        watch.cancel()


async def test_closing_ends_the_watches():
    health = Health()
    async with running(health) as stub:
        watch = stub.Watch(HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        health.close()
        assert await watch.read() is grpc.aio.EOF
        assert await watch.code() is grpc.StatusCode.OK


async def test_a_watch_ends_with_the_last_status_however_soon_it_is_closed():
    health = Health()
    health.set("", True)
    async with running(health) as stub:
        watch = stub.Watch(HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        health.shut_down()
        health.close()  # in the same turn of the event loop
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF


async def test_liveness_is_serving_whatever_becomes_of_the_models():
    health = Health()
    async with running(health) as stub:
        watch = stub.Watch(HealthCheckRequest(service=LIVENESS))
        assert (await watch.read()).status == SERVING
        health.set(LIVENESS, False)  # a model of that name
        health.keep_only({""})
        health.shut_down()
        assert await check(stub, LIVENESS) == SERVING
        assert await check(stub) == NOT_SERVING
        health.close()
        assert await watch.read() is grpc.aio.EOF
