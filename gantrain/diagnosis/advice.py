"""Hides what helps against which trouble, in the order of what helps most, in a run's own settings.

Each piece of advice names a flag, its present value and another to try, and what that needs beside
it. Advice that the run follows already, or that its other settings refuse, is left out.
"""

from functools import cache

from gantrain.config import HIGHEST_DEFAULT_LR, TrainConfig
from gantrain.config_rules import (
    choose_lr,
    has_penalty,
    network_kinds,
    penalty_for_images,
    penalty_for_points,
)
from gantrain.data.point_sets import POINT_SETS
from gantrain.diagnosis.setting_changes import give_flags, try_values
from gantrain.optimizers import ROLLBACK_LR

Advice = tuple[str, ...]

_DENSE = ("keras-mlp", "selu-dense", "torch-mlp")
_HIGH_BETA1 = 0.5
_USUAL_SIZE = 32  # pixels, while nothing has settled the size of the images
_PENALTIES = ("r1_weight", "r2_weight")
_GRADIENT_PENALTY = 10.0  # Gulrajani et al. 2017
_HEAVY = 100  # times the usual weight: the loss is next to nothing beside such a penalty
_CRITIC_UPDATES = 5  # of both Arjovsky et al. 2017 and Gulrajani et al. 2017
_LR_DECAY = TrainConfig.model_fields["lr_decay"].default
_HALF_LIFE = TrainConfig.model_fields["ema_half_life_images"].default
_IN_A_SENTENCE = 2  # pieces of advice


def weaken_discriminator(config: TrainConfig) -> Advice:
    """For a discriminator that is right about nearly everything."""
    return _join(
        config.discriminator_updates > 1
        and try_values(config, {"discriminator_updates": 1}, "use"),
        _slower_discriminator(config),
        _penalise(config),
        config.loss in ("bce", "least-squares")
        and not config.label_smoothing
        and try_values(config, {"label_smoothing": 0.1}, why=" (Salimans et al. 2016)"),
        not config.spectral_norm
        and not has_penalty(config)
        and try_values(
            config,
            {"spectral_norm": True},
            "use",
            why=", which bounds the discriminator (Miyato et al. 2018)",
        ),
        config.generator_updates == 1
        and config.discriminator_updates == 1
        and try_values(config, {"generator_updates": 2}),
        try_values(config, {"discriminator_lr": config.discriminator_rate / 2}),
    )


def strengthen_discriminator(config: TrainConfig) -> Advice:
    """For a discriminator that cannot tell bad samples from reals."""
    return _join(
        config.generator_updates > 1 and try_values(config, {"generator_updates": 1}, "use"),
        config.discriminator_rate < config.generator_rate
        and try_values(
            config,
            {"discriminator_lr": config.generator_rate},
            "use at least --lr's",
            why=" (two time-scales, Heusel et al. 2017, give the discriminator the faster one)",
        ),
        config.weight_clip is not None
        and give_flags(
            config,
            {"gradient_penalty_weight": _GRADIENT_PENALTY, "weight_clip": None},
            f"--weight-clip {config.weight_clip:g}",
            why=" (Gulrajani et al. 2017)",
        ),
        *(
            try_values(config, {name: weight / 10})
            for name in _PENALTIES
            if (weight := getattr(config, name))
        ),
        config.spectral_norm and try_values(config, {"spectral_norm": False}, "use"),
        config.label_smoothing > 0 and try_values(config, {"label_smoothing": 0.0}, "use"),
        config.generator_updates == 1
        and try_values(config, {"discriminator_updates": config.discriminator_updates + 1}),
        _wider_discriminator(config),
    )


def refine(config: TrainConfig) -> Advice:
    """For samples that come no nearer to the data, though the critic shows how."""
    return _join(
        config.discriminator_updates == 1
        and try_values(
            config,
            {"discriminator_updates": _CRITIC_UPDATES},
            why=", for a critic's distance is the better the further it was trained (Arjovsky et "
            "al. 2017)",
        ),
        _average(config),
        not config.lr_decay
        and try_values(config, {"lr_decay": _LR_DECAY}, "use", why=", for finer steps later on"),
        _lower_lr(config),
        _wider_discriminator(config),
        _larger_batch(config),
    )


def keep_diversity(config: TrainConfig) -> Advice:
    """For a generator that makes few different samples, or few of the classes."""
    return _join(
        _penalise(config),
        config.discriminator_updates > 1
        and try_values(config, {"discriminator_updates": 1}, "use"),
        config.generator_updates > 1 and try_values(config, {"generator_updates": 1}, "use"),
        _average(config),
        _lower_lr(config),
        _larger_batch(config),
    )


def steady(config: TrainConfig, rollbacks: int = 0) -> Advice:
    """For numbers that grow without bound, or swing, however often the run has gone back."""
    highest = _highest_lr(config)
    rates = {"lr": config.generator_rate, "discriminator_lr": config.discriminator_lr or 0.0}
    too_high = {name: highest for name, rate in rates.items() if rate > highest}
    return _join(
        "lr" in too_high and try_values(config, too_high, "use at most"),
        _lighter_penalty(config),
        "lr" not in too_high and _slower_discriminator(config),
        _penalise(config),
        _average(config),
        config.optimizer == "adam"
        and config.beta1 > _HIGH_BETA1
        and try_values(config, {"beta1": _HIGH_BETA1}, "use at most"),
        "lr" not in too_high and _lower_lr(config, rollbacks),
        _roll_back(config),
        _larger_batch(config),
    )


def say_how_to_go_on(config: TrainConfig, rollbacks: int) -> str:
    """What is left to a run whose numbers have left all bounds, in a sentence or two."""
    # The average is of what has diverged; going back needs no new run.
    others = (_average(config), _roll_back(config))
    helpful = [text for text in steady(config, rollbacks) if text not in others]
    told = f"In a new --run-dir, {'; or '.join(helpful[:_IN_A_SENTENCE])}"
    if not _roll_back(config):
        return told
    return f"{told}. In this one, --on-divergence rollback goes back and halves the learning rate"


def see_more(config: TrainConfig) -> Advice:
    """For samples that copy training images."""
    return _join(
        "give more images: a discriminator that knows each by heart asks for copies",
        not config.augmentations
        and try_values(
            config, {"augment": "color,translation,cutout"}, "use", why=" (Zhao et al. 2020)"
        ),
        config.flip == "off"
        and try_values(config, {"flip": "on"}, "use", why=", if mirrored images are as good"),
        _penalise(config),
        config.filters > 1 and try_values(config, {"filters": config.filters // 2}),
        config.evaluate_every is None
        and give_flags(
            config,
            {"evaluate_every": max(config.total_images // 20, 1)},
            "copies come late in a run, and its last checkpoint may not be its best",
            why=", which keeps the best one",
        ),
    )


def go_on(config: TrainConfig, images: int) -> Advice:
    """For a run that ended before it reached so many images."""
    why = " or more, and give the same command again"
    return _join(try_values(config, {"total_images": images}, "give", why=why))


def mend_pixels(config: TrainConfig) -> Advice:
    """For isolated pixels that no real image has."""
    return _join(
        config.generator in _DENSE
        and try_values(
            config,
            {"generator": "dcgan"},
            "it draws each pixel by itself; use",
            why=", whose convolutions draw neighbours together",
        ),
        _average(config),
        _lower_lr(config),
    )


def _penalise(config: TrainConfig) -> str:
    """Gradient penalties, the best proven steadier of all (Mescheder 2018, Huang 2024)."""
    usual = _usual_penalty(config)
    both = dict.fromkeys(_PENALTIES, usual)
    if not has_penalty(config):
        if config.loss == "relativistic":
            return try_values(config, both, "use")
        return give_flags(
            config,
            {"loss": "relativistic", **both},
            f"--loss {config.loss} without a gradient penalty",
            why=" (Huang et al. 2024)",
        )
    heavier = {name: 10 * weight for name in _PENALTIES if (weight := getattr(config, name))}
    if not heavier or max(heavier.values()) > _HEAVY * usual:
        return ""
    return try_values(config, heavier)


def _lighter_penalty(config: TrainConfig) -> str:
    """For penalties beside which nothing else is seen."""
    usual = dict.fromkeys(_PENALTIES, _usual_penalty(config))
    usual["gradient_penalty_weight"] = _GRADIENT_PENALTY
    lighter = {
        name: weight
        for name, weight in usual.items()
        if (getattr(config, name) or 0.0) > _HEAVY * weight
    }
    return try_values(config, lighter, "use") if lighter else ""


def _usual_penalty(config: TrainConfig) -> float:
    """What the flagship would take for --r1-weight and --r2-weight on this run's data."""
    if config.data in POINT_SETS:
        return _usual_penalty_of_points(config.data)
    return float(f"{penalty_for_images(config.image_size or _USUAL_SIZE):.3g}")


@cache  # the points are made anew each time, a hundred thousand of them
def _usual_penalty_of_points(name: str) -> float:
    return penalty_for_points(POINT_SETS[name]().points)


def _slower_discriminator(config: TrainConfig) -> str:
    if config.discriminator_rate <= config.generator_rate:
        return ""
    return try_values(config, {"discriminator_lr": config.generator_rate}, "use --lr's")


def _wider_discriminator(config: TrainConfig) -> str:
    _, discriminator = network_kinds(config)
    if "filters" not in discriminator.leaves_open:
        return ""
    filters = config.discriminator_filters or config.filters
    return try_values(config, {"discriminator_filters": 2 * filters})


def _average(config: TrainConfig) -> str:
    if config.ema_half_life_images:
        return ""
    return try_values(
        config,
        {"ema_half_life_images": _HALF_LIFE},
        "use",
        why=", for the average of the generator swings less than any of its states (Yazici et al. "
        "2019)",
    )


def _roll_back(config: TrainConfig) -> str:
    if config.on_divergence == "rollback":
        return ""
    return try_values(
        config,
        {"on_divergence": "rollback"},
        "use",
        why=", which goes back and lowers the learning rate by itself",
    )


def _highest_lr(config: TrainConfig) -> float:
    """The most that networks of this width bear, or any where the width is not known yet."""
    known = None not in (config.discriminator, config.image_size, config.channels)
    return choose_lr(config) if known else HIGHEST_DEFAULT_LR


def _lower_lr(config: TrainConfig, rollbacks: int = 0) -> str:
    """Half of the lowest learning rates that the run has tried, rollbacks having lowered them."""
    share = ROLLBACK_LR**rollbacks / 2
    lower = {"lr": config.generator_rate * share}
    if config.discriminator_lr is not None:
        lower["discriminator_lr"] = config.discriminator_lr * share
    return try_values(config, lower)


def _larger_batch(config: TrainConfig) -> str:
    larger = 2 * config.batch_size
    if config.max_data_images is not None and larger > config.max_data_images:
        return ""
    return try_values(config, {"batch_size": larger}, why=", where the data have as many")


def _join(*advice: str | bool) -> Advice:
    """Those that apply, once each."""
    return tuple(dict.fromkeys(text for text in advice if isinstance(text, str) and text))
