"""Seeds on the command line."""

import pytest

from ganserve.seed_ranges import MAX_SEEDS, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        pytest.param("0", (0,), id="zero"),
        pytest.param("0,7,12-15", (0, 7, 12, 13, 14, 15), id="mixed"),
        pytest.param("5-5", (5,), id="range-of-one"),
        pytest.param("9,1,9", (9, 1, 9), id="order-and-repetition-kept"),
        pytest.param(" 1, 2 ", (1, 2), id="spaces"),
        pytest.param("18446744073709551615", (2**64 - 1,), id="largest"),
    ],
)
def test_seeds_are_read_as_written(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("5-3", "smaller end of a range first, got '5-3'", id="backwards"),
        pytest.param("1,x", "such as 0,7,12-15, got 'x'", id="word"),
        pytest.param("", "got ''", id="empty"),
        pytest.param("1,,2", "got ''", id="empty-part"),
        pytest.param("-1", "got '-1'", id="negative"),
        pytest.param("1.5", "got '1.5'", id="fraction"),
        pytest.param("1-2-3", "got '1-2-3'", id="two-dashes"),
        pytest.param("\u0663", "such as 0,7,12-15", id="other-digits"),
        pytest.param(str(2**64), f"below 2^64, got {2**64}", id="too-large"),
        pytest.param(f"0-{2**64}", f"below 2^64, got {2**64}", id="range-too-large"),
        pytest.param(f"0-{MAX_SEEDS}", f"at most {MAX_SEEDS} seeds", id="too-many"),
        pytest.param(f"0-{2**64 - 1}", f"at most {MAX_SEEDS} seeds", id="far-too-many"),
    ],
)
def test_what_is_no_list_of_seeds_is_refused_with_the_reason(text, problem):
    with pytest.raises(ValueError, match="expected") as raised:
        parse_seeds(text)
    assert problem in str(raised.value)
