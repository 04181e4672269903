import numpy as np
import pytest

from ganserve.models.batch_sizes import are_rows_independent, find_agreeing_sizes

SIZES = (1, 2, 4, 8)
IMAGES = np.random.default_rng(0).integers(0, 255, (8, 2, 2, 3), np.uint8)  # below 255: see below


class Model:
    """Makes the known images, and one grey level more where `is_off(size, position)` says so."""

    def __init__(self, is_off=lambda _size, _position: False):
        self.is_off = is_off
        self.calls = []

    def __call__(self, rows):
        self.calls.append(rows.tolist())
        off = [self.is_off(len(rows), position) for position in range(len(rows))]
        return IMAGES[rows] + np.array(off, np.uint8)[:, None, None, None]


def test_sizes_that_make_the_same_bits_agree():
    assert find_agreeing_sizes(Model(), SIZES) == SIZES


def test_they_are_sorted_and_each_is_there_once():
    assert find_agreeing_sizes(Model(), (8, 2, 2, 4)) == (2, 4, 8)


@pytest.mark.parametrize(
    ("is_off", "agreeing"),
    [
        pytest.param(lambda size, _: size == 1, (2, 4, 8), id="one size"),
        pytest.param(lambda size, _: size < 8, (8,), id="all but the largest"),
        pytest.param(lambda size, _: size == 8, (8,), id="the largest alone"),
        pytest.param(
            lambda size, position: size == 4 and position == 3, (1, 2, 8), id="one position"
        ),
    ],
)
def test_sizes_that_make_other_bits_than_the_largest_do_not(is_off, agreeing):
    assert find_agreeing_sizes(Model(is_off), SIZES) == agreeing


def test_where_a_position_matters_at_the_largest_none_agrees():
    model = Model(lambda size, position: size == 8 and position == 0)
    assert find_agreeing_sizes(model, SIZES) == ()


def test_where_the_largest_does_not_repeat_itself_none_agrees():
    model = Model(lambda size, _: size == 8 and len(model.calls) % 2 == 0)
    assert find_agreeing_sizes(model, SIZES) == ()


@pytest.mark.parametrize("row", [0, 3, 7])
class TestRowsThatDependOnTheirNeighbours:
    @staticmethod
    def brighter_beside(row):
        return lambda rows: IMAGES[rows] + np.uint8(row in rows)

    @pytest.mark.parametrize("sizes", [SIZES, (8,)], ids=["several sizes", "one"])
    def test_agree_at_no_size(self, row, sizes):
        assert find_agreeing_sizes(self.brighter_beside(row), sizes) == ()

    def test_are_not_independent(self, row):
        assert not are_rows_independent(self.brighter_beside(row), 8)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_independent_rows_are_shown_so_by_few_calls(count):
    model = Model()
    assert are_rows_independent(model, count)
    assert [len(call) for call in model.calls] == [count] + [1] * min(count, 3)


def test_rows_are_called_at_several_positions_and_among_several_others():
    model = Model()
    find_agreeing_sizes(model, SIZES)
    calls_of = {size: [call for call in model.calls if len(call) == size] for size in SIZES}
    assert calls_of[4] == [[0, 1, 2, 3], [7, 6, 5, 4], [4, 5, 6, 7]]
    assert len({call[0] for call in calls_of[1]}) == 3
    assert len(calls_of[8]) == 4


def test_a_single_size_is_compared_with_itself():
    assert find_agreeing_sizes(Model(), (1,)) == (1,)
