"""Hides the queue and the model's threads: callers await their images, batches form by themselves.

Worker threads take batches from one bounded queue: what waits while a model call runs forms the
next batch. Requests take turns, so a large one, split over several calls, does not hold up a small
one. All waiting is on one condition; nothing polls.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ganserve.errors import DeadlineExceeded, Overloaded, RequestError, ShuttingDown
from ganserve.metrics import AbandonReason, Metrics

RunBatch = Callable[[NDArray[np.float32], NDArray[np.int64] | None], NDArray[np.uint8]]

# gRPC and we read the clock at different moments: a caller cancelled this close to its deadline
# was cancelled by it.
DEADLINE_SLACK_SECONDS = 0.005


class Generated(NamedTuple):
    """The images of one submission, and where its time went."""

    pixels: NDArray[np.uint8]  # [n, height, width, channels]
    queue_seconds: float  # from admission to the first model call with a row of it
    compute_seconds: float  # summed over the model calls with rows of it


@dataclass(eq=False)
class Entry:
    """One submission. Its fields belong to whoever holds the batcher's lock."""

    latents: NDArray[np.float32]  # [n, latent_dim]
    labels: NDArray[np.int64] | None  # [n]
    pixels: NDArray[np.uint8]  # [n, height, width, channels], filled in by the workers
    deadline: float  # on time.monotonic
    answer: asyncio.Future[Generated]
    admitted_at: float = field(default_factory=time.monotonic)
    taken: int = 0  # rows handed to the model
    done: int = 0  # rows that came back
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0

    @property
    def waiting(self) -> int:
        """Rows not yet handed to the model."""
        return len(self.latents) - self.taken


class Part(NamedTuple):
    """Rows start to stop of an entry, within one batch."""

    entry: Entry
    start: int
    stop: int


class Batcher:
    """Shares the calls of one model among requests. Made and closed in an event loop."""

    def __init__(
        self,
        run_batch: RunBatch,
        image_shape: tuple[int, int, int],  # height, width, channels
        metrics: Metrics,
        *,
        model_name: str,
        max_batch_size: int = 16,
        max_wait_seconds: float = 0.0,
        queue_size: int = 2048,
        instances: int = 1,
    ) -> None:
        self._run_batch = run_batch
        self._image_shape = image_shape
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._queue_size = queue_size
        self._instances = instances

        self._queue_seconds = metrics.queue_seconds
        self._compute_seconds = metrics.compute_seconds.labels(model_name)
        self._batch_images = metrics.batch_images.labels(model_name)
        metrics.padding_images.labels(model_name)
        self._pending_images = metrics.pending_images
        self._abandoned_images = metrics.abandoned_images

        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._queue: deque[Entry] = deque()
        self._waiting = 0  # rows in the queue
        self._idle = 0  # workers waiting for work
        self._closing = False
        self._seconds_per_image = 0.01  # of the last batch; a guess until there is one
        self._workers = [
            threading.Thread(target=self._work, name=f"{model_name}-{index}", daemon=True)
            for index in range(instances)
        ]
        for worker in self._workers:
            worker.start()

    async def submit(
        self,
        latents: NDArray[np.float32],  # [n, latent_dim]
        labels: NDArray[np.int64] | None = None,  # [n]
        *,
        deadline: float,  # on time.monotonic
        admitted: bool = False,
    ) -> Generated:
        """Wait for the images of these latents.

        `admitted` marks a further part of a call that was admitted before: it is never refused.

        Raises:
            Overloaded: the queue is full.
            ShuttingDown: the batcher is closing.
            DeadlineExceeded: the deadline passed before the last row reached the model.
        """
        pixels = np.empty((len(latents), *self._image_shape), np.uint8)
        entry = Entry(latents, labels, pixels, deadline, self._loop.create_future())
        self._enqueue(entry, admitted)
        try:
            return await entry.answer
        except asyncio.CancelledError:
            on_time = time.monotonic() < deadline - DEADLINE_SLACK_SECONDS
            with self._changed:
                self._abandon(entry, "cancelled" if on_time else "deadline")
            raise

    async def close(self) -> None:
        """Refuse what is new, answer what was accepted, stop the workers."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for worker in self._workers:
            await asyncio.to_thread(worker.join)

    def _enqueue(self, entry: Entry, admitted: bool) -> None:
        rows = len(entry.latents)
        with self._changed:
            if self._closing:
                raise ShuttingDown("the model is being taken out of service")
            if self._waiting + rows > self._queue_size and not admitted:
                wait = self._waiting * self._seconds_per_image / self._instances
                raise Overloaded(
                    f"the queue is full: {self._waiting} images wait, {rows} more would pass the "
                    f"limit of {self._queue_size}",
                    retry_seconds=min(max(wait, 0.01), 10.0),
                )
            self._queue.append(entry)
            self._count_waiting(rows)
            self._changed.notify()

    def _count_waiting(self, rows: int) -> None:
        self._waiting += rows
        self._pending_images.inc(rows)

    def _abandon(self, entry: Entry, reason: AbandonReason) -> None:
        """Take what is left of an entry out of the queue; the lock is held."""
        if entry.waiting:
            self._abandoned_images.labels(reason).inc(entry.waiting)
            self._count_waiting(-entry.waiting)
            entry.taken = len(entry.latents)
            self._queue.remove(entry)

    # From here on in the worker threads.

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                finished = self._run(batch)
            except Exception as error:  # fails this batch alone, whatever it is
                self._fail(batch, error)
            else:
                self._loop.call_soon_threadsafe(_answer, finished)

    def _next_batch(self) -> list[Part]:
        """Wait for rows and take them; empty when closing and nothing is left."""
        with self._changed:
            while True:
                patience = self._patience()
                if self._queue and patience <= 0:
                    if batch := self._take():
                        break
                elif self._closing:
                    return []
                else:
                    self._idle += 1
                    self._changed.wait(patience if self._queue else None)
                    self._idle -= 1
            if self._queue:
                self._changed.notify()
            return batch

    def _patience(self) -> float:
        """How long the batch that could be taken now should wait for more, in seconds."""
        if not self._queue or self._closing or self._waiting >= self._max_batch_size:
            return 0.0
        oldest = min(entry.admitted_at for entry in self._queue) if self._max_wait_seconds else 0.0
        return oldest + self._max_wait_seconds - time.monotonic()

    def _take(self) -> list[Part]:
        """Take one batch off the queue: each entry in turn, what is left of it to the back."""
        # Idle workers share what waits, but halves of a batch are as small as pays off.
        share = -(-self._waiting // (1 + self._idle))
        room = min(self._max_batch_size, max(share, -(-self._max_batch_size // 2)))
        batch: list[Part] = []
        now = time.monotonic()
        while room and self._queue:
            entry = self._queue[0]
            if entry.deadline <= now:  # the event loop had no time to notice
                self._abandon(entry, "deadline")
                error = DeadlineExceeded("the deadline passed before the images were generated")
                self._loop.call_soon_threadsafe(_refuse, entry, error)
                continue
            self._queue.popleft()
            rows = min(room, entry.waiting)
            batch.append(Part(entry, entry.taken, entry.taken + rows))
            entry.taken += rows
            room -= rows
            self._count_waiting(-rows)
            if entry.waiting:
                self._queue.append(entry)
        return batch

    def _run(self, batch: list[Part]) -> list[Entry]:
        """Run the model on one batch; return the entries whose last rows these were."""
        latents, labels = _gather(batch)
        started = time.monotonic()
        images = self._run_batch(latents, labels)
        seconds = time.monotonic() - started
        assert images.shape == (len(latents), *self._image_shape), images.shape
        self._compute_seconds.observe(seconds)
        self._batch_images.observe(len(latents))
        offset = 0
        for entry, start, stop in batch:
            entry.pixels[start:stop] = images[offset : offset + stop - start]
            offset += stop - start
        with self._changed:
            self._seconds_per_image = seconds / len(latents)
            return self._count_done(batch, started, seconds)

    def _count_done(self, batch: list[Part], started: float, seconds: float) -> list[Entry]:
        finished = []
        for entry, start, stop in batch:
            if start == 0:
                entry.queue_seconds = started - entry.admitted_at
                self._queue_seconds.observe(entry.queue_seconds)
            entry.compute_seconds += seconds
            entry.done += stop - start
            if entry.done == len(entry.latents):
                finished.append(entry)
        return finished

    def _fail(self, batch: list[Part], cause: Exception) -> None:
        """Fail the entries of a batch; their other rows need not reach the model any more."""
        with self._changed:
            for part in batch:
                self._abandon(part.entry, "failed")
        for part in batch:
            error = RuntimeError("the model failed on a batch")
            error.__cause__ = cause
            self._loop.call_soon_threadsafe(_refuse, part.entry, error)


def _gather(batch: list[Part]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Bring the rows of a batch together: latents [rows, latent_dim] and labels [rows]."""
    latents = [entry.latents[start:stop] for entry, start, stop in batch]
    labels = [entry.labels[start:stop] for entry, start, stop in batch if entry.labels is not None]
    if len(batch) == 1:
        return latents[0], labels[0] if labels else None
    return np.concatenate(latents), np.concatenate(labels) if labels else None


# In the event loop again. A caller that has gone has cancelled its future.


def _answer(entries: list[Entry]) -> None:
    for entry in entries:
        if not entry.answer.done():
            entry.answer.set_result(
                Generated(entry.pixels, entry.queue_seconds, entry.compute_seconds)
            )


def _refuse(entry: Entry, error: RequestError | RuntimeError) -> None:
    if not entry.answer.done():
        entry.answer.set_exception(error)
        entry.answer.exception()  # a caller cancelled just now will not look at it
