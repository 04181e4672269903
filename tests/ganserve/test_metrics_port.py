import contextlib
import errno
import os
import socket
import struct
import threading
import time
import urllib.error
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge

from ganserve.errors import StartupError
from ganserve.metrics import Metrics
from ganserve.metrics_port import MetricsServer


@pytest.fixture
def http():
    """Starts servers; what they say about themselves is in the dict."""
    servers = []
    says = {"alive": True, "reason": None}

    def start(port=0, host="127.0.0.1"):
        metrics = Metrics(CollectorRegistry())
        metrics.pending_images.set(3)
        server = MetricsServer.start(
            host,
            port,
            metrics.registry,
            is_alive=lambda: says["alive"],
            why_not_ready=lambda: says["reason"],
        )
        servers.append(server)
        return server.port

    start.says = says
    yield start
    for server in servers:
        server.close()


def get(port, path, **request):
    try:
        asked = Request(f"http://127.0.0.1:{port}{path}", **request)
        with urlopen(asked, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_shown_as_prometheus_reads_them(http):
    status, text = get(http(), "/metrics")
    assert status == 200
    assert "# TYPE ganserve_pending_images gauge\nganserve_pending_images 3.0\n" in text


class CountedRegistry(CollectorRegistry):
    """Counts how often it is looked through."""

    pages = 0

    def collect(self):
        self.pages += 1
        return super().collect()


def test_where_many_pages_are_asked_for_few_are_made():
    registry = CountedRegistry()
    server = MetricsServer.start(
        "127.0.0.1", 0, registry, is_alive=lambda: True, why_not_ready=lambda: None
    )
    gauge = Gauge("g", "A gauge.", registry=registry)
    began = time.monotonic()
    for value in range(200):
        gauge.set(value)
        status, text = get(server.port, "/metrics")
        assert status == 200
        shown = float(text.split()[-1])
        assert shown <= value
        if value < 20:
            assert shown == value, "nobody who asks now and then gets an old page"
    most = 20 + 20 * (time.monotonic() - began) + 1
    assert registry.pages <= most
    time.sleep(0.1)  # after which a page may be made again
    assert get(server.port, "/metrics")[1].split()[-1] == "199.0"
    server.close()


def test_pages_are_few_also_where_each_is_asked_for_in_another_way():
    registry = CountedRegistry()
    server = MetricsServer.start(
        "127.0.0.1", 0, registry, is_alive=lambda: True, why_not_ready=lambda: None
    )
    Gauge("g", "A gauge.", registry=registry)
    registry.pages, began = 0, time.monotonic()
    codes = [get(server.port, f"/metrics?x={value}")[0] for value in range(200)]
    most = 40 + 20 * (time.monotonic() - began) + 1
    assert registry.pages == codes.count(200) <= most
    assert {*codes} == {200, 503}
    server.close()


def test_many_who_ask_for_one_page_leave_another_to_those_who_ask_for_that(http, monkeypatch):
    monkeypatch.setattr("ganserve.metrics_port._MOST_PAGES_A_SECOND", 5)
    port = http()
    for _ in range(50):
        assert get(port, "/metrics?flood")[0] == 200
    for _ in range(3):
        status, text = get(port, "/metrics")
        assert status == 200
        assert "ganserve_pending_images 3.0" in text


def test_a_page_is_not_kept_for_long_where_others_take_all_turns(monkeypatch):
    monkeypatch.setattr("ganserve.metrics_port._MOST_PAGES_A_SECOND", 0.001)
    registry = CollectorRegistry()
    server = MetricsServer.start(
        "127.0.0.1", 0, registry, is_alive=lambda: True, why_not_ready=lambda: None
    )
    gauge = Gauge("g", "A gauge.", registry=registry)
    for value in range(3):
        gauge.set(value)
        assert get(server.port, "/metrics")[1].split()[-1] == f"{value}.0"
        time.sleep(0.3)  # a quarter of a second, and what a reply takes
    server.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD"])
def test_many_who_ask_wrongly_take_nothing_from_those_who_ask_rightly(http, method):
    port = http()
    for _ in range(60):
        assert get(port, "/metrics", method=method)[0] == 405
    status, text = get(port, "/metrics")
    assert status == 200
    assert "ganserve_pending_images 3.0" in text


def test_a_page_is_kept_for_those_alone_who_ask_for_the_same(http, monkeypatch):
    monkeypatch.setattr("ganserve.metrics_port._MOST_PAGES_A_SECOND", 0.001)
    port = http()
    for _ in range(2):
        request = Request(f"http://127.0.0.1:{port}/metrics")
        request.add_header("Accept", "application/openmetrics-text; version=1.0.0")
        with urlopen(request, timeout=10) as reply:
            assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
            assert reply.read().endswith(b"# EOF\n")
        assert "# EOF" not in get(port, "/metrics")[1]
        only = get(port, "/metrics?name[]=ganserve_pending_images")[1]
        assert "ganserve_pending_images 3.0" in only
        assert "ganserve_queue_size_images" not in only


def test_liveness_is_that_of_the_event_loop(http):
    port = http()
    assert get(port, "/healthz") == (200, "ok\n")
    http.says["alive"] = False
    assert get(port, "/healthz")[0] == 503


def test_readiness_says_what_is_missing(http):
    port = http()
    assert get(port, "/readyz") == (200, "ready\n")
    http.says["reason"] = "loading models"
    assert get(port, "/readyz") == (503, "loading models\n")


@pytest.mark.parametrize("path", ["/", "/metrics/x", "/%00", "/metricsx"])
def test_other_pages_do_not_exist(http, path):
    assert get(http(), path)[0] == 404


def test_a_port_in_use_is_one_clear_line(http):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=rf"127.0.0.1:{port}: Address already in use"):
            http(port)


def test_endless_headers_are_not_read(http):
    port = http()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 15_000)
        client.sendall(b"z" * 2_000)  # beyond the limit, and no end of the line yet
        assert client.recv(64).startswith(b"HTTP/1.0 200")


def test_a_host_that_does_not_exist_is_one_clear_line(http):
    with pytest.raises(StartupError, match=r"host: no address .* is known as 256\.1\.1\.1"):
        http(host="256.1.1.1")


def test_an_address_of_another_machine_is_no_matter_of_the_port(http):
    with pytest.raises(StartupError, match=r"^host: 192\.0\.2\.1 is no address of this machine"):
        http(host="192.0.2.1")  # kept for documents, RFC 5737


def test_a_client_that_says_nothing_holds_up_nobody(http):
    port = http()
    with socket.create_connection(("127.0.0.1", port)):
        assert get(port, "/healthz")[0] == 200


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_a_client_that_never_asks_is_no_event(http, monkeypatch, capfd, caplog, leaves):
    monkeypatch.setattr("ganserve.metrics_port._QuietHandler.timeout", 0.05)
    port = http()
    with socket.create_connection(("127.0.0.1", port)) as client:
        if leaves:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            assert client.recv(1) == b""  # given up
    assert get(port, "/healthz")[0] == 200  # so the one before was accepted
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(20)
    assert (capfd.readouterr().err, caplog.records) == ("", [])


def test_more_connections_than_sensible_cost_the_oldest_theirs(http, monkeypatch):
    monkeypatch.setattr("ganserve.metrics_port._MOST_CONNECTIONS", 3)
    port = http()
    with contextlib.ExitStack() as stack:
        loiterers = []
        for _ in range(6):  # as fast as they are accepted
            loiterers.append(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            loiterers[-1].sendall(b"GET /metrics HTT")
        for loiterer in loiterers[:3]:
            loiterer.settimeout(20)
            assert loiterer.recv(1) == b""
        assert get(port, "/healthz")[0] == 200  # which takes the fourth's place
        for _ in range(20):
            assert get(port, "/metrics")[0] == 200


def test_a_start_asks_no_name_server(monkeypatch, http):
    def ask(*_):
        raise AssertionError("a name server was asked")

    monkeypatch.setattr("socket.getfqdn", ask)
    assert get(http(), "/healthz")[0] == 200


def test_without_file_descriptors_it_does_not_spin_and_answers_later(http, monkeypatch):
    """A connection that cannot be accepted stays in line, so the port would be ready for ever."""
    accept, may_accept, attempted = socket.socket.accept, threading.Event(), threading.Event()
    attempts = []

    def accept_if_possible(listener):
        attempts.append(time.monotonic())
        attempted.set()
        if not may_accept.is_set():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept_if_possible)
    with socket.create_connection(("127.0.0.1", http()), timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert attempted.wait(10)
        time.sleep(0.5)
        assert len(attempts) <= 1 + (attempts[-1] - attempts[0]) / 0.09
        may_accept.set()
        assert client.recv(15) == b"HTTP/1.0 200 OK"
