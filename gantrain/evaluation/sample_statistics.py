"""Hides how generated samples are measured against the data, quickly enough to do so in training.

A number `x_data` beside a number `x` is the same measurement of as many reals: what a perfect
generator would show. Images are compared after pooling to at most 16x16, and at most 20,000
training images, drawn at random, take part: what is finer than that, or not among them, goes
unseen.
"""

import functools
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gantrain.evaluation.distances import pairwise_distances
from gantrain.evaluation.random_features import Features, find_clusters, fit_classes

Examples = NDArray[Any]  # uint8 [n, channels, size, size], or points: float32 [n, 2]
Measurements = dict[str, float | list[float]]

_POOLED_SIZE: Final = 16
_MAX_EXAMPLES: Final = 20_000
_MAX_FEATURES: Final = 6_000  # examples that features, classifier or clusters are made from
_COMPARED: Final = 1_024  # reals that stand for all of them in mean distances
_HELD_OUT: Final = 512  # training examples that play held-out ones
_GROUP: Final = 256  # what depends on the number of samples is measured in groups of so many
_GROUPS: Final = 4  # of reals, whose mean is the data's number
_CHUNK: Final = 256  # examples worked on at once, to spare memory and cache
_DUPLICATE: Final = 0.02  # quantile of the nearest-neighbour distances in a group of reals
_NEAR: Final = 0.01  # quantile of held-out distances to the nearest training example
_FAR: Final = 0.99  # likewise
_COPY: Final = 1 / 3  # of the distance to the second nearest training example
_COVERED: Final = 0.25  # of a class's share in the data, from which on it counts as covered
_DOT: Final = 64  # grey levels, a quarter of the range, by which a dot stands out


class Reference:
    """What samples are held against: made once, a function of the data and the seed."""

    def __init__(
        self,
        examples: Examples,
        labels: NDArray[np.int64] | None,
        class_names: tuple[str, ...],
        seed: int,
        *,
        mirrored: bool = False,
    ) -> None:
        """Measure the data.

        Args:
            examples: images, uint8 [count, channels, size, size], or points, float32 [count, 2];
                at least two.
            labels: [count], indices into `class_names`; without them clusters take their place.
            class_names: empty where there are no labels.
            seed: of the choice of examples, the features and the clusters.
            mirrored: training mirrors images left to right, so that a mirrored copy is a copy.
        """
        order = np.random.default_rng([seed, 3]).permutation(len(examples))[:_MAX_EXAMPLES]
        chosen = pool_examples(examples, order)
        self._features = Features(chosen[:_MAX_FEATURES], seed)
        features = self._features(chosen[:_MAX_FEATURES])
        self._classes = (
            fit_classes(features, labels[order[: len(features)]], len(class_names))
            if labels is not None and len(class_names) > 1
            else find_clusters(features, seed, points=examples.ndim == 2)
        )
        self._histogram = self._classes.histogram(features)
        self._training = TrainingExamples(chosen, mirrored and examples.ndim == 4)

        self._real_features = features[:_COMPARED].clone()  # a view would keep them all
        self._spread = _mean_pairwise(chosen[:_COMPARED].flatten(1))
        self._feature_spread = _mean_pairwise(self._real_features)
        self._group = min(_GROUP, len(chosen))
        # From the end, so that they are not those of `_real_features` where there are enough.
        starts = range(len(features) - self._group, -1, -self._group)
        groups = [order[start : start + self._group] for start in starts[:_GROUPS]]
        nearest = [_nearest_in_group(pool_examples(examples, group).flatten(1)) for group in groups]
        distances = torch.cat(nearest)
        distinct = distances[distances > 0]  # exact duplicates would make "near" mean "equal"
        self._duplicate = _quantile(distinct, _DUPLICATE) if len(distinct) else 0.0
        measured = [self._measure_group(examples[group]) for group in groups]
        self._data = {name: _mean([values[name] for values in measured]) for name in measured[0]}

    def measure(self, samples: Examples) -> Measurements:
        """Measure samples, laid out as the examples are; best at least 256 of them.

        Returns:
            `diversity`, `feature_diversity`: mean distance of two samples over that of two
                reals, between pixels (or coordinates) and between features.
            `duplicates`: share of samples with a near-duplicate among 256 (the birthday test of
                Arora and Zhang, "Do GANs actually learn the distribution?", 2017); near is what
                2 % of reals are.
            `energy_distance`: 0 where samples and data have the same distribution of features,
                1 where they are far apart (Szekely and Rizzo 2013, as a share of its maximum).
            `class_histogram`: share of each class or cluster; `class_coverage`: share of those
                with at least a quarter of their share in the data; `class_distance`: total
                variation from the data's histogram; `classifier_accuracy`, of the classifier on
                labelled data left out of its training, where there are labels.
            `training_distance`: median distance to the nearest training example, over that of
                held-out reals; `near_training`, `far_from_training`: share nearer than 1 % of
                distinct held-out reals are, farther than 99 %; `copies`: share three times nearer
                to one training example than to any other (Yoon et al., "Diffusion probabilistic
                models generalize when they fail to memorize", 2023). Missing where fewer than
                three examples are distinct.
            `dead_pixels`, of images: share of values brighter than all eight neighbours, or darker
                than all, by more than a quarter of the range.
        """
        vectors = pool_examples(samples, np.arange(len(samples)))
        groups = [
            samples[start : start + self._group] for start in range(0, len(samples), self._group)
        ]
        measured = [self._measure_group(group) for group in groups]
        weights = [len(group) / len(samples) for group in groups]
        flat = vectors.flatten(1)
        result: Measurements = {
            "diversity": _ratio(_mean_pairwise(flat), self._spread),
            "feature_diversity": _ratio(
                _mean_pairwise(self._features(vectors)), self._feature_spread
            ),
        }
        for name, of_data in self._data.items():
            result[name] = _mean([values[name] for values in measured], weights)
            result[f"{name}_data"] = of_data
        if self._classes.accuracy is not None:
            result["classifier_accuracy"] = self._classes.accuracy
        return result | self._training.measure(vectors)

    def _measure_group(self, samples: Examples) -> Measurements:
        """What depends on the number of samples, and what is the same for reals."""
        vectors = pool_examples(samples, np.arange(len(samples)))
        features = self._features(vectors)
        histogram = self._classes.histogram(features)
        cross = torch.cdist(features, self._real_features).mean().item()
        within = _mean_pairwise(features) + self._feature_spread
        near = _nearest_in_group(vectors.flatten(1)) <= self._duplicate
        present = histogram >= _COVERED * self._histogram
        values: Measurements = {
            "duplicates": near.float().mean().item(),
            "energy_distance": max(1 - _ratio(within, 2 * cross), 0.0),
            "class_histogram": histogram.tolist(),
            "class_coverage": present[self._histogram > 0].float().mean().item(),
            "class_distance": (histogram - self._histogram).abs().sum().item() / 2,
        }
        if samples.ndim == 4:
            values["dead_pixels"] = _dead_pixels(samples)
        return values


class TrainingExamples:
    """Distances to the nearest training example, of samples and of held-out reals.

    Nothing is held out: the distance of a training example to the nearest *other* one is
    distributed as that of a fresh real, for one is as good as the other. Where the data repeat
    examples exactly, fresh reals would match some too, so each counts once as something to be near
    to, but a repeated one is at distance 0 when it plays the held-out. Data that repeat most of
    their examples therefore hide memorisation rather than raise a false alarm.
    """

    def __init__(self, examples: Tensor, mirrored: bool) -> None:
        self._mirrored = mirrored
        first_of: dict[bytes, int] = {}
        repeats: list[int] = []
        position = []  # of each example among the distinct ones
        for index, row in enumerate(examples.numpy()):
            place = first_of.setdefault(row.tobytes(), len(first_of))
            if place == len(repeats):
                repeats.append(0)
                position.append(index)
            repeats[place] += 1
        self._examples = examples[position].flatten(1)
        self._usable = len(position) > 2
        if not self._usable:
            return
        held_out = examples[position[:_HELD_OUT]]
        nearest, second = self._nearest(held_out, own=torch.arange(len(held_out)))
        self._unit = nearest.median().item()
        self._near, self._far = _quantile(nearest, _NEAR), _quantile(nearest, _FAR)
        # A repeated example stands for as many held-out ones, all with an exact copy in the data.
        weights = torch.tensor(repeats[: len(held_out)])
        nearest = torch.where(weights > 1, 0.0, nearest)  # a copy, wherever the second one lies
        self._data = self._summarise(
            nearest.repeat_interleave(weights), second.repeat_interleave(weights)
        )

    def measure(self, samples: Tensor) -> dict[str, float]:
        """What concerns the nearest training example, of samples and of held-out reals."""
        if not self._usable:
            return {}
        values = self._summarise(*self._nearest(samples, own=None))
        return {
            key: value
            for name, of_samples in values.items()
            for key, value in ((name, of_samples), (f"{name}_data", self._data[name]))
        }

    def _summarise(self, nearest: Tensor, second: Tensor) -> dict[str, float]:
        return {
            "training_distance": _ratio(nearest.median().item(), self._unit),
            "near_training": (nearest <= self._near).float().mean().item(),
            "far_from_training": (nearest > self._far).float().mean().item(),
            "copies": (nearest <= _COPY * second).float().mean().item(),
        }

    def _nearest(self, samples: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Distances to the nearest and second nearest training example, each [n].

        `own` are the places of the samples among the training examples, which do not count.
        """
        found = []
        for start in range(0, len(samples), _CHUNK):
            part = samples[start : start + _CHUNK]
            distances = pairwise_distances(part.flatten(1), self._examples)
            if self._mirrored:
                mirrored = pairwise_distances(part.flip(3).flatten(1), self._examples)
                distances = torch.minimum(distances, mirrored)
            if own is not None:
                distances[torch.arange(len(part)), own[start : start + _CHUNK]] = torch.inf
            found.append(distances.topk(2, largest=False).values)
        nearest, second = torch.cat(found).unbind(1)
        return nearest, second


def pool_examples(examples: Examples, indices: NDArray[np.int64]) -> Tensor:
    """Points as they are; images in [-1, 1], pooled to at most 16x16."""
    if examples.ndim == 2:
        return torch.from_numpy(examples[indices].astype(np.float32))
    size = min(_POOLED_SIZE, examples.shape[-1])
    pooled = [
        functional.interpolate(torch.from_numpy(examples[part]).float(), (size, size), mode="area")
        for part in np.split(indices, range(_CHUNK, len(indices), _CHUNK))
    ]
    return torch.cat(pooled) / 127.5 - 1


def _mean_pairwise(vectors: Tensor) -> float:
    """Mean distance of two different rows."""
    count = len(vectors)
    return pairwise_distances(vectors, vectors).sum().item() / max(count * (count - 1), 1)


def _nearest_in_group(vectors: Tensor) -> Tensor:
    """Distance of each row to the nearest other one, [n]."""
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).amin(1)


def _dead_pixels(images: Examples) -> float:
    """Share of values of uint8 images [n, channels, height, width] that are isolated dots.

    The ends of lines and corners have a neighbour of their own kind; a dot has none.
    """
    values = torch.from_numpy(np.ascontiguousarray(images))
    height, width = values.shape[2:]
    rows, columns = (torch.arange(-1, size + 1).clamp(0, size - 1) for size in (height, width))
    padded = values[:, :, rows][:, :, :, columns]
    around = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    neighbours = [padded[:, :, y : y + height, x : x + width] for y, x in around]
    lowest, highest = (
        functools.reduce(torch.minimum, neighbours),
        functools.reduce(torch.maximum, neighbours),
    )
    # What lies between is moved to the bound, so that unsigned differences cannot wrap round.
    above = torch.maximum(values, highest) - highest
    below = lowest - torch.minimum(values, lowest)
    return (torch.maximum(above, below) > _DOT).float().mean().item()


def _quantile(values: Tensor, share: float) -> float:
    return torch.quantile(values, share).item()


def _ratio(value: float, unit: float) -> float:
    """1 where both are nothing, as with data that are all alike."""
    return value / unit if unit > 0 else float(value == unit)


def _mean(
    values: list[float | list[float]], weights: list[float] | None = None
) -> float | list[float]:
    """Mean of numbers, or of lists element by element."""
    mean = np.average(np.array(values), axis=0, weights=weights).tolist()
    assert isinstance(mean, float | list)
    return mean
