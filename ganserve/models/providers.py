"""The execution providers of ONNX Runtime: their names, and the options they are given.

All values are text. The options of CUDA are those of `CUDAExecutionProviderInfo`, those of TensorRT
of `TensorrtExecutionProviderInfo`; either refuses a name that it does not know.
"""

from collections.abc import Sequence
from pathlib import Path

from ganserve.setting_values import Device, Reproducibility

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
_TENSORRT_PROVIDER = "TensorrtExecutionProvider"
# The provider that each device stands for.
FIRST_PROVIDERS: dict[Device, str] = {
    "cpu": CPU_PROVIDER,
    "cuda": CUDA_PROVIDER,
    "tensorrt": _TENSORRT_PROVIDER,
}

Provider = tuple[str, dict[str, str]]  # its name and its options


def choose_providers(
    device: Device,
    *,
    reproducibility: Reproducibility,
    precision: str,
    cuda_graphs: bool,
    batch_sizes: Sequence[int],
    latent_dim: int,
    conditional: bool,
    tensorrt_cache: Path | None = None,
) -> list[Provider]:
    """What a session asks for, most wanted first; the first must be the one in use.

    Args:
        device: `cuda`, `tensorrt`, or `cpu`, which has no options.
        reproducibility: Whether speed may cost reproducibility.
        precision: Of the artifact, such as `fp32` or `fp16`.
        cuda_graphs: Whether calls may be captured; the CUDA provider only.
        batch_sizes: The sizes that the model is called with.
        latent_dim: Of the input `latents`.
        conditional: Whether there is an input `labels`.
        tensorrt_cache: The folder of this one model's engines; none are kept if None.
    """
    if device == "cpu":
        return [(CPU_PROVIDER, {})]
    cuda = CUDA_PROVIDER, _cuda_options(reproducibility, precision, cuda_graphs)
    if device == "cuda":
        return [cuda]
    assert device == "tensorrt", device
    options = _profile(batch_sizes, latent_dim, conditional) | _cache(tensorrt_cache)
    return [(_TENSORRT_PROVIDER, options), cuda]  # which takes the nodes that TensorRT leaves


def engine_folder(
    root: Path, digest: str, runtime_version: str, reproducibility: Reproducibility
) -> Path:
    """Where the TensorRT engines of one model file are kept.

    ONNX Runtime names an engine by the graph's structure, not by its weights: two versions of a
    model would get the same one. Nor does it notice that it has become another version itself.
    """
    return root / digest / f"onnxruntime-{runtime_version}-{reproducibility}"


def _cuda_options(
    reproducibility: Reproducibility, precision: str, cuda_graphs: bool
) -> dict[str, str]:
    strict = reproducibility == "strict"
    # TF32 has the mantissa of float16, so a model of that precision loses nothing by it; without it
    # ONNX Runtime would keep convolutions off tensor cores in every precision.
    exact = strict and precision != "fp16"
    return {
        "use_tf32": "0" if exact else "1",
        # HEURISTIC is cuDNN's first choice for a shape, without a look at the clock.
        "cudnn_conv_algo_search": "HEURISTIC" if strict else "EXHAUSTIVE",
        "enable_cuda_graph": "1" if cuda_graphs else "0",
    }


def _profile(batch_sizes: Sequence[int], latent_dim: int, conditional: bool) -> dict[str, str]:
    """The range of sizes that an engine is built for, so that no call has one built anew."""
    shapes = {"min": min(batch_sizes), "opt": max(batch_sizes), "max": max(batch_sizes)}
    return {
        f"trt_profile_{kind}_shapes": f"latents:{size}x{latent_dim}"
        + (f",labels:{size}" if conditional else "")
        for kind, size in shapes.items()
    }


def _cache(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {}
    return {
        "trt_engine_cache_enable": "True",  # TensorRT's provider takes no other words
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }
