"""The queue in front of a model: the rows that wait, taken round-robin from their requests."""

import time
from collections import deque
from collections.abc import Sequence

from ganserve.batching.entries import Entry, Part
from ganserve.metrics import AbandonReason, Metrics


class RowQueue:
    """The entries that wait. Whoever owns it holds a lock while it calls.

    Attributes:
        waiting: rows of all entries that no model call has taken.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.waiting = 0
        self._entries: deque[Entry] = deque()
        self._pending_images = metrics.pending_images
        self._abandoned_images = metrics.abandoned_images

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entries: Sequence[Entry], rows: int) -> None:
        """Let entries, of so many rows together, wait behind all others."""
        self._entries.extend(entries)
        self._count(rows)

    def oldest_admitted_at(self) -> float:
        """When the entry that waits for longest was admitted, on time.monotonic."""
        return min(entry.admitted_at for entry in self._entries)

    def take(self, most_rows: int) -> tuple[list[Part], list[Entry]]:
        """Take rows for one model call, and take out what is too late.

        Round-robin: what is left of an entry waits behind the others. Also returned are the entries
        whose deadlines have passed, which the event loop had no time to notice.
        """
        parts: list[Part] = []
        late: list[Entry] = []
        taken = 0
        now = time.monotonic()
        while taken < most_rows and self._entries:
            entry = self._entries[0]
            if entry.deadline <= now:
                self.abandon(entry, "deadline")
                late.append(entry)
                continue
            self._entries.popleft()
            stop = min(entry.size, entry.taken + most_rows - taken)
            parts.append(Part(entry, entry.taken, stop))
            taken += stop - entry.taken
            entry.taken = stop
            if stop < entry.size:
                self._entries.append(entry)
        self._count(-taken)
        return parts, late

    def abandon(self, entry: Entry, reason: AbandonReason) -> None:
        """Take out what is left of an entry, if anything is."""
        left = entry.size - entry.taken
        if left:
            self._abandoned_images.labels(reason).inc(left)
            self._count(-left)
            entry.taken = entry.size
            self._entries.remove(entry)

    def _count(self, rows: int) -> None:
        self.waiting += rows
        self._pending_images.inc(rows)
