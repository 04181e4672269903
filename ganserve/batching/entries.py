"""What waits in a queue, and what a model call takes of it: entries, their rows, batches."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ganserve.calls import current_trace
from ganserve.latents import draw_latents


class Generated(NamedTuple):
    """The images of one submission, and where its time went."""

    pixels: NDArray[np.uint8]  # [n, height, width, channels]
    queue_seconds: float  # from admission to the first model call with a row of it
    compute_seconds: float  # summed over the model calls with rows of it


class Entry:
    """One submission.

    Only the event loop changes `pixels`, `done`, `queue_seconds` and `compute_seconds`, and answers
    `future`; to change `taken` needs the batcher's lock.
    """

    __slots__ = (
        "admitted_at",
        "compute_seconds",
        "deadline",
        "done",
        "future",
        "labels",
        "pixels",
        "queue_seconds",
        "rows",
        "size",
        "taken",
        "trace",
        "truncation",
    )

    def __init__(
        self,
        rows: NDArray[np.float32] | NDArray[np.uint64],  # latents [n, latent_dim] or seeds [n]
        labels: NDArray[np.int64] | None,  # [n]
        truncation: float,
        deadline: float,
        future: asyncio.Future[Generated],
    ) -> None:
        self.rows = rows
        self.labels = labels
        self.truncation = truncation  # of the latents of seeds
        self.deadline = deadline  # on time.monotonic
        self.future = future
        self.admitted_at = time.monotonic()
        self.size = len(rows)
        self.taken = 0  # rows handed to the model
        # [n, height, width, channels], once there is more than one batch with rows of it
        self.pixels: NDArray[np.uint8] | None = None
        self.done = 0  # rows that came back
        self.queue_seconds = 0.0
        self.compute_seconds = 0.0
        self.trace = current_trace()  # of the call that it belongs to


class Part(NamedTuple):
    """Rows start to stop of an entry, within one batch."""

    entry: Entry
    start: int
    stop: int


class Batch(NamedTuple):
    """What one model call made of its parts."""

    parts: list[Part]
    images: NDArray[np.uint8]  # [rows and padding, height, width, channels]
    started_at: float
    seconds: float
    gather_seconds: float = 0.0  # before it started: latents were drawn
    is_lone: bool = False  # it had all CPUs

    @property
    def rows(self) -> int:
        """How many the parts have together; there are more images where the batch was padded."""
        return sum(stop - start for _, start, stop in self.parts)


def gather(
    parts: list[Part], latent_dim: int, batch_sizes: Sequence[int] = ()
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Bring the rows of a batch together: latents [rows, latent_dim] and labels [rows].

    Both are padded with zeros up to the next of these sizes, which ascend; without any, not.
    """
    latents = _gather_latents(parts, latent_dim)
    pieces = [entry.labels[start:stop] for entry, start, stop in parts if entry.labels is not None]
    labels = np.concatenate(pieces) if pieces else None
    padding = next((size - len(latents) for size in batch_sizes if size >= len(latents)), 0)
    if padding:
        latents = np.concatenate([latents, np.zeros((padding, latent_dim), np.float32)])
        if labels is not None:
            labels = np.concatenate([labels, np.zeros(padding, np.int64)])
    return latents, labels


def _gather_latents(parts: list[Part], latent_dim: int) -> NDArray[np.float32]:
    """The latents of a batch, [rows, latent_dim].

    Seeds are drawn all at once, for with few of them most of the time goes into NumPy's calls.
    """
    seeded = [part for part in parts if part.entry.rows.dtype == np.uint64]
    drawn = _draw(seeded, latent_dim) if seeded else np.empty((0, latent_dim), np.float32)
    if len(seeded) == len(parts):
        return drawn
    pieces: list[NDArray[np.float32]] = []
    offset = 0
    for entry, start, stop in parts:
        if entry.rows.dtype == np.uint64:
            pieces.append(drawn[offset : offset + stop - start])
            offset += stop - start
        else:
            pieces.append(entry.rows[start:stop].astype(np.float32, copy=False))
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def _draw(parts: list[Part], latent_dim: int) -> NDArray[np.float32]:
    """The latents of seeds, [rows, latent_dim], each multiplied by the truncation of its entry."""
    seeds = [entry.rows[start:stop] for entry, start, stop in parts]
    latents = draw_latents(np.concatenate(seeds), latent_dim)
    if any(part.entry.truncation != 1.0 for part in parts):
        truncations = np.array([part.entry.truncation for part in parts], np.float32)
        sizes = [part.stop - part.start for part in parts]
        latents *= np.repeat(truncations, sizes)[:, None]
    return latents
