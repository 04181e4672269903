import os
from pathlib import Path

import pytest
import torch

from gantrain.errors import RunError
from gantrain.presets import resolve
from gantrain.training import loop
from gantrain.training.determinism import repeatable
from gantrain.training.loop import train


def flags() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_pytorch_is_told_to_repeat_itself_for_as_long_as_asked():
    before = flags()
    with repeatable(True):
        assert flags() == (True, False, ":4096:8")
    assert flags() == before
    with repeatable(False):
        assert flags() == (before[0], True, before[2]), "cuDNN may time its algorithms"
    assert flags() == before


def test_float32_is_no_tf32_while_a_run_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def tf32() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before, within = tf32(), []
    take = loop.take_step
    monkeypatch.setattr(loop, "take_step", lambda *given: within.append(tf32()) or take(*given))
    settings = {"data": "digits", "filters": 4, "batch_size": 16, "total_images": 16}
    train(resolve({**settings, "run_dir": tmp_path, "threads": 1, "tensorboard": False}))
    assert before == (True, False), "PyTorch's defaults have changed"
    assert within == [(False, False)]
    assert tf32() == before


def test_what_was_set_comes_back_after_an_error_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before, within = flags(), []

    def fail() -> None:
        within.append(flags()[2])
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"), repeatable(True):
        fail()
    assert within == [":16:8"]
    assert flags() == before


def test_fresh_memory_is_not_filled_meanwhile():
    filled = torch.utils.deterministic.fill_uninitialized_memory
    assert filled, "PyTorch's default"
    with repeatable(True):
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory == filled


def test_an_operation_that_cannot_repeat_itself_is_named():
    values, places = torch.zeros(2), torch.tensor([0, 0])
    message = r"--deterministic: put_ .*without --deterministic"
    with pytest.raises(RunError, match=message), repeatable(True):
        values.put_(places, torch.ones(2))


def test_a_run_on_the_cpu_has_the_same_weights_with_and_without(tmp_path: Path):
    weights = []
    for deterministic in (True, False):
        run_dir = tmp_path / str(deterministic)
        settings = {"data": "digits", "image_size": 16, "filters": 4, "batch_size": 16}
        asked = {"total_images": 64, "run_dir": run_dir, "deterministic": deterministic}
        state = train(resolve({**settings, **asked, "threads": 1, "tensorboard": False}))
        weights.append(state.generator.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
