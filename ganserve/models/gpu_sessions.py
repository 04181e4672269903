"""The way of a model onto a GPU: options, buffers, batch sizes that agree, CUDA graphs."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ganserve.errors import ModelError, StartupError
from ganserve.models.artifact import Golden
from ganserve.models.batch_sizes import find_agreeing_sizes
from ganserve.models.bound_session import BoundSession
from ganserve.models.cuda_graphs import choose_graphs
from ganserve.models.model import Model, check_golden
from ganserve.models.model_spec import ModelSpec, make_feeds, runner_of_rows
from ganserve.models.onnx_weights import SplitFile
from ganserve.models.providers import choose_providers, engine_folder
from ganserve.models.runtime import one_line, open_session, runtime_version
from ganserve.setting_values import CudaGraphs, Device, Reproducibility

logger = logging.getLogger(__name__)

_Prepared = TypeVar("_Prepared")


@dataclass(frozen=True)
class GpuSettings:
    """How models run on a GPU."""

    executor: Executor  # of a single thread, the same for all models: see `BoundSession`
    reproducibility: Reproducibility = "strict"
    cuda_graphs: CudaGraphs = "auto"
    tensorrt_cache: Path | None = None


@dataclass(frozen=True)
class GpuModel:
    """What is to run on a GPU; the device may be `cpu` too, so that tests take the same way."""

    file: SplitFile
    spec: ModelSpec
    golden: Golden
    device: Device
    batch_sizes: Sequence[int]  # of which those serve that make the same bits, where that counts
    threads: int


def load_on_gpu(wanted: GpuModel, settings: GpuSettings) -> Model:
    """Bring an artifact to a GPU, check it there and warm it up.

    Raises:
        ModelError: there it is not what it should be.
        ProviderUnavailable: the device cannot be used.
    """
    graphs = settings.cuda_graphs if wanted.device != "tensorrt" else "off"
    prepare = partial(_prepare, wanted, settings)
    return with_graphs_if_possible(prepare, graphs, wanted.spec.digest)


def with_graphs_if_possible(
    prepare: Callable[..., _Prepared], mode: CudaGraphs, digest: str
) -> _Prepared:
    """Call `prepare` for CUDA graphs; where that fails, and the mode is `auto`, for none."""
    if mode == "off":
        return prepare(cuda_graphs=False)
    try:
        return prepare(cuda_graphs=True)
    except Exception as error:  # whatever it is: without graphs it works, or fails for good
        if mode == "on":
            raise
        problem = one_line(error)
    prepared = prepare(cuda_graphs=False)
    logger.warning("model %s goes without CUDA graphs: %s", digest, problem)
    return prepared


def _prepare(wanted: GpuModel, settings: GpuSettings, *, cuda_graphs: bool) -> Model:
    spec, device = wanted.spec, wanted.device
    strict = settings.reproducibility == "strict"
    providers = choose_providers(
        device,
        reproducibility=settings.reproducibility,
        precision=spec.precision,
        cuda_graphs=cuda_graphs,
        batch_sizes=wanted.batch_sizes,
        latent_dim=spec.latent_dim,
        conditional=bool(spec.class_names),
        tensorrt_cache=make_engine_folder(settings, spec) if device == "tensorrt" else None,
    )
    session = BoundSession(
        open_session(
            wanted.file, device, wanted.threads, providers=providers, deterministic=strict
        ),
        wanted.batch_sizes,
        device="cpu" if device == "cpu" else "cuda",
        cuda_graphs=cuda_graphs,
    )
    # What takes long the first time is done in this thread, so that other models serve meanwhile.
    check_golden(Model(spec, session), wanted.golden)
    for size in session.batch_sizes:
        session.run(["images"], make_feeds(spec, size))
    session.hand_over(settings.executor)
    if strict:
        keep_agreeing_sizes(session, spec)
    if cuda_graphs:
        always = settings.cuda_graphs == "on"
        chosen = choose_graphs(session, partial(make_feeds, spec), always=always)
        logger.info(
            "model %s: CUDA graphs at batch sizes %s of %s",
            *(spec.digest, [*chosen], [*session.batch_sizes]),
        )
        check_golden(Model(spec, session), wanted.golden)  # now with graphs
    return Model(spec, session, session.batch_sizes)


def keep_agreeing_sizes(session: BoundSession, spec: ModelSpec) -> None:
    """Leave only batch sizes at which an image has the bits that it has at the largest.

    Raises:
        ModelError: there are none: the largest does not repeat itself, or its rows depend on each
            other.
    """
    largest = session.batch_sizes[-1]
    agreeing = find_agreeing_sizes(runner_of_rows(session, spec, largest), session.batch_sizes)
    if not agreeing:
        raise ModelError(
            f"reproducibility strict: expected the same bits of an image in every call of "
            f"{largest}, got others: --reproducibility fast serves without that promise"
        )
    others = [size for size in session.batch_sizes if size not in agreeing]
    if others:
        logger.warning(
            "model %s: batches of %s make other bits than those of %d and are not used, only %s",
            *(spec.digest, others, largest, [*agreeing]),
        )
        session.keep_only(agreeing)


def check_engine_cache(root: Path | None) -> None:
    """Make the folder for engines, if there is to be one, before any model is loaded.

    Raises:
        StartupError: it cannot be written to.
    """
    if root is None:
        return
    problem = f"tensorrt_cache: expected a folder to write to, got {root}"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"{problem}: {error.strerror}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise StartupError(f"{problem}: not allowed")


def make_engine_folder(settings: GpuSettings, spec: ModelSpec) -> Path | None:
    """Make where TensorRT's engines of this model are kept, if they are.

    Raises:
        ModelError: that is not possible.
    """
    if settings.tensorrt_cache is None:
        if settings.reproducibility == "strict":
            logger.warning(
                "model %s: TensorRT builds an engine that is gone with this process, and the next "
                "one may make other bits: --tensorrt-cache keeps it",
                spec.digest,
            )
        return None
    folder = engine_folder(
        settings.tensorrt_cache, spec.digest, runtime_version(), settings.reproducibility
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            "tensorrt_cache: expected a folder to write to, cannot make "
            f"{folder.relative_to(settings.tensorrt_cache)} in it: {error.strerror}"
        ) from error
    return folder
