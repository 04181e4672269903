"""The settings of `ganserve serve`: each is a flag, a GANSERVE_ variable or its default."""

import difflib
import itertools
import re
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ganserve.setting_values import (
    BatchSizes,
    CudaGraphs,
    Device,
    Endpoint,
    FileOrFolder,
    LogFormat,
    LogLevel,
    Port,
    PositiveFloat,
    PositiveInt,
    PositiveSeconds,
    Reproducibility,
    Seconds,
    VersionList,
    VersionPolicy,
)

_PREFIX = "GANSERVE_"
_MOST_THREADS = 1024  # whoever asks for more has slipped, and would wait minutes for them
# What Kubernetes sets in every container for a Service named `ganserve`, or `ganserve-...`.
_SERVICE_LINK = re.compile(
    rf"{_PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)"
)


def explain_unknown(variables: Iterable[str]) -> list[str]:
    """A line for each variable that is named as settings are and is none: most are misspelt."""
    known = {name.upper() for name in ServerConfig.model_fields}
    lines = []
    for variable in sorted(variables):
        name = variable.upper()
        if not name.startswith(_PREFIX) or _SERVICE_LINK.fullmatch(name):
            continue
        name = name.removeprefix(_PREFIX)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; is {_PREFIX}{near[0]} meant?" if near else ""
            lines.append(f"{variable} is no setting and changes nothing{meant}")
    return lines


class ServerConfig(BaseSettings):
    """Serve every model of a repository over gRPC.

    Each setting is a flag of `ganserve serve` and a variable GANSERVE_...; the flag wins.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True)

    models: FileOrFolder = Field(
        description="The repository: a folder that holds NAME/VERSION/model.onnx."
    )
    default_model: str | None = Field(
        default=None,
        min_length=1,
        description="The model meant where a request names none. Unset: the only one there is.",
    )
    version_policy: VersionPolicy = Field(
        default="latest",
        description="Which versions serve. latest: of each model the newest that can be loaded; "
        "all: every one that can be loaded; specific: those of --versions.",
    )
    versions: VersionList = Field(
        default=(),
        description="With the policy specific: NAME:VERSION,... such as faces:3,faces:5, and no "
        "others.",
    )
    poll_seconds: Seconds = Field(
        default=2.0,
        description="How often the repository is looked through for new versions, and the files of "
        "certificates and tokens for changes. 0: at SIGHUP only.",
    )
    max_model_bytes: int = Field(
        default=2**30, ge=1024, le=2**31 - 1, description="The largest model.onnx that is loaded."
    )

    host: str = Field(
        default="0.0.0.0",  # noqa: S104 - a server in a container is called from outside it
        min_length=1,
        description="The address to listen on, for calls and for metrics. 0.0.0.0 and ::: every "
        "address of the machine, of IPv4 and IPv6.",
    )
    port: Port = Field(default=50051, description="The port for gRPC calls; 0 takes a free one.")
    metrics_port: Port = Field(
        default=9090,
        description="The port for /metrics, /healthz and /readyz; 0 takes a free one.",
    )
    health_port: Port | None = Field(
        default=None,
        description="A port that answers gRPC health checks and nothing else, without TLS and "
        "tokens, for probes that have neither; 0 takes a free one. Unset: none.",
    )

    device: Device = Field(
        default="auto",
        description="What the models run on. auto: CUDA where there is a device, else the CPU.",
    )
    reproducibility: Reproducibility = Field(
        default="strict",
        description="strict: an image has the same bytes in every batch; batch sizes that would "
        "change them are not used, nor, on CUDA, TF32 and algorithms chosen by timing, and a model "
        "whose images depend on their batch is refused. fast: whatever is quickest. On CPUs the "
        "only difference is that fast does not refuse such models.",
    )
    cuda_graphs: CudaGraphs = Field(
        default="auto",
        description="Whether calls on CUDA are replayed as graphs. auto: at each batch size that "
        "is quicker so, measured while a model is loaded; on: a model that cannot is refused.",
    )
    tensorrt_cache: FileOrFolder | None = Field(
        default=None,
        description="With TensorRT: the folder that keeps its engines, for servers alone to write. "
        "Unset: they are built anew whenever a model is loaded.",
    )
    instances: PositiveInt | None = Field(
        default=None,
        le=_MOST_THREADS,
        description="How many batches of one model are computed at the same time. Unset: one for "
        "each usable CPU; 1 on GPUs.",
    )
    threads: PositiveInt | None = Field(
        default=None,
        le=_MOST_THREADS,
        description="Threads within one model call. Unset: the usable CPUs divided by instances "
        "or, on CPUs, all of them for a batch that comes while no other of its model is computed, "
        "if an image takes more than 2 ms; this takes the memory of a second session.",
    )
    encoder_threads: PositiveInt | None = Field(
        default=None,
        le=_MOST_THREADS,
        description="Threads that encode images. Unset: the usable CPUs.",
    )

    max_batch_size: int = Field(
        default=16, ge=1, le=4096, description="Images in one model call, at most."
    )
    # Said again, or a single size in the variable would be taken for JSON.
    batch_sizes: Annotated[BatchSizes | None, NoDecode] = Field(
        default=None,
        description="The only sizes of a model call, such as 1,4,16: batches are padded up to the "
        "next one. The largest is --max-batch-size. Unset: 1, 2, 4 and so on on GPUs; on CPUs "
        "every size.",
    )
    max_wait_seconds: Seconds = Field(
        default=0.0,
        le=60,
        description="How long the oldest image may wait for its batch to fill up.",
    )
    queue_size: PositiveInt = Field(
        default=2048,
        description="Images that may wait for a model, and as many to be encoded; more are "
        "refused at once.",
    )
    max_images_per_request: PositiveInt = Field(
        default=512, description="Images one request may ask for."
    )
    chunk_bytes: int = Field(
        default=512 * 1024,
        ge=1,
        le=64 * 1024 * 1024,
        description="Pixels, in bytes, in one message of StreamImages; at least one image is sent.",
    )
    max_message_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=1024,
        le=2**31 - 1,
        description="The largest request accepted.",
    )

    tls_certificate: FileOrFolder | None = Field(
        default=None,
        description="PEM file of the server's certificate and those that lead to its authority. "
        "Unset: no TLS.",
    )
    tls_key: FileOrFolder | None = Field(
        default=None, description="PEM file of the certificate's private key, without a password."
    )
    tls_client_ca: FileOrFolder | None = Field(
        default=None,
        description="PEM file of the authorities whose clients may connect. Unset: all may.",
    )
    token_file: FileOrFolder | None = Field(
        default=None,
        description="File of the bearer tokens that may call, one a line. Unset: all may.",
    )
    rate_limit_images_per_second: PositiveFloat | None = Field(
        default=None,
        description="Images a second that each client may ask for. A client is known by its token "
        "or, without one, by its address. Unset: no limit.",
    )
    rate_limit_burst_images: PositiveInt | None = Field(
        default=None,
        description="Images a client may have at once after a pause. Unset: those of one second, "
        "or of the largest request if they are more.",
    )
    max_concurrent_calls: PositiveInt = Field(
        default=4096,
        description="Calls under way at any time; more are refused, health checks excepted.",
    )
    max_streams_per_connection: PositiveInt = Field(
        default=4096, le=2**31 - 1, description="Calls under way on one connection; more wait."
    )
    max_connections: PositiveInt = Field(
        default=1024, le=2**31 - 2, description="Connections; more are closed at once."
    )
    max_connection_age_seconds: PositiveSeconds = Field(
        default=3600.0,
        le=2**31 / 1000 - 1,
        description="A connection older than this takes no new calls; those under way are "
        "answered. Clients then reconnect, perhaps to another replica.",
    )
    keepalive_seconds: Annotated[float, Field(ge=1, le=2**31 / 1000 - 1)] = Field(
        default=60.0,
        description="A connection silent for so long is asked for a sign of life, and closed "
        "where none comes within 20 seconds.",
    )
    min_ping_seconds: Annotated[float, Field(ge=0, le=2**31 / 1000 - 1)] = Field(
        default=10.0,
        description="How often clients may ask for a sign of life; those that do more often are "
        "disconnected. Our own ask every 20 seconds.",
    )

    deadline_seconds: PositiveSeconds = Field(
        default=60.0, description="The deadline of a call whose caller sets none."
    )
    max_deadline_seconds: Annotated[float, Field(gt=0, le=2**31 / 1000 - 1)] = Field(
        default=600.0, description="No call takes longer, whatever deadline its caller sets."
    )
    drain_seconds: Seconds = Field(
        default=5.0,
        description="How long new calls are still answered after SIGTERM or SIGINT.",
    )
    log_level: LogLevel = Field(
        default="info",
        description="The least important lines logged. debug: one for each call too.",
    )
    log_format: LogFormat = Field(
        default="text", description="Lines for people, or a JSON object each."
    )
    trace_endpoint: Endpoint | None = Field(
        default=None,
        description="The collector that gets OpenTelemetry traces, by OTLP over gRPC, such as "
        "http://localhost:4317. Unset: no traces.",
    )
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01,
        description="The share of calls that are traced, where the caller has not decided it.",
    )

    @model_validator(mode="after")
    def _each_port_is_another(self) -> Self:
        ports = {
            "port": self.port,
            "metrics_port": self.metrics_port,
            "health_port": self.health_port,
        }
        for (name, port), (other, same) in itertools.combinations(ports.items(), 2):
            if port and port == same:
                raise ValueError(f"{name}, {other}: expected different ports, got {port} for both")
        return self

    @model_validator(mode="after")
    def _a_full_request_fits_the_queue(self) -> Self:
        if self.max_images_per_request > self.queue_size:
            raise ValueError(
                f"max_images_per_request: expected at most queue_size ({self.queue_size}), "
                f"got {self.max_images_per_request}: such a request could never be admitted"
            )
        return self

    @model_validator(mode="after")
    def _the_largest_batch_is_the_limit(self) -> Self:
        if self.batch_sizes and max(self.batch_sizes) != self.max_batch_size:
            raise ValueError(
                f"batch_sizes: expected max_batch_size ({self.max_batch_size}) as the largest, "
                f"got {max(self.batch_sizes)}"
            )
        return self

    @model_validator(mode="after")
    def _graphs_go_with_cuda(self) -> Self:
        if self.cuda_graphs == "on" and self.device != "cuda":
            raise ValueError(
                f"cuda_graphs: expected auto or off with the device {self.device}, got on"
            )
        return self

    @model_validator(mode="after")
    def _the_cache_goes_with_tensorrt(self) -> Self:
        if self.tensorrt_cache is not None and self.device != "tensorrt":
            raise ValueError(
                f"tensorrt_cache: expected the device tensorrt with it, got {self.device}"
            )
        return self

    @model_validator(mode="after")
    def _no_deadline_beyond_the_longest(self) -> Self:
        if self.deadline_seconds > self.max_deadline_seconds:
            raise ValueError(
                f"deadline_seconds: expected at most max_deadline_seconds "
                f"({self.max_deadline_seconds:g}), got {self.deadline_seconds:g}"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate, tls_key: expected both or none, got one")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca: expected tls_certificate and tls_key too, got none")
        return self

    @model_validator(mode="after")
    def _the_burst_goes_with_a_rate(self) -> Self:
        if self.rate_limit_burst_images is not None and self.rate_limit_images_per_second is None:
            raise ValueError(
                "rate_limit_burst_images: expected rate_limit_images_per_second too, got none: "
                "nothing would be limited"
            )
        return self

    @model_validator(mode="after")
    def _versions_go_with_their_policy(self) -> Self:
        if (self.version_policy == "specific") != bool(self.versions):
            raise ValueError(
                "versions: expected NAME:VERSION,... with the version_policy specific and only "
                f"there, got {self.version_policy} with {len(self.versions)} versions"
            )
        return self
