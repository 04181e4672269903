import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from gantrain.data.bad_data import BadFileError
from gantrain.data.image_files import (
    decode_image,
    looks_like_image,
    read_size,
    resize_colour,
    resize_grey,
    scale_16_bit,
    turn_grey,
)

RED = [255, 0, 0]
WHITE = [255, 255, 255]


def encode(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def flat(mode, colour, size=(16, 16)):
    return Image.new(mode, size, colour)


def palette(transparent):
    image = flat("P", 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return encode(image, transparency=1) if transparent else encode(image)


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def with_transparent(depth, values, transparent, colour_type=0):
    """A PNG file of 16x16 pixels, put together by hand: Pillow writes few depths."""
    row = "".join(f"{value:0{depth}b}" for value in values * 16)
    row = int(row, 2).to_bytes(len(row) // 8, "big")
    header = struct.pack(">IIBBBBB", 16, 16, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
            chunk(b"IDAT", zlib.compress((b"\0" + row) * 16)),
            chunk(b"IEND", b""),
        ]
    )


def grey_16_bit(value, image_format):
    return encode(Image.fromarray(np.full((16, 16), value, np.uint16)), image_format)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        pytest.param(encode(flat("RGB", (10, 20, 30))), [10, 20, 30], id="rgb"),
        pytest.param(encode(flat("L", 77)), [77] * 3, id="grey"),
        pytest.param(encode(flat("L", 77), transparency=77), WHITE, id="grey-one-transparent"),
        pytest.param(encode(flat("RGB", 0), transparency=(0, 0, 0)), WHITE, id="rgb-transparent"),
        *(
            pytest.param(
                with_transparent(depth, [value], [transparent]), colour, id=f"{depth}-bit-{name}"
            )
            for depth, value, transparent, colour, name in (
                (1, 0, 0, WHITE, "transparent"),
                (2, 1, 1, WHITE, "transparent"),
                (2, 1, 2, [85] * 3, "other-transparent"),
                (4, 5, 5, WHITE, "transparent"),
                (4, 5, 85, [85] * 3, "other-transparent"),
                (16, 0x1234, 0x1234, WHITE, "transparent"),
                (16, 0x1234, 0x1235, [18] * 3, "other-transparent"),
            )
        ),
        pytest.param(
            with_transparent(16, [0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABC], colour_type=2),
            WHITE,
            id="16-bit-rgb-transparent",
        ),
        pytest.param(
            with_transparent(16, [0x1234, 0x5678, 0x9ABC], [0x34, 0x78, 0xBC], colour_type=2),
            [0x12, 0x56, 0x9A],
            id="16-bit-rgb-other-transparent",
        ),
        pytest.param(encode(flat("LA", (0, 0))), WHITE, id="grey-alpha-transparent"),
        pytest.param(encode(flat("LA", (77, 255))), [77] * 3, id="grey-alpha-opaque"),
        pytest.param(encode(flat("RGBA", (255, 0, 0, 0))), WHITE, id="rgba-transparent"),
        pytest.param(encode(flat("RGBA", (255, 0, 0, 51))), [255, 204, 204], id="rgba-a-fifth"),
        pytest.param(encode(flat("RGBA", (255, 0, 0, 255))), RED, id="rgba-opaque"),
        pytest.param(palette(transparent=False), RED, id="palette"),
        pytest.param(palette(transparent=True), WHITE, id="palette-transparent"),
        pytest.param(encode(flat("CMYK", (0, 255, 255, 0)), "TIFF"), RED, id="cmyk"),
        pytest.param(encode(flat("1", 1)), WHITE, id="one-bit-white"),
        pytest.param(encode(flat("1", 0)), [0] * 3, id="one-bit-black"),
        pytest.param(grey_16_bit(65535, "PNG"), WHITE, id="16-bit-white"),
        pytest.param(grey_16_bit(257 * 100, "PNG"), [100] * 3, id="16-bit-grey"),
        pytest.param(grey_16_bit(300, "PNG"), [1] * 3, id="16-bit-dark"),
        pytest.param(grey_16_bit(257 * 100, "TIFF"), [100] * 3, id="16-bit-tiff"),
        pytest.param(
            b"P5 16 16 65535\n" + bytes((0x64, 0x64)) * 256, [100] * 3, id="16-bit-portable-map"
        ),
        pytest.param(encode(flat("RGB", RED[0]), "GIF"), RED, id="gif"),
        pytest.param(encode(flat("RGB", tuple(RED)), "WEBP", lossless=True), RED, id="webp"),
        pytest.param(encode(flat("RGB", tuple(RED)), "BMP"), RED, id="bmp"),
    ],
)
def test_any_mode_becomes_rgb_on_white(data, colour):
    pixels = decode_image(data, 16, channels=3).pixels
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.broadcast_to(np.reshape(colour, (3, 1, 1)), (3, 16, 16)))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_a_large_16_bit_picture_is_scaled_exactly_without_large_copies(mode):
    values = np.arange(2048 * 1024).reshape(2048, 1024) % 65536
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (1024, 2048), values.astype(kind).tobytes())
    tracemalloc.start()
    scaled = scale_16_bit(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(np.asarray(scaled), (values + 128) // 257)
    assert peak < 4 * values.size


def test_cmyk_jpeg_keeps_its_colours():
    data = encode(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(decode_image(data, 16, 3).pixels[:, 8, 8] - np.array(RED)).max() <= 3


def test_one_channel_is_the_luminance():
    pixels = decode_image(encode(flat("RGB", (255, 0, 0))), 16, channels=1).pixels
    assert pixels.shape == (1, 16, 16)
    assert (pixels == 76).all()  # 0.299 of 255


@pytest.mark.parametrize("value", [0, 1, 99, 254, 255])
def test_grey_stored_as_rgb_loses_nothing_in_one_channel(value):
    data = encode(flat("RGB", (value,) * 3))
    assert (decode_image(data, 16, channels=1).pixels == value).all()


def test_an_animation_gives_its_first_frame():
    frames = [flat("RGB", "red"), flat("RGB", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, 16, 3).pixels[:, 0, 0].tolist() == RED


CORNERS = np.array([[10, 20], [30, 40]])  # as a person should see them
STORED = {  # EXIF orientation -> how a camera stores that view
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.T,
    6: np.rot90(CORNERS),
    7: CORNERS[::-1, ::-1].T,
    8: np.rot90(CORNERS, -1),
}


def with_orientation(pixels, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(Image.fromarray(pixels), exif=exif)


@pytest.mark.parametrize("orientation", STORED)
def test_the_exif_orientation_is_applied(orientation):
    stored = np.kron(STORED[orientation], np.ones((8, 8))).astype(np.uint8)
    pixels = decode_image(with_orientation(stored, orientation), 16, 1).pixels
    assert pixels[0, ::15, ::15].tolist() == CORNERS.tolist()


def test_unreadable_exif_leaves_the_picture_usable():
    exif = b"Exif\0\0" + b"neither byte order"
    data = encode(flat("RGB", tuple(RED)), "WEBP", lossless=True, exif=exif)
    assert decode_image(data, 16, 3).pixels[:, 0, 0].tolist() == RED


@pytest.mark.parametrize(
    "shape",
    [pytest.param((16, 48), id="wide"), pytest.param((48, 16), id="tall")],
)
def test_the_centre_square_is_kept(shape):
    stripes = np.zeros(shape, np.uint8)
    stripes[tuple(slice(16, 32) if side == 48 else slice(None) for side in shape)] = 200
    assert (decode_image(encode(Image.fromarray(stripes)), 16, 1).pixels == 200).all()


def test_the_short_side_is_scaled_to_the_size():
    left_half = np.zeros((64, 128), np.uint8)
    left_half[:, :64] = 240
    pixels = decode_image(encode(Image.fromarray(left_half)), 16, 1).pixels[0]
    assert (pixels[:, :5] == 240).all()
    assert (pixels[:, -5:] == 0).all()


def test_shrinking_is_antialiased():
    checkerboard = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decode_image(encode(Image.fromarray(checkerboard)), 16, 1).pixels
    assert np.abs(pixels.astype(int) - 127).max() <= 8


def test_a_large_jpeg_shrinks_to_the_same_picture_as_a_png():
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (1024, 1024)).copy())
    from_jpeg, from_png = (
        decode_image(encode(image, image_format), 32, 1).pixels.astype(int)
        for image_format in ("JPEG", "PNG")
    )
    assert np.abs(from_jpeg - from_png).max() <= 2


def test_the_file_s_own_mode_and_size_are_reported():
    picture = decode_image(encode(flat("RGBA", "red", size=(30, 20))), 16, 1)
    assert (picture.mode, picture.width, picture.height) == ("RGBA", 30, 20)


def test_the_size_is_read_from_the_header():
    assert read_size(encode(flat("L", 0, size=(30, 20)))[:60]) == (30, 20)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def announce(width, height):
    """A PNG file whose header speaks of many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    start, _, rest = encode(flat("1", 0)).partition(b"\0\0\0\rIHDR")
    return start + b"\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)) + rest[17:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty: zero bytes", id="zero-bytes"),
        pytest.param(b"buy milk\n" * 9, "not an image", id="text"),
        pytest.param(encode(NOISE)[:-900], "truncated: the file ends", id="truncated-png"),
        pytest.param(encode(NOISE, "JPEG")[:-900], "truncated: the file ends", id="truncated-jpeg"),
        pytest.param(encode(NOISE, "WEBP")[:-90], "truncated|damaged", id="truncated-webp"),
        pytest.param(encode(NOISE)[:20], "truncated: the file ends", id="within-the-header"),
        pytest.param(encode(NOISE)[:8], "truncated or damaged: it starts", id="signature-alone"),
        pytest.param(
            b"\xff\xd8\xff" + bytes(99),
            "truncated or damaged: it starts like an image but its header",
            id="signature-and-rubbish",
        ),
        pytest.param(
            encode(NOISE)[:60] + bytes(200) + encode(NOISE)[260:], "damaged: ", id="overwritten"
        ),
        pytest.param(
            encode(flat("RGB", 0, size=(16, 7))), "too small: 16x7, .* at least 8", id="too-small"
        ),
        pytest.param(announce(50_000, 50_000), "too many pixels: the limit is 89478485", id="bomb"),
        pytest.param(
            announce(10_000, 9_000),
            "too many pixels: 10000x9000, the limit is 89478485",
            id="just-above-the-limit",
            # Pillow only warns here; load_dataset turns its warnings off.
            marks=pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
        ),
        pytest.param(
            encode(Image.fromarray(np.ones((16, 16), np.float32)), "TIFF"),
            "floating-point pixels, whose range is unknown",
            id="floating-point",
        ),
        pytest.param(
            encode(Image.fromarray(np.full((16, 16), 70_000, np.int32)), "TIFF"),
            "32-bit pixels, whose range is unknown",
            id="32-bit",
        ),
        pytest.param(
            b"\0\0\0\x18ftypheic" + bytes(40), "HEIF is not supported: convert it", id="heif"
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(data, reason):
    with pytest.raises(BadFileError, match=reason) as caught:
        decode_image(data, 16, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("side", "image_size", "usable"),
    [
        pytest.param(8, 8, True, id="8-for-8"),
        pytest.param(7, 8, False, id="7-for-8"),
        pytest.param(32, 64, True, id="half"),
        pytest.param(31, 64, False, id="below-half"),
    ],
)
def test_images_below_half_the_asked_size_are_too_small(side, image_size, usable):
    data = encode(flat("L", 9, size=(100, side)))
    if usable:
        assert decode_image(data, image_size, 1).pixels.shape == (1, image_size, image_size)
    else:
        with pytest.raises(BadFileError, match="too small"):
            decode_image(data, image_size, 1)


@pytest.mark.parametrize(
    "image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"]
)
def test_random_damage_is_decoded_or_refused_but_never_fatal(image_format):
    chance = random.Random(0)
    whole = encode(NOISE, image_format)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(chance.choice([64, len(whole)]))] = chance.randrange(256)
        damaged = damaged[: chance.choice([len(whole), chance.randrange(len(whole))])]
        try:
            outcome = decode_image(bytes(damaged), 16, 3).pixels.shape
        except BadFileError as error:
            outcome = str(error)
        assert outcome == (3, 16, 16) or outcome.isprintable()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_common_formats_are_known_by_their_first_bytes(image_format):
    assert looks_like_image(encode(NOISE, image_format)[:12])


@pytest.mark.parametrize("start", [b"BM, GIF, RIFF", b"RIFF\x24\0\0\0AVI "], ids=["text", "video"])
def test_what_only_begins_alike_is_not_taken_for_an_image(start: bytes):
    assert not looks_like_image(start)


def test_enlarging_digits_leaves_the_background_black_and_draws_no_rings():
    stroke = np.zeros((1, 8, 8), np.uint8)
    stroke[0, 1:7, 3:5] = 255
    enlarged = resize_grey(stroke, 32)
    assert enlarged.shape == (1, 1, 32, 32)
    assert (enlarged[..., :8] == 0).all()
    assert (enlarged[..., 24:] == 0).all()
    assert (enlarged[0, 0, 10:22, 14:18] == 255).all()


def noise(count, size):
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)


@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_images_in_memory_are_treated_as_those_in_files(image_size, channels):
    images = noise(5, 32)
    resized = resize_colour(images, image_size)
    if channels == 1:
        resized = turn_grey(resized)
    files = [encode(Image.fromarray(image.transpose(1, 2, 0))) for image in images]
    expected = [decode_image(file, image_size, channels).pixels for file in files]
    assert np.array_equal(resized, expected)
    assert resized.flags.c_contiguous
