"""A session with buffers of its own on a GPU: a call copies in, runs, and copies out.

ONNX Runtime would else allocate for each call, and could not replay it as a CUDA graph, which reads
and writes the addresses that it was captured with.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

import numpy as np
from numpy.typing import NDArray

from ganserve.models.runtime import Session

# By name: latents [n, latent_dim] and, of conditional models, labels [n].
Feeds = Mapping[str, NDArray[Any]]
_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")

# Untyped in ONNX Runtime.
_OrtValue = Any
_IOBinding = Any
_RunOptions = Any

_OUTPUT = "images"
_ELEMENT_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}
_NO_GRAPH = -1  # to ONNX Runtime: run this call as it is


class _Buffers(NamedTuple):
    """What a call of one size reads and writes."""

    inputs: dict[str, _OrtValue]
    output: _OrtValue
    binding: _IOBinding


class BoundSession:
    """A session that is called with a few batch sizes alone; `run` is `InferenceSession`'s.

    One thread at a time owns its buffers: the one that loads the model, until `hand_over` gives
    them to the one that serves. That is one thread for all models of a GPU, and not a lock,
    because ONNX Runtime keeps CUDA graphs with the thread that captured them, and because no other
    thread may call CUDA while one captures.
    """

    def __init__(
        self, session: Session, batch_sizes: Sequence[int], *, device: str, cuda_graphs: bool
    ) -> None:
        """Allocate.

        Args:
            session: Its output is `images`.
            batch_sizes: The sizes of its calls.
            device: Where the buffers are, as ONNX Runtime calls it: `cuda` or `cpu`.
            cuda_graphs: Whether the session was opened for capturing graphs.
        """
        self.batch_sizes = tuple(sorted(set(batch_sizes)))
        self._session = session
        self._executor: Executor | None = None
        self._cuda_graphs = cuda_graphs
        self._buffers = {size: _allocate(session, size, device) for size in self.batch_sizes}
        self._options = {size: self._options_of(_NO_GRAPH) for size in self.batch_sizes}

    def hand_over(self, executor: Executor) -> None:
        """From now on every call is made by the executor, which must have a single thread."""
        self._executor = executor

    def call(self, function: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        """Call a function in the thread that owns this session now, and wait for it."""
        if self._executor is None:
            return function(*arguments)
        return self._executor.submit(function, *arguments).result()

    def run(self, names: Sequence[str], feeds: Feeds) -> list[NDArray[np.uint8]]:
        """Generate images [n, height, width, channels], one a row, in an array of the caller's."""
        assert list(names) == [_OUTPUT], names
        return [self.call(self.run_here, feeds)]

    def run_here(self, feeds: Feeds) -> NDArray[np.uint8]:
        """The same in the calling thread, which must own this session."""
        rows, largest = len(feeds["latents"]), self.batch_sizes[-1]
        if rows > largest:
            first = {name: values[:largest] for name, values in feeds.items()}
            others = {name: values[largest:] for name, values in feeds.items()}
            return np.concatenate([self.run_here(first), self.run_here(others)])
        size = next(size for size in self.batch_sizes if size >= rows)
        inputs, output, binding = self._buffers[size]
        for name, buffer in inputs.items():
            buffer.update_inplace(_pad(feeds[name], size))
        self._session.run_with_iobinding(binding, self._options[size])
        pixels: NDArray[np.uint8] = output.numpy()
        if not pixels.flags.owndata:  # on the CPU it is the buffer itself
            pixels = pixels.copy()
        return pixels[:rows]

    def use_graph(self, size: int, *, use: bool) -> None:
        """Whether calls of that size are a CUDA graph from now on.

        The first one is captured, which takes ONNX Runtime three runs.
        """
        assert self._cuda_graphs
        graph = self.batch_sizes.index(size) + 1 if use else _NO_GRAPH  # 0 is ONNX Runtime's own
        self._options[size] = self._options_of(graph)

    def keep_only(self, batch_sizes: Sequence[int]) -> None:
        """Free the buffers of all other sizes."""
        self.batch_sizes = tuple(size for size in self.batch_sizes if size in batch_sizes)
        self._buffers = {size: self._buffers[size] for size in self.batch_sizes}

    def _options_of(self, graph: int) -> _RunOptions:
        import onnxruntime

        if not self._cuda_graphs:
            return None
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options


def _allocate(session: Session, size: int, device: str) -> _Buffers:
    import onnxruntime

    def allocate(value: Any) -> _OrtValue:  # noqa: ANN401 - onnxruntime.NodeArg
        shape = [size, *value.shape[1:]]
        element_type = _ELEMENT_TYPES[value.type]
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, element_type, device, 0)

    inputs = {value.name: allocate(value) for value in session.get_inputs()}
    (output,) = (allocate(value) for value in session.get_outputs())
    binding = session.io_binding()
    for name, buffer in inputs.items():
        binding.bind_ortvalue_input(name, buffer)
    binding.bind_ortvalue_output(_OUTPUT, output)
    return _Buffers(inputs, output, binding)


def _pad(values: NDArray[Any], size: int) -> NDArray[Any]:
    """The values with rows of zeros after them, as ONNX Runtime copies them: in one piece."""
    if len(values) < size:
        values = np.concatenate(
            [values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)]
        )
    return np.ascontiguousarray(values)
