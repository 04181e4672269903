"""Models are brought up to date beside each other, each after its scans in their order."""

import asyncio
from collections.abc import Awaitable, Callable

from ganserve.models.model_files import Candidate

Refresh = Callable[[str, list[Candidate]], Awaitable[None]]


class ModelTasks:
    """One task for each model with work to do, which takes up the newest scan and no older one."""

    def __init__(self, refresh: Refresh, on_idle: Callable[[], None]) -> None:
        """`refresh` is called with a model's name and what a scan found of it.

        `on_idle` is called whenever the last of the models that were busy is up to date.
        """
        self._refresh = refresh
        self._on_idle = on_idle
        self._found: dict[str, list[Candidate]] = {}  # that no task has taken up yet
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def names(self) -> set[str]:
        """The models that are busy."""
        return {name for name, task in self._tasks.items() if not task.done()}

    def begin(self, name: str, candidates: list[Candidate]) -> None:
        """Bring a model up to what a scan found, now or as soon as its task has time.

        Raises:
            Exception: that with which its last task failed.
        """
        self._found[name] = candidates
        task = self._tasks.get(name)
        if task is not None and task.done():
            task.result()
        if task is None or task.done():
            task = self._tasks[name] = asyncio.get_running_loop().create_task(self._follow(name))
            task.add_done_callback(self._end)

    def is_outdated(self, candidate: Candidate) -> bool:
        """Whether a later scan has found the file gone or replaced."""
        return candidate not in self._found.get(candidate.name, [candidate])

    async def wait(self, seconds: float | None) -> None:
        """Wait until no model is busy, at most so many seconds; None is for ever.

        Raises:
            Exception: that with which a task failed.
        """
        if self._tasks:
            tasks = [*self._tasks.values()]
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for name in [name for name, task in self._tasks.items() if task.done()]:
            self._tasks.pop(name).result()

    async def cancel(self) -> None:
        """Leave the models as they are."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def _end(self, task: asyncio.Task[None]) -> None:
        if not self.names and not task.cancelled() and task.exception() is None:
            self._on_idle()

    async def _follow(self, name: str) -> None:
        while name in self._found:
            await self._refresh(name, self._found.pop(name))
