"""The histogram of latencies: its percentiles are numpy's to 0.1 %, and histograms add up."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ganserve.load_test.latency_histogram import PERCENTILES, LatencyHistogram

PERCENTS = [0.1, 1, 25, 50, 90, 99, 99.9, 99.99, 100]
# From nothing to eleven days; small ones too, where buckets are a nanosecond wide.
NANOSECONDS = st.integers(0, 5000) | st.integers(0, 10**15)


def filled(times) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for seconds in times:
        histogram.record(seconds)
    return histogram


def check_percentiles(histogram: LatencyHistogram, times) -> None:
    for percent in PERCENTS:
        # The definition of numpy's "inverted_cdf", whose own rank is subject to rounding.
        exact = np.sort(times)[math.ceil(len(times) * Fraction(str(percent)) / 100) - 1]
        if percent in (25, 50, 100):  # exact in floating point
            assert exact == np.percentile(times, percent, method="inverted_cdf")
        found = histogram.percentile(percent)
        assert exact - 1e-9 <= found <= exact * (1 + 2**-10) + 1e-9, percent


@pytest.mark.parametrize("count", [1, 2, 10, 999, 20_000])
def test_percentiles_are_those_of_numpy(count):
    times = np.random.default_rng(count).lognormal(-6, 2, count)
    check_percentiles(filled(times), times)


@given(st.lists(NANOSECONDS, min_size=1, max_size=200))
def test_any_times_keep_three_digits(nanoseconds):
    times = [number / 1e9 for number in nanoseconds]
    check_percentiles(filled(times), times)


@given(st.lists(st.lists(NANOSECONDS, max_size=50), max_size=4))
def test_histograms_of_parts_add_up_to_that_of_the_whole(parts):
    parts = [[number / 1e9 for number in part] for part in parts]
    merged = LatencyHistogram.merged([filled(part) for part in parts])
    assert merged == filled([seconds for part in parts for seconds in part])


@given(st.lists(NANOSECONDS, max_size=50))
def test_it_survives_the_way_to_another_process(nanoseconds):
    adapter = TypeAdapter(LatencyHistogram)
    histogram = filled(number / 1e9 for number in nanoseconds)
    assert adapter.validate_json(adapter.dump_json(histogram)) == histogram


def test_the_longest_and_the_mean_are_exact():
    histogram = filled([0.123456789, 7.000000001])
    assert histogram.percentile(100) == 7.000000001
    assert histogram.mean == pytest.approx(3.561728395, abs=1e-12)


def test_a_million_times_need_little_memory():
    histogram = filled(np.random.default_rng(0).uniform(0.001, 30, 100_000))
    assert len(histogram.counts) < 2**10 * 15  # 15 powers of two


def test_a_clock_that_jumps_back_counts_as_no_time():
    assert filled([-1e-9]).percentile(50) == 0


def test_a_summary_names_the_percentiles_and_is_empty_without_times():
    assert filled([]).summary() == {}
    assert list(filled([1]).summary()) == list(PERCENTILES) == ["p50", "p90", "p99", "p99.9", "max"]
