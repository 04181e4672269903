"""How far two sets of feature vectors are apart, and how far each covers the other.

Sets are in float64 and worked on in blocks, so that 10,000 vectors against 10,000 take tens of
megabytes. None of these numbers is an FID: that name belongs to the features of one network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_BLOCK: Final = 2**22  # distances held at once, 32 MB
_FEW: Final = 8  # dimensions up to which distances are taken without the detour over products
# k of the balls of precision and recall (Kynkaanniemi et al., "Improved precision and recall
# metric", 2019), and of those of density and coverage (Naeem et al., "Reliable fidelity and
# diversity metrics", 2020).
_NEAREST: Final = 3
_NEAREST_COVERED: Final = 5


@dataclass(frozen=True)
class NeighbourMeasures:
    """What balls around vectors say of two sets."""

    precision: float  # share of fakes that are as near to a real as reals are: fidelity
    recall: float  # share of reals that are as near to a fake as fakes are: variety
    density: float  # how many balls of reals hold a fake, 1 for fakes like reals; may exceed 1
    coverage: float  # share of reals that have a fake in their ball


def frechet_distance(left: Tensor, right: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to vectors [n, d] and [m, d] (Dowson, Landau 1982).

    The square root of the product of the covariances is taken through the eigenvalues of a
    symmetric matrix with the same ones, so that covariances of less than full rank, as those of
    fewer vectors than dimensions, need no offset.

    Raises:
        ValueError: a set has fewer than two vectors, or vectors are not finite.
    """
    left, right = check_vectors(left, 2), check_vectors(right, 2)
    first, second = torch.cov(left.T).reshape(left.shape[1], -1), torch.cov(right.T)
    second = second.reshape(first.shape)  # the covariance of one dimension comes as a number
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    means = (left.mean(0) - right.mean(0)).square().sum()
    distance: float = (means + first.trace() + second.trace() - 2 * overlap).item()
    return max(distance, 0.0)  # rounding may leave equal sets a hair below


def kernel_distance(
    left: Tensor, right: Tensor, *, subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Squared maximum mean discrepancy of vectors [n, d] and [m, d], mean and spread over subsets.

    The unbiased estimate with the kernel `(x . y / d + 1)^3` on random subsets of each set, the
    protocol of the kernel inception distance (Binkowski et al., "Demystifying MMD GANs", 2018). As
    it is unbiased, it is around 0, below as often as above, where the distributions are equal.

    Raises:
        ValueError: a set has fewer than two vectors, or vectors are not finite.
    """
    left, right = check_vectors(left, 2), check_vectors(right, 2)
    size = max(min(subset_size, len(left) // 2, len(right) // 2), 2)  # whole sets would not vary
    random = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(subsets):
        some = left[torch.randperm(len(left), generator=random)[:size]]
        others = right[torch.randperm(len(right), generator=random)[:size]]
        within = (_mean_off_diagonal(some) + _mean_off_diagonal(others)).item()
        estimates.append(within - 2 * _kernel(some, others).mean().item())
    values = torch.tensor(estimates, dtype=torch.float64)
    return values.mean().item(), values.std(correction=0).item()


class Neighbourhoods:
    """Balls around real vectors, to hold sets of fakes against."""

    def __init__(self, real: Tensor) -> None:
        """Find the balls of vectors [n, d].

        Raises:
            ValueError: there are too few vectors, fewer than 6, or some are not finite.
        """
        self._real = check_vectors(real, _NEAREST_COVERED + 1)
        radii = _radii(self._real, _NEAREST_COVERED)
        self._radii, self._covered_radii = radii[:, _NEAREST - 1], radii[:, -1]

    def measure(self, fake: Tensor) -> NeighbourMeasures:
        """Hold fakes [m, d] against the reals; as many of the one as of the other, or it is unfair.

        Raises:
            ValueError: there are too few vectors, or some are not finite.
        """
        fake = check_vectors(fake, _NEAREST + 1)
        radii = _radii(fake, _NEAREST)[:, -1]
        precise = dense = 0
        recalled = torch.zeros(len(self._real), dtype=torch.bool)
        covered = recalled.clone()
        for rows, distances in _blocks(fake, self._real):  # [some fakes, reals]
            precise += int((distances <= self._radii).any(1).sum())
            inside = distances <= self._covered_radii
            dense += int(inside.sum())
            covered |= inside.any(0)
            recalled |= (distances <= radii[rows, None]).any(0)
        return NeighbourMeasures(
            precision=precise / len(fake),
            recall=recalled.double().mean().item(),
            density=dense / (_NEAREST_COVERED * len(fake)),
            coverage=covered.double().mean().item(),
        )


def pairwise_distances(left: Tensor, right: Tensor) -> Tensor:
    """Euclidean distances [n, m] of vectors [n, d] and [m, d]."""
    exact = left.shape[1] <= _FEW  # the detour would lose small distances to rounding
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    return torch.cdist(left, right, compute_mode=mode)


def check_vectors(vectors: Tensor, fewest: int) -> Tensor:
    """Return vectors [n, d] in float64; raises ValueError where too few or not finite."""
    if vectors.ndim != 2 or len(vectors) < fewest:
        raise ValueError(f"vectors: expected [{fewest} or more, d], got {list(vectors.shape)}")
    if not vectors.isfinite().all():
        bad = int((~vectors.isfinite().all(1)).sum())
        raise ValueError(f"vectors: expected finite numbers, got {bad} vectors that are not")
    return vectors.double()


def _radii(vectors: Tensor, nearest: int) -> Tensor:
    """Distances of each vector to its nearest others, [n, nearest]."""
    found = []
    for rows, distances in _blocks(vectors, vectors):
        places = torch.arange(len(vectors))[rows]
        distances[torch.arange(len(places)), places] = torch.inf  # no neighbour of its own
        found.append(distances.topk(nearest, largest=False).values)
    return torch.cat(found)


def _blocks(left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances of vectors [n, d] and [m, d], some rows of them at a time."""
    step = max(_BLOCK // len(right), 1)
    for start in range(0, len(left), step):
        rows = slice(start, start + step)
        yield rows, pairwise_distances(left[rows], right)


def _kernel(left: Tensor, right: Tensor) -> Tensor:
    return (left @ right.T / left.shape[1] + 1) ** 3


def _mean_off_diagonal(vectors: Tensor) -> Tensor:
    """Mean of the kernel over pairs of two different vectors."""
    values = _kernel(vectors, vectors)
    count = len(vectors)
    return (values.sum() - values.trace()) / (count * (count - 1))
