"""TLS, tokens, rate limits and the limits of calls and connections, over real connections."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ganserve.cli import run
from ganserve.client import AsyncClient, CallError, Client
from ganserve.client.channel_security import ChannelSecurity, open_async_channel
from ganserve.errors import StartupError
from ganserve.inference.v2 import open_inference_pb2 as inference_pb
from ganserve.inference.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from ganserve.log_format import set_up_logging
from ganserve.transport import calls_under_way, unfinished_requests
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.ganserve.certificates import AROUND, Authority
from tests.ganserve.conftest import (
    code_of,
    connected,
    eventually,
    failure,
    fetch,
    metric,
    retry_seconds,
)
from tests.ganserve.silent_reader import silent_reader
from tests.ganserve.tiny import write_artifact

TOKEN, OTHER = "correct-horse-battery-staple", "another-token-altogether"
LATE = "a-token-of-tomorrow"
Code = grpc.StatusCode
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/ganserve.v1.ImageGenerationService/StreamImages"
LIST = "/ganserve.v1.ImageGenerationService/ListModels"
WATCH = "/grpc.health.v1.Health/Watch"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "tls")


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n{OTHER}\n")
    return file


def tls(authority, name="server", **settings):
    certificate, key = authority.issue(name)
    return {"tls_certificate": certificate, "tls_key": key} | settings


def make_rsa_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


async def grpc_connects(certificate, key, authority):
    """Whether a client of gRPC's own reaches a server of gRPC's own, without any part of ours."""
    server = grpc.server(ThreadPoolExecutor(1))
    pair = key.read_bytes(), certificate.read_bytes()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        code = await code_of(channel.unary_unary("/no/method")(b"", timeout=10))
    server.stop(0)
    return code is Code.UNIMPLEMENTED


def request(count=1, model=""):
    return pb.GenerateImagesRequest(
        model_name=model,
        seed_range=pb.SeedRange(start=0, count=count),
        format=pb.IMAGE_FORMAT_RAW,
    )


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


@contextlib.asynccontextmanager
async def secured(server, **files):
    async with open_async_channel(server.address, ChannelSecurity(**files), []) as channel:
        yield ImageGenerationServiceStub(channel)


class TestTls:
    async def test_clients_that_trust_the_authority_are_answered(
        self, authority, repository, running_server
    ):
        async with (
            running_server(repository, **tls(authority)) as server,
            secured(server, tls_ca=authority.ca) as stub,
        ):
            assert (await stub.GenerateImages(request(3))).count == 3

    async def test_nobody_is_answered_in_the_clear(self, authority, repository, running_server):
        async with (
            running_server(repository, **tls(authority)) as server,
            connected(server) as stub,
        ):
            assert await code_of(stub.GenerateImages(request(), timeout=10)) is Code.UNAVAILABLE

    @pytest.mark.parametrize(
        ("server_speaks", "client_speaks", "hint"),
        [
            pytest.param(True, False, "(does it speak TLS? then give --tls-ca,", id="server"),
            pytest.param(
                False, True, "(does it speak no TLS? then leave out --tls-ca,", id="client"
            ),
        ],
    )
    async def test_where_one_end_alone_speaks_tls_the_error_says_what_to_do(
        self, server_speaks, client_speaks, hint, authority, repository, running_server
    ):
        settings = tls(authority) if server_speaks else {}
        security = ChannelSecurity(tls_ca=authority.ca if client_speaks else None)

        def ask():
            with Client(server.address, security=security, retries=False) as client:
                client.models()

        async with running_server(repository, **settings) as server:
            with pytest.raises(CallError) as raised:
                await asyncio.to_thread(ask)
            async with AsyncClient(server.address, security=security, retries=False) as client:
                with pytest.raises(CallError) as raised_in_a_loop:
                    await client.models()
        for error in (raised.value, raised_in_a_loop.value):
            assert error.code is Code.UNAVAILABLE
            assert hint in error.details

    @pytest.mark.parametrize("shown", [False, True], ids=["none", "of another authority"])
    async def test_a_client_whose_certificate_is_wanted_is_told_what_to_give(
        self, shown, authority, repository, running_server, tmp_path
    ):
        certificate, key = Authority(tmp_path / "other").issue() if shown else (None, None)
        security = ChannelSecurity(tls_ca=authority.ca, tls_certificate=certificate, tls_key=key)
        async with (
            running_server(repository, **tls(authority, tls_client_ca=authority.ca)) as server,
            AsyncClient(server.address, security=security, retries=False) as client,
        ):
            with pytest.raises(CallError, match="then give --tls-certificate and --tls-key"):
                await client.models()

    async def test_a_load_test_that_is_to_speak_tls_and_does_not_says_so(
        self, authority, repository, running_server, capsys
    ):
        async with running_server(repository, **tls(authority)) as server:
            arguments = ["load-test", "--address", server.address, "--sweep", "rate"]
            assert await asyncio.to_thread(run, arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"ganserve load-test: UNAVAILABLE: {server.address} does not serve")
        assert "then give --tls-ca" in line

    async def test_a_server_of_another_authority_is_not_trusted(
        self, authority, repository, running_server, tmp_path
    ):
        other = Authority(tmp_path / "other")
        async with (
            running_server(repository, **tls(authority)) as server,
            secured(server, tls_ca=other.ca) as stub,
        ):
            assert await code_of(stub.GenerateImages(request(), timeout=10)) is Code.UNAVAILABLE

    async def test_where_clients_need_certificates_others_are_turned_away(
        self, authority, repository, running_server, tmp_path
    ):
        settings = tls(authority, tls_client_ca=authority.ca)
        other = Authority(tmp_path / "other")
        async with running_server(repository, **settings) as server:
            for issuer, expected in ((authority, Code.OK), (other, Code.UNAVAILABLE)):
                certificate, key = issuer.issue("client")
                files = {"tls_certificate": certificate, "tls_key": key}
                async with secured(server, tls_ca=authority.ca, **files) as stub:
                    assert await code_of(stub.GenerateImages(request(), timeout=10)) is expected
            async with secured(server, tls_ca=authority.ca) as stub:
                assert await code_of(stub.GenerateImages(request(), timeout=10)) is Code.UNAVAILABLE

    async def test_a_new_certificate_needs_no_restart_and_breaks_no_connection(
        self, authority, repository, running_server, tmp_path
    ):
        settings = tls(authority)
        async with running_server(repository, **settings) as server:
            async with secured(server, tls_ca=authority.ca) as early:
                await early.GenerateImages(request())
                successor = Authority(tmp_path / "tls", "successor")
                successor.issue("server")  # over the files in use
                reloads = server.metrics.credential_reloads.labels("certificate", "success")
                await eventually(lambda: reloads._value.get() >= 1)
                async with secured(server, tls_ca=successor.ca) as late:
                    assert await code_of(late.GenerateImages(request())) is Code.OK
                assert await code_of(early.GenerateImages(request())) is Code.OK
            async with secured(server, tls_ca=authority.ca) as stub:
                assert await code_of(stub.GenerateImages(request(), timeout=10)) is Code.UNAVAILABLE

    async def test_a_broken_certificate_leaves_the_one_before_in_use_and_shows(
        self, authority, repository, running_server, caplog
    ):
        settings = tls(authority)
        async with running_server(repository, **settings) as server:
            settings["tls_certificate"].write_text("rubbish")
            failures = server.metrics.credential_reloads.labels("certificate", "failure")
            await eventually(lambda: failures._value.get() == 1)
            assert "the certificates before stay in use: tls_certificate" in caplog.text
            async with secured(server, tls_ca=authority.ca) as stub:
                assert await code_of(stub.GenerateImages(request())) is Code.OK
            expiry = await metric(server, "ganserve_certificate_expiry_timestamp_seconds")
            assert expiry > time.time()

    @pytest.mark.parametrize("around", AROUND)
    async def test_what_stands_around_certificates_keeps_no_client_away(
        self, authority, repository, running_server, around
    ):
        settings = tls(authority, tls_client_ca=authority.ca)
        certificate, key = authority.issue("client")
        for file in (*settings.values(), certificate, key):
            file.write_bytes(around + file.read_bytes())
        client_files = {"tls_ca": authority.ca, "tls_certificate": certificate, "tls_key": key}
        async with (
            running_server(repository, **settings) as server,
            secured(server, **client_files) as stub,
        ):
            assert await code_of(stub.GenerateImages(request(), timeout=10)) is Code.OK

    @pytest.mark.parametrize(
        "make_key",
        [
            pytest.param(make_rsa_key, id="RSA"),
            pytest.param(lambda: ec.generate_private_key(ec.SECP256R1()), id="P-256"),
            pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        ],
    )
    async def test_keys_that_are_taken_are_those_that_clients_can_verify(
        self, authority, repository, running_server, make_key
    ):
        certificate, key = authority.issue(key=make_key())
        async with (
            running_server(repository, tls_certificate=certificate, tls_key=key) as server,
            secured(server, tls_ca=authority.ca) as stub,
        ):
            assert await code_of(stub.GenerateImages(request(), timeout=10)) is Code.OK

    @pytest.mark.parametrize(
        "make_key",
        [
            pytest.param(ed25519.Ed25519PrivateKey.generate, id="Ed25519"),
            pytest.param(lambda: ec.generate_private_key(ec.SECP521R1()), id="P-521"),
        ],
    )
    async def test_a_key_that_no_client_can_verify_is_not_taken_over(
        self, authority, repository, running_server, make_key
    ):
        settings = tls(authority)
        async with running_server(repository, **settings) as server:
            files = authority.issue(key=make_key())
            failures = server.metrics.credential_reloads.labels("certificate", "failure")
            await eventually(lambda: failures._value.get() >= 1)
            async with secured(server, tls_ca=authority.ca) as stub:
                assert await code_of(stub.GenerateImages(request(), timeout=10)) is Code.OK
        with pytest.raises(StartupError, match="expected a key of the kind RSA, P-256 or P-384"):
            async with running_server(repository, **settings):
                pass
        assert not await grpc_connects(*files, authority)  # or the refusal has lost its reason

    async def test_a_bad_certificate_at_start_is_an_error_of_the_start(
        self, authority, repository, running_server
    ):
        certificate, key = authority.issue("server", days=-1)
        with pytest.raises(StartupError, match="certificate has expired"):
            async with running_server(repository, tls_certificate=certificate, tls_key=key):
                pass

    async def test_health_is_answered_over_tls_too(self, authority, repository, running_server):
        async with running_server(repository, **tls(authority)) as server:
            files = ChannelSecurity(tls_ca=authority.ca)
            async with open_async_channel(server.address, files, []) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                reply = await health.Check(HealthCheckRequest())
            assert reply.status == HealthCheckResponse.SERVING
            assert await asyncio.to_thread(fetch, server, "/readyz") == "ready\n"


class TestTokens:
    async def test_calls_with_a_known_token_are_answered(
        self, token_file, repository, running_server
    ):
        async with (
            running_server(repository, token_file=token_file) as server,
            connected(server) as stub,
        ):
            for token in (TOKEN, OTHER):
                assert (await stub.GenerateImages(request(), metadata=bearer(token))).count == 1
            call = stub.StreamImages(request(3), metadata=bearer(TOKEN))
            assert sum([reply.count async for reply in call]) == 3

    @pytest.mark.parametrize(
        "metadata",
        [
            pytest.param((), id="none"),
            pytest.param(bearer("wrong-wrong-wrong-wrong"), id="unknown"),
            pytest.param(bearer(""), id="empty"),
            pytest.param((("authorization", f"Basic {TOKEN}"),), id="another scheme"),
            pytest.param((("x-authorization", f"Bearer {TOKEN}"),), id="another header"),
        ],
    )
    async def test_all_others_are_turned_away_and_counted(
        self, token_file, repository, running_server, metadata, caplog
    ):
        caplog.set_level(logging.DEBUG, "ganserve")
        async with (
            running_server(repository, token_file=token_file) as server,
            connected(server) as stub,
        ):
            error = await failure(stub.GenerateImages(request(), metadata=metadata))
            assert error.code() is Code.UNAUTHENTICATED
            assert "authorization: Bearer TOKEN" in error.details()
            call = stub.StreamImages(request(3), metadata=metadata)
            assert await code_of(call.read()) is Code.UNAUTHENTICATED
            listed = stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
            assert await code_of(listed) is Code.UNAUTHENTICATED
            handled = {"grpc_code": "UNAUTHENTICATED"}
            assert await metric(server, "grpc_server_handled_total", **handled) == 3
            assert await metric(server, "grpc_server_started_total") == 3
            rejected = await metric(
                server, "ganserve_rejected_requests_total", reason="unauthenticated"
            )
            assert rejected == 3
            assert await metric(server, "ganserve_images_total") == 0
        assert TOKEN not in caplog.text
        assert "wrong-wrong" not in caplog.text

    @pytest.mark.parametrize(
        "method",
        [
            "ganserve.v1.ImageGenerationService/GenerateImages",
            "ganserve.v1.ImageGenerationService/StreamImages",
            "ganserve.v1.ImageGenerationService/ListModels",
            "inference.GRPCInferenceService/ModelInfer",
        ],
    )
    async def test_their_requests_are_not_waited_for(
        self, token_file, repository, running_server, method
    ):
        async def nothing():
            await asyncio.Event().wait()
            yield b""

        async with (
            running_server(repository, token_file=token_file) as server,
            grpc.aio.insecure_channel(server.address) as channel,
            asyncio.timeout(10),
        ):
            call = channel.stream_stream(f"/{method}")(nothing())
            assert await code_of(call.read()) is Code.UNAUTHENTICATED

    async def test_they_are_refused_though_their_token_becomes_known_meanwhile(
        self, token_file, repository, running_server
    ):
        async with (
            running_server(repository, token_file=token_file) as server,
            connected(server) as stub,
        ):
            tokens = server.admission._tokens
            identify = tokens.identify

            def look_and_take_over_the_new_file(authorization):
                found = identify(authorization)
                token_file.write_text(f"{LATE}\n")
                tokens.refresh()
                return found

            tokens.identify = look_and_take_over_the_new_file
            given = (*bearer(LATE), ("x-request-id", "mine"))
            call = stub.GenerateImages(request(), metadata=given)
            assert await code_of(call) is Code.UNAUTHENTICATED
            assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
            assert (await stub.GenerateImages(request(), metadata=bearer(LATE))).count == 1

    async def test_health_is_open_and_reflection_is_not(
        self, token_file, repository, running_server
    ):
        async with (
            running_server(repository, token_file=token_file) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(HealthCheckRequest())).status == HealthCheckResponse.SERVING
            watch = health.Watch(HealthCheckRequest())
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            watch.cancel()
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection.ServerReflectionInfo(iter([asked]))
            assert await code_of(call.read()) is Code.UNAUTHENTICATED
            call = reflection.ServerReflectionInfo(iter([asked]), metadata=bearer(TOKEN))
            assert (await call.read()).list_services_response.service
            call.cancel()

    async def test_a_token_taken_off_the_list_is_refused_without_a_restart(
        self, token_file, repository, running_server
    ):
        async with (
            running_server(repository, token_file=token_file) as server,
            connected(server) as stub,
        ):
            token_file.write_text(f"{OTHER}\n")
            reloads = server.metrics.credential_reloads.labels("tokens", "success")
            await eventually(lambda: reloads._value.get() == 1)
            refused = stub.GenerateImages(request(), metadata=bearer(TOKEN))
            assert await code_of(refused) is Code.UNAUTHENTICATED
            assert await code_of(stub.GenerateImages(request(), metadata=bearer(OTHER))) is Code.OK

    async def test_without_tls_the_log_warns(self, token_file, repository, running_server, caplog):
        async with running_server(repository, token_file=token_file):
            assert "tokens without TLS" in caplog.text


class TestClients:
    @pytest.fixture
    async def server(self, authority, token_file, repository, running_server):
        settings = tls(authority, tls_client_ca=authority.ca, token_file=token_file)
        async with running_server(repository, **settings) as server:
            yield server

    @pytest.fixture
    def files(self, authority, tmp_path):
        certificate, key = authority.issue("client")
        token = tmp_path / "token"
        token.write_text(f"{TOKEN}\n")
        return {
            "tls_ca": authority.ca,
            "tls_certificate": certificate,
            "tls_key": key,
            "token_file": token,
        }

    async def test_the_client_shows_certificate_and_token(self, server, files):
        def ask():
            with Client(server.address, security=ChannelSecurity(**files)) as client:
                streamed = sum(len(part) for part in client.stream(seeds=range(3)))
                return len(client.generate(seeds=[1, 2])), streamed, len(client.models())

        assert await asyncio.to_thread(ask) == (2, 3, 1)

    async def test_a_client_without_token_is_told(self, server, files):
        del files["token_file"]

        def ask():
            with Client(server.address, security=ChannelSecurity(**files)) as client:
                client.models()

        with pytest.raises(CallError, match="UNAUTHENTICATED"):
            await asyncio.to_thread(ask)

    async def test_every_command_takes_the_files(self, server, files, tmp_path, capsys):
        flags = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
        commands = (
            ["generate", "--seeds", "0-3", "--out", str(tmp_path / "grid.png")],
            ["models"],
            ["load-test", "--seconds", "0.2", "--warm-up-seconds", "0", "--json"],
        )
        for command in commands:
            arguments = [*command, "--address", server.address, *flags]
            assert await asyncio.to_thread(run, arguments) == 0, capsys.readouterr().err

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--tls-ca", "none.pem"], "none.pem"),
            (["--token-file", "none"], "none"),
        ],
    )
    def test_files_that_are_not_there_are_one_line(self, flags, message, capsys):
        for command in (["models"], ["load-test"]):
            assert run([*command, "--address", "127.0.0.1:1", *flags]) == 1
            error = capsys.readouterr().err
            assert message in error
            assert len(error.splitlines()) == 1

    @pytest.mark.parametrize(
        ("wrong", "content", "message"),
        [
            pytest.param("tls_ca", b"", "tls_ca: expected certificates as PEM", id="no authority"),
            pytest.param("tls_ca", b"x\n", "tls_ca: expected certificates as PEM", id="no PEM"),
            pytest.param(
                "tls_certificate", b"x\n", "tls_certificate: expected one as", id="no chain"
            ),
            pytest.param("tls_key", b"", "tls_certificate: .* something else", id="no key"),
            pytest.param(
                "tls_key", None, "tls_certificate: .* KEY_VALUES_MISMATCH", id="another's key"
            ),
        ],
    )
    def test_files_that_hold_something_else_are_refused_before_any_call(
        self, wrong, content, message, authority, files, tmp_path
    ):
        """An empty file of authorities would otherwise stand for all that are public."""
        files[wrong] = tmp_path / "wrong"
        _, another_key = authority.issue("another")
        files[wrong].write_bytes(another_key.read_bytes() if content is None else content)
        for client in (Client, AsyncClient):
            with pytest.raises(ValueError, match=f"^{message}"):
                client("127.0.0.1:1", security=ChannelSecurity(**files))

    @pytest.mark.parametrize("wrong", ["tls_ca", "tls_certificate"])
    def test_a_command_names_the_flag_of_a_file_that_holds_something_else(
        self, wrong, files, tmp_path, capsys
    ):
        files[wrong] = tmp_path / "wrong"
        files[wrong].write_text("no PEM")
        spelled = {name: f"--{name.replace('_', '-')}" for name in files}
        flags = [f"{spelled[name]}={path}" for name, path in files.items()]
        for command in (["models"], ["load-test"]):
            assert run([*command, "--address", "127.0.0.1:1", *flags]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"ganserve {command[0]}: {spelled[wrong]}: expected ")

    def test_a_file_that_holds_no_token_is_refused(self, tmp_path):
        for content in (b"", b"two words", b"\x07bell", TOKEN.encode("utf-16")):
            (tmp_path / "token").write_bytes(content)
            with pytest.raises(ValueError, match="expected one token"):
                Client("127.0.0.1:1", security=ChannelSecurity(token_file=tmp_path / "token"))


class TestRateLimits:
    async def test_calls_made_together_all_succeed_in_time(self, repository, running_server):
        settings = {"rate_limit_images_per_second": 200, "rate_limit_burst_images": 40}
        async with (
            running_server(repository, **settings) as server,
            AsyncClient(server.address, timeout_seconds=30) as client,
        ):
            calls = [client.generate(seeds=range(10)) for _ in range(40)]
            answers = await asyncio.gather(*calls)
            assert all(len(images) == 10 for images in answers)

    async def test_a_client_beyond_its_share_is_told_when_to_come_back(
        self, repository, running_server
    ):
        settings = {"rate_limit_images_per_second": 0.5, "rate_limit_burst_images": 8}
        async with running_server(repository, **settings) as server, connected(server) as stub:
            assert (await stub.GenerateImages(request(8))).count == 8
            error = await failure(stub.GenerateImages(request(4)))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert 4 < retry_seconds(error) <= 8
            stream = stub.StreamImages(request(4))
            assert await code_of(stream.read()) is Code.RESOURCE_EXHAUSTED
            rejected = await metric(
                server, "ganserve_rejected_requests_total", reason="rate_limited"
            )
            assert rejected == 2
            assert await metric(server, "ganserve_images_total") == 8

    async def test_tokens_have_shares_of_their_own_whatever_the_connection(
        self, token_file, repository, running_server
    ):
        settings = {"rate_limit_images_per_second": 0.01, "rate_limit_burst_images": 8}
        async with running_server(repository, token_file=token_file, **settings) as server:
            codes = []
            for token in (TOKEN, TOKEN, OTHER):
                async with connected(server) as stub:
                    call = stub.GenerateImages(request(8), metadata=bearer(token))
                    codes.append(await code_of(call))
        assert codes == [Code.OK, Code.RESOURCE_EXHAUSTED, Code.OK]

    async def test_what_is_refused_for_other_reasons_costs_nothing(
        self, repository, running_server
    ):
        settings = {"rate_limit_images_per_second": 0.01, "rate_limit_burst_images": 8}
        async with running_server(repository, **settings) as server, connected(server) as stub:
            for _ in range(5):
                assert await code_of(stub.GenerateImages(request(8, "none"))) is Code.NOT_FOUND
            assert await code_of(stub.GenerateImages(request(8))) is Code.OK

    @pytest.mark.parametrize("method", ["GenerateImages", "StreamImages", "ModelInfer"])
    async def test_what_a_full_queue_refuses_costs_nothing(
        self, method, token_file, repository, running_server
    ):
        settings = {"rate_limit_images_per_second": 0.01, "rate_limit_burst_images": 8}
        settings |= {"queue_size": 8, "max_images_per_request": 8, "max_wait_seconds": 60}
        async with (
            running_server(repository, token_file=token_file, **settings) as server,
            connected(server) as stub,
        ):
            pending = server.metrics.pending_images
            filling = stub.GenerateImages(request(8), metadata=bearer(OTHER))
            await eventually(lambda: pending._value.get() == 8)
            for _ in range(3):
                error = await failure(ask(stub, server, method))
                assert "the queue is full" in error.details()
            filling.cancel()
            await eventually(lambda: pending._value.get() == 0)
            call = stub.GenerateImages(request(8), metadata=bearer(TOKEN))
            await eventually(lambda: call.done() or pending._value.get() == 8)
            assert not call.done(), "it would be beyond its share"
            call.cancel()

    @pytest.mark.parametrize("end", ["deadline", "cancelled"])
    async def test_what_waited_in_the_queue_counts_though_no_model_saw_it(
        self, end, repository, running_server
    ):
        """Or one client could keep the queue full for nothing."""
        settings = {"rate_limit_images_per_second": 0.01, "rate_limit_burst_images": 8}
        settings |= {"max_wait_seconds": 60}
        async with running_server(repository, **settings) as server, connected(server) as stub:
            pending = server.metrics.pending_images
            call = stub.GenerateImages(request(8), timeout=0.5 if end == "deadline" else 20)
            await eventually(lambda: pending._value.get() == 8)
            if end == "cancelled":
                call.cancel()
            await eventually(lambda: pending._value.get() == 0)
            assert await metric(server, "ganserve_abandoned_images_total", reason=end) == 8
            error = await failure(stub.GenerateImages(request(8)))
            assert "the rate limit" in error.details()


async def ask(stub, server, method):
    """Ask for 8 images in one of the ways there are."""
    if method == "ModelInfer":
        infer = inference_pb.ModelInferRequest(model_name="tiny")
        infer.inputs.add(
            name="seeds",
            datatype="UINT64",
            shape=[8],
            contents=inference_pb.InferTensorContents(uint64_contents=range(8)),
        )
        async with grpc.aio.insecure_channel(server.address) as channel:
            inference = GRPCInferenceServiceStub(channel)
            return await inference.ModelInfer(infer, metadata=bearer(TOKEN))
    call = getattr(stub, method)(request(8), metadata=bearer(TOKEN))
    return await (call.read() if method == "StreamImages" else call)


class TestLimits:
    async def test_calls_beyond_the_limit_are_refused_and_health_is_not_starved(
        self, tmp_path, running_server
    ):
        write_artifact(tmp_path, height=64, width=64)
        settings = {"max_concurrent_calls": 4, "chunk_bytes": 1024 * 1024}
        async with (
            running_server(tmp_path, **settings) as server,
            grpc.aio.insecure_channel(
                server.address, options=[("grpc.max_receive_message_length", -1)]
            ) as channel,
        ):
            stub, health = ImageGenerationServiceStub(channel), health_pb2_grpc.HealthStub(channel)
            # Nobody reads these, so they stay under way.
            held = [stub.StreamImages(request(512)) for _ in range(4)]
            for call in held:
                await call.read()
            error = await failure(stub.ListModels(pb.ListModelsRequest()))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert retry_seconds(error) > 0
            for _ in range(10):
                reply = await health.Check(HealthCheckRequest(), timeout=5)
                assert reply.status == HealthCheckResponse.SERVING
            held[0].cancel()
            await eventually(lambda: server.interceptor.under_way.in_flight < 4)
            assert await code_of(stub.ListModels(pb.ListModelsRequest())) is Code.OK
            for call in held:
                call.cancel()

    async def test_replies_that_nobody_reads_count_as_under_way_until_their_deadline(
        self, tmp_path, running_server, caplog
    ):
        write_artifact(tmp_path, height=64, width=64)
        settings = {"max_concurrent_calls": 4, "deadline_seconds": 2, "max_deadline_seconds": 2}
        async with (
            running_server(tmp_path, **settings) as server,
            connected(server) as stub,
            silent_reader(server.address) as silent,
        ):
            message = request(64).SerializeToString()
            for _ in range(12):
                silent.ask("/ganserve.v1.ImageGenerationService/GenerateImages", message)
            await eventually(lambda: len(server.unread) == 4)
            assert await code_of(stub.GenerateImages(request())) is Code.RESOURCE_EXHAUSTED
            assert await metric(server, "grpc_server_handled_total", grpc_code="OK") == 4
            # Its connection is open still, and nothing was read.
            await eventually(lambda: len(server.unread) == 0)
            assert await code_of(stub.GenerateImages(request())) is Code.OK
            assert "given up: replies that were not read in time (4)" in caplog.text

    async def test_large_replies_that_nobody_reads_are_limited_by_their_bytes(
        self, tmp_path, running_server, monkeypatch
    ):
        monkeypatch.setattr(calls_under_way, "_MOST_UNREAD_BYTES", 2**20)
        write_artifact(tmp_path, height=64, width=64)
        async with running_server(tmp_path) as server, connected(server) as stub:
            async with silent_reader(server.address) as silent:
                message = request(64).SerializeToString()  # of 768 KiB
                for asked in range(1, 3):
                    silent.ask("/ganserve.v1.ImageGenerationService/GenerateImages", message)
                    await eventually(lambda asked=asked: len(server.unread) == asked)
                error = await failure(stub.GenerateImages(request()))
                assert error.code() is Code.RESOURCE_EXHAUSTED
                assert "replies of more than 1 MiB wait to be read" in error.details()
                assert retry_seconds(error) > 0
            await eventually(lambda: server.unread.bytes == 0)
            assert await code_of(stub.GenerateImages(request())) is Code.OK

    async def test_streams_that_nobody_reads_count_as_under_way_until_their_client_leaves(
        self, tmp_path, running_server
    ):
        write_artifact(tmp_path, height=64, width=64)
        settings = {"max_concurrent_calls": 4, "deadline_seconds": 0.5, "max_deadline_seconds": 0.5}
        async with running_server(tmp_path, **settings) as server, connected(server) as stub:
            async with silent_reader(server.address) as silent:
                message = request(512).SerializeToString()
                for _ in range(4):
                    silent.ask("/ganserve.v1.ImageGenerationService/StreamImages", message)
                await eventually(lambda: len(server.unread) == 4)
                assert not server.interceptor.under_way.in_flight
                assert await code_of(stub.GenerateImages(request())) is Code.RESOURCE_EXHAUSTED
            await eventually(lambda: len(server.unread) == 0)
            assert await code_of(stub.GenerateImages(request())) is Code.OK

    async def test_half_a_health_check_is_not_kept(self, repository, running_server, caplog):
        async with (
            running_server(repository, deadline_seconds=0.2) as server,
            silent_reader(server.address) as silent,
        ):
            for _ in range(3):
                silent.ask("/grpc.health.v1.Health/Check", b"\n\x03", missing=1000)
            told = "calls whose request did not come whole (3)"
            await eventually(lambda: told in caplog.text)
            async with grpc.aio.insecure_channel(server.address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                assert (await check(HealthCheckRequest())).status == HealthCheckResponse.SERVING

    @pytest.mark.parametrize("method", [STREAM, LIST, WATCH, INFER])
    async def test_half_a_request_is_not_kept_whatever_the_method(
        self, repository, running_server, method, caplog
    ):
        async with running_server(repository, deadline_seconds=0.2) as server:
            async with silent_reader(server.address) as silent:
                for _ in range(3):
                    silent.ask(method, b"\n\x03", missing=1000)
                await eventually(lambda: "did not come whole (3)" in caplog.text)
            refused = await metric(server, "ganserve_rejected_requests_total", reason="unfinished")
            assert refused == 3

    async def test_of_many_half_requests_the_oldest_go_before_their_time(
        self, repository, running_server, monkeypatch
    ):
        monkeypatch.setattr(unfinished_requests, "_LONG_SECONDS", 0.1)
        monkeypatch.setattr(unfinished_requests, "_BETWEEN_LOOKS", 0.1)
        async with (
            running_server(repository) as server,
            silent_reader(server.address) as silent,
            connected(server) as stub,
        ):
            refused = server.metrics.rejected_requests.labels("unfinished")
            for method in (STREAM, INFER) * 50:
                silent.ask(method, b"\n\x03", missing=1000)
            await eventually(lambda: refused._value.get() == 100 - 64)
            await asyncio.sleep(0.5)
            assert refused._value.get() == 100 - 64
            assert await code_of(stub.GenerateImages(request())) is Code.OK

    async def test_health_checks_that_nobody_reads_take_no_calls_place(
        self, repository, running_server
    ):
        async with (
            running_server(repository, max_concurrent_calls=2) as server,
            connected(server) as stub,
            silent_reader(server.address) as silent,
        ):
            for _ in range(10):
                silent.ask("/grpc.health.v1.Health/Check", b"")
            await asyncio.sleep(0.2)
            assert await code_of(stub.GenerateImages(request())) is Code.OK

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            pytest.param(INFER, b"\x2a\0" * 1_000_000, id="inputs"),
            pytest.param(INFER, b"\x2a\x80\x89\x7a" + b"\x22\0" * 1_000_000, id="in an input"),
            pytest.param("/grpc.health.v1.Health/Check", b"\n\0" * 1_000_000, id="health"),
            pytest.param(INFER, b"\x0b\x0c" * 1_000_000, id="groups"),
        ],
    )
    async def test_messages_of_a_million_fields_are_not_parsed(
        self, path, message, repository, running_server
    ):
        async with (
            running_server(repository) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            call = channel.unary_unary(path)
            await code_of(call(b""))  # what is done the first time
            before = time.process_time()
            packed = grpc.Compression.Gzip  # to some kilobytes
            assert await code_of(call(message, compression=packed)) is Code.INVALID_ARGUMENT
            assert time.process_time() - before < 0.5

    async def test_odd_bytes_in_metadata_fill_no_log(self, repository, running_server, caplog):
        set_up_logging("info", "text")
        async with running_server(repository) as server, silent_reader(server.address) as silent:
            for _ in range(20):
                silent.ask("/grpc.health.v1.Health/Check", b"", **{"x-odd": "\xff\xfe"})
            labels = {"grpc_type": "unary", "grpc_service": "grpc.health.v1.Health"}
            labels |= {"grpc_method": "Check", "grpc_code": "OK"}
            counted = server.metrics.registry.get_sample_value
            await eventually(lambda: counted("grpc_server_handled_total", labels) == 20)
        assert "nvalid encoding" not in caplog.text

    async def test_watches_are_bounded_and_checks_are_not(self, repository, running_server):
        async with (
            running_server(repository, max_concurrent_calls=4) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            watches = [health.Watch(HealthCheckRequest()) for _ in range(4)]
            for watch in watches:
                await watch.read()
            error = await failure(health.Watch(HealthCheckRequest()).read())
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert "4 streams such as health watches at the same time" in error.details()
            checks = await asyncio.gather(*(health.Check(HealthCheckRequest()) for _ in range(20)))
            assert {check.status for check in checks} == {HealthCheckResponse.SERVING}
            stub = ImageGenerationServiceStub(channel)
            assert await code_of(stub.GenerateImages(request())) is Code.OK
            for watch in watches:
                watch.cancel()

    async def test_one_address_does_not_have_all_watches(self, repository, running_server):
        async with (
            running_server(repository, max_concurrent_calls=100) as server,
            grpc.aio.insecure_channel(server.address) as channel,
            silent_reader(server.address, "127.0.0.2") as other,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            watches = [health.Watch(HealthCheckRequest()) for _ in range(64)]
            for watch in watches:
                await watch.read()
            error = await failure(health.Watch(HealthCheckRequest()).read())
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert "64 streams such as health watches from one address" in error.details()
            for _ in range(5):
                other.ask("/grpc.health.v1.Health/Watch", b"")
            open_streams = server.interceptor.under_way.exempt_streams
            await eventually(lambda: open_streams == {"127.0.0.1": 64, "127.0.0.2": 5})
            for watch in watches:
                watch.cancel()

    @pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="a machine without IPv6")
    async def test_watches_of_one_network_of_ipv6_count_as_one_clients(
        self, repository, running_server
    ):
        async with (
            running_server(repository, host="::1") as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(HealthCheckRequest())
            await watch.read()
            assert server.interceptor.under_way.exempt_streams == {"::/64": 1}
            watch.cancel()

    async def test_no_call_takes_longer_than_the_longest_deadline(self, tmp_path, running_server):
        write_artifact(tmp_path, height=64, width=64)
        # More than all buffers on the way hold, or a quick server would be done in time.
        images = 8192
        settings = {"max_images_per_request": images, "queue_size": images}
        settings |= {"deadline_seconds": 0.3, "max_deadline_seconds": 0.3}
        async with running_server(tmp_path, **settings) as server, connected(server) as stub:
            call = stub.StreamImages(request(images), timeout=3600)
            await call.read()  # and no more
            late = {
                "grpc_type": "server_stream",
                "grpc_service": "ganserve.v1.ImageGenerationService",
                "grpc_method": "StreamImages",
                "grpc_code": "DEADLINE_EXCEEDED",
            }
            counted = server.metrics.registry.get_sample_value
            await eventually(lambda: counted("grpc_server_handled_total", late) == 1)
            call.cancel()

    async def test_what_the_longest_deadline_ends_is_abandoned_for_a_deadline(
        self, repository, running_server
    ):
        settings = {"max_wait_seconds": 30, "deadline_seconds": 0.2, "max_deadline_seconds": 0.2}
        async with running_server(repository, **settings) as server, connected(server) as stub:
            assert (
                await code_of(stub.GenerateImages(request(), timeout=3600))
                is Code.DEADLINE_EXCEEDED
            )
            name = "ganserve_abandoned_images_total"
            assert await metric(server, name, reason="deadline") == 1
            assert await metric(server, name, reason="cancelled") == 0

    async def test_connections_beyond_the_limit_are_closed_and_the_others_go_on(
        self, repository, running_server
    ):
        async with running_server(repository, max_connections=3) as server:
            host, _, port = server.address.rpartition(":")
            async with connected(server) as stub:
                await stub.GenerateImages(request())
                with contextlib.ExitStack() as sockets:
                    others = [
                        sockets.enter_context(socket.create_connection((host, int(port))))
                        for _ in range(5)
                    ]
                    closed = 0
                    for other in others:
                        other.settimeout(5)
                        closed += not await asyncio.to_thread(other.recv, 1)
                    assert closed == 3  # two beside the stub's
                    assert await code_of(stub.GenerateImages(request())) is Code.OK

    async def test_old_connections_are_closed_without_a_failed_call(
        self, repository, running_server
    ):
        async with (
            running_server(repository, max_connection_age_seconds=0.2) as server,
            connected(server) as stub,
        ):
            peers, codes = set(), []
            taking_images = server.admission.taking_images

            def note(context, images):
                peers.add(context.peer())
                return taking_images(context, images)

            server.admission.taking_images = note
            async with asyncio.timeout(20):
                while len(peers) < 6:
                    codes.append(await code_of(stub.GenerateImages(request())))
        assert set(codes) == {Code.OK}

    async def test_a_message_too_large_is_refused(self, repository, running_server):
        async with (
            running_server(repository, max_message_bytes=4096) as server,
            connected(server) as stub,
        ):
            large = pb.GenerateImagesRequest(latents=pb.Latents(values=[0.5] * 4096))
            assert await code_of(stub.GenerateImages(large)) is Code.RESOURCE_EXHAUSTED
            assert await code_of(stub.GenerateImages(request())) is Code.OK


def test_a_silent_client_is_let_go(tmp_path):
    """In a process of its own, whose handshake is cut short for the test's sake."""
    write_artifact(tmp_path)
    program = (
        "import asyncio, sys, ganserve.transport.listening as listening, ganserve.server as s\n"
        "from ganserve.config import ServerConfig\n"
        "listening._HANDSHAKE_SECONDS = 0.5\n"
        "asyncio.run(s.serve(ServerConfig(models=sys.argv[1], host='127.0.0.1', port=0,"
        " metrics_port=0, device='cpu', drain_seconds=0)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    with process:
        try:
            for line in process.stderr:
                if "serving on" in line:
                    port = int(line.split("serving on 127.0.0.1:")[1].split(",")[0])
                    break
            for greeting in (b"", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
                with socket.create_connection(("127.0.0.1", port)) as client:
                    client.settimeout(20)
                    client.sendall(greeting)
                    while client.recv(4096):  # until the server closes
                        pass
        finally:
            process.kill()
