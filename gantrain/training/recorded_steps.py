"""Hides how a GPU is given a whole step at once: recorded as a CUDA graph, then replayed.

A step is 200 to 340 operations (at 64x64, counted on a CPU), each a launch or more; where networks
are small, sending them takes longer than they do. A graph of them is a single one. It repeats what
was recorded, addresses and plain numbers included, so whatever differs from step to step must lie
in tensors that stay where they are: the indices of the batch, the learning rates, the state of the
random generators. That it does what the step does is not taken on trust: its first replays are
compared with it.
"""

import itertools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from gantrain.checkpoint import TrainState
from gantrain.errors import RunError, first_line
from gantrain.training.steps import StepResults

Step = Callable[[Tensor], list[StepResults]]  # of the indices of its batches

_WARM_UP = 3  # steps before the recording, in which libraries choose kernels and take memory
_COMPARED = 3  # replays, each of another batch, noise and learning rate
# Of the weights' change in a step. Sums on a GPU vary in their order, by far less; another batch
# or other noise changes nearly all of it.
_TOLERANCE = 0.1

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """What records work on a device."""

    def apart(self) -> AbstractContextManager[None]:
        """A side stream for the warm-up steps, so that the capture starts on an idle stream."""

    def record(
        self, work: Callable[[], list[StepResults]]
    ) -> tuple[Callable[[], None], list[StepResults]]:
        """Record the work without doing it: what replays it, and where its results then lie."""

    def free_memory(self) -> None:
        """Let others have what nothing uses at the moment."""


class CudaRecorder:
    """Records CUDA graphs, as PyTorch's notes on them describe it."""

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        """The generators are those on the device that the work draws from, beside the default."""
        self._device, self._generators = device, generators
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """On a stream of its own."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(
        self, work: Callable[[], list[StepResults]]
    ) -> tuple[Callable[[], None], list[StepResults]]:
        """As a graph, which keeps the memory that the work took."""
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():  # in later releases that is done by the drawing itself
            warnings.simplefilter("ignore")
            for generator in self._generators:
                graph.register_generator_state(generator)
        # What other threads do meanwhile must not end the recording.
        mode = "thread_local"
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode=mode):
            results = work()
        return graph.replay, results

    def free_memory(self) -> None:
        """PyTorch keeps it for its own next use."""
        torch.cuda.empty_cache()


class RecordedStep:
    """A step that is recorded once it is warm, and replayed from then on.

    If a recording does something else than the step, or there is no memory for both, a warning says
    so, and the steps are taken as they are. If none can be made the run ends: PyTorch's allocator
    and generators may be left as if it were still under way.
    """

    def __init__(
        self,
        step: Step,
        state: TrainState,
        seed_noise: Callable[[int], None],
        recorder: Recorder,
    ) -> None:
        self._step, self._state = step, state
        self._seed_noise, self._recorder = seed_noise, recorder
        self._taken = 0
        self._given_up = False
        self._indices: Tensor | None = None  # those that a recording reads
        self._replay: Callable[[], None] | None = None
        self._results: list[StepResults] = []
        self._gradients: list[tuple[Tensor, Tensor | None]] = []  # where a recording leaves them
        keep_rates_on_device(state)

    @property
    def replaying(self) -> bool:
        """Whether steps are replays of a recording by now."""
        return self._replay is not None

    def __call__(self, seed: int, indices: Tensor) -> list[StepResults]:
        """Take one step: its results, which the next one leaves alone.

        Args:
            seed: of all its noise.
            indices: [discriminator_updates, batch_size], of the same shape each time.
        """
        self._taken += 1
        self._seed_noise(seed)
        if self._given_up:
            return self._step(indices)
        if self._taken <= _WARM_UP:
            with self._recorder.apart():
                return self._step(indices)
        if self._indices is None:
            self._record(indices)
        assert self._indices is not None
        assert self._replay is not None
        self._indices.copy_(indices)
        if self._taken <= _WARM_UP + _COMPARED:
            return self._compare(seed)
        if self._taken == _WARM_UP + _COMPARED + 1:
            self._recorder.free_memory()  # of the steps beside the recording, which has its own
        self._replay()
        return self._copy_results()

    def _record(self, indices: Tensor) -> None:
        """Make the recording; the state is as before, except for where gradients lie.

        Raises:
            RunError: the step cannot be recorded.
        """
        held = self._indices = indices.clone()
        try:
            self._replay, self._results = self._recorder.record(lambda: self._step(held))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RunError(
                f"the step could not be recorded as a CUDA graph ({first_line(error)}): give the "
                "same command with --no-cuda-graph, which trains more slowly"
            ) from error
        self._gradients = [(weights, weights.grad) for weights in self._weights()]

    def _compare(self, seed: int) -> list[StepResults]:
        """Take a step both ways, or as it is where there is no memory for both."""
        assert self._indices is not None
        before: list[list[Tensor]] = []
        try:
            before = copy_tensors(self._state)
            return self._take_both_ways(seed, before)
        except torch.OutOfMemoryError:
            pass  # below, the error is gone, and with it what the step had made until then
        if before:
            restore_tensors(self._state, before)
        self._give_up("needs twice the memory while a recording of it is kept")
        for weights in self._weights():
            weights.grad = None  # it may lie in the memory of the recording
        self._recorder.free_memory()
        self._seed_noise(seed)
        return self._step(self._indices)

    def _take_both_ways(self, seed: int, before: list[list[Tensor]]) -> list[StepResults]:
        """Take a step both ways, and keep the recorded one's outcome if it is the same."""
        assert self._replay is not None
        assert self._indices is not None
        self._seed_noise(seed)  # once more, for the recording may have drawn from it
        results = self._step(self._indices)
        expected = copy_tensors(self._state)
        restore_tensors(self._state, before)
        self._seed_noise(seed)
        self._replay()
        difference = compare_changes(before, expected, copy_tensors(self._state))
        if difference <= _TOLERANCE:
            for weights, gradient in self._gradients:
                weights.grad = gradient  # the other way has left its own there
            return self._copy_results()
        restore_tensors(self._state, expected)
        self._give_up(f"changes the weights otherwise when replayed (by {difference:.2g} of it)")
        return results

    def _weights(self) -> Iterator[Tensor]:
        return itertools.chain(
            self._state.generator.parameters(), self._state.discriminator.parameters()
        )

    def _copy_results(self) -> list[StepResults]:
        """The results of the last replay: the next one writes over them."""
        return [{name: value.clone() for name, value in of.items()} for of in self._results]

    def _give_up(self, why: str) -> None:
        self._given_up, self._replay, self._results, self._gradients = True, None, [], []
        logger.warning(
            "the step %s: training goes on with steps as they are, more slowly; --no-cuda-graph "
            "does so from the start",
            why,
        )


def keep_rates_on_device(state: TrainState) -> None:
    """Keep what optimizers read in each step where the weights are, as a recording needs it."""
    for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
        for group in optimizer.param_groups:
            device = group["params"][0].device
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            group["capturable"] = device.type == "cuda"
        for weights, values in optimizer.state.items():
            values["step"] = torch.as_tensor(values["step"]).to(weights.device)


def copy_tensors(state: TrainState) -> list[list[Tensor]]:
    """Copies of all that a step writes: weights and buffers of each network, then the moments."""
    return [[values.detach().clone() for values in part] for part in _parts(state)]


@torch.no_grad()
def restore_tensors(state: TrainState, copies: Sequence[Sequence[Tensor]]) -> None:
    """Write copies back, each where it came from."""
    for part, values in zip(_parts(state), copies, strict=True):
        for tensor, value in zip(part, values, strict=True):
            tensor.copy_(value)


def compare_changes(
    before: Sequence[Sequence[Tensor]],
    expected: Sequence[Sequence[Tensor]],
    found: Sequence[Sequence[Tensor]],
) -> float:
    """How far changes are from those expected, over their size; of several parts the worst.

    Where integers, which are counts, differ, or what was not to change has, it is infinite.
    """
    worst = 0.0
    for parts in zip(before, expected, found, strict=True):
        change = difference = 0.0
        for was, right, now in zip(*parts, strict=True):
            if not was.is_floating_point():
                difference += 0.0 if torch.equal(right, now) else math.inf
                continue
            change += (right - was).double().square().sum().item()
            difference += (now - right).double().square().sum().item()
        if difference:
            ratio = (difference / change) ** 0.5 if change else math.inf
            worst = max(worst, math.inf if math.isnan(ratio) else ratio)
    return worst


def _parts(state: TrainState) -> list[list[Tensor]]:
    """The tensors that a step writes, in parts whose changes are of one size."""
    networks = (state.generator, state.discriminator)
    optimizers = (state.generator_optimizer, state.discriminator_optimizer)
    parts: list[list[Tensor]] = [list(network.parameters()) for network in networks]
    parts += [list(network.buffers()) for network in networks]
    parts += [
        [of[name] for of in optimizer.state.values() if name in of]
        for optimizer in optimizers
        for name in ("step", "exp_avg", "exp_avg_sq", "square_avg")
    ]
    return parts
