"""What an evaluation found: as JSON, as text, and as the numbers that an artifact carries."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from gantrain.checkpoint import is_checkpoint
from gantrain.durable_files import atomic_write
from gantrain.errors import RunError, first_line

FILE: Final = "evaluation.json"  # in a run's folder
_CLASSES_SHOWN: Final = 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measurement(_Strict):
    """One number, and what it would be for a perfect generator."""

    mean: FiniteFloat  # over the repeats
    spread: FiniteFloat | None = None  # standard deviation over them; None of one
    floor: FiniteFloat | None = None  # the same of real examples; a ceiling where more is better


class GeneratorFacts(_Strict):
    """What was measured."""

    source: str  # the run's folder, its checkpoint's or the artifact's file
    images_seen: int
    weights: str


class ReferenceFacts(_Strict):
    """What it was held against."""

    source: str
    fingerprint: str
    trained_on: bool  # the generator has learned from these data
    reals: str  # which of them, in words
    reference: Mapping[str, int] = {}  # split -> how many examples of it; 0.11.0 did not say


class FeatureFacts(_Strict):
    """What distances were taken on."""

    kind: str
    accuracy: FiniteFloat | None = None  # of the classifier, on held-out images
    held_out: int | None = None


class ClassFacts(_Strict):
    """What the classifier says of one class."""

    share: FiniteFloat  # of the samples
    share_in_data: FiniteFloat  # of real ones
    recognised: FiniteFloat | None = None  # share of the samples asked for that are of this class
    recognised_of_data: FiniteFloat | None = None  # the same of held-out images


class Evaluation(_Strict):
    """The whole of an evaluation."""

    generator: GeneratorFacts
    data: ReferenceFacts
    features: FeatureFacts
    samples: int  # of each repeat
    repeats: int
    measurements: Mapping[str, Measurement]
    classes: Mapping[str, ClassFacts] = {}
    notes: tuple[str, ...] = ()  # what a reader must know

    def to_json(self) -> str:
        """The evaluation as JSON, what is not known left out."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2)

    def numbers(self) -> dict[str, float]:
        """Name to number, as the metadata of an artifact carry them."""
        values: dict[str, float] = {}
        for name, measurement in self.measurements.items():
            for suffix, value in (
                ("", measurement.mean),
                ("_spread", measurement.spread),
                ("_floor", measurement.floor),
            ):
                if value is not None:
                    values[f"{name}{suffix}"] = value
        if self.features.accuracy is not None:
            values["classifier_accuracy"] = self.features.accuracy
        for split, count in self.data.reference.items():
            values[f"reference_{split}_images"] = count
        return {**values, "samples": self.samples, "repeats": self.repeats}

    def rows(self, *, floors: bool = True) -> dict[str, str]:
        """Each measurement by its name in words, with spread and, unless left out, floor."""
        return {
            name.replace("_", " "): show(value, floor=floors)
            for name, value in self.measurements.items()
        }

    def headings(self) -> dict[str, str]:
        """What was measured, on what, with how many samples."""
        facts = self.features
        features = facts.kind
        if facts.accuracy is not None:
            right = f"{100 * facts.accuracy:.2f} % right"
            features += f"; {right} on {facts.held_out:,} held-out images"
        times = f"{self.repeats} x " if self.repeats > 1 else ""
        return {
            "generator": f"{self.generator.source}, {self.generator.images_seen:,} images seen",
            "samples": f"{times}{self.samples:,}",
            "data": f"{self.data.source}: {self.data.reals}",
            "features": features,
        }

    def describe(self) -> str:
        """The evaluation as lines for a person."""
        lines = [f"{name:<10} {text}" for name, text in self.headings().items()]
        width = max(len(name) for name in self.rows())
        lines += ["", *(f"{name:<{width}}  {text}" for name, text in self.rows().items())]
        if self.classes:
            lines += ["", *self._class_table()]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    def _class_table(self) -> list[str]:
        asked = any(facts.recognised is not None for facts in self.classes.values())
        width = max(5, *(len(name) for name in self.classes))
        heading = f"{'class':<{width}}  {'samples':>8}  {'data':>8}"
        lines = [heading + (f"  {'as asked':>8}  {'(real)':>8}" if asked else "")]
        for name, facts in [*self.classes.items()][:_CLASSES_SHOWN]:
            values: list[float | None] = [facts.share, facts.share_in_data]
            values += [facts.recognised, facts.recognised_of_data] if asked else []
            shown = ["-".rjust(8) if v is None else f"{100 * v:6.1f} %" for v in values]
            lines.append("  ".join([f"{name:<{width}}", *shown]))
        left_out = len(self.classes) - _CLASSES_SHOWN
        return [*lines, *([f"and {left_out} more classes, see --json"] if left_out > 0 else [])]


def show(value: Measurement, *, floor: bool = True) -> str:
    """Write `12.3 ± 0.2 (real 1.1)`, or without what is in brackets."""
    spread = f" ± {value.spread:.2g}" if value.spread is not None else ""
    real = f" (real {value.floor:.4g})" if floor and value.floor is not None else ""
    return f"{value.mean:.4g}{spread}{real}"


def evaluation_file(path: Path) -> Path:
    """Where the newest evaluation of a run, or that of one of its checkpoints, is kept."""
    return path.with_suffix(".json") if is_checkpoint(path) else path / FILE


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Keep an evaluation of a run or a checkpoint in place of the one before; raises RunError."""
    with atomic_write(evaluation_file(path)) as file:
        file.write(evaluation.to_json().encode() + b"\n")


def read_evaluation(path: Path) -> Evaluation | None:
    """The evaluation that is kept of a run or a checkpoint, None where there is none.

    Raises:
        RunError: the file is there and cannot be used.
    """
    path = evaluation_file(path)
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise RunError(
            f"{path} cannot be used: expected what `gantrain evaluate` writes "
            f"({first_line(error)}); remove it or evaluate again"
        ) from error
