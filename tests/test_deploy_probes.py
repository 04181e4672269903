"""A real server with the settings of the manifests answers their probes as they expect."""

import pytest
from grpc.aio import insecure_channel
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from ganserve.server import RunningServer, running
from tests.deploy.manifests import OVERLAYS, Variant, render, servers
from tests.deploy.workload_checks import read_settings
from tests.ganserve.certificates import Authority
from tests.ganserve.conftest import repository  # noqa: F401 - a fixture

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def settings_of(variant: Variant, **changed):
    """The settings of the cluster, but on free ports, with this machine's files and its CPU."""
    (server,) = servers(manifests := render(variant))
    config = read_settings(manifests, server)
    ports = {"port": 0, "health_port": 0, "metrics_port": 0}
    here = {"host": "127.0.0.1", "device": "cpu", "threads": 1, "instances": 1} | ports
    return config.model_copy(update=here | changed), server.server


async def probe(server: RunningServer, container) -> dict[str, bool]:
    """Ask what the kubelet asks, as it asks: in the clear, within the probe's time."""
    found = {}
    async with insecure_channel(server.health_address) as channel:
        for name in PROBES:
            service = container[name]["grpc"]["service"]
            reply = await HealthStub(channel).Check(
                HealthCheckRequest(service=service), timeout=container[name]["timeoutSeconds"]
            )
            found[name] = reply.status == HealthCheckResponse.SERVING
    return found


def answers(*, ready: bool) -> dict[str, bool]:
    return {"startupProbe": True, "readinessProbe": ready, "livenessProbe": True}


@pytest.mark.parametrize("variant", OVERLAYS, ids=str)
async def test_only_readiness_waits_for_models_and_ends_with_draining(variant, repository):  # noqa: F811
    config, container = settings_of(variant, models=repository)
    async with running(config) as server:
        await server.wait_until_ready()
        assert await probe(server, container) == answers(ready=True)
        await server.drain(0)
        assert await probe(server, container) == answers(ready=False)


async def test_a_server_without_models_is_not_ready_and_not_killed(tmp_path):
    (tmp_path / "models").mkdir()
    config, container = settings_of(Variant("overlays/cpu"), models=tmp_path / "models")
    async with running(config) as server:
        assert await probe(server, container) == answers(ready=False)


async def test_probes_need_no_certificate_where_calls_do(tmp_path, repository):  # noqa: F811
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue()
    files = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.ca}
    variant = Variant("base", ("tls",))
    config, container = settings_of(variant, models=repository, **files)
    async with running(config) as server:
        await server.wait_until_ready()
        assert await probe(server, container) == answers(ready=True)
