"""Hides the life of the server: load, warm up, listen, serve, drain, stop. The parts meet here."""

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from ganserve.admission import Admission, RateLimiter
from ganserve.batcher import Batcher
from ganserve.config import ServerConfig
from ganserve.cpus import usable_cpus
from ganserve.credentials import ServerCertificate, Tokens
from ganserve.encoding import Encoder
from ganserve.errors import StartupError
from ganserve.health import Health
from ganserve.inference.v2 import open_inference_pb2, open_inference_pb2_grpc
from ganserve.interceptors import Interceptor
from ganserve.memory import keep_large_buffers
from ganserve.metrics import Metrics, MetricsServer
from ganserve.model import CPU_PROVIDER, Model, check_runtime, load_model
from ganserve.model_files import check_root
from ganserve.open_inference import OpenInferenceService
from ganserve.repository import Repository
from ganserve.service import ImageGenerationService, Limits
from ganserve.v1 import image_generation_pb2, image_generation_pb2_grpc

logger = logging.getLogger(__name__)

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_IMAGE_GENERATION = image_generation_pb2.DESCRIPTOR.services_by_name[
    "ImageGenerationService"
].full_name
_OPEN_INFERENCE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
# For the last bytes on the wire: every call has been answered by then, but a reply of some
# megabytes may still be on its way over a slow link. Whoever has read all does not wait.
_STOP_GRACE_SECONDS = 10.0
_LIVENESS_SECONDS = 5.0
# Measured: two changes of threads take 0.1 to 0.3 ms of CPU, more than a small model.
_INLINE_SECONDS = 0.002
_HANDSHAKE_SECONDS = 10.0  # for a client to say what it wants
_KEEPALIVE_TIMEOUT_SECONDS = 20.0


class RunningServer:
    """A server whose ports are open; `running` makes it.

    Attributes:
        address: HOST:PORT for calls.
        metrics_port: the port for HTTP.
        metrics: what that port shows.
        hurry: set it to cut draining short.
    """

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        certificate: ServerCertificate | None,
        tokens: Tokens | None,
    ) -> None:
        self.address = ""
        self.metrics_port = 0
        self.metrics = metrics
        self.hurry = asyncio.Event()
        self.health = Health()
        self.admission = Admission(tokens, make_rate_limiter(config))
        self.interceptor = Interceptor(
            metrics,
            deadline_seconds=config.deadline_seconds,
            max_deadline_seconds=config.max_deadline_seconds,
            max_calls=config.max_concurrent_calls,
            exempt_services=(_HEALTH, reflection.SERVICE_NAME),
            open_services=(_HEALTH,),  # who probes has no token
            has_token=self.admission.has_token if self.admission.needs_token else None,
        )
        self.repository = open_repository(config, metrics, self._publish_health)
        self._models = config.models
        self._poll_seconds = config.poll_seconds
        self._credentials = [files for files in (certificate, tokens) if files is not None]
        self._look_at_models, self._look_at_credentials = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._draining = False
        self._watching: list[asyncio.Task[None]] = []

    async def wait_until_ready(self) -> None:
        """Return when a model serves, and all were looked at.

        Raises:
            StartupError: none can ever serve.
        """
        await self._first_of(self._ready.wait())

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set.

        Raises:
            StartupError: the models cannot run on the device that was asked for.
        """
        await self._first_of(stop.wait())

    async def drain(self, seconds: float) -> None:
        """Turn NOT_SERVING at once, but answer for some more seconds, then refuse new calls.

        Callers learn of a change of readiness only after a while; until then they keep calling.
        """
        logger.info("draining: calls are answered for %g more seconds", seconds)
        self._draining = True
        self.health.shut_down()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.hurry.wait(), seconds)
        self.interceptor.refuse_new_calls()

    def watch(self) -> None:
        """Begin to look at the repository, and the files of credentials, now and again."""
        self._watching = [
            self._loop.create_task(self._refresh_for_ever()),
            self._loop.create_task(self._refresh_credentials_for_ever()),
        ]

    def look_now(self) -> None:
        """Do not wait for the next look."""
        self._look_at_models.set()
        self._look_at_credentials.set()

    async def stop_watching(self) -> None:
        """Leave models and credentials as they are."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    def is_alive(self) -> bool:
        """Whether the event loop still takes turns; asked in another thread."""
        turn = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop)
        try:
            turn.result(_LIVENESS_SECONDS)
        except TimeoutError:
            return False
        return True

    def why_not_ready(self) -> str | None:
        """What is missing for calls to be answered; None if nothing is."""
        if self._draining:
            return "draining"
        if not self.repository.settled:
            return "loading models"
        if not any(map(self.repository.is_serving, self.repository.names)):
            return "no model could be loaded" if self.repository.names else "there is no model"
        return None

    async def _refresh_for_ever(self) -> None:
        said: str | None = None
        while True:
            await self.repository.refresh()
            reason = self.why_not_ready()
            # One line a change, not one a poll; draining has a line of its own.
            if reason not in (None, said) and not self._draining:
                seconds = self._poll_seconds
                again = f"every {seconds:g} s" if seconds else "at SIGHUP"
                logger.warning(
                    "not serving: %s in %s; looking again %s", reason, self._models, again
                )
            said = reason
            await self._pause(self._look_at_models)

    async def _refresh_credentials_for_ever(self) -> None:
        while True:
            await self._pause(self._look_at_credentials)
            for files in self._credentials:
                await asyncio.to_thread(files.refresh)

    async def _pause(self, look_now: asyncio.Event) -> None:
        """Wait for the time of the next look, or for who wants one now."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(look_now.wait(), self._poll_seconds or None)
        look_now.clear()

    def _publish_health(self) -> None:
        """Bring the health service up to date with the repository."""
        names = self.repository.names
        for name in names:
            self.health.set(name, self.repository.is_serving(name))
        self.health.keep_only({"", *names})
        is_ready = self.why_not_ready() is None
        self.health.set("", is_ready)
        if is_ready and not self._ready.is_set():
            self._ready.set()
            host, _, _ = self.address.rpartition(":")
            logger.info("serving on %s, metrics on %s:%d", self.address, host, self.metrics_port)

    async def _first_of(self, event: Coroutine[object, object, object]) -> None:
        """Wait for an event, or for the failure of a watching task."""
        assert self._watching
        waiting = self._loop.create_task(event)
        await asyncio.wait([waiting, *self._watching], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in self._watching:
            if task.done():
                await task


async def serve(config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the draining short.

    Raises:
        StartupError: the server cannot start; the message says why.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("ganserve").setLevel(config.log_level.upper())
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a time stamp for each series
    keep_large_buffers()
    async with running(config) as server:
        stop = asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                server.hurry.set()
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        loop.add_signal_handler(signal.SIGHUP, server.look_now)
        await server.serve_until(stop)
        await server.drain(config.drain_seconds)
    logger.info("stopped")


@contextlib.asynccontextmanager
async def running(config: ServerConfig) -> AsyncIterator[RunningServer]:
    """Open the ports and begin to load; at the end refuse new calls and answer all others.

    Raises:
        StartupError: the settings, the installation or the ports do not allow it.
    """
    check_runtime()
    check_root(config.models)
    metrics = Metrics(CollectorRegistry())
    ProcessCollector(registry=metrics.registry)
    certificate, tokens = read_credentials(config, metrics)
    async with contextlib.AsyncExitStack() as stack:
        encoder = Encoder(config.encoder_threads or usable_cpus())
        stack.callback(encoder.close)
        server = RunningServer(config, metrics, certificate, tokens)
        stack.push_async_callback(server.repository.close)
        metrics_server = MetricsServer.start(
            config.host,
            config.metrics_port,
            metrics.registry,
            is_alive=server.is_alive,
            why_not_ready=server.why_not_ready,
        )
        stack.push_async_callback(asyncio.to_thread, metrics_server.close)
        server.metrics_port = metrics_server.port
        grpc_server = make_grpc_server(config, server, encoder)
        credentials = None if certificate is None else certificate.make_credentials()
        server.address = listen(grpc_server, config.host, config.port, credentials)
        await grpc_server.start()
        stack.push_async_callback(stop_grpc_server, grpc_server, server)
        logger.info("listening on %s, loading models from %s", server.address, config.models)
        server.watch()
        stack.push_async_callback(server.stop_watching)
        yield server


def read_credentials(
    config: ServerConfig, metrics: Metrics
) -> tuple[ServerCertificate | None, Tokens | None]:
    """Read the files of the certificate and the tokens, where there are any.

    Raises:
        StartupError: they cannot be read, or what they say is wrong.
    """
    certificate = tokens = None
    if config.tls_certificate is not None and config.tls_key is not None:
        files = config.tls_certificate, config.tls_key, config.tls_client_ca
        certificate = ServerCertificate(*files, metrics)
    if config.token_file is not None:
        tokens = Tokens(config.token_file, metrics)
        if certificate is None:
            logger.warning("tokens without TLS: whoever sees the network's traffic sees them too")
    return certificate, tokens


def make_rate_limiter(config: ServerConfig) -> RateLimiter | None:
    """Build what counts each client's images, where that is asked for."""
    rate = config.rate_limit_images_per_second
    if rate is None:
        return None
    burst = max(math.ceil(rate), config.max_images_per_request)
    return RateLimiter(rate, config.rate_limit_burst_images or burst)


def open_repository(
    config: ServerConfig, metrics: Metrics, on_change: Callable[[], None]
) -> Repository:
    """Join model, batcher and repository."""
    cpus = usable_cpus()
    load = partial(
        load_model,
        device=config.device,
        threads=config.threads or max(1, cpus // (config.instances or cpus)),
        warm_batch_sizes=lambda provider: (
            fixed_batch_sizes(config, provider) or (1, config.max_batch_size)
        ),
        max_bytes=config.max_model_bytes,
    )

    def start_batcher(name: str, model: Model) -> Batcher:
        spec = model.spec
        # Measured: on CPUs as many single-threaded calls as CPUs beat one call with all threads.
        instances = cpus if spec.provider == CPU_PROVIDER else 1
        return Batcher(
            model.run_batch,
            (spec.height, spec.width, spec.channels),
            metrics,
            model_name=name,
            latent_dim=spec.latent_dim,
            inline_seconds=_INLINE_SECONDS if spec.provider == CPU_PROVIDER else 0.0,
            max_batch_size=config.max_batch_size,
            batch_sizes=fixed_batch_sizes(config, spec.provider),
            max_wait_seconds=config.max_wait_seconds,
            queue_size=config.queue_size,
            instances=config.instances or instances,
        )

    return Repository(
        config.models,
        load,
        start_batcher,
        metrics,
        default_model=config.default_model,
        version_policy=config.version_policy,
        versions=config.versions,
        on_change=on_change,
    )


def fixed_batch_sizes(config: ServerConfig, provider: str) -> tuple[int, ...]:
    """The only sizes of a model call; none where every size is as good.

    GPUs search for the best convolution anew for each size, and fixed sizes give fixed results.
    """
    if config.batch_sizes is not None:
        return config.batch_sizes
    if provider == CPU_PROVIDER:
        return ()
    largest = config.max_batch_size
    return (*(2**power for power in range((largest - 1).bit_length())), largest)


def make_grpc_server(
    config: ServerConfig, server: RunningServer, encoder: Encoder
) -> grpc.aio.Server:
    """Build the gRPC server with all its services."""
    grpc_server = grpc.aio.server(
        interceptors=[server.interceptor],
        options=[*grpc_options(config).items()],
    )
    limits = Limits(
        max_images=config.max_images_per_request,
        queue_size=config.queue_size,
        chunk_bytes=config.chunk_bytes,
        deadline_seconds=config.deadline_seconds,
    )
    image_generation_pb2_grpc.add_ImageGenerationServiceServicer_to_server(
        ImageGenerationService(
            server.repository, encoder, server.admission, server.metrics, limits
        ),
        grpc_server,
    )
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
        OpenInferenceService(
            server.repository,
            server.admission,
            server.metrics,
            max_images=config.max_images_per_request,
            deadline_seconds=config.deadline_seconds,
            version_policy=config.version_policy,
            versions=config.versions,
            is_ready=lambda: server.why_not_ready() is None,
        ),
        grpc_server,
    )
    health_pb2_grpc.add_HealthServicer_to_server(server.health, grpc_server)
    reflection.enable_server_reflection(
        (_IMAGE_GENERATION, _OPEN_INFERENCE, _HEALTH, reflection.SERVICE_NAME), grpc_server
    )
    return grpc_server


def grpc_options(config: ServerConfig) -> dict[str, int]:
    """The limits that gRPC itself keeps, in its own names and milliseconds."""
    return {
        "grpc.so_reuseport": 0,  # or a port in use would be shared without a word
        "grpc.max_receive_message_length": config.max_message_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.max_concurrent_streams": config.max_streams_per_connection,
        "grpc.max_allowed_incoming_connections": config.max_connections,
        # A client that connects and says nothing, or does not speak HTTP/2, is let go.
        "grpc.server_handshake_timeout_ms": _milliseconds(_HANDSHAKE_SECONDS),
        "grpc.max_connection_age_ms": _milliseconds(config.max_connection_age_seconds),
        # Every call has ended by then, watches excepted.
        "grpc.max_connection_age_grace_ms": _milliseconds(config.max_deadline_seconds),
        "grpc.keepalive_time_ms": _milliseconds(config.keepalive_seconds),
        "grpc.keepalive_timeout_ms": _milliseconds(_KEEPALIVE_TIMEOUT_SECONDS),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": _milliseconds(config.min_ping_seconds),
    }


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def listen(
    grpc_server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None = None,
) -> str:
    """Take the port, a free one for 0, and return HOST:PORT.

    Raises:
        StartupError: the port cannot be had.
    """
    shown_host = f"[{host}]" if ":" in host else host
    try:
        # Asked first, because gRPC prints a page of its own where a port is taken.
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            pass
        if credentials is None:
            return f"{shown_host}:{grpc_server.add_insecure_port(f'{shown_host}:{port}')}"
        taken = grpc_server.add_secure_port(f"{shown_host}:{port}", credentials)
        return f"{shown_host}:{taken}"
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartupError(
            f"port: cannot listen on {shown_host}:{port}: {reason}; choose another --port"
        ) from error


async def stop_grpc_server(grpc_server: grpc.aio.Server, server: RunningServer) -> None:
    """Refuse new calls, answer all others, close the port.

    gRPC's own stop would lose streams that are on the wire, so it comes last.
    """
    server.health.shut_down()
    server.interceptor.refuse_new_calls()
    tasks = [
        asyncio.ensure_future(server.interceptor.wait_until_idle()),
        asyncio.ensure_future(server.hurry.wait()),
    ]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    server.health.close()
    await grpc_server.stop(0 if server.hurry.is_set() else _STOP_GRACE_SECONDS)
