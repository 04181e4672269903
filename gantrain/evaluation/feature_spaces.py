"""Hides what examples are looked at with: a classifier of the data, or what needs no labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gantrain.data.datasets import Dataset
from gantrain.evaluation.classifier import FEATURES, recognise
from gantrain.evaluation.classifier_cache import TrainedClassifier, cached_classifier
from gantrain.evaluation.random_features import Features
from gantrain.evaluation.sample_statistics import Examples, pool_examples

_SEED: Final = 0
_SCALE_FROM: Final = 6_000  # images whose responses give random features their scale
_DIGITS: Final = 10


@dataclass(frozen=True)
class Look:
    """What a feature space makes of examples."""

    features: Tensor  # float32 [n, width]
    labels: NDArray[np.int64] | None  # [n], recognised classes; None where it knows none


@dataclass(frozen=True)
class FeatureSpace:
    """A way to look at examples."""

    look: Callable[[Examples], Look]
    kind: str  # in words
    accuracy: float | None = None  # of its classifier, on held-out images
    held_out: int | None = None  # how many these were
    of_class: tuple[float | None, ...] = ()  # accuracy for each class, where it is known


def classifier_space(train: Dataset, held_out: Dataset | None, cache: Path | None) -> FeatureSpace:
    """The layer below the logits of a classifier of the data themselves."""
    trained = cached_classifier(train, held_out, cache)

    def look(images: Examples) -> Look:
        found = recognise(trained.network, images)
        return Look(found.features, found.labels)

    kind = f"a classifier of the data's {len(train.class_names)} classes, {FEATURES} features"
    return FeatureSpace(look, kind, trained.accuracy, trained.held_out, trained.of_class)


def stacked_space(digits: TrainedClassifier) -> FeatureSpace:
    """A classifier of single digits for each channel of stacks of three (Stacked-MNIST)."""

    def look(stacks: Examples) -> Look:
        found = [recognise(digits.network, stacks[:, [channel]]) for channel in range(3)]
        hundreds, tens, ones = (each.labels for each in found)
        features = torch.cat([each.features for each in found], dim=1)
        return Look(features, 100 * hundreds + 10 * tens + ones)

    kind = f"a classifier of single digits on each of 3 channels, 3 x {FEATURES} features"
    return FeatureSpace(look, kind, digits.accuracy, digits.held_out)


def random_space(images: Examples) -> FeatureSpace:
    """A fixed random network, scaled to how it responds to these images; it knows no classes."""
    rows = np.arange(min(len(images), _SCALE_FROM))
    network = Features(pool_examples(images, rows), _SEED)

    def look(some: Examples) -> Look:
        return Look(network(pool_examples(some, np.arange(len(some)))), None)

    width = look(images[:1]).features.shape[1]
    kind = f"a fixed random network, of images pooled to at most 16x16 pixels, {width} features"
    return FeatureSpace(look, kind)


def plane() -> FeatureSpace:
    """Points of the plane as they are."""
    return FeatureSpace(lambda points: Look(torch.from_numpy(points), None), "coordinates")


def digit_marginals(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probability of each stack [1000] of three digits drawn from those with labels [n]."""
    shares = np.bincount(labels, minlength=_DIGITS) / len(labels)
    stacks: NDArray[np.float64] = np.einsum("i,j,k->ijk", shares, shares, shares).reshape(-1)
    return stacks
