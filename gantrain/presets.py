"""A table of named configurations, each with the source it follows."""

from dataclasses import dataclass
from typing import Any

from gantrain.config import TrainConfig
from gantrain.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """Settings that differ from the defaults, and where they come from."""

    summary: str
    source: str
    settings: dict[str, Any]


PRESETS = {
    "dcgan": Preset(
        summary="the flagship: DCGAN-class networks with a loss and penalties that stay stable",
        source=(
            "networks after Radford et al. 2015; relativistic pairing loss with R1 and R2 on every "
            "step after Huang et al. 2024 (R3GAN); averaged generator after Yazici et al. 2018"
        ),
        settings={},
    ),
}

# Where a preset leaves the shape of the images to the data, its parameters are counted at this.
_REFERENCE_SIZE, _REFERENCE_CHANNELS = 64, 3


def resolve(explicit: dict[str, Any]) -> TrainConfig:
    """Join defaults, the named preset's settings and those given explicitly, the last winning.

    Raises:
        UsageError: there is no such preset.
        ValidationError: a setting's value is not one it can have.
    """
    name = explicit.get("preset", TrainConfig.model_fields["preset"].default)
    return TrainConfig(**{**find_preset(name).settings, **explicit})


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def list_presets() -> list[dict[str, str]]:
    """Name, summary and source of each preset."""
    return [
        {"name": name, "summary": preset.summary, "source": preset.source}
        for name, preset in PRESETS.items()
    ]


def describe_preset(name: str) -> dict[str, Any]:
    """One preset whole: its settings, and its networks' parameters in Keras' way of counting.

    Raises:
        UsageError: there is no such preset.
    """
    from gantrain.networks import count_parameters, create_networks

    preset = find_preset(name)
    config = resolve({"preset": name, "data": "", "run_dir": ""})
    shape = {
        "image_size": config.image_size or _REFERENCE_SIZE,
        "channels": config.channels or _REFERENCE_CHANNELS,
    }
    generator, discriminator = create_networks(
        **shape, latent_dim=config.latent_dim, filters=config.filters, seed=config.seed
    )
    return {
        "name": name,
        "summary": preset.summary,
        "source": preset.source,
        "settings": config.model_dump(mode="json", exclude={"preset", "data", "run_dir"}),
        "parameters": {
            "generator": count_parameters(generator),
            "discriminator": count_parameters(discriminator),
        },
        "parameters_at": shape,
    }
