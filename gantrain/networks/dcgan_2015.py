"""The networks of Radford et al. 2015 as PyTorch's own example builds them, at more sizes.

The layers have the example's names, so weights saved by it can be loaded.
"""

from itertools import pairwise

from torch import Tensor, nn

from gantrain.networks.convolutions import (
    Convolution,
    MapToPixel,
    PixelToMap,
    TransposedConvolution,
)
from gantrain.networks.shape import Shape, no_images

_LEAK = 0.2
_SMALLEST = range(4, 8)  # sides that the map next to the latents may have, pixels


def misfit(shape: Shape) -> str | None:
    """Why the networks cannot be built, or None: halving must reach 4, 5, 6 or 7 exactly."""
    if shape.image_size is not None and sizes(shape.image_size)[-1] not in _SMALLEST:
        return (
            "image_size: expected 4, 5, 6 or 7 times a power of two, such as 28, 32 or 64, "
            f"got {shape.image_size}"
        )
    return no_images(shape)


def sizes(image_size: int) -> list[int]:
    """Sides of the maps from the image down: 64 -> [64, 32, 16, 8, 4], 28 -> [28, 14, 7]."""
    found = [image_size]
    while found[-1] % 2 == 0 and found[-1] // 2 >= _SMALLEST[0]:
        found.append(found[-1] // 2)
    return found


class Generator(nn.Module):
    """latents [batch, latent_dim] -> images [batch, channels, size, size] in [-1, 1].

    A transposed convolution makes the smallest map from a single pixel of latents, others (kernel
    4, stride 2) double it, halving the channels down to `filters`; BatchNorm and ReLU between
    them, tanh at the end. No biases.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels, size, _ = shape.image
        maps = _widths(shape)[::-1]
        layers: list[nn.Module] = [PixelToMap(shape.latent_dim, maps[0], sizes(size)[-1])]
        for inputs, outputs in pairwise([*maps, channels]):
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
            layers.append(TransposedConvolution(inputs, outputs, bias=False))
        self.main = nn.Sequential(*layers, nn.Tanh())
        self.apply(_initialize)

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        images: Tensor = self.main(latents[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """images [batch, channels, size, size] -> logits [batch].

    The generator's mirror: BatchNorm after each convolution but the first and the last, and
    LeakyReLU(0.2). The example's sigmoid belongs to the loss here.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels, size, _ = shape.image
        maps = _widths(shape)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([channels, *maps]):
            layers.append(Convolution(inputs, outputs, bias=False))
            if layers[1:]:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(_LEAK, inplace=True))
        layers.append(MapToPixel(maps[-1], 1, sizes(size)[-1]))
        self.main = nn.Sequential(*layers)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.main(images)  # [batch, 1, 1, 1]
        return logits.flatten()


def _widths(shape: Shape) -> list[int]:
    """Channels of each map below the image, doubling from `filters`."""
    _, size, _ = shape.image
    return [shape.filters * 2**depth for depth in range(len(sizes(size)) - 1)]


def _initialize(module: nn.Module) -> None:
    """Small normal weights; BatchNorm's are normal too, about one."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
