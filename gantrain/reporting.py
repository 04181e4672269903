"""What a run tells while it trains: metrics.jsonl, the status line, sample grids."""

import io
import json
import logging
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gantrain.checkpoint import atomic_write, writing

logger = logging.getLogger(__name__)

_FRAME_MILLISECONDS = 60
_GRID_PIXELS = 512  # smaller pictures are enlarged


def truncate_metrics(path: Path, images_seen: int) -> None:
    """Drop rows after a position, and a torn last one, so that a resumed run repeats none."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["images_seen"] <= images_seen:
            kept.append(line + "\n")
    with atomic_write(path) as file:
        file.write("".join(kept).encode())


def append_metrics(path: Path, row: dict[str, float]) -> None:
    """Add one JSON object as a line.

    Raises:
        RunError: it could not be written.
    """
    with writing(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")


class RunningMeans:
    """Means of named scalars since last taken; nothing leaves the device before that."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Count one step's values."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start over."""
        means = {name: total.item() / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class Stopwatch:
    """Seconds spent training however often a run was resumed, and the rate since the last row."""

    def __init__(self, images_seen: int, seconds_before: float) -> None:
        self._start = time.monotonic() - seconds_before
        self._last_images, self._last_seconds = images_seen, seconds_before

    def seconds(self) -> float:
        """Seconds spent so far."""
        return time.monotonic() - self._start

    def row(self, images_seen: int, means: dict[str, float]) -> dict[str, float]:
        """A row of metrics for this moment."""
        seconds = self.seconds()
        rate = (images_seen - self._last_images) / max(seconds - self._last_seconds, 1e-9)
        self._last_images, self._last_seconds = images_seen, seconds
        return {
            "images_seen": images_seen,
            "seconds": round(seconds, 3),
            "images_per_second": round(rate, 2),
            **means,
        }


class StatusLine:
    """A progress bar on a terminal, a log line at each update elsewhere."""

    def __init__(self, images_seen: int, total_images: int) -> None:
        self._total = total_images
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_images,
            initial=images_seen,
            unit="img",
            unit_scale=True,
            disable=not self._terminal,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, images: int) -> None:
        """Count images of a step."""
        self._bar.update(images)

    def report(self, row: dict[str, float]) -> None:
        """Show the newest row of metrics."""
        losses = f"D {row['discriminator_loss']:.3f} G {row['generator_loss']:.3f}"
        if self._terminal:
            self._bar.set_postfix_str(losses)
            return
        rate = row["images_per_second"]
        left = max(self._total - row["images_seen"], 0) / max(rate, 0.01)  # 0 after a long halt
        logger.info(
            "%d/%d images, %.0f images/s, %s left, %s, R1 %.3f R2 %.3f",
            row["images_seen"],
            self._total,
            rate,
            tqdm.format_interval(left),
            losses,
            row["r1_penalty"],
            row["r2_penalty"],
        )


def image_grid(images: NDArray[np.uint8]) -> Image.Image:
    """Tile [n, height, width, channels] in reading order on a near-square white picture.

    Every pixel is repeated a whole number of times, so that small images stay sharp; a margin of a
    sixteenth of an image parts the tiles. `ganserve generate` lays its pictures out alike.
    """
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    margin = max(1, min(height, width) // 16)
    shape = (rows * (height + margin) + margin, columns * (width + margin) + margin, channels)
    canvas = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = margin + row * (height + margin), margin + column * (width + margin)
        canvas[top : top + height, left : left + width] = image
    scale = math.ceil(_GRID_PIXELS / max(shape[:2]))
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def save_grid(path: Path, images: NDArray[np.uint8]) -> None:
    """Write a grid of [n, height, width, channels] as PNG, whole or not at all."""
    with atomic_write(path) as file:
        image_grid(images).save(file, format="PNG", optimize=True)


def save_animation(path: Path, images: NDArray[np.uint8]) -> None:
    """Write [n, height, width, channels] as an endless GIF, whole or not at all."""
    frames = [image_grid(image[None]) for image in images]
    content = io.BytesIO()  # writing to a file, Pillow would not tell why a disk refuses
    frames[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=_FRAME_MILLISECONDS,
        loop=0,
    )
    with atomic_write(path) as file:
        file.write(content.getbuffer())
