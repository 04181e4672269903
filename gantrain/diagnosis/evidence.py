"""Hides how rows of metrics are looked at: the recent ones, and what samples showed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gantrain.config import TrainConfig
from gantrain.diagnosis import advice

Row = Mapping[str, Any]

EARLY_STEPS: Final = 250
_RECENT: Final = 0.8  # rows from this share of the position on are judged
_MATCHING: Final = 0.01  # energy distance above that of reals, up to which samples pass for them
_APART: Final = 0.03  # energy distance above that of reals, from which on they clearly do not
_FEW_FAR: Final = 0.5  # share of points far from all training examples that still pass for them
_IMPROVING: Final = 0.8  # energy distance over that at half of the run so far


@dataclass(frozen=True)
class Evidence:
    """All rows of a run so far, at least one, and its settings."""

    rows: Sequence[Row]
    config: TrainConfig

    @property
    def recent(self) -> list[Row]:
        """Rows of the last fifth of the run so far."""
        since = _RECENT * self.rows[-1]["images_seen"]
        return [row for row in self.rows if row["images_seen"] >= since]

    @property
    def measured(self) -> list[Row]:
        """Rows with samples measured, once the run was out of its earliest phase."""
        since = min(self.rows[-1]["images_seen"] / 10, EARLY_STEPS * self.config.images_per_step)
        return [
            row for row in self.rows if "energy_distance" in row and row["images_seen"] >= since
        ]

    @property
    def newest(self) -> Row:
        """The newest measurement of samples; empty before the first."""
        return self.measured[-1] if self.measured else {}

    def median(self, name: str, rows: Sequence[Row] | None = None) -> float | None:
        """Median of a value over rows, the recent ones unless others are given."""
        values = [row[name] for row in (self.recent if rows is None else rows) if name in row]
        return float(np.median(values)) if values else None

    @property
    def steadying(self) -> advice.Advice:
        """What steadies the run, which may have gone back already."""
        return advice.steady(self.config, self.rows[-1].get("rollbacks", 0))

    @property
    def matching(self) -> bool:
        """Whether samples pass for the data, by their features and by the classes they cover."""
        newest = self.newest
        if not newest or self._is_apart(_MATCHING):
            return False
        covered = bool(newest["class_coverage"] >= 0.9 * newest["class_coverage_data"])
        # Images are all far from one another; only of points this says much.
        far = 0.0 if "dead_pixels" in newest else float(newest.get("far_from_training", 0.0))
        return covered and far <= _FEW_FAR

    @property
    def apart(self) -> bool:
        """Whether the newest samples are clearly farther from the data than reals."""
        return self._is_apart(_APART)

    def _is_apart(self, margin: float) -> bool:
        newest = self.newest
        return bool(newest and newest["energy_distance"] > newest["energy_distance_data"] + margin)

    @property
    def improving(self) -> bool:
        """Whether samples have come nearer to the data in the last half of the run so far."""
        half = self.rows[-1]["images_seen"] / 2
        before = [row["energy_distance"] for row in self.measured if row["images_seen"] <= half]
        return bool(before and self.newest["energy_distance"] < _IMPROVING * before[-1])
