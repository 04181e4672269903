"""Many images laid out as one picture that is pleasant to look at."""

import math

import numpy as np
from numpy.typing import NDArray

# Smaller pictures are enlarged: eight by eight images of 28 pixels would be a stamp on a screen.
_SMALLEST_PICTURE = 512
_WHITE = 255


def make_grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [n, height, width, channels] in reading order on a near-square white picture.

    Returns [picture_height, picture_width, channels]. Every pixel is repeated a whole number of
    times, so that small images stay sharp; a margin of a sixteenth of an image parts the tiles.
    """
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    margin = max(1, min(height, width) // 16)
    shape = (rows * (height + margin) + margin, columns * (width + margin) + margin, channels)
    picture = np.full(shape, _WHITE, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = margin + row * (height + margin), margin + column * (width + margin)
        picture[top : top + height, left : left + width] = image
    scale = math.ceil(_SMALLEST_PICTURE / max(shape[:2]))
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)
