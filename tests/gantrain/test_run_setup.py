import logging

import numpy as np
import pytest

from gantrain.data.datasets import Dataset
from gantrain.data.point_sets import POINT_SETS
from gantrain.networks import most_inputs
from gantrain.networks.shape import Shape
from gantrain.presets import PRESETS, resolve
from gantrain.training.run_setup import settle_config, tell_checkpoints


def images(size: int, channels: int) -> Dataset:
    pixels = np.zeros((64, channels, size, size), np.uint8)
    return Dataset(pixels, None, (), "test")


@pytest.mark.parametrize(
    ("size", "filters", "lr"),
    [
        (16, 16, 2e-3),
        (28, 32, 2e-3),
        (28, 64, 1e-3),
        (32, 32, 1e-3),
        (64, 32, 5e-4),
        (64, 64, 2.5e-4),
        (128, 64, 2.5e-4),
    ],
)
def test_the_default_learning_rate_falls_as_layers_get_wider(size, filters, lr):
    config = resolve({"data": "", "run_dir": "", "filters": filters})
    assert settle_config(config, images(size, 3)).lr == pytest.approx(lr)


@pytest.mark.parametrize(
    ("loss", "weight"), [("relativistic", 0.5), ("hinge", 0.0), ("wasserstein", 0.0)]
)
def test_gradients_are_penalised_unasked_where_the_loss_needs_it(loss: str, weight: float):
    config = settle_config(resolve({"data": "", "run_dir": "", "loss": loss}), images(32, 3))
    assert (config.r1_weight, config.r2_weight) == (weight, weight)


@pytest.mark.parametrize(("channels", "flip"), [(1, "off"), (3, "on")], ids=["grey", "colour"])
def test_images_are_mirrored_unasked_unless_they_may_be_letters(channels: int, flip: str):
    assert settle_config(resolve({"data": "", "run_dir": ""}), images(32, channels)).flip == flip


def test_the_width_that_counts_is_the_discriminators():
    config = resolve({"data": "", "run_dir": "", "filters": 64, "discriminator_filters": 32})
    assert settle_config(config, images(28, 1)).lr == 2e-3


@pytest.mark.parametrize("name", [n for n, preset in PRESETS.items() if "lr" in preset.settings])
def test_a_rate_that_is_given_is_left_alone(name):
    given = PRESETS[name].settings["lr"]
    data = POINT_SETS["ring8"]() if name in ("sine", "points") else images(64, 3)
    if PRESETS[name].settings.get("image_size") is not None:
        shape = PRESETS[name].settings
        data = images(shape["image_size"], shape["channels"])
    source = "ring8" if name in ("sine", "points") else ""
    config = resolve({"preset": name, "data": source, "run_dir": "", "batch_size": 2})
    assert settle_config(config, data).lr == given
    config = resolve({"data": "", "run_dir": "", "lr": 0.125})
    assert settle_config(config, images(64, 3)).lr == 0.125


def test_the_last_layer_does_not_count():
    """It makes the logit alone, and sees thousands of values in any network."""
    shape = Shape(28, 1, latent_dim=4, filters=32, kernel_size=5)
    assert most_inputs("dcgan", shape) == 16 * 64
    assert most_inputs("torch-mlp", shape) == 1024


@pytest.mark.parametrize(
    ("checkpoint_every", "sooner"),
    [
        pytest.param(1, "", id="told-how-often"),
        pytest.param(None, ", or after 10 minutes", id="by-default"),
    ],
)
@pytest.mark.parametrize(
    ("images_seen", "every", "due"),
    [
        pytest.param(0, 100, 128, id="first"),
        pytest.param(128, 100, 256, id="resumed"),
        pytest.param(0, 128, 128, id="whole-steps"),
        pytest.param(0, 5000, 1024, id="at-the-end"),
        pytest.param(1024, 100, None, id="finished"),
    ],
)
def test_a_run_tells_when_its_next_checkpoint_is_due(
    images_seen: int,
    every: int,
    due: int | None,
    checkpoint_every: int | None,
    sooner: str,
    caplog: pytest.LogCaptureFixture,
):
    run = {"data": "", "run_dir": "", "batch_size": 64, "total_images": 1000}
    config = resolve({**run, "checkpoint_every": checkpoint_every})
    with caplog.at_level(logging.INFO):
        tell_checkpoints(config, images_seen, every)
    told = [f"a checkpoint every {every} images, the next at {due}{sooner}"]
    assert caplog.messages == (told if due else [])
