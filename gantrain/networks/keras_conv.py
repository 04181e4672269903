"""Convolutional networks with BatchNorm, as a Keras tutorial builds them for 64x64 faces."""

from itertools import pairwise

from torch import nn

from gantrain.networks import keras
from gantrain.networks.shape import Shape, no_images

_HALVINGS = 4


def misfit(shape: Shape) -> str | None:
    """Why the networks cannot be built, or None: four halvings need a multiple of 16."""
    if shape.image_size is not None and shape.image_size % 2**_HALVINGS:
        return f"image_size: expected a multiple of 16, got {shape.image_size}"
    return no_images(shape)


def build_generator(shape: Shape) -> nn.Module:
    """Latents [batch, latent_dim] -> images [batch, channels, size, size] in [-1, 1].

    A dense layer makes a map a 16th as wide with 8 `filters` channels; four transposed
    convolutions double it, to 4, 2, 1 and 1 `filters`, and a convolution makes the image. BatchNorm
    after each layer but the last, LeakyReLU(0.3) after each transposed convolution. Kernels have
    `kernel_size` pixels a side.
    """
    channels, size, _ = shape.image
    smallest = size // 2**_HALVINGS
    widths = [factor * shape.filters for factor in (8, 4, 2, 1, 1)]
    features = widths[0] * smallest**2
    layers: list[nn.Module] = [
        nn.Linear(shape.latent_dim, features),
        keras.batch_norm(features),
        nn.Unflatten(1, (widths[0], smallest, smallest)),
    ]
    for inputs, outputs in pairwise(widths):
        layers.append(keras.TransposedConvolution(inputs, outputs, shape.kernel_size))
        layers += [keras.batch_norm_2d(outputs), nn.LeakyReLU(keras.SLOPE, inplace=True)]
    layers += keras.convolution(widths[-1], channels, shape.kernel_size, size=size)
    return keras.initialize(nn.Sequential(*layers, nn.Tanh()))


def build_discriminator(shape: Shape) -> nn.Module:
    """Images [batch, channels, size, size] -> logits [batch].

    Four blocks of 1, 2, 4 and 8 `filters` channels, each two convolutions with BatchNorm, the
    second with stride 2, and LeakyReLU(0.3) at its end only; then the mean over the map and a dense
    layer.
    """
    channels, size, _ = shape.image
    widths = [channels, *(factor * shape.filters for factor in (1, 2, 4, 8))]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += keras.convolution(inputs, outputs, shape.kernel_size, size=size)
        layers.append(keras.batch_norm_2d(outputs))
        layers += keras.convolution(outputs, outputs, shape.kernel_size, size=size, stride=2)
        layers += [keras.batch_norm_2d(outputs), nn.LeakyReLU(keras.SLOPE, inplace=True)]
        size //= 2
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1), nn.Flatten(0)]
    return keras.initialize(nn.Sequential(*layers))
