"""Wide convolutional networks without normalization, as a Keras tutorial builds them for faces."""

from torch import nn

from gantrain.networks import keras
from gantrain.networks.shape import Shape, no_images

_DOUBLINGS = 3
_DROPOUT = 0.4


def misfit(shape: Shape) -> str | None:
    """Why the networks cannot be built, or None: three doublings need a multiple of 8."""
    if shape.image_size is not None and shape.image_size % 2**_DOUBLINGS:
        return f"image_size: expected a multiple of 8, got {shape.image_size}"
    return no_images(shape)


def build_generator(shape: Shape) -> nn.Module:
    """Latents [batch, latent_dim] -> images [batch, channels, size, size] in [-1, 1].

    A dense layer makes a map an 8th as wide with 2 `filters` channels; a convolution, three
    transposed ones that double it, all with 4 `filters`, two convolutions with 8 and one that makes
    the image. LeakyReLU(0.3) between them. The tutorial's widths (128, 256, 512) have 64 `filters`.
    """
    channels, size, _ = shape.image
    smallest = size // 2**_DOUBLINGS
    narrow, middle, wide = (factor * shape.filters for factor in (2, 4, 8))
    layers: list[nn.Module] = [
        nn.Linear(shape.latent_dim, narrow * smallest**2),
        _leaky(),
        nn.Unflatten(1, (narrow, smallest, smallest)),
        *keras.convolution(narrow, middle, kernel_size=5, size=smallest),
        _leaky(),
    ]
    for _ in range(_DOUBLINGS):
        layers += [keras.TransposedConvolution(middle, middle, kernel_size=4), _leaky()]
    layers += [*keras.convolution(middle, wide, kernel_size=5, size=size), _leaky()]
    layers += [*keras.convolution(wide, wide, kernel_size=5, size=size), _leaky()]
    layers += keras.convolution(wide, channels, kernel_size=7, size=size)
    return keras.initialize(nn.Sequential(*layers, nn.Tanh()))


def build_discriminator(shape: Shape) -> nn.Module:
    """Images [batch, channels, size, size] -> logits [batch].

    Two convolutions of 4 `filters` channels without padding, of 3 pixels and of 4 with stride 2,
    with LeakyReLU(0.3); dropout of 0.4 and a dense layer over the whole map.
    """
    channels, size, _ = shape.image
    width = 4 * shape.filters
    smallest = (size - 2 - 4) // 2 + 1
    network = nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3),
        _leaky(),
        nn.Conv2d(width, width, kernel_size=4, stride=2),
        _leaky(),
        nn.Flatten(),
        nn.Dropout(_DROPOUT),
        nn.Linear(width * smallest**2, 1),
        nn.Flatten(0),
    )
    return keras.initialize(network)


def _leaky() -> nn.Module:
    return nn.LeakyReLU(keras.SLOPE, inplace=True)
