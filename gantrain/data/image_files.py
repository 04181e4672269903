"""Hides what an image file may be: any format, mode, size and rotation becomes a square."""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from gantrain.data.bad_data import BadFileError

# Formats that announce themselves, so that text is never taken for a picture; EPS and its like,
# which start other programs, stay out.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
SIGNATURES: Final = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")
HEIF_BRANDS: Final = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")

SMALLEST_SIDE: Final = 8  # pixels
TURNS: Final = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GREY_STEPS: Final = {"L;2": 85, "L;4": 17}  # of 0..255, by Pillow's name for the bits in a file
MODES_16_BIT: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I")
BAND_PIXELS: Final = 2**18  # of a 16-bit picture, scaled at once


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image, and what its file held."""

    pixels: NDArray[np.uint8]  # [channels, size, size]
    mode: str  # Pillow's name: "RGB", "L", "P", "CMYK", ...
    width: int  # of the file
    height: int


def looks_like_image(start: bytes) -> bool:
    """Tell from the first 12 bytes, for files whose names do not say that they are images."""
    return start.startswith(SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def read_size(data: bytes) -> tuple[int, int]:
    """Read width and height from the header alone; raises BadFileError."""
    with open_image(data) as image:
        return image.size


def decode_image(data: bytes, image_size: int, channels: int) -> Picture:
    """Decode a file into the centre square of its picture, scaled to `image_size`.

    Transparent parts become white, 16-bit grey is scaled to 8 bits, the EXIF rotation is applied,
    and of an animation the first frame is taken.

    Raises:
        BadFileError: not an image, truncated, damaged, too many pixels, or too small: a side below
            8 pixels or below half of `image_size`, which would only train blur.
    """
    with open_image(data) as image:
        width, height = image.size
        smallest = max(SMALLEST_SIDE, image_size // 2)
        if min(width, height) < smallest:
            raise BadFileError(
                f"too small: {width}x{height}, both sides need at least {smallest} pixels "
                f"for --image-size {image_size}"
            )
        mode = image.mode
        try:
            # A JPEG decoder can shrink while it decodes; twice the size leaves the filter its work.
            image.draft(None, (2 * image_size, 2 * image_size))
            scale_transparent_colour(image)
            square = resize_square(flatten(turn_upright(image)), image_size)
        except (BadFileError, MemoryError):
            raise
        except Exception as error:  # a damaged file makes a decoder raise anything
            raise BadFileError(describe_damage(error)) from error
    return Picture(to_pixels(square, channels), mode, width, height)


def open_image(data: bytes) -> Image.Image:
    """Read the header; raises BadFileError."""
    if not data:
        raise BadFileError("empty: zero bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        told = f"too many pixels: the limit is {Image.MAX_IMAGE_PIXELS}; make it smaller"
        raise BadFileError(told) from error
    except UnidentifiedImageError as error:
        raise BadFileError(describe_unknown(data)) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes a decoder raise anything
        raise BadFileError(describe_damage(error)) from error
    limit = Image.MAX_IMAGE_PIXELS  # None: the user of the library has lifted it
    if limit is not None and image.width * image.height > limit:
        raise BadFileError(
            f"too many pixels: {image.width}x{image.height}, the limit is {limit}; make it smaller"
        )
    return image


def describe_unknown(data: bytes) -> str:
    """Say why no decoder knows the file."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return "HEIF is not supported: convert it to PNG or JPEG"
    if looks_like_image(data[:12]):
        return "truncated or damaged: it starts like an image but its header cannot be read"
    return "not an image"


def describe_damage(error: Exception) -> str:
    """Say on one line what the decoder found."""
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated: the file ends before the picture does"
    return f"damaged: {text or type(error).__name__}"


def turn_upright(image: Image.Image) -> Image.Image:
    """Decode the pixels and apply the EXIF orientation."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata, of any kind, leave the picture itself sound
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def scale_transparent_colour(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG file to 8 bits, as loading will bring the pixels.

    Pillow leaves it at the file's depth. Of two colours of 16 bits that are one in 8 bits, both
    become transparent.
    """
    transparent = image.info.get("transparency")
    if not isinstance(image, PngImageFile) or transparent is None or not image.tile:
        return
    rawmode = image.tile[0].args
    if rawmode in GREY_STEPS:
        image.info["transparency"] = transparent * GREY_STEPS[rawmode]
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def flatten(image: Image.Image) -> Image.Image:
    """Turn any mode into `L` or `RGB`, with white behind transparent parts."""
    if image.mode in MODES_16_BIT:
        return scale_16_bit(image)
    if image.mode == "F":
        raise BadFileError(
            "floating-point pixels, whose range is unknown: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")


def scale_16_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, a transparent value to white; Pillow's conversion would clip."""
    width, height = image.size
    transparent = image.info.get("transparency")
    scaled = np.empty((height, width), np.uint8)
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):  # of all at once, each step would be a large copy
        bottom = min(top + rows, height)
        values = np.asarray(image.crop((0, top, width, bottom)))
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadFileError("32-bit pixels, whose range is unknown: save it with 8 or 16 bits")
        scaled[top:bottom] = (values.astype(np.uint32) + 128) // 257
        if transparent is not None:
            scaled[top:bottom][values == transparent] = 255
    return Image.fromarray(scaled)


def resize_square(image: Image.Image, image_size: int) -> Image.Image:
    """Scale the short side to `image_size` and keep the centre square; antialiased."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # Lanczos keeps most detail when shrinking, but draws rings around edges when enlarging.
    resampling = Image.Resampling.LANCZOS if side > image_size else Image.Resampling.BICUBIC
    box = (left, top, left + side, top + side)
    return image.resize((image_size, image_size), resampling, box, reducing_gap=3.0)


def to_pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Return the picture as `[channels, height, width]`."""
    if channels == 1:
        return np.asarray(image.convert("L"))[np.newaxis]
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def resize_grey(images: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Resize grey images `[count, height, width]` to `[count, 1, image_size, image_size]`."""
    if images.shape[1:] == (image_size, image_size):
        return images[:, np.newaxis].copy()
    resized = np.empty((len(images), 1, image_size, image_size), np.uint8)
    for row, image in zip(resized, images, strict=True):
        row[0] = np.asarray(resize_square(Image.fromarray(image), image_size))
    return resized


def resize_colour(images: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Resize `[count, 3, height, width]` to `[count, 3, image_size, image_size]`."""
    if images.shape[2:] == (image_size, image_size):
        return images
    planes = resize_grey(images.reshape(-1, *images.shape[2:]), image_size)
    return planes.reshape(-1, 3, image_size, image_size)


def turn_grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn `[count, 3, height, width]` into `[count, 1, height, width]`, weighted like the eye."""
    grey = np.empty((len(images), 1, *images.shape[2:]), np.uint8)
    for row, image in zip(grey, images, strict=True):
        row[0] = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L"))
    return grey
