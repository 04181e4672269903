"""Hides how the processes of one run, which `torchrun` starts, know of each other and agree.

A process is a rank of `torch.distributed`; the first one keeps the run's folder. A process that
nobody started beside others is alone: then nothing here does anything. What is asked of all must be
asked by all, in the same order.
"""

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gantrain.errors import RunError, first_line
from gantrain.other_machines import (
    address_towards,
    end_silent_connections,
    interface_towards,
)

_T = TypeVar("_T")
_SOURCE_LINE = re.compile(r"^\[[^]]*\.\w+:\d+\] ")  # where in PyTorch an error was found

# A process that dies closes its connections, which is seen at once. This is for one that hangs, and
# must outlast what the first rank does while the others wait: pictures, diagnosis, a checkpoint.
_TIMEOUT = timedelta(minutes=10)
_SILENCE_SECONDS = 45  # of a machine that has vanished; a network may be away for less

_SHORT = 1 << 14  # values; what is shorter costs more for each exchange than for being copied
_FEW_RANKS = 8  # for more, each sends too many messages to the others


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
        RunError: a variable is no number, or does not say where the others are.
    """
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    if "WORLD_SIZE" not in os.environ:
        return Ranks()
    try:
        ranks = Ranks(*(int(os.environ.get(name, default)) for name, default in names.items()))
    except ValueError as error:
        raise RunError(
            f"{', '.join(names)}: expected the numbers that torchrun sets, got something else "
            f"({error}); start with torchrun, or unset WORLD_SIZE"
        ) from error
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if ranks.count > 1 and missing:
        raise RunError(
            f"WORLD_SIZE is {ranks.count}, but {' and '.join(missing)} not set: start with "
            "torchrun, or unset WORLD_SIZE"
        )
    return ranks


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
        shared, *_ = next(rendezvous("env://", timeout=_TIMEOUT))
        store = PrefixStore("gantrain", shared)
        if ranks.count > ranks.local_count:
            _choose_interface(ranks, store)
        distributed.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.count, timeout=_TIMEOUT
        )
    if ranks.count > ranks.local_count:
        end_silent_connections(_SILENCE_SECONDS)
    logger = logging.getLogger("gantrain")
    level = logger.level
    if not ranks.first:
        logger.setLevel(logging.WARNING)
    try:
        yield ranks
    finally:
        logger.setLevel(level)
        distributed.destroy_process_group()


def _choose_interface(ranks: Ranks, store: Store) -> None:
    """Have gloo use the interface that leads to the other machines, unless one is named already.

    By itself it takes the address that the host's own name stands for: on many systems that of the
    loopback interface, which no other machine reaches. The ranks on the first machine, whose
    address may look like that to themselves, look where the last one is; the others where it is.
    """
    first_machine = os.environ["MASTER_ADDR"]
    if ranks.rank == ranks.count - 1:
        store.set("last_address", address_towards(first_machine) or "")
    on_first = ranks.rank == ranks.local_rank
    target = store.get("last_address").decode() if on_first else first_machine
    interface = interface_towards(target) if target else None
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def rank_count() -> int:
    """How many processes train this run together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def take_share(batch: Tensor) -> Tensor:
    """This rank's part of what is [whole batch, ...] and the same on each."""
    if rank_count() == 1:
        return batch
    return batch[Ranks(distributed.get_rank(), rank_count()).share(len(batch))]


def backward(loss: Tensor, network: nn.Module) -> None:
    """Compute the gradients of a network's weights by a scalar loss, which is of the whole batch.

    Each rank's loss is of its part of the batch, and the mean over the ranks is the whole one's. A
    gradient is sent to the others as soon as it is there, while the backward pass goes on (of the
    flagship's discriminator all are there at its end); the short ones follow together. The ranks
    exchange them in one order, for they follow one graph.
    """
    count = rank_count()
    if count == 1:
        loss.backward()  # type: ignore[no-untyped-call]
        return
    under_way: list[distributed.Work] = []
    short: list[Tensor] = []

    def send(weights: Tensor) -> None:
        gradient = weights.grad
        assert gradient is not None
        if gradient.numel() < _SHORT:
            short.append(gradient)
            return
        with _reaching_others():
            # In memory's order, no copy: PyTorch lays a gradient out as its weights, without gaps.
            values = gradient.as_strided([gradient.numel()], [1])
            under_way.append(distributed.all_reduce(values, async_op=True))

    learning = [weights for weights in network.parameters() if weights.requires_grad]
    hooks = [w.register_post_accumulate_grad_hook(send) for w in learning]  # type: ignore[no-untyped-call]
    try:
        loss.backward(torch.full_like(loss, 1 / count))  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    if short:
        together = torch.cat([gradient.flatten() for gradient in short])
        add_up(together)
        parts = torch.split(together, [gradient.numel() for gradient in short])
        for gradient, part in zip(short, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    with _reaching_others():
        for exchange in under_way:
            exchange.wait()


def average_row(row: Mapping[str, float]) -> dict[str, float]:
    """The mean over the ranks of each number; all get the same ones."""
    count = rank_count()
    if count == 1:
        return dict(row)
    values = torch.tensor([*row.values()], dtype=torch.float64)
    add_up(values)
    return dict(zip(row, (values / count).tolist(), strict=True))


def add_up(values: Tensor) -> None:
    """Replace values by their sum over the ranks; all get the same bits.

    Few values are sent to all directly on a CPU, where a trip takes longer than they do: gloo's
    own sum makes several.
    """
    count = rank_count()
    with _reaching_others():
        if values.device.type != "cpu" or values.numel() > _SHORT or count > _FEW_RANKS:
            distributed.all_reduce(values)
            return
        own = distributed.get_rank()
        others = [rank for rank in range(count) if rank != own]
        parts = values.new_empty(count, *values.shape)
        parts[own] = values
        sent = [distributed.isend(values, rank) for rank in others]
        for rank in others:
            distributed.recv(parts[rank], rank)
        for message in sent:
            assert message is not None  # it is only for who is no member
            message.wait()
        torch.sum(parts, 0, out=values)


def agree(wish: bool) -> bool:
    """Whether any rank wishes so. It does not wait for a GPU."""
    if rank_count() == 1:
        return wish
    wishes = torch.tensor(int(wish))
    add_up(wishes)
    return bool(wishes)


def broadcast(value: _T) -> _T:
    """The first rank's value, any that can be pickled, for all."""
    if rank_count() == 1:
        return value
    values: list[Any] = [value]
    with _reaching_others():
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    received: _T = values[0]
    return received


def wait_for_all() -> None:
    """Return once all ranks are here."""
    agree(False)


@contextmanager
def _reaching_others() -> Iterator[None]:
    """Turn a lost connection into an error that says what to do, and let SIGTERM not hide it.

    A process that has lost the others can only end.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # of this rank, so it is this one's to tell
        raise
    except RuntimeError as error:
        # torchrun sends SIGTERM within 0.1 s; ignore it so that this error is printed first.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = _SOURCE_LINE.sub("", first_line(error)).partition(". ")[0]
        raise RunError(
            "another rank has ended or cannot be reached; its own error stands in its log. Give "
            f"the same command again to resume from the newest checkpoint ({reason})"
        ) from error
