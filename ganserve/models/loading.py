"""An artifact's file becomes a checked, warm model on its device, or a clear error."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ganserve.errors import ModelError, ProviderUnavailable, UnreadableModel
from ganserve.models.artifact import parse_metadata
from ganserve.models.gpu_sessions import GpuModel, GpuSettings, load_on_gpu
from ganserve.models.lone_session import open_lone_session
from ganserve.models.model import Model, check_golden, warm_up
from ganserve.models.model_files import read_model_file
from ganserve.models.model_spec import read_spec
from ganserve.models.onnx_file import check_format, check_onnx_fields, check_onnx_file
from ganserve.models.onnx_weights import SplitFile, split_weights
from ganserve.models.providers import FIRST_PROVIDERS
from ganserve.models.runtime import one_line, open_session, resolve_device
from ganserve.setting_values import Device

logger = logging.getLogger(__name__)


def load_model(
    path: Path,
    device: Device,
    *,
    threads: int,
    lone_threads: int = 1,
    warm_batch_sizes: Callable[[str], Sequence[int]] = lambda _: (1,),
    max_bytes: int = 2**30,
    gpu: GpuSettings | None = None,
) -> Model:
    """Read, check and warm up an artifact.

    Args:
        path: The artifact's file.
        device: What it is to run on; `auto` falls back to the CPU.
        threads: Within one call, on the CPU.
        lone_threads: Within one call while no other runs, on the CPU, at most; used where images
            take long enough to gain by it.
        warm_batch_sizes: Given a provider's name, the sizes to warm up; on a GPU they are the only
            ones that the model is called with.
        max_bytes: How large the file may be.
        gpu: How models run on a GPU; needed unless the device is `cpu`. Its `reproducibility`
            counts on the CPU too.

    Raises:
        ModelError: the file cannot be served.
        UnreadableModel: it cannot be read, which may pass.
        ProviderUnavailable: it could, but not on this device.
    """
    with _failures_naming(path):
        wanted = resolve_device(device)
        file = read_checked_file(path, max_bytes)
        # On the CPU first, wherever it is to run: a GPU's options depend on what the graph says.
        session = open_session(file, "cpu", threads)
        metadata = parse_metadata(session.get_modelmeta().custom_metadata_map.get("gan"))
        spec = read_spec(session, metadata, hashlib.sha256(file.content).hexdigest())
        if wanted != "cpu":
            assert gpu is not None, wanted
            try:
                on_gpu = replace(spec, provider=FIRST_PROVIDERS[wanted])
                sizes = warm_batch_sizes(on_gpu.provider)
                wanted_there = GpuModel(file, on_gpu, metadata.golden, wanted, sizes, threads)
                return load_on_gpu(wanted_there, gpu)
            except ProviderUnavailable as error:
                if device != "auto":
                    raise
                logger.warning("%s; device auto falls back to the CPU", error)
        model = Model(spec, session)
        check_golden(model, metadata.golden)
        strict = gpu is None or gpu.reproducibility == "strict"
        sizes = warm_batch_sizes(spec.provider)
        warm_up(model, sizes, strict=strict)
        if lone_threads <= threads:
            return model
        lone_session = open_lone_session(
            file, spec, session, threads=lone_threads, largest_batch=max(sizes)
        )
        return replace(model, lone_session=lone_session)


@contextmanager
def _failures_naming(path: Path) -> Iterator[None]:
    """Let whatever is wrong with a model be a `ModelError` that names its file."""
    try:
        yield
    except ModelError as error:
        raise type(error)(error.problem, path) from error
    except Exception as error:  # the file is not ours to trust, ONNX Runtime raises many kinds
        raise ModelError(f"cannot be run: {one_line(error)}", path) from error


def read_checked_file(path: Path, max_bytes: int) -> SplitFile:
    """Read a model's file, and look through it before ONNX Runtime sees any of it.

    Raises:
        UnreadableModel: it cannot be read.
        ModelError: it is no file, too large, or holds what no model may hold.
    """
    try:
        content = read_model_file(path, max_bytes)
    except OSError as error:  # of all failures to load a model the one worth another attempt
        raise UnreadableModel(f"cannot be read: {error.strerror}") from error
    check_onnx_fields(content)
    file = split_weights(content)
    check_onnx_file(file.outline)
    check_format(file.graph)  # which is handed over, and is other bytes than those looked through
    return file
