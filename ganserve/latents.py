"""Seeds become latents by the contract `philox4x32-10/box-muller/1` of docs/artifact.md.

Philox4x32-10 is the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (2011). Each seed has a stream of its own, so a latent depends on its seed alone.
"""

import functools

import numpy as np
from numpy.typing import NDArray

SEED_CONTRACT = "philox4x32-10/box-muller/1"

_LOW_32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
# One row for each word pair of the counter, ready to broadcast over [2, n, blocks].
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64).reshape(2, 1, 1)
_WEYL_KEYS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64).reshape(2, 1, 1)
# Measured: up to here Python's integers are faster than NumPy's arrays, 4 times for one seed.
_FEW_BLOCKS = 200
_ROUNDS = np.arange(10, dtype=np.uint64).reshape(10, 1, 1, 1)

Words = NDArray[np.uint64]  # 32-bit words, kept in 64 bits so that products are exact


def draw_latents(
    seeds: NDArray[np.uint64],  # [n]
    latent_dim: int,
) -> NDArray[np.float32]:  # [n, latent_dim]
    """Draw the latents of each seed."""
    blocks = -(-latent_dim // 4)
    key = np.empty((2, len(seeds), 1), np.uint64)
    key[0, :, 0], key[1, :, 0] = seeds & _LOW_32, seeds >> _32
    if len(seeds) * blocks <= _FEW_BLOCKS:
        words = few_philox4x32(key, blocks)
    else:
        counter = np.zeros((4, len(seeds), blocks), np.uint64)
        counter[0] = np.arange(blocks, dtype=np.uint64)
        words = philox4x32(counter, key)
    normals = _box_muller(words)  # [n, blocks, 4]
    return np.ascontiguousarray(normals.reshape(len(seeds), blocks * 4)[:, :latent_dim])


def interpolate_latents(
    seeds: NDArray[np.uint64],  # [stations], at least two
    frames_per_segment: int,
    latent_dim: int,
) -> NDArray[np.float32]:  # [frames_per_segment * (stations - 1) + 1, latent_dim]
    """Walk from the latents of each seed to those of the next in spherical steps.

    Frame `frames_per_segment * i` is station i exactly. Shoemake, "Animating rotation with
    quaternion curves" (1985), with straight steps where the stations are (anti)parallel.
    """
    stations = draw_latents(seeds, latent_dim)  # [stations, latent_dim]
    starts = stations[:-1, None].astype(np.float64)  # [segments, 1, latent_dim]
    ends = stations[1:, None].astype(np.float64)
    t = (np.arange(frames_per_segment) / frames_per_segment)[None, :, None]  # [1, frames, 1]
    lengths = np.linalg.norm(starts, axis=-1) * np.linalg.norm(ends, axis=-1)  # [segments, 1]
    cosines = np.clip((starts * ends).sum(axis=-1) / lengths, -1, 1)
    angles = np.arccos(cosines)[..., None]  # [segments, 1, 1]
    parallel = np.sin(angles) < 1e-6
    sines = np.where(parallel, 1, np.sin(angles))
    from_start = np.where(parallel, 1 - t, np.sin((1 - t) * angles) / sines)
    from_end = np.where(parallel, t, np.sin(t * angles) / sines)
    frames = (from_start * starts + from_end * ends).astype(np.float32)
    return np.concatenate([frames.reshape(-1, latent_dim), stations[-1:]])


def truncate(latents: NDArray[np.float32], truncation: float) -> NDArray[np.float32]:
    """Multiply latents [n, latent_dim] by `truncation` in float32."""
    return latents * np.float32(truncation)


def philox4x32(
    counter: Words,  # [4, n, blocks]
    key: Words,  # [2, n, 1]
) -> Words:  # [4, n, blocks]
    """Philox4x32 with ten rounds, elementwise."""
    even, odd = counter[0::2], counter[1::2]  # words 0 and 2, words 1 and 3
    for round_key in (key + _ROUNDS * _WEYL_KEYS) & _LOW_32:
        products = (_MULTIPLIERS * even)[::-1]  # that of word 2 goes to words 0 and 1
        even, odd = (products >> _32) ^ odd ^ round_key, products & _LOW_32
    result = np.empty_like(counter)
    result[0::2], result[1::2] = even, odd
    return result


def few_philox4x32(
    key: Words,  # [2, n, 1]
    blocks: int,
) -> Words:  # [4, n, blocks]
    """Philox4x32 for the counters of `draw_latents`, quick where there are few of them.

    One Python integer holds a word of every block, each in 64 bits of its own, so that a product
    of 32-bit words reaches no neighbour; some hundred steps on integers replace as many on arrays.
    """
    count = key.shape[1]
    lanes = count * blocks
    ones, word0 = _few_lanes(count, blocks)
    low = ones * 0xFFFFFFFF
    word1 = word2 = word3 = 0
    key0, key1 = _spread(key[0, :, 0].tolist(), blocks), _spread(key[1, :, 0].tolist(), blocks)
    step0, step1 = ones * 0x9E3779B9, ones * 0xBB67AE85
    for _ in range(10):
        product0, product2 = 0xD2511F53 * word0, 0xCD9E8D57 * word2
        word0 = ((product2 >> 32) & low) ^ word1 ^ key0
        word1 = product2 & low
        word2 = ((product0 >> 32) & low) ^ word3 ^ key1
        word3 = product0 & low
        key0, key1 = (key0 + step0) & low, (key1 + step1) & low
    packed = [word.to_bytes(8 * lanes, "little") for word in (word0, word1, word2, word3)]
    words = np.frombuffer(b"".join(packed), "<u8").astype(np.uint64, copy=False)
    return words.reshape(4, count, blocks)


@functools.lru_cache(maxsize=256)
def _few_lanes(count: int, blocks: int) -> tuple[int, int]:
    """A one in each lane, and the number of each block in its own, for so many seeds."""
    numbers = range(blocks)
    return _pack([1] * (count * blocks)), _pack([*numbers] * count)


def _spread(words: list[int], blocks: int) -> int:
    """Each word in all the lanes of its seed."""
    ones, _ = _few_lanes(1, blocks)
    spread = 0
    for word in reversed(words):
        spread = spread << 64 * blocks | word * ones
    return spread


def _pack(words: list[int]) -> int:
    return sum(word << 64 * lane for lane, word in enumerate(words))


def _box_muller(words: Words) -> NDArray[np.float32]:  # [4, n, blocks] to [n, blocks, 4]
    """Two normals of each pair of words (Box and Muller, 1958), in float64, then rounded."""
    uniforms = (words.astype(np.float64) + 0.5) / 2**32
    radii = np.sqrt(-2 * np.log(uniforms[0::2]))  # [2, n, blocks]
    angles = (2 * np.pi) * uniforms[1::2]
    normals = np.empty((*words.shape[1:], 4), np.float32)
    normals[..., 0::2] = (radii * np.cos(angles)).transpose(1, 2, 0)
    normals[..., 1::2] = (radii * np.sin(angles)).transpose(1, 2, 0)
    return normals
