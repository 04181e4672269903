"""Hides how the processes of one run, which `torchrun` starts, know of each other and agree.

A process is a rank of `torch.distributed`; the first one keeps the run's folder. A process that
nobody started beside others is alone: then nothing here does anything. What is asked of all must be
asked by all, in the same order.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from gantrain.errors import RunError

_T = TypeVar("_T")
_SOURCE_LINE = re.compile(r"^\[[^]]*\.\w+:\d+\] ")  # where in PyTorch an error was found

# A process that dies closes its connections, which is seen at once. This is for machines that
# vanish without a word, and must outlast what the first rank does while the others wait: pictures,
# the diagnosis, a checkpoint.
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; `local_` counts those of one machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this rank keeps the run's folder and tells how it goes."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """Which of the batch's images are this rank's: as many neighbours as every other's."""
        size = batch_size // self.count
        return slice(self.rank * size, (self.rank + 1) * size)


def read_ranks() -> Ranks:
    """What `torchrun` says in the environment; alone without it.

    Raises:
        RunError: a variable is no number.
    """
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    if "WORLD_SIZE" not in os.environ:
        return Ranks()
    try:
        return Ranks(*(int(os.environ.get(name, default)) for name, default in names.items()))
    except ValueError as error:
        raise RunError(
            f"{', '.join(names)}: expected the numbers that torchrun sets, got something else "
            f"({error}); start with torchrun, or unset WORLD_SIZE"
        ) from error


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Meet the other ranks, if there are any, and leave them at the end.

    Values on the CPU travel by gloo, those on a GPU by NCCL. All ranks but the first log warnings
    only.

    Raises:
        RunError: the others cannot be reached.
    """
    ranks = read_ranks()
    if ranks.count == 1:
        yield ranks
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with _reaching_others():
        distributed.init_process_group(backend, timeout=_TIMEOUT)
    logger = logging.getLogger("gantrain")
    level = logger.level
    if not ranks.first:
        logger.setLevel(logging.WARNING)
    try:
        yield ranks
    finally:
        logger.setLevel(level)
        distributed.destroy_process_group()


def take_share(batch: Tensor) -> Tensor:
    """This rank's part of what is [whole batch, ...] and the same on each."""
    if _count() == 1:
        return batch
    return batch[Ranks(distributed.get_rank(), _count()).share(len(batch))]


def average_gradients(network: nn.Module) -> None:
    """Replace the gradients of each rank, which are of its part of the batch, by their mean."""
    count = _count()
    if count == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    _add_up(whole)
    whole /= count
    parts = torch.split(whole, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def average_row(row: Mapping[str, float]) -> dict[str, float]:
    """The mean over the ranks of each number; all get the same ones."""
    count = _count()
    if count == 1:
        return dict(row)
    values = torch.tensor([*row.values()], dtype=torch.float64)
    _add_up(values)
    return dict(zip(row, (values / count).tolist(), strict=True))


def agree(wish: bool) -> bool:
    """Whether any rank wishes so. It does not wait for a GPU."""
    if _count() == 1:
        return wish
    wishes = torch.tensor(int(wish))
    _add_up(wishes)
    return bool(wishes)


def broadcast(value: _T) -> _T:
    """The first rank's value, any that can be pickled, for all."""
    if _count() == 1:
        return value
    values: list[Any] = [value]
    with _reaching_others():
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    received: _T = values[0]
    return received


def wait_for_all() -> None:
    """Return once all ranks are here."""
    agree(False)


def share_batch_norm(network: nn.Module) -> None:
    """Let BatchNorm in training mode normalize by the whole batch, not by a rank's part of it.

    Weights, buffers and their names stay as they are.
    """
    if _count() == 1:
        return
    for module in network.modules():
        for plain, shared in _SHARED.items():
            if type(module) is plain:
                module.__class__ = shared


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - has no public name
    """BatchNorm over the parts of all ranks, which are of one size.

    PyTorch's own `SyncBatchNorm` knows GPUs only. Each rank's means and variances go to all, which
    is one exchange and loses no digits to the difference of two large sums.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is PyTorch's
        """Inputs [batch, features, ...] -> the same shape."""
        if not self.training:
            return super().forward(input)
        over = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        values = input.float()  # automatic casting must not round the statistics
        variance, mean = torch.var_mean(values, over, correction=0)
        count, rank = _count(), distributed.get_rank()
        own = torch.stack([mean, variance])
        before, after = own.new_zeros(rank, *own.shape), own.new_zeros(count - rank - 1, *own.shape)
        means, variances = _add_up_with_gradient(torch.cat([before, own[None], after])).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        self._follow(mean, variance, count * values.numel() // values.shape[1])
        scale = (variance + self.eps).rsqrt() * self.weight
        normal: Tensor = (values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, size: int) -> None:
        """Move the moving statistics, whose variance is unbiased, of `size` values a feature."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (size / (size - 1)), self.momentum)


class _SharedBatchNorm1d(_SharedBatchNorm, nn.BatchNorm1d):
    """After a dense layer."""


class _SharedBatchNorm2d(_SharedBatchNorm, nn.BatchNorm2d):
    """After a convolution."""


_SHARED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _SharedBatchNorm1d,
    nn.BatchNorm2d: _SharedBatchNorm2d,
}


class _Sum(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:  # noqa: ANN401 - PyTorch's
        total = values.clone(memory_format=torch.contiguous_format)
        _add_up(total)
        return total

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Any:  # noqa: ANN401 - PyTorch's
        return _add_up_with_gradient(gradients[0])


def _add_up_with_gradient(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


def _count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _add_up(values: Tensor) -> None:
    """Replace values by their sum over the ranks."""
    with _reaching_others():
        distributed.all_reduce(values)


@contextmanager
def _reaching_others() -> Iterator[None]:
    """Turn a lost connection into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        reason = _SOURCE_LINE.sub("", str(error)).partition("\n")[0].partition(". ")[0]
        raise RunError(
            "another rank has ended or cannot be reached; its own error stands in its log. Give "
            f"the same command again to resume from the newest checkpoint ({reason})"
        ) from error
