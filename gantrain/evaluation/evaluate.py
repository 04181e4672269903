"""How good a generator is: its samples are measured, and real examples beside them."""

import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from gantrain.class_labels import Labels, count_classes, labels_in_turn, proportional_labels
from gantrain.data.datasets import has_test_split, load_dataset
from gantrain.data.point_sets import PointSet
from gantrain.data.stacked_mnist import CLASS_NAMES, PREFIX, STACKED_KIND
from gantrain.errors import RunError, UsageError
from gantrain.evaluation.classifier_cache import cached_classifier
from gantrain.evaluation.examples import RealData, choose_reals, load_real_data
from gantrain.evaluation.feature_spaces import (
    FeatureSpace,
    classifier_space,
    plane,
    random_space,
    stacked_space,
)
from gantrain.evaluation.inception import Inception
from gantrain.evaluation.reference import ReferenceChoice
from gantrain.evaluation.results import (
    ClassFacts,
    Evaluation,
    FeatureFacts,
    GeneratorFacts,
    Measurement,
    ReferenceFacts,
)
from gantrain.evaluation.sample_statistics import Examples, TrainingExamples, pool_examples
from gantrain.evaluation.yardstick import CHUNK, Yardstick
from gantrain.latents import draw_latents
from gantrain.sampling import Sampler, open_sampler

_FIRST_SEED: Final = 1_000_000  # far from those that people look at
_MEMORY_IMAGES: Final = 60_000  # training images among which they are looked for
_MEMORISED: Final = ("training_distance", "near_training", "copies")
_WEAK_CLASSIFIER: Final = 0.9  # accuracy
_PRAISE: Final = 0.1  # precision above its floor that is no accident

logger = logging.getLogger(__name__)


def evaluate(
    path: Path,
    source: str,
    *,
    samples: int | None = None,
    reference: ReferenceChoice | None = None,
    repeats: int = 3,
    resize: bool = False,
    skip_bad_files: bool = False,
    inception: str | None = None,
    cache: Path | None = None,
) -> Evaluation:
    """Measure the generator of a run or an artifact against data.

    Args:
        path: a run's folder, whose newest good checkpoint is taken, a checkpoint in it, or an
            artifact.
        source: the data, as `load_source` takes them.
        samples: of each repeat; None takes 10,000 images, 26,000 stacks of Stacked-MNIST or 2,500
            points, or as many as the data allow.
        reference: what they are held against, as `choose_reals` takes it.
        repeats: disjoint sets of samples, for mean and spread.
        resize: bring data that it was not trained on to the generator's size and channels.
        skip_bad_files: leave out files that cannot be used, as for what was trained so is done.
        inception: weights of the Inception network, for FID, KID and IS as well.
        cache: where classifiers are kept; None takes `default_cache_folder()`.

    Raises:
        DatasetError: the data cannot be used.
        RunError: the generator cannot be used, or not with these data, or makes what is no number.
        UsageError: more samples are asked for than the data allow, or a split that they have not,
            or FID of points.
    """
    sampler = open_sampler(path)
    if inception is not None and sampler.image_size is None:
        raise UsageError("--inception: the generator makes points, which that network cannot see")
    network = Inception(inception) if inception is not None else None
    data = load_real_data(source, sampler, resize=resize, skip_bad_files=skip_bad_files)
    refuse_other_classes(sampler, data)
    reals = choose_reals(data, samples, reference)
    space = choose_space(data, cache)
    yardstick = Yardstick(data, reals, space, network)
    return evaluate_sampler(sampler, str(path), yardstick, repeats)


def evaluate_sampler(sampler: Sampler, name: str, yardstick: Yardstick, repeats: int) -> Evaluation:
    """Measure a generator with what is made ready; its arguments and errors are `evaluate`'s."""
    data, space, count = yardstick.data, yardstick.space, yardstick.count
    asked = labels_as_in_data(sampler, data, count * repeats)
    measured, labels, kept = [], [], []
    for repeat in range(repeats):
        started = time.monotonic()
        rows = range(repeat * count, (repeat + 1) * count)
        found = yardstick.look_at(sample(sampler, rows, asked), count, "samples")
        drawn = time.monotonic()
        try:
            measured.append(yardstick.measure(found))
        except ValueError as error:
            raise RunError(f"{name}: its samples cannot be measured: {error}") from error
        labels.append(found.labels)
        kept.append(found.first)  # and no features: those of many repeats would fill the memory
        logger.info(
            "repeat %d of %d: %d samples drawn in %.0f s, measured in %.0f s",
            *(repeat + 1, repeats, count, drawn - started, time.monotonic() - drawn),
        )
    measurements = {
        **combine(measured, yardstick.floors),
        **measure_memory(sampler, data, kept),
        **recognised_as_asked(labels, asked, space),
    }
    return Evaluation(
        generator=GeneratorFacts(
            source=name,
            images_seen=int(sampler.settings.get("images_seen", 0)),
            weights=sampler.weights,
        ),
        data=ReferenceFacts(
            source=data.source,
            fingerprint=data.train.fingerprint(),
            trained_on=data.trained_on,
            reals=yardstick.reals.described,
            reference=yardstick.reals.parts,
        ),
        features=FeatureFacts(kind=space.kind, accuracy=space.accuracy, held_out=space.held_out),
        samples=count,
        repeats=repeats,
        measurements=measurements,
        classes=count_by_class(data, labels, asked, space, yardstick.labels_of_data),
        notes=(
            *take_notes(data, space),
            *doubt_numbers(measurements, count, len(yardstick.reals.reference), yardstick.width),
        ),
    )


def choose_space(data: RealData, cache: Path | None) -> FeatureSpace:
    """What to look at the data with: their own classifier where they have classes."""
    train = data.train
    if isinstance(train, PointSet):
        return plane()
    if train.kind == STACKED_KIND:
        folder, size = data.source.removeprefix(PREFIX), train.images.shape[-1]
        digits = load_dataset(folder, image_size=size, channels=1)
        held_out = None
        if has_test_split(folder):
            held_out = load_dataset(folder, image_size=size, channels=1, split="test")
        return stacked_space(cached_classifier(digits, held_out, cache))
    if train.labels is None or len(train.class_names) < 2:
        return random_space(train.images)
    return classifier_space(train, data.held_out, cache)


def refuse_other_classes(sampler: Sampler, data: RealData) -> None:
    """Raise RunError where a conditional generator's classes are not those of labelled data."""
    names = data.train.class_names
    if sampler.class_names and names and sampler.class_names != names:
        raise RunError(
            f"--data {data.source} has the classes {shorten(names)}, the generator makes "
            f"{shorten(sampler.class_names)}; name data with the same classes"
        )


def shorten(names: Sequence[str]) -> str:
    """Write the first few names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def labels_as_in_data(sampler: Sampler, data: RealData, count: int) -> Labels | None:
    """Labels [count] in the proportions of the data's, None for a generator that takes none."""
    if not sampler.class_names:
        return None
    if data.train.labels is None:
        return labels_in_turn(len(sampler.class_names), count)
    return proportional_labels(count_classes(data.train.labels, sampler.class_names), count)


def sample(sampler: Sampler, rows: range, labels: Labels | None) -> Iterator[Examples]:
    """Samples of rows of the evaluation's own seeds, laid out as data are, some at a time."""
    for start in range(rows.start, rows.stop, CHUNK):
        some = range(start, min(start + CHUNK, rows.stop))
        seeds = np.arange(some.start, some.stop, dtype=np.uint64) + np.uint64(_FIRST_SEED)
        latents = draw_latents(seeds, sampler.latent_dim)
        asked = None if labels is None else labels[some.start : some.stop]
        samples = sampler.generate(latents, asked)
        yield samples if samples.ndim == 2 else np.ascontiguousarray(samples.transpose(0, 3, 1, 2))


def combine(
    measured: Sequence[Mapping[str, float]], floors: Mapping[str, float]
) -> dict[str, Measurement]:
    """Mean and spread of each measurement over the repeats, beside the floor.

    Raises:
        RunError: one is no finite number.
    """
    combined = {}
    for name in measured[0]:
        values = [each[name] for each in measured]
        if not all(math.isfinite(value) for value in values):
            raise RunError(f"{name} is not finite: the generator's samples are not, or all alike")
        spread = statistics.stdev(values) if len(values) > 1 else None
        combined[name] = Measurement(
            mean=statistics.fmean(values), spread=spread, floor=floors.get(name)
        )
    return combined


def measure_memory(
    sampler: Sampler, data: RealData, kept: Sequence[Examples]
) -> dict[str, Measurement]:
    """How near samples come to training images, beside real images that are none of them.

    The doctor's measures, of up to 2,000 samples of each repeat among up to 60,000 training images;
    none where the data are not those that the generator has learned from.
    """
    if not data.trained_on or isinstance(data.train, PointSet):
        return {}
    order = np.random.default_rng(0).permutation(len(data.train.images))[:_MEMORY_IMAGES]
    mirrored = sampler.settings.get("flip") == "on"
    training = TrainingExamples(pool_examples(data.train.images, order), mirrored)
    measured = [training.measure(pool_examples(some, np.arange(len(some)))) for some in kept]
    if not measured[0]:
        return {}
    values = [{name: each[name] for name in _MEMORISED} for each in measured]
    floors = {name: measured[0][f"{name}_data"] for name in _MEMORISED}
    return combine(values, floors)


def recognised_as_asked(
    labels: Sequence[Labels | None], asked: Labels | None, space: FeatureSpace
) -> dict[str, Measurement]:
    """Share of a conditional generator's samples that are recognised as the class asked for."""
    if asked is None or space.accuracy is None:
        return {}
    parts = asked.reshape(len(labels), -1)
    shares = [
        {"recognised_as_asked": float((found == part).mean())}
        for found, part in zip(labels, parts, strict=True)
        if found is not None
    ]
    digits = 1 if space.of_class else 3  # of a stack each must be right
    return combine(shares, {"recognised_as_asked": space.accuracy**digits})


def count_by_class(
    data: RealData,
    recognised: Sequence[Labels | None],
    asked: Labels | None,
    space: FeatureSpace,
    labels_of_data: Labels | None,
) -> dict[str, ClassFacts]:
    """The table of classes, of all repeats together; none without a classifier of the classes."""
    if not space.of_class or labels_of_data is None:
        return {}
    labels = np.concatenate([found for found in recognised if found is not None])
    table = {}
    for label, name in enumerate(data.train.class_names):
        mine = None if asked is None else asked == label
        table[name] = ClassFacts(
            share=float((labels == label).mean()),
            share_in_data=float((labels_of_data == label).mean()),
            recognised=float((labels[mine] == label).mean())
            if mine is not None and mine.any()
            else None,
            recognised_of_data=space.of_class[label] if mine is not None else None,
        )
    return table


def take_notes(data: RealData, space: FeatureSpace) -> tuple[str, ...]:
    """What a reader must know to judge the numbers."""
    notes = []
    points = isinstance(data.train, PointSet)
    if not points and space.accuracy is None:
        notes.append(
            "The data have no classes to learn: distances are on the features of a fixed random "
            "network, which see less than a trained one; compare them only with each other."
        )
    elif space.accuracy is not None and space.accuracy < _WEAK_CLASSIFIER:
        notes.append(
            f"The classifier is right on only {100 * space.accuracy:.1f} % of held-out images: "
            "what is said of classes is as unsure, and distances on its features see less."
        )
    if not data.trained_on:
        notes.append(
            "These are not the data that the generator was trained on"
            + ("." if points else ", so memorisation was not measured.")
        )
    if data.train.kind == STACKED_KIND:
        notes.append(
            f"A perfect sampler's reverse KL over {len(CLASS_NAMES)} modes is about "
            f"{len(CLASS_NAMES) - 1} / (2 x samples)."
        )
    return tuple(notes)


def doubt_numbers(
    measurements: Mapping[str, Measurement], samples: int, reals: int, width: int
) -> tuple[str, ...]:
    """What not to take at its word, of so many samples and reals on features of that width."""
    notes = []
    if min(samples, reals) < width and "frechet_distance" in measurements:
        # Where there are as many reals as samples, more samples are held against more reals.
        few, more = (
            (f"reals ({reals:,})", "more data")
            if reals < samples
            else (f"samples ({samples:,})", "more --samples or, where it takes no more, more data")
        )
        notes.append(
            f"There are fewer {few} than features ({width:,}), too few for the Gaussians of the "
            f"Frechet distance: it is far too large, for real images too; give {more}."
        )
    precision = measurements.get("precision")
    floor = precision.floor if precision is not None else None
    if precision is not None and floor is not None and precision.mean > floor + _PRAISE:
        notes.append(
            "Precision above that of real images is no praise: samples that keep to the middle of "
            "the data get it, even noise; judge it beside recall and coverage."
        )
    return tuple(notes)
