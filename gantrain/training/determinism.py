"""Sets PyTorch's global GPU switches: no TF32, and deterministic algorithms if asked for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gantrain.errors import RunError, first_line

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it when it is first used
_FIXED_WORKSPACE = ":4096:8"
_MEMORY: Any = torch.utils.deterministic  # its one setting is a property, which mypy does not see


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the context products and convolutions in float32 are that, and not in TF32.

    By default PyTorch has it so for products, but lets cuDNN round what it convolves to 10 bits of
    mantissa. StyleGAN3 trains without, too; who wants speed has bfloat16.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def repeatable(asked: bool) -> Iterator[None]:
    """Within the context, if asked for, equal inputs give equal bits on the same kind of device.

    As PyTorch's notes on reproducibility have it: algorithms without a random order of sums, chosen
    without timing them, and a cuBLAS workspace of fixed size. On the CPU they are so anyway. If not
    asked for, cuDNN takes the algorithms that it finds the quickest.

    Raises:
        RunError: an operation has no such algorithm.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        _MEMORY.fill_uninitialized_memory,
        os.environ.get(_WORKSPACE),
    )
    torch.backends.cudnn.benchmark = not asked
    if asked:
        os.environ.setdefault(_WORKSPACE, _FIXED_WORKSPACE)
        torch.use_deterministic_algorithms(True)
        # PyTorch would fill all fresh memory, at a launch each; nothing here reads it unwritten.
        _MEMORY.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        if not asked or "deterministic" not in str(error):
            raise
        raise RunError(
            f"--deterministic: {first_line(error)}; choose other settings, or train "
            "without --deterministic"
        ) from error
    finally:
        enabled, warn_only, benchmark, fill, workspace = before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        _MEMORY.fill_uninitialized_memory = fill
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
