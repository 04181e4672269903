"""Replies that have not left the server yet, and how long they may take.

gRPC takes a reply at once and sends it as fast as it is read. Until then it is in memory, so calls
whose replies are not read count as under way; else a client that reads nothing could have any
number of them.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

BETWEEN_LOOKS = 1.0  # seconds, at most


class AnsweredCall(Protocol):
    """A call that was answered."""

    def give_up(self) -> None:
        """Let go of what was not read."""


class UnreadReplies:
    """Replies that gRPC holds, of any methods; how many is its length.

    Attributes:
        bytes: what they hold together, those of streams excepted, which are few.

    Args:
        seconds: how long one may take whose caller set no deadline.
        longest_seconds: how long any may take; the core ends a call whose own deadline passes.
    """

    def __init__(self, seconds: float, longest_seconds: float) -> None:
        self._seconds = {False: seconds, True: longest_seconds}  # by whether there is a deadline
        self.bytes = 0
        self._lock = threading.Lock()  # of `bytes`
        # Until when, of time.monotonic, and how many bytes.
        self._held: dict[AnsweredCall, tuple[float, int]] = {}
        self._statuses = 0

    def __len__(self) -> int:
        return len(self._held) + self._statuses

    def add(self, call: AnsweredCall, size: int, has_deadline: bool) -> None:
        """Count a reply of `size` bytes that is about to be given to gRPC."""
        self._held[call] = time.monotonic() + self._seconds[has_deadline], size
        with self._lock:
            self.bytes += size

    def remove(self, call: AnsweredCall, _: object = None) -> None:
        """It has left, or cannot any more; may be called in any thread."""
        _, size = self._held.pop(call, (0.0, 0))
        with self._lock:
            self.bytes -= size

    @contextlib.contextmanager
    def status(self) -> Iterator[None]:
        """Count a status within the block: it leaves only behind the messages of its stream."""
        self._statuses += 1
        try:
            yield
        finally:
            self._statuses -= 1

    def give_up_late(self) -> int:
        """Let go of replies that have taken too long; how many these are. To be called often."""
        now = time.monotonic()
        late = [call for call, (until, _) in list(self._held.items()) if until < now]
        for call in late:
            self.remove(call)
            call.give_up()
        return len(late)
