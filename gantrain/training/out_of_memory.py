"""Hides how PyTorch says that memory ran out, on the CPU and on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gantrain.errors import RunError

_ON_CPU = "DefaultCPUAllocator"  # PyTorch has no exception of its own for the CPU's memory


@contextmanager
def memory_errors_explained(batch_size: int, filters: int) -> Iterator[None]:
    """Turn a lack of memory into an error that says what would take less.

    Raises:
        RunError: memory ran out inside the context.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or _ON_CPU in str(error)):
            raise
        first_line = str(error).splitlines()[0] if str(error) else "no more memory"
        raise RunError(
            f"out of memory on the {'GPU' if on_gpu else 'CPU'} ({first_line}): use a smaller "
            f"--batch-size (now {batch_size}) or --filters (now {filters}), with a new --run-dir"
        ) from error
