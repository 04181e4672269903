"""Hides what a run begins with: settings that follow from the data, labels, device, networks."""

import copy
import logging
import math

import torch
from torch import Tensor

from gantrain.checkpoint import TrainState
from gantrain.class_labels import count_classes
from gantrain.config import TrainConfig
from gantrain.config_rules import (
    build_networks,
    choose_lr,
    misfit,
    penalty_for_images,
    penalty_for_points,
)
from gantrain.data.bad_data import list_some
from gantrain.data.datasets import Dataset
from gantrain.data.image_folders import NAMES_SHOWN, is_hidden
from gantrain.data.point_sets import PointSet
from gantrain.data.stacked_mnist import STACKED_KIND
from gantrain.errors import RunError
from gantrain.optimizers import create_optimizer
from gantrain.run_directory import DataFacts
from gantrain.training.shared_batch_norm import share_batch_norm

# Seconds of training that a crash may cost, where --checkpoint-every does not say how many images.
LONGEST_UNSAVED = 600

logger = logging.getLogger(__name__)


def settle_config(config: TrainConfig, data: Dataset | PointSet) -> TrainConfig:
    """Replace what was left to the data by what the data say.

    Raises:
        RunError: there are fewer images than a batch holds, the networks do not fit the images, or
            classes are to be learned and there are none.
    """
    if config.conditional and data.labels is None:
        named = list_some([*data.strays], NAMES_SHOWN)
        why = f", as these images lie beside the folders: {named}" if data.strays else ""
        more = "a larger --max-data-images, " if config.max_data_images else ""
        raise RunError(
            f"--conditional: the data {config.data} have no classes ({data.kind}){why}; give {more}"
            "images in a folder for each of at least two classes, with none beside these folders, "
            "or another source with labels, or leave --conditional out"
        )
    if isinstance(data, PointSet):
        weight = penalty_for_points(data.points)
        changes: dict[str, object] = {"flip": "off"}
    else:
        _, channels, size, _ = data.images.shape
        weight = penalty_for_images(size)
        # Grey images are mostly digits and letters, which mirrored are others; stacked ones too.
        may_flip = channels == 3 and data.kind != STACKED_KIND
        flip = config.flip if config.flip != "auto" else ("on" if may_flip else "off")
        changes = {"image_size": size, "channels": channels, "flip": flip}
    count = len(data.examples)
    if count < config.batch_size:
        raise RunError(
            f"--batch-size {config.batch_size}: the data have only {count} images; "
            "use a smaller batch or more images"
        )
    if config.loss != "relativistic":
        weight = 0.0
    for name in ("r1_weight", "r2_weight"):
        if getattr(config, name) is None:
            changes[name] = weight
    config = config.model_copy(update=changes)
    problem = misfit(config)
    if problem:
        raise RunError(f"--generator {config.generator}: {problem}")
    return config if config.lr is not None else config.model_copy(update={"lr": choose_lr(config)})


def check_share(batch_size: int, ranks: int) -> None:
    """Let each rank have a part of the batch, of one size.

    Raises:
        RunError: they cannot.
    """
    if batch_size % ranks:
        lower = batch_size - batch_size % ranks
        raise RunError(
            f"--batch-size {batch_size}: expected a multiple of the {ranks} ranks, which share the "
            f"batch evenly; use {f'{lower} or ' if lower else ''}{lower + ranks}"
        )


def check_place(config: TrainConfig, data: Dataset | PointSet) -> None:
    """Keep the pictures of a run out of its data, or it could never be resumed.

    Raises:
        RunError: the run's folder lies in the folder of images.
    """
    if data.folder is None:
        return
    folder, run = data.folder.resolve(), config.run_dir.resolve()
    if run.is_relative_to(folder) and not any(map(is_hidden, run.relative_to(folder).parts)):
        raise RunError(
            f"--run-dir {config.run_dir} lies in the folder of images {data.folder}, so the run's "
            "pictures would become data: choose a folder outside it, and move a run there that "
            "you want to resume"
        )


def describe_data(data: Dataset | PointSet) -> DataFacts:
    """What a run remembers of its data."""
    counts = () if data.labels is None else count_classes(data.labels, data.class_names)
    return DataFacts(
        data.fingerprint(), len(data.examples), data.kind, data.class_names, class_counts=counts
    )


def interval(every: int | None, config: TrainConfig) -> int:
    """Images between two times that something is due; unset, a 20th of the run."""
    return every or max(config.total_images // 20, 1)


def tell_checkpoints(config: TrainConfig, images_seen: int, every: int) -> None:
    """Log when the next checkpoint is due, from when on a crash costs little."""
    due = min((images_seen // every + 1) * every, config.total_images)
    step = config.images_per_step
    first = images_seen + math.ceil((due - images_seen) / step) * step
    if images_seen < config.total_images:
        sooner = "" if config.checkpoint_every else f", or after {LONGEST_UNSAVED // 60} minutes"
        logger.info("a checkpoint every %d images, the next at %d%s", every, first, sooner)


def load_labels(
    data: Dataset | PointSet, config: TrainConfig, device: torch.device
) -> Tensor | None:
    """The label of each example, [count] on the device, where the networks are to take it.

    A class without images, as in files whose numbers leave one out, is learned by nobody and told.
    """
    if not config.conditional:
        return None
    assert data.labels is not None
    counts = count_classes(data.labels, data.class_names)
    missing = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if missing:
        logger.warning(
            "no image of %d of the %d classes (%s): what is generated for them means nothing",
            *(len(missing), len(counts), ", ".join(missing[:3])),
        )
    return torch.from_numpy(data.labels).to(device)


def choose_device(asked: str, local_rank: int | None = None) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one, each rank of a machine has its own.

    Raises:
        RunError: CUDA was asked for and there is none, or there are fewer than ranks.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise RunError(
            "--device cuda: PyTorch finds no CUDA device; use --device auto, or install a driver "
            "and a CUDA build of torch"
        )
    if not available or asked == "cpu":
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        raise RunError(
            f"rank {local_rank} of this machine: there are only {torch.cuda.device_count()} CUDA "
            "devices; give torchrun as many --nproc-per-node, or train on --device cpu"
        )
    return torch.device("cuda", local_rank)


def create_state(config: TrainConfig, device: torch.device, class_count: int) -> TrainState:
    """Networks, averaged generator and optimizers at the start of a run."""
    # Convolutions of large maps are quicker with the channels innermost, others no slower.
    generator, discriminator = (
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in build_networks(config, class_count)
    )
    averaging = config.ema_half_life_images > 0
    generator_ema = copy.deepcopy(generator).requires_grad_(False) if averaging else generator
    for network in (generator, discriminator):
        share_batch_norm(network)
    return TrainState(
        generator=generator,
        discriminator=discriminator,
        generator_ema=generator_ema,
        generator_optimizer=create_optimizer(generator, config.generator_rate, config),
        discriminator_optimizer=create_optimizer(discriminator, config.discriminator_rate, config),
    )
