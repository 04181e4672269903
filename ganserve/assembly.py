"""Settings become parts: credentials, limits, the interceptor, models."""

import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING

from grpc_reflection.v1alpha import reflection

from ganserve.api.interceptors import Interceptor
from ganserve.batching.batcher import Batcher
from ganserve.config import ServerConfig
from ganserve.cpus import usable_cpus
from ganserve.errors import StartupError, UnfinishedRequest
from ganserve.metrics import Metrics
from ganserve.models.gpu_sessions import GpuSettings
from ganserve.models.loading import load_model
from ganserve.models.model import Model
from ganserve.models.providers import CPU_PROVIDER, FIRST_PROVIDERS
from ganserve.models.runtime import resolve_device
from ganserve.repository.repository import Repository
from ganserve.security.admission import Admission, RateLimiter
from ganserve.security.credentials import ServerCertificate, Tokens
from ganserve.transport.health import HEALTH
from ganserve.transport.unfinished_requests import UnfinishedRequests
from ganserve.transport.unread_replies import UnreadReplies

if TYPE_CHECKING:
    from ganserve.tracing import Tracing

logger = logging.getLogger(__name__)

# Measured: two changes of threads take 0.1 to 0.3 ms of CPU, more than a small model.
_INLINE_SECONDS = 0.002


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


def start_tracing(config: ServerConfig) -> "Tracing | None":
    """Begin to send traces, where that is asked for; nothing of OpenTelemetry is loaded elsewhere.

    Raises:
        StartupError: OpenTelemetry is not installed.
    """
    if config.trace_endpoint is None:
        return None
    try:
        from ganserve.tracing import Tracing
    except ModuleNotFoundError as error:
        raise StartupError(
            f"trace_endpoint: OpenTelemetry is not installed ({error.name} is missing): "
            "in a checkout, pip install '.[tracing]'"
        ) from error
    return Tracing(config.trace_endpoint, config.trace_sample_ratio)


def make_rate_limiter(config: ServerConfig) -> RateLimiter | None:
    """Build what counts each client's images, where that is asked for."""
    rate = config.rate_limit_images_per_second
    if rate is None:
        return None
    burst = max(math.ceil(rate), config.max_images_per_request)
    return RateLimiter(rate, config.rate_limit_burst_images or burst)


def open_repository(
    config: ServerConfig,
    metrics: Metrics,
    tracing: "Tracing | None",
    on_change: Callable[[], None],
    gpu_thread: Executor,
) -> Repository:
    """Join model, batcher and repository; `gpu_thread` has a single thread, which calls GPUs."""
    cpus = usable_cpus()
    metrics.queue_size_images.set(config.queue_size)
    load = partial(
        load_model,
        device=config.device,
        threads=config.threads or max(1, cpus // (config.instances or cpus)),
        lone_threads=config.threads or cpus,
        warm_batch_sizes=lambda provider: (
            fixed_batch_sizes(config, provider) or (1, config.max_batch_size)
        ),
        max_bytes=config.max_model_bytes,
        gpu=GpuSettings(
            gpu_thread, config.reproducibility, config.cuda_graphs, config.tensorrt_cache
        ),
    )
    return Repository(
        config.models,
        load,
        partial(_start_batcher, config, metrics, tracing),
        metrics,
        default_model=config.default_model,
        version_policy=config.version_policy,
        versions=config.versions,
        on_change=on_change,
    )


def _start_batcher(
    config: ServerConfig, metrics: Metrics, tracing: "Tracing | None", name: str, model: Model
) -> Batcher:
    spec = model.spec
    is_on_cpu = spec.provider == CPU_PROVIDER
    # Measured: on CPUs as many single-threaded calls as CPUs beat one call with all threads.
    instances = config.instances or (usable_cpus() if is_on_cpu else 1)
    metrics.model_workers.labels(name).set(instances)
    wanted = FIRST_PROVIDERS[resolve_device(config.device)]
    metrics.wanted_provider_info.labels(config.device, wanted).set(1)
    return Batcher(
        model.run_batch,
        (spec.height, spec.width, spec.channels),
        metrics,
        model_name=name,
        latent_dim=spec.latent_dim,
        inline_seconds=_INLINE_SECONDS if is_on_cpu else 0.0,
        max_batch_size=config.max_batch_size,
        batch_sizes=model.batch_sizes or fixed_batch_sizes(config, spec.provider),
        max_wait_seconds=config.max_wait_seconds,
        queue_size=config.queue_size,
        instances=instances,
        run_lone_batch=None if model.lone_session is None else model.run_lone_batch,
        on_batch=None if tracing is None else partial(tracing.note_batch, name),
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


def make_interceptor(
    config: ServerConfig,
    metrics: Metrics,
    admission: Admission,
    tracing: "Tracing | None",
    unread: UnreadReplies,
) -> Interceptor:
    """Build what surrounds the calls of a port."""
    return Interceptor(
        metrics,
        deadline_seconds=config.deadline_seconds,
        max_deadline_seconds=config.max_deadline_seconds,
        max_calls=config.max_concurrent_calls,
        unread=unread,
        has_token=admission.has_token,
        exempt_services=(HEALTH, reflection.SERVICE_NAME),
        open_services=(HEALTH,),  # probes have no token
        tracer=tracing,
    )


def make_unfinished_requests(config: ServerConfig, metrics: Metrics) -> UnfinishedRequests:
    """Build what ends the calls of a port whose requests do not come whole."""
    refused = metrics.rejected_requests.labels(UnfinishedRequest.reason)
    return UnfinishedRequests(config.deadline_seconds, refused.inc)
