from ganserve.batching.call_times import CallTimes


def test_nothing_is_known_before_the_first_call():
    assert CallTimes().expect(1) == float("inf")


def test_a_size_is_expected_to_take_as_long_as_the_last_time():
    times = CallTimes()
    times.note(1, 0.25)
    times.note(16, 0.5)
    assert (times.expect(1), times.expect(16), times.expect(9)) == (0.25, 0.5, 0.5)


def test_a_size_never_seen_takes_in_proportion_to_the_next_smaller_one():
    times = CallTimes()
    times.note(2, 0.25)
    assert (times.expect(4), times.expect(16)) == (0.5, 2.0)
    assert times.expect(1) == float("inf")


def test_one_slow_call_counts_little_and_a_quick_one_at_once():
    times = CallTimes()
    times.note(4, 1.0)
    times.note(4, 11.0)
    assert times.expect(4) == 2.0
    times.note(4, 0.5)
    assert times.expect(4) == 0.5


def test_slow_calls_are_believed_in_the_end():
    times = CallTimes()
    times.note(4, 1.0)
    for _ in range(60):
        times.note(4, 10.0)
    assert times.expect(4) > 9.9
