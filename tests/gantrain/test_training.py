"""The promises of a run: it resumes bit for bit, loses nothing, and stops with a reason."""

import json
import logging
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from gantrain.checkpoint import ASTRAY_SUFFIX, TrainState, checkpoint_paths, load_checkpoint
from gantrain.cpus import usable_cpus
from gantrain.data.datasets import Dataset
from gantrain.errors import RunError
from gantrain.latents import draw_latents
from gantrain.optimizers import update_ema
from gantrain.presets import resolve
from gantrain.run_directory import DataFacts, RunDirectory, check_same_run, open_run
from gantrain.run_log import Stopwatch
from gantrain.sampling import generate, load_run_generator
from gantrain.training import loop
from gantrain.training.loop import create_step, train
from gantrain.training.recovery import Diverged, check_bounds, refuse_lost_checkpoints
from gantrain.training.run_setup import choose_device, create_state, load_labels
from gantrain.training.step_means import gradient_norm
from gantrain.training.steps import discriminator_step, generate_fakes, generator_step
from tests.gantrain.conftest import (
    IMAGES,
    SHADES,
    SMALL,
    nearest_class,
    tile_shades,
    wait_for,
    wait_for_checkpoint,
)

TOTAL = 1024


def command(run_dir: Path, *more: str) -> list[str]:
    settings = {**SMALL, "run_dir": run_dir, "total_images": TOTAL, "checkpoint_every": 256}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "gantrain", "train", *flags, *more]


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process, which does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(arguments: Sequence[str], **streams: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # Under nohup the tests ignore SIGHUP, which a process would inherit. Not by `preexec_fn`,
        # which forks: gRPC, if other tests have started it, may then end the new process.
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            process = subprocess.Popen(arguments, text=True, **pipes | streams)
        finally:
            signal.signal(signal.SIGHUP, before)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def final_weights(run_dir: Path) -> dict[str, object]:
    return load_checkpoint(checkpoint_paths(run_dir / "checkpoints")[0])


def assert_same_bits(one: object, other: object, where: str = "state") -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), where
        for name in one.keys() - {"seconds"}:
            assert_same_bits(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_bits(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    subprocess.run(command(run_dir), check=True, capture_output=True)
    return run_dir


@pytest.mark.parametrize(
    ("kill", "code"),
    [
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGINT, 130, id="interrupted"),
        pytest.param(signal.SIGTERM, 130, id="terminated"),
        pytest.param(signal.SIGHUP, 130, id="terminal-gone"),
    ],
)
def test_a_run_cut_short_ends_with_the_weights_of_one_that_was_not(
    start: Start, kill: signal.Signals, code: int, tmp_path: Path, uninterrupted: Path
):
    # Longer than the reference, so that it cannot end before the signal comes.
    process = start(command(tmp_path / "run", "--total-images=1000000"))
    wait_for_checkpoint(process, tmp_path / "run")
    process.send_signal(kill)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if kill is not signal.SIGKILL:
        assert "a checkpoint was saved" in errors
        assert errors.splitlines()[-1].startswith("gantrain train: interrupted after ")
    cut_at = int(checkpoint_paths(tmp_path / "run" / "checkpoints")[0].stem)
    total = max(TOTAL, cut_at + 512)
    whole = uninterrupted
    if total > TOTAL:  # a fast machine: extend both to the same length
        whole = tmp_path / "whole"
        subprocess.run(command(whole, f"--total-images={total}"), check=True, capture_output=True)
    again = command(tmp_path / "run", f"--total-images={total}")
    done = subprocess.run(again, check=True, capture_output=True, text=True)
    assert f"at {cut_at} images" in done.stderr
    assert_same_bits(final_weights(tmp_path / "run"), final_weights(whole))
    rows = read_metrics(tmp_path / "run")
    seen = [row["images_seen"] for row in rows]
    assert seen == sorted(set(seen)), "a resumed run repeats no row"
    assert seen[-1] == final_weights(whole)["images_seen"]


def test_a_run_whose_terminal_vanishes_saves_although_it_can_say_nothing_more(
    start: Start, tmp_path: Path
):
    own, other = pty.openpty()
    endless = ("--total-images=1000000", "--checkpoint-every=1000000", "--log-every=16")
    arguments = command(tmp_path / "run", *endless)
    process = start(["setsid", "--ctty", *arguments], stdin=other, stdout=other, stderr=other)
    os.close(other)
    rows = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: rows.exists() and rows.stat().st_size > 0, process)
    os.close(own)
    process.wait(timeout=60)
    assert 0 < final_weights(tmp_path / "run")["images_seen"] < 1_000_000


def test_a_stop_that_comes_with_the_last_step_finds_the_run_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def update_and_stop(state: TrainState, config) -> None:
        update_ema(state, config)
        if state.images_seen == 64:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop, "update_ema", update_and_stop)
    train(resolve({**SMALL, "run_dir": tmp_path, "total_images": 64}))
    assert final_weights(tmp_path)["images_seen"] == 64


def test_a_run_under_nohup_outlives_its_terminal(start: Start, tmp_path: Path):
    process = start(["nohup", *command(tmp_path / "run", "--total-images=1000000")])
    wait_for_checkpoint(process, tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    saved = checkpoint_paths(tmp_path / "run" / "checkpoints")[0]
    wait_for(lambda: checkpoint_paths(tmp_path / "run" / "checkpoints")[0] > saved, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_run_that_was_cut_short_before_its_first_checkpoint_says_that_it_starts_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    more = {"total_images": 64, "log_every": 16, "checkpoint_every": 64}
    config = resolve({**SMALL, "run_dir": tmp_path / "run", **more})
    train(config)
    assert "starts over" not in caplog.text
    for path in checkpoint_paths(config.run_dir / "checkpoints"):
        path.unlink()
    train(config)
    assert f"{config.run_dir} has no checkpoint yet: it starts over" in caplog.text
    seen = [row["images_seen"] for row in read_metrics(config.run_dir)]
    assert seen == [16, 32, 48, 64]


def test_a_run_that_has_lost_its_checkpoints_does_not_start_over(small_run: Path, tmp_path: Path):
    run_dir = Path(shutil.copytree(small_run, tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints")
    kept = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    for total in (64, 1024, 1_000_000):  # whose first checkpoint would be due soon or late
        with pytest.raises(RunError, match=r"run/checkpoints holds no .* reached 1024 .* put the"):
            train(resolve({**SMALL, "run_dir": run_dir, "total_images": total}))
    for path, content in kept.items():
        assert path.read_bytes() == content
    shutil.copytree(small_run / "checkpoints", run_dir / "checkpoints", dirs_exist_ok=True)
    assert train(resolve({**SMALL, "run_dir": run_dir, "total_images": 1040})).images_seen == 1040


def test_a_run_whose_checkpoints_were_all_set_aside_may_start_over(small_run: Path, tmp_path: Path):
    run = RunDirectory(shutil.copytree(small_run, tmp_path / "run"))
    for path in checkpoint_paths(run.checkpoints):
        path.rename(f"{path}{ASTRAY_SUFFIX}")
    refuse_lost_checkpoints(run)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_torn_checkpoint_costs_only_the_way_since_the_one_before(
    tmp_path: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
):
    config = resolve(
        {**SMALL, "run_dir": tmp_path / "run", "total_images": 768, "checkpoint_every": 256}
    )
    train(config)
    newest = checkpoint_paths(tmp_path / "run" / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-1000])
    train(config.model_copy(update={"total_images": TOTAL}))
    assert "000000000768.pt is not usable and is passed over" in caplog.text
    assert_same_bits(final_weights(tmp_path / "run"), final_weights(uninterrupted))


def test_a_torn_checkpoint_is_not_kept_in_the_place_of_a_good_one(tmp_path: Path):
    settings = {**SMALL, "run_dir": tmp_path / "run", "checkpoint_every": 64, "keep_checkpoints": 2}
    train(resolve({**settings, "total_images": 192}))
    checkpoints = tmp_path / "run" / "checkpoints"
    newest, good = checkpoint_paths(checkpoints)
    newest.write_bytes(newest.read_bytes()[:-1000])
    train(resolve({**settings, "total_images": 256, "checkpoint_every": 256}))
    last = checkpoint_paths(checkpoints)[0]
    assert checkpoint_paths(checkpoints) == [last, good]
    assert newest.with_name(f"{newest.name}.damaged").exists()


@pytest.mark.parametrize(
    ("replaced", "due"),
    [
        pytest.param(False, "log_every", id="moved"),
        pytest.param(True, "log_every", id="replaced"),
        pytest.param(True, "sample_every", id="replaced-before-samples"),
        pytest.param(True, "diagnose_every", id="replaced-before-a-diagnosis"),
        pytest.param(True, "checkpoint_every", id="replaced-before-a-checkpoint"),
    ],
)
def test_a_run_whose_folder_is_not_its_own_any_more_ends_and_harms_no_other(
    replaced: bool, due: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rare = dict.fromkeys(("log_every", "sample_every", "diagnose_every", "checkpoint_every"), 10**6)
    run_dir, other = tmp_path / "run", tmp_path / "other"
    train(resolve({**SMALL, "run_dir": other, "total_images": 64, "seed": 5}))
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}

    def update_and_move(*arguments) -> None:
        if not (tmp_path / "moved").exists():
            run_dir.rename(tmp_path / "moved")
            if replaced:
                other.rename(run_dir)
        update_ema(*arguments)

    monkeypatch.setattr(loop, "update_ema", update_and_move)
    with pytest.raises(RunError, match="was removed, moved or replaced while this process trained"):
        train(resolve({**SMALL, "run_dir": run_dir, "total_images": 640, **rare, due: 16}))
    if replaced:
        run_dir.rename(other)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_of_another_preset_is_told_by_its_name(tmp_path: Path):
    run, facts = RunDirectory(tmp_path), DataFacts("sha256:", 64, "test", ())
    settings = {"data": "sine", "run_dir": tmp_path}
    run.write(resolve({**settings, "preset": "sine"}), facts)
    told = "holds a run of --preset sine, asked for is points: give --preset sine, with"
    with pytest.raises(RunError, match=told):
        check_same_run(run, resolve(settings), facts)
    check_same_run(run, resolve({**settings, "preset": "sine"}), facts)


def test_a_setting_that_changes_nothing_may_differ(tmp_path: Path):
    run, facts = RunDirectory(tmp_path), DataFacts("sha256:", 64, "test", ())
    settings = {"data": "", "run_dir": tmp_path, "preset": "selu-dense"}
    config = resolve(settings)  # of RMSprop, with networks of fixed sizes, not averaged
    run.write(config, facts)
    others = {"beta1": 0.3, "filters": 8, "kernel_size": 3, "ema_ramp_up": 0.5}
    check_same_run(run, config.model_copy(update=others), facts)
    with pytest.raises(RunError, match=r"a run with --rho 0\.9, asked for is 0\.5: give --rho"):
        check_same_run(run, config.model_copy(update={**others, "rho": 0.5}), facts)
    # What the one of two runs uses shapes the weights of that one.
    adam = config.model_copy(update={"optimizer": "adam", "beta1": 0.3})
    with pytest.raises(RunError, match=r"--optimizer rmsprop, .*--beta1 0\.0, asked for is 0\.3"):
        check_same_run(run, adam, facts)


def test_a_long_run_is_saved_at_a_status_line_once_too_much_would_be_lost(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "LONGEST_UNSAVED", 0)
    run_dir = tmp_path / "run"
    settings = {**SMALL, "run_dir": run_dir, "total_images": TOTAL, "log_every": 64}
    train(resolve({**settings, "checkpoint_every": None, "keep_checkpoints": 100}))
    saved = [int(path.stem) for path in checkpoint_paths(run_dir / "checkpoints")]
    assert sorted(saved) == [row["images_seen"] for row in read_metrics(run_dir)]
    assert len(saved) > 20
    assert_same_bits(final_weights(run_dir), final_weights(uninterrupted))


class SlowRows(Stopwatch):
    """Of a run whose time all goes into rows of metrics, two minutes into each."""

    def __init__(self, images_seen: int, seconds_before: float) -> None:
        super().__init__(images_seen, seconds_before)
        self._now = seconds_before

    def seconds(self) -> float:
        return self._now

    def row(self, images_seen: int, means: dict[str, float]) -> dict[str, float]:
        row = super().row(images_seen, means)
        self._now += 120
        return row


def test_the_ten_minutes_to_a_checkpoint_start_anew_with_each_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "Stopwatch", SlowRows)
    rows = 160  # one a step, and every eighth with a checkpoint whatever the time
    settings = {**SMALL, "run_dir": tmp_path / "run", "total_images": 16 * rows, "log_every": 16}
    train(resolve({**settings, "keep_checkpoints": rows}))
    saved = [int(path.stem) // 16 for path in checkpoint_paths(tmp_path / "run" / "checkpoints")]
    # The ten minutes are over when the sixth row after a checkpoint is due.
    assert sorted(saved) == [row for row in range(1, rows + 1) if row % 8 in (6, 0)]
    train(resolve({**settings, "total_images": 16 * (rows + 5), "keep_checkpoints": rows}))
    saved = [int(path.stem) // 16 for path in checkpoint_paths(tmp_path / "run" / "checkpoints")]
    assert sorted(saved)[-2:] == [rows, rows + 5], "not at once where a run is resumed"


def test_a_run_whose_checkpoints_are_all_damaged_is_left_as_it_is(tmp_path: Path):
    config = resolve({**SMALL, "run_dir": tmp_path / "run", "total_images": 256})
    train(config)
    rows = read_metrics(tmp_path / "run")
    damaged = checkpoint_paths(tmp_path / "run" / "checkpoints")
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(RunError, match="is usable; put a good one back"):
        train(config.model_copy(update={"total_images": 512}))
    assert read_metrics(tmp_path / "run") == rows
    assert checkpoint_paths(tmp_path / "run" / "checkpoints") == damaged


def test_the_same_command_after_the_end_changes_nothing(small_run: Path):
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*.pt")}
    rows = read_metrics(small_run)
    state = train(resolve({**SMALL, "run_dir": small_run, "total_images": 1024}))
    assert state.images_seen == 1024
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*.pt")} == before
    assert read_metrics(small_run) == rows


def test_metrics_and_samples_tell_of_the_run(small_run: Path):
    rows = read_metrics(small_run)
    assert rows[-1]["images_seen"] == 1024
    for row in rows:
        assert row["images_per_second"] > 0
        numbers = [value for value in row.values() if isinstance(value, float | int)]
        assert np.isfinite(numbers).all()
    expected = {"discriminator_loss", "generator_loss", "r1_penalty", "r2_penalty"}
    assert expected <= rows[-1].keys()
    samples = sorted((small_run / "samples").iterdir())
    assert samples[-1].name == "000000001024.png"
    with Image.open(samples[-1]) as grid:
        assert grid.mode == "L"
        assert min(grid.size) >= 512


def test_a_run_tells_its_status_with_each_row(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="gantrain")
    train(resolve({**SMALL, "run_dir": tmp_path / "run", "total_images": 64}))
    told = [text for text in caplog.messages if re.match(r"\d+/64 images, \d+ images/s, ", text)]
    positions = [int(text.partition("/")[0]) for text in told]
    assert positions == [row["images_seen"] for row in read_metrics(tmp_path / "run")]


def test_training_moves_both_networks_and_the_average_lags_behind():
    config = settled()
    state = create_state(config, torch.device("cpu"), class_count=0)
    first = take_steps(state, config, steps=3)
    for network in ("generator", "discriminator"):
        for name, before in first[network].items():
            after = getattr(state, network).state_dict()[name]
            if after.is_floating_point() and "running" not in name:
                assert not torch.equal(before, after), f"{network}.{name} did not move"
    averaged, current, start_ = (
        values["project.weight"]
        for values in (
            state.generator_ema.state_dict(),
            state.generator.state_dict(),
            first["generator"],
        )
    )
    assert (averaged - start_).norm() > 0
    assert (averaged - current).norm() < (start_ - current).norm()


def settled(**more: object):
    values = {**SMALL, "run_dir": "unused", "image_size": 8, "channels": 1, "flip": "off"}
    values |= {"r1_weight": 0.1, "r2_weight": 0.1}
    return resolve({**values, **more})


def take_steps(state: TrainState, config, steps: int):
    """Train on noise; returns the weights from before."""
    before = {
        network: {k: v.clone() for k, v in getattr(state, network).state_dict().items()}
        for network in ("generator", "discriminator")
    }
    noise = torch.Generator().manual_seed(0)
    for _ in range(steps):
        real_images = torch.rand(config.batch_size, 1, 8, 8) * 2 - 1
        take_step(state, real_images, config, noise)
        state.images_seen += config.batch_size
        update_ema(state, config)
    return before


def take_step(state: TrainState, real_images: torch.Tensor, config, noise: torch.Generator):
    fakes = generate_fakes(state, config, noise, with_gradient=False)
    discriminator_step(state, real_images, fakes, config, noise)
    fakes = generate_fakes(state, config, noise, with_gradient=True)
    generator_step(state, real_images, fakes, config, noise)


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what would have a CPU wait for its GPU: values of tensors that Python asks for."""

    WAITING: ClassVar = {
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.nonzero.default,
    }

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation in self.WAITING
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"lr_decay": 1e-4}, id="flagship"),
        pytest.param({"augment": "color,translation,cutout", "flip": "on"}, id="augmented"),
        pytest.param({"loss": "wasserstein", "gradient_penalty_weight": 10.0}, id="wgan-gp"),
        pytest.param({"spectral_norm": True, "gradient_clip": 1.0}, id="spectral-norm"),
        pytest.param({"conditional": True, "precision": "bf16"}, id="conditional"),
    ],
)
def test_no_step_asks_for_a_value_that_a_gpu_would_have_to_be_waited_for(settings, tmp_path: Path):
    counts = []
    for steps in (10, 20):
        run = {"run_dir": tmp_path / str(steps), "total_images": 16 * steps, "tensorboard": False}
        rare = dict.fromkeys(("log_every", "sample_every", "diagnose_every"), 10**6)
        with Waits() as waits:
            train(resolve({**SMALL, **run, **rare, "checkpoint_every": 10**6, **settings}))
        counts.append(waits.count)
    assert counts[0] == counts[1]
    assert counts[0] > 0, "the row at the end of a run asks for values"


def test_a_step_pays_for_no_devices_that_are_not_there(tmp_path: Path, monkeypatch):
    """PyTorch notes the way to each call that it puts off until a device is initialised."""

    def refuse(*_: object) -> list[str]:
        raise AssertionError("a stack was formatted")

    def create_watched_step(*parts):
        step = create_step(*parts)

        def watched(*arguments):
            with monkeypatch.context() as patch:
                patch.setattr(traceback, "format_stack", refuse)
                return step(*arguments)

        return watched

    monkeypatch.setattr(loop, "create_step", create_watched_step)
    train(resolve({**SMALL, "run_dir": tmp_path, "total_images": 32, "tensorboard": False}))


def test_each_step_leaves_the_other_network_alone():
    config = settled()
    state = create_state(config, torch.device("cpu"), class_count=0)
    noise = torch.Generator().manual_seed(0)
    real_images = torch.rand(16, 1, 8, 8) * 2 - 1

    def weights(network: torch.nn.Module) -> list[torch.Tensor]:
        return [values.detach().clone() for values in network.parameters()]

    generator = weights(state.generator)
    fakes = generate_fakes(state, config, noise, with_gradient=False)
    discriminator_step(state, real_images, fakes, config, noise)
    assert all(map(torch.equal, generator, weights(state.generator)))
    discriminator = weights(state.discriminator)
    norm = gradient_norm(state.discriminator)
    fakes = generate_fakes(state, config, noise, with_gradient=True)
    generator_step(state, real_images, fakes, config, noise)
    assert all(map(torch.equal, discriminator, weights(state.discriminator)))
    assert gradient_norm(state.discriminator) == norm, "of its own step, as a row reports it"
    assert all(values.requires_grad for values in state.discriminator.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"filters": 5}, "--filters 4, asked for is 5", id="setting"),
        pytest.param(
            {"lr": 0.5},
            r"--lr 0\.002, asked for is 0\.5: give --lr 0\.002",
            id="a-rate-that-was-once-the-default",
        ),
        pytest.param({"image_size": 16}, "--image-size 8, asked for is 16", id="size"),
        pytest.param({"seed": 5}, "--seed 0, asked for is 5: give --seed 0 to resume", id="seed"),
        pytest.param(
            {"gradient_clip": 1.0},
            r"with no --gradient-clip, asked for is 1\.0: leave --gradient-clip out to resume",
            id="unset",
        ),
        pytest.param(
            {"spectral_norm": True},
            "with --no-spectral-norm, asked for is --spectral-norm: give --no-spectral-norm to",
            id="switch",
        ),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(change, message: str, small_run: Path):
    with pytest.raises(RunError, match=message):
        train(resolve({**SMALL, "run_dir": small_run, "total_images": 2048, **change}))


def test_a_setting_that_is_left_out_when_resuming_is_called_none(tmp_path: Path):
    settings = {**SMALL, "run_dir": tmp_path, "total_images": 16}
    train(resolve({**settings, "gradient_clip": 1.0}))
    told = r"with --gradient-clip 1\.0, asked for is none: give --gradient-clip 1\.0 to resume"
    with pytest.raises(RunError, match=told):
        train(resolve(settings))


def test_a_run_of_before_names_the_default_that_it_had(small_run: Path, tmp_path: Path):
    run = shutil.copytree(small_run, tmp_path / "run")
    content = (run / "config.json").read_text()
    (run / "config.json").write_text(
        content.replace('"ema_half_life_images": 500000', '"ema_half_life_images": 32000')
    )
    told = r"--ema-half-life-images 32000 \(the default before 0\.8\.0\), asked for is 500000"
    with pytest.raises(RunError, match=told):
        train(resolve({**SMALL, "run_dir": run, "total_images": 1040}))
    train(resolve({**SMALL, "run_dir": run, "total_images": 1040, "ema_half_life_images": 32_000}))


def test_a_run_of_before_names_the_rate_that_was_its_default(tmp_path: Path):
    run, facts = RunDirectory(tmp_path), DataFacts("sha256:", 64, "test", ())
    wide = {"data": "", "run_dir": tmp_path, "image_size": 64, "channels": 3}
    run.write(resolve({**wide, "lr": 0.002}), facts)
    told = r"--lr 0\.002 \(the default before 0\.7\.0\), asked for is 0\.00025"
    with pytest.raises(RunError, match=told):
        check_same_run(run, resolve({**wide, "lr": 0.00025}), facts)


def test_a_rate_that_follows_from_another_setting_is_not_called_one_of_before(tmp_path: Path):
    run, facts = RunDirectory(tmp_path), DataFacts("sha256:", 64, "test", ())
    small = {"data": "", "run_dir": tmp_path, "image_size": 32, "channels": 3}
    run.write(resolve({**small, "filters": 8, "lr": 0.002}), facts)
    told = r"with --filters 8, asked for is 64; with --lr 0\.002, asked for is 0\.0005: give"
    with pytest.raises(RunError, match=told):
        check_same_run(run, resolve({**small, "lr": 0.0005}), facts)


def test_checkpoints_that_nothing_says_the_run_of_are_not_resumed(small_run: Path, tmp_path: Path):
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / "config.json").rename(tmp_path / "config.json")
    before = {path: path.read_bytes() for path in checkpoint_paths(run / "checkpoints")}
    for change in ({}, {"filters": 8}, {"optimizer": "rmsprop"}):
        with pytest.raises(RunError, match=r"checkpoints but no config\.json.* put it back to res"):
            train(resolve({**SMALL, "run_dir": run, "total_images": 2048, **change}))
    assert {path: path.read_bytes() for path in checkpoint_paths(run / "checkpoints")} == before
    assert not (run / "config.json").exists()
    (tmp_path / "config.json").rename(run / "config.json")
    assert train(resolve({**SMALL, "run_dir": run, "total_images": 1040})).images_seen == 1040


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            lambda values: {**values, "config": {**values["config"], "lr": 5}},
            "lr: expected a number less than or equal to 1, got 5; put back the file",
            id="value",
        ),
        pytest.param(
            lambda values: {**values, "config": {**values["config"], "tempo": 1}},
            "tempo is no setting that this version knows; .*use the version of gantrain that wrote",
            id="setting-of-a-later-version",
        ),
        pytest.param(
            lambda values: {"config": values["config"]},
            "expected .config. and .data.",
            id="part",
        ),
        pytest.param(lambda _: [], "expected .config. and .data.", id="list"),
    ],
)
def test_a_run_whose_settings_cannot_be_read_says_which(
    spoil, message: str, small_run: Path, tmp_path: Path
):
    values = json.loads((small_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(spoil(values)))
    with pytest.raises(RunError, match=rf"config\.json cannot be used: {message}"):
        RunDirectory(tmp_path).read()


def test_a_run_is_not_resumed_on_other_data(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def save_images(shade: int) -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        for index in range(16):
            Image.new("L", (8, 8), shade + index).save(tmp_path / "data" / f"{index}.png")

    settings = {**SMALL, "data": str(tmp_path / "data"), "run_dir": tmp_path / "run"}
    save_images(0)
    train(resolve({**settings, "total_images": 16}))
    (tmp_path / "data" / "broken.png").write_bytes(b"")
    with caplog.at_level(logging.INFO, "gantrain"):
        resumed = train(resolve({**settings, "total_images": 32, "skip_bad_files": True}))
    assert resumed.images_seen == 32, "a file that came later and is left out changes nothing"
    assert "left out 1 of 17 files: broken.png: empty: zero bytes" in caplog.messages
    (tmp_path / "data" / "broken.png").unlink()
    save_images(100)
    with pytest.raises(RunError, match=r"other data, .*: restore the data to resume it"):
        train(resolve({**settings, "total_images": 48}))
    digits = {**settings, "data": "digits", "total_images": 48}
    told = r"on other data, --data .*/data \(16 images, .* asked for is digits \(1797"
    with pytest.raises(RunError, match=rf"{told}, .*\.\.\.\): restore the data to"):
        train(resolve(digits))
    with pytest.raises(
        RunError, match=rf"{told}.*; it is a run with --filters 4, asked for is 8: "
    ):
        train(resolve({**digits, "filters": 8}))


def test_all_settings_that_a_run_is_not_resumed_with_are_named(small_run: Path):
    asked = {**SMALL, "run_dir": small_run, "total_images": 32}
    changes = {"filters": 8, "latent_dim": 5, "discriminator_filters": 6}
    with pytest.raises(RunError) as caught:
        train(resolve({**asked, **changes}))
    assert str(caught.value) == (
        f"{small_run} holds a run with --latent-dim 8, asked for is 5; with --filters 4, asked for "
        "is 8; with no --discriminator-filters, asked for is 6: give --latent-dim 8 --filters 4 "
        "and leave --discriminator-filters out to resume it or choose another --run-dir"
    )


@pytest.mark.parametrize("place", ["", "run", "runs/a"])
def test_a_run_is_kept_out_of_the_images_that_it_trains_on(place: str, tmp_path: Path):
    """Its pictures would be among them when it is resumed: other data, so it could not be."""
    for index in range(16):
        Image.new("L", (8, 8), index).save(tmp_path / f"{index}.png")
    settings = {**SMALL, "data": str(tmp_path), "total_images": 16}
    with pytest.raises(RunError, match=r"--run-dir .* lies in the folder of images .*outside it"):
        train(resolve({**settings, "run_dir": tmp_path / place}))
    assert len(list(tmp_path.rglob("*"))) == 16, "nothing was written"
    for total in (16, 32):  # what is hidden is no data
        run = {"run_dir": tmp_path / ".runs" / "a", "total_images": total}
        assert train(resolve({**settings, **run})).images_seen == total


def test_a_run_is_kept_out_of_the_faces_of_celeba_wherever_they_lie_below_the_data(tmp_path: Path):
    faces = tmp_path / "img_align_celeba"
    faces.mkdir()
    for index in range(16):
        Image.new("L", (8, 8), index).save(faces / f"{index + 1:06}.png")
    settings = {**SMALL, "data": str(tmp_path), "total_images": 16}
    with pytest.raises(RunError, match=r"--run-dir .* images .*/img_align_celeba, .*outside it"):
        train(resolve({**settings, "run_dir": faces / "run"}))
    assert len(list(tmp_path.rglob("*"))) == 17, "nothing was written"
    for total in (16, 32):  # what lies beside the faces is no data
        run = {"run_dir": tmp_path / "run", "total_images": total}
        assert train(resolve({**settings, **run})).images_seen == total


def test_two_processes_do_not_train_in_one_folder(start: Start, tmp_path: Path):
    first = start(command(tmp_path / "run", "--total-images=1000000"))
    try:
        wait_for_checkpoint(first, tmp_path / "run")
        second = subprocess.run(
            command(tmp_path / "run"), capture_output=True, text=True, check=False
        )
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 1
    assert "another process is training in" in second.stderr


def test_numbers_that_leave_the_reals_stop_the_run_and_keep_the_last_good_checkpoint(
    tmp_path: Path,
):
    settings = {**SMALL, "run_dir": tmp_path / "run", "log_every": 1}
    train(resolve({**settings, "total_images": 64}))
    newest = checkpoint_paths(tmp_path / "run" / "checkpoints")[0]
    values = load_checkpoint(newest)
    values["discriminator"]["judge.weight"] *= 1e30  # its square is no float32
    torch.save(values, newest)
    with pytest.raises(RunError, match=r"became (nan|inf) by 80 images .*first weights not finite"):
        train(resolve({**settings, "total_images": 128}))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]  # NaN is no JSON
    assert rows[-1]["images_seen"] == 80
    assert re.match(r"\w+ became (nan|inf) \(first weights not finite: \w+\.", rows[-1]["diverged"])
    assert rows[-1]["diagnosis"] == "diverged"
    assert checkpoint_paths(tmp_path / "run" / "checkpoints")[0] == newest
    assert load_checkpoint(newest)["images_seen"] == 64


def test_a_resumed_run_has_not_its_share_of_time_for_diagnosis_once_more(tmp_path: Path):
    settings = {**SMALL, "run_dir": tmp_path / "run", "diagnose_every": 256}
    train(resolve({**settings, "total_images": 512}))
    metrics = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[-1]["diagnosis_seconds"] = 1000.0  # far more than its share
    metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    train(resolve({**settings, "total_images": 1024}))
    looks = [row for row in read_metrics(tmp_path / "run") if "diagnosis_seconds" in row]
    positions = [row["images_seen"] for row in looks]
    assert positions[-2:] == [512, 1024], "that at 768 is put off, the last one never is"
    assert looks[-1]["diagnosis_seconds"] > 1000


def test_a_broken_weight_is_named():
    state = create_state(settled(), torch.device("cpu"), class_count=0)
    with torch.no_grad():
        state.generator.project.weight[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"generator_loss became nan.*generator\.project\.weight"):
        check_bounds({"discriminator_loss": 0.1, "generator_loss": float("nan")}, state)
    with pytest.raises(Diverged, match=r"^weights became nan.*\(.*generator\.project\.weight\)"):
        check_bounds({"discriminator_loss": 0.1}, state)


def test_a_broken_weight_of_the_average_is_named_too():
    state = create_state(settled(), torch.device("cpu"), class_count=0)
    with torch.no_grad():
        state.generator_ema.project.weight[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"\(.*generator_ema\.project\.weight\)"):
        check_bounds({"discriminator_loss": 0.1}, state)


def test_logits_that_no_image_deserves_are_out_of_bounds_though_finite():
    state = create_state(settled(), torch.device("cpu"), class_count=0)
    check_bounds({"logit_size": 0.9e6}, state)
    with pytest.raises(Diverged, match=r"^logit_size became 1\.1e\+06 by 0 images"):
        check_bounds({"logit_size": 1.1e6}, state)


def test_broken_statistics_are_named_too():
    state = create_state(settled(ema_half_life_images=0), torch.device("cpu"), class_count=0)
    (name, mean), *_ = (
        pair for pair in state.generator.named_buffers() if pair[0].endswith("running_mean")
    )
    mean[0] = torch.inf
    with pytest.raises(Diverged, match=rf"^weights became nan.*\(.*generator\.{name}\)"):
        check_bounds({"discriminator_loss": 0.1}, state)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"total_images": 80}, id="at-the-end"),
        pytest.param(
            {
                "total_images": 160,
                "checkpoint_every": 16,
                "log_every": 160,
                "diagnose_every": 160,
            },
            id="between-rows",
        ),
    ],
)
def test_weights_that_leave_the_reals_before_a_loss_does_reach_no_checkpoint(more, tmp_path: Path):
    settings = {**SMALL, "run_dir": tmp_path / "run"}
    train(resolve({**settings, "total_images": 64}))
    newest = checkpoint_paths(tmp_path / "run" / "checkpoints")[0]
    values = load_checkpoint(newest)
    values["generator_optimizer"]["state"][0]["exp_avg_sq"] *= torch.nan
    torch.save(values, newest)
    # One step, whose losses are still finite, would be saved.
    with pytest.raises(RunError, match=r"became nan.* by 80 images.*generator\.project\.weight"):
        train(resolve({**settings, **more}))
    assert checkpoint_paths(tmp_path / "run" / "checkpoints")[0] == newest


def test_a_disk_that_takes_no_more_ends_the_run_with_one_line_and_loses_nothing(
    start: Start, tmp_path: Path
):
    process = start(command(tmp_path / "run", "--total-images=1000000"))
    wait_for_checkpoint(process, tmp_path / "run")
    # Files can grow no further than this: metrics still fit, checkpoints do not.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (32768, resource.RLIM_INFINITY))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, output + errors
    last_line = errors.splitlines()[-1]
    assert last_line.startswith("gantrain train: ")
    assert "File too large" in last_line
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    kept = checkpoint_paths(tmp_path / "run" / "checkpoints")[0]
    assert str(kept) in last_line
    assert load_checkpoint(kept)["images_seen"] == int(kept.stem)


def test_a_run_whose_folder_is_moved_away_asks_for_it_back(start: Start, tmp_path: Path):
    run_dir = tmp_path / "run"
    more = ("--total-images=1000000", "--log-every=16", "--checkpoint-every=1000000")
    process = start(command(run_dir, *more, "--no-tensorboard"))
    wait_for((run_dir / "metrics.jsonl").exists, process)
    run_dir.rename(tmp_path / "moved")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    told = (
        f"{run_dir} was removed, moved or replaced while this process trained in it: put the "
        "folder back and give the same command again to resume, or start over in another --run-dir"
    )
    late = (  # it was moved in the moment before a line was written
        f"{run_dir}/metrics.jsonl could not be written: the folder {run_dir} is no longer there; "
        "put it back and give the same command again"
    )
    assert errors.splitlines()[-1] in (f"gantrain train: {told}", f"gantrain train: {late}")


def test_a_full_disk_is_named_with_the_file_that_did_not_fit(mount):
    disk = mount("size=4k")  # one page: room for config.json
    config = resolve({**SMALL, "run_dir": disk, "total_images": 64, "tensorboard": False})
    with pytest.raises(RunError, match=r"metrics\.jsonl could not be written: No space left on"):
        train(config)
    (disk / "config.json").unlink()
    (disk / "other").write_bytes(bytes(4096))
    with pytest.raises(RunError, match=r"config\.json could not be written: No space left on"):
        train(config)


def test_what_a_killed_process_had_half_written_is_cleared_away(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    with open_run(run.path):
        pass
    for folder in (run.path, run.checkpoints, run.samples, run.sheets):
        (folder / ".file.123.partial").write_text("ha")
    with open_run(run.path):
        assert not list(run.path.rglob("*.partial"))


def test_a_run_directory_that_cannot_be_written_is_refused_before_training(mount, tmp_path: Path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for run_dir in (in_the_way / "run", mount("ro") / "run"):
        with pytest.raises(RunError, match="cannot be written: "):
            train(resolve({**SMALL, "run_dir": run_dir, "total_images": 16}))


def test_a_run_directory_whose_link_leads_nowhere_is_said_to(tmp_path: Path):
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "disk" / "run")
    with pytest.raises(RunError, match=r"it is a link to .*disk/run, which is not there; mend"):
        train(resolve({**SMALL, "run_dir": link, "total_images": 16}))


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="--batch-size 4096: the data have only 1797 images"):
        train(resolve({**SMALL, "run_dir": tmp_path, "batch_size": 4096}))


def test_classes_are_not_learned_from_data_that_have_none(class_folders: Path, tmp_path: Path):
    one_class = {**SMALL, "data": str(class_folders / "cat"), "run_dir": tmp_path / "run"}
    with pytest.raises(
        RunError, match=r"--conditional: the data .*cat have no classes \(image.* none beside"
    ):
        train(resolve({**one_class, "conditional": True, "total_images": 16}))


def test_what_keeps_folders_from_being_classes_is_named(class_folders: Path, tmp_path: Path):
    folder = shutil.copytree(class_folders, tmp_path / "data")
    shutil.copy(folder / "cat" / "0.png", folder / "cover.png")
    config = {**SMALL, "data": str(folder), "run_dir": tmp_path / "run", "conditional": True}
    told = r"have no classes \(image folder\), as these images lie beside the folders: cover\.png; "
    with pytest.raises(RunError, match=told):
        train(resolve({**config, "total_images": 16}))


def test_classes_beyond_the_limit_are_told_to_be_so(class_folders: Path, tmp_path: Path):
    first_class = {**SMALL, "data": str(class_folders), "max_data_images": 16, "batch_size": 8}
    with pytest.raises(RunError, match=r"have no classes .*; give a larger --max-data-images, "):
        train(resolve({**first_class, "conditional": True, "run_dir": tmp_path, "total_images": 8}))


def test_a_run_does_not_become_conditional(small_run: Path):
    with pytest.raises(RunError, match="--no-conditional, asked for is --conditional: give --no-"):
        train(resolve({**SMALL, "run_dir": small_run, "total_images": 2048, "conditional": True}))


def test_a_conditional_run_learns_which_class_is_which(conditional_run: Path):
    run = load_run_generator(conditional_run)
    assert run.class_names == tuple(SHADES)
    assert run.data.class_counts == tuple(IMAGES.values())
    shares = np.array(run.data.class_counts) / run.data.count
    histogram = read_metrics(conditional_run)[-1]["class_histogram"]
    assert histogram == pytest.approx(shares, abs=0.1), "a look at it has the data's proportions"
    latents = draw_latents(np.arange(64, dtype=np.uint64), run.config.latent_dim)
    for label, (name, shade) in enumerate(SHADES.items()):
        pixels = generate(run.generator, latents, np.full(64, label))
        assert abs(pixels.mean() - shade) < 20, f"{name}: {pixels.mean()}"


def test_the_grid_of_a_conditional_run_has_a_class_in_each_column(conditional_run: Path):
    newest = max((conditional_run / "samples").iterdir())
    with Image.open(newest) as grid:
        classes = [nearest_class(shade) for shade in tile_shades(grid, side=8)]
    assert classes == [0, 0, 0, 1, 1, 1, 2, 2] * 8


def test_a_class_without_images_is_told(caplog: pytest.LogCaptureFixture):
    labels = np.array([0, 3, 3], np.int64)
    data = Dataset(np.zeros((3, 1, 8, 8), np.uint8), labels, ("a", "b", "c", "d"), "idx")
    loaded = load_labels(data, settled(conditional=True), torch.device("cpu"))
    assert loaded.tolist() == [0, 3, 3]
    assert "no image of 2 of the 4 classes (b, c)" in caplog.text
    assert load_labels(data, settled(), torch.device("cpu")) is None


def test_a_run_from_before_there_were_conditional_ones_goes_on(small_run: Path, tmp_path: Path):
    run_dir = Path(shutil.copytree(small_run, tmp_path / "run"))
    values = json.loads((run_dir / "config.json").read_text())
    del values["config"]["conditional"]
    del values["data"]["class_counts"]
    (run_dir / "config.json").write_text(json.dumps(values))
    assert load_run_generator(run_dir).class_names == ()
    assert train(resolve({**SMALL, "run_dir": run_dir, "total_images": 1040})).images_seen == 1040


def test_cuda_is_refused_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(RunError, match="finds no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.gpu
def test_the_same_command_trains_on_cuda(tmp_path: Path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config = resolve({**SMALL, "run_dir": tmp_path, "total_images": 256, "device": "cuda"})
    assert train(config).images_seen == 256
    assert load_run_generator(tmp_path).images_seen == 256


def test_each_rollback_brings_another_order_of_the_data():
    state, device = create_state(settled(), torch.device("cpu"), class_count=0), torch.device("cpu")
    orders = set()
    for state.rollbacks in range(4):
        order = loop.data_order(1000, settled(), state, device)
        orders.add(tuple(order.indices(0).tolist()))
    assert len(orders) == 4


def test_a_run_has_the_threads_that_are_asked_for(tmp_path: Path):
    before = torch.get_num_threads()
    try:
        train(resolve({**SMALL, "run_dir": tmp_path, "total_images": 16, "threads": 3}))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_default_to_the_cpus_this_process_may_use(tmp_path: Path):
    before = torch.get_num_threads()
    try:
        train(resolve({**SMALL, "run_dir": tmp_path, "threads": None, "total_images": 16}))
        assert torch.get_num_threads() == usable_cpus()
    finally:
        torch.set_num_threads(before)


# What the libraries of a run take of the address space, in KiB: a build for CUDA takes far more.
SIZE_OF_LIBRARIES = """
import gantrain.training.loop, sklearn.datasets, torch
torch.set_num_threads(1)
print(open("/proc/self/status").read().split("VmPeak:")[1].split()[0])
"""


def test_a_run_that_does_not_fit_into_memory_says_what_takes_less(start: Start, tmp_path: Path):
    """The limit leaves room for the libraries, not for feature maps of a GiB."""
    libraries = subprocess.check_output([sys.executable, "-c", SIZE_OF_LIBRARIES])
    limit = int(libraries) * 1024 + 2**30
    run_dir = tmp_path / "run"
    settings = ["--batch-size=1797", "--image-size=64", "--filters=64", "--data=digits"]
    settings += ["--threads=1", "--device=cpu"]  # each thread takes of the address space too
    process = start([sys.executable, "-m", "gantrain", "train", f"--run-dir={run_dir}", *settings])
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert "out of memory on the CPU" in last
    assert "use a smaller --batch-size (now 1797) or --filters (now 64)" in last
