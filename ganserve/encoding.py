"""Pixels become PNG, JPEG or WebP files, in threads of their own."""

import asyncio
import contextlib
import enum
import io
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganserve.cpus import lower_thread_priority
from ganserve.png import encode_pngs

# Handing work to a thread costs about as much as encoding a small image, so a thread gets several.
_IMAGES_PER_CHUNK = 4
# Of pixels, some tens of milliseconds of work: then a thread turns to what others wait for.
_MOST_CHUNK_BYTES = 1024 * 1024
_DEFAULT_JPEG_QUALITY = 90
# A PNG of 64x64 RGB takes less time than two changes of threads.
_INLINE_PNG_BYTES = 16 * 1024
# Measured on 64x64 RGB: 20 times faster than Pillow's default, 1.3 to 1.9 times the bytes.
_LOSSLESS_WEBP_METHOD = 0


class ImageFormat(enum.Enum):
    """How images are encoded; the value is the name people type and files end in."""

    RAW = "raw"
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """The media type of one image, as in HTTP's Content-Type."""
        return "application/octet-stream" if self is ImageFormat.RAW else f"image/{self.value}"

    @property
    def takes_quality(self) -> bool:
        """Whether a quality from 1 to 100 can be asked for."""
        return self in (ImageFormat.JPEG, ImageFormat.WEBP)


def to_picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """The Pillow image of pixels [height, width, channels]: grey for one channel, RGB for three."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def encode_image(
    pixels: NDArray[np.uint8], image_format: ImageFormat, quality: int | None = None
) -> bytes:
    """One image [height, width, channels] as the bytes of one file; the same bytes every time.

    PNG is lossless, and so is WebP unless `quality` (1 to 100) is given; JPEG has quality 90 by
    default. RAW is the pixels themselves, row-major.
    """
    if image_format is ImageFormat.RAW:
        return pixels.tobytes()
    if image_format is ImageFormat.PNG:
        return encode_pngs(pixels[np.newaxis])[0]
    picture, file = to_picture(pixels), io.BytesIO()
    if image_format is ImageFormat.JPEG:
        picture.save(file, "JPEG", quality=_DEFAULT_JPEG_QUALITY if quality is None else quality)
    elif quality is None:
        picture.save(file, "WEBP", lossless=True, method=_LOSSLESS_WEBP_METHOD)
    else:
        picture.save(file, "WEBP", quality=quality)
    return file.getvalue()


def encode_images(
    pixels: NDArray[np.uint8], image_format: ImageFormat, quality: int | None = None
) -> list[bytes]:
    """Images [n, height, width, channels] as one file each: the bytes of `encode_image`."""
    if image_format is ImageFormat.PNG:
        return encode_pngs(pixels)
    return [encode_image(image, image_format, quality) for image in pixels]


def encode_first_images() -> None:
    """Encode an image of each format: with its first one Pillow imports what it needs for it."""
    # Not at the top, for it takes as long as a small model. Not left to Pillow, which would import
    # all the formats it knows.
    from PIL import WebPImagePlugin  # noqa: F401

    for image_format in ImageFormat:
        encode_image(np.zeros((1, 1, 3), np.uint8), image_format)


class Encoder:
    """Threads that encode images while the event loop goes on, most of the time without the GIL.

    Attributes:
        pending_images: images of calls that wait for `encode`.
    """

    def __init__(self, threads: int) -> None:
        self.pending_images = 0
        self._closed = False
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "encode", lower_thread_priority)

    def warm_up(self) -> None:
        """Begin what the first call for each format would else wait for."""
        with contextlib.suppress(RuntimeError):  # no more threads can be started: then it waits
            self._pool.submit(encode_first_images)

    async def encode(
        self, pixels: NDArray[np.uint8], image_format: ImageFormat, quality: int | None = None
    ) -> list[bytes]:
        """Images [n, height, width, channels] as one file each, in order.

        Calls take turns, so a large one does not hold up a small one.

        Raises:
            RuntimeError: the encoder is closed, or no thread can be started.
        """
        if self._closed:
            raise RuntimeError("the encoder is closed")
        if image_format is ImageFormat.PNG and pixels.size <= _INLINE_PNG_BYTES:
            return encode_images(pixels, image_format)
        least = min(self._threads, -(-len(pixels) // _IMAGES_PER_CHUNK))
        chunks = min(len(pixels), max(least, -(-pixels.size // _MOST_CHUNK_BYTES)))
        waiting = deque(enumerate(np.array_split(pixels, max(chunks, 1))))
        encoded: dict[int, list[bytes]] = {}
        loop = asyncio.get_running_loop()

        async def encode_in_turn() -> None:
            while waiting:
                index, chunk = waiting.popleft()
                encoded[index] = await loop.run_in_executor(
                    self._pool, encode_images, chunk, image_format, quality
                )

        self.pending_images += len(pixels)
        try:
            await asyncio.gather(*(encode_in_turn() for _ in range(min(chunks, self._threads))))
        finally:
            waiting.clear()  # where one failed, or the caller has gone, the others are for nobody
            self.pending_images -= len(pixels)
        return [image for index in sorted(encoded) for image in encoded[index]]

    def close(self) -> None:
        """Finish what has begun and end the threads."""
        self._closed = True
        self._pool.shutdown()
