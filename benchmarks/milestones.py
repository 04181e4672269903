"""Hides how a run is measured on its way: trained on from one number of images to the next."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gantrain.evaluation.evaluate import choose_space, evaluate_sampler
from gantrain.evaluation.examples import choose_reals, load_real_data
from gantrain.evaluation.results import Evaluation
from gantrain.evaluation.yardstick import Yardstick
from gantrain.presets import resolve
from gantrain.sampling import open_sampler
from gantrain.training.loop import train

STABLE_RATIO = 1.05  # of the distance to that of the best, after `LATER` times the images
LATER = 4
_INTERVALS = ("log_every", "sample_every", "diagnose_every", "checkpoint_every")


def train_and_measure(
    settings: dict[str, Any],
    run_dir: Path,
    images: Sequence[int],  # ascending
    measure: Callable[[Path], Evaluation],
    measured: Sequence[str],
) -> list[Evaluation]:
    """Train to each number of images in turn and measure the run's newest checkpoint there.

    What is written down on the way does not depend on where the run ends. A measurement that
    stands beside the run's folder is not made again. Each row is told on the standard error.
    """
    found = []
    for count in images:
        path = run_dir.parent / f"{run_dir.name}-{count}.json"
        if not path.exists():
            intervals = dict.fromkeys(_INTERVALS, images[0])
            ends = {"total_images": count, "run_dir": run_dir, "tensorboard": False}
            train(resolve({**settings, **intervals, **ends}))
            path.write_text(measure(run_dir).to_json())
        found.append(Evaluation.model_validate_json(path.read_bytes()))
        print(row(found[-1], measured), file=sys.stderr, flush=True)
    return found


class Judge:
    """Measures runs on one source of data, whose real examples are looked at when first needed."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._yardstick: Yardstick | None = None

    def measure(self, run_dir: Path) -> Evaluation:
        """Measure a run's newest checkpoint, with one draw of samples."""
        sampler = open_sampler(run_dir)
        if self._yardstick is None:
            data = load_real_data(self._source, sampler)
            self._yardstick = Yardstick(data, choose_reals(data, None), choose_space(data, None))
        return evaluate_sampler(sampler, run_dir.name, self._yardstick, 1)


def distance(evaluation: Evaluation) -> float:
    """The Frechet distance of an evaluation."""
    return evaluation.measurements["frechet_distance"].mean


def later_over_best(found: Sequence[Evaluation]) -> float | None:
    """The distance after `LATER` times the images of the best over the best's; None: not seen."""
    best = min(found, key=distance)
    enough = LATER * best.generator.images_seen
    later = (one for one in found if one.generator.images_seen >= enough)
    return next((distance(one) / distance(best) for one in later), None)


def table_head(measured: Sequence[str]) -> list[str]:
    """The head of a table of measurements."""
    names = " | ".join(name.replace("_", " ") for name in measured)
    return [f"| run | images seen | {names} |", f"|---|---|{'---|' * len(measured)}"]


def row(evaluation: Evaluation, measured: Sequence[str]) -> str:
    """A measurement as a row of the table."""
    values = " | ".join(format(evaluation.measurements[name].mean, ".4g") for name in measured)
    return f"| {evaluation.generator.source} | {evaluation.generator.images_seen:,} | {values} |"


def floor_row(what: str, evaluation: Evaluation, measured: Sequence[str]) -> str:
    """What as many real images show, as a row of the table."""
    floors = [evaluation.measurements[name].floor for name in measured]
    values = " | ".join("-" if floor is None else format(floor, ".4g") for floor in floors)
    return f"| {what} | - | {values} |"


def parse_images(text: str) -> list[int]:
    """Numbers of images, ascending."""
    return sorted(int(count) for count in text.split(","))
