"""Dense networks, for small images and for points in the plane.

Keras flattens an image as height, width, channels, and these as channels, height, width. Dense
layers see the same up to a fixed order of their weights, which random ones do not care about.
"""

from collections.abc import Callable
from itertools import pairwise
from math import prod

from torch import nn

from gantrain.networks import keras
from gantrain.networks.shape import Shape

_LEAK = 0.2
_DROPOUT = 0.3


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

    Three layers of 4 `filters` units with LeakyReLU(0.2) and a linear one, no normalization; first
    weights keep the signal's variance (He et al. 2015).
    """
    width = 4 * shape.filters
    hidden = _hidden([shape.latent_dim, width, width, width], lambda: [nn.LeakyReLU(_LEAK)])
    return _keep_variance(nn.Sequential(*hidden, nn.Linear(width, 2)))


def points_discriminator(shape: Shape) -> nn.Module:
    """Points [batch, 2] -> logits [batch]; the mirror of `points_generator`."""
    width = 4 * shape.filters
    hidden = _hidden([2, width, width, width], lambda: [nn.LeakyReLU(_LEAK)])
    return _keep_variance(_discriminator(*hidden, inputs=width))


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
