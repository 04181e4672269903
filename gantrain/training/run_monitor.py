"""What is looked at while a run trains: sample grids, scored sheets, the health of the run."""

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gantrain.checkpoint import TrainState
from gantrain.class_labels import (
    Labels,
    count_classes,
    labels_by_column,
    proportional_labels,
    spread_labels,
)
from gantrain.config import TrainConfig
from gantrain.config_rules import network_kinds
from gantrain.data.datasets import Dataset
from gantrain.data.point_sets import PointSet
from gantrain.diagnosis.diagnostics import diagnose
from gantrain.evaluation.sample_statistics import Reference
from gantrain.latents import draw_latents
from gantrain.losses import create_loss
from gantrain.networks import run_network
from gantrain.pictures import save_grid, save_scatter, save_sheet
from gantrain.run_directory import RunDirectory
from gantrain.run_log import EventFile, Stopwatch, append_metrics, read_metrics, truncate_metrics
from gantrain.sampling import Samples, finished_generator, generate
from gantrain.training.batches import as_input

logger = logging.getLogger(__name__)

_GRID_SIDE = 8  # images
_MAX_COLUMNS = 16  # of a grid with a column for each class
_SHEET_IMAGES = 8
_DIAGNOSED_SAMPLES = 256
_SCATTERED_POINTS = 2500
_TIME_SHARE = 0.02  # of a run, at most, that the diagnosis takes


class RunMonitor:
    """Keeps the records of one run: rows of metrics, pictures, the diagnosis."""

    def __init__(
        self, run: RunDirectory, config: TrainConfig, data: Dataset | PointSet, images_seen: int
    ) -> None:
        self._run, self._config, self._data = run, config, data
        self._labels = data.labels if config.conditional else None
        self._class_counts = (
            () if self._labels is None else count_classes(self._labels, data.class_names)
        )
        self._reference: Reference | None = None
        self._rolled_back: list[str] = []  # why, each time since the last row
        self._rows = self._drop_later(images_seen)
        looks = [row for row in self._rows if "diagnosis_seconds" in row]
        # Spent on diagnosis, however often the run was resumed, as its seconds are counted.
        self._seconds: float = looks[-1]["diagnosis_seconds"] if looks else 0.0
        self._state = next(
            (row["diagnosis"] for row in reversed(self._rows) if "diagnosis" in row), ""
        )
        self._events = self._open_events(images_seen)
        self._newest: tuple[int, torch.nn.Module] | None = None

    def roll_back(self, images_seen: int, why: str) -> None:
        """Forget what came after a position, save why: the next row tells it."""
        self._rolled_back.append(why)
        self._rows = self._drop_later(images_seen)
        self._events = self._open_events(images_seen)
        self._newest = None  # at its position the run will have other weights

    def _open_events(self, images_seen: int) -> EventFile | None:
        return EventFile(self._run.tensorboard, images_seen) if self._config.tensorboard else None

    def _drop_later(self, images_seen: int) -> list[dict[str, Any]]:
        """Remove rows and pictures of weights that are gone, those after a position: the rest."""
        for folder in (self._run.samples, self._run.sheets):
            for path in folder.glob("*.png"):
                if path.stem.isdigit() and int(path.stem) > images_seen:
                    path.unlink()
        truncate_metrics(self._run.metrics_file, images_seen)
        return read_metrics(self._run.metrics_file)

    def record(self, row: dict[str, Any]) -> None:
        """Write a row of metrics.

        Raises:
            RunError: it could not be written.
        """
        if self._rolled_back:
            row = {**row, "rolled_back": "; ".join(self._rolled_back)}
            self._rolled_back = []
        append_metrics(self._run.metrics_file, row)
        self._rows.append(row)
        if self._events:
            self._events.add_row(row)

    def record_divergence(self, row: dict[str, Any], what: str) -> None:
        """Write that the run has diverged by this row, whose numbers are not shown beside others.

        It comes after the newest checkpoint, so a resume or a rollback drops it.

        Raises:
            RunError: it could not be written.
        """
        told = {name: row[name] for name in ("images_seen", "seconds", "lr", "rollbacks")}
        told["diverged"] = what
        told["diagnosis"] = diagnose([*self._rows, told], self._config).state
        append_metrics(self._run.metrics_file, told)

    def save_samples(self, state: TrainState) -> None:
        """Draw the first seeds: a grid and a scored sheet, or a scatter plot of points.

        The grid of a conditional run shows the classes from left to right; the fakes of its sheet
        are of the classes of the reals below them.
        """
        name = f"{state.images_seen:012d}.png"
        generator = self._generator(state)
        if isinstance(self._data, PointSet):
            points = self._draw(generator, _SCATTERED_POINTS)
            save_scatter(self._run.samples / name, points, self._data.points[:_SCATTERED_POINTS])
        else:
            count, labels = lay_out_grid(len(self._class_counts))
            fakes = self._draw(generator, count, labels)
            save_grid(self._run.samples / name, fakes)
            if self._labels is not None:
                labels = self._labels[:_SHEET_IMAGES]
                fakes = self._draw(generator, len(labels), labels)
            self._save_sheet(state, fakes[:_SHEET_IMAGES], name)
        if self._events:
            self._events.add_samples(state.images_seen, (self._run.samples / name).read_bytes())

    def _generator(self, state: TrainState) -> torch.nn.Module:
        """The finished generator of this position, made once."""
        if self._newest is None or self._newest[0] != state.images_seen:
            generator = finished_generator(state.generator_ema, self._config, self._class_counts)
            self._newest = (state.images_seen, generator)
        return self._newest[1]

    def _draw(
        self, generator: torch.nn.Module, count: int, labels: Labels | None = None
    ) -> Samples:
        seeds = np.arange(count, dtype=np.uint64)
        return generate(generator, draw_latents(seeds, self._config.latent_dim), labels)

    def _save_sheet(self, state: TrainState, fakes: NDArray[np.uint8], name: str) -> None:
        """Fakes above reals, each with the discriminator's score.

        That is the sigmoid of its logit, or with least squares the logit itself. Of a loss that
        only compares, whose logits may lie anywhere, it is that of the logit less the reals' mean:
        the relativistic average discriminator of Jolicoeur-Martineau, "The relativistic
        discriminator", 2018.
        """
        assert isinstance(self._data, Dataset)
        reals = self._data.images[:_SHEET_IMAGES].transpose(0, 2, 3, 1)
        fake_logits, real_logits = (self._judge(state, images) for images in (fakes, reals))
        loss = create_loss(self._config.loss)
        middle = real_logits.mean() if loss.threshold is None else torch.zeros(())
        fake_scores, real_scores = (
            loss.score(logits - middle).tolist() for logits in (fake_logits, real_logits)
        )
        save_sheet(self._run.sheets / name, fakes, fake_scores, reals, real_scores)

    def _judge(self, state: TrainState, images: NDArray[np.uint8]) -> Tensor:
        """The discriminator's logits [n] for images [n, height, width, channels], on the CPU.

        If conditional, they are of the classes of the first n reals.
        """
        device = next(state.discriminator.parameters()).device
        examples = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
        lowest = network_kinds(self._config)[0].lowest
        batch = as_input(examples, lowest)
        labels = None
        if self._labels is not None:
            labels = torch.from_numpy(self._labels[: len(images)]).to(device)
        state.discriminator.eval()
        with torch.no_grad():
            logits = run_network(state.discriminator, batch, labels).float().cpu()
        state.discriminator.train()
        return logits

    def diagnose(
        self, state: TrainState, row: dict[str, float], clock: Stopwatch, *, urgent: bool
    ) -> dict[str, Any]:
        """Measure samples and judge the run by all rows; what to add to this one.

        It is put off where the diagnosis has had its share of the time, unless it is urgent.
        """
        started = clock.seconds()
        if self._seconds > _TIME_SHARE * started and not urgent:
            return {}
        if self._reference is None:
            self._reference = self._create_reference()
        generator = self._generator(state)
        labels = None
        if self._class_counts:  # as often as the data have them, or the look would be skewed
            labels = proportional_labels(self._class_counts, _DIAGNOSED_SAMPLES)
        samples = self._draw(generator, _DIAGNOSED_SAMPLES, labels)
        if isinstance(self._data, Dataset):
            samples = samples.transpose(0, 3, 1, 2)
        measured = self._reference.measure(samples)
        diagnosis = diagnose([*self._rows, {**row, **measured}], self._config)
        if diagnosis.state != self._state:
            self._state = diagnosis.state
            first = diagnosis.findings[0] if diagnosis.findings else None
            advice = f" ({first.evidence} {first.advice[0]})" if first and first.advice else ""
            logger.info("%d images: %s%s", state.images_seen, diagnosis.state, advice)
        self._seconds += clock.seconds() - started
        return {**measured, "diagnosis": diagnosis.state, "diagnosis_seconds": self._seconds}

    def _create_reference(self) -> Reference:
        data, mirrored = self._data, self._config.flip == "on"
        return Reference(
            data.examples, data.labels, data.class_names, self._config.seed, mirrored=mirrored
        )


def lay_out_grid(classes: int) -> tuple[int, Labels | None]:
    """How many images a grid has, and their labels where there are classes: a column for each.

    Of few classes each has several columns; of very many only some are shown, in order.
    """
    if not classes:
        return _GRID_SIDE**2, None
    if classes > _MAX_COLUMNS:
        return _GRID_SIDE**2, spread_labels(classes, _GRID_SIDE**2)
    side = max(_GRID_SIDE, classes)
    return side**2, labels_by_column(classes, side)
