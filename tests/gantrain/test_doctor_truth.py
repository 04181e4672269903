"""Runs made to fail on purpose, and sound ones: each ends with the diagnosis that it deserves.

`benchmarks/doctor.py` does the same with larger runs and several seeds.
"""

import pytest

from gantrain.presets import resolve
from gantrain.run_directory import RunDirectory
from gantrain.run_log import read_metrics
from gantrain.training.loop import train

DIGITS = {"data": "digits", "filters": 4, "latent_dim": 16, "batch_size": 32}
PLAIN = {"loss": "bce", "beta1": 0.5, "beta2": 0.999}
# Cross-entropy without penalties and averaging, made to fail within seconds by a generator that
# learns ten times for each time that the discriminator does.
PLAIN_GRID = {
    "data": "grid25",
    "loss": "bce",
    "generator_updates": 10,
    "lr": 1e-2,
    "discriminator_lr": 1e-2,
    "lr_decay": 0.0,
    "ema_half_life_images": 0,
}
NO_ALARM = {"too early to tell", "healthy", "still learning"}


def train_and_ask(run_dir, *, steps, **settings):
    """The doctor's words over a run, oldest first."""
    config = resolve({"threads": 1, "tensorboard": False, **settings, "run_dir": run_dir})
    train(config.model_copy(update={"total_images": steps * config.images_per_step}))
    rows = read_metrics(RunDirectory(run_dir).metrics_file)
    return [row["diagnosis"] for row in rows if "diagnosis" in row]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        pytest.param({**DIGITS, "filters": 8}, 300, id="digits"),
        pytest.param({"data": "grid25"}, 800, id="grid25"),
        pytest.param({"data": "ring8"}, 800, id="ring8"),
    ],
)
def test_the_flagship_gives_no_alarm(settings, steps, tmp_path):
    states = train_and_ask(tmp_path, steps=steps, **settings)
    assert set(states) <= NO_ALARM
    assert states[-1] != "too early to tell"


@pytest.mark.parametrize(
    ("settings", "steps", "finding"),
    [
        pytest.param(
            {**DIGITS, **PLAIN, "lr": 2e-4, "discriminator_lr": 2e-3},
            300,
            "discriminator overwhelms",
            id="a-discriminator-ten-times-as-fast",
        ),
        pytest.param(
            {**DIGITS, "discriminator_lr": 2e-5},
            300,
            "discriminator too weak",
            id="a-discriminator-a-hundred-times-slower",
        ),
        pytest.param(
            {**DIGITS, "lr": 1.0, "r1_weight": 0.0, "r2_weight": 0.0},
            100,
            "diverged",
            id="a-learning-rate-that-diverges",
        ),
        pytest.param(PLAIN_GRID, 260, "mode collapse", id="plain-cross-entropy-on-grid25"),
    ],
)
def test_a_run_that_fails_is_told_why(settings, steps, finding, tmp_path):
    states = train_and_ask(tmp_path, steps=steps, **settings)
    assert finding in states[-1].split("; ")
