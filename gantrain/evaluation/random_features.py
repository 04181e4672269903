"""Hides how examples become features, by a fixed random network, and features become classes."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_CHUNK: Final = 256  # examples worked on at once, to spare memory and cache
_DISTINCT: Final = 1_024  # examples among which distinct ones are counted
_FILTERS: Final = (24, 48)
_CLUSTERS: Final = {"images": 10, "points": 25}
_LEFT_OUT: Final = 0.2  # share of the labelled examples that measures the classifier
_RIDGE: Final = 0.01


class Features:
    """Points as they are; of images, standardised responses of a fixed random network.

    Random filters keep enough of an image to tell classes apart (Jarrett et al., "What is the best
    multi-stage architecture for object recognition?", 2009) and cost no training.
    """

    def __init__(self, examples: Tensor, seed: int) -> None:
        self._mean, self._scale = torch.zeros(()), torch.ones(())
        self._filters: tuple[Tensor, Tensor] | None = None
        if examples.dim() == 2:
            return
        random = torch.Generator().manual_seed(seed)
        first, second = _FILTERS
        channels = examples.shape[1]
        edges = torch.randn(first, channels, 5, 5, generator=random)
        edges -= edges.mean((1, 2, 3), keepdim=True)  # an even grey excites none
        corners = torch.randn(second, first, 3, 3, generator=random)
        self._filters = edges / (25 * channels) ** 0.5, corners / (9 * first) ** 0.5
        features = self(examples)
        self._mean = features.mean(0)
        self._scale = features.std(0) + 0.01 * features.std()  # some hardly ever respond

    def __call__(self, examples: Tensor) -> Tensor:
        """Features [n, f] of points [n, 2] or pooled images [n, channels, size, size]."""
        if self._filters is None:
            return examples
        edges, corners = self._filters
        features = []
        for part in examples.split(_CHUNK):  # type: ignore[no-untyped-call]
            maps = functional.relu(functional.conv2d(part, edges, stride=2, padding=2))
            maps = functional.relu(functional.conv2d(maps, corners, stride=2, padding=1))
            features.append(maps.flatten(1))
        return torch.cat(features).sub_(self._mean).div_(self._scale)


class Classes:
    """Sorts features into classes by the largest of linear scores."""

    def __init__(self, weights: Tensor, bias: Tensor, accuracy: float | None) -> None:
        self._weights, self._bias, self.accuracy = weights, bias, accuracy

    def __call__(self, features: Tensor) -> Tensor:
        """Class indices [n] of features [n, f]."""
        return (features @ self._weights + self._bias).argmax(1)

    def histogram(self, features: Tensor) -> Tensor:
        """Shares of the classes, [classes]."""
        counts = torch.bincount(self(features), minlength=len(self._bias))
        return counts / len(features)


def fit_classes(features: Tensor, labels: NDArray[np.int64], classes: int) -> Classes:
    """Least squares with a ridge on four fifths of the examples; the rest measures its accuracy."""
    count = max(int(len(features) * (1 - _LEFT_OUT)), 1)
    known, targets = features[:count], torch.from_numpy(labels)
    one_hot = functional.one_hot(targets[:count], classes).float()
    bias = one_hot.mean(0)
    center = known.mean(0)
    known = known - center
    gram = known.T @ known + _RIDGE * count * torch.eye(known.shape[1])
    weights = torch.linalg.solve(gram, known.T @ (one_hot - bias))
    found = Classes(weights, bias - center @ weights, None)
    right = found(features[count:]) == targets[count:]
    found.accuracy = right.float().mean().item() if len(right) else None
    return found


def find_clusters(features: Tensor, seed: int, *, points: bool) -> Classes:
    """Clusters of the data, largest first; a sample belongs to the nearest centre."""
    # Here, for it takes a second that labelled data should not pay.
    from sklearn.cluster import KMeans

    wanted = _CLUSTERS["points" if points else "images"]
    distinct = len(torch.unique(features[:_DISTINCT], dim=0))
    found = KMeans(
        max(min(wanted, distinct // 4), 1), n_init=3, max_iter=50, random_state=seed % 2**32
    ).fit(features.numpy())
    by_size = np.argsort(-np.bincount(found.labels_), kind="stable")
    centres = torch.from_numpy(found.cluster_centers_[by_size]).float()
    return Classes(2 * centres.T, -centres.square().sum(1), None)
