"""How settings depend on each other: which go together, and defaults that follow from others.

What does not go together is refused by name, before anything is loaded.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gantrain.config import HIGHEST_DEFAULT_LR, TrainConfig, flag
from gantrain.data.point_sets import POINT_SETS, find_image_setting
from gantrain.losses import LOSSES_WITH_LABELS, create_loss
from gantrain.networks import (
    DISCRIMINATORS,
    GENERATORS,
    DiscriminatorKind,
    GeneratorKind,
    Shape,
    create_networks,
    most_inputs,
)

# Up to so many inputs, as at 28x28 with 32 filters, the default learning rate is the highest. At
# 64x64, where 64 filters make 8,192, that one left all bounds: see docs/benchmarks-training.md.
_INPUTS_AT_HIGHEST_LR = 1024
# Of --r1-weight and --r2-weight, for points of variance 1 in each direction.
_POINTS_PENALTY = 0.04
_OF_ADAM, _OF_RMSPROP = ("beta1", "beta2"), ("rho",)


def find_contradiction(config: TrainConfig, given: Collection[str]) -> str | None:
    """Say which settings contradict each other, or None; `given` are those of the command line."""
    return (
        _contradiction_of_networks(config)
        or _contradiction_of_loss(config)
        or _contradiction_of_updates(config)
        or _unused_setting(config, given)
    )


def network_shape(config: TrainConfig, class_count: int = 0) -> Shape:
    """What the networks are built from; how many classes the data have matters if conditional."""
    return Shape(
        image_size=config.image_size,
        channels=config.channels,
        latent_dim=config.latent_dim,
        filters=config.filters,
        discriminator_filters=config.discriminator_filters,
        kernel_size=config.kernel_size,
        classes=class_count if config.conditional else 0,
    )


def network_kinds(config: TrainConfig) -> tuple[GeneratorKind, DiscriminatorKind]:
    """What is known of the generator and the discriminator that the settings name."""
    assert config.generator is not None
    assert config.discriminator is not None
    return GENERATORS[config.generator], DISCRIMINATORS[config.discriminator]


def build_networks(config: TrainConfig, class_count: int) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator as a run begins with them, on the CPU."""
    assert config.generator is not None
    assert config.discriminator is not None
    return create_networks(
        config.generator,
        config.discriminator,
        network_shape(config, class_count),
        seed=config.seed,
        spectral_norm=config.spectral_norm,
    )


def choose_lr(config: TrainConfig) -> float:
    """The default of `--lr`, once the shape of the images is known.

    A step of Adam moves each weight by as much, so what a layer makes by as much more as it has
    inputs: see Yang et al., "Tensor programs V", 2022.
    """
    assert config.discriminator is not None
    inputs = most_inputs(config.discriminator, network_shape(config))
    return float(f"{HIGHEST_DEFAULT_LR * min(1, _INPUTS_AT_HIGHEST_LR / inputs):.3g}")


def penalty_for_images(image_size: int) -> float:
    """The default of `--r1-weight` and `--r2-weight`, with the relativistic loss.

    The same picture at twice the size spreads the gradient over four times the pixels and has a
    quarter of its squared norm, so an even hand needs four times the weight.
    """
    return 0.5 * (image_size / 32) ** 2


def penalty_for_points(points: NDArray[np.float32]) -> float:
    """The same for points [count, 2]: twice as far apart, they have a quarter of the gradient.

    Rounded, for sums differ in their last digits between machines, and settings must not.
    """
    variance = points.var(axis=0, dtype=np.float64).mean()
    return float(f"{_POINTS_PENALTY * variance:.3g}")


def misfit(config: TrainConfig) -> str | None:
    """Why the networks cannot be built for the shape of the images, once that is known."""
    shape = network_shape(config)
    generator, discriminator = network_kinds(config)
    return generator.check(shape) or discriminator.check(shape.for_discriminator())


def has_penalty(config: TrainConfig) -> bool:
    """Whether a penalty on the discriminator's gradient is asked for; None asks where it helps."""
    weights = (config.r1_weight, config.r2_weight)
    automatic = config.loss == "relativistic" and None in weights
    return automatic or any(weights) or config.gradient_penalty_weight > 0


def unused_settings(config: TrainConfig) -> dict[str, str]:
    """Settings that change nothing beside the others, each with the reason."""
    of_others = _OF_RMSPROP if config.optimizer == "adam" else _OF_ADAM
    unused = dict.fromkeys(of_others, f"--optimizer {config.optimizer} has no such setting")
    if not config.ema_half_life_images:
        unused["ema_ramp_up"] = "--ema-half-life-images 0 turns the averaging off"
    kinds = network_kinds(config)
    for name in ("filters", "kernel_size"):
        if not any(name in kind.leaves_open for kind in kinds):
            unused[name] = (
                f"--generator {config.generator} and --discriminator {config.discriminator} have "
                "fixed sizes; leave it out"
            )
    if "filters" not in kinds[1].leaves_open:
        unused["discriminator_filters"] = (
            f"--discriminator {config.discriminator} has a fixed size; leave it out"
        )
    return unused


def _contradiction_of_networks(config: TrainConfig) -> str | None:
    generator, discriminator = network_kinds(config)
    makes, judges = ("points" if kind.points else "images" for kind in (generator, discriminator))
    if makes != judges:
        return (
            f"--generator {config.generator} makes {makes}, --discriminator "
            f"{config.discriminator} judges {judges}: choose two that fit"
        )
    holds = "points" if config.data in POINT_SETS else "images"
    if config.data and makes != holds:
        fitting = ", ".join(
            name for name, kind in GENERATORS.items() if kind.points == (holds == "points")
        )
        return (
            f"--generator {config.generator} makes {makes}, --data {config.data} holds {holds}: "
            f"for {holds} choose one of {fitting}"
        )
    if holds == "points":
        return _setting_of_images(config)
    for name, kind in (("generator", generator), ("discriminator", discriminator)):
        if config.conditional and not kind.takes_labels:
            return (
                f"--conditional: --{name} {getattr(config, name)} takes no labels; use dcgan, or "
                "leave --conditional out"
            )
    problem = misfit(config) if config.image_size is not None and config.channels else None
    return f"--generator {config.generator}: {problem}" if problem else None


def _setting_of_images(config: TrainConfig) -> str | None:
    """A setting that only images can have, for data that are points."""
    of_images = ("image_size", "channels", "max_data_images", "skip_bad_files")
    given = {name: getattr(config, name) for name in of_images}
    if problem := find_image_setting(f"--data {config.data}", **given):
        return problem
    if config.precision != "fp32":
        return f"--precision {config.precision}: points need fp32; leave it out"
    if config.augmentations:
        return f"--augment {config.augment}: --data {config.data} holds points, not images"
    if config.flip == "on":
        return f"--flip on: --data {config.data} holds points, not images"
    if config.conditional:
        return f"--conditional: --data {config.data} holds points, which have no classes"
    return None


def _contradiction_of_loss(config: TrainConfig) -> str | None:
    if config.label_smoothing and config.loss not in LOSSES_WITH_LABELS:
        return (
            f"--label-smoothing {config.label_smoothing}: --loss {config.loss} has no labels to "
            f"smooth; use one of {', '.join(LOSSES_WITH_LABELS)}, or leave it out"
        )
    if config.weight_clip is not None and config.gradient_penalty_weight:
        return "--weight-clip and --gradient-penalty-weight: two ways to the same end; choose one"
    if config.weight_clip is not None and config.spectral_norm:
        return (
            "--weight-clip and --spectral-norm: the one clips what the other rescales; choose one"
        )
    _, discriminator = network_kinds(config)
    if has_penalty(config) and discriminator.batch_norm:
        return (
            f"--discriminator {config.discriminator}: it has BatchNorm, which mixes the images of "
            "a batch, so a penalty on the gradient of each image means nothing; set --r1-weight, "
            "--r2-weight and --gradient-penalty-weight to 0, or use --discriminator dcgan"
        )
    return None


def _contradiction_of_updates(config: TrainConfig) -> str | None:
    two_steps = config.discriminator_step == "two-steps"
    if two_steps and create_loss(config.loss).on_real is None:
        return (
            f"--discriminator-step two-steps: --loss {config.loss} compares reals with fakes and "
            "needs both in one update; use joint or separate"
        )
    if two_steps and config.gradient_penalty_weight:
        return (
            "--discriminator-step two-steps: --gradient-penalty-weight lies between reals and "
            "fakes and needs both in one update; use joint or separate"
        )
    if config.reuse_fakes and config.generator_updates > 1:
        return (
            f"--reuse-fakes: --generator-updates {config.generator_updates} needs new fakes for "
            "each update; leave one of them out"
        )
    if config.reuse_fakes and config.fakes_in_inference_mode:
        return (
            "--reuse-fakes: the generator learns in training mode, --fakes-in-inference-mode "
            "makes the discriminator's fakes in another; leave one of them out"
        )
    return None


def _unused_setting(config: TrainConfig, given: Collection[str]) -> str | None:
    unused = unused_settings(config).items()
    return next((f"{flag(name)}: {why}" for name, why in unused if name in given), None)
