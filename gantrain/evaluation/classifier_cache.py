"""Hides where trained classifiers are kept, so that the same data never train a second one."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from gantrain.checkpoint import CHECKPOINT_FORMAT, load_checkpoint
from gantrain.data.datasets import Dataset
from gantrain.durable_files import atomic_write
from gantrain.errors import RunError
from gantrain.evaluation.classifier import RECIPE, Classifier, recognise, train_classifier

VARIABLE: Final = "GANTRAIN_CACHE_DIR"
_HELD_OUT: Final = 0.2  # share of data without a test split that measures the accuracy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier, and how well it does on images that it has not learned from."""

    network: Classifier
    accuracy: float  # share of held-out images that it gives their own class
    held_out: int  # images
    of_class: tuple[float | None, ...]  # accuracy for each class, None where none is held out


def default_cache_folder() -> Path:
    """`GANTRAIN_CACHE_DIR`, or else gantrain's part of the user's cache (XDG)."""
    if own := os.environ.get(VARIABLE):
        return Path(own).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "gantrain"


def cached_classifier(
    train: Dataset, held_out: Dataset | None, folder: Path | None
) -> TrainedClassifier:
    """The classifier of labelled images, trained now unless the folder holds it undamaged.

    Args:
        train: images with labels of at least two classes.
        held_out: the test split, never learned from; None leaves a fifth of `train` out instead.
        folder: None takes `default_cache_folder()`. A folder that takes no writes costs a warning
            and the next training.
    """
    folder = folder or default_cache_folder()
    classes = len(train.class_names)  # the fingerprint knows nothing of those without images
    parts = [str(RECIPE), f"{classes} classes", train.fingerprint()]
    parts.append(held_out.fingerprint() if held_out else "a fifth")
    name = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    path = folder / "classifiers" / f"{name[:32]}.pt"
    if path.exists():
        try:
            return read_classifier(path, name)
        except (OSError, ValueError) as error:
            logger.warning("%s is not usable and is made anew: %s", path, error)
    trained = train_and_measure(train, held_out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_classifier(path, trained, name)
    except (OSError, RunError) as error:
        logger.warning("the classifier could not be kept for next time: %s", error)
    return trained


def train_and_measure(train: Dataset, held_out: Dataset | None) -> TrainedClassifier:
    """Train on one part of the data, measure on the other."""
    assert train.labels is not None
    images, labels = train.images, train.labels
    if held_out is None:
        order = np.random.default_rng(0).permutation(len(images))
        test, rest = np.split(order, [max(int(len(order) * _HELD_OUT), 1)])
        test_images, test_labels = images[test], labels[test]
        images, labels = images[rest], labels[rest]
    else:
        assert held_out.labels is not None
        test_images, test_labels = held_out.images, held_out.labels
    network = train_classifier(images, labels, len(train.class_names))
    right = recognise(network, test_images).labels == test_labels
    logger.info("the classifier is right on %.2f %% of held-out images", 100 * right.mean())
    members = [test_labels == label for label in range(len(train.class_names))]
    of_class = tuple(float(right[some].mean()) if some.any() else None for some in members)
    return TrainedClassifier(network, float(right.mean()), len(right), of_class)


def write_classifier(path: Path, trained: TrainedClassifier, name: str) -> None:
    """Write a classifier so that a reader sees all of it or none; raises RunError."""
    network = trained.network
    values = {
        "format": CHECKPOINT_FORMAT,
        "name": name,
        "shape": list(network.shape),
        "network": network.state_dict(),
        "accuracy": trained.accuracy,
        "held_out": trained.held_out,
        "of_class": list(trained.of_class),
    }
    with atomic_write(path) as file:
        torch.save(values, file)


def read_classifier(path: Path, name: str) -> TrainedClassifier:
    """Read a classifier and compare its checksums; raises OSError or ValueError."""
    values = load_checkpoint(path)
    if values.get("name") != name:
        raise ValueError("it is of other data")
    network = Classifier(*values["shape"])
    network.load_state_dict(values["network"])
    return TrainedClassifier(
        network.eval(), values["accuracy"], values["held_out"], tuple(values["of_class"])
    )
