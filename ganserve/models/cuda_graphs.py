"""The batch sizes at which calls are CUDA graphs: where they can be captured, and are quicker."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

import numpy as np

from ganserve.models.bound_session import BoundSession, Feeds

# Two to allocate all memory and one to capture. ONNX Runtime 1.31 makes all of them in the first.
_CAPTURING_RUNS = 3
_TURNS = 15
_Kind = TypeVar("_Kind")
_FeedsOf = Callable[[int, int], Feeds]


def choose_graphs(session: BoundSession, feeds_of: _FeedsOf, *, always: bool) -> tuple[int, ...]:
    """Have calls replayed as CUDA graphs: of all sizes, or of those that are quicker so.

    The session must have been handed over, for graphs belong to a thread.

    Args:
        session: Of the CUDA provider, opened for capturing graphs.
        feeds_of: Makes inputs for a size, other ones for each second argument.
        always: Whether all sizes are to be graphs.

    Returns:
        The sizes whose calls are graphs.

    Raises:
        RuntimeError: a graph makes other images than the call that was captured.
        Exception: what ONNX Runtime raises where it cannot capture; the session is of no use then.
    """
    for size in session.batch_sizes:
        _capture(session, size, feeds_of)
    if always:
        return session.batch_sizes
    # Each size after another, as in service: without a graph ONNX Runtime prepares convolutions
    # anew whenever the size changes.
    kinds = [(size, graph) for graph in (False, True) for size in session.batch_sizes]
    seconds = time_in_turns({kind: _timer(session, *kind, feeds_of) for kind in kinds}, _TURNS)
    quicker = [size for size in session.batch_sizes if seconds[size, True] < seconds[size, False]]
    for size in session.batch_sizes:
        session.use_graph(size, use=size in quicker)
    return tuple(quicker)


def time_in_turns(kinds: Mapping[_Kind, Callable[[], float]], turns: int) -> dict[_Kind, float]:
    """The median of the seconds that each kind says it took, all of them once a turn."""
    seconds: dict[_Kind, list[float]] = {kind: [] for kind in kinds}
    for _ in range(turns):
        for kind, run in kinds.items():
            seconds[kind].append(run())
    return {kind: median(values) for kind, values in seconds.items()}


def _capture(session: BoundSession, size: int, feeds_of: _FeedsOf) -> None:
    first, second = feeds_of(size, 0), feeds_of(size, 1)
    expected, again = (session.call(session.run_here, second) for _ in range(2))
    session.use_graph(size, use=True)
    for _ in range(_CAPTURING_RUNS):
        session.call(session.run_here, first)
    replayed = session.call(session.run_here, second)
    # A call that does not repeat itself, as may be where speed goes before bits, shows nothing.
    if np.array_equal(expected, again) and not np.array_equal(replayed, expected):
        raise RuntimeError(f"the CUDA graph of batch size {size} makes other images than its call")


def _timer(
    session: BoundSession, size: int, graph: bool, feeds_of: _FeedsOf
) -> Callable[[], float]:
    feeds = feeds_of(size, 0)

    def run() -> float:  # in the session's thread, or changing threads would be timed too
        session.use_graph(size, use=graph)
        started = time.perf_counter()
        session.run_here(feeds)
        return time.perf_counter() - started

    return lambda: session.call(run)
