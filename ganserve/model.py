"""Hides ONNX Runtime: an artifact file becomes a checked, warm model, or a clear error."""

import hashlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganserve.artifact import Golden, Metadata, check_golden_image, parse_metadata, shorten
from ganserve.config import Device
from ganserve.errors import ModelError, ProviderUnavailable, StartupError
from ganserve.latents import SEED_CONTRACT, draw_latents
from ganserve.model_files import read_model_file
from ganserve.onnx_file import check_onnx_file
from ganserve.onnx_weights import WEIGHTS_NAME, PartedFile, part

logger = logging.getLogger(__name__)

# ONNX Runtime is published without types.
Session = Any  # onnxruntime.InferenceSession
GraphValue = Any  # onnxruntime.NodeArg

CPU_PROVIDER = "CPUExecutionProvider"
_CUDA_PROVIDER = "CUDAExecutionProvider"
_TENSORRT_PROVIDER = "TensorrtExecutionProvider"
# What each device asks ONNX Runtime for, most wanted first; the first must be the one in use.
_PROVIDERS: dict[Device, list[str]] = {
    "cpu": [CPU_PROVIDER],
    "cuda": [_CUDA_PROVIDER],
    "tensorrt": [_TENSORRT_PROVIDER, _CUDA_PROVIDER],
}
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class ModelSpec:
    """What a caller may know about a model."""

    latent_dim: int
    height: int
    width: int
    channels: int  # 1 (grey) or 3 (RGB)
    class_names: tuple[str, ...]  # in the order of their labels; empty where not conditional
    seed_contract: str
    digest: str  # SHA-256 of the file, in hexadecimal
    provider: str
    evaluation: Mapping[str, float]
    precision: str = "fp32"  # of weights and arithmetic

    @property
    def image_bytes(self) -> int:
        """The size of one image's pixels."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class Model:
    """A session that was checked. Safe to call from several threads at once."""

    spec: ModelSpec
    session: Session

    def run_batch(
        self,
        latents: NDArray[np.float32],  # [n, latent_dim]
        labels: NDArray[np.int64] | None = None,  # [n], conditional models only
    ) -> NDArray[np.uint8]:  # [n, height, width, channels]
        """Generate one image for each row. The GIL is released meanwhile."""
        feeds: dict[str, NDArray[Any]] = {"latents": latents}
        if labels is not None:
            feeds["labels"] = labels
        images: NDArray[np.uint8] = self.session.run(["images"], feeds)[0]
        return images


def load_model(
    path: Path,
    device: Device,
    *,
    threads: int,
    warm_batch_sizes: Sequence[int] | Callable[[str], Sequence[int]] = (1,),
    max_bytes: int = 2**30,
) -> Model:
    """Read, check and warm up an artifact; the sizes to warm up may depend on the provider.

    Raises:
        ModelError: the file cannot be served.
        ProviderUnavailable: it could, but not on this device.
    """
    try:
        content = read_model_file(path, max_bytes)
        file = part(content)
        check_onnx_file(file.outline)
        session = open_session(file, device, threads)
        metadata = parse_metadata(session.get_modelmeta().custom_metadata_map.get("gan"))
        spec = read_spec(session, metadata, hashlib.sha256(content).hexdigest())
        model = Model(spec, session)
        check_golden(model, metadata.golden)
        if callable(warm_batch_sizes):
            warm_batch_sizes = warm_batch_sizes(spec.provider)
        for batch_size in warm_batch_sizes:
            warm_up(model, batch_size)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except ModelError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # the file is not ours to trust, ONNX Runtime raises many kinds
        raise ModelError(f"{path}: cannot be run: {_one_line(error)}") from error
    return model


def open_session(file: PartedFile, device: Device, threads: int) -> Session:
    """Open a session on the device, and make sure it is on that device."""
    import onnxruntime  # not at the top: `check_runtime` comes first

    if device == "auto":
        try:
            if wanted_provider(device) == _CUDA_PROVIDER:
                return open_session(file, "cuda", threads)
        except ProviderUnavailable as error:
            logger.warning("%s; device auto falls back to the CPU", error)
        return open_session(file, "cpu", threads)
    wanted = _PROVIDERS[device]
    available = onnxruntime.get_available_providers()
    if wanted[0] not in available:
        raise ProviderUnavailable(
            f"device {device}: expected {wanted[0]}, but the installed ONNX Runtime has "
            f"{', '.join(available)}; install the extra gpu or use --device cpu"
        )
    if device != "cpu":
        onnxruntime.preload_dlls()
    try:
        session: Session = onnxruntime.InferenceSession(
            *_graph_and_options(file, device, threads), providers=wanted
        )
    except Exception as error:  # ONNX Runtime's exceptions share no other class
        raise ModelError(f"ONNX Runtime cannot load it: {_one_line(error)}") from error
    in_use = session.get_providers()
    if in_use[0] != wanted[0]:
        raise ProviderUnavailable(
            f"device {device}: expected {wanted[0]}, but ONNX Runtime fell back to "
            f"{in_use[0]}; check the driver and the CUDA libraries, or use --device cpu"
        )
    return session


def _graph_and_options(file: PartedFile, device: Device, threads: int) -> tuple[bytes, Any]:
    """What a session is opened with: the graph, and in the options the weights that it lacks."""
    options = session_options(threads)
    if not file.is_parted or device == "tensorrt":  # which parses the model itself
        return file.content, options
    options.add_external_initializers_from_files_in_memory(
        [WEIGHTS_NAME], [file.content], [len(file.content)]
    )
    return file.graph, options


def wanted_provider(device: Device) -> str:
    """The execution provider that a device stands for; `auto` is a GPU if the build knows any."""
    import onnxruntime

    if device == "auto":
        device = "cuda" if _CUDA_PROVIDER in onnxruntime.get_available_providers() else "cpu"
    return _PROVIDERS[device][0]


def session_options(threads: int) -> Any:  # noqa: ANN401 - untyped library
    """Build options for one of several callers that share the CPUs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: what matters is raised as well
    # A spinning thread takes the CPU from the other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def read_spec(session: Session, metadata: Metadata, digest: str) -> ModelSpec:
    """Check the graph's inputs and output, and read the sizes from them."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    conditional = bool(metadata.class_names)
    expected = {"latents", "labels"} if conditional else {"latents"}
    if set(inputs) != expected:
        raise ModelError(
            f"inputs: expected {sorted(expected)} for {len(metadata.class_names)} class names, "
            f"got {sorted(inputs)}"
        )
    if set(outputs) != {"images"}:
        raise ModelError(f"outputs: expected ['images'], got {sorted(outputs)}")
    (latent_dim,) = _fixed_sizes(inputs["latents"], "tensor(float)", dimensions=1)
    if conditional:
        _fixed_sizes(inputs["labels"], "tensor(int64)", dimensions=0)
    height, width, channels = _fixed_sizes(outputs["images"], "tensor(uint8)", dimensions=3)
    if channels not in (1, 3):
        raise ModelError(f"images: expected 1 or 3 channels, got {channels}")
    return ModelSpec(
        latent_dim=latent_dim,
        height=height,
        width=width,
        channels=channels,
        class_names=metadata.class_names,
        seed_contract=SEED_CONTRACT,
        digest=digest,
        provider=session.get_providers()[0],
        evaluation=metadata.evaluation,
        precision=metadata.precision.kind,
    )


def _fixed_sizes(value: GraphValue, element_type: str, *, dimensions: int) -> list[int]:
    """Return the sizes after the batch, which must be dynamic; the others must be fixed."""
    batch, *rest = value.shape or [None]
    sizes = [size for size in rest if isinstance(size, int) and size > 0]
    as_expected = value.type == element_type and not isinstance(batch, int)
    if not as_expected or len(sizes) != dimensions or len(rest) != dimensions:
        raise ModelError(
            f"{value.name}: expected {element_type} with a dynamic batch and {dimensions} fixed "
            f"dimensions after it, got {value.type} {value.shape}"
        )
    return sizes


def check_golden(model: Model, golden: Golden) -> None:
    """Generate the golden images and compare them with the known ones."""
    seeds = np.array([image.seed for image in golden.images], np.uint64)
    labels = None
    if model.spec.class_names:
        classes = len(model.spec.class_names)
        labels = np.array([image.label or 0 for image in golden.images], np.int64)
        if any(image.label is None for image in golden.images) or labels.max() >= classes:
            raise ModelError(f"golden images: expected labels below {classes} for each")
    made = model.run_batch(draw_latents(seeds, model.spec.latent_dim), labels)
    spec = model.spec
    if made.shape != (len(seeds), spec.height, spec.width, spec.channels):
        raise ModelError(f"images: expected the declared shape, got {made.shape}")
    for image, pixels in zip(golden.images, made, strict=True):
        check_golden_image(image, pixels, golden.tolerance)


def warm_up(model: Model, batch_size: int) -> None:
    """Run one batch, so that the first caller does not pay for first-time work."""
    seeds = np.arange(batch_size, dtype=np.uint64)
    labels = np.zeros(batch_size, np.int64) if model.spec.class_names else None
    model.run_batch(draw_latents(seeds, model.spec.latent_dim), labels)


def check_runtime(installed: Collection[str] | None = None) -> None:
    """Make sure that exactly one build of ONNX Runtime is installed.

    Raises:
        StartupError: none or both are; they own the same module and break each other.
    """
    if installed is None:
        installed = [name for name in _RUNTIMES if _is_installed(name)]
    if len(installed) > 1:
        raise StartupError(
            "onnxruntime and onnxruntime-gpu are both installed and break each other: uninstall "
            "both, then install one of the extras cpu and gpu"
        )
    if not installed and importlib.util.find_spec("onnxruntime") is None:
        raise StartupError(
            "ONNX Runtime is not installed: pip install 'ganserve[cpu]' or 'ganserve[gpu]'"
        )


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _one_line(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), 300)
