"""Whose turn it is, and who has waited for longest."""

import asyncio

import numpy as np
from prometheus_client import CollectorRegistry

from ganserve.batching.entries import Entry
from ganserve.batching.row_queue import RowQueue
from ganserve.metrics import Metrics


async def test_what_is_left_of_an_entry_has_waited_since_it_came():
    loop, queue = asyncio.get_running_loop(), RowQueue(Metrics(CollectorRegistry()))
    large, small = (
        Entry(np.arange(size, dtype=np.uint64), None, 1.0, float("inf"), loop.create_future())
        for size in (6, 1)
    )
    large.admitted_at, small.admitted_at = 100.0, 101.0
    queue.add([large, small], 7)
    parts, late = queue.take(4)
    assert [(part.entry, part.start, part.stop) for part in parts] == [(large, 0, 4)]
    assert late == []
    assert queue.oldest_admitted_at() == 100.0
    parts, _ = queue.take(4)
    assert [(part.entry, part.start, part.stop) for part in parts] == [(small, 0, 1), (large, 4, 6)]
    assert queue.waiting == 0
    assert not queue
