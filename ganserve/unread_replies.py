"""Hides which replies have not left the server yet, and how long they may take.

gRPC takes a reply at once and sends it as fast as it is read. Until then it is in memory, so calls
whose replies are not read count as under way; else a client that reads nothing could have any
number of them.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol


class Reply(Protocol):
    """A call that was answered."""

    def give_up(self) -> None:
        """Let go of what was not read."""


class UnreadReplies:
    """Replies that gRPC holds, of any methods; how many is its length."""

    def __init__(self) -> None:
        self._until: dict[Reply, float] = {}  # of time.monotonic
        self._statuses = 0

    def __len__(self) -> int:
        return len(self._until) + self._statuses

    def add(self, reply: Reply, seconds: float) -> None:
        """Count a reply that is about to be given to gRPC, and may take so long to leave."""
        self._until[reply] = time.monotonic() + seconds

    def remove(self, reply: Reply) -> None:
        """It has left, or cannot any more; may be called in any thread."""
        self._until.pop(reply, None)

    @contextlib.contextmanager
    def status(self) -> Iterator[None]:
        """Count a status within the block: it leaves only behind the messages of its stream."""
        self._statuses += 1
        try:
            yield
        finally:
            self._statuses -= 1

    def give_up_late(self) -> int:
        """Let go of replies that have taken too long; how many these are."""
        now = time.monotonic()
        late = [reply for reply, until in list(self._until.items()) if until < now]
        for reply in late:
            self.remove(reply)
            reply.give_up()
        return len(late)
