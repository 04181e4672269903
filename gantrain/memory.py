"""Hides how freed buffers stay with the process, as the C library is told, and how a lack shows."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h
_NEVER = -1
# Neither library has an exception of its own for the CPU's memory.
_PYTORCH, _ONNX_RUNTIME = "DefaultCPUAllocator", "Failed to allocate memory"


def keep_buffers() -> bool:
    """Let the memory of one step serve the next; False where the C library is not glibc.

    By default glibc maps fresh pages for each feature map of some megabytes and returns them, so
    that the kernel clears tens of thousands of pages in a step. This is of the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that the machine has no more memory; a GPU's is another matter."""
    told = str(error)
    return isinstance(error, MemoryError) or _PYTORCH in told or _ONNX_RUNTIME in told
