"""The HTTP port: metrics, liveness and readiness."""

import contextlib
import errno
import io
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from ganserve.errors import StartupError
from ganserve.listeners import open_listeners

logger = logging.getLogger(__name__)

# Probes and scrapes last milliseconds; nobody who means well holds more open than this.
_MOST_CONNECTIONS = 64
_LONGEST_HEAD = 16 * 1024  # bytes of a request and its headers
# Pages of metrics that are made anew. One takes the time of several small calls, and Python's lock.
_MOST_PAGES_A_SECOND = 20.0
_KEPT_SECONDS = 0.25
# A reserve: how many pages beyond that rate are made for those for whom none is kept.
_SPARE_PAGES = 20
# What a connection lacks where it cannot be accepted and stays in line: file descriptors, memory.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SHORTAGE_PAUSE_SECONDS = 0.1

_Page = tuple[str, list[tuple[str, str]], list[bytes]]  # status, headers, body
_ASKED_FOR_BY = ("QUERY_STRING", "HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING")
_TOO_MANY: _Page = (
    "503 Service Unavailable",
    [("Content-Type", "text/plain; charset=utf-8"), ("Retry-After", "1")],
    [b"too many different pages are asked for\n"],
)


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    """Answers each scrape in a thread of its own, so that a slow one holds up nobody."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, app: WSGIApplication) -> None:
        """Listen there; the standard library would also ask the network for this host's name."""
        TCPServer.__init__(self, ("", 0), _QuietHandler, bind_and_activate=False)
        self.socket.close()  # made by the line above, of the family that it thinks of
        self.socket = listener
        self.server_address = listener.getsockname()
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()
        self.set_app(app)
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._lock = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; where that is not possible, pause before the next attempt.

        The standard library would try again at once, and keep a CPU and Python's lock busy.
        """
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _SHORTAGES:
                time.sleep(_SHORTAGE_PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - inherited
        """Make room: where there are too many, the oldest connection has had its time."""
        with self._lock:
            if len(self._open) >= _MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with contextlib.suppress(OSError):  # closed just now
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - inherited
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Say nothing of a client that leaves or never asks; by default all print a traceback."""
        error = sys.exception()
        if not isinstance(error, OSError):
            logger.error("a request of %s failed", client_address, exc_info=error)


class _LimitedReader(io.BufferedIOBase):
    """The first bytes of a request; the standard library would read megabytes of headers."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = _LONGEST_HEAD

    def readline(self, size: int | None = -1, /) -> bytes:
        """The next line; empty beyond the limit, as at the end."""
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        line = self._file.readline(wanted)
        self._left -= len(line)
        return line

    def close(self) -> None:
        """Close the connection's side of it too."""
        self._file.close()
        super().close()


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds for a client to send its request

    def setup(self) -> None:
        """Read no more than a request without a body needs."""
        super().setup()
        self.rfile = _LimitedReader(self.rfile)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited name
        """Scrapes and probes are no events."""


class _Pages:
    """Pages of metrics; where many are asked for, some again, a quarter of a second old at most.

    Called in several threads.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._may_make = _MOST_PAGES_A_SECOND  # below 0 where spare ones were made
        self._counted_at = time.monotonic()
        self._kept: dict[tuple[object, ...], tuple[_Page, float]] = {}  # by what was asked for

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":  # which makes no page
            return self._app(environ, start_response)
        asked = tuple(environ.get(name) for name in _ASKED_FOR_BY)
        with self._lock:
            now = time.monotonic()
            self._kept = {
                k: kept for k, kept in self._kept.items() if now < kept[1] + _KEPT_SECONDS
            }
            page, _ = self._kept.get(asked, (None, now))
            may_make = self._take_turn(now, spare=0 if page else _SPARE_PAGES)
        if may_make:
            page = _make_page(self._app, environ)
            with self._lock:
                self._kept[asked] = page, time.monotonic()
        status, headers, body = page or _TOO_MANY
        start_response(status, [*headers])  # it adds to them
        return body

    def _take_turn(self, now: float, *, spare: int) -> bool:
        more = (now - self._counted_at) * _MOST_PAGES_A_SECOND
        self._may_make = min(self._may_make + more, _MOST_PAGES_A_SECOND)
        self._counted_at = now
        if self._may_make + spare < 1:
            return False
        self._may_make -= 1
        return True


def _make_page(app: WSGIApplication, environ: WSGIEnvironment) -> _Page:
    begun: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], *_: object) -> Callable[..., object]:
        begun.append((status, headers))
        return begun.append

    body = list(app(environ, start))
    return (*begun[0], body)


@dataclass(frozen=True)
class MetricsServer:
    """The HTTP port, open until `close`."""

    port: int
    servers: dict[WSGIServer, threading.Thread]  # one for each address of the host

    @classmethod
    def start(
        cls,
        host: str,
        port: int,
        registry: CollectorRegistry,
        *,
        is_alive: Callable[[], bool],
        why_not_ready: Callable[[], str | None],
    ) -> Self:
        """Answer /metrics, /healthz and /readyz in a thread; port 0 takes a free one.

        Both callables are called in other threads; `why_not_ready` returns None when ready.

        Raises:
            StartupError: the port cannot be had.
        """
        app = make_app(registry, is_alive=is_alive, why_not_ready=why_not_ready)
        try:
            listeners = open_listeners(host, port)
        except socket.gaierror as error:
            raise StartupError(
                f"host: no address of this machine is known as {host}: {error.strerror}; choose "
                "another --host"
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise StartupError(
                    f"host: {host} is no address of this machine; choose another --host"
                ) from error
            raise StartupError(
                f"metrics_port: cannot listen on {host}:{port}: {error.strerror}; "
                "choose another --metrics-port"
            ) from error
        servers = [_ThreadingServer(listener, app) for listener in listeners]
        # The default poll of half a second would be the time that closing takes.
        threads = [
            threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
            for server in servers
        ]
        for thread in threads:
            thread.start()
        return cls(servers[0].server_port, dict(zip(servers, threads, strict=True)))

    def close(self) -> None:
        """Stop answering and free the port."""
        for server, thread in self.servers.items():
            server.shutdown()
            server.server_close()
            thread.join()


def make_app(
    registry: CollectorRegistry,
    *,
    is_alive: Callable[[], bool],
    why_not_ready: Callable[[], str | None],
) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """Build the WSGI application behind the metrics port."""
    metrics_app = _Pages(make_wsgi_app(registry))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return metrics_app(environ, start_response)
        if path == "/healthz":
            status, text = ("200 OK", "ok") if is_alive() else ("503 Service Unavailable", "stuck")
        elif path == "/readyz":
            reason = why_not_ready()
            status = "200 OK" if reason is None else "503 Service Unavailable"
            text = reason or "ready"
        else:
            status, text = "404 Not Found", "expected /metrics, /healthz or /readyz"
        body = (text + "\n").encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
        ]
        start_response(status, headers)
        return [body]

    return app
