"""Hides where a setting comes from: a flag, a GANSERVE_ variable or its default."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Device = Literal["auto", "cpu", "cuda", "tensorrt"]
LogLevel = Literal["debug", "info", "warning", "error"]


class ServerConfig(BaseSettings):
    """Serve every model of a repository over gRPC.

    Each setting is a flag of `ganserve serve` and a variable GANSERVE_...; the flag wins.
    """

    model_config = SettingsConfigDict(env_prefix="GANSERVE_", extra="forbid", frozen=True)

    models: Path = Field(description="The repository: a folder that holds NAME/VERSION/model.onnx.")
    default_model: str | None = Field(
        default=None,
        min_length=1,
        description="The model meant where a request names none. Unset: the only one there is.",
    )
    poll_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=2.0, description="How often the repository is looked through for new versions."
    )

    host: str = Field(
        default="0.0.0.0",  # noqa: S104 - a server in a container is called from outside it
        min_length=1,
        description="The address to listen on, for calls and for metrics.",
    )
    port: Port = Field(default=50051, description="The port for gRPC calls; 0 takes a free one.")
    metrics_port: Port = Field(
        default=9090,
        description="The port for /metrics, /healthz and /readyz; 0 takes a free one.",
    )

    device: Device = Field(
        default="auto",
        description="What the models run on. auto: CUDA where there is a device, else the CPU.",
    )
    instances: PositiveInt | None = Field(
        default=None,
        description="Calls of one model at the same time. Unset: the usable CPUs; 1 on GPUs.",
    )
    threads: PositiveInt | None = Field(
        default=None,
        description="Threads within one model call. Unset: the usable CPUs divided by instances.",
    )
    encoder_threads: PositiveInt | None = Field(
        default=None, description="Threads that encode images. Unset: the usable CPUs."
    )

    max_batch_size: int = Field(
        default=16, ge=1, le=4096, description="Images in one model call, at most."
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

    deadline_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=60.0, description="The deadline of a call whose caller sets none."
    )
    drain_seconds: Seconds = Field(
        default=5.0,
        description="How long new calls are still answered after SIGTERM or SIGINT.",
    )
    log_level: LogLevel = Field(default="info", description="The least important lines logged.")

    @model_validator(mode="after")
    def _a_full_request_fits_the_queue(self) -> Self:
        if self.max_images_per_request > self.queue_size:
            raise ValueError(
                f"max_images_per_request: expected at most queue_size ({self.queue_size}), "
                f"got {self.max_images_per_request}: such a request could never be admitted"
            )
        return self
