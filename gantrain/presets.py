"""A table of named configurations, each with the source it follows."""

import json
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from gantrain.config import TrainConfig, flag
from gantrain.config_rules import build_networks, find_contradiction, misfit, network_kinds
from gantrain.data.point_sets import POINT_SETS
from gantrain.errors import UsageError
from gantrain.networks import count_parameters
from gantrain.typos import suggest


@dataclass(frozen=True)
class Preset:
    """Settings that differ from the defaults, and where they come from."""

    summary: str
    source: str
    settings: dict[str, Any]
    epoch_images: int | None = None  # what the source calls an epoch, in real images seen


# What all recipes from before averaged generators and gradient penalties have in common, if they
# say nothing else.
_PLAIN = {
    "r1_weight": 0.0,
    "r2_weight": 0.0,
    "ema_half_life_images": 0,
    "lr_decay": 0.0,
    "flip": "off",
}
_KERAS = {**_PLAIN, "optimizer_eps": 1e-7}
_MNIST = {"image_size": 28, "channels": 1}
_KERAS_MLP = {
    **_KERAS,
    **_MNIST,
    "generator": "keras-mlp",
    "latent_dim": 100,
    "batch_size": 128,
    "loss": "bce",
    "discriminator_step": "two-steps",
    "fakes_in_inference_mode": True,
    "lr": 2e-4,
    "beta1": 0.5,
    "beta2": 0.999,
    "total_images": 20_000 * 128,
    "sample_every": 1000 * 128,
}

PRESETS = {
    "dcgan": Preset(
        summary="the flagship: DCGAN-class networks with a loss and penalties that stay stable",
        source=(
            "networks after Radford et al. 2015; relativistic pairing loss with R1 and R2 on every "
            "step after Huang et al. 2024 (R3GAN); averaged generator after Yazici et al. 2018"
        ),
        settings={},
    ),
    "dcgan-2015": Preset(
        summary="the recipe everybody knows: BatchNorm in both networks, cross-entropy, Adam 2e-4",
        source="Radford et al. 2015, as in PyTorch's own example `dcgan` (batches of 64)",
        settings={
            **_PLAIN,
            "generator": "dcgan-2015",
            "latent_dim": 100,
            "filters": 64,
            "batch_size": 64,
            "loss": "bce",
            "discriminator_step": "separate",
            "reuse_fakes": True,
            "lr": 2e-4,
            "beta1": 0.5,
            "beta2": 0.999,
        },
    ),
    "keras-mlp": Preset(
        summary="dense networks on 28x28 grey images, two discriminator updates an iteration",
        source=(
            "a Keras tutorial on MNIST; its epoch is one batch of 128. The number of epochs is not "
            "stated: 20,000 here"
        ),
        settings={**_KERAS_MLP, "discriminator": "keras-mlp"},
        epoch_images=128,
    ),
    "keras-mlp-conv-critic": Preset(
        summary="`keras-mlp` with the convolutional discriminator that its author swaps in",
        source="the same tutorial",
        settings={**_KERAS_MLP, "discriminator": "keras-mlp-conv"},
        epoch_images=128,
    ),
    "keras-conv64": Preset(
        summary="convolutional networks with BatchNorm on 64x64 colour images",
        source=(
            "a Keras tutorial on CelebA: NET_CAPACITY is --filters, FILTER_SIZE --kernel-size, "
            "DISC_UPDATES --discriminator-updates, GEN_UPDATES --generator-updates, NUM_LOAD "
            "--max-data-images; 1000 epochs of 200 batches of 32, pictures every 80 batches. There "
            "images are resized to a square, here they are cropped to one first"
        ),
        settings={
            **_KERAS,
            "image_size": 64,
            "channels": 3,
            "max_data_images": 10_000,
            "generator": "keras-conv",
            "latent_dim": 100,
            "filters": 16,
            "kernel_size": 5,
            "batch_size": 32,
            "loss": "bce",
            "discriminator_step": "two-steps",
            "fakes_in_inference_mode": True,
            "lr": 2e-4,
            "beta1": 0.9,
            "beta2": 0.999,
            "total_images": 1000 * 200 * 32,
            "log_every": 200 * 32,
            "sample_every": 80 * 32,
        },
        epoch_images=200 * 32,
    ),
    "selu-dense": Preset(
        summary="small dense SELU networks on 28x28 grey images in [0, 1], RMSprop",
        source="a Keras tutorial on Fashion-MNIST (seed 42): 50 epochs, pictures after each",
        settings={
            **_KERAS,
            **_MNIST,
            "seed": 42,
            "generator": "selu-dense",
            "latent_dim": 30,
            "batch_size": 32,
            "loss": "bce",
            "discriminator_loss_weight": 0.5,  # one mean over the fakes and the reals
            "optimizer": "rmsprop",
            "lr": 1e-3,
            "total_images": 50 * 60_000,
            "sample_every": 60_000,
        },
        epoch_images=60_000,
    ),
    "points": Preset(
        summary="the flagship for two-dimensional points, such as `ring8` and `grid25`",
        source=(
            "loss, penalties and averaging as in `dcgan`, which becomes this where the data are "
            "points; waves over the plane after Tancik et al. 2020; sizes and rates found on the "
            "mixtures of Lin et al. 2018 (PacGAN)"
        ),
        settings={
            "generator": "points",
            "latent_dim": 8,
            "filters": 24,
            "batch_size": 256,
            "lr": 4e-3,
            "discriminator_lr": 6e-3,
            "lr_decay": 2e-3,
            "beta1": 0.5,
            "total_images": 1_000_000,
        },
    ),
    "sine": Preset(
        summary="dense networks for two-dimensional points, such as the data set `sine`",
        source=(
            "a PyTorch tutorial; it states the networks, the rest is customary: 300 epochs of 1024 "
            "points, batches of 32, Adam 1e-3"
        ),
        settings={
            **_PLAIN,
            "generator": "sine",
            "latent_dim": 2,
            "batch_size": 32,
            "loss": "bce",
            "lr": 1e-3,
            "beta1": 0.9,
            "beta2": 0.999,
            "total_images": 300 * 1024,
        },
        epoch_images=1024,
    ),
    "torch-mlp": Preset(
        summary="dense networks with dropout on 28x28 grey images",
        source=(
            "a PyTorch tutorial on MNIST, then on Fashion-MNIST: Adam 1e-4; batches of 32 and 50 "
            "epochs are customary, not stated"
        ),
        settings={
            **_PLAIN,
            **_MNIST,
            "generator": "torch-mlp",
            "latent_dim": 100,
            "batch_size": 32,
            "loss": "bce",
            "lr": 1e-4,
            "beta1": 0.9,
            "beta2": 0.999,
            "total_images": 50 * 60_000,
        },
        epoch_images=60_000,
    ),
    "faces-rmsprop": Preset(
        summary="wide convolutional networks without BatchNorm on 128x128 colour images, RMSprop",
        source=(
            "a Keras tutorial on 10,000 celebrity faces: 800 iterations; batches of 16 are "
            "customary, not stated"
        ),
        settings={
            **_KERAS,
            "image_size": 128,
            "channels": 3,
            "max_data_images": 10_000,
            "generator": "faces",
            "latent_dim": 32,
            "batch_size": 16,
            "loss": "bce",
            "optimizer": "rmsprop",
            "lr": 1e-4,
            "lr_decay": 1e-8,
            "gradient_clip": 1.0,
            "total_images": 800 * 16,
        },
    ),
}

# Where a preset leaves the shape of the images to the data, its parameters are counted at this.
_REFERENCE_SIZE, _REFERENCE_CHANNELS, _REFERENCE_CLASSES = 64, 3, 10
_PRESET_KEYS = {"name", "summary", "source", "settings", "epoch_images"}
_DERIVED_KEYS = {"parameters", "parameters_at"}  # `gantrain presets NAME --json` shows them too
_OF_THE_RUN = {"preset", "data", "run_dir"}
_FLAGSHIP: str = TrainConfig.model_fields["preset"].default
_FLAGSHIP_FOR_POINTS = "points"


def resolve(explicit: dict[str, Any]) -> TrainConfig:
    """Join defaults, the named preset's settings and those given explicitly, the last winning.

    The flagship, named or not, is `dcgan` for images and `points` for points.

    Raises:
        UsageError: there is no such preset, or settings contradict each other.
        ValidationError: a setting's value is not one it can have.
    """
    of_points = explicit.get("data") in POINT_SETS
    name = explicit.get("preset", _FLAGSHIP)
    if name == _FLAGSHIP and of_points:
        name = _FLAGSHIP_FOR_POINTS
    settings = {**find_preset(name).settings, **explicit, "preset": name}
    if settings.get("generator") is None:
        settings["generator"] = "points" if of_points else "dcgan"
    if settings.get("discriminator") is None:
        settings["discriminator"] = settings["generator"]
    config = TrainConfig(**settings)
    contradiction = find_contradiction(config, given=explicit.keys())
    if contradiction:
        raise UsageError(contradiction)
    return config.model_copy(update={"run_dir": fill_in(config)})


def fill_in(config: TrainConfig) -> Path:
    """The run's folder with each `{setting}` in it replaced by the setting's value.

    Raises:
        UsageError: there is no such setting, or it has no value yet.
    """
    settings = {**config.model_dump(), "preset": Path(config.preset).stem}
    pattern = str(config.run_dir)
    try:
        names = [name for _, name, _, _ in Formatter().parse(pattern)]
        unset = next((name for name in names if name in settings and settings[name] is None), None)
        if unset is None:
            return Path(pattern.format_map(settings))
    except KeyError as error:
        raise UsageError(
            f"--run-dir {pattern}: expected names of settings in braces, such as "
            f"{{preset}} or {{batch_size}}; not known: {error}"
        ) from None
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise UsageError(
            f"--run-dir {pattern}: expected in braces nothing but names of settings, such as "
            f"{{preset}} or {{batch_size}}; write a brace of the folder's own name twice ({error})"
        ) from None
    raise UsageError(
        f"--run-dir {pattern}: {{{unset}}} is unset, or settled by the data: give "
        f"{flag(unset)} or leave it out of the name"
    )


def find_preset(name: str, given_as: str = "--preset") -> Preset:
    """The preset of that name, or in that JSON file; errors call it as it was given.

    Raises:
        UsageError: there is none, or the file does not hold one.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name.endswith(".json"):
        return read_preset(Path(name), given_as)
    raise UsageError(
        f"{given_as}: expected one of {', '.join(PRESETS)}, or the path of a .json file; got "
        f"{name!r}{suggest(name, PRESETS)}"
    )


def read_preset(path: Path, given_as: str) -> Preset:
    """A preset from a file such as `gantrain presets NAME --json` prints.

    Raises:
        UsageError: the file cannot be read or does not hold a preset.
    """
    try:
        values = json.loads(path.read_bytes())  # UTF-8, whatever the locale is
    except (OSError, ValueError) as error:
        raise UsageError(f"{given_as} {path}: cannot be read: {error}") from None
    settings = values.get("settings") if isinstance(values, dict) else None
    if not isinstance(settings, dict):
        raise UsageError(
            f'{given_as} {path}: expected an object with "settings" and, if you like, "summary" '
            'and "source", as `gantrain presets dcgan --json` prints it'
        )
    if unknown := values.keys() - _PRESET_KEYS - _DERIVED_KEYS:
        raise UsageError(f"{given_as} {path}: unknown keys: {', '.join(sorted(unknown))}")
    if unknown := settings.keys() - (TrainConfig.model_fields.keys() - _OF_THE_RUN):
        raise UsageError(f"{given_as} {path}: unknown settings: {', '.join(sorted(unknown))}")
    return Preset(
        summary=str(values.get("summary", "")),
        source=str(values.get("source", path)),
        settings=settings,
    )


def list_presets() -> list[dict[str, str]]:
    """Name, summary and source of each preset."""
    return [
        {"name": name, "summary": preset.summary, "source": preset.source}
        for name, preset in PRESETS.items()
    ]


def describe_preset(name: str) -> dict[str, Any]:
    """One preset whole: its settings, and its networks' parameters in Keras' way of counting.

    Raises:
        UsageError: there is no such preset, or its networks cannot make images of its size.
    """
    preset = find_preset(name, given_as="NAME")
    config = resolve({"preset": name, "data": "", "run_dir": ""})
    counted_at: dict[str, int | None] = {"image_size": None, "channels": None}
    if not network_kinds(config)[0].points:
        counted_at = {
            "image_size": config.image_size or _REFERENCE_SIZE,
            "channels": config.channels or _REFERENCE_CHANNELS,
        }
    counted = config.model_copy(update=counted_at)
    if problem := misfit(counted):
        raise UsageError(f"--generator {config.generator}: {problem}")
    return {
        "name": name,
        "summary": preset.summary,
        "source": preset.source,
        "epoch_images": preset.epoch_images,
        "settings": config.model_dump(mode="json", exclude=_OF_THE_RUN),
        "parameters": count_weights(counted, _REFERENCE_CLASSES),
        "parameters_at": {
            **counted_at,
            "classes": _REFERENCE_CLASSES if config.conditional else 0,
        },
    }


def count_weights(config: TrainConfig, class_count: int) -> dict[str, dict[str, int]]:
    """Parameters of `generator` and `discriminator`, in total and trainable."""
    names = ("generator", "discriminator")
    networks = build_networks(config, class_count)
    return dict(zip(names, map(count_parameters, networks), strict=True))
