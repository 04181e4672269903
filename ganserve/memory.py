"""The C library's memory: large buffers stay for the next use, or are given back on demand."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024  # what glibc accepts on 64 bits
_TRIM_THRESHOLD = 256 * 1024 * 1024
_LARGE_ENOUGH_TO_TRIM = 256 * 1024  # when it frees this much, glibc looks at the end of its memory


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


def return_free_memory() -> bool:
    """Give what is free back to the system at once, such as that of a model that was let go.

    Call it in the thread that allocated it. glibc gives each thread memory of its own, and keeps
    the end of that up to the threshold set above; of other threads' memory only what lies before
    the end is given back. False where the C library is not glibc.
    """
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "malloc_trim"):
        return False
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    libc.mallopt(_M_TRIM_THRESHOLD, 0)
    libc.free(libc.malloc(_LARGE_ENOUGH_TO_TRIM))
    libc.malloc_trim(0)
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))
