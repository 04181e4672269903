import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge

from gantrain.evaluation.random_features import Features, find_clusters, fit_classes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_features_of_the_images_they_are_made_from_are_standardised():
    images = torch.randn(300, 3, 16, 16, generator=seeded())
    features = Features(images, seed=1)(images)
    assert features.mean(0).abs().max() < 1e-5
    assert features.std(0) == pytest.approx(1, abs=0.1)
    assert torch.equal(features, Features(images, seed=1)(images))
    assert not torch.equal(features, Features(images, seed=2)(images))


def test_an_even_grey_excites_no_filter_inside():
    """At the border the padding is an edge."""
    grey = torch.full((2, 1, 16, 16), 0.5)
    features = Features(torch.randn(50, 1, 16, 16, generator=seeded()), 0)
    still, dark = features(grey), features(torch.zeros(2, 1, 16, 16))
    middle = torch.zeros(48, 4, 4, dtype=torch.bool)
    middle[:, 1:3, 1:3] = True
    torch.testing.assert_close(still[:, middle.flatten()], dark[:, middle.flatten()])


def test_points_are_their_own_features():
    points = torch.randn(5, 2, generator=seeded())
    assert Features(points, 0)(points) is points


def test_the_classifier_is_scikit_learns_ridge_on_four_fifths():
    scales = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4])  # some weigh less than the ridge
    features = scales * torch.randn(200, 5, generator=seeded()) + 3
    noisy = (features - 3) / scales + torch.randn(200, 5, generator=seeded(1))
    labels = noisy.argmax(1).numpy() % 3
    found = fit_classes(features, labels, 3)
    ridge = Ridge(alpha=0.01 * 160).fit(features[:160].numpy(), np.eye(3)[labels[:160]])
    others = scales * torch.randn(10_000, 5, generator=seeded(2)) + 3
    assert (found(others).numpy() == ridge.predict(others.numpy()).argmax(1)).mean() > 0.999
    right = ridge.predict(features[160:].numpy()).argmax(1) == labels[160:]
    assert 0.4 < right.mean() < 0.95, "a test that tells"
    assert found.accuracy == pytest.approx(right.mean())


def test_a_class_without_examples_is_a_class():
    found = fit_classes(torch.eye(10), np.arange(10) % 2, 3)
    assert found.histogram(torch.eye(10)).shape == (3,)


def test_one_example_leaves_none_to_measure_accuracy_with():
    assert fit_classes(torch.ones(1, 2), np.zeros(1, np.int64), 2).accuracy is None


def test_clusters_are_by_the_nearest_centre_and_the_largest_is_first():
    sizes, centres = (40, 100, 60), torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = centres.repeat_interleave(torch.tensor(sizes), 0)
    points = points + 0.1 * torch.randn(200, 2, generator=seeded())
    found = find_clusters(points, seed=0, points=True)
    histogram = found.histogram(points)
    assert len(histogram) == 25
    assert histogram.tolist() == sorted(histogram.tolist(), reverse=True)
    few = find_clusters(centres.repeat(4, 1) + torch.arange(12)[:, None] / 100, 0, points=True)
    assert len(few.histogram(centres)) == 3, "four distinct points a cluster"
    assert len(few(centres).unique()) == 3
    by_hand = KMeans(25, n_init=3, max_iter=50, random_state=0).fit(points.numpy())
    shares = np.sort(np.bincount(by_hand.labels_))[::-1] / 200
    assert histogram.numpy() == pytest.approx(shares)
