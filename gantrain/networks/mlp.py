"""Dense networks, for small images and for points in the plane.

Keras flattens an image as height, width, channels, and these as channels, height, width. Dense
layers see the same up to a fixed order of their weights, which random ones do not care about.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from gantrain.networks import keras
from gantrain.networks.shape import Shape

_LEAK = 0.2
_DROPOUT = 0.3
_WITHIN_MODE = 1 / 8  # share of the latents themselves in what the generator of points sees
_FREQUENCIES = (0.1, 60.0)  # radians per unit: lowest and highest of the waves over the plane
_GOLDEN = (math.sqrt(5) - 1) / 2


def keras_mlp_generator(shape: Shape) -> nn.Module:
    """Latents [batch, latent_dim] -> images [batch, channels, size, size] in [-1, 1].

    Dense 256, 512, 1024, each with LeakyReLU(0.2) and after it BatchNorm of momentum 0.8, then a
    dense layer with tanh: the generator of a Keras tutorial for MNIST.
    """
    widths = [shape.latent_dim, 256, 512, 1024]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(_LEAK)]
        layers.append(keras.batch_norm(outputs, momentum=0.8))
    return keras.initialize(nn.Sequential(*layers, *_image(widths[-1], shape, nn.Tanh())))


def keras_mlp_discriminator(shape: Shape) -> nn.Module:
    """Images [batch, channels, size, size] -> logits [batch]; dense 512 and 256, LeakyReLU(0.2)."""
    widths = [prod(shape.image), 512, 256]
    hidden = _hidden(widths, lambda: [nn.LeakyReLU(_LEAK)])
    return keras.initialize(_discriminator(*hidden, inputs=widths[-1]))


def keras_mlp_conv_discriminator(shape: Shape) -> nn.Module:
    """Images [batch, channels, size, size] -> logits [batch].

    Four 3x3 kernels before a dense layer of 512: what the same tutorial puts in the place of
    `keras_mlp_discriminator`.
    """
    channels, size, _ = shape.image
    return keras.initialize(
        nn.Sequential(
            *keras.convolution(channels, 4, kernel_size=3, size=size),
            nn.LeakyReLU(_LEAK),
            nn.Flatten(),
            *_hidden([4 * size**2, 512], lambda: [nn.LeakyReLU(_LEAK)]),
            nn.Linear(512, 1),
            nn.Flatten(0),
        )
    )


def selu_dense_generator(shape: Shape) -> nn.Module:
    """Latents [batch, latent_dim] -> images [batch, channels, size, size] in [0, 1].

    Dense 100 and 150 with SELU, then a sigmoid; a Keras tutorial for Fashion-MNIST, with Keras'
    default first weights, which are not the ones SELU was published with.
    """
    widths = [shape.latent_dim, 100, 150]
    hidden = _hidden(widths, lambda: [nn.SELU()])
    return keras.initialize(nn.Sequential(*hidden, *_image(widths[-1], shape, nn.Sigmoid())))


def selu_dense_discriminator(shape: Shape) -> nn.Module:
    """Images [batch, channels, size, size] -> logits [batch]; dense 150 and 100 with SELU."""
    widths = [prod(shape.image), 150, 100]
    hidden = _hidden(widths, lambda: [nn.SELU()])
    return keras.initialize(_discriminator(*hidden, inputs=widths[-1]))


def torch_mlp_generator(shape: Shape) -> nn.Module:
    """Latents [batch, latent_dim] -> images [batch, channels, size, size] in [-1, 1].

    Dense 256, 512, 1024 with ReLU, then tanh; a PyTorch tutorial for MNIST, with PyTorch's default
    first weights.
    """
    widths = [shape.latent_dim, 256, 512, 1024]
    hidden = _hidden(widths, lambda: [nn.ReLU()])
    return nn.Sequential(*hidden, *_image(widths[-1], shape, nn.Tanh()))


def torch_mlp_discriminator(shape: Shape) -> nn.Module:
    """Images [batch, channels, size, size] -> logits [batch].

    Dense 1024, 512, 256, each with ReLU and dropout of 0.3; the mirror of `torch_mlp_generator`.
    """
    widths = [prod(shape.image), 1024, 512, 256]
    return _discriminator(*_hidden(widths, _relu_dropout), inputs=widths[-1])


def sine_generator(shape: Shape) -> nn.Module:
    """Latents [batch, latent_dim] -> points [batch, 2].

    Dense 16 and 32 with ReLU, then a linear layer; a PyTorch tutorial for points on a sine curve,
    with PyTorch's default first weights.
    """
    return nn.Sequential(
        *_hidden([shape.latent_dim, 16, 32], lambda: [nn.ReLU()]), nn.Linear(32, 2)
    )


def sine_discriminator(_shape: Shape) -> nn.Module:
    """Points [batch, 2] -> logits [batch]; dense 256, 128, 64 with ReLU and dropout of 0.3."""
    widths = [2, 256, 128, 64]
    return _discriminator(*_hidden(widths, _relu_dropout), inputs=widths[-1])


def points_generator(shape: Shape) -> nn.Module:
    """Latents [batch, latent_dim] -> points [batch, 2], anywhere in the plane.

    Three layers of 4 `filters` units with LeakyReLU(0.2) and a linear one, no normalization, on the
    signs of the latents and an eighth of the latents; first weights keep the signal's variance
    (He et al. 2015).

    Modes that lie apart need jumps: a continuous generator draws threads between them, which only
    steep and slowly learnt weights make thin (Salmona et al., "Can push-forward generative models
    fit multimodal distributions?", 2022). Signs jump by themselves, and the small rest moves a
    point about within its mode.
    """
    width = 4 * shape.filters
    hidden = _hidden([2 * shape.latent_dim, width, width, width], lambda: [nn.LeakyReLU(_LEAK)])
    return _FromSigns(_keep_variance(nn.Sequential(*hidden, nn.Linear(width, 2))))


def points_discriminator(shape: Shape) -> nn.Module:
    """Points [batch, 2] -> logits [batch].

    The mirror of `points_generator`, on the points and 2 `filters` waves over the plane, a sine and
    a cosine of each, of 0.1 to 60 radians per unit in all directions. Dense networks learn what is
    fine in few coordinates very slowly, on waves they do not (Tancik et al., "Fourier features let
    networks learn high frequency functions in low dimensional domains", 2020).
    """
    width, waves = 4 * shape.filters, 2 * shape.filters
    hidden = _hidden([2 + 2 * waves, width, width, width], lambda: [nn.LeakyReLU(_LEAK)])
    return _OnWaves(waves, _keep_variance(_discriminator(*hidden, inputs=width)))


class _FromSigns(nn.Module):
    """Layers that see the signs of latents and, small, the latents themselves."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, latents: Tensor) -> Tensor:
        points: Tensor = self.layers(torch.cat([latents.sign(), _WITHIN_MODE * latents], dim=1))
        return points


class _OnWaves(nn.Module):
    """Layers that see points and the values of waves at the points."""

    frequencies: Tensor  # [2, waves], radians per unit

    def __init__(self, waves: int, layers: nn.Module) -> None:
        super().__init__()
        lowest, highest = (math.log10(end) for end in _FREQUENCIES)
        lengths = torch.logspace(lowest, highest, waves)
        angles = math.pi * _GOLDEN * torch.arange(waves)  # any few neighbours differ in direction
        directions = torch.stack([angles.cos(), angles.sin()])
        self.register_buffer("frequencies", lengths * directions)
        self.layers = layers

    def forward(self, points: Tensor) -> Tensor:
        phases = points @ self.frequencies  # [batch, waves]
        waves = math.sqrt(2) * torch.cat([phases.sin(), phases.cos()], dim=1)  # of mean square 1
        logits: Tensor = self.layers(torch.cat([points, waves], dim=1))
        return logits


def _hidden(widths: list[int], after: Callable[[], list[nn.Module]]) -> list[nn.Module]:
    """Dense layers between neighbouring widths, each followed by what `after` makes."""
    return [
        layer
        for inputs, outputs in pairwise(widths)
        for layer in (nn.Linear(inputs, outputs), *after())
    ]


def _relu_dropout() -> list[nn.Module]:
    return [nn.ReLU(), nn.Dropout(_DROPOUT)]


def _image(inputs: int, shape: Shape, activation: nn.Module) -> list[nn.Module]:
    """The last layers of a dense generator of images."""
    return [nn.Linear(inputs, prod(shape.image)), activation, nn.Unflatten(1, shape.image)]


def _discriminator(*hidden: nn.Module, inputs: int) -> nn.Module:
    """A dense discriminator: flatten all but the batch, judge, and drop the axis of one logit."""
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(inputs, 1), nn.Flatten(0))


def _keep_variance(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, a=_LEAK)
            nn.init.zeros_(module.bias)
    return network
