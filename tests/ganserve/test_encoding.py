"""Encoding: what arrives is what was sent, in order, and always the same bytes."""

import asyncio
import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from ganserve.encoding import Encoder, ImageFormat, encode_image


@contextlib.contextmanager
def running(encoder: Encoder) -> Iterator[Encoder]:
    try:
        yield encoder
    finally:
        encoder.close()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def gradient(height: int, width: int, channels: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.repeat(((rows + columns) * 2).astype(np.uint8)[:, :, None], channels, axis=2)


def decode(content: bytes, image_format: ImageFormat, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == image_format.name
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return pixels[:, :, None] if channels == 1 else pixels


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
@pytest.mark.parametrize("image_format", [ImageFormat.PNG, ImageFormat.WEBP], ids=str)
def test_lossless_files_give_back_every_pixel(image_format, channels):
    pixels = noise(5, 9, channels)
    assert (decode(encode_image(pixels, image_format), image_format, channels) == pixels).all()


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
@pytest.mark.parametrize("image_format", [ImageFormat.JPEG, ImageFormat.WEBP], ids=str)
def test_lossy_files_look_like_the_image(image_format, channels):
    pixels = gradient(32, 48, channels)
    decoded = decode(encode_image(pixels, image_format, 90), image_format, channels)
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 3


def test_raw_is_the_pixels_row_by_row():
    pixels = noise(4, 6, 3)
    assert encode_image(pixels, ImageFormat.RAW) == pixels.tobytes()


def test_a_grey_image_is_a_grey_file():
    with Image.open(io.BytesIO(encode_image(noise(4, 4, 1), ImageFormat.PNG))) as picture:
        assert picture.mode == "L"


@pytest.mark.parametrize("image_format", [ImageFormat.JPEG, ImageFormat.WEBP], ids=str)
def test_quality_trades_bytes_for_likeness(image_format):
    pixels = noise(32, 32, 3)
    sizes = [len(encode_image(pixels, image_format, quality)) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))


def test_jpeg_quality_is_90_unless_given():
    pixels = noise(16, 16, 3)
    assert encode_image(pixels, ImageFormat.JPEG) == encode_image(pixels, ImageFormat.JPEG, 90)


@pytest.mark.parametrize("image_format", ImageFormat, ids=str)
def test_media_types_are_the_registered_ones(image_format):
    assert image_format.media_type == {
        ImageFormat.RAW: "application/octet-stream",
        ImageFormat.PNG: "image/png",
        ImageFormat.JPEG: "image/jpeg",
        ImageFormat.WEBP: "image/webp",
    }.get(image_format)


@pytest.mark.parametrize("image_format", ImageFormat, ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
async def test_many_images_are_encoded_as_each_alone_and_in_order(count, image_format):
    pixels = noise(count, 6, 5, 3)
    with running(Encoder(threads=3)) as encoder:
        encoded = await encoder.encode(pixels, image_format)
    assert encoded == [encode_image(image, image_format) for image in pixels]


@pytest.mark.parametrize("threads", [1, 2, 8])
async def test_the_number_of_threads_changes_no_byte(threads):
    pixels = noise(33, 8, 8, 3)
    with running(Encoder(threads)) as encoder:
        encoded = await encoder.encode(pixels, ImageFormat.JPEG, 70)
    assert encoded == [encode_image(image, ImageFormat.JPEG, 70) for image in pixels]


async def test_a_small_call_is_not_held_up_by_a_large_one():
    with running(Encoder(threads=2)) as encoder:
        large = asyncio.ensure_future(encoder.encode(noise(512, 64, 64, 3), ImageFormat.WEBP))
        await asyncio.sleep(0)
        await encoder.encode(noise(1, 64, 64, 3), ImageFormat.WEBP)
        assert not large.done()
        assert len(await large) == 512


@pytest.mark.parametrize("leaves", [False, True], ids=["answered", "left"])
async def test_images_are_pending_until_their_call_ends(leaves):
    with running(Encoder(threads=1)) as encoder:
        call = asyncio.ensure_future(encoder.encode(noise(8, 64, 64, 3), ImageFormat.WEBP))
        await asyncio.sleep(0)
        assert encoder.pending_images == 8
        if leaves:
            call.cancel()
        await asyncio.wait([call])
        assert encoder.pending_images == 0


def test_once_warm_no_format_imports_anything():
    program = """
import sys
import numpy as np
from ganserve.encoding import Encoder, ImageFormat, encode_image
encoder = Encoder(1)
encoder.warm_up()
encoder.close()
before = set(sys.modules)
for image_format in ImageFormat:
    encode_image(np.zeros((4, 4, 1), np.uint8), image_format)
assert set(sys.modules) == before, set(sys.modules) - before
assert "PIL.WebPImagePlugin" in before
assert "PIL.TiffImagePlugin" not in before, "all formats of Pillow"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_closed_encoder_refuses_work():
    encoder = Encoder(threads=1)
    encoder.close()
    with pytest.raises(RuntimeError):
        await encoder.encode(noise(1, 4, 4, 1), ImageFormat.PNG)
