"""What is measured of samples: real ones, and ones that are bad in a known way."""

import math

import numpy as np
import pytest
import torch

from gantrain.data.datasets import Dataset, load_dataset
from gantrain.evaluation.sample_statistics import Reference, TrainingExamples, pool_examples


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def shuffled(digits):
    """Images and labels in random order; the data set's own order is by writer."""
    order = np.random.default_rng(0).permutation(len(digits.images))
    return digits.images[order], digits.labels[order]


@pytest.fixture(scope="module")
def reference(digits, shuffled):
    """Made of the first 1,400 images; the other 397 are fresh to it."""
    images, labels = shuffled
    return Reference(images[:1400], labels[:1400], digits.class_names, seed=0)


@pytest.fixture(scope="module")
def fresh(shuffled):
    return shuffled[0][-256:]


def with_noise(images, grey_levels, seed=0):
    noise = np.random.default_rng(seed).normal(0, grey_levels, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def make_grid(count, seed=0, modes=25):
    random = np.random.default_rng(seed)
    places = random.integers(0, modes, count)
    centres = 2.0 * np.stack([places % 5, places // 5], axis=1) - 4
    return (centres + random.normal(0, 0.05, (count, 2))).astype(np.float32)


def test_images_are_pooled_to_means_in_one_range_and_never_enlarged():
    images = np.zeros((3, 1, 32, 32), np.uint8)
    images[1] = 255
    images[2, :, ::2] = 255
    pooled = pool_examples(images, np.array([1, 2, 0]))
    assert pooled.shape == (3, 1, 16, 16)
    assert [image.unique().tolist() for image in pooled] == [[1], [0], [-1]]
    small = np.arange(2 * 3 * 64, dtype=np.uint8).reshape(2, 3, 8, 8)
    assert (pool_examples(small, np.arange(2)) == torch.from_numpy(small) / 127.5 - 1).all()


@pytest.mark.parametrize("far", [0, 4096], ids=["near 0", "far from 0"])
def test_nearness_to_training_examples_on_a_line_is_what_one_counts(far: int):
    """In eighths, so that all is exact, small distances far from 0 too."""

    def on_a_line(*places: float) -> torch.Tensor:
        return torch.tensor([[place / 8 + far, 0.0] for place in places])

    examples = TrainingExamples(on_a_line(0, 1, 10, 30), mirrored=False)
    # Nearest others 1 1 9 20, second nearest 10 9 10 29; the 99th of 100 is at 9 + 0.97 x 11.
    found = examples.measure(on_a_line(0.5, 10.5, 100, 30))  # nearest 0.5 0.5 70 0, second 0.5 9.5
    assert found == {
        "training_distance": 0.5,
        "training_distance_data": 1,
        "near_training": 3 / 4,
        "near_training_data": 2 / 4,
        "far_from_training": 1 / 4,
        "far_from_training_data": 1 / 4,
        "copies": 2 / 4,
        "copies_data": 2 / 4,
    }
    assert examples.measure(on_a_line(11, 10 + 20 / 3))["copies"] == 1 / 2
    # Twice the same are two held-out ones at distance 0.
    repeated = TrainingExamples(on_a_line(0, 1, 10, 0, 30), mirrored=False)
    found = repeated.measure(on_a_line(0.5))
    assert found["training_distance"] == 0.5
    assert found["training_distance_data"] == 1
    assert found["near_training_data"] == found["copies_data"] == pytest.approx(3 / 5)
    assert found["far_from_training_data"] == pytest.approx(1 / 5)


def test_two_distinct_examples_are_too_few_to_tell_copies():
    two, three = (torch.eye(count)[:, :2].repeat(2, 1) for count in (2, 3))
    assert TrainingExamples(two, mirrored=False).measure(two) == {}
    assert TrainingExamples(three, mirrored=False).measure(three)["copies"] == 1


def test_samples_of_data_that_are_all_alike_must_be_alike():
    alike = np.full((50, 1, 8, 8), 7, np.uint8)
    reference = Reference(alike, None, (), seed=0)
    same = reference.measure(alike)
    assert (same["diversity"], same["duplicates"]) == (1, 1)
    noise = np.random.default_rng(0).integers(0, 256, alike.shape).astype(np.uint8)
    other = reference.measure(noise)
    assert (other["diversity"], other["duplicates"]) == (0, 0)


def test_data_that_repeat_themselves_do_not_hide_near_duplicates(shuffled):
    data = shuffled[0][:500].repeat(2, axis=0)
    noisy = with_noise(np.repeat(shuffled[0][600:601], 256, axis=0), 2)
    assert Reference(data, None, (), seed=0).measure(noisy)["duplicates"] == 1


def test_one_class_alone_is_no_class_to_tell_from_others(shuffled):
    images = shuffled[0][:200]
    measured = Reference(images, np.zeros(200, np.int64), ("digit",), seed=0).measure(images)
    assert len(measured["class_histogram"]) == 10, "clusters"
    assert "classifier_accuracy" not in measured
    labels = shuffled[1][:200] % 2
    measured = Reference(images, labels, ("even", "odd"), seed=0).measure(images)
    assert len(measured["class_histogram"]) == 2
    assert "classifier_accuracy" in measured


def test_fresh_reals_look_like_the_data(reference, fresh):
    measured = reference.measure(fresh)
    assert measured["diversity"] == pytest.approx(1, abs=0.05)
    assert measured["feature_diversity"] == pytest.approx(1, abs=0.05)
    assert measured["duplicates"] < 0.08
    assert measured["energy_distance"] < 0.01
    assert measured["class_coverage"] == 1
    assert measured["class_distance"] < 0.15
    assert measured["training_distance"] == pytest.approx(1, abs=0.1)
    assert measured["near_training"] < 0.05
    assert measured["far_from_training"] < 0.06
    assert measured["copies"] == 0
    assert measured["dead_pixels"] == pytest.approx(measured["dead_pixels_data"], rel=0.15)


def test_the_numbers_of_the_data_stand_beside_those_of_the_samples(reference, fresh):
    measured = reference.measure(fresh)
    beside = {name.removesuffix("_data") for name in measured if name.endswith("_data")}
    assert measured.keys() == (
        {"diversity", "feature_diversity", "classifier_accuracy"}
        | beside
        | {f"{name}_data" for name in beside}
    )
    assert measured["duplicates_data"] == pytest.approx(0.02, abs=0.01)
    assert measured["energy_distance_data"] < 0.01
    assert measured["class_coverage_data"] == 1
    assert measured["training_distance_data"] == 1
    assert sum(measured["class_histogram_data"]) == pytest.approx(1)


def test_the_classifier_tells_its_accuracy_on_images_left_out(reference, fresh):
    assert 0.9 < reference.measure(fresh)["classifier_accuracy"] < 1


def test_a_classifier_of_what_cannot_be_learned_does_not_claim_to_know(digits, shuffled):
    images, labels = shuffled
    guesses = np.random.default_rng(0).permutation(labels[:1400])
    measured = Reference(images[:1400], guesses, digits.class_names, seed=0).measure(images[1400:])
    assert measured["classifier_accuracy"] < 0.25


def test_one_image_again_and_again_is_no_diversity(reference, fresh):
    measured = reference.measure(with_noise(np.repeat(fresh[:1], 256, axis=0), 5))
    assert measured["diversity"] < 0.1
    assert measured["feature_diversity"] < 0.2
    assert measured["duplicates"] == 1
    assert measured["class_coverage"] == pytest.approx(0.1)


def test_a_few_images_repeated_fail_the_birthday_test_only(reference, fresh):
    measured = reference.measure(np.repeat(fresh[:64], 4, axis=0))
    assert measured["duplicates"] == 1
    assert measured["diversity"] > 0.9


def test_half_of_the_classes_show_in_the_histogram(reference, shuffled):
    images, labels = shuffled
    measured = reference.measure(images[labels < 5][-256:])
    assert measured["class_coverage"] == pytest.approx(0.5)
    assert measured["class_distance"] == pytest.approx(0.5, abs=0.06)
    assert sum(measured["class_histogram"][:5]) > 0.95


def test_clusters_take_the_place_of_classes(shuffled):
    images, labels = shuffled
    reference = Reference(images[:1400], None, (), seed=0)
    half, whole = images[labels < 5][-256:], images[-256:]
    assert len(reference.measure(whole)["class_histogram"]) == 10
    assert reference.measure(whole)["class_coverage"] > 0.9
    assert reference.measure(half)["class_distance"] > 0.35
    assert "classifier_accuracy" not in reference.measure(whole)


def test_training_images_with_noise_are_copies(reference, shuffled):
    copies = with_noise(shuffled[0][:256], 10)
    measured = reference.measure(copies)
    assert measured["copies"] > 0.9
    assert measured["near_training"] > 0.9
    assert measured["training_distance"] < 0.4


def test_mirrored_training_images_are_copies_where_training_mirrors(digits, shuffled):
    images, labels = shuffled
    mirrored = images[:256, :, :, ::-1]
    told = [
        Reference(images[:1400], labels[:1400], digits.class_names, 0, mirrored=value).measure(
            mirrored
        )["copies"]
        for value in (False, True)
    ]
    assert told[0] < 0.1
    assert told[1] == 1


def test_fresh_reals_of_data_that_repeat_themselves_are_no_memorisation(shuffled):
    images, _ = shuffled
    # Two thirds of all images are one of 50; what is fresh is too.
    random = np.random.default_rng(1)
    often, rare = images[:50], images[50:]
    data = np.concatenate([often[random.integers(0, 50, 1200)], rare[:600]])
    sample = np.concatenate([often[random.integers(0, 50, 170)], rare[600:686]])
    measured = Reference(data, None, (), seed=0).measure(sample)
    assert measured["copies"] == pytest.approx(measured["copies_data"], abs=0.08)
    assert measured["near_training"] == pytest.approx(measured["near_training_data"], abs=0.08)
    assert measured["copies_data"] > 0.5


def test_a_few_repeated_images_do_not_hide_memorisation(shuffled):
    images, _ = shuffled
    data = np.concatenate([images[:1000], images[:100]])
    measured = Reference(data, None, (), seed=0).measure(images[200:456])
    assert measured["near_training"] == measured["copies"] == 1
    assert measured["near_training_data"] < 0.3


def test_noise_is_off_the_data(reference):
    noise = np.random.default_rng(0).integers(0, 256, (256, 1, 8, 8)).astype(np.uint8)
    measured = reference.measure(noise)
    assert measured["far_from_training"] == 1
    assert measured["energy_distance"] > 0.05
    assert measured["duplicates"] == 0


def test_white_dots_are_counted():
    ground = np.zeros((40, 3, 32, 32), np.uint8)
    ground[:, :, 8:24, 8:24] = np.arange(40, dtype=np.uint8)[:, None, None, None] + 150
    reference = Reference(ground, None, (), seed=0)
    assert reference.measure(ground)["dead_pixels"] == 0  # corners have neighbours of their kind
    dotted = ground.copy()
    dotted[:, :, 2::9, 2::9] = 255  # 4 x 4 of them
    for images in (dotted, 255 - dotted):
        measured = reference.measure(images)
        assert measured["dead_pixels"] == pytest.approx(16 / 1024)
        assert measured["dead_pixels_data"] == 0
    for stands_out, expected in ((64, 0), (65, 16 / 1024)):  # more than a quarter of the range
        faint = ground.copy()
        faint[:, :, 2::9, 2::9] += np.uint8(stands_out)
        assert reference.measure(faint)["dead_pixels"] == pytest.approx(expected)


def test_points_between_the_modes_and_missing_modes_are_told_apart():
    reference = Reference(make_grid(20_000), None, (), seed=0)
    whole = reference.measure(make_grid(256, seed=1))
    few = reference.measure(make_grid(256, seed=1, modes=12))
    between = reference.measure(make_grid(256, seed=1) + np.float32(1))
    assert whole["class_coverage"] > 0.9
    assert few["class_coverage"] == pytest.approx(12 / 25, abs=0.05)
    assert few["class_distance"] > 0.4
    assert whole["far_from_training"] < 0.05
    assert between["far_from_training"] == 1
    assert "dead_pixels" not in whole


def test_the_same_data_and_seed_give_the_same_numbers(digits, shuffled, fresh):
    images, labels = shuffled
    made = [Reference(images[:400], labels[:400], digits.class_names, seed=5) for _ in range(2)]
    assert made[0].measure(fresh) == made[1].measure(fresh)


def test_no_random_number_is_taken_from_training(shuffled, fresh):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    Reference(shuffled[0][:300], None, (), seed=0).measure(fresh)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8), id="two"),
        pytest.param(np.zeros((50, 3, 12, 12), np.uint8), id="all-alike"),
        pytest.param(np.ones((30, 2), np.float32), id="points-all-alike"),
        pytest.param(np.eye(9, 2, dtype=np.float32), id="three-distinct-points"),
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_little_data_gives_finite_numbers(examples, labelled):
    labels = np.arange(len(examples)) % 2 if labelled else None
    reference = Reference(examples, labels, ("a", "b") if labelled else (), seed=0)
    for value in reference.measure(examples).values():
        assert np.isfinite(value).all()


def test_more_samples_do_not_look_like_more_duplicates(reference, shuffled):
    many = np.concatenate([shuffled[0][:1024]])
    assert reference.measure(many)["duplicates"] < 0.06
    assert math.isclose(sum(reference.measure(many)["class_histogram"]), 1)
