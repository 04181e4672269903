"""The settings of a training run, each declared once: name, type, default, unit, check, help."""

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

_MAY_CHANGE = "may_change"
_MOST_DIGITS = 100  # of a whole number, for 1e999999999 would fill the memory


def _setting(default: Any, help_text: str, *, may_change: bool = False, **checks: Any) -> Any:  # noqa: ANN401
    """Declare a setting; one that `may_change` may differ when a run is resumed."""
    return Field(
        default,
        description=help_text,
        json_schema_extra={_MAY_CHANGE: may_change},
        **checks,
    )


def _number_of(text: object) -> object:
    """The number that a word of the command line spells: a Literal takes no text for one."""
    return int(text) if isinstance(text, str) and text.isdecimal() else text


HIGHEST_DEFAULT_LR = 2e-3
IMAGE_SIZES: Final = range(8, 129, 4)  # what the networks can make, pixels

Channels = Annotated[Literal[1, 3], BeforeValidator(_number_of)]
AugmentationName = Literal["color", "translation", "cutout"]
LossName = Literal["relativistic", "bce", "saturating", "least-squares", "hinge", "wasserstein"]
GeneratorName = Literal[
    "dcgan",
    "dcgan-2015",
    "keras-mlp",
    "keras-conv",
    "selu-dense",
    "torch-mlp",
    "faces",
    "sine",
    "points",
]
DiscriminatorName = Literal[
    "dcgan",
    "dcgan-2015",
    "keras-mlp",
    "keras-mlp-conv",
    "keras-conv",
    "selu-dense",
    "torch-mlp",
    "faces",
    "sine",
    "points",
]


class Settings(BaseModel):
    """Settings as people write them: a whole number may be `1e6` or `1_000_000`."""

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole_number(cls, given: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        kind = cls.model_fields[info.field_name].annotation
        if not isinstance(given, str) or kind not in (int, int | None):
            return given
        try:
            number = Decimal(given)
            if number.adjusted() < _MOST_DIGITS and number == int(number):
                return int(number)
        except (InvalidOperation, ValueError, OverflowError):  # a word, nan, inf
            pass
        raise ValueError(f"expected a whole number, such as 64 or 1e6, got {given!r}")


def refuse_impossible_size(size: int | None) -> int | None:
    """Raise ValueError for a size of images that no network makes."""
    if size is not None and size not in IMAGE_SIZES:
        nearest = min(max(size - size % IMAGE_SIZES.step, IMAGE_SIZES[0]), IMAGE_SIZES[-1])
        raise ValueError(f"expected a multiple of 4 from 8 to 128, got {size}; try {nearest}")
    return size


class TrainConfig(Settings):
    """What a run is started with, checked; fields left to the data are settled once they load."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: str = _setting(
        "dcgan",
        "a named configuration, see `gantrain presets`, or the path of a JSON file with settings; "
        "where the data are points, `dcgan` stands for `points`",
        may_change=True,  # the settings themselves are compared
    )
    data: str = _setting(
        ...,
        "what to train on: a folder or .zip of images; a folder with MNIST-format files, or "
        "`stacked-mnist:` before it; CIFAR-10's binary files; a CelebA folder; or a name: "
        "`digits`, `sine`, `ring8`, `grid25`",
        may_change=True,  # it may have moved; the data themselves are compared by fingerprint
    )
    run_dir: Path = _setting(
        ...,
        "folder for checkpoints, metrics and sample grids; made if missing; settings in braces are "
        "filled in, as in `runs/{preset}_batch{batch_size}`",
        may_change=True,
    )
    total_images: int = _setting(
        1_000_000, "length of the run, in real images seen", may_change=True, ge=1
    )
    seed: int = _setting(0, "seed of weights, data order and noise", ge=0, lt=2**63)

    image_size: int | None = _setting(
        None,
        "side of the square images in pixels, a multiple of 4 from 8 to 128; unset: the size that "
        "all images share, else the median of their shorter sides, at most 64",
    )
    channels: Channels | None = _setting(
        None, "1 is grey, 3 is RGB; unset: grey where all images are grey"
    )
    flip: Literal["auto", "on", "off"] = _setting(
        "auto",
        "mirror images left to right at random; auto: on for colour images, off for grey ones and "
        "stacked digits",
    )
    max_data_images: int | None = _setting(
        None,
        "use only the first so many images of the data (of class folders, the first in order); "
        "unset: all",
        may_change=True,  # which images are used is seen by the fingerprint
        ge=2,
    )
    skip_bad_files: bool = _setting(
        False,
        "leave out files that cannot be used instead of refusing to train",
        may_change=True,  # which images are left is seen by the fingerprint
    )

    generator: GeneratorName | None = _setting(
        None, "the generator network; unset: `dcgan` for images, `points` for points"
    )
    discriminator: DiscriminatorName | None = _setting(
        None, "the discriminator network; unset: the mirror image of the generator"
    )
    latent_dim: int = _setting(64, "length of a latent vector", ge=1, le=4096)
    filters: int = _setting(
        64, "capacity: channels of the feature maps next to the image", ge=1, le=1024
    )
    discriminator_filters: int | None = _setting(
        None, "capacity of the discriminator alone; unset: as --filters", ge=1, le=1024
    )
    kernel_size: int = _setting(
        5, "side of the convolutions' kernels, where the network leaves it open", ge=3, le=9
    )
    conditional: bool = _setting(
        False, "learn each class by its label; needs data with classes, and the networks `dcgan`"
    )
    spectral_norm: bool = _setting(
        False, "divide each weight of the discriminator by its largest singular value"
    )

    batch_size: int = _setting(64, "real images in a step", ge=2, le=65536)
    loss: LossName = _setting("relativistic", "the adversarial loss")
    label_smoothing: float = _setting(
        0.0, "lower the discriminator's target for real images by this much", ge=0, lt=0.5
    )
    r1_weight: float | None = _setting(
        None,
        "weight of half the squared gradient norm on real images; unset: with the relativistic "
        "loss 0.5 at 32x32, in proportion to the area of the image (of points 0.04 times the mean "
        "variance of a coordinate), and 0 with others",
        ge=0,
    )
    r2_weight: float | None = _setting(
        None,
        "weight of half the squared gradient norm on fake images; unset: as --r1-weight's default",
        ge=0,
    )
    gradient_penalty_weight: float = _setting(
        0.0,
        "weight of (gradient norm - 1) squared between reals and fakes (WGAN-GP); 10 is usual",
        ge=0,
    )
    weight_clip: float | None = _setting(
        None, "clip the discriminator's weights to plus or minus this (WGAN); 0.01 is usual", gt=0
    )
    discriminator_updates: int = _setting(
        1, "updates of the discriminator in a step, each on its own batch", ge=1, le=100
    )
    generator_updates: int = _setting(1, "updates of the generator in a step", ge=1, le=100)
    discriminator_step: Literal["joint", "separate", "two-steps"] = _setting(
        "joint",
        "reals and fakes pass the discriminator together, or apart in one update, or in an update "
        "each",
    )
    discriminator_loss_weight: float = _setting(
        1.0, "factor of the discriminator's loss; 0.5 makes a sum over reals and fakes a mean", gt=0
    )
    fakes_in_inference_mode: bool = _setting(
        False, "the discriminator learns from a generator whose BatchNorm is in inference mode"
    )
    reuse_fakes: bool = _setting(
        False, "the generator learns from the fakes that the discriminator has just seen"
    )
    augment: str = _setting(
        "off",
        "differentiable augmentation of all that the discriminator sees, for few images: `off`, or "
        "names out of `color`, `translation` and `cutout`, as in `color,translation,cutout`",
    )
    precision: Literal["fp32", "bf16"] = _setting(
        "fp32",
        "fp32: float32 in full, on a GPU no TF32 either; bf16: matrix products and convolutions in "
        "bfloat16; quick where the hardware has it",
    )

    optimizer: Literal["adam", "rmsprop"] = _setting("adam", "the optimizer of both networks")
    lr: float | None = _setting(
        None,
        "learning rate; unset: 0.002, reduced in proportion for networks in which a layer of the "
        "discriminator has more than 1024 inputs",
        gt=0,
        le=1,
    )
    discriminator_lr: float | None = _setting(
        None, "learning rate of the discriminator; unset: as --lr", gt=0, le=1
    )
    # At a constant rate, distances on MNIST grow again after 1.3 million images; at this one they
    # still shrink after 3.6 million: see docs/benchmarks-training.md.
    lr_decay: float = _setting(
        1e-4, "the learning rate is divided by 1 + this times the optimizer's updates", ge=0
    )
    beta1: float = _setting(0.0, "Adam's decay of the mean gradient", ge=0, lt=1)
    beta2: float = _setting(0.99, "Adam's decay of the mean squared gradient", ge=0, lt=1)
    rho: float = _setting(0.9, "RMSprop's decay of the mean squared gradient", ge=0, lt=1)
    optimizer_eps: float = _setting(
        1e-8, "added to the root of the mean squared gradient", gt=0, le=1
    )
    gradient_clip: float | None = _setting(
        None, "clip each element of the gradients to plus or minus this", gt=0
    )
    ema_half_life_images: int = _setting(
        500_000, "half-life of the averaged generator, in images seen; 0: no averaging", ge=0
    )
    ema_ramp_up: float = _setting(
        0.05, "the half-life is at most this share of the images seen so far", gt=0, le=1
    )

    device: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "where to compute; auto: CUDA where there is a device", may_change=True
    )
    threads: int | None = _setting(
        None, "CPU threads; unset: the CPUs this process may use", may_change=True, ge=1, le=1024
    )
    deterministic: bool = _setting(
        False,
        "on a GPU: algorithms that give the same weights each time, though slower; on the CPU runs "
        "repeat themselves anyway",
        may_change=True,
    )
    cuda_graph: bool = _setting(
        True,
        "on a GPU: a step is recorded, compared with steps as they are, and replayed as a CUDA "
        "graph; not with several ranks",
        may_change=True,
    )
    log_every: int | None = _setting(
        None, "images between status lines; unset: a 200th of the run", may_change=True, ge=1
    )
    sample_every: int | None = _setting(
        None, "images between sample grids; unset: a 20th of the run", may_change=True, ge=1
    )
    diagnose_every: int | None = _setting(
        None,
        "images between looks at the health of the run; unset: a 20th of the run",
        may_change=True,
        ge=1,
    )
    evaluate_every: int | None = _setting(
        None,
        "images between evaluations against the data, each of a checkpoint that is then saved; the "
        "best one is kept as `checkpoints/best.pt`; unset: none",
        may_change=True,
        ge=1,
    )
    checkpoint_every: int | None = _setting(
        None,
        "images between checkpoints; unset: a 20th of the run, and where that takes long, at the "
        "first status line after ten minutes without one",
        may_change=True,
        ge=1,
    )
    keep_checkpoints: int = _setting(2, "how many checkpoints to keep", may_change=True, ge=1)
    tensorboard: bool = _setting(
        True, "write event files for TensorBoard beside metrics.jsonl", may_change=True
    )
    on_divergence: Literal["stop", "rollback"] = _setting(
        "stop",
        "when numbers leave all bounds: stop, or go back to the last good checkpoint with half the "
        "learning rate and another order of the data, three times at most",
        may_change=True,
    )

    @property
    def images_per_step(self) -> int:
        """Real images that a step of the loop sees."""
        return self.batch_size * self.discriminator_updates

    @property
    def generator_rate(self) -> float:
        """The generator's learning rate; the default's upper limit where nothing has settled it."""
        return HIGHEST_DEFAULT_LR if self.lr is None else self.lr

    @property
    def discriminator_rate(self) -> float:
        """The discriminator's learning rate: its own, or else the generator's."""
        return self.generator_rate if self.discriminator_lr is None else self.discriminator_lr

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in `augment`, in order."""
        return () if self.augment == "off" else tuple(self.augment.split(","))

    @field_validator("augment")
    @classmethod
    def _known_augmentations(cls, names: str) -> str:
        chosen = [name.strip() for name in names.split(",")]
        known = get_args(AugmentationName)
        if chosen != ["off"] and (set(chosen) - set(known) or len(set(chosen)) < len(chosen)):
            raise ValueError(f"expected off, or each at most once out of {', '.join(known)}")
        return ",".join(chosen)

    _possible_size = field_validator("image_size")(refuse_impossible_size)


def flag(name: str) -> str:
    """A setting as it is given on the command line."""
    return f"--{name.replace('_', '-')}"


def spell(name: str, value: object) -> str:
    """A setting with its value as the command line takes it, where on and off are two flags."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {value}"


def may_change(name: str) -> bool:
    """Whether the setting may differ when a run is resumed."""
    extra = TrainConfig.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return bool(extra[_MAY_CHANGE])
