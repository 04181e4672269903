"""Adversarial losses and gradient penalties as pure functions of logits and images."""

import torch
from torch import Tensor
from torch.nn.functional import softplus


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


def gradient_penalties(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of the gradient of each image's logit by its pixels, [batch].

    Its mean over real images is R1, over fakes R2 (Mescheder et al., "Which training methods for
    GANs do actually converge?", 2018). `logits` [batch] must come from `images`
    [batch, channels, height, width], which require grad, image by image. Can be differentiated
    again.
    """
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients.square().flatten(1).sum(1)
