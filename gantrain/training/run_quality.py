"""Hides how a run's quality is measured as it trains, and which checkpoint is kept as the best."""

import logging
from pathlib import Path

from gantrain.config import TrainConfig
from gantrain.data.datasets import Dataset
from gantrain.data.point_sets import PointSet
from gantrain.durable_files import atomic_link
from gantrain.evaluation.evaluate import choose_space, evaluate_sampler
from gantrain.evaluation.examples import RealData, choose_reals, load_held_out
from gantrain.evaluation.results import Evaluation, read_evaluation, show, write_evaluation
from gantrain.evaluation.yardstick import Yardstick
from gantrain.run_directory import RunDirectory
from gantrain.sampling import open_sampler

# What checkpoints are compared by, the first that was measured: smaller is better.
_COMPARED = ("frechet_distance", "reverse_kl", "curve_distance")
# Samples nearer to training images than so, where other real images are at 1, are remembered.
_REMEMBERED = 0.9

logger = logging.getLogger(__name__)


class RunQuality:
    """Measures checkpoints of one run against its data."""

    def __init__(self, run: RunDirectory, config: TrainConfig, data: Dataset | PointSet) -> None:
        """Look at the data; of labelled ones a classifier is trained, if none is kept.

        Raises:
            DatasetError: the test split cannot be used.
            RunError: there are too few examples.
        """
        self._best = run.best_checkpoint
        held_out = None
        if isinstance(data, Dataset):
            held_out = load_held_out(config.data, data, config.skip_bad_files)
        real = RealData(config.data, data, held_out, trained_on=True)
        self._yardstick = Yardstick(real, choose_reals(real, None), choose_space(real, None))

    def catch_up(self, checkpoint: Path) -> None:
        """Measure a checkpoint that was due, unless that was done before the run was cut short.

        Raises:
            RunError: as `evaluate`; or its evaluation cannot be read.
        """
        done = read_evaluation(checkpoint)
        if done is None or done.generator.weights != open_sampler(checkpoint).weights:
            self.evaluate(checkpoint)

    def evaluate(self, checkpoint: Path) -> None:
        """Measure a checkpoint and keep the result beside it; if none was better, both once more.

        The result beside the checkpoint is written last: a run that is killed before that measures
        it once more when it resumes, so it does not matter which files of the best were written.

        Raises:
            RunError: the samples are no numbers, or the folder takes no files.
        """
        found = evaluate_sampler(
            open_sampler(checkpoint), str(checkpoint), self._yardstick, repeats=1
        )
        before = read_evaluation(self._best) if self._best.exists() else None
        if before is None or not _are_alike(found, before) or _rank(found) < _rank(before):
            atomic_link(checkpoint, self._best)
            write_evaluation(found, self._best)
            standing = f"the best so far, kept as {self._best.name}"
        else:
            standing = f"the best was {_say(before)} after {before.generator.images_seen} images"
        write_evaluation(found, checkpoint)
        logger.info("%d images: %s; %s", found.generator.images_seen, _say(found), standing)


def _rank(evaluation: Evaluation) -> tuple[bool, float]:
    """Smaller is better; remembered images, which are near to the data, are never good."""
    return _is_remembered(evaluation), evaluation.measurements[_compared_by(evaluation)].mean


def _is_remembered(evaluation: Evaluation) -> bool:
    distance = evaluation.measurements.get("training_distance")
    return distance is not None and distance.mean < _REMEMBERED


def _compared_by(evaluation: Evaluation) -> str:
    return next(name for name in _COMPARED if name in evaluation.measurements)


def _are_alike(one: Evaluation, other: Evaluation) -> bool:
    """Whether both were measured in the same way, so that one can be the better."""
    ways = [
        (each.data.fingerprint, each.data.reals, each.samples, each.features)
        for each in (one, other)
    ]
    return ways[0] == ways[1]


def _say(evaluation: Evaluation) -> str:
    name = _compared_by(evaluation)
    copies = ", too near to training images" if _is_remembered(evaluation) else ""
    return f"{name.replace('_', ' ')} {show(evaluation.measurements[name])}{copies}"
