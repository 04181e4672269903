"""Two-dimensional data sets that are made, not read, and how near samples come to them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from gantrain.config import flag
from gantrain.latents import draw_latents

_SEED: Final = 0  # of every set, so that a name stands for the same points everywhere
_SINE_POINTS: Final = 1024
_MIXTURE_POINTS: Final = 100_000  # as many as PacGAN trains on
_HIGH_QUALITY: Final = 3.0  # standard deviations from the centre of a mode
_CURVE_SEGMENTS: Final = 2048  # their chords leave the sine by at most 1.2e-6
_SAMPLES_AT_ONCE: Final = 512  # bounds the memory of a distance to every segment, 50 MB


@dataclass(frozen=True, eq=False)
class PointSet:
    """Points of the plane in memory."""

    points: NDArray[np.float32]  # [count, 2], in random order
    modes: NDArray[np.float32] | None  # [modes, 2], the centres; None for the sine
    sigma: float  # standard deviation of each mode in each direction; 0 for the sine
    kind: str  # "sine", "ring8" or "grid25"

    # What only images have, so that a set of points can be asked for it as a `Dataset` can.
    labels: ClassVar[None] = None
    class_names: ClassVar[tuple[()]] = ()
    bad_files: ClassVar[tuple[()]] = ()
    strays: ClassVar[tuple[()]] = ()
    folder: ClassVar[None] = None

    @property
    def examples(self) -> NDArray[np.float32]:
        """The points, by the name that a `Dataset` has for its images."""
        return self.points

    def fingerprint(self) -> str:
        """Return "sha256:..." of shape and points: equal data, equal fingerprint."""
        digest = hashlib.sha256(json.dumps(self.points.shape).encode())
        digest.update(self.points.astype("<f4").tobytes())
        return f"sha256:{digest.hexdigest()}"


def make_sine() -> PointSet:
    """Make 1,024 points of `y = sin x`, x uniform on [0, 2 pi)."""
    x = 2.0 * np.pi * (_random_words(_SINE_POINTS) >> np.uint64(11)) / 2.0**53
    return PointSet(np.stack([x, np.sin(x)], axis=1).astype(np.float32), None, 0.0, "sine")


def make_ring() -> PointSet:
    """Make 8 Gaussians of sigma 0.01 on a circle of radius 1, the 2D-ring of Lin et al. 2018."""
    angles = np.arange(8) * (2.0 * np.pi / 8)
    return _make_mixture(np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.01, "ring8")


def make_grid() -> PointSet:
    """Make 5x5 Gaussians of sigma 0.05 at -4, -2, 0, 2, 4, the 2D-grid of Lin et al. 2018."""
    ticks = np.arange(-4.0, 5.0, 2.0)
    centres = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
    return _make_mixture(centres, 0.05, "grid25")


POINT_SETS: Final[dict[str, Callable[[], PointSet]]] = {
    "sine": make_sine,
    "ring8": make_ring,
    "grid25": make_grid,
}

POINT_SET_SUMMARIES: Final = {
    "sine": "points of y = sin x, x uniform on [0, 2 pi)",
    "ring8": "points of 8 Gaussians of sigma 0.01 on a circle of radius 1",
    "grid25": "points of 5x5 Gaussians of sigma 0.05, 2 apart",
}


def find_image_setting(source: str, **settings: object) -> str | None:
    """Say which of the settings, that only images have, is given for a point set; None of none.

    `source` is how the point set was asked for, each setting has its name of the command line.
    """
    for name, value in settings.items():
        if value is not None and value is not False:  # 0 is given, too
            return f"{flag(name)}: {source} holds points, not images; leave it out"
    return None


def _make_mixture(centres: NDArray[np.float64], sigma: float, kind: str) -> PointSet:
    """Draw each point from a mode that is drawn first, all modes being equally likely."""
    chosen = _random_words(_MIXTURE_POINTS) % np.uint64(len(centres))  # [count]
    normals = draw_latents(np.array([_SEED], np.uint64), 2 * _MIXTURE_POINTS).reshape(-1, 2)
    points = (centres[chosen] + sigma * normals).astype(np.float32)
    return PointSet(points, centres.astype(np.float32), sigma, kind)


def _random_words(count: int) -> NDArray[np.uint64]:
    """Draw uint64 words [count]; NumPy promises these, unlike its uniforms, for all versions."""
    return np.asarray(np.random.Philox(key=_SEED).random_raw(count), np.uint64)


@dataclass(frozen=True)
class ModeCoverage:
    """How well samples cover the modes of a mixture; the three belong together."""

    modes: int  # with at least one high-quality sample
    high_quality: float  # share of samples within 3 sigma of a mode, 0..1
    reverse_kl: float  # nats; 0 where the samples fall on all modes alike


def mode_coverage(
    samples: NDArray[np.floating], modes: NDArray[np.floating], sigma: float
) -> ModeCoverage:
    """Measure which modes the samples [n, 2] reach, how well, and how evenly.

    The measures of PacGAN (Lin et al. 2018), which takes 2,500 samples: a sample is of
    high quality within 3 sigma of the nearest of the `modes` [m, 2]; a mode is recovered by one
    such sample; the reverse KL divergence is that of the samples, each counted for its nearest
    mode, from the uniform distribution over modes. Samples of the mixture itself reach a high
    quality of 1 - exp(-4.5) = 98.9 %.

    Raises:
        ValueError: there are no samples, or some are not finite.
    """
    _check_samples(samples)
    offsets = samples[:, None, :].astype(np.float64) - modes[None, :, :]  # [n, m, 2]
    distances = np.hypot(offsets[..., 0], offsets[..., 1])  # [n, m]
    nearest = distances.argmin(axis=1)
    good = distances.min(axis=1) <= _HIGH_QUALITY * sigma
    shares = np.bincount(nearest, minlength=len(modes)) / len(samples)
    used = shares[shares > 0]
    return ModeCoverage(
        modes=len(np.unique(nearest[good])),
        high_quality=float(good.mean()),
        # The sum of p log p + log m, whose rounding may fall a hair below zero.
        reverse_kl=max(0.0, float((used * np.log(used * len(modes))).sum())),
    )


def sine_distance(samples: NDArray[np.floating]) -> float:
    """Mean Euclidean distance of samples [n, 2] from the curve `y = sin x`, x in [0, 2 pi].

    Raises:
        ValueError: there are no samples, or some are not finite.
    """
    _check_samples(samples)
    x = np.linspace(0.0, 2.0 * np.pi, _CURVE_SEGMENTS + 1)
    curve = x + 1j * np.sin(x)  # the plane as complex numbers, for they make projecting short
    starts, chords = curve[:-1], np.diff(curve)  # [segments]
    total = 0.0
    for first in range(0, len(samples), _SAMPLES_AT_ONCE):
        some = samples[first : first + _SAMPLES_AT_ONCE].astype(np.float64)
        offsets = (some[:, 0] + 1j * some[:, 1])[:, None] - starts  # [n, segments]
        along = np.clip((offsets * chords.conj()).real / np.abs(chords) ** 2, 0.0, 1.0)
        total += float(np.abs(offsets - along * chords).min(axis=1).sum())
    return total / len(samples)


def _check_samples(samples: NDArray[np.floating]) -> None:
    if samples.ndim != 2 or samples.shape[1] != 2 or not len(samples):
        raise ValueError(f"samples: expected the shape [n, 2], got {list(samples.shape)}")
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples).all(axis=1)).sum())
        raise ValueError(f"samples: expected finite points, got {bad} that are not")
