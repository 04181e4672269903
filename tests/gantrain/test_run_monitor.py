"""What a run shows of itself is of the weights that it has."""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gantrain.checkpoint import TrainState
from gantrain.config import TrainConfig
from gantrain.data.datasets import Dataset
from gantrain.presets import resolve
from gantrain.run_directory import open_run
from gantrain.run_log import Stopwatch
from gantrain.training.loop import train
from gantrain.training.run_monitor import RunMonitor
from gantrain.training.run_setup import create_state, settle_config
from tests.gantrain.conftest import SMALL
from tests.gantrain.test_run_log import load_events


def begin(run_dir: Path, count: int = 16, **more: object) -> tuple[TrainConfig, Dataset]:
    """The settings and the data of a run on images of noise, of two classes."""
    images = np.random.default_rng(0).integers(256, size=(count, 1, 8, 8), dtype=np.uint8)
    data = Dataset(images, np.arange(count) % 2, ("a", "b"), "noise", ())
    asked = {**SMALL, "run_dir": run_dir, "batch_size": 4, "tensorboard": False, **more}
    return settle_config(resolve(asked), data), data


def grid(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


@torch.no_grad()
def change(state: TrainState) -> None:
    """Move the weights a little, as another way to the same position would."""
    for weights in state.generator_ema.parameters():
        weights.add_(0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))


def test_after_a_rollback_samples_are_of_the_weights_gone_back_to(tmp_path: Path):
    config, data = begin(tmp_path / "run")
    state = create_state(config, torch.device("cpu"), class_count=0)
    state.images_seen = 64
    picture = tmp_path / "run" / "samples" / "000000000064.png"
    with open_run(config.run_dir) as run:
        monitor = RunMonitor(run, config, data, 0)
        monitor.save_samples(state)
        abandoned = grid(picture)
        monitor.roll_back(32, "numbers left all bounds")
        change(state)
        monitor.save_samples(state)
        again = grid(picture)
        RunMonitor(run, config, data, 64).save_samples(state)
    assert again != abandoned
    assert again == grid(picture)


def test_samples_are_of_the_weights_at_their_position(tmp_path: Path):
    config, data = begin(tmp_path / "run")
    state = create_state(config, torch.device("cpu"), class_count=0)
    grids = []
    with open_run(config.run_dir) as run:
        monitor = RunMonitor(run, config, data, 0)
        for images_seen in (64, 128):
            state.images_seen = images_seen
            monitor.save_samples(state)
            grids.append(grid(run.samples / f"{images_seen:012d}.png"))
            change(state)
    assert grids[0] != grids[1]


@pytest.mark.parametrize("resumed", [True, False])
def test_pictures_of_weights_that_are_gone_are_removed(resumed: bool, tmp_path: Path):
    config, data = begin(tmp_path / "run")
    with open_run(config.run_dir) as run:
        monitor = None if resumed else RunMonitor(run, config, data, 0)
        for folder in (run.samples, run.sheets):
            for name in ("000000000032.png", "000000000033.png", "mine.png"):
                (folder / name).write_bytes(b"")
        if monitor:
            monitor.roll_back(32, "numbers left all bounds")
        else:
            RunMonitor(run, config, data, 32)
        for folder in (run.samples, run.sheets):
            left = sorted(path.name for path in folder.iterdir())
            assert left == ["000000000032.png", "mine.png"]


def test_tensorboard_shows_no_row_of_weights_that_are_gone(tmp_path: Path):
    config, data = begin(tmp_path / "run", tensorboard=True)
    with open_run(config.run_dir) as run:
        monitor = RunMonitor(run, config, data, 0)
        for images_seen in (32, 64, 96):
            monitor.record({"images_seen": images_seen, "generator_loss": 1.0})
        monitor.roll_back(32, "numbers left all bounds")
        monitor.record({"images_seen": 64, "generator_loss": 2.0})
        shown = load_events(run.tensorboard).Scalars("generator_loss")
    assert [(event.step, event.value) for event in shown] == [(32, 1.0), (64, 2.0)]


def test_a_conditional_run_on_a_handful_of_images_shows_them(class_folders: Path, tmp_path: Path):
    few = tmp_path / "few"
    for name in ("cat", "dog"):
        (few / name).mkdir(parents=True)
        for path in sorted((class_folders / name).iterdir())[:3]:
            (few / name / path.name).write_bytes(path.read_bytes())
    asked = {**SMALL, "data": str(few), "run_dir": tmp_path / "run", "batch_size": 4}
    train(resolve({**asked, "conditional": True, "total_images": 8}))
    with Image.open(tmp_path / "run" / "sheets" / "000000000008.png") as sheet:
        assert sheet.width < 8 * 96, "six images beside each other"


@pytest.mark.parametrize(
    ("loss", "relative"), [("relativistic", True), ("wasserstein", True), ("bce", False)]
)
def test_scores_of_a_loss_that_only_compares_do_not_depend_on_where_its_logits_lie(
    loss: str, relative: bool, tmp_path: Path
):
    sheets = []
    config, data = begin(tmp_path / "run", loss=loss)
    state = create_state(config, torch.device("cpu"), class_count=0)
    with open_run(config.run_dir) as run:
        monitor = RunMonitor(run, config, data, 0)
        for shift in (0.0, 20.0):
            with torch.no_grad():
                list(state.discriminator.parameters())[-1].add_(shift)  # the last layer's bias
            monitor.save_samples(state)
            sheets.append(grid(next(run.sheets.iterdir())))
    assert (sheets[0] == sheets[1]) == relative


def test_a_look_at_a_run_changes_nothing_that_it_learns(tmp_path: Path):
    config, data = begin(tmp_path / "run", loss="hinge", spectral_norm=True)
    state = create_state(config, torch.device("cpu"), class_count=0)
    networks = (state.generator, state.discriminator, state.generator_ema)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    with open_run(config.run_dir) as run:
        RunMonitor(run, config, data, 0).save_samples(state)
    for network, values in zip(networks, before, strict=True):
        after = network.state_dict()
        assert all(torch.equal(after[name], value) for name, value in values.items())
        assert all(module.training for module in network.modules())


def test_the_sheet_of_a_conditional_run_pairs_images_of_one_class(tmp_path: Path):
    sheets = []
    for labels in ([0, 1] * 8, [0] * 8 + [1] * 8):
        config, data = begin(tmp_path / str(labels), conditional=True, loss="bce")
        state = create_state(config, torch.device("cpu"), class_count=2)
        with open_run(config.run_dir) as run:
            monitor = RunMonitor(run, config, replace(data, labels=np.array(labels)), 0)
            monitor.save_samples(state)
            with Image.open(next(run.sheets.iterdir())) as sheet:
                sheets.append(np.asarray(sheet))
    height, width = len(sheets[0]), 96 + 8  # a column's, with its margin
    ours, others = (sheet[:, -8 * width :].reshape(height, 8, width, 3) for sheet in sheets)
    differs = (ours != others).any((2, 3))  # [height, 8]
    fakes, scores_of_reals = (
        differs[height // 2 - width : height // 2],
        differs[height // 2 : -width],
    )
    for part in (fakes, scores_of_reals):
        assert part.any(0).tolist() == [False, True] * 4


def test_a_resumed_run_tells_its_state_once_that_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config, data = begin(tmp_path / "run")
    state = create_state(config, torch.device("cpu"), class_count=0)
    state.images_seen = 64
    row = {"images_seen": 64}
    told = []
    caplog.set_level(logging.INFO, logger="gantrain")
    with open_run(config.run_dir) as run:
        RunMonitor(run, config, data, 0).record({"images_seen": 32, "diagnosis": "another"})
        for _ in range(2):
            caplog.clear()
            monitor = RunMonitor(run, config, data, 64)
            found = monitor.diagnose(state, row, Stopwatch(64, 0.0), urgent=True)
            monitor.record({**row, **found})
            told.append(f"64 images: {found['diagnosis']}" in caplog.text)
    assert told == [True, False]


def test_a_run_is_judged_by_all_its_rows(tmp_path: Path):
    config, data = begin(tmp_path / "run", total_images=4000)
    state = create_state(config, torch.device("cpu"), class_count=0)
    with open_run(config.run_dir) as run:
        monitor = RunMonitor(run, config, data, 0)
        for index in range(100):
            accuracy = 0.1 if index % 2 else 0.9
            row = {"images_seen": 40 * (index + 1), "discriminator_accuracy_real": accuracy}
            monitor.record(row)
        found = monitor.diagnose(state, row, Stopwatch(4000, 0.0), urgent=True)
    assert "oscillating" in found["diagnosis"]


@pytest.mark.parametrize(("flip", "copied"), [("on", 1.0), ("off", 0.0)])
def test_a_mirrored_image_is_a_copy_where_training_mirrors(
    flip: str, copied: float, tmp_path: Path
):
    config, data = begin(tmp_path / "run", count=64, flip=flip)
    with open_run(config.run_dir) as run:
        reference = RunMonitor(run, config, data, 0)._create_reference()
    assert reference.measure(data.images[..., ::-1])["copies"] == copied
