"""Hides which real examples a generator is held against, and which stand for a perfect one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gantrain.data.datasets import Dataset, has_test_split, load_dataset, load_source, tell_left_out
from gantrain.data.point_sets import POINT_SETS, PointSet
from gantrain.data.stacked_mnist import STACKED_KIND, STACKS
from gantrain.errors import RunError, UsageError
from gantrain.evaluation.reference import ReferenceChoice
from gantrain.sampling import Sampler

FEWEST: Final = 20  # examples, below which no number here means anything
_SPLITS = {"train": "training", "test": "test"}  # in words
_IMAGES, _POINTS = 10_000, 2_500  # samples unless asked otherwise; PacGAN takes 2,500 points

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RealData:
    """The data of an evaluation, as large and as coloured as what the generator makes."""

    source: str
    train: Dataset | PointSet
    held_out: Dataset | None  # the test split, where there is one
    trained_on: bool  # the generator has learned from `train`


@dataclass(frozen=True, eq=False)
class Reals:
    """What samples are held against, and as many others for what a perfect generator makes.

    In random order, so that the first of them stand for all.
    """

    reference: NDArray[Any]
    others: NDArray[Any] | None  # none of the reference; None where there are too few
    described: str
    samples: int
    parts: Mapping[str, int] = field(default_factory=dict)  # of the reference: split -> examples


def load_real_data(
    source: str, sampler: Sampler, *, resize: bool = False, skip_bad_files: bool = False
) -> RealData:
    """Load what a generator is to be held against.

    Args:
        source: as `load_source` takes it.
        sampler: the generator.
        resize: bring other data to the size and channels of the generator; those that it was
            trained on are brought there unasked, as they were for training.
        skip_bad_files: leave out files that cannot be used instead of refusing the source; where
            the generator was trained so, they are left out unasked.

    Raises:
        DatasetError: the source cannot be used.
        RunError: it holds points and the generator makes images, or the other way round, or images
            of another size or number of channels.
    """
    makes = "points" if sampler.image_size is None else "images"
    holds = "points" if source in POINT_SETS else "images"
    if makes != holds:
        raise RunError(
            f"--data {source} holds {holds}, but the generator makes {makes}; name data like those "
            "it was trained on"
        )
    if source in POINT_SETS:
        points = load_source(source, skip_bad_files=skip_bad_files)
        return RealData(source, points, None, points.fingerprint() == sampler.data_fingerprint)
    skip = skip_bad_files or bool(sampler.settings.get("skip_bad_files", False))
    train, trained_on = load_training_images(source, sampler, resize, skip)
    tell_left_out(train)
    return RealData(source, train, load_held_out(source, train, skip), trained_on)


def load_held_out(source: str, train: Dataset, skip_bad_files: bool) -> Dataset | None:
    """The test split in the shape of the training images, where there is one.

    Raises:
        DatasetError: it cannot be used.
    """
    if not has_test_split(source):
        return None
    _, channels, size, _ = train.images.shape
    held_out = load_dataset(
        source,
        image_size=size,
        channels=channels,
        skip_bad_files=skip_bad_files,
        split="test",
    )
    tell_left_out(held_out)
    return held_out


def load_training_images(
    source: str, sampler: Sampler, resize: bool, skip: bool
) -> tuple[Dataset, bool]:
    """The training split at the generator's size, and whether the generator has learned from it.

    Raises:
        RunError: it has not, and the images' own size or number of channels is another. Resizing
            alone moves distances by several points, so it is not done unasked.
    """
    shape: Mapping[str, Any] = {"image_size": sampler.image_size, "channels": sampler.channels}
    limit = sampler.settings.get("max_data_images")
    dataset = load_dataset(source, **shape, skip_bad_files=skip, limit=limit)
    if dataset.fingerprint() == sampler.data_fingerprint:
        return dataset, True
    if resize and limit is None:  # a limit was meant for other data
        return dataset, False
    dataset = load_dataset(source, **(shape if resize else {}), skip_bad_files=skip)
    size, channels = dataset.images.shape[-1], dataset.images.shape[1]
    if (size, channels) != (sampler.image_size, sampler.channels):
        raise RunError(
            f"--data {source} has images of {describe_shape(size, channels)}, the generator makes "
            f"{describe_shape(sampler.image_size, sampler.channels)} and was trained on other "
            "data: name data of that shape, or add --resize"
        )
    return dataset, False


def describe_shape(size: int | None, channels: int | None) -> str:
    """Write 28x28 grey."""
    return f"{size}x{size} {'grey' if channels == 1 else 'RGB'}"


def choose_reals(
    data: RealData, samples: int | None, reference: ReferenceChoice | None = None
) -> Reals:
    """Choose what so many samples are held against, and others, as many as the samples.

    Args:
        data: to choose from.
        samples: None takes as many as usual; without `reference` as there are, if these are fewer.
        reference: `train`, `test` or `all`: the whole of the split, or of both. None takes as many
            training examples as samples; the others are then of the test split if that has enough,
            and else of the training split too, but none of the reference.

    Raises:
        UsageError: there are not enough for so many samples, or no such split.
        RunError: there are not enough for any.
    """
    return choose_whole(data, samples, reference) if reference else choose_as_many(data, samples)


def choose_whole(data: RealData, samples: int | None, reference: ReferenceChoice) -> Reals:
    """All of the reference's splits; the others are of what is left, if that is enough."""
    splits: dict[str, NDArray[Any]] = {"train": data.train.examples}
    if data.held_out is not None:
        splits["test"] = data.held_out.images
    elif reference != "train":
        raise UsageError(
            f"--reference {reference}: {data.source} has no test split; use --reference train, or "
            "name data that have one"
        )
    count = samples or usual_samples(data)
    chosen = {name: part for name, part in splits.items() if reference in (name, "all")}
    reals = in_random_order(np.concatenate([*chosen.values()]))
    if len(reals) < FEWEST:
        raise RunError(
            f"--data {data.source}: too few to measure anything: expected at least {FEWEST}, "
            f"got {len(reals)}"
        )
    parts = {name: len(part) for name, part in chosen.items()}
    noun = "points" if isinstance(data.train, PointSet) else "images"
    sizes = " and ".join(f"{size:,} {_SPLITS[name]}" for name, size in parts.items())
    rest_of, rest = next(
        (split for split in splits.items() if split[0] not in chosen), ("", reals[:0])
    )
    if len(rest) < count:
        why = f"no floor: it takes {count:,} others, and there are {len(rest):,}"
        return Reals(reals, None, f"all {sizes} {noun}; {why}", count, parts)
    described = f"all {sizes} {noun}; the floor: {count:,} {_SPLITS[rest_of]} ones"
    return Reals(reals, in_random_order(rest)[:count], described, count, parts)


def in_random_order(examples: NDArray[Any]) -> NDArray[Any]:
    """The examples, always in the same order."""
    return examples[np.random.default_rng(0).permutation(len(examples))]


def choose_as_many(data: RealData, samples: int | None) -> Reals:
    """As many training examples as samples."""
    train = data.train.examples
    held_out = len(data.held_out.images) if data.held_out else 0
    most = max(min(len(train), held_out), len(train) // 2)
    if most < FEWEST:
        raise RunError(
            f"--data {data.source}: too few to measure anything: expected at least {2 * FEWEST}, "
            f"got {len(train)}"
        )
    if samples is not None and samples > most:
        raise UsageError(
            f"--samples: expected at most {most}, as reference and floor need as many real "
            f"examples each and {data.source} has {len(train)} to train on and {held_out} held "
            f"out, got {samples}; --reference takes all of a split, for any number of samples"
        )
    count = samples or min(usual_samples(data), most, held_out if held_out >= FEWEST else most)
    order = np.random.default_rng(0).permutation(len(train))
    reference, rest = train[order[:count]], order[count : 2 * count]
    if data.held_out is not None and held_out >= count <= len(train):
        others = in_random_order(data.held_out.images)[:count]
        described = f"{count:,} training images; the floor: as many test ones"
        return Reals(reference, others, described, count, {"train": count})
    noun = "points" if isinstance(data.train, PointSet) else "images"
    described = f"{count:,} {noun}; the floor: as many others of the data"
    return Reals(reference, train[rest], described, count, {"train": count})


def usual_samples(data: RealData) -> int:
    """How many samples the data's protocol takes."""
    if isinstance(data.train, PointSet):
        return _POINTS
    return STACKS["test"] if data.train.kind == STACKED_KIND else _IMAGES
