"""PNG files that any decoder takes: the same pixels, exactly."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ganserve.png import encode_pngs, filter_rows

SIZES = [(1, 1), (1, 7), (7, 1), (8, 8), (28, 28), (31, 33), (64, 64), (128, 128)]


def kinds(count, height, width, channels):
    """Noise, smooth pictures, one colour, and steps from the darkest to the brightest."""
    random = np.random.default_rng(5)
    shape = (count, height, width, channels)
    steps = random.integers(-3, 4, shape)
    smooth = np.clip(128 + np.cumsum(steps, axis=1) + np.cumsum(steps, axis=2), 0, 255)
    yield random.integers(0, 256, shape).astype(np.uint8)
    yield smooth.astype(np.uint8)
    yield np.full(shape, 200, np.uint8)
    yield (random.integers(0, 2, shape) * 255).astype(np.uint8)


def decode(content, shape):
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert picture.mode == ("L" if shape[2] == 1 else "RGB")
        return np.asarray(picture).reshape(shape)


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pillow_decodes_every_pixel(height, width, channels):
    for pixels in kinds(3, height, width, channels):
        for content, image in zip(encode_pngs(pixels), pixels, strict=True):
            assert (decode(content, image.shape) == image).all()
            # Depth, colour, and the only methods there are, which Pillow does not look at.
            assert content[24:29] == bytes([8, 0 if channels == 1 else 2, 0, 0, 0])


def paeth(left, above, corner):
    """The predictor as the specification words it."""
    estimate = left + above - corner
    distances = [abs(estimate - value) for value in (left, above, corner)]
    return (left, above, corner)[distances.index(min(distances))]


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.sampled_from([1, 3])),
    values=st.sampled_from([(0, 255), (0, 1, 2, 3), (100, 101, 103, 106), tuple(range(256))]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_filtered_as_the_specification_says(shape, values, seed):
    height, width, channels = shape
    image = np.random.default_rng(seed).choice(values, shape).astype(np.uint8)
    (rows,) = filter_rows(image[np.newaxis])
    padded = np.zeros((height + 1, width + 1, channels), int)
    padded[1:, 1:] = image
    for y in range(height):
        expected = [4]
        for x in range(width):
            for c in range(channels):
                here, left = padded[y + 1, x + 1, c], padded[y + 1, x, c]
                above, corner = padded[y, x + 1, c], padded[y, x, c]
                expected.append((here - paeth(left, above, corner)) % 256)
        assert rows[y].tolist() == expected


def test_a_file_depends_on_its_own_image_alone():
    for pixels in kinds(40, 16, 16, 3):
        alone = [encode_pngs(image[np.newaxis])[0] for image in pixels]
        assert encode_pngs(pixels) == alone
        assert encode_pngs(pixels[::-1]) == alone[::-1]


def test_no_images_are_no_files():
    assert encode_pngs(np.empty((0, 4, 4, 3), np.uint8)) == []


def test_every_chunk_has_its_length_and_checksum():
    (content,) = encode_pngs(next(kinds(1, 9, 9, 3)))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place, found = 8, []
    while place < len(content):
        length = int.from_bytes(content[place : place + 4])
        body = content[place + 4 : place + 8 + length]
        checksum = content[place + 8 + length : place + 12 + length]
        assert zlib.crc32(body) == int.from_bytes(checksum)
        found.append(body[:4])
        place += 12 + length
    assert found == [b"IHDR", b"IDAT", b"IEND"]


def test_smooth_pictures_are_no_larger_than_pillows_quick_ones():
    smooth = list(kinds(16, 64, 64, 3))[1]
    pillows = 0
    for image in smooth:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=1)
        pillows += len(file.getvalue())
    assert sum(map(len, encode_pngs(smooth))) <= pillows
