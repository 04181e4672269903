import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gantrain.latents import draw_latents, interpolate_latents, philox4x32

# Random123's published known answers for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    pytest.param("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8", id="0"),
    pytest.param("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd", id="1"),
    pytest.param(
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
        id="pi",
    ),
]

# The first five latents of each seed as big-endian float32: the same literals as in the tests of
# ganserve and in docs/artifact.md.
GOLDEN_LATENTS = {
    0: "3f7dbb33 bf6cb6b0 bf1e1b9f bef6d1b2 be1d5357",
    1: "3ec2c3e3 be97b1bc be7f370c bf807dbd 3f207fa8",
    2: "bfa751ca 3cb70518 be3a4b1f 3e083f73 3e8b710c",
    2**32 - 1: "3e8f22be bd0be9c6 bf354f87 3d259a40 3f35623e",
    2**32: "3e03389d bc8ebec8 3f833902 bfbbf305 bf015c4f",
    0x0123456789ABCDEF: "3de16bed bf4d97ec c00e4db4 3e9a0fb4 bec317b0",
    2**64 - 1: "3f8c9ec9 3f21de8f 3f255714 3f3ac13d bf174864",
}


def bits(latents: np.ndarray) -> str:
    return " ".join(struct.pack(">f", value).hex() for value in latents)


def words(text: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array([int(word, 16)], np.uint64) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str):
    result = philox4x32(words(counter), words(key))
    assert " ".join(f"{word[0]:08x}" for word in result) == expected


def test_seeds_have_their_golden_latents():
    latents = draw_latents(np.array(list(GOLDEN_LATENTS), np.uint64), 5)
    assert latents.dtype == np.float32
    assert [bits(row) for row in latents] == list(GOLDEN_LATENTS.values())


def test_the_definition_shows_the_golden_latents():
    page = (Path(__file__).parents[2] / "docs" / "artifact.md").read_text()
    for seed, latents in GOLDEN_LATENTS.items():
        assert f"| `{seed}` | `{latents}` |" in page


@settings(max_examples=50, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=70),
    latent_dim=st.integers(1, 70),
)
def test_latents_do_not_depend_on_batch_or_position(seeds: list[int], latent_dim: int):
    batch = draw_latents(np.array(seeds, np.uint64), latent_dim)
    alone = [draw_latents(np.array([seed], np.uint64), latent_dim) for seed in seeds]
    assert batch.tobytes() == np.concatenate(alone).tobytes()


def test_interpolation_keeps_to_the_sphere_and_ends_at_the_last_seed():
    stations = draw_latents(np.arange(3, dtype=np.uint64), 16)
    frames = interpolate_latents(stations, 4)
    assert frames.shape == (9, 16)
    assert frames.dtype == np.float32
    assert np.array_equal(frames[-1], stations[-1])
    np.testing.assert_allclose(frames[[0, 4]], stations[:2], rtol=1e-6)
    assert min(np.linalg.norm(frames, axis=1)) > 0.6 * min(np.linalg.norm(stations, axis=1))


@pytest.mark.parametrize("latent_dim", [1, 4])  # of one number no rounding parts the two
@pytest.mark.parametrize("factor", [pytest.param(1, id="equal"), pytest.param(3, id="longer")])
def test_parallel_stations_are_joined_by_a_straight_line(factor: int, latent_dim: int):
    """Equal ones are what `--seeds 3,3 --interpolate` asks for."""
    station = draw_latents(np.array([3], np.uint64), latent_dim)
    frames = interpolate_latents(np.concatenate([station, factor * station]), 2)
    np.testing.assert_allclose(frames[1], (1 + factor) / 2 * station[0], rtol=1e-6)
