from ganserve.batching.latency_estimate import LatencyEstimate


def test_nothing_is_known_before_the_first_call():
    assert LatencyEstimate().expect(1) == float("inf")


def test_a_size_is_expected_to_take_as_long_as_the_last_time():
    estimate = LatencyEstimate()
    estimate.update(1, 0.25)
    estimate.update(16, 0.5)
    assert (estimate.expect(1), estimate.expect(16), estimate.expect(9)) == (0.25, 0.5, 0.5)


def test_a_size_never_seen_takes_in_proportion_to_the_next_smaller_one():
    estimate = LatencyEstimate()
    estimate.update(2, 0.25)
    assert (estimate.expect(4), estimate.expect(16)) == (0.5, 2.0)
    assert estimate.expect(1) == float("inf")


def test_one_slow_call_counts_little_and_a_quick_one_at_once():
    estimate = LatencyEstimate()
    estimate.update(4, 1.0)
    estimate.update(4, 11.0)
    assert estimate.expect(4) == 2.0
    estimate.update(4, 0.5)
    assert estimate.expect(4) == 0.5


def test_slow_calls_are_believed_in_the_end():
    estimate = LatencyEstimate()
    estimate.update(4, 1.0)
    for _ in range(60):
        estimate.update(4, 10.0)
    assert estimate.expect(4) > 9.9
