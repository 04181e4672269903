"""Differentiable augmentation: random changes of images that gradients pass through.

The discriminator sees reals and fakes through the same kind of random changes, in its own steps and
in the generator's, so it cannot learn few reals by heart and the generator does not learn the
changes: Zhao et al., "Differentiable augmentation for data-efficient GAN training", 2020.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LARGEST_SHIFT = 1 / 8  # of the side
_CUTOUT = 1 / 2  # side of the square, over that of the image
_BRIGHTNESS = 0.5  # at most so much is added or taken, where [-1, 1] is all there is


def augment(images: Tensor, names: Sequence[str], noise: torch.Generator) -> Tensor:
    """Images [batch, channels, size, size], each changed at random in the ways named, in order.

    Another dtype's precision must not reach the pixels, so automatic casting is off in here.
    """
    if not names:
        return images
    with torch.autocast(images.device.type, enabled=False):
        for name in names:
            images = AUGMENTATIONS[name](images, noise)
    return images


def change_color(images: Tensor, noise: torch.Generator) -> Tensor:
    """Another brightness, saturation (of colour images) and contrast for each image."""
    images = images + _BRIGHTNESS * _uniform(images, noise, -1, 1)
    if images.shape[1] > 1:
        grey = images.mean(1, keepdim=True)
        images = torch.lerp(grey, images, _uniform(images, noise, 0, 2))
    mean = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _uniform(images, noise, 0.5, 1.5))


def translate(images: Tensor, noise: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its side, rounded, both ways; what comes in is 0.

    Moving rows and columns is a product with shifted unit matrices: exact, for each sum has one
    term, and unlike indexing cheap to differentiate twice and repeatable on a GPU.
    """
    size = images.shape[-1]
    largest = int(size * _LARGEST_SHIFT + 0.5)  # halves upwards, as the authors' code has it
    place = torch.arange(size, device=images.device)
    distance = place[:, None] - place  # [size, size]
    shifts = torch.randint(
        -largest, largest + 1, (2, len(images), 1, 1, 1), generator=noise, device=images.device
    )
    rows, columns = (distance == shifts).to(images.dtype)  # [batch, 1, size, size] each
    moved: Tensor = rows @ images @ columns
    return moved


def cut_out(images: Tensor, noise: torch.Generator) -> Tensor:
    """A square of half the side becomes 0; its centre is anywhere, so it may lie partly outside."""
    size = images.shape[-1]
    half = size * _CUTOUT / 2
    centres = torch.randint(
        0, size + 1, (2, len(images), 1, 1), generator=noise, device=images.device
    )
    place = torch.arange(size, device=images.device) + 0.5
    rows, columns = (place - centres).abs() < half  # [batch, 1, size] each
    kept: Tensor = ~(rows[..., :, None] & columns[..., None, :])
    return images * kept


def _uniform(images: Tensor, noise: torch.Generator, low: float, high: float) -> Tensor:
    """A number for each image, [batch, 1, 1, 1]."""
    values = torch.rand(
        len(images), 1, 1, 1, generator=noise, device=images.device, dtype=images.dtype
    )
    return values * (high - low) + low


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "color": change_color,
    "translation": translate,
    "cutout": cut_out,
}
