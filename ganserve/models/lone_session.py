"""A second session on the CPU, with more threads, for batches that come alone.

Under load single-threaded calls on all CPUs make more images than one call with many threads. A
batch that comes alone would leave all CPUs but one idle: its images come sooner if all make them.
"""

import logging
import math
import time

import numpy as np

from ganserve.models.model_spec import ModelSpec, make_feeds
from ganserve.models.onnx_weights import SplitFile
from ganserve.models.runtime import Session, one_line, open_session

logger = logging.getLogger(__name__)

# A single image that takes less is made in the event loop, and would gain less than threads cost.
_LEAST_SECONDS = 0.002
# Threads meet after each layer, so each must have some work in between.
_LEAST_SECONDS_PER_THREAD = 0.00025
_TRIES = 4


def open_lone_session(
    file: SplitFile, spec: ModelSpec, session: Session, *, threads: int, largest_batch: int
) -> Session | None:
    """Open a session with more threads, if single images take long enough to gain by it.

    That they are faster then is not measured here: while models load the CPUs are busy, and it
    would be a matter of luck.

    Args:
        file: The model's.
        spec: What it says of the model.
        session: The one that it has, warm.
        threads: Of the new one, at most.
        largest_batch: Rows of the largest batch that it may be called with.

    Returns:
        The session, warm. None if it would gain nothing, cannot be opened, or makes other bytes
        than the other session.
    """
    seconds = _seconds(session, spec)
    if seconds < _LEAST_SECONDS:
        return None
    threads = min(threads, max(2, int(seconds / _LEAST_SECONDS_PER_THREAD)))
    try:
        lone = open_session(file, "cpu", threads)
        is_same = all(_make_the_same(lone, session, spec, size) for size in {1, largest_batch})
        problem = "" if is_same else "with more images differ"
    except Exception as error:  # the model can be served without, whatever this is
        problem = one_line(error)
    if problem:
        logger.warning("batches that come alone get one thread, not %d: %s", threads, problem)
        return None
    return lone


def _make_the_same(session: Session, other: Session, spec: ModelSpec, size: int) -> bool:
    """Whether both make the same bytes of a batch of this size."""
    feeds = make_feeds(spec, size)
    made, expected = (each.run(["images"], feeds)[0] for each in (session, other))
    return np.array_equal(made, expected)


def _seconds(session: Session, spec: ModelSpec) -> float:
    """What a single image takes at best; others may use the CPUs as well."""
    feeds, least = make_feeds(spec, 1), math.inf
    for _ in range(_TRIES):
        started = time.perf_counter()
        session.run(["images"], feeds)
        least = min(least, time.perf_counter() - started)
    return least
