import numpy as np
import pytest

from gantrain.data.point_sets import (
    POINT_SETS,
    ModeCoverage,
    PointSet,
    mode_coverage,
    sine_distance,
)

RING, GRID = POINT_SETS["ring8"](), POINT_SETS["grid25"]()
SINE = POINT_SETS["sine"]()
CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)


def points(*rows):
    return np.array(rows, np.float32)


# The sets


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("sine", "477f556fb9c779388cf4401a224d159758dbcf969b3fcf6f423874a11a004ed8"),
        ("ring8", "c9b33b72cd4c72a11a49969b1c2fb42bf7392b78e4a5a1453ea3be1ef121ce1d"),
        ("grid25", "cc48d82c24323b7e88e22fcbe6a59cee2caa6c96f8904ef534ebe72e6f785799"),
    ],
)
def test_a_name_stands_for_the_same_points_everywhere(name, fingerprint):
    made = POINT_SETS[name]()
    assert made.kind == name
    assert made.fingerprint() == f"sha256:{fingerprint}"


@pytest.mark.parametrize("made", [SINE, RING, GRID], ids=lambda made: made.kind)
def test_points_come_as_the_loop_takes_them(made):
    assert made.points.dtype == np.float32
    assert made.points.shape == (1024 if made is SINE else 100_000, 2)
    assert made.points.flags.c_contiguous
    assert made.points.flags.writeable  # torch warns of arrays that are not
    assert made.class_names == ()


def test_the_sine_runs_through_one_period_without_a_gap():
    x, y = SINE.points.astype(np.float64).T
    assert x.min() >= 0
    assert x.max() < 2 * np.pi
    np.testing.assert_allclose(y, np.sin(x), atol=1e-6)
    assert np.histogram(x, bins=8, range=(0, 2 * np.pi))[0].min() > 100  # 128 expected
    assert (SINE.modes, SINE.sigma) == (None, 0)


def test_the_ring_has_eight_modes_on_the_unit_circle():
    assert RING.sigma == 0.01
    assert RING.modes.shape == (8, 2)
    np.testing.assert_allclose(np.hypot(*RING.modes.T), 1, rtol=1e-6)
    distances = np.linalg.norm(RING.modes[:, None] - RING.modes[None], axis=-1)
    gaps = np.sort(distances, axis=1)[:, 1:3]  # to both neighbours
    np.testing.assert_allclose(gaps, 2 * np.sin(np.pi / 8), rtol=1e-5)


def test_the_grid_has_25_modes_two_apart():
    assert GRID.sigma == 0.05
    ticks = {-4.0, -2.0, 0.0, 2.0, 4.0}
    assert {tuple(mode) for mode in GRID.modes.tolist()} == {(x, y) for x in ticks for y in ticks}


@pytest.mark.parametrize("made", [RING, GRID], ids=lambda made: made.kind)
def test_each_mode_is_a_round_gaussian_and_as_likely_as_the_others(made):
    offsets = made.points[:, None] - made.modes
    nearest = np.linalg.norm(offsets, axis=-1).argmin(axis=1)
    counts = np.bincount(nearest, minlength=len(made.modes))
    expected = len(made.points) / len(made.modes)
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)
    own = offsets[np.arange(len(made.points)), nearest] / made.sigma
    np.testing.assert_allclose(np.cov(own.T), np.eye(2), atol=0.02)
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=0.02)


def test_the_fingerprint_changes_with_a_point_and_with_the_shape():
    fingerprints = {
        PointSet(rows, None, 0.0, "made up").fingerprint()
        for rows in (points((1, 2), (3, 4)), points((1, 2), (3, 5)), points((1, 2, 3, 4)))
    }
    assert len(fingerprints) == 3


# Mode coverage


def test_mode_coverage_by_hand():
    samples = points((0, 0), (0.29, 0), (1, 0.31), (0, 1))  # the third is near, but not near enough
    coverage = mode_coverage(samples, CORNERS, sigma=0.1)
    assert (coverage.modes, coverage.high_quality) == (2, 0.75)
    assert mode_coverage(points((-0.75, 0)), CORNERS, sigma=0.25).high_quality == 1, "just within"
    # Shares 1/2, 1/4, 1/4, 0 against 1/4 each: 1/2 log 2.
    assert coverage.reverse_kl == pytest.approx(0.5 * np.log(2))


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param(CORNERS, ModeCoverage(4, 1.0, 0.0), id="even"),
        pytest.param(CORNERS[[1] * 9], ModeCoverage(1, 1.0, np.log(4)), id="collapsed"),
        pytest.param(CORNERS + 0.4, ModeCoverage(0, 0.0, 0.0), id="even-but-off"),
        pytest.param(points((9, 9)), ModeCoverage(0, 0.0, np.log(4)), id="far"),
    ],
)
def test_modes_quality_and_evenness_are_three_things(samples, expected):
    coverage = mode_coverage(samples, CORNERS, sigma=0.05)
    assert (coverage.modes, coverage.high_quality) == (expected.modes, expected.high_quality)
    assert coverage.reverse_kl == pytest.approx(expected.reverse_kl)


@pytest.mark.parametrize("made", [RING, GRID], ids=lambda made: made.kind)
def test_real_points_reach_the_ceiling(made):
    coverage = mode_coverage(made.points, made.modes, made.sigma)
    assert coverage.modes == len(made.modes)
    assert coverage.high_quality == pytest.approx(1 - np.exp(-4.5), abs=0.001)
    assert 0 <= coverage.reverse_kl < 0.001


# Distance from the sine


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        pytest.param((np.pi / 2, 1), 0, id="on-the-crest"),
        pytest.param((np.pi / 2, 1.5), 0.5, id="above-the-crest"),
        pytest.param((3 * np.pi / 2, -3), 2, id="below-the-trough"),
        pytest.param((-3, -3), 3 * np.sqrt(2), id="before-the-start"),
        pytest.param((2 * np.pi + 3, 4), 5, id="after-the-end"),
        # From (pi, 0), where the slope is -1, along the normal (1, 1).
        pytest.param((np.pi + 0.1, 0.1), 0.1 * np.sqrt(2), id="beside-the-middle"),
    ],
)
def test_sine_distance_by_hand(sample, expected):
    assert sine_distance(points(sample)) == pytest.approx(expected, abs=2e-6)


def test_the_distance_is_the_mean_over_more_samples_than_are_taken_at_once():
    samples = np.tile(points((np.pi / 2, 1), (np.pi / 2, 2)), (1000, 1))
    assert sine_distance(samples) == pytest.approx(0.5, abs=2e-6)
    assert sine_distance(SINE.points) < 2e-6


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        pytest.param(
            points((0, np.nan), (0, 0), (1, 0)), "expected finite points, got 1", id="not-finite"
        ),
        pytest.param(points((0, 0, 0)), r"expected the shape \[n, 2\], got \[1, 3\]", id="3-d"),
        pytest.param(points().reshape(0, 2), r"got \[0, 2\]", id="none"),
    ],
)
def test_samples_that_cannot_be_measured_are_refused(samples, message):
    with pytest.raises(ValueError, match=f"^samples: .*{message}"):
        sine_distance(samples)
    with pytest.raises(ValueError, match=f"^samples: .*{message}"):
        mode_coverage(samples, CORNERS, sigma=0.1)
