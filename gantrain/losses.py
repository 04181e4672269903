"""Adversarial losses and gradient penalties as pure functions of logits and images.

Logits are what a discriminator makes before any sigmoid: D(x) = sigmoid(logit) is its probability
that x is real.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

LOSSES = ("relativistic", "bce", "saturating", "least-squares", "hinge", "wasserstein")
LOSSES_WITH_LABELS = ("bce", "saturating", "least-squares")  # 0 and 1, which can be smoothed


@dataclass(frozen=True)
class Loss:
    """What both networks minimize, as functions of (real_logits, fake_logits) [batch] -> scalar."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]  # most ignore the reals
    on_real: Callable[[Tensor], Tensor] | None = None  # the halves whose sum `discriminator` is,
    on_fake: Callable[[Tensor], Tensor] | None = None  # where it has halves
    threshold: float | None = None  # logits above it say real; None: they only compare
    # How real an image is, 0 to 1, by its logit, less a usual real's where logits only compare.
    score: Callable[[Tensor], Tensor] = torch.sigmoid


def create_loss(name: str, label_smoothing: float = 0.0) -> Loss:
    """The loss of that name.

    Args:
        name: one of `LOSSES`.
        label_smoothing: how far the discriminator's target for reals is below 1, less than 0.5;
            the target for fakes stays 0 (one-sided: Salimans et al., "Improved techniques for
            training GANs", 2016). For `LOSSES_WITH_LABELS`.

    Raises:
        ValueError: there is no such loss, or it cannot have such labels.
    """
    if name not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {name!r}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing: expected 0 to less than 0.5, got {label_smoothing}")
    if label_smoothing and name not in LOSSES_WITH_LABELS:
        raise ValueError(
            f"label_smoothing: {name} has no labels to smooth, expected 0, got {label_smoothing}"
        )
    target = 1 - label_smoothing
    if name == "relativistic":
        return Loss(relativistic_discriminator_loss, relativistic_generator_loss)
    if name == "hinge":
        return _unpaired(_hinge_on_real, _hinge_on_fake, _negative_mean, threshold=0.0)
    if name == "wasserstein":
        return _unpaired(_negative_mean, _mean, _negative_mean, threshold=None)
    if name == "least-squares":
        return _unpaired(
            lambda logits: half_squared_error(logits, target),
            lambda logits: half_squared_error(logits, 0.0),
            lambda logits: half_squared_error(logits, 1.0),
            threshold=0.5,  # between the targets
            score=lambda logits: logits.clamp(0, 1),
        )
    return _unpaired(
        lambda logits: cross_entropy(logits, target),
        lambda logits: cross_entropy(logits, 0.0),
        saturating_generator_loss if name == "saturating" else non_saturating_generator_loss,
        threshold=0.0,
    )


def relativistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of `softplus(fake - real)` over pairs of logits, both [batch] -> scalar.

    The discriminator learns that each real image is more real than the fake it is paired with.
    Source: Jolicoeur-Martineau, "The relativistic discriminator", 2018, in the pairing form of
    Huang et al., "The GAN is dead; long live the GAN!", 2024 (R3GAN).
    """
    return softplus(fake_logits - real_logits).mean()


def relativistic_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of `softplus(real - fake)` over pairs of logits, both [batch] -> scalar.

    The mirror image of `relativistic_discriminator_loss`; same sources.
    """
    return softplus(real_logits - fake_logits).mean()


def cross_entropy(logits: Tensor, target: float) -> Tensor:
    """Mean of `-target log D - (1 - target) log(1 - D)`, [batch] -> scalar.

    The discriminator's half on reals with target 1 and on fakes with 0. Source: Goodfellow et al.,
    "Generative adversarial nets", 2014.
    """
    return (softplus(logits) - target * logits).mean()


def non_saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean of `-log D(fake)`, [batch] -> scalar: cross-entropy with swapped labels.

    Its gradient is largest where the discriminator is sure of a fake, when the generator has most
    to learn. Source: Goodfellow et al. 2014, section 3.
    """
    return cross_entropy(fake_logits, 1.0)


def saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean of `log(1 - D(fake))`, [batch] -> scalar: the generator's side of the minimax game.

    Its gradient vanishes where the discriminator is sure of a fake. Source: Goodfellow et al. 2014,
    equation 1.
    """
    return -cross_entropy(fake_logits, 0.0)


def half_squared_error(logits: Tensor, target: float) -> Tensor:
    """Half the mean squared distance of raw logits from a target, [batch] -> scalar.

    The discriminator's targets are 1 for reals and 0 for fakes, the generator's is 1. Source: Mao
    et al., "Least squares generative adversarial networks", 2017, equation 9, with its factors 1/2.
    """
    return (logits - target).square().mean() / 2


def _hinge_on_real(logits: Tensor) -> Tensor:
    """Mean of `max(0, 1 - logit)`; Lim and Ye, "Geometric GAN", 2017; Miyato et al. 2018."""
    return relu(1 - logits).mean()


def _hinge_on_fake(logits: Tensor) -> Tensor:
    """Mean of `max(0, 1 + logit)`; same sources."""
    return relu(1 + logits).mean()


def _mean(logits: Tensor) -> Tensor:
    """The critic's value of fakes; Arjovsky et al., "Wasserstein GAN", 2017.

    It estimates a distance only while weights are clipped (there) or a gradient is held at norm 1
    (`interpolation_penalty`).
    """
    return logits.mean()


def _negative_mean(logits: Tensor) -> Tensor:
    """What raises logits: the critic on reals, and the generator with it or the hinge loss."""
    return -logits.mean()


def _unpaired(
    on_real: Callable[[Tensor], Tensor],
    on_fake: Callable[[Tensor], Tensor],
    generator: Callable[[Tensor], Tensor],
    *,
    threshold: float | None,
    score: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> Loss:
    return Loss(
        discriminator=lambda real_logits, fake_logits: on_real(real_logits) + on_fake(fake_logits),
        generator=lambda _real_logits, fake_logits: generator(fake_logits),
        on_real=on_real,
        on_fake=on_fake,
        threshold=threshold,
        score=score,
    )


def gradient_penalties(gradients: Tensor) -> Tensor:
    """Squared norm of the gradient of each logit by its image, [batch].

    Its mean over real images is R1, over fakes R2 (Mescheder et al., "Which training methods for
    GANs do actually converge?", 2018). The gradients are those of `judge_with_gradients`,
    [batch, channels, height, width]; those by points, [batch, 2], are as good.
    """
    return gradients.square().flatten(1).sum(1)


def interpolate(real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Points between reals and fakes, for `interpolation_penalty`.

    Args:
        real: images or points [batch, ...].
        fake: as many fakes.
        mix: the share of each real in its mixture, uniform in [0, 1), [batch].
    """
    shares = mix.reshape(-1, *[1] * (real.ndim - 1))
    return shares * real + (1 - shares) * fake


def interpolation_penalty(gradients: Tensor) -> Tensor:
    """Mean of `(|gradient| - 1)^2` over gradients by points between reals and fakes: a scalar.

    Source: Gulrajani et al., "Improved training of Wasserstein GANs", 2017, weight 10 there.
    """
    norms = torch.linalg.vector_norm(gradients.flatten(1), dim=1)  # [batch]
    penalty: Tensor = (norms - 1).square().mean()
    return penalty
