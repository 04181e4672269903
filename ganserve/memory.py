"""Hides the C library's habit of giving large buffers back to the kernel after each use."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024  # what glibc accepts on 64 bits
_TRIM_THRESHOLD = 256 * 1024 * 1024


def keep_large_buffers() -> bool:
    """Let the memory of one large reply serve the next; False where the C library is not glibc.

    By default glibc maps fresh pages for each buffer of some hundred kilobytes and returns them,
    so that a reply costs more in page faults than in copying.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    accepted = mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    return bool(accepted and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))
