"""Images or points from a trained generator, be it in a run or in an artifact."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gantrain.checkpoint import newest_good_checkpoint
from gantrain.combinations import network_shape
from gantrain.config import TrainConfig
from gantrain.errors import RunError
from gantrain.latents import SEED_CONTRACT, draw_latents
from gantrain.networks import GENERATORS, create_networks
from gantrain.run_directory import DataFacts, RunDirectory

Latents = NDArray[np.float32]  # [n, latent_dim]
Pixels = NDArray[np.uint8]  # [n, height, width, channels]
Samples = NDArray[Any]  # Pixels, or points: float32 [n, 2]

SCHEMA = 1  # the version of docs/artifact.md

_STATISTICS_SEEDS = np.arange(2**63, 2**63 + 2048, dtype=np.uint64)  # far from anybody's own
_BATCH = 64
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class PixelGenerator(nn.Module):
    """latents [batch, latent_dim] -> uint8 [batch, height, width, channels]: the served graph."""

    def __init__(self, generator: nn.Module, lowest: float = -1.0) -> None:
        super().__init__()
        self.generator = generator
        self.offset, self.scale = -lowest, 255 / (1 - lowest)

    def forward(self, latents: Tensor) -> Tensor:
        """Scale [lowest, 1] to 0..255, rounding half to even, and move the channels last."""
        images: Tensor = self.generator(latents)  # [batch, channels, height, width]
        grey_levels = ((images + self.offset) * self.scale).round().clamp(0, 255)
        return grey_levels.permute(0, 2, 3, 1).to(torch.uint8)


@dataclass(frozen=True)
class RunGenerator:
    """The generator of a run's newest checkpoint and where it comes from."""

    generator: nn.Module  # a PixelGenerator, or latents -> points [batch, 2]
    config: TrainConfig
    data: DataFacts
    images_seen: int


def finished_generator(generator_ema: nn.Module, config: TrainConfig) -> nn.Module:
    """The generator as it is sampled and exported: on the CPU, in inference mode.

    It makes uint8 images, or points where the run's data are points. Averaged weights do not have
    the averaged statistics of BatchNorm, so these are measured anew, on latents that are always the
    same; without averaging, the moving statistics of training stand.
    """
    generator = copy.deepcopy(generator_ema).cpu()
    if config.ema_half_life_images:
        measure_statistics(generator, config.latent_dim)
    kind = GENERATORS[config.generator or ""]
    return (generator if kind.points else PixelGenerator(generator, kind.lowest)).eval()


def measure_statistics(generator: nn.Module, latent_dim: int) -> None:
    """Replace BatchNorm's moving statistics by plain means over fixed latents."""
    norms = [module for module in generator.modules() if isinstance(module, _BATCH_NORMS)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    latents = draw_latents(_STATISTICS_SEEDS, latent_dim)
    generator.train()
    with torch.no_grad():
        for start in range(0, len(latents), _BATCH):
            generator(torch.from_numpy(latents[start : start + _BATCH]))


def generate(generator: nn.Module, latents: Latents) -> Samples:
    """What a finished generator makes of latents [n, latent_dim]."""
    with torch.no_grad():
        batches = [
            generator(torch.from_numpy(latents[start : start + _BATCH])).numpy()
            for start in range(0, len(latents), _BATCH)
        ]
    return np.concatenate(batches)


def load_run_generator(path: Path) -> RunGenerator:
    """The averaged generator of the newest good checkpoint of a run.

    Raises:
        RunError: the folder holds no run, or the run no good checkpoint.
    """
    run = RunDirectory(path)
    config, data = run.read()
    values = newest_good_checkpoint(run.checkpoints)
    if values is None:
        raise RunError(f"{path} has no good checkpoint yet: train until the first one is saved")
    assert config.generator is not None
    assert config.discriminator is not None
    generator_ema, _ = create_networks(
        config.generator, config.discriminator, network_shape(config), seed=config.seed
    )
    generator_ema.load_state_dict(values["generator_ema"])
    generator = finished_generator(generator_ema, config)
    return RunGenerator(generator, config, data, values["images_seen"])


def open_sampler(path: Path) -> tuple[Callable[[Latents], Samples], int]:
    """A function from latents to images or points, and the latents' length.

    Raises:
        RunError: the path is neither, or cannot be used.
    """
    if path.is_dir():
        run = load_run_generator(path)
        return lambda latents: generate(run.generator, latents), run.config.latent_dim
    if not path.is_file():
        raise RunError(f"{path}: no such run folder or artifact")
    session = open_session(path.read_bytes(), name=str(path))
    check_artifact(session, path)
    return lambda latents: sample_session(session, latents), session.get_inputs()[0].shape[1]


def check_artifact(session: Any, path: Path) -> None:  # noqa: ANN401 - untyped library
    """Refuse a model that docs/artifact.md does not define; raises RunError."""
    try:
        facts = json.loads(session.get_modelmeta().custom_metadata_map["gan"])
        schema, seed_contract = facts["schema"], facts["seed_contract"]
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{path}: not an artifact of gantrain (see docs/artifact.md)") from None
    if (schema, seed_contract) != (SCHEMA, SEED_CONTRACT):
        raise RunError(
            f"{path}: expected schema {SCHEMA} with seeds {SEED_CONTRACT}, got {schema} with "
            f"{seed_contract}; use the version of gantrain that exported it"
        )


def open_session(artifact: bytes, name: str = "artifact") -> Any:  # noqa: ANN401 - untyped library
    """An ONNX Runtime session on the CPU.

    Raises:
        RunError: ONNX Runtime is missing, or does not take the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise RunError(
            "ONNX Runtime is not installed: install the extra `cpu` or `gpu` beside `train`"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but Exception
        reason = str(error).splitlines()[0]
        raise RunError(f"{name}: ONNX Runtime cannot load it: {reason}") from error


def run_session(session: Any, latents: Latents) -> Pixels:  # noqa: ANN401
    """One call of the artifact's graph."""
    pixels: Pixels = session.run(["images"], {"latents": latents})[0]
    return pixels


def sample_session(session: Any, latents: Latents) -> Pixels:  # noqa: ANN401
    """Images of any number of latents, in bounded batches."""
    starts = range(0, len(latents), _BATCH)
    return np.concatenate([run_session(session, latents[at : at + _BATCH]) for at in starts])
