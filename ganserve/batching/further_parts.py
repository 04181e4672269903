"""Hides when further parts of admitted calls enter a queue: never refused, but only where is room.

To refuse one would waste what its call has had; to let all in would leave no room for other calls.
"""

import math
from collections import deque

from ganserve.batching.entries import Entry


class FurtherParts:
    """The parts outside of a queue, which wait in the order they came, and those let in.

    Those let in have half of the queue together, or one of them alone as much as it needs: the
    rest is for calls that come. Room is kept for the part whose turn it is, or small calls would
    always take it first. Of the event loop.
    """

    def __init__(self, queue_size: float) -> None:
        self._queue_size = queue_size  # rows
        self._outside: deque[Entry] = deque()
        self._inside_rows = 0  # of parts let in and not ended

    def __bool__(self) -> bool:
        """Whether any is outside; may be asked in any thread."""
        return bool(self._outside)

    def __contains__(self, entry: Entry) -> bool:
        """Whether a part is outside."""
        return entry in self._outside

    def add(self, entry: Entry) -> None:
        """Let a part wait behind the others."""
        self._outside.append(entry)

    def kept_rows(self) -> int:
        """Rows of the queue that calls that come must leave to the part whose turn it is."""
        if not self._outside:
            return 0
        rows = self._outside[0].size
        has_share = not self._inside_rows or self._inside_rows + rows <= self._queue_size / 2
        return rows if has_share else 0

    def let_in(self, waiting: int) -> Entry | None:
        """Take the part whose turn it is, if a queue where so many rows wait has room for it."""
        rows = self.kept_rows()
        if not rows or (waiting and waiting + rows > self._queue_size):
            return None
        self._inside_rows += rows
        return self._outside.popleft()

    def end(self, entry: Entry) -> None:
        """Note that a part is answered, or that its caller has gone."""
        if entry in self._outside:
            self._outside.remove(entry)
        else:
            self._inside_rows -= entry.size

    def lift_limit(self) -> None:
        """Let all in from now on: there are no other calls any more."""
        self._queue_size = math.inf
