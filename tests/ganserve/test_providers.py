from pathlib import Path

import pytest

from ganserve.models.providers import choose_providers, engine_folder


def choose(device, **settings):
    defaults = {
        "reproducibility": "strict",
        "precision": "fp32",
        "cuda_graphs": False,
        "batch_sizes": (1, 4, 16),
        "latent_dim": 128,
        "conditional": False,
    }
    return choose_providers(device, **defaults | settings)


def cuda_options(**settings):
    ((name, options),) = choose("cuda", **settings)
    assert name == "CUDAExecutionProvider"
    return options


def tensorrt_options(**settings):
    (name, options), (second, _) = choose("tensorrt", **settings)
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    return options


def test_strict_cuda_has_no_tf32_and_looks_at_no_clock():
    assert cuda_options() == {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "0",
    }


def test_fast_cuda_takes_whatever_is_quickest():
    options = cuda_options(reproducibility="fast")
    assert (options["use_tf32"], options["cudnn_conv_algo_search"]) == ("1", "EXHAUSTIVE")


def test_float16_keeps_tensor_cores_when_strict():
    options = cuda_options(precision="fp16")
    assert (options["use_tf32"], options["cudnn_conv_algo_search"]) == ("1", "HEURISTIC")


def test_graphs_are_asked_for():
    assert cuda_options(cuda_graphs=True)["enable_cuda_graph"] == "1"


def test_tensorrt_builds_one_engine_for_all_sizes():
    assert tensorrt_options() == {
        "trt_profile_min_shapes": "latents:1x128",
        "trt_profile_opt_shapes": "latents:16x128",
        "trt_profile_max_shapes": "latents:16x128",
    }


def test_tensorrt_knows_the_labels_of_a_conditional_model():
    options = tensorrt_options(conditional=True, batch_sizes=(8, 2), latent_dim=5)
    assert options["trt_profile_min_shapes"] == "latents:2x5,labels:2"
    assert options["trt_profile_max_shapes"] == "latents:8x5,labels:8"


def test_tensorrt_keeps_engines_and_timings_where_it_may():
    options = tensorrt_options(tensorrt_cache=Path("/cache/model"))
    assert {name: value for name, value in options.items() if "cache" in name} == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/cache/model",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "/cache/model",
    }


def test_nodes_that_tensorrt_leaves_are_as_strict():
    assert choose("tensorrt")[1:] == choose("cuda")
    assert choose("tensorrt", reproducibility="fast")[1:] == choose("cuda", reproducibility="fast")


def test_all_values_are_text():
    for provider, options in choose("tensorrt", tensorrt_cache=Path("c"), conditional=True):
        assert all(isinstance(value, str) for value in options.values()), provider


def test_the_cpu_has_no_options():
    assert choose("cpu", reproducibility="fast") == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("b" * 64, "1.31.1", "strict"), id="file"),
        pytest.param(("a" * 64, "1.32.0", "strict"), id="runtime"),
        pytest.param(("a" * 64, "1.31.1", "fast"), id="reproducibility"),
    ],
)
def test_no_engine_is_taken_for_that_of_another(other):
    root = Path("/cache")
    ours, others = engine_folder(root, "a" * 64, "1.31.1", "strict"), engine_folder(root, *other)
    assert root in ours.parents
    assert ours != others
