"""Dynamic batching: callers await their images, and the rows of many calls share model calls.

Worker threads take batches from one bounded queue: what waits while a model call runs forms the
next batch. Requests take turns, so a large one, split over several calls, does not hold up a small
one. All waiting is on one condition; nothing polls, but for the end. Work passes between the event
loop and the workers once a batch, not once a request: what arrives in one turn of the event loop
enters the queue together, the latents of a batch are drawn together, and its images return
together.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ganserve.batching.batch_delay import BatchDelay
from ganserve.batching.chunk_admission import ChunkAdmission
from ganserve.batching.entries import Batch, Entry, Generated, Part, gather
from ganserve.batching.latency_estimate import LatencyEstimate
from ganserve.batching.results import Results, fail
from ganserve.batching.row_queue import RowQueue
from ganserve.calls import current_seconds
from ganserve.cpus import lower_thread_priority
from ganserve.errors import DeadlineExceeded, ModelError, Overloaded, ShuttingDown
from ganserve.metrics import AbandonReason, Metrics
from ganserve.transport.deadlines import is_deadline_due

_CLOSING_LOOKS_SECONDS = 0.005  # between looks at workers that end

# Latents [n, latent_dim] and, of conditional models, labels [n] -> [n, height, width, channels].
RunBatch = Callable[[NDArray[np.float32], NDArray[np.int64] | None], NDArray[np.uint8]]


class Batcher:
    """Shares the calls of one model among requests. Made and closed in an event loop."""

    def __init__(
        self,
        run_batch: RunBatch,
        image_shape: tuple[int, int, int],  # height, width, channels
        metrics: Metrics,
        *,
        model_name: str,
        latent_dim: int,
        max_batch_size: int,
        queue_size: int,
        batch_sizes: Sequence[int] = (),
        max_wait_seconds: float = 0.0,
        instances: int = 1,
        inline_seconds: float = 0.0,
        run_lone_batch: RunBatch | None = None,
        on_batch: Callable[[Batch, Exception | None], None] | None = None,
    ) -> None:
        """Start the workers.

        Args:
            run_batch: Latents [n, latent_dim] (and labels) to images; called in several threads.
            image_shape: Height, width, channels.
            metrics: Where batches and waiting times are counted.
            model_name: The label of the metrics.
            latent_dim: Of the latents that are drawn from seeds.
            max_batch_size: Rows in one model call, at most.
            queue_size: Rows that may wait; where one chunk of a stream is larger, its rows.
            batch_sizes: The only sizes the model is called with; batches are padded up to the
                next one. The largest is `max_batch_size`. None: every size, nothing is padded.
            max_wait_seconds: How long the oldest row may wait for its batch to fill up.
            instances: Model calls at the same time.
            inline_seconds: Model calls that are expected to be shorter than this are made in the
                event loop where no worker is busy: changing threads would take longer.
            run_lone_batch: As `run_batch`, but faster while no other worker is busy and nothing
                waits; None if there is no such way.
            on_batch: Called in the event loop with each batch before those who wait for it go on,
                and with the error if there was one; a failed batch has no images.

        Raises:
            ModelError: no more threads can be started.
        """
        assert not batch_sizes or max(batch_sizes) == max_batch_size, batch_sizes
        self._run_batch = run_batch
        self._run_lone_batch = run_lone_batch
        self._image_shape = image_shape
        self._latent_dim = latent_dim
        self._max_batch_size = max_batch_size
        self._batch_sizes = sorted(batch_sizes)
        self._max_wait_seconds = max_wait_seconds
        self._queue_size = queue_size
        self._instances = instances
        self._inline_seconds = inline_seconds
        self._on_batch = on_batch

        self._results = Results(image_shape, metrics, model_name)
        self._abandoned_images = metrics.abandoned_images

        self._loop = asyncio.get_running_loop()
        self._arrived: list[Entry] = []  # in this turn of the event loop, on the way to the queue
        self._arrived_rows = 0
        self._start_scheduled = False
        self._chunks = ChunkAdmission(queue_size)
        self._delay = BatchDelay()
        self._changed = threading.Condition(threading.Lock())
        self._queue = RowQueue(metrics)  # used under the lock, but for `waiting`
        self._idle = 0  # workers waiting for work
        self._shared_at = 0.0  # when idle workers last were to share what waited
        self._closing = False
        self._latency = LatencyEstimate()
        self._workers = [
            threading.Thread(target=self._work, name=f"{model_name}-{index}", daemon=True)
            for index in range(instances)
        ]
        try:
            for worker in self._workers:
                worker.start()
        except RuntimeError as error:  # the system or the container allows no more
            self._end_workers()
            raise ModelError(f"its threads cannot be started: {error}") from error

    async def submit(
        self,
        rows: NDArray[np.float32] | NDArray[np.uint64],  # latents [n, latent_dim] or seeds [n]
        labels: NDArray[np.int64] | None = None,  # [n]
        *,
        deadline: float,  # on time.monotonic
        truncation: float = 1.0,
        continues: bool = False,
    ) -> Generated:
        """Wait for the images of these seeds or latents.

        The latents of seeds are multiplied by `truncation`; given ones are taken as they are.
        `continues` marks a further chunk of a call that was admitted before: where the queue is
        full it waits for room.

        Raises:
            Overloaded: the queue is full.
            ShuttingDown: the batcher is closing.
            DeadlineExceeded: the deadline passed before the last row reached the model.
        """
        entry = Entry(rows, labels, truncation, deadline, self._loop.create_future())
        self._admit(entry, continues)
        try:
            return await entry.future
        except asyncio.CancelledError:
            remaining = deadline - time.monotonic()
            is_late = is_deadline_due(remaining, remaining + current_seconds())
            self._abandon(entry, "deadline" if is_late else "cancelled")
            raise
        finally:
            if continues:
                self._chunks.end(entry)
            if self._chunks:
                self._admit_chunks()

    async def close(self) -> None:
        """Refuse what is new, answer what was accepted, stop the workers."""
        self._chunks.lift_limit()
        self._admit_chunks()
        self._enqueue_arrived()
        self._end_workers()
        # To join them would take one more thread, which there may not be.
        while any(worker.is_alive() for worker in self._workers):  # noqa: ASYNC110
            await asyncio.sleep(_CLOSING_LOOKS_SECONDS)

    def _end_workers(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _admit(self, entry: Entry, continues: bool) -> None:
        if self._closing:
            raise ShuttingDown("the model is being taken out of service")
        if continues:
            self._chunks.add(entry)
            self._admit_chunks()
            return
        waiting = self._waiting() + self._chunks.reserved_rows()
        if waiting + entry.size > self._queue_size:
            wait = waiting * self._latency.seconds_per_row / self._instances
            raise Overloaded(
                f"the queue is full: {waiting} images wait, {entry.size} more would pass the "
                f"limit of {self._queue_size}",
                retry_seconds=min(max(wait, 0.01), 10.0),
            )
        self._arrive(entry)

    def _admit_chunks(self) -> None:
        """Let chunks enter; called whenever rows have left the queue or a chunk has ended."""
        while (entry := self._chunks.admit(self._waiting())) is not None:
            self._arrive(entry)

    def _waiting(self) -> int:
        """Rows in the queue and on the way to it, for admission.

        Only this thread adds to them, so without the lock it can at most be too strict.
        """
        return self._queue.waiting + self._arrived_rows

    def _arrive(self, entry: Entry) -> None:
        self._arrived.append(entry)
        self._arrived_rows += entry.size
        self._schedule_start()

    def _schedule_start(self) -> None:
        """Once a turn, whatever arrives or is left: so a turn makes one model call at most."""
        if not self._start_scheduled:
            self._start_scheduled = True
            self._loop.call_soon(self._start_arrived)

    def _enqueue_arrived(self, *, notify: bool = True) -> None:
        with self._changed:
            self._queue.add(self._arrived, self._arrived_rows)
            self._arrived.clear()
            self._arrived_rows = 0
            if notify and self._idle and self._queue:
                self._changed.notify()

    def _abandon(self, entry: Entry, reason: AbandonReason) -> None:
        """Take out what is left of an entry whose caller has gone."""
        if entry in self._chunks:
            self._abandoned_images.labels(reason).inc(entry.size)
            return
        self._enqueue_arrived()
        with self._changed:
            self._queue.abandon(entry, reason)

    def _start_arrived(self) -> None:
        """Bring what arrived to the model: here and now if that is quick, else by a worker."""
        self._start_scheduled = False
        waiting = self._waiting()
        is_quick = self._is_quick(waiting)
        if is_quick and waiting < self._max_batch_size and self._should_wait():
            self._schedule_start()
            return
        self._delay.reset()
        self._enqueue_arrived(notify=not is_quick)
        if is_quick:
            self._run_inline()

    def _is_quick(self, rows: int) -> bool:
        if self._idle < self._instances or self._max_wait_seconds:
            return False
        return self._latency.expect(min(rows, self._max_batch_size)) <= self._inline_seconds

    def _should_wait(self) -> bool:
        arrived = self._arrived
        return bool(arrived) and self._delay.should_wait(self._arrived_rows, arrived[0].admitted_at)

    def _run_inline(self) -> None:
        """Run one batch; the event loop takes another turn before the next."""
        with self._changed:
            parts = self._take(share=False)
            if self._queue:
                self._schedule_start()
        if parts:
            self._delay.learn(alone=len(parts) == 1)
            self._run_then(parts, self._finish)

    # In the worker threads.

    def _work(self) -> None:
        lower_thread_priority()
        while parts := self._next_parts():
            self._run_then(parts, self._finish_in_loop, is_lone=self._is_alone())
            del parts  # or the last batch, and all images of its calls, would stay till the next

    def _is_alone(self) -> bool:
        """Whether no other worker is busy or has anything to do, at this moment.

        Without the lock: a worker that takes what waits is no longer idle by then, so the queue is
        looked at first.
        """
        return not self._queue and self._idle == self._instances - 1

    def _finish_in_loop(self, batch: Batch) -> None:
        self._loop.call_soon_threadsafe(self._finish, batch)

    def _next_parts(self) -> list[Part]:
        """Wait for rows and take them; empty when closing and nothing is left."""
        parts: list[Part] = []
        with self._changed:
            while not parts and (self._queue or not self._closing):
                wait_seconds = self._seconds_to_wait()
                if self._queue and wait_seconds <= 0:
                    parts = self._take(share=True)
                else:
                    self._idle += 1
                    self._changed.wait(wait_seconds if self._queue else None)
                    self._idle -= 1
            if self._queue and self._idle:
                self._changed.notify()
        return parts

    def _seconds_to_wait(self) -> float:
        """How long the batch that could be taken now should wait for more rows."""
        if not self._queue or self._closing or self._queue.waiting >= self._max_batch_size:
            return 0.0
        oldest = self._queue.oldest_admitted_at() if self._max_wait_seconds else 0.0
        if oldest <= self._shared_at:  # left for another worker, not to wait for more
            return 0.0
        return oldest + self._max_wait_seconds - time.monotonic()

    # In a worker's thread or, for `_run_inline` and `_finish`, in the event loop.

    def _take(self, *, share: bool) -> list[Part]:
        """Take one batch off the queue; the lock is held. Empty where all that waited was late.

        To `share` is to leave idle workers theirs, but no less than half a full batch is taken:
        smaller ones do not pay off.
        """
        rows = -(-self._queue.waiting // (1 + self._idle)) if share else self._queue.waiting
        most_rows = min(self._max_batch_size, max(rows, -(-self._max_batch_size // 2)))
        parts, late = self._queue.take(most_rows)
        if self._idle and share:
            self._shared_at = time.monotonic()
        if self._chunks:
            self._loop.call_soon_threadsafe(self._admit_chunks)
        for entry in late:
            error = DeadlineExceeded("the deadline passed before the images were generated")
            self._loop.call_soon_threadsafe(fail, entry, error)
        return parts

    def _run_then(
        self, parts: list[Part], finish: Callable[[Batch], object], *, is_lone: bool = False
    ) -> None:
        """Run one batch and hand it to `finish`; whatever the model raises fails it alone."""
        began = time.monotonic()
        try:
            batch = self._run(parts, is_lone=is_lone and self._run_lone_batch is not None)
        except Exception as error:
            self._fail(parts, error, began)
        else:
            finish(batch)

    def _run(self, parts: list[Part], *, is_lone: bool) -> Batch:
        began = time.monotonic()
        latents, labels = gather(parts, self._latent_dim, self._batch_sizes)
        started_at = time.monotonic()
        run_batch = self._run_lone_batch if is_lone else self._run_batch
        assert run_batch is not None
        images = run_batch(latents, labels)
        seconds = time.monotonic() - started_at
        assert images.shape == (len(latents), *self._image_shape), images.shape
        return Batch(parts, images, started_at, seconds, started_at - began, is_lone)

    def _fail(self, parts: list[Part], cause: Exception, began: float) -> None:
        """Fail the entries of a batch; their other rows need not reach the model any more."""
        self._abandon_failed(parts)
        if self._on_batch is not None:
            nothing = np.empty((0, *self._image_shape), np.uint8)
            failed = Batch(parts, nothing, began, time.monotonic() - began)
            self._loop.call_soon_threadsafe(self._on_batch, failed, cause)
        for part in parts:
            self._loop.call_soon_threadsafe(fail, part.entry, _failure(cause))

    def _abandon_failed(self, parts: Iterable[Part]) -> None:
        with self._changed:
            for part in parts:
                self._queue.abandon(part.entry, "failed")

    # In the event loop.

    def _finish(self, batch: Batch) -> None:
        if too_large := self._results.deliver(batch):
            self._abandon_failed(part for part, _ in too_large)
            for part, cause in too_large:
                fail(part.entry, _failure(cause))
        if not batch.is_lone:  # which says nothing of one beside others, or in the event loop
            self._latency.update(batch.rows, batch.gather_seconds + batch.seconds)
        if self._on_batch is not None:
            self._on_batch(batch, None)


def _failure(cause: Exception) -> RuntimeError:
    error = RuntimeError("the model failed on a batch")
    error.__cause__ = cause
    return error
