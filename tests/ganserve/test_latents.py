import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganserve.latents import (
    draw_latents,
    few_philox4x32,
    interpolate_latents,
    philox4x32,
    truncate,
)

# Random123's published known answers for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    pytest.param(
        ["00000000", "00000000", "00000000", "00000000"],
        ["00000000", "00000000"],
        ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"],
        id="zeros",
    ),
    pytest.param(
        ["ffffffff", "ffffffff", "ffffffff", "ffffffff"],
        ["ffffffff", "ffffffff"],
        ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"],
        id="ones",
    ),
    pytest.param(
        ["243f6a88", "85a308d3", "13198a2e", "03707344"],
        ["a4093822", "299f31d0"],
        ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
        id="digits of pi",
    ),
]

# Five latents of each seed, as the bits of big-endian float32. The table is in docs/artifact.md;
# it was computed with Python's integers and `math`, without NumPy.
GOLDEN_LATENTS = {
    0: "3f7dbb33 bf6cb6b0 bf1e1b9f bef6d1b2 be1d5357",
    1: "3ec2c3e3 be97b1bc be7f370c bf807dbd 3f207fa8",
    2: "bfa751ca 3cb70518 be3a4b1f 3e083f73 3e8b710c",
    2**32 - 1: "3e8f22be bd0be9c6 bf354f87 3d259a40 3f35623e",
    2**32: "3e03389d bc8ebec8 3f833902 bfbbf305 bf015c4f",
    0x0123456789ABCDEF: "3de16bed bf4d97ec c00e4db4 3e9a0fb4 bec317b0",
    2**64 - 1: "3f8c9ec9 3f21de8f 3f255714 3f3ac13d bf174864",
}


def seeds(*values):
    return np.array(values, np.uint64)


def bits(latents):
    return " ".join(struct.pack(">f", value).hex() for value in latents)


def words(hexadecimal):
    return np.array([int(word, 16) for word in hexadecimal], np.uint64)[:, None, None]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    result = philox4x32(words(counter), words(key))
    assert [f"{word:08x}" for word in result.ravel()] == expected


@pytest.mark.parametrize("seed", [pytest.param(seed, id=str(seed)) for seed in GOLDEN_LATENTS])
def test_a_seed_has_its_golden_latents(seed):
    latents = draw_latents(seeds(seed), 5)
    assert latents.dtype == np.float32
    assert bits(latents[0]) == GOLDEN_LATENTS[seed]


def test_the_golden_seeds_in_one_batch_have_the_same_latents():
    latents = draw_latents(seeds(*GOLDEN_LATENTS), 5)
    assert [bits(row) for row in latents] == list(GOLDEN_LATENTS.values())


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=70),
    latent_dim=st.integers(1, 70),
)
def test_latents_do_not_depend_on_batch_or_position(values, latent_dim):
    batch = draw_latents(seeds(*values), latent_dim)
    assert batch.shape == (len(values), latent_dim)
    alone = np.concatenate([draw_latents(seeds(value), latent_dim) for value in values])
    backwards = draw_latents(seeds(*values[::-1]), latent_dim)[::-1]
    assert batch.tobytes() == alone.tobytes() == backwards.tobytes()


@pytest.mark.parametrize("latent_dim", [1, 2, 3, 4, 5, 64, 513])
def test_fewer_latents_are_the_first_of_more(latent_dim):
    assert (draw_latents(seeds(7), latent_dim) == draw_latents(seeds(7), 516)[:, :latent_dim]).all()


def test_latents_are_standard_normal():
    latents = draw_latents(np.arange(4000, dtype=np.uint64), 64).astype(np.float64)
    assert np.isfinite(latents).all()
    assert abs(latents.mean()) < 4 / math.sqrt(latents.size)
    assert abs(latents.var() - 1) < 4 * math.sqrt(2 / latents.size)
    assert abs((latents**4).mean() - 3) < 4 * math.sqrt(96 / latents.size)
    assert np.abs(np.corrcoef(latents.T) - np.eye(64)).max() < 6 / math.sqrt(len(latents))


def test_truncation_multiplies_in_float32():
    full = draw_latents(seeds(3), 8)
    half = truncate(full, 0.7)
    assert half.dtype == np.float32
    assert (half == full * np.float32(0.7)).all()
    assert (truncate(full, 1.0) == full).all()


def test_an_interpolation_passes_through_its_seeds_and_ends_at_the_last():
    walk = interpolate_latents(seeds(1, 2, 5), 4, 16)
    assert walk.shape == (9, 16)
    assert walk.dtype == np.float32
    assert (walk[::4] == draw_latents(seeds(1, 2, 5), 16)).all()


def test_interpolation_is_spherical():
    start, end = draw_latents(seeds(1, 2), 16).astype(np.float64)
    angle = math.acos(start @ end / (np.linalg.norm(start) * np.linalg.norm(end)))
    expected = [
        (math.sin((1 - t) * angle) * start + math.sin(t * angle) * end) / math.sin(angle)
        for t in (0, 0.25, 0.5, 0.75)
    ]
    np.testing.assert_allclose(interpolate_latents(seeds(1, 2), 4, 16)[:4], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("stations", "latent_dim"),
    [
        pytest.param((9, 9), 16, id="the same seed twice"),
        pytest.param((1, 2), 1, id="one latent: always parallel"),
    ],
)
def test_parallel_stations_are_joined_by_a_straight_line(stations, latent_dim):
    start, end = draw_latents(seeds(*stations), latent_dim).astype(np.float64)
    middle = interpolate_latents(seeds(*stations), 2, latent_dim)[1]
    np.testing.assert_allclose(middle, (start + end) / 2, rtol=1e-6)


def test_the_way_from_a_seed_to_itself_stays_there():
    # Of many, for the cosine of some is rounded to more than 1.
    stations = seeds(*np.repeat(np.arange(200), 2))
    walk = interpolate_latents(stations, 2, 16)
    np.testing.assert_allclose(walk[1::4], draw_latents(stations[::2], 16), rtol=1e-6)


@given(
    values=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20),
    blocks=st.integers(1, 70),
)
def test_few_blocks_are_drawn_as_many_are(values, blocks):
    key = np.stack([seeds(*values) & np.uint64(2**32 - 1), seeds(*values) >> np.uint64(32)])
    counter = np.zeros((4, len(values), blocks), np.uint64)
    counter[0] = np.arange(blocks)
    few = few_philox4x32(key[:, :, None], blocks)
    assert few.dtype == np.uint64
    assert (few == philox4x32(counter, key[:, :, None])).all()


@pytest.mark.parametrize("latent_dim", [1, 4, 99, 100])
def test_latents_do_not_depend_on_how_many_are_drawn_together(latent_dim):
    many = np.random.default_rng(3).integers(0, 2**64, 300, dtype=np.uint64)
    together = draw_latents(many, latent_dim)
    for count in (1, 2, 3, 7, 8, 9, 16, 50):
        for first in range(0, 300, 37):
            part = draw_latents(many[first : first + count], latent_dim)
            assert (part == together[first : first + count]).all()
