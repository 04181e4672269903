"""Hides how metrics are kept and shown: every metric in one class, and the HTTP port for them."""

import contextlib
import io
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Literal, Self, get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from ganserve.errors import REQUEST_ERRORS, StartupError
from ganserve.tallies import CounterTallies, HistogramTallies

logger = logging.getLogger(__name__)

# 100 microseconds to 10 seconds.
SECONDS_BUCKETS = (
    *(1e-4, 2.5e-4, 5e-4),
    *(1e-3, 2.5e-3, 5e-3),
    *(0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
# Probes and scrapes last milliseconds; whoever holds more open than this is up to no good.
_MOST_CONNECTIONS = 64
_LONGEST_HEAD = 16 * 1024  # bytes of a request and its headers
IMAGES_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

AbandonReason = Literal["cancelled", "deadline", "failed"]
_CALL_LABELS = ("grpc_type", "grpc_service", "grpc_method")


class Metrics:
    """Every metric of the server. Labels take values from small fixed sets."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        # Written by the event loop alone, and at every call.
        def call_counter(name: str, what: str, *labels: str) -> CounterTallies:
            return CounterTallies(name, what, labels, registry=registry)

        def call_histogram(
            name: str, what: str, *labels: str, buckets: Sequence[float] = SECONDS_BUCKETS
        ) -> HistogramTallies:
            return HistogramTallies(name, what, labels, registry=registry, buckets=buckets)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(name, what, labels, registry=registry)

        def seconds(name: str, what: str, *labels: str) -> Histogram:
            return Histogram(name, what, labels, registry=registry, buckets=SECONDS_BUCKETS)

        self.started = call_counter("grpc_server_started_total", "Calls begun.", *_CALL_LABELS)
        self.handled = call_counter(
            "grpc_server_handled_total", "Calls ended, by their status.", *_CALL_LABELS, "grpc_code"
        )
        self.handling_seconds = call_histogram(
            "grpc_server_handling_seconds", "From a call's begin to its end.", *_CALL_LABELS
        )
        self.queue_seconds = call_histogram(
            "ganserve_queue_seconds", "From admission to the first model call with an image of it."
        )
        self.compute_seconds = call_histogram(
            "ganserve_compute_seconds", "One model call, on a GPU with its turn there.", "model"
        )
        self.encode_seconds = call_histogram(
            "ganserve_encode_seconds", "Encoding the images of one message.", "format"
        )
        self.batch_images = call_histogram(
            "ganserve_batch_images", "Images in one model call.", "model", buckets=IMAGES_BUCKETS
        )
        self.images = call_counter(
            "ganserve_images_total", "Images answered with.", "model", "version"
        )
        self.padding_images = call_counter(
            "ganserve_padding_images_total", "Images made only to fill a batch up.", "model"
        )
        self.abandoned_images = counter(
            "ganserve_abandoned_images_total",
            "Images admitted that never reached the model, for nobody waited for them any more.",
            "reason",
        )
        for reason in get_args(AbandonReason):  # from 0 on, so that the first one is an increase
            self.abandoned_images.labels(reason)
        self.rejected_requests = counter(
            "ganserve_rejected_requests_total", "Requests refused.", "reason"
        )
        for error in REQUEST_ERRORS:
            self.rejected_requests.labels(error.reason)
        self.pending_images = gauge("ganserve_pending_images", "Images waiting for a model.")
        self.queue_size_images = gauge(
            "ganserve_queue_size_images", "Images that may wait for a version, --queue-size."
        )
        self.model_workers = gauge(
            "ganserve_model_workers", "Model calls of a version that may run at once.", "model"
        )
        self.wanted_provider_info = gauge(
            "ganserve_wanted_provider_info",
            "1 for the execution provider that --device stands for.",
            *("device", "provider"),
        )
        self.model_info = gauge(
            "ganserve_model_info",
            "1 for each version that serves.",
            *("model", "version", "digest", "provider", "seed_contract"),
        )
        self.model_ready = gauge(
            "ganserve_model_ready", "1 where some version of the model serves, else 0.", "model"
        )
        self.model_loads = counter(
            "ganserve_model_loads_total", "Versions loaded, or not.", "model", "outcome"
        )
        self.model_failed_versions = gauge(
            "ganserve_model_failed_versions",
            "Versions on disk that could not be loaded and are not tried again as they are.",
            "model",
        )
        self.model_load_seconds = seconds(
            "ganserve_model_load_seconds", "Reading, checking and warming up a version.", "model"
        )
        self.certificate_expiry = gauge(
            "ganserve_certificate_expiry_timestamp_seconds",
            "When a certificate in use expires, in seconds since 1970.",
            "certificate",
        )
        self.credential_reloads = counter(
            "ganserve_credential_reloads_total",
            "Changed files of certificates or tokens, taken over or refused.",
            *("credential", "outcome"),
        )

    def forget_version(self, model: str, version: int) -> None:
        """Drop the count of a version's images."""
        with contextlib.suppress(KeyError):
            self.images.remove(model, str(version))

    def forget_model(self, model: str) -> None:
        """Drop every series of a model."""
        for metric in (
            *(self.compute_seconds, self.batch_images, self.images, self.padding_images),
            *(self.model_info, self.model_ready, self.model_loads, self.model_load_seconds),
            *(self.model_workers, self.model_failed_versions),
        ):
            metric.remove_by_labels({"model": model})


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    """Answers each scrape in a thread of its own, so that a slow one holds up nobody."""

    daemon_threads = True
    # A port that another process listens on must be an error.
    allow_reuse_port = False

    def server_bind(self) -> None:
        """Take the port; the standard library would also ask the network for this host's name."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._lock = threading.Lock()

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


class _IPv6Server(_ThreadingServer):
    address_family = socket.AF_INET6


class _Head(io.BufferedIOBase):
    """The begin of what a client sends; the standard library would read megabytes of headers."""

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
        self.rfile = _Head(self.rfile)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited name
        """Scrapes and probes are no events."""


@dataclass(frozen=True)
class MetricsServer:
    """The HTTP port, open until `close`."""

    port: int
    server: WSGIServer
    thread: threading.Thread

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
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            server_class = _IPv6Server if family == socket.AF_INET6 else _ThreadingServer
            server = make_server(str(address[0]), port, app, server_class, _QuietHandler)
        except socket.gaierror as error:
            raise StartupError(
                f"host: no address of this machine is known as {host}: {error.strerror}; choose "
                "another --host"
            ) from error
        except OSError as error:
            raise StartupError(
                f"metrics_port: cannot listen on {host}:{port}: {error.strerror}; "
                "choose another --metrics-port"
            ) from error
        # The default poll of half a second would be the time that closing takes.
        thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        thread.start()
        return cls(server.server_port, server, thread)

    def close(self) -> None:
        """Stop answering and free the port."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def make_app(
    registry: CollectorRegistry,
    *,
    is_alive: Callable[[], bool],
    why_not_ready: Callable[[], str | None],
) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """Build the WSGI application behind the metrics port."""
    metrics_app = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            page: Iterable[bytes] = metrics_app(environ, start_response)
            return page
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
