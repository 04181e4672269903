"""Hides the C library's habit of giving large buffers back to the kernel after each use."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h
_NEVER = -1


def keep_buffers() -> bool:
    """Let the memory of one step serve the next; False where the C library is not glibc.

    By default glibc maps fresh pages for each feature map of some megabytes and returns them, so
    that the kernel clears tens of thousands of pages in a step. This is of the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
