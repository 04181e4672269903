"""Images or points from a trained generator, be it in a run or in an artifact."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gantrain.checkpoint import (
    chosen_checkpoint,
    how_to_take_back,
    is_checkpoint,
    newest_good_checkpoint,
)
from gantrain.class_labels import Labels, proportional_labels
from gantrain.config import TrainConfig
from gantrain.config_rules import build_networks, network_kinds
from gantrain.errors import RunError, first_line
from gantrain.latents import SEED_CONTRACT, draw_latents
from gantrain.memory import lacks_memory
from gantrain.networks import run_network
from gantrain.pictures import Pixels
from gantrain.publishing import MODEL_FILE
from gantrain.run_directory import DataFacts, RunDirectory, run_of
from gantrain.runtime import import_runtime

Latents = NDArray[np.float32]  # [n, latent_dim]
Samples = NDArray[Any]  # Pixels, or points: float32 [n, 2]

SCHEMA = 1  # the version of docs/artifact.md

_STATISTICS_SEEDS = np.arange(2**63, 2**63 + 2048, dtype=np.uint64)  # far from anybody's own
_BATCH = 64
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class PixelGenerator(nn.Module):
    """latents [batch, latent_dim] -> uint8 [batch, height, width, channels]: the served graph.

    A conditional generator takes labels [batch], int64, as well.
    """

    def __init__(self, generator: nn.Module, lowest: float = -1.0) -> None:
        super().__init__()
        self.generator = generator
        self.offset, self.scale = -lowest, 255 / (1 - lowest)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scale [lowest, 1] to 0..255, rounding half to even, and move the channels last."""
        images = run_network(self.generator, latents, labels)  # [batch, channels, height, width]
        grey_levels = ((images + self.offset) * self.scale).round().clamp(0, 255)
        return grey_levels.permute(0, 2, 3, 1).to(torch.uint8)


@dataclass(frozen=True)
class RunGenerator:
    """The generator of a run's checkpoint and where it comes from."""

    generator: nn.Module  # a PixelGenerator, or latents -> points [batch, 2]
    config: TrainConfig
    data: DataFacts
    images_seen: int
    weights: str  # "sha256:..." of the averaged weights as the checkpoint holds them

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their labels; empty where the generator takes none."""
        return self.data.class_names if self.config.conditional else ()


@dataclass(frozen=True)
class Sampler:
    """A generator, whether of a run or in an artifact, as a function."""

    generate: Callable[[Latents, Labels | None], Samples]  # labels [n] if there are class names
    latent_dim: int
    class_names: tuple[str, ...]  # in the order of their labels; empty where it takes none
    image_size: int | None  # pixels; None where it makes points
    channels: int | None
    settings: Mapping[str, Any]  # those of the training, and `images_seen`
    data_fingerprint: str  # of what it was trained on
    weights: str  # "sha256:..." of the averaged weights, or of the artifact's file


def finished_generator(
    generator_ema: nn.Module, config: TrainConfig, class_counts: Sequence[int]
) -> nn.Module:
    """The generator as it is sampled and exported: on the CPU, in inference mode.

    It makes uint8 images, or points where the run's data are points. Averaged weights do not have
    the averaged statistics of BatchNorm, so these are measured anew, on latents that are always the
    same and, if conditional, labels in the proportions of the data's classes, as in training;
    without averaging, the moving statistics of training stand.
    """
    generator = copy.deepcopy(generator_ema).cpu()
    if config.ema_half_life_images:
        measure_statistics(generator, config.latent_dim, class_counts if config.conditional else ())
    kind, _ = network_kinds(config)
    return (generator if kind.points else PixelGenerator(generator, kind.lowest)).eval()


def measure_statistics(generator: nn.Module, latent_dim: int, class_counts: Sequence[int]) -> None:
    """Replace BatchNorm's moving statistics by plain means over fixed latents and labels."""
    norms = [module for module in generator.modules() if isinstance(module, _BATCH_NORMS)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    latents = draw_latents(_STATISTICS_SEEDS, latent_dim)
    labels = proportional_labels(class_counts, len(latents)) if class_counts else None
    generator.train()
    for _ in _in_batches(partial(_run, generator), latents, labels):
        pass  # what it makes is of no use


def generate(generator: nn.Module, latents: Latents, labels: Labels | None = None) -> Samples:
    """What a finished generator makes of latents [n, latent_dim], and labels [n] if conditional."""
    return np.concatenate([*_in_batches(partial(_run, generator), latents, labels)])


@torch.no_grad()
def _run(generator: nn.Module, latents: Latents, labels: Labels | None) -> Samples:
    given = None if labels is None else torch.from_numpy(labels)
    samples: Samples = run_network(generator, torch.from_numpy(latents), given).numpy()
    return samples


def _in_batches(
    make: Callable[[Latents, Labels | None], Samples], latents: Latents, labels: Labels | None
) -> Iterator[Samples]:
    """What is made of latents [n, latent_dim] and labels [n], a bounded number of them at once."""
    for at in range(0, len(latents), _BATCH):
        rows = slice(at, at + _BATCH)
        yield make(latents[rows], None if labels is None else labels[rows])


def load_run_generator(path: Path) -> RunGenerator:
    """The averaged generator of a run's newest good checkpoint, or of the checkpoint given.

    Args:
        path: the run's folder, or a checkpoint in its `checkpoints/`.

    Raises:
        RunError: the folder holds no run, or the run no good checkpoint.
    """
    run = run_of(path)
    config, data = run.read()
    chosen = is_checkpoint(path)
    values = chosen_checkpoint(path) if chosen else newest_good_checkpoint(run.checkpoints)
    if values is None:
        how = how_to_take_back(run.checkpoints)
        raise RunError(f"{path} has no checkpoint yet: train until the first one is saved{how}")
    generator_ema, _ = build_networks(config, len(data.class_names))
    generator_ema.load_state_dict(values["generator_ema"])
    generator = finished_generator(generator_ema, config, data.class_counts)
    weights = fingerprint_weights(values["generator_ema"])
    return RunGenerator(generator, config, data, values["images_seen"], weights)


def fingerprint_weights(weights: Mapping[str, Tensor]) -> str:
    """Return "sha256:..." of a network's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, values in weights.items():
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def run_sampler(run: RunGenerator) -> Sampler:
    """A run's generator as a function."""
    config = run.config
    return Sampler(
        partial(generate, run.generator),
        config.latent_dim,
        run.class_names,
        config.image_size,
        config.channels,
        {**config.model_dump(mode="json"), "images_seen": run.images_seen},
        run.data.fingerprint,
        run.weights,
    )


def open_sampler(path: Path) -> Sampler:
    """The generator of a run's folder, of one of its checkpoints or of an artifact's file.

    Raises:
        RunError: the path is none of these, or cannot be used.
    """
    if path.is_dir():
        refuse_model_folder(path)
    if path.is_dir() or is_checkpoint(path):
        return run_sampler(load_run_generator(path))
    if not path.is_file():
        raise RunError(f"{path}: no such run folder or artifact")
    content = path.read_bytes()
    session = open_session(
        content, str(path), advice="; expected a run's folder or an artifact (model.onnx)"
    )
    facts = read_artifact(session, path)
    (latents,) = (entry for entry in session.get_inputs() if entry.name == "latents")
    (images,) = session.get_outputs()
    return Sampler(
        partial(sample_session, session),
        latents.shape[1],
        tuple(facts.get("class_names", ())),
        images.shape[1],
        images.shape[3],
        facts.get("training", {}),
        facts.get("data", {}).get("fingerprint", ""),
        f"sha256:{hashlib.sha256(content).hexdigest()}",
    )


def refuse_model_folder(path: Path) -> None:
    """Raise RunError, which names the newest artifact, where the folder is that of a model."""
    if RunDirectory(path).config_file.exists():
        return
    versions = [int(folder.name) for folder in path.iterdir() if folder.name.isdecimal()]
    newest = [path / str(version) for version in sorted(versions, reverse=True)]
    for artifact in (folder / MODEL_FILE for folder in (path, *newest)):
        if artifact.is_file():
            raise RunError(f"{path} holds no run, but an artifact: give {artifact}")


def read_artifact(session: Any, path: Path) -> dict[str, Any]:  # noqa: ANN401 - untyped library
    """The metadata of the model, as docs/artifact.md defines them.

    Raises:
        RunError: docs/artifact.md does not define such a model.
    """
    try:
        facts: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["gan"])
        schema, seed_contract = facts["schema"], facts["seed_contract"]
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{path}: not an artifact of gantrain (see docs/artifact.md)") from None
    if (schema, seed_contract) != (SCHEMA, SEED_CONTRACT):
        raise RunError(
            f"{path}: expected schema {SCHEMA} with seeds {SEED_CONTRACT}, got {schema} with "
            f"{seed_contract}; use the version of gantrain that exported it"
        )
    return facts


def open_session(artifact: bytes, name: str = "artifact", advice: str = "") -> Any:  # noqa: ANN401 - untyped library
    """An ONNX Runtime session on the CPU.

    Raises:
        RunError: ONNX Runtime is missing, or does not take the file; that ends in the advice.
    """
    onnxruntime = import_runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but Exception
        reason = first_line(error).removesuffix(".")
        if not artifact or "INVALID_PROTOBUF" in reason:
            reason = "the file ends early or is no ONNX file: copy it again"
        raise RunError(f"{name}: ONNX Runtime cannot load it: {reason}{advice}") from error


def run_session(
    session: Any,  # noqa: ANN401
    latents: Latents,
    labels: Labels | None = None,
) -> Pixels:
    """Images [n, height, width, channels] of latents [n, latent_dim] and maybe labels [n].

    Raises:
        MemoryError: there is too little for it.
    """
    inputs: dict[str, NDArray[Any]] = {"latents": latents}
    if labels is not None:
        inputs["labels"] = labels
    try:
        pixels: Pixels = session.run(["images"], inputs)[0]
    except Exception as error:  # ONNX Runtime's are of no common kind
        if lacks_memory(error):
            raise MemoryError(first_line(error)) from error
        raise
    return pixels


def sample_session(
    session: Any,  # noqa: ANN401
    latents: Latents,
    labels: Labels | None,
) -> Pixels:
    """`run_session` for any number of latents and labels, in bounded batches."""
    return np.concatenate([*_in_batches(partial(run_session, session), latents, labels)])
