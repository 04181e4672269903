"""The port for health checks alone, beside a main port with TLS, mutual TLS and tokens."""

import asyncio
import contextlib
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2_grpc

from ganserve.client.channel_security import ChannelSecurity, open_async_channel
from ganserve.errors import StartupError
from ganserve.transport.health import LIVENESS
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.ganserve.certificates import Authority
from tests.ganserve.conftest import code_of, eventually, metric

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
Code = grpc.StatusCode


@contextlib.asynccontextmanager
async def probing(server):
    """As Kubernetes' own probe: no TLS, no token."""
    async with grpc.aio.insecure_channel(server.health_address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def check(stub, service=""):
    return (await stub.Check(HealthCheckRequest(service=service), timeout=10)).status


@pytest.fixture
def locked(tmp_path):
    """Settings of a server that answers only clients with a certificate and a token."""
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue()
    tokens = tmp_path / "tokens"
    tokens.write_text("correct-horse-battery-staple\n")
    files = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.ca}
    return authority, files | {"token_file": tokens, "health_port": 0}


async def test_probes_without_tls_and_token_are_answered_beside_mutual_tls(
    locked, repository, running_server
):
    authority, settings = locked
    async with running_server(repository, **settings) as server, probing(server) as stub:
        assert await check(stub) == await check(stub, "tiny") == SERVING
        assert await check(stub, LIVENESS) == SERVING
        assert await code_of(check(stub, "unknown")) is Code.NOT_FOUND
        certificate, key = authority.issue("client")
        files = ChannelSecurity(authority.ca, certificate, key)
        async with open_async_channel(server.address, files, []) as channel:
            assert await check(health_pb2_grpc.HealthStub(channel)) == SERVING
            generate = ImageGenerationServiceStub(channel).GenerateImages
            assert await code_of(generate(pb.GenerateImagesRequest())) is Code.UNAUTHENTICATED
        async with grpc.aio.insecure_channel(server.address) as channel:
            in_the_clear = check(health_pb2_grpc.HealthStub(channel))
            assert await code_of(in_the_clear) is Code.UNAVAILABLE


async def test_the_port_knows_no_other_service(locked, repository, running_server):
    async with running_server(repository, **locked[1]) as server:
        async with grpc.aio.insecure_channel(server.health_address) as channel:
            generate = ImageGenerationServiceStub(channel).GenerateImages
            assert await code_of(generate(pb.GenerateImagesRequest())) is Code.UNIMPLEMENTED
            reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            # Without a message: grpc.aio's client says INTERNAL where it is refused as it writes.
            call = reflect(iter(()))
            assert await code_of(call.read()) is Code.UNIMPLEMENTED
        checks = {"grpc_service": "unknown", "grpc_code": "UNIMPLEMENTED"}
        assert await metric(server, "grpc_server_handled_total", **checks) == 2


async def test_a_process_that_loads_or_drains_is_alive_but_not_ready(tmp_path, running_server):
    settings = {"health_port": 0, "until_ready": False}
    async with running_server(tmp_path, **settings) as server, probing(server) as stub:
        await eventually(lambda: server.why_not_ready() == "there is no model")
        assert (await check(stub), await check(stub, LIVENESS)) == (NOT_SERVING, SERVING)
        draining = asyncio.ensure_future(server.drain(60))
        await eventually(lambda: server.why_not_ready() == "draining")
        assert (await check(stub), await check(stub, LIVENESS)) == (NOT_SERVING, SERVING)
        server.stop_now.set()
        await draining
        assert (await check(stub), await check(stub, LIVENESS)) == (NOT_SERVING, SERVING)


async def test_liveness_is_answered_until_the_last_call_is(repository, running_server):
    async with contextlib.AsyncExitStack() as stack:
        settings = {"health_port": 0, "chunk_bytes": 1}
        server = await stack.enter_async_context(running_server(repository, **settings))
        async with (
            grpc.aio.insecure_channel(server.address) as channel,
            probing(server) as stub,
        ):
            watch, alive = (stub.Watch(HealthCheckRequest(service=s)) for s in ("", LIVENESS))
            assert (await watch.read()).status == (await alive.read()).status == SERVING
            seeds = pb.SeedRange(start=0, count=400)
            stream = ImageGenerationServiceStub(channel).StreamImages(
                pb.GenerateImagesRequest(seed_range=seeds)
            )
            await stream.read()
            closing = asyncio.ensure_future(stack.aclose())
            assert (await watch.read()).status == NOT_SERVING
            assert await check(stub, LIVENESS) == SERVING
            replies = 1
            while await stream.read() is not grpc.aio.EOF:
                replies += 1
            assert replies == 400
            assert await alive.read() is grpc.aio.EOF  # never anything but SERVING
            await closing


async def test_watches_are_bounded_on_this_port_too(repository, running_server):
    settings = {"health_port": 0, "max_concurrent_calls": 2}
    async with running_server(repository, **settings) as server, probing(server) as stub:
        watches = [stub.Watch(HealthCheckRequest()) for _ in range(2)]
        for watch in watches:
            assert (await watch.read()).status == SERVING
        refused = stub.Watch(HealthCheckRequest())
        assert await code_of(refused.read()) is Code.RESOURCE_EXHAUSTED
        assert await check(stub) == SERVING
        for watch in watches:
            watch.cancel()


async def test_by_default_there_is_no_such_port(repository, running_server):
    async with running_server(repository) as server:
        assert server.health_address == ""


async def test_a_port_in_use_is_one_clear_line(repository, running_server):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        expected = rf"health_port: .*127.0.0.1:{port}: Address already .* another --health-port"
        with pytest.raises(StartupError, match=expected):
            async with running_server(repository, health_port=port):
                pass
