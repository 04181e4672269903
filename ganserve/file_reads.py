"""Reads of files beside the event loop, in threads that its end does not wait for.

The file system of a network may hang. `asyncio.to_thread` would have the event loop's end wait for
it, without a limit. Python itself waits at its end too: `leave_working_threads` of `cli` is for
that.
"""

import asyncio
import errno
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_LONG_SECONDS = 10.0


class FileReads:
    """Reads some files again and again; says once when that takes long, until it does not again."""

    def __init__(self, what: str) -> None:
        """`what` is read, for the log."""
        self._what = what
        self._is_slow = False

    async def run(self, read: Callable[..., Result], *arguments: object) -> Result:
        """Call a function in a thread of its own: those that hang take nobody else's.

        None is kept, or the process would end by force as if it were at work.

        Raises:
            OSError: no thread can be started; whatever the function raises.
        """
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "files")
        try:
            reading = thread.submit(read, *arguments)
        except RuntimeError as error:  # the system or the container allows no more
            raise OSError(errno.EAGAIN, f"no thread to read in: {error}", self._what) from error
        slow = loop.call_later(_LONG_SECONDS, self._report_slow)
        try:
            return await asyncio.wrap_future(reading)
        finally:
            if loop.time() < slow.when():
                self._is_slow = False
            slow.cancel()
            thread.shutdown(wait=False)

    def _report_slow(self) -> None:
        if not self._is_slow:
            logger.warning(
                "%s: not read after %g s, what serves goes on; does the file system answer?",
                *(self._what, _LONG_SECONDS),
            )
        self._is_slow = True
