"""What a run writes down as it goes: metrics.jsonl, TensorBoard's events, the status line."""

import io
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image
from tqdm import tqdm

from gantrain.durable_files import atomic_write, writing

logger = logging.getLogger(__name__)

_ACCURACIES = ("discriminator_accuracy_real", "discriminator_accuracy_fake")
_PENALTY_NAMES = {"r1_penalty": "R1", "r2_penalty": "R2", "gradient_penalty": "gradient penalty"}
_SMOOTHED_ROWS = 20
_PATIENCE = 10.0  # seconds until a first line, should the first row come later
_SESSION_START = 1  # tensorboard's SessionLog.START


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows written so far, oldest first; other lines are left out, a missing file has none."""
    if not path.exists():
        return []
    values = []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(json.JSONDecodeError):  # the last one may be torn
            values.append(json.loads(line))
    return [value for value in values if isinstance(value, dict) and "images_seen" in value]


def truncate_metrics(path: Path, images_seen: int) -> None:
    """Drop rows after a position, and a torn last one, so that a resumed run repeats none.

    Raises:
        RunError: it could not be written.
    """
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["images_seen"] <= images_seen]
    with atomic_write(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in kept).encode())


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object as a line.

    Raises:
        RunError: it could not be written.
    """
    with writing(path), path.open("a") as file:
        file.write(json.dumps(dict(row)) + "\n")


class Stopwatch:
    """Seconds spent training however often a run was resumed, and the rate since the last row."""

    def __init__(self, images_seen: int, seconds_before: float) -> None:
        self._start = time.monotonic() - seconds_before
        self._last_images, self._last_seconds = images_seen, seconds_before

    def go_back(self, images_seen: int) -> None:
        """Count from an earlier position; the seconds spent stay spent."""
        self._last_images, self._last_seconds = images_seen, self.seconds()

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
    """A progress bar on a terminal, a log line at each row elsewhere; nothing if not `shown`.

    Of a long run the first row is far off, so a line of its own tells the rate after some seconds.
    """

    def __init__(
        self,
        images_seen: int,
        total_images: int,
        *,
        shown: bool = True,
        patience_seconds: float = _PATIENCE,
    ) -> None:
        self._total = total_images
        self._images_seen = images_seen
        self._early_at: float | None = time.monotonic() + patience_seconds  # None: not any more
        self._first_step: tuple[int, float] | None = None  # images, when; it warms up
        self._recent: deque[tuple[int, float]] = deque(maxlen=_SMOOTHED_ROWS)  # images, seconds
        self._shown = shown
        self._terminal = shown and sys.stderr.isatty()
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
        """Count images of a step; fewer than none where the run goes back."""
        self._bar.update(images)
        self._images_seen += images
        if self._shown and not self._terminal and self._early_at is not None:
            self._tell_early(time.monotonic(), self._early_at)

    def _tell_early(self, now: float, due: float) -> None:
        if self._first_step is None or self._images_seen <= self._first_step[0]:
            self._first_step = self._images_seen, now
        elif now >= due:
            images, started = self._first_step
            rate = (self._images_seen - images) / max(now - started, 1e-9)
            logger.info("%s", self._progress(self._images_seen, rate))
            self._early_at = None

    def report(self, row: Mapping[str, Any]) -> None:
        """Show the newest row of metrics."""
        if not self._shown:
            return
        summary = summarize_row(row)
        if self._terminal:
            self._bar.set_postfix_str(summary)
            return
        self._early_at = None
        penalties = "".join(
            f", {name} {row[key]:.3f}" for key, name in _PENALTY_NAMES.items() if key in row
        )
        progress = self._progress(row["images_seen"], self._rate(row))
        logger.info("%s, %s%s", progress, summary, penalties)

    def _progress(self, images_seen: int, rate: float) -> str:
        left = max(self._total - images_seen, 0) / max(rate, 0.01)
        told = f"{images_seen}/{self._total} images, {rate:.0f} images/s"
        return f"{told}, {tqdm.format_interval(left)} left"

    def _rate(self, row: Mapping[str, Any]) -> float:
        """Images a second over the last rows; single ones hold pictures to draw, or none."""
        now = row["images_seen"], row["seconds"]
        if self._recent and now[0] < self._recent[-1][0]:  # rolled back
            self._recent.clear()
        images, seconds = self._recent[0] if self._recent else now
        self._recent.append(now)
        if now == (images, seconds):
            return float(row["images_per_second"])
        return float((now[0] - images) / max(now[1] - seconds, 1e-9))


def summarize_row(row: Mapping[str, Any]) -> str:
    """Losses and the discriminator's accuracy, as far as a row of metrics has them."""
    parts = []
    if "discriminator_loss" in row:
        parts.append(f"D {row['discriminator_loss']:.3f}")
    accuracies = [row[key] for key in _ACCURACIES if key in row]
    if accuracies:
        parts.append(f"acc {sum(accuracies) / len(accuracies):.0%}".replace("%", " %"))
    if "generator_loss" in row:
        parts.append(f"G {row['generator_loss']:.3f}")
    return " ".join(parts)


class EventFile:
    """Rows and pictures of a run for TensorBoard, beside metrics.jsonl.

    Every event is appended whole and at once. TensorBoard's own writers hand events to a thread,
    which on a full disk dies with a traceback of its own while the training goes on.
    """

    def __init__(self, folder: Path, images_seen: int) -> None:
        """Start a new file at a position; what TensorBoard has seen beyond it is not shown twice.

        Raises:
            RunError: it could not be written.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time_ns():020d}"  # read in this order
        self._append(file_version="brain.Event:2")
        self._append(images_seen + 1, session_log={"status": _SESSION_START})

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Write every scalar of a row of metrics at its `images_seen`.

        Raises:
            RunError: it could not be written.
        """
        values = [
            {"tag": name, "simple_value": value}
            for name, value in row.items()
            if isinstance(value, (int, float)) and name != "images_seen"
        ]
        self._append(row["images_seen"], summary={"value": values})

    def add_samples(self, images_seen: int, png: bytes) -> None:
        """Write a picture of samples at a position, as it was compressed for its file.

        Raises:
            RunError: it could not be written.
        """
        with Image.open(io.BytesIO(png)) as picture:
            image = {
                "width": picture.width,
                "height": picture.height,
                "colorspace": len(picture.getbands()),
                "encoded_image_string": png,
            }
        self._append(images_seen, summary={"value": [{"tag": "samples", "image": image}]})

    def _append(self, images_seen: int = 0, **content: Any) -> None:  # noqa: ANN401
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = Event(wall_time=time.time(), step=images_seen, **content)
        with writing(self._path), self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())
