import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from gantrain.errors import RunError
from gantrain.reporting import (
    RunningMeans,
    StatusLine,
    Stopwatch,
    append_metrics,
    image_grid,
    save_animation,
    save_grid,
    truncate_metrics,
)


def test_means_are_over_the_steps_since_last_taken():
    means = RunningMeans()
    for value in (1.0, 3.0):
        means.add({"loss": torch.tensor(value)})
    assert means.take() == {"loss": 2.0}
    means.add({"loss": torch.tensor(7.0)})
    assert means.take() == {"loss": 7.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_step_that_is_not_finite_shows_in_the_mean(bad: float):
    means = RunningMeans()
    for value in (1.0, bad, 1.0):
        means.add({"loss": torch.tensor(value)})
    assert not np.isfinite(means.take()["loss"])


def test_rows_after_a_position_and_torn_ones_are_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    truncate_metrics(path, 0)  # nothing there yet
    for images_seen in (64, 128, 192):
        append_metrics(path, {"images_seen": images_seen})
    with path.open("ab") as file:
        file.write(b'{"images_se\xff\x00')
    truncate_metrics(path, 128)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["images_seen"] for row in rows] == [64, 128]


def test_the_status_line_tells_rate_time_left_and_losses(caplog: pytest.LogCaptureFixture):
    row = {"images_seen": 500.0, "images_per_second": 10.0, "r1_penalty": 0.5, "r2_penalty": 0.25}
    with caplog.at_level(logging.INFO), StatusLine(0, 1000) as status:
        status.report({**row, "discriminator_loss": 0.69, "generator_loss": 0.7})
    assert "500/1000 images, 10 images/s, 00:50 left, D 0.690 G 0.700" in caplog.text


def test_a_run_that_was_halted_for_a_night_still_tells_its_status(
    caplog: pytest.LogCaptureFixture,
):
    row = {"images_seen": 64.0, "images_per_second": 0.0, "r1_penalty": 0.5, "r2_penalty": 0.25}
    with caplog.at_level(logging.INFO), StatusLine(0, 1000) as status:
        status.report({**row, "discriminator_loss": 0.69, "generator_loss": 0.7})
    assert "64/1000 images, 0 images/s" in caplog.text


def test_time_goes_on_from_where_the_run_was_cut():
    watch = Stopwatch(images_seen=100, seconds_before=50.0)
    row = watch.row(200, {"loss": 1.0})
    assert 50 <= row["seconds"] < 60
    assert row["images_per_second"] > 10
    assert row["loss"] == 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_in_reading_order(channels: int):
    images = np.zeros((5, 4, 4, channels), np.uint8)
    images[:] = np.arange(5, dtype=np.uint8)[:, None, None, None] * 40
    grid = np.asarray(image_grid(images))
    tile = grid.shape[1] // 3
    centres = [
        grid[row * tile + tile // 2, column * tile + tile // 2].flat[0]
        for row in range(2)
        for column in range(3)
    ]
    assert centres == [0, 40, 80, 120, 160, 255]  # the sixth place is the ground


@pytest.mark.parametrize(
    ("save", "name"), [(save_grid, "grid.png"), (save_animation, "walk.gif")], ids=["png", "gif"]
)
def test_pictures_for_a_full_disk_are_refused_with_the_reason(save, name: str, mount):
    path = mount("size=4k") / name
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    with pytest.raises(RunError, match=f"{name} could not be written: No space left on device"):
        save(path, images)
    assert not list(path.parent.iterdir())


def test_large_images_are_not_enlarged():
    assert image_grid(np.zeros((25, 128, 128, 3), np.uint8)).width == 5 * 136 + 8
