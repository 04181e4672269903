"""An artifact's file becomes a checked, warm model on its device, or a clear error."""

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganserve.errors import ModelError, ProviderUnavailable, UnreadableModel
from ganserve.latents import draw_latents
from ganserve.models.artifact import Golden, check_golden_image, parse_metadata
from ganserve.models.batch_sizes import are_rows_independent
from ganserve.models.bound_session import BoundSession
from ganserve.models.gpu_sessions import GpuSettings, open_on_gpu
from ganserve.models.model_files import read_model_file
from ganserve.models.model_spec import ModelSpec, make_feeds, read_spec, runner_of_rows
from ganserve.models.onnx_file import check_format, check_onnx_fields, check_onnx_file
from ganserve.models.onnx_weights import SplitFile, split_weights
from ganserve.models.providers import FIRST_PROVIDERS
from ganserve.models.runtime import Session, one_line, open_session, resolve_device
from ganserve.setting_values import Device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A session that was checked. Safe to call from several threads at once."""

    spec: ModelSpec
    session: Session | BoundSession
    # The only ones it is called with, on GPUs; empty on CPUs, where every size makes the same bits.
    batch_sizes: tuple[int, ...] = ()

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
    warm_batch_sizes: Callable[[str], Sequence[int]] = lambda _: (1,),
    max_bytes: int = 2**30,
    gpu: GpuSettings | None = None,
) -> Model:
    """Read, check and warm up an artifact.

    Args:
        path: The artifact's file.
        device: What it is to run on; `auto` falls back to the CPU.
        threads: Within one call, on the CPU.
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
    try:
        return _load(path, device, threads, warm_batch_sizes, max_bytes, gpu)
    except ModelError as error:
        raise type(error)(error.problem, path) from error
    except Exception as error:  # the file is not ours to trust, ONNX Runtime raises many kinds
        raise ModelError(f"cannot be run: {one_line(error)}", path) from error


def _load(
    path: Path,
    device: Device,
    threads: int,
    warm_batch_sizes: Callable[[str], Sequence[int]],
    max_bytes: int,
    gpu: GpuSettings | None,
) -> Model:
    wanted = resolve_device(device)
    file = read_checked_file(path, max_bytes)
    # On the CPU first, wherever it is to run: a GPU's options depend on what the graph says.
    session = open_session(file, "cpu", threads)
    metadata = parse_metadata(session.get_modelmeta().custom_metadata_map.get("gan"))
    spec = read_spec(session, metadata, hashlib.sha256(file.content).hexdigest())
    if wanted != "cpu":
        assert gpu is not None, wanted
        try:
            return load_on_gpu(
                file,
                replace(spec, provider=FIRST_PROVIDERS[wanted]),
                metadata.golden,
                device=wanted,
                batch_sizes=warm_batch_sizes(FIRST_PROVIDERS[wanted]),
                threads=threads,
                settings=gpu,
            )
        except ProviderUnavailable as error:
            if device != "auto":
                raise
            logger.warning("%s; device auto falls back to the CPU", error)
    model = Model(spec, session)
    check_golden(model, metadata.golden)
    strict = gpu is None or gpu.reproducibility == "strict"
    warm_up(model, warm_batch_sizes(spec.provider), strict=strict)
    return model


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
    for handed_over in (file.graph, file.content):  # other bytes than those looked through
        check_format(handed_over)
    return file


def load_on_gpu(
    file: SplitFile,
    spec: ModelSpec,
    golden: Golden,
    *,
    device: Device,
    batch_sizes: Sequence[int],
    threads: int,
    settings: GpuSettings,
) -> Model:
    """Bring an artifact to a GPU, check it there and warm it up.

    Raises:
        ModelError: there it is not what it should be.
        ProviderUnavailable: the device cannot be used.
    """
    session = open_on_gpu(
        file,
        spec,
        lambda session: check_golden(Model(spec, session), golden),
        device=device,
        batch_sizes=batch_sizes,
        threads=threads,
        settings=settings,
    )
    return Model(spec, session, session.batch_sizes)


def check_golden(model: Model, golden: Golden) -> None:
    """Generate the golden images and compare them with the known ones.

    Raises:
        ModelError: the model makes others, or the labels of the known ones are none of its own.
    """
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


def check_independence(model: Model, batch_size: int) -> None:
    """Make sure that an image is the same bytes alone and in a batch; both sizes are warm then.

    The CPU's kernels make the same bits at every size, so all that is looked for is a graph that
    does not. That takes one full batch, which had to be warmed up anyway, and a few single rows.

    Raises:
        ModelError: it is not.
    """
    if not are_rows_independent(runner_of_rows(model.session, model.spec, batch_size), batch_size):
        raise ModelError(
            "reproducibility strict: expected the same bytes of an image alone and in a batch, got "
            "others: something in the graph looks at the whole batch, such as dynamic quantization "
            "(DynamicQuantizeLinear), where static quantization would not; --reproducibility fast "
            "serves without that promise"
        )


def warm_up(model: Model, batch_sizes: Collection[int], *, strict: bool) -> None:
    """Run a batch of each size, so that no caller pays for first-time work.

    Raises:
        ModelError: if `strict`, an image depends on its batch.
    """
    sizes = {*batch_sizes}
    if strict:
        largest = max(2, *sizes)  # a batch of one could not tell
        check_independence(model, largest)
        sizes -= {1, largest}
    for size in sorted(sizes):
        feeds = make_feeds(model.spec, size)
        model.run_batch(feeds["latents"], feeds.get("labels"))
