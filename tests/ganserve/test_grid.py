"""The picture of many images: every image in its place, sharp, and large enough to look at."""

import numpy as np
import pytest

from ganserve.grid import make_grid


def flat_images(count: int, height: int, width: int, channels: int) -> np.ndarray:
    greys = np.arange(1, count + 1, dtype=np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (count, height, width, channels)).copy()


def test_images_stand_in_reading_order():
    picture = make_grid(flat_images(5, 200, 300, 3))  # three columns, two rows, one place empty
    half_tile, tile = np.array([100, 150]), np.array([200 + 12, 300 + 12])
    places = [(row, column) for row in range(2) for column in range(3)]
    centres = [half_tile + 12 + tile * place for place in places]
    assert [picture[y, x, 0] for y, x in centres] == [1, 2, 3, 4, 5, 255]


def test_no_pixel_is_lost_or_blended():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    picture = make_grid(images)
    scale = len(picture) // (2 * 8 + 3)
    small = picture[::scale, ::scale]
    assert (small.repeat(scale, axis=0).repeat(scale, axis=1) == picture).all()
    assert (small[1:9, 10:18] == images[1]).all()


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
@pytest.mark.parametrize("size", [4, 28, 64, 128])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_a_picture_is_never_a_stamp(count, size, channels):
    height, width, depth = make_grid(flat_images(count, size, size, channels)).shape
    assert max(height, width) >= 512
    assert depth == channels


def test_large_pictures_are_not_enlarged():
    assert make_grid(flat_images(1, 600, 500, 3)).shape == (600 + 2 * 31, 500 + 2 * 31, 3)
