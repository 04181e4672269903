"""Hides what waits in a queue and what a model call takes of it: entries, their rows, batches."""

import asyncio
import time
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

    What is queued belongs to whoever holds the batcher's lock, what is done to the event loop.
    """

    __slots__ = (
        "admitted_at",
        "answer",
        "compute_seconds",
        "deadline",
        "done",
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
        rows: NDArray[np.float32] | NDArray[np.uint64],
        labels: NDArray[np.int64] | None,
        truncation: float,
        deadline: float,
        answer: asyncio.Future[Generated],
    ) -> None:
        self.rows = rows  # latents [n, latent_dim] or seeds [n]
        self.labels = labels  # [n]
        self.truncation = truncation  # of the latents of seeds
        self.deadline = deadline  # on time.monotonic
        self.answer = answer
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
    images: NDArray[np.uint8]  # [rows, height, width, channels]
    started_at: float
    seconds: float


def gather(
    parts: list[Part], latent_dim: int
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Bring the rows of a batch together: latents [rows, latent_dim] and labels [rows].

    Seeds are drawn all at once, for with few of them most of the time goes into NumPy's calls.
    """
    seeded = [part for part in parts if part.entry.rows.dtype == np.uint64]
    drawn = _draw(seeded, latent_dim) if seeded else np.empty((0, latent_dim), np.float32)
    latents = drawn
    if len(seeded) < len(parts):
        pieces: list[NDArray[np.float32]] = []
        offset = 0
        for entry, start, stop in parts:
            if entry.rows.dtype == np.uint64:
                pieces.append(drawn[offset : offset + stop - start])
                offset += stop - start
            else:
                pieces.append(entry.rows[start:stop].astype(np.float32, copy=False))
        latents = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
    labels = [entry.labels[start:stop] for entry, start, stop in parts if entry.labels is not None]
    return latents, np.concatenate(labels) if labels else None


def _draw(parts: list[Part], latent_dim: int) -> NDArray[np.float32]:
    """The latents of seeds, each multiplied by the truncation of its entry."""
    seeds = [entry.rows[start:stop] for entry, start, stop in parts]
    latents = draw_latents(np.concatenate(seeds), latent_dim)
    if any(part.entry.truncation != 1.0 for part in parts):
        truncations = np.array([part.entry.truncation for part in parts], np.float32)
        sizes = [part.stop - part.start for part in parts]
        latents *= np.repeat(truncations, sizes)[:, None]
    return latents
