"""Real sockets: which addresses a host stands for."""

import errno
import socket

import grpc
import pytest

from ganserve.errors import StartupError
from ganserve.listeners import open_listeners
from tests.ganserve.conftest import free_port

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="a machine without IPv6")


def answers(host, port):
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError:
        return False
    return True


def port_of(listeners):
    (port,) = {listener.getsockname()[1] for listener in listeners}
    return port


def close(listeners):
    for listener in listeners:
        listener.close()


def without_ipv6(monkeypatch):
    """As where it is switched off, but found out only when an address is to be taken."""
    create = socket.create_server

    def refuse(address, *, family=socket.AF_INET, **settings):
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return create(address, family=family, **settings)

    monkeypatch.setattr(socket, "create_server", refuse)


@needs_ipv6
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_both_wildcards_stand_for_all_addresses(host):
    listeners = open_listeners(host, 0)
    assert [answers(name, port_of(listeners)) for name in ("127.0.0.1", "::1")] == [True, True]
    close(listeners)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("known_before", [True, False])
def test_without_ipv6_they_stand_for_those_there_are(host, known_before, monkeypatch):
    without_ipv6(monkeypatch)
    if known_before:
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    listeners = open_listeners(host, 0)
    assert answers("127.0.0.1", port_of(listeners))
    close(listeners)


@needs_ipv6
def test_an_address_is_that_one_alone():
    listeners = open_listeners("::1", 0)
    assert [answers(name, port_of(listeners)) for name in ("127.0.0.1", "::1")] == [False, True]
    close(listeners)


def two_addresses(monkeypatch):
    """A name that stands for an address of each kind, one of them twice."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]

    def look_up(_host, port, **_):
        return [(*kind, (name, port, *rest)) for *kind, (name, _, *rest) in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@needs_ipv6
def test_a_name_stands_for_all_of_its_addresses_on_one_port(monkeypatch):
    with monkeypatch.context() as patch:
        two_addresses(patch)
        listeners = open_listeners("both", 0)
    assert [answers(name, port_of(listeners)) for name in ("127.0.0.1", "::1")] == [True, True]
    close(listeners)


def test_an_address_that_the_machine_lacks_is_left_out_of_a_name(monkeypatch):
    with monkeypatch.context() as patch:
        two_addresses(patch)
        without_ipv6(patch)
        listeners = open_listeners("both", 0)
    assert len(listeners) == 1
    close(listeners)


def test_an_address_that_the_machine_lacks_cannot_be_had_alone():
    with pytest.raises(OSError, match="Cannot assign requested address"):
        open_listeners("203.0.113.1", 0)  # of those kept for documents


@pytest.mark.parametrize("name", ["a..b", f"{'a' * 64}.example"])
def test_a_name_that_cannot_be_one_is_not_known(name):
    with pytest.raises(socket.gaierror, match="empty or too long"):
        open_listeners(name, 0)


@needs_ipv6
@pytest.mark.parametrize("taken_on", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("host", ["0.0.0.0", "both"])
def test_a_port_that_is_taken_on_one_address_is_taken(host, taken_on, monkeypatch):
    two_addresses(monkeypatch)
    family = socket.AF_INET6 if ":" in taken_on else socket.AF_INET
    with (
        socket.create_server((taken_on, 0), family=family) as other,
        pytest.raises(OSError, match="in use"),
    ):
        open_listeners(host, other.getsockname()[1])


@needs_ipv6
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1", "::1"])
async def test_a_server_listens_alike_for_calls_and_for_metrics(host, repository, running_server):
    port = free_port()
    async with running_server(repository, host=host, port=port) as server:
        for name in ("127.0.0.1", "::1"):
            assert answers(name, port) == answers(name, server.metrics_port), name
        shown = f"[{host}]" if ":" in host else host
        assert server.address == f"{shown}:{port}"
        name = "[::1]" if ":" in host else "127.0.0.1"
        async with grpc.aio.insecure_channel(f"{name}:{port}") as channel:
            await channel.channel_ready()


async def test_a_host_that_grpc_does_not_know_is_no_matter_of_the_port_alone(
    repository, running_server
):
    with pytest.raises(StartupError, match=r"^host, port: .* cannot listen on 127\.1:"):
        async with running_server(repository, host="127.1"):  # the standard library knows it
            pass
