"""There is no GPU here: what records is one that a CPU can have, which replays like a graph.

It reads the tensors that it read when it recorded, whatever has been handed over since, writes its
results where they lay, and Python's numbers stay as they were.
"""

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from gantrain.checkpoint import TrainState
from gantrain.data.datasets import Dataset
from gantrain.errors import RunError
from gantrain.optimizers import set_rates
from gantrain.presets import resolve
from gantrain.training.loop import train
from gantrain.training.recorded_steps import (
    CudaRecorder,
    RecordedStep,
    compare_changes,
    copy_tensors,
    restore_tensors,
)
from gantrain.training.run_setup import create_state, settle_config
from gantrain.training.step_means import gradient_norm
from gantrain.training.steps import Feed, StepResults, take_step

CPU = torch.device("cpu")
STEPS = 10


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small maps are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class CpuRecorder:
    """Repeats work on the state that it was recorded on."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.apart_times = self.replays = self.times_freed = 0

    @contextmanager
    def apart(self) -> Iterator[None]:
        self.apart_times += 1
        yield

    def record(
        self, work: Callable[[], list[StepResults]]
    ) -> tuple[Callable[[], None], list[StepResults]]:
        before = copy_tensors(self.state)
        results = work()  # a graph's would not have run; so it is undone
        restore_tensors(self.state, before)
        places = [weights.grad for weights in self.weights()]

        def replay() -> None:
            self.replays += 1
            known = [weights.grad for weights in self.weights()]
            for kept, new in zip(results, self.repeat(work), strict=True):
                for name, values in new.items():
                    kept[name].copy_(values)
            for weights, place, seen in zip(self.weights(), places, known, strict=True):
                place.copy_(weights.grad)
                weights.grad = seen  # what Python knows of does not change

        return replay, results

    def free_memory(self) -> None:
        self.times_freed += 1

    def weights(self) -> list[torch.Tensor]:
        return [*self.state.generator.parameters(), *self.state.discriminator.parameters()]

    def repeat(self, work: Callable[[], list[StepResults]]) -> list[StepResults]:
        return work()


class RateRecorder(CpuRecorder):
    """Replays with the learning rates of the recording, as a graph with plain numbers would."""

    def record(self, work):
        optimizers = (self.state.generator_optimizer, self.state.discriminator_optimizer)
        self.rates = [float(optimizer.param_groups[0]["lr"]) for optimizer in optimizers]
        return super().record(work)

    def repeat(self, work):
        optimizers = (self.state.generator_optimizer, self.state.discriminator_optimizer)
        for optimizer, rate in zip(optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"].fill_(rate)
        return work()


class BatchRecorder(CpuRecorder):
    """Replays the batch of the recording."""

    def __init__(self, run: "Run") -> None:
        super().__init__(run.state)
        self.run = run

    def record(self, work):
        (self.indices,) = (
            cell.cell_contents
            for cell in work.__closure__ or ()
            if isinstance(cell.cell_contents, torch.Tensor)
        )
        self.indices = self.indices.clone()
        return super().record(work)

    def repeat(self, _work):
        return self.run.step(self.indices)


class IdleRecorder(CpuRecorder):
    """Replays nothing."""

    def repeat(self, _work):
        return []

    def record(self, work):
        super().record(work)
        return (lambda: None), []


class NoiseRecorder(CpuRecorder):
    """Replays with other noise than it was told."""

    def __init__(self, state, noise) -> None:
        super().__init__(state)
        self.noise = noise

    def repeat(self, work):
        self.noise.manual_seed(1)
        return work()


class FailingRecorder(CpuRecorder):
    """Fails as PyTorch does where an operation waits for the device."""

    def record(self, work):
        work_done = copy_tensors(self.state)
        work()
        restore_tensors(self.state, work_done)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")


SETTINGS = [
    pytest.param({"lr_decay": 0.5}, id="flagship"),
    pytest.param({"preset": "dcgan-2015", "image_size": 32}, id="2015"),
    pytest.param({"augment": "color,translation,cutout", "flip": "on"}, id="augmented"),
    pytest.param({"preset": "keras-mlp"}, id="two-steps"),
    pytest.param({"optimizer": "rmsprop", "generator_updates": 2}, id="rmsprop"),
    pytest.param({"discriminator_updates": 2, "spectral_norm": True}, id="spectral-norm"),
    pytest.param({"conditional": True}, id="conditional"),
]


class Run:
    """Some steps of a run on images of noise, recorded or not."""

    def __init__(self, settings: dict[str, object]) -> None:
        asked = {"data": "", "run_dir": "", "image_size": 8, "batch_size": 8}
        if settings.get("preset") != "keras-mlp":
            asked["filters"] = 4
        random = torch.Generator().manual_seed(0)
        size = int(settings.get("image_size", 8))  # type: ignore[call-overload]
        images = torch.randint(256, (40, 1, size, size), generator=random, dtype=torch.uint8)
        data = Dataset(images.numpy(), np.arange(40) % 4, tuple("abcd"), "noise", "")
        self.config = settle_config(resolve({**asked, "seed": 3, **settings}), data)
        labels = torch.arange(40) % 4 if self.config.conditional else None
        self.feed = Feed(images, labels, -1.0, slice(0, 8))
        self.state = create_state(self.config, CPU, 4 if self.config.conditional else 0)
        self.noise = torch.Generator()

    def seed_noise(self, seed: int) -> None:
        self.noise.manual_seed(seed)
        torch.manual_seed(seed)

    def step(self, indices: torch.Tensor) -> list[StepResults]:
        return take_step(self.state, self.feed, indices, self.config, self.noise, self.noise)

    def record(self, recorder: CpuRecorder) -> RecordedStep:
        return RecordedStep(self.step, self.state, self.seed_noise, recorder)

    def take(self, take: Callable[[int, torch.Tensor], list[StepResults]] | None = None):
        """The results of each step."""

        def plainly(seed: int, indices: torch.Tensor) -> list[StepResults]:
            self.seed_noise(seed)
            return self.step(indices)

        found = []
        with torch.random.fork_rng(devices=[]):
            for index in range(STEPS):
                updates = self.config.discriminator_updates
                indices = (torch.arange(updates * 8) + 7 * index) % 40
                set_rates(self.state, self.config)
                found.append((take or plainly)(100 + index, indices.view(updates, 8)))
        return found


def assert_same(run: Run, other: Run) -> None:
    """The rates of recorded steps are float32, so the last bits differ."""
    for part, expected in zip(copy_tensors(run.state), copy_tensors(other.state), strict=True):
        for found, right in zip(part, expected, strict=True):
            torch.testing.assert_close(found, right, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_recorded_steps_do_what_steps_do(settings: dict[str, object], caplog):
    plain, recorded = Run(settings), Run(settings)
    expected = plain.take()
    recorder = CpuRecorder(recorded.state)
    found = recorded.take(recorded.record(recorder))
    assert recorder.apart_times == 3
    assert recorder.replays == STEPS - 3
    assert recorder.times_freed == 1
    assert not caplog.records
    assert_same(recorded, plain)
    for network in ("generator", "discriminator"):
        norms = [gradient_norm(getattr(run.state, network)) for run in (recorded, plain)]
        torch.testing.assert_close(*norms, rtol=1e-3, atol=1e-4)
    for step, right in zip(found, expected, strict=True):
        assert [of.keys() for of in step] == [of.keys() for of in right]
        for results, others in zip(step, right, strict=True):
            for name, values in results.items():
                torch.testing.assert_close(values, others[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        pytest.param(lambda run: RateRecorder(run.state), "changes the weights", id="rates"),
        pytest.param(lambda run: IdleRecorder(run.state), "changes the weights", id="idle"),
        pytest.param(BatchRecorder, "changes the weights", id="batch"),
        pytest.param(
            lambda run: NoiseRecorder(run.state, run.noise), "changes the weights", id="noise"
        ),
    ],
)
def test_a_recording_that_is_none_is_told_and_done_without(make, told, caplog):
    plain, recorded = Run({"lr_decay": 0.5}), Run({"lr_decay": 0.5})
    expected = plain.take()
    with caplog.at_level(logging.WARNING):
        found = recorded.take(recorded.record(make(recorded)))
    (line,) = caplog.messages
    assert told in line
    assert "--no-cuda-graph" in line
    assert_same(recorded, plain)
    last, right = found[-1][0], expected[-1][0]
    torch.testing.assert_close(last["real_logits"], right["real_logits"], rtol=1e-3, atol=1e-4)


def test_a_step_that_cannot_be_recorded_ends_the_run_with_what_to_do():
    run = Run({})
    said = r"\(CUDA error: operation not permitted when stream is capturing\): .*--no-cuda-graph"
    with pytest.raises(RunError, match=said):
        run.take(run.record(FailingRecorder(run.state)))


class FullRecorder(CpuRecorder):
    """Has no memory for a step beside the recording, until that is gone."""

    def __init__(self, run: "Run") -> None:
        super().__init__(run.state)
        self.run, self.take = run, run.step
        run.step = self.take_and_fail  # type: ignore[method-assign]
        self.recorded = False
        self.held: weakref.ref[torch.Tensor] | None = None

    def record(self, work):
        recording = super().record(work)
        self.recorded = True
        return recording

    def take_and_fail(self, indices: torch.Tensor) -> list[StepResults]:
        results = self.take(indices)
        if not self.recorded:
            return results
        maps = torch.zeros(8)
        self.held = weakref.ref(maps)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def free_memory(self) -> None:
        assert self.held is not None
        assert self.held() is None, "what the step had made is freed before it is taken again"
        assert all(weights.grad is None for weights in self.weights())
        self.recorded = False
        super().free_memory()


def test_a_step_that_fits_only_without_its_recording_is_taken_as_it_is(caplog):
    plain, recorded = Run({"lr_decay": 0.5}), Run({"lr_decay": 0.5})
    plain.take()
    recorder = FullRecorder(recorded)
    with caplog.at_level(logging.WARNING):
        recorded.take(recorded.record(recorder))
    (line,) = caplog.messages
    assert "needs twice the memory" in line
    assert "--no-cuda-graph" in line
    assert (recorder.replays, recorder.times_freed) == (0, 1)
    assert_same(recorded, plain)


def test_results_of_a_replay_outlive_the_next_one():
    run = Run({})
    found = run.take(run.record(CpuRecorder(run.state)))
    losses = [step[0]["discriminator_loss"].item() for step in found]
    assert len(set(losses)) == STEPS


def test_changes_are_compared_by_their_size_and_counts_exactly():
    zeros, ones = torch.zeros(4), torch.ones(4)
    count, next_count = torch.tensor(3), torch.tensor(4)
    assert compare_changes([[zeros]], [[ones]], [[ones]]) == 0
    assert compare_changes([[zeros]], [[ones]], [[zeros]]) == 1
    assert compare_changes([[zeros]], [[ones]], [[ones * 1.01]]) == pytest.approx(0.01)
    assert compare_changes([[ones], [zeros]], [[ones], [ones]], [[zeros], [ones]]) == float("inf")
    assert compare_changes([[count]], [[next_count]], [[count]]) == float("inf")
    assert compare_changes([[count]], [[next_count]], [[next_count]]) == 0
    nan = torch.full((4,), float("nan"))
    assert compare_changes([[zeros]], [[ones]], [[nan]]) == float("inf")


def test_a_checkpoint_holds_the_rate_as_a_number_and_goes_on_elsewhere():
    recorded, plain = Run({"lr_decay": 0.5}), Run({"lr_decay": 0.5})
    recorded.take(recorded.record(CpuRecorder(recorded.state)))
    saved = recorded.state.state_dict()
    (group,) = saved["generator_optimizer"]["param_groups"]
    assert isinstance(group["lr"], float)
    assert group["capturable"] is False
    assert group["updates"] == STEPS
    plain.state.load_state_dict(saved)
    plain.take()
    assert plain.state.generator_optimizer.param_groups[0]["lr"] == 0.002 / (1 + 0.5 * 19)


def run_on_gpu(settings: dict[str, object]) -> tuple[Run, CudaRecorder]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    run = Run(settings)
    run.state = create_state(run.config, device, 4 if run.config.conditional else 0)
    labels = run.feed.labels if run.feed.labels is None else run.feed.labels.to(device)
    run.feed = Feed(run.feed.examples.to(device), labels, -1.0, slice(0, 8))
    run.noise = torch.Generator(device)
    return run, CudaRecorder(device, [run.noise])


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_gpu_replays_what_steps_do(settings: dict[str, object], caplog):
    run, recorder = run_on_gpu(settings)
    step = run.record(recorder)
    run.take(lambda seed, indices: step(seed, indices.to("cuda")))
    assert not caplog.records
    assert step.replaying


@pytest.mark.gpu
def test_a_run_on_a_gpu_ends_where_a_step_cannot_be_recorded():
    run, recorder = run_on_gpu({"preset": "dcgan-2015", "image_size": 32})
    take = run.step

    def wait(indices: torch.Tensor) -> list[StepResults]:
        results = take(indices)
        results[0]["discriminator_loss"].item()
        return results

    run.step = wait
    step = run.record(recorder)
    with pytest.raises(RunError, match=r"could not be recorded as a CUDA graph .*--no-cuda-graph"):
        run.take(lambda seed, indices: step(seed, indices.to("cuda")))


@pytest.mark.gpu
def test_a_run_on_a_gpu_is_recorded(tmp_path: Path, caplog):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = {"data": "digits", "image_size": 16, "filters": 4, "batch_size": 16}
    asked = {"total_images": 480, "run_dir": tmp_path, "tensorboard": False, "device": "cuda"}
    with caplog.at_level(logging.WARNING):
        train(resolve({**settings, **asked}))
    assert not caplog.records
