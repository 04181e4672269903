"""The images of a model call on their way to those who wait, and what is measured of it."""

import numpy as np

from ganserve.batching.entries import Batch, Entry, Generated, Part
from ganserve.errors import RequestError
from ganserve.metrics import Metrics


class Results:
    """Hands the images of one model to those who wait for them. Used in the event loop alone."""

    def __init__(
        self, image_shape: tuple[int, int, int], metrics: Metrics, model_name: str
    ) -> None:
        self._image_shape = image_shape  # height, width, channels
        self._queue_seconds = metrics.queue_seconds.labels()
        self._compute_seconds = metrics.compute_seconds.labels(model_name)
        self._batch_images = metrics.batch_images.labels(model_name)
        self._padding_images = metrics.padding_images.labels(model_name)

    def deliver(self, batch: Batch) -> list[tuple[Part, MemoryError]]:
        """Give each entry its images; the entries whose last rows these were are done.

        Returned are the parts of entries that are too large for the memory there is.
        """
        offset = 0
        too_large = []
        for part in batch.parts:
            entry, start, stop = part
            images = batch.images[offset : offset + stop - start]
            offset += stop - start
            if start == 0:
                entry.queue_seconds = batch.started_at - entry.admitted_at
                exemplar = None if entry.trace is None else entry.trace.exemplar
                self._queue_seconds.observe(entry.queue_seconds, exemplar)
            entry.compute_seconds += batch.seconds
            if entry.future.done():  # the caller has gone, or its request has failed
                continue
            if stop - start == entry.size:
                entry.pixels = images  # all of them: nothing to copy
            else:
                try:
                    if entry.pixels is None:
                        entry.pixels = np.empty((entry.size, *self._image_shape), np.uint8)
                except MemoryError as error:
                    too_large.append((part, error))
                    continue
                entry.pixels[start:stop] = images
            entry.done += stop - start  # never all of one whose images found no memory
            if entry.done == entry.size:
                entry.future.set_result(
                    Generated(entry.pixels, entry.queue_seconds, entry.compute_seconds)
                )
        self._compute_seconds.observe(batch.seconds, _exemplar(batch.parts))
        self._batch_images.observe(offset)
        if offset < len(batch.images):
            self._padding_images.inc(len(batch.images) - offset)
        return too_large


def fail(entry: Entry, error: RequestError | RuntimeError) -> None:
    """End an entry with an error, in the event loop, unless it has ended before."""
    if not entry.future.done():
        entry.future.set_exception(error)
        entry.future.exception()  # a caller cancelled just now will not look at it


def _exemplar(parts: list[Part]) -> dict[str, str] | None:
    """The first of the traces that some rows of a batch belong to."""
    for part in parts:
        if part.entry.trace is not None and part.entry.trace.exemplar is not None:
            return dict(part.entry.trace.exemplar)
    return None
