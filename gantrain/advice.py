"""Hides what helps against which trouble, in the order of what helps most, in a run's own settings.

Each piece of advice names a flag, its present value and another to try; advice that the run follows
already is left out.
"""

from gantrain.combinations import choose_lr
from gantrain.config import HIGHEST_DEFAULT_LR, TrainConfig
from gantrain.networks import DISCRIMINATORS

Advice = tuple[str, ...]

_DENSE = ("keras-mlp", "selu-dense", "torch-mlp")
_HIGH_BETA1 = 0.5


def weaken_discriminator(config: TrainConfig) -> Advice:
    """For a discriminator that is right about nearly everything."""
    return _join(
        config.discriminator_updates > 1
        and f"--discriminator-updates {config.discriminator_updates}: use 1",
        _slower_discriminator(config),
        _penalise(config),
        config.loss in ("bce", "least-squares")
        and not config.label_smoothing
        and "--label-smoothing 0: try 0.1 (Salimans et al. 2016)",
        not config.spectral_norm
        and not is_penalised(config)
        and "--spectral-norm bounds the discriminator (Miyato et al. 2018)",
        config.generator_updates == 1
        and config.discriminator_updates == 1
        and "--generator-updates 1: try 2",
        f"--discriminator-lr {config.discriminator_rate:g}: try {config.discriminator_rate / 2:g}",
    )


def strengthen_discriminator(config: TrainConfig) -> Advice:
    """For a discriminator that cannot tell bad samples from reals."""
    return _join(
        config.generator_updates > 1 and f"--generator-updates {config.generator_updates}: use 1",
        config.discriminator_rate < config.generator_lr
        and f"--discriminator-lr {config.discriminator_rate:g}: use at least --lr's "
        f"{config.generator_lr:g} (two time-scales, Heusel et al. 2017, give the discriminator the "
        "faster one)",
        config.weight_clip is not None
        and f"--weight-clip {config.weight_clip:g}: leave it out, and use "
        "--gradient-penalty-weight 10 (Gulrajani et al. 2017)",
        *(
            f"--{name}-weight {weight:g}: try {weight / 10:g}"
            for name, weight in (("r1", config.r1_weight), ("r2", config.r2_weight))
            if weight
        ),
        config.spectral_norm and "--spectral-norm: leave it out",
        config.label_smoothing > 0 and f"--label-smoothing {config.label_smoothing:g}: use 0",
        config.generator_updates == 1
        and f"--discriminator-updates {config.discriminator_updates}: "
        f"try {config.discriminator_updates + 1}",
        f"--filters {config.filters}: try {2 * config.filters}",
    )


def keep_diversity(config: TrainConfig) -> Advice:
    """For a generator that makes few different samples, or few of the classes."""
    return _join(
        _penalise(config),
        config.discriminator_updates > 1
        and f"--discriminator-updates {config.discriminator_updates}: use 1",
        config.generator_updates > 1 and f"--generator-updates {config.generator_updates}: use 1",
        _average(config),
        _lower_lr(config),
        f"--batch-size {config.batch_size}: try {2 * config.batch_size}",
    )


def steady(config: TrainConfig) -> Advice:
    """For numbers that grow without bound, or swing."""
    highest = _highest_lr(config)
    return _join(
        config.generator_lr > highest and f"--lr {config.generator_lr:g}: use at most {highest:g}",
        _slower_discriminator(config),
        _penalise(config),
        _average(config),
        config.optimizer == "adam"
        and config.beta1 > _HIGH_BETA1
        and f"--beta1 {config.beta1:g}: use at most {_HIGH_BETA1:g}",
        config.generator_lr <= highest and _lower_lr(config),
        config.on_divergence == "stop"
        and "--on-divergence rollback goes back and lowers the learning rate by itself",
        f"--batch-size {config.batch_size}: try {2 * config.batch_size}",
    )


def see_more(config: TrainConfig) -> Advice:
    """For samples that copy training images."""
    return _join(
        "give more images: a discriminator that knows each by heart asks for copies",
        not config.augmentations
        and "--augment off: use color,translation,cutout (Zhao et al. 2020)",
        config.flip == "off" and "--flip off: use on, if mirrored images are as good",
        _penalise(config),
        f"--filters {config.filters}: try {max(config.filters // 2, 1)}",
        f"--total-images {config.total_images}: use a checkpoint from before the copies",
    )


def mend_pixels(config: TrainConfig) -> Advice:
    """For isolated pixels that no real image has."""
    return _join(
        config.generator in _DENSE
        and f"--generator {config.generator}: it draws each pixel by itself; use dcgan, whose "
        "convolutions draw neighbours together",
        _average(config),
        _lower_lr(config),
    )


def _penalise(config: TrainConfig) -> str:
    """Gradient penalties, the best proven steadier of all (Mescheder 2018, Huang 2024)."""
    if not is_penalised(config):
        kind = DISCRIMINATORS.get(config.discriminator or "")
        free_of_norm = " --discriminator dcgan" if kind and kind.batch_norm else ""
        if config.loss == "relativistic":
            return (
                f"--r1-weight {config.r1_weight or 0:g} and --r2-weight {config.r2_weight or 0:g}: "
                f"leave them out, for weights that fit the data{free_of_norm}"
            )
        return (
            f"--loss {config.loss} without a gradient penalty: use --loss relativistic"
            f"{free_of_norm} and leave --r1-weight and --r2-weight out (Huang et al. 2024)"
        )
    if config.r1_weight:
        weights = [f"--r1-weight {config.r1_weight:g}: try {10 * config.r1_weight:g}"]
        if config.r2_weight:
            weights.append(f"--r2-weight {config.r2_weight:g}: try {10 * config.r2_weight:g}")
        return ", ".join(weights)
    return ""


def is_penalised(config: TrainConfig) -> bool:
    """Whether the discriminator's gradient is penalised."""
    automatic = config.loss == "relativistic" and None in (config.r1_weight, config.r2_weight)
    return bool(automatic or config.r1_weight or config.r2_weight or config.gradient_penalty_weight)


def _slower_discriminator(config: TrainConfig) -> str | bool:
    return config.discriminator_rate > config.generator_lr and (
        f"--discriminator-lr {config.discriminator_rate:g}: use --lr's {config.generator_lr:g}"
    )


def _average(config: TrainConfig) -> str | bool:
    return config.ema_half_life_images == 0 and (
        "--ema-half-life-images 0: use 32000, for the average of the generator swings less than "
        "any of its states (Yazici et al. 2019)"
    )


def _highest_lr(config: TrainConfig) -> float:
    """The most that networks of this width bear, or any where the width is not known yet."""
    known = None not in (config.discriminator, config.image_size, config.channels)
    return choose_lr(config) if known else HIGHEST_DEFAULT_LR


def _lower_lr(config: TrainConfig) -> str:
    return f"--lr {config.generator_lr:g}: try {config.generator_lr / 2:g}"


def _join(*advice: str | bool) -> Advice:
    """Those that apply, once each."""
    return tuple(dict.fromkeys(text for text in advice if isinstance(text, str) and text))
