"""The settings of a training run, each declared once: name, type, default, unit, check, help."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_MAY_CHANGE = "may_change"


def _setting(default: Any, help_text: str, *, may_change: bool = False, **checks: Any) -> Any:  # noqa: ANN401
    """Declare a setting; one that `may_change` may differ when a run is resumed."""
    return Field(
        default,
        description=help_text,
        json_schema_extra={_MAY_CHANGE: may_change},
        **checks,
    )


class TrainConfig(BaseModel):
    """What a run is started with, checked; fields left to the data are settled once they load."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: str = _setting("dcgan", "a named configuration, see `gantrain presets`")
    data: str = _setting(
        ...,
        "what to train on: `digits`, or the path of an idx folder, an image folder or an image zip",
        may_change=True,  # it may have moved; the data themselves are compared by fingerprint
    )
    run_dir: Path = _setting(
        ..., "folder for checkpoints, metrics and sample grids; made if missing", may_change=True
    )
    total_images: int = _setting(
        1_000_000, "length of the run, in real images seen", may_change=True, ge=1
    )
    seed: int = _setting(0, "seed of weights, data order and noise", ge=0, lt=2**63)

    image_size: int | None = _setting(
        None, "side of the square images in pixels; unset: as the data suggest", ge=8, le=128
    )
    channels: Literal[1, 3] | None = _setting(
        None, "1 is grey, 3 is RGB; unset: grey where all images are grey"
    )
    flip: Literal["auto", "on", "off"] = _setting(
        "auto", "mirror images left to right at random; auto: on for colour images, off for grey"
    )
    skip_bad_files: bool = _setting(
        False,
        "leave out files that cannot be used instead of refusing to train",
        may_change=True,  # which images are left is seen by the fingerprint
    )

    latent_dim: int = _setting(64, "length of a latent vector", ge=1, le=4096)
    filters: int = _setting(
        64, "capacity: channels of the feature maps next to the image", ge=1, le=1024
    )
    batch_size: int = _setting(64, "real images in a step", ge=2, le=65536)
    lr: float = _setting(2e-3, "learning rate of Adam, both networks", gt=0, le=1)
    beta1: float = _setting(0.0, "Adam's decay of the mean gradient", ge=0, lt=1)
    beta2: float = _setting(0.99, "Adam's decay of the mean squared gradient", ge=0, lt=1)
    r1_weight: float | None = _setting(
        None,
        "weight of half the squared gradient norm on real images; "
        "unset: 0.5 at 32x32, in proportion to the area of the image",
        ge=0,
    )
    r2_weight: float | None = _setting(
        None,
        "weight of half the squared gradient norm on fake images; unset: as --r1-weight's default",
        ge=0,
    )
    ema_half_life_images: int = _setting(
        32_000, "half-life of the averaged generator, in images seen", ge=1
    )
    ema_ramp_up: float = _setting(
        0.05, "the half-life is at most this share of the images seen so far", gt=0, le=1
    )

    device: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "where to compute; auto: CUDA where there is a device", may_change=True
    )
    threads: int | None = _setting(
        None, "CPU threads; unset: the CPUs this process may use", may_change=True, ge=1
    )
    log_every: int | None = _setting(
        None, "images between status lines; unset: a 200th of the run", may_change=True, ge=1
    )
    sample_every: int | None = _setting(
        None, "images between sample grids; unset: a 20th of the run", may_change=True, ge=1
    )
    checkpoint_every: int | None = _setting(
        None, "images between checkpoints; unset: a 20th of the run", may_change=True, ge=1
    )
    keep_checkpoints: int = _setting(2, "how many checkpoints to keep", may_change=True, ge=1)

    @field_validator("image_size")
    @classmethod
    def _multiple_of_four(cls, size: int | None) -> int | None:
        if size is not None and size % 4:
            raise ValueError(f"expected a multiple of 4, try {size - size % 4}")
        return size


def may_change(name: str) -> bool:
    """Whether the setting may differ when a run is resumed."""
    extra = TrainConfig.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return bool(extra[_MAY_CHANGE])
