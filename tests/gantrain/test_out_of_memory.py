"""What is advised where memory runs out takes less, and is not refused."""

import pytest
import torch

from gantrain.errors import RunError
from gantrain.presets import resolve
from gantrain.training.out_of_memory import memory_errors_explained, upload

ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def explain(error: Exception, ranks: int = 1, **settings: object) -> str:
    config = resolve({"data": "digits", "run_dir": "unused", **settings})
    with pytest.raises(RunError) as raised, memory_errors_explained(config, ranks):
        raise error
    return str(raised.value)


GOES_ON = "; or repeat the command where there is more memory: the run goes on"


def test_networks_of_fixed_sizes_are_not_advised_to_be_narrower():
    assert explain(MemoryError(), preset="keras-mlp").endswith(
        "use a smaller --batch-size (now 128), with a new --run-dir" + GOES_ON
    )
    assert explain(MemoryError(), filters=8).endswith(
        "use a smaller --batch-size (now 64) or --filters (now 8), with a new --run-dir" + GOES_ON
    )


def test_a_lack_of_memory_that_says_nothing_more_is_named_by_its_kind():
    assert explain(MemoryError()).startswith("out of memory on the CPU (MemoryError): use a")


def test_an_error_that_says_what_to_do_is_left_as_it_is():
    quoting = RunError("checkpoint could not be written (DefaultCPUAllocator: ...); make room")
    assert explain(quoting) == str(quoting)


def test_a_step_that_is_recorded_on_a_gpu_takes_less_memory_without():
    told = explain(ON_GPU)
    assert told.startswith("out of memory on the GPU (CUDA out of memory. Tried to allocate 2.00 G")
    assert told.endswith("; or --no-cuda-graph, which takes less, with this one" + GOES_ON)
    for unrecorded in (
        explain(ON_GPU, cuda_graph=False),
        explain(ON_GPU, ranks=2),
        explain(MemoryError()),
    ):
        assert "--no-cuda-graph" not in unrecorded


def test_data_that_do_not_fit_on_the_gpu_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise ON_GPU

    examples = torch.zeros(3_000_000, dtype=torch.uint8)
    assert upload(examples, torch.device("cpu")) is examples
    monkeypatch.setattr(torch.Tensor, "to", refuse)
    config = resolve({"data": "digits", "run_dir": "unused"})
    with pytest.raises(RunError) as raised, memory_errors_explained(config, ranks=1):
        upload(examples, torch.device("cuda"))
    told = str(raised.value)
    assert "the data take 0.003 GB" in told
    assert told.endswith("--max-data-images, or a smaller --image-size, with a new --run-dir")
    assert "--batch-size" not in told
