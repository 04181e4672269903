"""Admission of the further chunks of streams to a queue: never refused, but only as room allows.

To refuse a chunk would waste those that its call has had; to let all in would leave no room for
other calls.
"""

import math
from collections import deque

from ganserve.batching.entries import Entry


class ChunkAdmission:
    """Chunks that wait for room, first come, first served, and how many rows the queued ones have.

    Those in the queue have half of it together, or one of them alone as much as it needs: the rest
    is for new calls. Room is reserved for the chunk that is next, or small calls would always take
    it first. Used in the event loop alone.
    """

    def __init__(self, queue_size: float) -> None:
        self._queue_size = queue_size  # rows
        self._waiting: deque[Entry] = deque()
        self._admitted_rows = 0  # of chunks that were admitted and have not ended

    def __bool__(self) -> bool:
        """Whether any chunk waits for room; may be asked in any thread."""
        return bool(self._waiting)

    def __contains__(self, entry: Entry) -> bool:
        """Whether a chunk waits for room."""
        return entry in self._waiting

    def add(self, entry: Entry) -> None:
        """Let a chunk wait behind the others."""
        self._waiting.append(entry)

    def reserved_rows(self) -> int:
        """Rows of the queue that new calls must leave to the chunk that is next."""
        if not self._waiting:
            return 0
        rows = self._waiting[0].size
        has_share = not self._admitted_rows or self._admitted_rows + rows <= self._queue_size / 2
        return rows if has_share else 0

    def admit(self, queued_rows: int) -> Entry | None:
        """Take the next chunk, if a queue that holds so many rows has room for it."""
        rows = self.reserved_rows()
        if not rows or (queued_rows and queued_rows + rows > self._queue_size):
            return None
        self._admitted_rows += rows
        return self._waiting.popleft()

    def end(self, entry: Entry) -> None:
        """Note that a chunk has its images, or that its caller has gone."""
        if entry in self._waiting:
            self._waiting.remove(entry)
        else:
            self._admitted_rows -= entry.size

    def lift_limit(self) -> None:
        """Admit all from now on: there are no new calls any more."""
        self._queue_size = math.inf
