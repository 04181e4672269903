"""The seed contract: which latents a seed stands for, defined in docs/artifact.md."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SEED_CONTRACT = "philox4x32-10/box-muller/1"

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL_KEYS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


def philox4x32(
    counter: tuple[NDArray[np.uint64], ...], key: tuple[NDArray[np.uint64], ...]
) -> tuple[NDArray[np.uint64], ...]:
    """Philox4x32-10 (Salmon et al. 2011): four counter and two key words to four words.

    Words are 32-bit values held in uint64 arrays, which must broadcast together.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p, q = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (q >> _WORD) ^ c1 ^ k0, q & _LOW, (p >> _WORD) ^ c3 ^ k1, p & _LOW
        k0, k1 = (k0 + np.uint64(_WEYL_KEYS[0])) & _LOW, (k1 + np.uint64(_WEYL_KEYS[1])) & _LOW
    return c0, c1, c2, c3


def draw_latents(seeds: NDArray[np.uint64], latent_dim: int) -> NDArray[np.float32]:
    """Standard normal latents [n, latent_dim] of uint64 seeds [n], each row of its seed alone."""
    seeds = np.asarray(seeds, np.uint64)[:, None]  # [n, 1]
    blocks = np.arange(-(-latent_dim // 4), dtype=np.uint64)[None, :]  # [1, blocks]
    zero = np.zeros((1, 1), np.uint64)
    words = philox4x32((blocks, zero, zero, zero), (seeds & _LOW, seeds >> _WORD))
    uniforms = [(word.astype(np.float64) + 0.5) / 2.0**32 for word in words]
    normals = []
    for u, v in (uniforms[:2], uniforms[2:]):
        radius, angle = np.sqrt(-2.0 * np.log(u)), 2.0 * np.pi * v
        normals += [radius * np.cos(angle), radius * np.sin(angle)]
    values = np.stack(normals, axis=-1).astype(np.float32)  # [n, blocks, 4]
    return np.ascontiguousarray(values.reshape(len(seeds), -1)[:, :latent_dim])


def interpolate_latents(
    stations: NDArray[np.float32], frames_per_segment: int
) -> NDArray[np.float32]:
    """Spherical steps between neighbouring rows of [stations, latent_dim], the last row included.

    Returns [frames_per_segment * (stations - 1) + 1, latent_dim].
    """
    steps = np.arange(frames_per_segment)[:, None] / frames_per_segment  # [frames, 1]
    frames = []
    for start, end in pairwise(stations.astype(np.float64)):
        cosine = start @ end / (np.linalg.norm(start) * np.linalg.norm(end))
        angle = np.arccos(np.clip(cosine, -1.0, 1.0))
        if np.sin(angle) < 1e-6:
            frames.append((1 - steps) * start + steps * end)
        else:
            frames.append(
                (np.sin((1 - steps) * angle) * start + np.sin(steps * angle) * end) / np.sin(angle)
            )
    return np.concatenate([*frames, stations[-1:]]).astype(np.float32)
