"""Hides which replies have not left the server yet, and how long they may take.

gRPC takes a reply at once and sends it as fast as it is read. Until then it is in memory, so calls
whose replies are not read count as under way; else a client that reads nothing could have any
number of them.
"""

import contextlib
import math
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

    Args:
        seconds: how long one may take whose caller set no deadline.
        longest_seconds: how long any may take; the core ends a call whose own deadline passes.
    """

    def __init__(self, seconds: float = math.inf, longest_seconds: float = math.inf) -> None:
        self._seconds = {False: seconds, True: longest_seconds}  # by whether there is a deadline
        self._until: dict[AnsweredCall, float] = {}  # of time.monotonic
        self._statuses = 0
        self._look_at_the_clock()

    def __len__(self) -> int:
        return len(self._until) + self._statuses

    def add(self, call: AnsweredCall, has_deadline: bool) -> None:
        """Count a reply that is about to be given to gRPC."""
        self._until[call] = self._end[has_deadline]

    def remove(self, call: AnsweredCall, _: object = None) -> None:
        """It has left, or cannot any more; may be called in any thread."""
        self._until.pop(call, None)

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
        now = self._look_at_the_clock()
        late = [call for call, until in list(self._until.items()) if until < now]
        for call in late:
            self.remove(call)
            call.give_up()
        return len(late)

    def _look_at_the_clock(self) -> float:
        """Replies that are added before the next look count from the last moment before it.

        A look at the clock for each would cost as much as all else here.
        """
        now = time.monotonic()
        latest = now + BETWEEN_LOOKS
        self._end = {kind: latest + seconds for kind, seconds in self._seconds.items()}
        return now
