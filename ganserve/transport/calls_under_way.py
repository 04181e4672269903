"""The number of calls under way: which are refused for it, and when the last has ended."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from ganserve.errors import ShuttingDown, TooManyCalls
from ganserve.transport.unread_replies import UnreadReplies

_MANY_EXEMPT_STREAMS = 64  # that one client may have, even beyond its share
_TOO_MANY_CALLS_RETRY_SECONDS = 0.5  # nobody can know: calls take from a millisecond to minutes
_MOST_UNREAD_BYTES = 512 * 2**20  # with gRPC's copy a gigabyte, half of what deploy/base allows


class CallsUnderWay:
    """Counts calls, at most `max_calls`, those among them that were answered and are `unread`.

    Streams that are exempt, such as health watches, count apart: there may be as many again, an
    eighth of them from one client. Used in the event loop alone.
    """

    def __init__(self, max_calls: int, unread: UnreadReplies) -> None:
        self.unread = unread
        self.in_flight = 0  # begun and not ended
        self.exempt_streams: Counter[str] = Counter()  # by the address of the peer
        self._max_calls = max_calls
        self._refusing = False
        self._idle = asyncio.Event()
        self._idle.set()

    def refuse_new(self) -> None:
        """Refuse new calls from now on; those under way go on."""
        self._refusing = True

    async def wait_until_idle(self) -> None:
        """Return when the last call under way was answered."""
        await self._idle.wait()

    def begin(self) -> None:
        """Count a call; `check` says whether it may go on."""
        self.in_flight += 1
        self._idle.clear()

    def check(self) -> None:
        """Let a call go on that was counted.

        Raises:
            ShuttingDown: new ones are refused.
            TooManyCalls: there are more than allowed, or replies that nobody reads fill the memory.
        """
        if self._refusing:
            raise ShuttingDown("the server is shutting down")
        if self.unread.bytes > _MOST_UNREAD_BYTES:
            raise TooManyCalls(
                f"replies of more than {_MOST_UNREAD_BYTES >> 20} MiB wait to be read",
                retry_seconds=_TOO_MANY_CALLS_RETRY_SECONDS,
            )
        if self.in_flight + len(self.unread) > self._max_calls:
            raise _too_many(f"{self._max_calls} calls under way")

    def end(self) -> None:
        """Count a call no more."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    @contextlib.contextmanager
    def exempt_stream(self, address: str) -> Iterator[None]:
        """Count a stream that is exempt, of a client at this address, within the block.

        Raises:
            TooManyCalls: on entering; the address has its share, or all have.
        """
        of_one = max(min(self._max_calls, _MANY_EXEMPT_STREAMS), self._max_calls // 8)
        streams = self.exempt_streams
        if streams.total() >= self._max_calls:
            raise _too_many(f"{self._max_calls} streams such as health watches")
        if streams[address] >= of_one:
            raise _too_many(f"{of_one} streams such as health watches from one address")
        streams[address] += 1
        try:
            yield
        finally:
            streams[address] -= 1
            if not streams[address]:
                del streams[address]


def _too_many(limit: str) -> TooManyCalls:
    return TooManyCalls(
        f"the limit is {limit} at the same time", retry_seconds=_TOO_MANY_CALLS_RETRY_SECONDS
    )
