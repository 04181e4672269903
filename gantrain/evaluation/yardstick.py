"""Hides what examples are measured with: distances, classes, modes, alike for fakes and reals."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gantrain.class_labels import Labels
from gantrain.data.datasets import load_dataset
from gantrain.data.point_sets import PointSet, mode_coverage, sine_distance
from gantrain.data.stacked_mnist import PREFIX, STACKED_KIND
from gantrain.evaluation.distances import Neighbourhoods, frechet_distance, kernel_distance
from gantrain.evaluation.examples import RealData, Reals
from gantrain.evaluation.feature_spaces import FeatureSpace, digit_marginals
from gantrain.evaluation.inception import Inception
from gantrain.evaluation.sample_statistics import Examples
from gantrain.progress import show_progress

CHUNK: Final = 500  # examples made, looked at and dropped at once
_KEPT: Final = 2_000  # images kept as they are, of as many as there may be
_NEIGHBOURS: Final = 10_000  # examples that distances to every other are taken of


@dataclass(frozen=True, eq=False)
class Seen:
    """What is kept of many examples."""

    features: Tensor  # [n, width]
    labels: Labels | None  # [n], recognised
    first: Examples  # some of them as they are, or all points
    inception: tuple[Tensor, Tensor] | None  # features and logits


class Yardstick:
    """What samples are held against, and what it says of real examples."""

    def __init__(
        self,
        data: RealData,
        reals: Reals,
        space: FeatureSpace,
        network: Inception | None = None,
    ) -> None:
        """Look at the reals; `network` adds FID, KID and IS."""
        self.data, self.space, self._network = data, space, network
        self.count, self.reals = reals.samples, reals
        self._reference = self.look_at(in_chunks(reals.reference), len(reals.reference), "reals")
        self._others = None
        if reals.others is not None:
            self._others = self.look_at(in_chunks(reals.others), len(reals.others), "other reals")
        # As many as of the samples: more would cover more by their number alone.
        self._compared = min(_NEIGHBOURS, self.count, len(reals.reference))
        self._neighbourhoods = Neighbourhoods(self._reference.features[: self._compared])
        self._marginals = find_marginals(data)
        self.floors = {} if self._others is None else self.measure(self._others)

    @property
    def width(self) -> int:
        """How many features each example has."""
        return int(self._reference.features.shape[1])

    @property
    def labels_of_data(self) -> Labels | None:
        """Recognised classes [n] of real examples: the others, or the reference if there are none.

        None without a classifier.
        """
        return (self._others or self._reference).labels

    def look_at(self, chunks: Iterable[Examples], count: int, what: str) -> Seen:
        """Look at so many examples, as they are made or read, and keep little of them."""
        with closing(show_progress(chunks, count, what, "image", len)) as shown:
            return collect_looks(shown, self.space, self._network)

    def measure(self, seen: Seen) -> dict[str, float]:
        """Measure examples, be they samples or real.

        Raises:
            ValueError: some are not finite.
        """
        if isinstance(self.data.train, PointSet):
            return {**measure_points(seen.first, self.data.train), **self._near(seen.features)}
        reference = self._reference
        kernel, spread = kernel_distance(reference.features, seen.features)
        values = {
            "frechet_distance": frechet_distance(reference.features, seen.features),
            "kernel_distance": kernel,
            "kernel_distance_subset_spread": spread,
            **self._near(seen.features),
        }
        if self._marginals is not None and seen.labels is not None:
            values |= measure_classes(seen.labels, self._marginals, self.data)
        if self._network is not None and seen.inception and reference.inception:
            values |= self._network.measure(reference.inception[0], *seen.inception)
        return values

    def _near(self, features: Tensor) -> dict[str, float]:
        return asdict(self._neighbourhoods.measure(features[: self._compared]))


def in_chunks(examples: Examples) -> Iterator[Examples]:
    """Some of the examples at a time."""
    return (examples[start : start + CHUNK] for start in range(0, len(examples), CHUNK))


def collect_looks(
    chunks: Iterable[Examples], space: FeatureSpace, network: Inception | None
) -> Seen:
    """Look at examples and keep little of them."""
    looks, inception = [], []
    first: list[Examples] = []
    kept = 0
    for chunk in chunks:
        looks.append(space.look(chunk))
        if network is not None:
            inception.append(network.look(chunk))
        if kept < _KEPT or chunk.ndim == 2:
            first.append(chunk)
            kept += len(chunk)
    labels = [look.labels for look in looks if look.labels is not None]
    return Seen(
        features=torch.cat([look.features for look in looks]),
        labels=np.concatenate(labels) if labels else None,
        first=np.concatenate(first),
        inception=(
            torch.cat([features for features, _ in inception]),
            torch.cat([logits for _, logits in inception]),
        )
        if inception
        else None,
    )


def measure_points(points: Examples, data: PointSet) -> dict[str, float]:
    """Modes, high-quality share and reverse KL of a mixture, or the distance from the sine."""
    if data.modes is None:
        return {"curve_distance": sine_distance(points)}
    found = mode_coverage(points, data.modes, data.sigma)
    return {name: float(value) for name, value in asdict(found).items()}


def find_marginals(data: RealData) -> NDArray[np.float64] | None:
    """Probability of each class in the data, [classes]; None where there are no classes."""
    if data.train.labels is None:
        return None
    if data.train.kind == STACKED_KIND:  # of any stack, not only of those that were made
        digits = load_dataset(data.source.removeprefix(PREFIX))
        assert digits.labels is not None
        return digit_marginals(digits.labels)
    counts = np.bincount(data.train.labels, minlength=len(data.train.class_names))
    marginals: NDArray[np.float64] = counts / counts.sum()
    return marginals


def measure_classes(
    labels: Labels, marginals: NDArray[np.float64], data: RealData
) -> dict[str, float]:
    """How the recognised labels [n] of examples are spread over classes.

    Of Stacked-MNIST the modes found, and the reverse KL divergence from the data's distribution and
    from the uniform one, which is what is published (Lin et al. 2018, Huang et al. 2024); of other
    data the total variation from the data's.
    """
    shares = np.bincount(labels, minlength=len(marginals)) / len(labels)
    if data.train.kind != STACKED_KIND:
        return {"class_distance": float(np.abs(shares - marginals).sum() / 2)}
    found = (shares > 0) & (marginals > 0)
    divergence = (shares[found] * np.log(shares[found] / marginals[found])).sum()
    used = shares[shares > 0]
    return {
        "modes": float(len(used)),
        "reverse_kl": float(divergence),
        "reverse_kl_uniform": float((used * np.log(used * len(marginals))).sum()),
    }
