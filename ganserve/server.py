"""The life of the server: load, warm up, listen, serve, drain, stop. The parts meet here."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from ganserve.api.methods import initialize_series
from ganserve.api.open_inference import OpenInferenceService
from ganserve.api.service import ImageGenerationService, Limits
from ganserve.assembly import (
    make_interceptor,
    make_unfinished_requests,
    read_credentials,
    start_tracing,
)
from ganserve.config import ServerConfig, explain_unknown
from ganserve.cpus import usable_cpus, use_default_time_slices, use_short_time_slices
from ganserve.encoding import Encoder
from ganserve.inference.v2 import open_inference_pb2, open_inference_pb2_grpc
from ganserve.log_format import set_up_logging
from ganserve.memory import keep_large_buffers
from ganserve.metrics import Metrics
from ganserve.metrics_port import MetricsServer
from ganserve.models.gpu_sessions import check_engine_cache
from ganserve.models.model_files import check_root
from ganserve.models.runtime import check_device, check_runtime, keep_runtime_silent
from ganserve.running_server import RunningServer
from ganserve.transport.accepting import make_aio_server, may_stop_again
from ganserve.transport.direct_calls import DirectMethods
from ganserve.transport.health import HEALTH
from ganserve.transport.listening import allow_connections, grpc_options, listen
from ganserve.v1 import image_generation_pb2, image_generation_pb2_grpc

logger = logging.getLogger(__name__)

_SERVICES = (
    image_generation_pb2.DESCRIPTOR.services_by_name["ImageGenerationService"],
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
_IMAGE_GENERATION, _OPEN_INFERENCE = (service.full_name for service in _SERVICES)
_HEALTH_CHECK = f"/{HEALTH}/Check"
# For the last bytes on the wire: every call has been answered by then, but a reply of some
# megabytes may still be on its way over a slow link. Whoever has read all does not wait.
_STOP_GRACE_SECONDS = 10.0
_LONGEST_STOP_SECONDS = 1e6  # every call has a deadline, and ends before
_LARGEST_HEALTH_CHECK = 16 * 1024  # bytes; a service's name is all there is in it


async def serve(config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the draining short.

    Raises:
        StartupError: the server cannot start; the message says why.
    """
    set_up_logging(config.log_level, config.log_format)
    for line in explain_unknown(os.environ):
        logger.warning(line)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a time stamp for each series
    keep_large_buffers()
    allow_connections(config)
    use_short_time_slices()  # before other threads start: gRPC's are to inherit it
    async with running(config) as server:
        stop = asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                server.stop_now.set()
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        loop.add_signal_handler(signal.SIGHUP, server.refresh_now)
        await server.serve_until(stop)
        await server.drain(config.drain_seconds)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)  # the loop's end would let them end the process
    logger.info("stopped")


@contextlib.asynccontextmanager
async def running(config: ServerConfig) -> AsyncIterator[RunningServer]:
    """Open the ports and begin to load; at the end refuse new calls and answer all others.

    Raises:
        StartupError: the settings, the installation or the ports do not allow it.
    """
    check_runtime()
    keep_runtime_silent()
    check_root(config.models)
    check_engine_cache(config.tensorrt_cache)
    check_device(config.device)
    metrics = Metrics(CollectorRegistry())
    ProcessCollector(registry=metrics.registry)
    certificate, tokens = read_credentials(config, metrics)
    async with contextlib.AsyncExitStack() as stack:
        encoder = Encoder(config.encoder_threads or usable_cpus())
        stack.callback(encoder.close)
        encoder.warm_up()
        # It starts with its first call. Not at low priority, as threads that encode are: the GPU
        # would wait for them.
        gpu_thread = ThreadPoolExecutor(1, "gpu", use_default_time_slices)
        stack.callback(gpu_thread.shutdown, wait=False)  # nothing of it is awaited any more
        server = RunningServer(
            config, metrics, certificate, tokens, start_tracing(config), gpu_thread
        )
        # Unless it came to its end before. Where there is nothing to send, this takes no time.
        stack.push_async_callback(server.close_tracing, 1)
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
        if config.health_port is not None:
            await stack.enter_async_context(open_health_port(config, server))
        grpc_server = make_grpc_server(config, server, encoder)
        credentials = None if certificate is None else certificate.make_credentials()
        server.address = listen(grpc_server, config.host, config.port, credentials)
        await grpc_server.start()
        stack.push_async_callback(stop_grpc_server, grpc_server, server)
        logger.info("listening on %s, loading models from %s", server.address, config.models)
        server.watch()
        stack.push_async_callback(server.stop_watching)
        yield server


def make_grpc_server(
    config: ServerConfig, server: RunningServer, encoder: Encoder
) -> grpc.aio.Server:
    """Build the gRPC server with all its services."""
    for service in _SERVICES:
        initialize_series(server.metrics, service)
    grpc_server = make_aio_server(
        interceptors=[server.interceptor],
        options=[*grpc_options(config).items()],
        unfinished=make_unfinished_requests(config, server.metrics),
        direct_methods=DirectMethods(
            # The health check, so that it waits neither for others nor for half a message.
            [*_unary_methods(), _HEALTH_CHECK],
            open_paths=[_HEALTH_CHECK],
            may_call=server.admission.has_token,
            unread=server.unread,
        ),
    )
    add_services(grpc_server, config, server, encoder)
    return grpc_server


def add_services(
    grpc_server: grpc.aio.Server, config: ServerConfig, server: RunningServer, encoder: Encoder
) -> None:
    """Add both protocols, health and reflection."""
    index, admission, metrics = server.repository.index, server.admission, server.metrics
    limits = Limits(
        max_images=config.max_images_per_request,
        queue_size=config.queue_size,
        chunk_bytes=config.chunk_bytes,
    )
    image_generation_pb2_grpc.add_ImageGenerationServiceServicer_to_server(
        ImageGenerationService(index, encoder, admission, metrics, limits), grpc_server
    )
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
        OpenInferenceService(
            *(index, admission, metrics, limits),
            version_policy=config.version_policy,
            versions=config.versions,
            is_ready=lambda: server.why_not_ready() is None,
        ),
        grpc_server,
    )
    health_pb2_grpc.add_HealthServicer_to_server(server.health, grpc_server)
    reflection.enable_server_reflection(
        (_IMAGE_GENERATION, _OPEN_INFERENCE, HEALTH, reflection.SERVICE_NAME), grpc_server
    )


@contextlib.asynccontextmanager
async def open_health_port(config: ServerConfig, server: RunningServer) -> AsyncIterator[None]:
    """Answer health checks, and nothing else, in the clear: Kubernetes' probes know no TLS.

    Opened first and closed last, so that the process is seen to work until it ends.
    """
    # Not the other port's, which knows all methods.
    interceptor = make_interceptor(config, server.metrics, server.admission, None, server.unread)
    limits = grpc_options(config) | {"grpc.max_receive_message_length": _LARGEST_HEALTH_CHECK}
    health_server = make_aio_server(
        interceptors=[interceptor],
        options=[*limits.items()],
        unfinished=make_unfinished_requests(config, server.metrics),
        direct_methods=DirectMethods((), server.admission.has_token, server.unread),
    )
    health_pb2_grpc.add_HealthServicer_to_server(server.health, health_server)
    try:
        server.health_address = listen(
            health_server, config.host, config.health_port or 0, setting="health_port"
        )
        await health_server.start()
        logger.info("health checks on %s", server.health_address)
        yield
    finally:
        server.health.close()
        await health_server.stop(_STOP_GRACE_SECONDS)


async def stop_grpc_server(grpc_server: grpc.aio.Server, server: RunningServer) -> None:
    """Refuse new calls, answer all others, close the port.

    Connections are told to go at once: a client that does not watch the health would otherwise be
    refused on its own connection for as long as another of its calls takes. That is a stop
    already, so it is left out where no other may follow.
    """
    server.health.shut_down()
    server.interceptor.under_way.refuse_new()
    stops_again = may_stop_again(grpc_server)
    early = [asyncio.ensure_future(grpc_server.stop(_LONGEST_STOP_SECONDS))] if stops_again else []
    idle = asyncio.ensure_future(server.interceptor.under_way.wait_until_idle())
    stop_now = asyncio.ensure_future(server.stop_now.wait())
    await _either(idle, stop_now)
    idle.cancel()
    server.health.close()
    grace = 0 if server.stop_now.is_set() else _STOP_GRACE_SECONDS
    closing = asyncio.gather(*early, grpc_server.stop(grace), server.close_tracing(grace))
    # Clients that are suspended are waited for, too, and collectors that do not answer.
    await _either(closing, stop_now)
    stop_now.cancel()
    if not closing.done():
        server.give_up_tracing()
        await grpc_server.stop(0)  # without effect where none may follow
    await closing


def _unary_methods() -> Iterator[str]:
    """Methods of ours with one request and one response."""
    for service in _SERVICES:
        for method in service.methods:
            if not (method.client_streaming or method.server_streaming):
                yield f"/{service.full_name}/{method.name}"


async def _either(*ends: asyncio.Future[Any]) -> None:
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
