"""Hides the life of the server: load, warm up, listen, serve, drain, stop. The parts meet here."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from ganserve.batcher import Batcher
from ganserve.config import ServerConfig
from ganserve.cpus import usable_cpus
from ganserve.encoding import Encoder
from ganserve.errors import StartupError
from ganserve.health import Health
from ganserve.interceptors import Interceptor
from ganserve.memory import keep_large_buffers
from ganserve.metrics import Metrics, MetricsServer
from ganserve.model import CPU_PROVIDER, Model, check_runtime, load_model
from ganserve.model_files import check_root
from ganserve.repository import Repository
from ganserve.service import ImageGenerationService, Limits
from ganserve.v1 import image_generation_pb2, image_generation_pb2_grpc

logger = logging.getLogger(__name__)

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_IMAGE_GENERATION = image_generation_pb2.DESCRIPTOR.services_by_name[
    "ImageGenerationService"
].full_name
# For the last bytes on the wire: every call has been answered by then, but a reply of some
# megabytes may still be on its way over a slow link. Whoever has read all does not wait.
_STOP_GRACE_SECONDS = 10.0
_LIVENESS_SECONDS = 5.0


class RunningServer:
    """A server whose ports are open; `running` makes it.

    Attributes:
        address: HOST:PORT for calls.
        metrics_port: the port for HTTP.
        metrics: what that port shows.
        hurry: set it to cut draining short.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self.address = ""
        self.metrics_port = 0
        self.metrics = metrics
        self.hurry = asyncio.Event()
        self.health = Health()
        self.interceptor = Interceptor(
            metrics,
            deadline_seconds=config.deadline_seconds,
            exempt_services=(_HEALTH, reflection.SERVICE_NAME),
        )
        self.repository = open_repository(config, metrics, self._publish_health)
        self._models = config.models
        self._poll_seconds = config.poll_seconds
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._draining = False
        self._watching: asyncio.Task[None] | None = None

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
        """Begin to look at the repository, now and again."""
        self._watching = self._loop.create_task(self._refresh_for_ever())

    async def stop_watching(self) -> None:
        """Leave the models as they are."""
        assert self._watching is not None
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)

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
                logger.warning(
                    "not serving: %s in %s; looking again every %g s",
                    *(reason, self._models, self._poll_seconds),
                )
            said = reason
            await asyncio.sleep(self._poll_seconds)

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
        """Wait for an event, or for the failure of the watching task."""
        assert self._watching is not None
        waiting = self._loop.create_task(event)
        await asyncio.wait([waiting, self._watching], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._watching.done():
            await self._watching


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

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
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
    async with contextlib.AsyncExitStack() as stack:
        encoder = Encoder(config.encoder_threads or usable_cpus())
        stack.callback(encoder.close)
        server = RunningServer(config, metrics)
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
        server.address = listen(grpc_server, config.host, config.port)
        await grpc_server.start()
        stack.push_async_callback(stop_grpc_server, grpc_server, server)
        logger.info("listening on %s, loading models from %s", server.address, config.models)
        server.watch()
        stack.push_async_callback(server.stop_watching)
        yield server


def open_repository(
    config: ServerConfig, metrics: Metrics, on_change: Callable[[], None]
) -> Repository:
    """Join model, batcher and repository."""
    cpus = usable_cpus()
    load = partial(
        load_model,
        device=config.device,
        threads=config.threads or max(1, cpus // (config.instances or cpus)),
        warm_batch_sizes=(1, config.max_batch_size),
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
            max_batch_size=config.max_batch_size,
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
        on_change=on_change,
    )


def make_grpc_server(
    config: ServerConfig, server: RunningServer, encoder: Encoder
) -> grpc.aio.Server:
    """Build the gRPC server with all its services."""
    grpc_server = grpc.aio.server(
        interceptors=[server.interceptor],
        options=[
            ("grpc.so_reuseport", 0),  # or a port in use would be shared without a word
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", -1),
        ],
    )
    limits = Limits(
        max_images=config.max_images_per_request,
        queue_size=config.queue_size,
        chunk_bytes=config.chunk_bytes,
        deadline_seconds=config.deadline_seconds,
    )
    image_generation_pb2_grpc.add_ImageGenerationServiceServicer_to_server(
        ImageGenerationService(server.repository, encoder, server.metrics, limits), grpc_server
    )
    health_pb2_grpc.add_HealthServicer_to_server(server.health, grpc_server)
    reflection.enable_server_reflection(
        (_IMAGE_GENERATION, _HEALTH, reflection.SERVICE_NAME), grpc_server
    )
    return grpc_server


def listen(grpc_server: grpc.aio.Server, host: str, port: int) -> str:
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
        return f"{shown_host}:{grpc_server.add_insecure_port(f'{shown_host}:{port}')}"
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
