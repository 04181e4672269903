from dataclasses import replace

import numpy as np
import pytest

from gantrain.data.datasets import Dataset
from gantrain.data.stacked_mnist import STACKED_KIND
from gantrain.evaluation.examples import RealData
from gantrain.evaluation.yardstick import find_marginals, measure_classes

LABELS = np.array([0, 0, 0, 1])


def data_of(source: str, kind: str = "image folder") -> RealData:
    """Four classes: half of the images are of the first, none of the last."""
    labels = np.array([0, 0, 1, 2])
    images = np.zeros((4, 1, 8, 8), np.uint8)
    train = Dataset(images, labels, ("a", "b", "c", "none"), kind)
    return RealData(source, train, None, trained_on=True)


def test_marginals_are_the_shares_of_all_classes_there_are():
    marginals = find_marginals(data_of("photos"))
    assert marginals is not None
    assert marginals.tolist() == [1 / 2, 1 / 4, 1 / 4, 0]
    data = data_of("photos")
    assert find_marginals(replace(data, train=replace(data.train, labels=None))) is None


def test_class_distance_by_hand():
    marginals = np.array([1 / 2, 1 / 4, 1 / 4, 0])
    found = measure_classes(LABELS, marginals, data_of("photos"))
    # 3/4 for 1/2 and 1/4 for 1/4, 0 for 1/4: what would have to move is 1/4.
    assert found == {"class_distance": pytest.approx(1 / 4)}
    assert measure_classes(np.array([3]), marginals, data_of("photos")) == {"class_distance": 1}


def test_modes_and_reverse_kl_by_hand():
    stacks = data_of("stacked-mnist:digits", STACKED_KIND)
    marginals = np.array([1 / 2, 1 / 4, 1 / 4, 0])
    found = measure_classes(LABELS, marginals, stacks)
    divergence = 3 / 4 * np.log(3 / 2) + 1 / 4 * np.log(1)
    from_uniform = 3 / 4 * np.log(3) + 1 / 4 * np.log(1)
    assert found == {
        "modes": 2,
        "reverse_kl": pytest.approx(divergence),
        "reverse_kl_uniform": pytest.approx(from_uniform),
    }
    perfect = measure_classes(np.array([2, 0, 1, 0]), marginals, stacks)
    assert perfect == {
        "modes": 3,
        "reverse_kl": pytest.approx(0),
        "reverse_kl_uniform": pytest.approx(1 / 2 * np.log(2)),
    }
