"""Every preset trains, resumes to the same bits, and shows what it makes."""

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from gantrain.checkpoint import (
    TrainState,
    checkpoint_paths,
    how_to_take_back,
    load_checkpoint,
    paths_astray,
    set_aside,
)
from gantrain.cli import run as gantrain
from gantrain.errors import RunError
from gantrain.export.artifact import export_run
from gantrain.presets import PRESETS, resolve
from gantrain.run_log import read_metrics
from gantrain.sampling import load_run_generator
from gantrain.training.loop import train
from gantrain.training.recovery import Diverged, check_bounds
from tests.gantrain.test_training import assert_same_bits

# Small enough for a step in milliseconds; sizes that a preset fixes stay as they are.
SMALLER = {
    "dcgan": {"filters": 4},
    "dcgan-2015": {"filters": 4, "image_size": 32},
    "keras-conv64": {"filters": 4},
    "faces-rmsprop": {"filters": 4, "image_size": 32},
}
POINTS = {"sine": "sine", "points": "ring8"}
STEPS = 6


def settings(preset: str, run_dir: Path, **more: object):
    values = {
        "preset": preset,
        "data": POINTS.get(preset, "digits"),
        "run_dir": run_dir,
        "batch_size": 4,
        "threads": 1,
        "log_every": 4,
        "sample_every": 1_000_000,
        "tensorboard": False,
        **SMALLER.get(preset, {}),
    }
    return resolve({**values, "total_images": 4 * STEPS, **more})


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_cut_in_two_ends_with_the_bits_of_one_that_was_not(preset: str, tmp_path: Path):
    train(settings(preset, tmp_path / "whole"))
    train(settings(preset, tmp_path / "halves", total_images=4 * STEPS // 2))
    train(settings(preset, tmp_path / "halves"))
    whole, halves = (
        load_checkpoint(checkpoint_paths(tmp_path / name / "checkpoints")[0])
        for name in ("whole", "halves")
    )
    assert whole["images_seen"] == 4 * STEPS
    assert_same_bits(whole, halves)


def test_a_conditional_run_resumes_too(tmp_path: Path):
    more = {"conditional": True, "discriminator_updates": 2, "generator_updates": 2}
    train(settings("dcgan", tmp_path / "whole", **more))
    train(settings("dcgan", tmp_path / "halves", total_images=4 * STEPS // 3, **more))
    train(settings("dcgan", tmp_path / "halves", **more))
    whole, halves = (
        load_checkpoint(checkpoint_paths(tmp_path / name / "checkpoints")[0])
        for name in ("whole", "halves")
    )
    assert whole["generator"]["embed.weight"].shape[0] == 10
    assert_same_bits(whole, halves)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"augment": "color,translation,cutout"}, id="augmented"),
        pytest.param({"precision": "bf16"}, id="bf16"),
        pytest.param({"flip": "on"}, id="flipped"),
    ],
)
def test_runs_with_other_steps_resume_too(more, tmp_path: Path):
    train(settings("dcgan", tmp_path / "plain"))
    train(settings("dcgan", tmp_path / "whole", **more))
    train(settings("dcgan", tmp_path / "halves", total_images=4 * STEPS // 2, **more))
    train(settings("dcgan", tmp_path / "halves", **more))
    plain, whole, halves = (
        load_checkpoint(checkpoint_paths(tmp_path / name / "checkpoints")[0])
        for name in ("plain", "whole", "halves")
    )
    assert_same_bits(whole, halves)
    weights, others = (values["discriminator"]["judge.weight"] for values in (plain, whole))
    assert weights.dtype == others.dtype == torch.float32
    assert not torch.equal(weights, others), "the setting changes what is learned"


def test_a_conditional_run_that_diverges_goes_back_too(tmp_path: Path):
    more = {"conditional": True, "on_divergence": "rollback", "r1_weight": 1e38, "log_every": 4}
    with pytest.raises(RunError, match="3 rollbacks have not helped"):
        train(settings("dcgan", tmp_path / "run", **more))


def test_several_updates_of_each_network_resume_too(tmp_path: Path):
    more = {"discriminator_updates": 3, "generator_updates": 2, "batch_size": 4}
    train(settings("keras-conv64", tmp_path / "whole", total_images=48, **more))
    train(settings("keras-conv64", tmp_path / "halves", total_images=24, **more))
    train(settings("keras-conv64", tmp_path / "halves", total_images=48, **more))
    whole, halves = (
        load_checkpoint(checkpoint_paths(tmp_path / name / "checkpoints")[0])
        for name in ("whole", "halves")
    )
    assert_same_bits(whole, halves)
    updates = {
        network: int(next(iter(whole[f"{network}_optimizer"]["state"].values()))["step"])
        for network in ("generator", "discriminator")
    }
    assert updates == {"generator": 8, "discriminator": 2 * 12}, "two for each batch"


@pytest.mark.parametrize("preset", POINTS)
def test_a_run_on_points_draws_them_and_is_not_exported(preset: str, tmp_path: Path, capsys):
    train(settings(preset, tmp_path / "run", sample_every=8))
    with Image.open(max((tmp_path / "run" / "samples").glob("*.png"))) as plot:
        assert plot.size[0] > 200
    assert not list((tmp_path / "run" / "sheets").glob("*.png"))
    out = tmp_path / "points.png"
    assert gantrain(["sample", str(tmp_path / "run"), "--seeds=0-99", f"--out={out}"]) == 0
    with Image.open(out) as plot:
        plot.load()
    with pytest.raises(RunError, match="makes two-dimensional points: an artifact holds images"):
        export_run(tmp_path / "run", tmp_path / "models", preset)
    walk = ["sample", str(tmp_path / "run"), "--seeds=0-1", "--interpolate", "--out=w.gif"]
    assert gantrain(walk) == 2
    assert "this run makes points" in capsys.readouterr().err


def test_rows_and_sheets_show_what_the_tutorials_show(tmp_path: Path):
    train(settings("keras-mlp", tmp_path / "run", sample_every=8))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for row in rows:
        for side in ("real", "fake"):
            assert 0 <= row[f"discriminator_accuracy_{side}"] <= 1
        for network in ("discriminator", "generator"):
            assert 0 <= row[f"{network}_error"] <= 1
            assert row[f"{network}_gradient"] > 0
            assert row[f"{network}_loss"] > 0
    sheets = sorted((tmp_path / "run" / "sheets").glob("*.png"))
    assert [int(sheet.stem) for sheet in sheets] == [8, 16, 24]
    assert "diagnosis" in rows[-1], "the last look is never put off"


def test_a_run_that_diverges_goes_back_with_a_lower_learning_rate_and_another_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    more = {"log_every": 4, "checkpoint_every": 8, "on_divergence": "rollback", "filters": 4}
    config = settings("dcgan", tmp_path / "run", total_images=8, **more)
    train(config)
    break_newest(tmp_path / "run")
    state = train(config.model_copy(update={"total_images": 48}))
    assert state.images_seen == 48
    # The newest checkpoint leads astray itself, so the second attempt goes back further.
    assert "Rolling back to 8 images with 0.5 of the learning rate" in caplog.text
    aside = tmp_path / "run" / "checkpoints" / "000000000008.pt.astray"
    assert f"it is set aside as {aside}" in caplog.text
    assert load_checkpoint(aside)["images_seen"] == 8
    assert "Rolling back to 0 images with 0.25 of the learning rate" in caplog.text
    *_, shown = capsys.readouterr().err.rstrip().rpartition("\r")
    assert "48.0/48.0" in shown, "the progress bar went back, too"
    assert state.rollbacks == 2
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["images_seen"] for row in rows] == sorted({row["images_seen"] for row in rows})
    falling = [1 + config.lr_decay * (row["images_seen"] / 4 - 1) for row in rows]
    expected = [config.generator_rate / 4 / by for by in falling]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=1e-12)
    told = [row["rolled_back"] for row in rows if "rolled_back" in row]
    assert told == [rows[0]["rolled_back"]], "the first row since then tells it, once"
    assert re.fullmatch(r".* by 12 images \(.*\); .* by (4|8|12) images \(.*\)", told[0])
    assert all(row["images_per_second"] > 0 for row in rows)
    assert all(values.isfinite().all() for values in state.generator.parameters())


def test_a_run_that_is_killed_after_a_rollback_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        """Ends the process, as far as the run can see."""

    kills = False

    def check(row: dict[str, float], state: TrainState) -> None:
        if (state.images_seen, state.rollbacks) in ((12, 0), (20, 1)):
            raise Diverged("logit_size became 1e+09", state.images_seen, None)
        if kills and state.images_seen == 12:
            raise Killed
        check_bounds(row, state)

    monkeypatch.setattr("gantrain.training.loop.check_bounds", check)
    more = {"log_every": 4, "checkpoint_every": 8, "on_divergence": "rollback"}
    whole = train(settings("dcgan", tmp_path / "whole", **more))
    kills = True
    with pytest.raises(Killed):
        train(settings("dcgan", tmp_path / "killed", **more))
    (newest,) = checkpoint_paths(tmp_path / "killed" / "checkpoints")
    assert load_checkpoint(newest)["rollbacks"] == 1, "it need not diverge once more to go back"
    kills = False
    resumed = train(settings("dcgan", tmp_path / "killed", **more))
    assert whole.rollbacks == resumed.rollbacks == 2
    assert not [*tmp_path.rglob("*.astray")], "a checkpoint was saved between the two"
    assert_same_bits(
        *(
            load_checkpoint(checkpoint_paths(tmp_path / name / "checkpoints")[0])
            for name in ("whole", "killed")
        )
    )


def break_newest(run_dir: Path) -> None:
    """Let the next update of the generator leave the reals."""
    (newest,) = checkpoint_paths(run_dir / "checkpoints")
    values = load_checkpoint(newest)
    values["generator_optimizer"]["state"][0]["exp_avg_sq"] *= torch.nan
    torch.save(values, newest)


def test_rollbacks_that_do_not_help_end_the_run(tmp_path: Path):
    more = {"on_divergence": "rollback", "r1_weight": 1e38, "log_every": 4}
    config = settings("dcgan", tmp_path / "run", **more)
    with pytest.raises(RunError, match="3 rollbacks have not helped") as ended:
        train(config)
    assert "--r1-weight 1e+38: use 0.0312" in str(ended.value)
    assert "--on-divergence" not in str(ended.value), "the run goes back by itself"
    assert "1e+39" not in str(ended.value)
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert (last["diagnosis"], last["rollbacks"]) == ("diverged", 3)
    assert "set aside" not in str(ended.value), "there was no checkpoint"


def test_checkpoints_that_led_astray_can_still_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(_row: object, state: TrainState) -> None:
        raise Diverged("logit_size became 1e+09", state.images_seen, None)

    more = {"log_every": 4, "checkpoint_every": 4, "on_divergence": "rollback"}
    config = settings("dcgan", tmp_path / "run", total_images=8, **more)
    train(config)
    monkeypatch.setattr("gantrain.training.loop.check_bounds", refuse)
    with pytest.raises(RunError, match="3 rollbacks have not helped; to sample or") as ended:
        train(config.model_copy(update={"total_images": 48}))
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "000000000004.pt.astray",
        "000000000008.pt.astray",
    ]
    assert f"rename {folder}/000000000008.pt.astray to 000000000008.pt. " in str(ended.value)
    with pytest.raises(RunError, match=r"no checkpoint yet.*; to sample or export the furthest"):
        load_run_generator(tmp_path / "run")
    (folder / "000000000008.pt.astray").rename(folder / "000000000008.pt")
    assert load_run_generator(tmp_path / "run").images_seen == 8


def test_only_so_many_checkpoints_are_set_aside(tmp_path: Path):
    for position in (8, 16, 4, 2):
        (tmp_path / f"{position:012d}.pt").touch()
        aside = set_aside(tmp_path, position, keep=2)
        assert aside is not None
        assert aside.exists(), "what was set aside just now is not deleted, as is logged"
    assert [path.name for path in paths_astray(tmp_path)] == [
        "000000000016.pt.astray",
        "000000000008.pt.astray",
        "000000000002.pt.astray",
    ]


@pytest.mark.parametrize(
    ("newest", "is_told"),
    [
        pytest.param(None, True, id="none"),
        pytest.param(4, True, id="earlier"),
        pytest.param(8, False, id="as far"),
        pytest.param(16, False, id="further"),
    ],
)
def test_how_to_take_back_is_told_where_nothing_as_far_would_be_lost_or_go_first(
    newest: int | None, is_told: bool, tmp_path: Path
):
    (tmp_path / "000000000008.pt.astray").touch()
    if newest is not None:
        (tmp_path / f"{newest:012d}.pt").touch()
    told = how_to_take_back(tmp_path)
    assert told.endswith("000000000008.pt.astray to 000000000008.pt") is is_told
    assert bool(told) is is_told
