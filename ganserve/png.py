"""Pixels become PNG files, fast: Paeth's filter in NumPy, deflated by ISA-L.

The files follow the PNG specification (third edition, W3C 2025): one IDAT chunk, every row with
the filter of Alan Paeth ("Image file compression made easy", Graphics Gems II, 1991).
"""

import struct

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

# Measured on generated 64x64 RGB: with this filter a ninth smaller than Pillow's files of its
# compression level 1, at a sixth of the time. Higher levels take longer and save nothing.
_DEFLATE_LEVEL = 1
# How far back matches are looked for. What is left of smooth pictures hardly repeats, and a match
# from many rows above takes more bits for its distance than it saves.
_WINDOW_ROWS = 4
_LEAST_WINDOW_BITS, _MOST_WINDOW_BITS = 9, 15
_PAETH = 4
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2  # colour types
_DEPTH = 8
# Images whose filter is worked out together: enough to make NumPy's calls cheap, and few enough
# for its arrays to stay in the processor's cache.
_GROUP_BYTES = 128 * 1024

Bytes = NDArray[np.uint8]


def encode_pngs(pixels: Bytes) -> list[bytes]:
    """Images [n, height, width, channels], grey or RGB, as one file each.

    A file depends on its own image alone. The GIL is released most of the time.
    """
    count, height, width, channels = pixels.shape
    head = _head(height, width, channels)
    group = max(1, _GROUP_BYTES // (height * width * channels))
    window_bits = (_WINDOW_ROWS * (1 + width * channels)).bit_length()
    window_bits = min(max(window_bits, _LEAST_WINDOW_BITS), _MOST_WINDOW_BITS)
    return [
        _assemble(head, isal_zlib.compress(rows, _DEFLATE_LEVEL, window_bits))
        for first in range(0, count, group)
        for rows in filter_rows(pixels[first : first + group])
    ]


def filter_rows(pixels: Bytes) -> Bytes:  # [n, height, width, channels]
    """Paeth's filter on every row: [n, height, 1 + width x channels], the filter's number first.

    A byte becomes its difference from whichever of its neighbours (left, above, above left) is
    nearest to left + above - above left, modulo 256.
    """
    count, height, width, channels = pixels.shape
    # A row of zeros above each image and a pixel of zeros left of each row, so that every
    # neighbour lies a fixed distance back in one flat array.
    padded = np.zeros((count, height + 1, width + 1, channels), np.uint8)
    padded[:, 1:, 1:] = pixels
    flat, row = padded.reshape(-1), (width + 1) * channels
    first = row + channels  # the first byte with all neighbours, the first of the first image
    here, left = flat[first:], flat[first - channels : -channels]
    above, corner = flat[first - row : -row], flat[:-first]
    differences = np.zeros_like(flat)
    np.subtract(here, _predict(left, above, corner), out=differences[first:])
    rows = np.empty((count, height, 1 + width * channels), np.uint8)
    rows[:, :, 0] = _PAETH
    by_row = differences.reshape(count, height + 1, row)
    rows[:, :, 1:] = by_row[:, 1:, channels:]
    return rows


def _predict(left: Bytes, above: Bytes, corner: Bytes) -> Bytes:
    """Paeth's predictor, in bytes throughout, which is several times faster than in integers.

    A corner outside left and above counts as the nearer of the two. The estimate left + above -
    corner is then as far from the higher as the corner is from the lower, and the other way
    round; the corner is nearest unless one of these distances is at least twice the other.
    """
    lower, higher = np.minimum(left, above), np.maximum(left, above)
    middle = np.maximum(corner, lower)
    np.minimum(middle, higher, out=middle)
    up, down = np.subtract(higher, middle, out=higher), np.subtract(middle, lower, out=lower)
    to_higher, to_lower = _mask(down <= up >> 1), _mask(up <= down >> 1)
    middle += np.bitwise_and(up, to_higher, out=to_higher)
    middle -= np.bitwise_and(down, to_lower, out=to_lower)
    return middle


def _mask(chosen: NDArray[np.bool_]) -> Bytes:
    """255 where chosen, else 0; in the same memory."""
    mask = chosen.view(np.uint8)
    return np.negative(mask, out=mask)


def _head(height: int, width: int, channels: int) -> bytes:
    colour = _GREY if channels == 1 else _RGB
    header = struct.pack(">IIBBBBB", width, height, _DEPTH, colour, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = isal_zlib.crc32(content, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))


_END = _chunk(b"IEND", b"")


def _assemble(head: bytes, deflated: bytes) -> bytes:
    return b"".join((head, _chunk(b"IDAT", deflated), _END))
