"""What all networks are built from, be it for images or for points."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Shape:
    """The sizes that a pair of networks has in common."""

    image_size: int | None  # side in pixels; None: the data are points of two coordinates
    channels: int | None  # 1 is grey, 3 is RGB; None: as above
    latent_dim: int
    filters: int  # capacity, in the unit that each network's docstring states
    kernel_size: int  # side of the kernels where a network leaves it open, pixels
    classes: int = 0  # of a conditional pair, which takes labels; 0: it takes none
    discriminator_filters: int | None = None  # as `filters`, where the two differ in capacity

    def for_discriminator(self) -> Self:
        """The sizes of the discriminator alone: its capacity is in `filters`."""
        return replace(self, filters=self.discriminator_filters or self.filters)

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image; there must be one."""
        assert self.image_size is not None
        assert self.channels is not None
        return self.channels, self.image_size, self.image_size


def no_images(shape: Shape) -> str | None:
    """Why networks for images do not fit, or None: for them the data must be images."""
    if shape.image_size is None or shape.channels is None:
        return "image_size: expected the size of images, got points of two coordinates"
    return None


def no_points(shape: Shape) -> str | None:
    """Why networks for points do not fit, or None: for them the data must not be images."""
    if shape.image_size is not None:
        return f"image_size: expected points of two coordinates, got images of {shape.image_size}"
    return None
