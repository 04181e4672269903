"""Hides how a change of a run's settings is said: each flag, its present value, what it needs.

A change that the command line would refuse beside the run's other settings is not said at all.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from gantrain.config import TrainConfig, flag, spell
from gantrain.config_rules import find_contradiction, has_penalty, network_kinds

Changes = Mapping[str, Any]  # setting -> value to give, None to leave it out


def try_values(config: TrainConfig, changes: Changes, word: str = "try", why: str = "") -> str:
    """Each setting with its present value and another, or nothing where that is refused."""
    beside = _needed_beside(config, changes)
    if not _is_accepted(config, {**changes, **beside}):
        return ""
    told = ", ".join(
        f"{word} {spell(name, value)}"
        if isinstance(value, bool)
        else f"{flag(name)} {_shorten(_present(config, name))}: {word} {_shorten(value)}"
        for name, value in changes.items()
    )
    return f"{told}, with {_spell(beside)}{why}" if beside else f"{told}{why}"


def give_flags(config: TrainConfig, changes: Changes, present: str, why: str) -> str:
    """What the run has at present, and all flags for something else, or nothing if refused."""
    changes = {**changes, **_needed_beside(config, changes)}
    return f"{present}: use {_spell(changes)}{why}" if _is_accepted(config, changes) else ""


def _needed_beside(config: TrainConfig, changes: Changes) -> dict[str, Any]:
    """What else must change for `find_contradiction` to take the changes."""
    changed = config.model_copy(update=dict(changes))
    _, discriminator = network_kinds(changed)
    needed: dict[str, Any] = {}
    if has_penalty(changed) and discriminator.batch_norm:
        needed["discriminator"] = "dcgan"
    paired = changed.loss == "relativistic"
    if changed.discriminator_step == "two-steps" and (paired or changed.gradient_penalty_weight):
        needed["discriminator_step"] = "joint"
    if changed.label_smoothing and paired:
        needed["label_smoothing"] = 0.0
    if changed.reuse_fakes and changed.generator_updates > 1:
        needed["reuse_fakes"] = False
    if changed.weight_clip is not None and has_penalty(changed) and not has_penalty(config):
        needed["weight_clip"] = None
    return needed


def _is_accepted(config: TrainConfig, changes: Changes) -> bool:
    """Whether the command line would take the changes beside the run's other settings."""
    try:
        changed = TrainConfig(**{**config.model_dump(), **changes})
    except ValidationError:  # beyond what a setting can be
        return False
    given = [name for name, value in changes.items() if value is not None]
    return find_contradiction(changed, given) is None


def _present(config: TrainConfig, name: str) -> object:
    """A setting's value, or what stands in for it while it is unset."""
    unset: dict[str, object] = {
        "lr": config.generator_rate,
        "discriminator_lr": config.discriminator_rate,
        "discriminator_filters": config.filters,
    }
    value = getattr(config, name)
    return unset.get(name, 0.0) if value is None else value


def _spell(changes: Changes) -> str:
    """The changes as they stand on a command line."""
    given = [spell(name, _shorten(value)) for name, value in changes.items() if value is not None]
    left_out = [flag(name) for name, value in changes.items() if value is None]
    return " ".join(given) + (f" and leave {', '.join(left_out)} out" if left_out else "")


def _shorten(value: object) -> object:
    """A number as short as a person would write it; all else as it is."""
    return f"{value:g}" if isinstance(value, float) else value
