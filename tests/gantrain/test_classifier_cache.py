import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gantrain.data.datasets import Dataset
from gantrain.evaluation import classifier, classifier_cache
from gantrain.evaluation.classifier import as_tensor, recognise, train_classifier
from gantrain.evaluation.classifier_cache import (
    TrainedClassifier,
    cached_classifier,
    default_cache_folder,
)


def stripes(count: int, seed: int) -> Dataset:
    """Noise whose even rows, or even columns, are darker; easily told apart."""
    random = np.random.default_rng(seed)
    images = random.integers(100, 256, (count, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 2
    images[labels == 0, :, ::2] -= 90
    images[labels == 1, :, :, ::2] -= 90
    return Dataset(images, labels, ("rows", "columns"), "stripes")


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(classifier, "_FEWEST_IMAGES", 4096)


def weights(trained: TrainedClassifier) -> dict[str, torch.Tensor]:
    return trained.network.state_dict()


def assert_equal(one: TrainedClassifier, other: TrainedClassifier) -> None:
    assert (one.accuracy, one.held_out, one.of_class) == (
        other.accuracy,
        other.held_out,
        other.of_class,
    )
    assert all(torch.equal(weights(one)[name], value) for name, value in weights(other).items())


def test_the_same_data_train_once_and_what_is_read_sees_alike(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    train, held_out = stripes(200, 0), stripes(50, 1)
    first = cached_classifier(train, held_out, tmp_path)
    again = cached_classifier(stripes(200, 0), stripes(50, 1), tmp_path)
    assert caplog.text.count("training a classifier of 2 classes on 200 images") == 1
    assert_equal(first, again)
    assert first.accuracy == 1
    assert first.of_class == (1, 1)
    assert first.held_out == 50
    looks = [recognise(each.network, held_out.images).features for each in (first, again)]
    assert torch.equal(*looks)


def test_a_second_training_ends_with_the_same_weights(tmp_path: Path):
    state = torch.random.get_rng_state()
    one = cached_classifier(stripes(100, 0), None, tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), state), "training draws from its own stream"
    torch.manual_seed(7)
    assert_equal(one, cached_classifier(stripes(100, 0), None, tmp_path / "b"))


def test_other_data_and_other_held_out_images_have_their_own_classifier(tmp_path: Path):
    for train, held_out in (
        (stripes(100, 0), None),
        (stripes(100, 1), None),
        (stripes(100, 0), stripes(20, 2)),
    ):
        cached_classifier(train, held_out, tmp_path)
    assert len(list((tmp_path / "classifiers").iterdir())) == 3


def test_a_class_without_images_has_its_own_classifier(tmp_path: Path):
    few = stripes(100, 0)
    more = replace(few, class_names=(*few.class_names, "spots"))
    assert more.fingerprint() == few.fingerprint()
    made = [cached_classifier(each, None, tmp_path) for each in (few, more, few)]
    assert [len(each.network.logits[1].bias) for each in made] == [2, 3, 2]
    assert [len(each.of_class) for each in made] == [2, 3, 2]


def test_without_a_test_split_a_fifth_is_never_learned_from(tmp_path: Path, monkeypatch):
    learned = []

    def record(images, labels, classes):
        learned.append(images)
        return train_classifier(images, labels, classes)

    monkeypatch.setattr(classifier_cache, "train_classifier", record)
    trained = cached_classifier(stripes(100, 0), None, tmp_path)
    assert trained.held_out == 20
    assert [len(images) for images in learned] == [80]


@pytest.mark.parametrize("damage", ["flipped", "torn", "empty", "other data"])
def test_a_damaged_file_is_told_of_and_made_anew(damage: str, tmp_path: Path, caplog):
    first = cached_classifier(stripes(100, 0), None, tmp_path)
    (path,) = (tmp_path / "classifiers").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "torn":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content.clear()
    else:
        cached_classifier(stripes(100, 1), None, tmp_path / "other")
        (other,) = (tmp_path / "other" / "classifiers").iterdir()
        content = bytearray(other.read_bytes())
    path.write_bytes(content)
    assert_equal(first, cached_classifier(stripes(100, 0), None, tmp_path))
    assert "is not usable and is made anew" in caplog.text
    caplog.clear()
    assert_equal(first, cached_classifier(stripes(100, 0), None, tmp_path))
    assert caplog.text == ""


def test_a_folder_that_takes_no_writes_costs_a_warning_alone(tmp_path: Path, caplog):
    blocked = tmp_path / "file"
    blocked.touch()
    assert cached_classifier(stripes(100, 0), None, blocked).accuracy == 1
    assert "could not be kept for next time" in caplog.text


def test_the_cache_lies_where_the_variables_say(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("GANTRAIN_CACHE_DIR", str(tmp_path / "own"))
    assert default_cache_folder() == tmp_path / "own"
    monkeypatch.delenv("GANTRAIN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "gantrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path.home() / ".cache" / "gantrain"


@pytest.mark.parametrize("size", [8, 12, 28, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_takes_every_size_there_is(size: int, channels: int):
    images = np.zeros((2, channels, size, size), np.uint8)
    network = classifier.Classifier(channels, size, 5).eval()
    assert network(as_tensor(images)).shape == (2, 5)
    assert recognise(network, images).features.shape == (2, classifier.FEATURES)
