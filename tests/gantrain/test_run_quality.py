"""A run that measures itself keeps the best of its checkpoints, and is otherwise the same run."""

import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gantrain.checkpoint import (
    TrainState,
    checkpoint_path,
    checkpoint_paths,
    load_checkpoint,
)
from gantrain.config import TrainConfig
from gantrain.data.datasets import load_dataset
from gantrain.errors import Interrupted, RunError
from gantrain.evaluation.results import (
    Evaluation,
    evaluation_file,
    read_evaluation,
    write_evaluation,
)
from gantrain.optimizers import update_ema
from gantrain.presets import resolve
from gantrain.run_directory import RunDirectory
from gantrain.sampling import load_run_generator
from gantrain.training import loop
from gantrain.training.loop import train
from gantrain.training.run_quality import RunQuality
from tests.gantrain.conftest import SMALL
from tests.gantrain.test_idx_files import idx

EVERY = 256


@pytest.fixture(autouse=True)
def _cache_of_the_tests(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANTRAIN_CACHE_DIR", str(cache))


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> RunDirectory:
    """As `small_run`, measured four times, of which the newest checkpoint alone is kept."""
    run_dir = tmp_path_factory.mktemp("runs") / "measured"
    settings = {**SMALL, "run_dir": run_dir, "total_images": 1024, "keep_checkpoints": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTRAIN_CACHE_DIR", str(cache))
        train(resolve({**settings, "evaluate_every": EVERY}))
    return RunDirectory(run_dir)


def evaluations(run: RunDirectory) -> list[Evaluation]:
    places = [checkpoint_path(run.checkpoints, seen) for seen in range(EVERY, 1025, EVERY)]
    found = [read_evaluation(path) for path in places]
    assert None not in found
    return [evaluation for evaluation in found if evaluation is not None]


def distance(evaluation: Evaluation) -> float:
    return evaluation.measurements["frechet_distance"].mean


def test_the_best_checkpoint_is_kept_with_its_evaluation(measured_run: RunDirectory):
    found = evaluations(measured_run)
    assert [evaluation.generator.images_seen for evaluation in found] == [256, 512, 768, 1024]
    assert all(evaluation.data.trained_on for evaluation in found)
    best = min(found, key=distance)
    assert read_evaluation(measured_run.best_checkpoint) == best
    kept = load_run_generator(measured_run.best_checkpoint)
    assert (kept.weights, kept.images_seen) == (best.generator.weights, best.generator.images_seen)
    assert [path.stem for path in checkpoint_paths(measured_run.checkpoints)] == ["000000001024"]


def test_a_run_that_is_measured_has_the_weights_of_one_that_is_not(
    measured_run: RunDirectory, small_run: Path
):
    states = [
        load_checkpoint(checkpoint_paths(folder)[0])
        for folder in (measured_run.checkpoints, small_run / "checkpoints")
    ]
    for part in ("generator", "discriminator", "generator_ema"):
        one, other = (state[part] for state in states)
        assert all(torch.equal(one[name], other[name]) for name in one), part


def test_a_worse_checkpoint_leaves_the_best_and_a_better_one_takes_its_place(
    small_run: Path, tmp_path: Path, caplog
):
    run = RunDirectory(shutil.copytree(small_run, tmp_path / "run"))
    config, _ = run.read()
    newest, *_, oldest = checkpoint_paths(run.checkpoints)
    quality = RunQuality(run, config, load_dataset("digits"))
    caplog.set_level(logging.INFO)
    quality.evaluate(oldest)
    first = read_evaluation(run.best_checkpoint)
    quality.evaluate(newest)
    second = read_evaluation(run.best_checkpoint)
    assert "the best so far, kept as best.pt" in caplog.messages[-1]
    quality.evaluate(oldest)
    assert first is not None
    assert second is not None
    assert distance(second) < distance(first)
    assert read_evaluation(run.best_checkpoint) == second
    assert run.best_checkpoint.samefile(newest)
    assert caplog.messages[-1].endswith("after 1024 images")


def update(values: dict, changes: dict) -> None:
    """Change values within values."""
    for name, change in changes.items():
        if isinstance(change, dict):
            update(values[name], change)
        else:
            values[name] = change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            {"measurements": {"training_distance": {"mean": 0.5}}}, id="copies of training images"
        ),
        pytest.param({"samples": 500}, id="fewer samples"),
        pytest.param({"data": {"fingerprint": "sha256:others"}}, id="other data"),
        pytest.param({"data": {"reals": "others"}}, id="other reals"),
        pytest.param({"features": {"accuracy": 0.5}}, id="another classifier"),
    ],
)
def test_what_cannot_be_called_better_does_not_stay_the_best(
    change: dict, small_run: Path, tmp_path: Path
):
    run = RunDirectory(shutil.copytree(small_run, tmp_path / "run"))
    config, _ = run.read()
    newest, oldest = checkpoint_paths(run.checkpoints)
    quality = RunQuality(run, config, load_dataset("digits"))
    quality.evaluate(oldest)
    before = read_evaluation(run.best_checkpoint)
    assert before is not None
    values = before.model_dump()
    values["measurements"]["frechet_distance"]["mean"] = 0.001
    write_evaluation(Evaluation.model_validate(values), run.best_checkpoint)
    quality.evaluate(newest)
    assert run.best_checkpoint.samefile(oldest)
    update(values, change)
    write_evaluation(Evaluation.model_validate(values), run.best_checkpoint)
    quality.evaluate(newest)
    assert run.best_checkpoint.samefile(newest)


def test_a_run_that_was_cut_short_as_it_measured_itself_does_so_when_it_resumes(
    small_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = RunDirectory(shutil.copytree(small_run, tmp_path / "run"))
    config, _ = run.read()
    newest, *_ = checkpoint_paths(run.checkpoints)
    evaluation_file(run.best_checkpoint).mkdir()  # where a file is to be
    with pytest.raises(RunError, match=r"best\.json could not be written"):
        RunQuality(run, config, load_dataset("digits")).evaluate(newest)
    evaluation_file(run.best_checkpoint).rmdir()
    again = config.model_copy(update={"run_dir": run.path, "evaluate_every": EVERY})
    train(again)
    found = read_evaluation(newest)
    assert found is not None
    assert read_evaluation(run.best_checkpoint) == found
    assert run.best_checkpoint.samefile(newest)

    caplog.set_level(logging.INFO)
    caplog.clear()
    train(again)
    assert not [told for told in caplog.messages if "distance" in told], "it is measured already"

    others = {**found.generator.model_dump(), "weights": "sha256:of weights that are gone"}
    write_evaluation(Evaluation(**{**found.model_dump(), "generator": others}), newest)
    train(again)
    assert read_evaluation(newest) == found


@pytest.mark.parametrize(
    ("stop_at", "measured"),
    [
        pytest.param(1280, True, id="where a checkpoint was to be measured"),
        pytest.param(768, False, id="elsewhere"),
    ],
)
def test_a_run_that_is_asked_to_stop_measures_no_checkpoint_until_it_resumes(
    stop_at: int, measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def update_and_stop(state: TrainState, config: TrainConfig) -> None:
        update_ema(state, config)
        if state.images_seen == stop_at:
            signal.raise_signal(signal.SIGTERM)

    settings = {"data": "ring8", "run_dir": tmp_path / "run", "threads": 1, "filters": 4}
    config = resolve({**settings, "total_images": 2560, "evaluate_every": 1280})
    saved = checkpoint_path(RunDirectory(tmp_path / "run").checkpoints, stop_at)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "update_ema", update_and_stop)
        with pytest.raises(Interrupted):
            train(config)
    assert saved.exists()
    assert read_evaluation(saved) is None
    train(config)
    assert (read_evaluation(saved) is not None) == measured


def test_points_are_measured_by_their_modes(tmp_path: Path):
    settings = {"data": "ring8", "run_dir": tmp_path / "run", "threads": 1, "filters": 4}
    train(resolve({**settings, "total_images": 2560, "evaluate_every": 1280}))
    best = read_evaluation(RunDirectory(tmp_path / "run").best_checkpoint)
    assert best is not None
    assert "reverse_kl" in best.measurements


def test_the_floor_is_of_the_test_split_where_there_is_one(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    digits = load_dataset("digits")
    assert digits.labels is not None
    for prefix, rows in (("train", slice(0, 200)), ("t10k", slice(200, 300))):
        labels = digits.labels[rows].astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(digits.images[rows, 0]))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    settings = {**SMALL, "data": str(folder), "run_dir": tmp_path / "run", "total_images": 64}
    train(resolve({**settings, "evaluate_every": 64}))
    best = read_evaluation(RunDirectory(tmp_path / "run").best_checkpoint)
    assert best is not None
    assert best.data.reals == "100 training images; the floor: as many test ones"
    assert best.features.held_out == 100


def test_what_is_too_little_to_be_measured_is_refused_before_anything_is_trained(tmp_path: Path):
    for index in range(16):
        pixels = np.random.default_rng(index).integers(256, size=(8, 8), dtype=np.uint8)
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{index}.png")
    settings = {**SMALL, "data": str(tmp_path / "data"), "run_dir": tmp_path / "run"}
    with pytest.raises(RunError, match="too few to measure anything: expected at least 40, got 16"):
        train(resolve({**settings, "total_images": 64, "evaluate_every": 32}))
    assert checkpoint_paths(tmp_path / "run" / "checkpoints") == []


def test_a_disk_without_links_keeps_a_copy(
    measured_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    config, _ = measured_run.read()
    (newest,) = checkpoint_paths(measured_run.checkpoints)
    measured_run.best_checkpoint.unlink()
    monkeypatch.setattr(os, "link", refuse)
    RunQuality(measured_run, config, load_dataset("digits")).evaluate(newest)
    assert measured_run.best_checkpoint.read_bytes() == newest.read_bytes()
    assert not measured_run.best_checkpoint.samefile(newest)
