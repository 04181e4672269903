import re

import numpy as np
import pytest

from gantrain.class_labels import (
    choose_labels,
    count_classes,
    labels_by_column,
    labels_on_the_way,
    parse_labels,
    proportional_labels,
    spread_labels,
)

ANIMALS = ("cat", "dog", "great-dane")
YEARS = ("1", "2", "10")  # class folders whose names are numbers, but not their indices


@pytest.mark.parametrize(
    ("text", "names", "labels"),
    [
        pytest.param("cat", ANIMALS, [0], id="name"),
        pytest.param("1", ANIMALS, [1], id="index"),
        pytest.param("dog, 0,great-dane", ANIMALS, [1, 0, 2], id="mixed"),
        pytest.param("0-2,1", ANIMALS, [0, 1, 2, 1], id="range"),
        pytest.param("1,10", YEARS, [0, 2], id="a-number-that-is-a-name-is-that-class"),
        pytest.param("1-10", YEARS, [0, 1, 2], id="as-the-end-of-a-range-too"),
        pytest.param("0", YEARS, [0], id="other-numbers-are-indices"),
        pytest.param("1-2", ("1-2", "x", "y"), [0], id="a-name-like-a-range"),
    ],
)
def test_labels_are_written_as_names_indices_and_ranges(text, names, labels):
    assert parse_labels(text, names).tolist() == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("bird", "expected a class (cat, dog, great-dane) or an index", id="name"),
        pytest.param("3", "or an index from 0 to 2, got '3'", id="index"),
        pytest.param("-1", "got '-1'", id="negative"),
        pytest.param("0,", "got ''", id="empty"),
        pytest.param("2-0", "expected the smaller end of a range first, got '2-0'", id="range"),
        pytest.param("0-7", "got '7'", id="end"),
    ],
)
def test_what_is_no_class_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_labels(text, ANIMALS)


def test_many_names_are_not_all_listed():
    with pytest.raises(ValueError, match=re.escape("(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)")):
        parse_labels("x", [str(number) for number in range(1000)])


def test_one_label_is_for_all_and_none_given_means_all_in_turn():
    assert choose_labels("dog", ANIMALS, 3).tolist() == [1, 1, 1]
    assert choose_labels("dog,cat", ANIMALS, 2).tolist() == [1, 0]
    assert choose_labels(None, ANIMALS, 5).tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="expected 1 label or 3, one for each seed, got 2"):
        choose_labels("dog,cat", ANIMALS, 3)


def test_a_generator_without_classes_takes_no_labels():
    assert choose_labels(None, (), 3) is None
    with pytest.raises(ValueError, match="takes no labels"):
        choose_labels("0", (), 3)


@pytest.mark.parametrize("counts", [(24, 16, 8), (1, 0, 0, 999), (5,), tuple([1] * 1000)], ids=len)
def test_proportional_labels_are_in_the_proportions_in_every_stretch(counts):
    labels = proportional_labels(counts, 2048)
    shares = np.array(counts) / sum(counts)
    assert np.abs(np.bincount(labels, minlength=len(counts)) - 2048 * shares).max() <= 3
    for start in range(0, 2048, 64):
        part = np.bincount(labels[start : start + 64], minlength=len(counts))
        assert np.abs(part - 64 * shares).max() <= 3
    assert not np.isin(labels, np.flatnonzero(shares == 0)).any()


def test_classes_without_images_are_counted_too():
    assert count_classes(np.array([0, 3, 3]), ("a", "b", "c", "d")) == (1, 0, 0, 2)


def test_labels_are_spread_over_all_classes_or_evenly_chosen_ones():
    assert spread_labels(3, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert spread_labels(1000, 4).tolist() == [0, 250, 500, 750]


def test_a_grid_has_its_classes_from_left_to_right():
    assert labels_by_column(2, 4).reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 4
    assert labels_by_column(3, 3).tolist() == [0, 1, 2] * 3


def test_a_segment_of_a_walk_has_the_label_of_the_station_it_starts_from():
    assert labels_on_the_way(np.array([2, 0, 1]), 3).tolist() == [2, 2, 2, 0, 0, 0, 1]
