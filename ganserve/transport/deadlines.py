"""Deadlines that the server imposes on calls, where their callers set none or one too late."""

import asyncio
from typing import Any


def is_deadline_due(remaining_seconds: float, allowed_seconds: float) -> bool:
    """Whether a call cancelled so long before its deadline was cancelled by it.

    The caller's deadline passes before ours, which begins where the call arrives; and gRPC sends
    the time allowed rounded up, to 10 ms from 1 s on and to 100 ms from 10 s on: by 1 % at most.
    """
    return remaining_seconds <= 0.005 + 0.01 * allowed_seconds


class Deadlines:
    """A deadline for calls: one timer for all, for it is equally long for each.

    A call is its task, which is cancelled when its time is up.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: dict[asyncio.Task[Any], float] = {}  # on the loop's clock, the earliest first
        self._passed: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def impose(self) -> float:
        """Give the current task its deadline; in how many seconds that is."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._ends[task] = end = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(end, self._cancel_late)
        return self.seconds

    def lift(self) -> None:
        """Take the deadline off the current task, if it has one."""
        if self._ends:
            task = asyncio.current_task()
            assert task is not None
            self._ends.pop(task, None)

    def take_passed(self) -> bool:
        """Whether it was this deadline, and nothing else, that cancelled the current task.

        Asked once: the task then counts as not cancelled by it.
        """
        task = asyncio.current_task()
        assert task is not None
        if task not in self._passed:
            return False
        self._passed.remove(task)
        return task.uncancel() == 0

    def _cancel_late(self) -> None:
        loop = asyncio.get_running_loop()
        while self._ends:
            task, end = next(iter(self._ends.items()))
            if end > loop.time():
                self._timer = loop.call_at(end, self._cancel_late)
                return
            del self._ends[task]
            self._passed.add(task)
            task.cancel()
        self._timer = None
