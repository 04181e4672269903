"""Hides how PyTorch says that memory ran out, on the CPU and on a GPU, and what takes less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gantrain.config import TrainConfig
from gantrain.config_rules import network_kinds
from gantrain.errors import RunError, first_line
from gantrain.memory import lacks_memory


@contextmanager
def memory_errors_explained(config: TrainConfig, ranks: int) -> Iterator[None]:
    """Turn a lack of memory into an error that says what would take less.

    Raises:
        RunError: memory ran out inside the context.
    """
    try:
        yield
    except RunError:  # which may quote such an error, and says what to do
        raise
    except (RuntimeError, MemoryError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (on_gpu or lacks_memory(error)):
            raise
        less = f"--batch-size (now {config.batch_size})"
        if any("filters" in kind.leaves_open for kind in network_kinds(config)):
            less += f" or --filters (now {config.filters})"
        advice = f"use a smaller {less}, with a new --run-dir"
        if on_gpu and config.cuda_graph and ranks == 1:  # a recording keeps the memory of a step
            advice += "; or --no-cuda-graph, which takes less, with this one"
        advice += "; or repeat the command where there is more memory: the run goes on"
        raise RunError(
            f"out of memory on the {'GPU' if on_gpu else 'CPU'} ({first_line(error)}): {advice}"
        ) from error


def upload(examples: Tensor, device: torch.device) -> Tensor:
    """The data on a device, where all of them are to lie.

    Raises:
        RunError: they do not fit.
    """
    try:
        return examples.to(device)
    except torch.OutOfMemoryError as error:  # no batch size would help
        raise RunError(
            f"out of memory on the GPU, where the data take {examples.nbytes / 1e9:.2g} GB "
            f"({first_line(error)}): use fewer with --max-data-images, or a smaller --image-size, "
            "with a new --run-dir"
        ) from error
