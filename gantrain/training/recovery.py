"""Hides how a run goes on from a checkpoint: at its start, and when numbers leave all bounds."""

import logging
from typing import Any

import numpy as np

from gantrain.checkpoint import (
    TrainState,
    checkpoint_paths,
    how_to_take_back,
    newest_good_checkpoint,
    paths_astray,
    save_checkpoint,
    set_aside,
    set_damaged_aside,
)
from gantrain.config import TrainConfig
from gantrain.diagnosis.advice import say_how_to_go_on
from gantrain.errors import RunError
from gantrain.optimizers import ROLLBACK_LR
from gantrain.ranks import broadcast, read_ranks
from gantrain.run_directory import RunDirectory
from gantrain.run_log import read_metrics
from gantrain.training.run_setup import create_state, interval

logger = logging.getLogger(__name__)

_MAX_ROLLBACKS = 3
_ABSURD_LOGIT = 1e6  # float32 still holds its square, but no image deserves such a judgement


class Diverged(RunError):
    """Numbers have left all bounds; `what` names them, the message says where and when too."""

    def __init__(self, what: str, images_seen: int, weights: str | None) -> None:
        super().__init__(
            f"{what} by {images_seen} images (first weights not finite: "
            f"{weights or 'none of the weights yet'})"
        )
        self.what = f"{what} (first weights not finite: {weights})" if weights else what


def refuse_lost_checkpoints(run: RunDirectory) -> None:
    """Let a run start over only if it can have had no checkpoint yet.

    Raises:
        RunError: it has none, but its metrics go beyond where the first one was due.
    """
    if checkpoint_paths(run.checkpoints) or paths_astray(run.checkpoints):
        return
    rows = read_metrics(run.metrics_file)
    if not rows or not run.config_file.exists():
        return
    config, _ = run.read()  # as it was before this start, which may have other intervals
    due = min(interval(config.checkpoint_every, config), config.total_images)
    reached = rows[-1]["images_seen"]
    # The row of a step comes before its checkpoint, so that of the step after is the first to show.
    if reached - config.images_per_step >= due:
        raise RunError(
            f"{run.checkpoints} holds no checkpoint, but the run reached {reached} images, and the "
            f"first was due at {due}: put the checkpoints back to resume it, or choose another "
            "--run-dir to start over"
        )


def find_newest(run: RunDirectory) -> dict[str, Any] | None:
    """The newest good checkpoint that the first rank finds, for all ranks."""
    return broadcast(newest_good_checkpoint(run.checkpoints) if read_ranks().first else None)


def restore_newest(state: TrainState, run: RunDirectory) -> None:
    """Take over the newest good checkpoint, where there is one."""
    values = find_newest(run)
    if values is not None:
        state.load_state_dict(values)
        if read_ranks().first:
            set_damaged_aside(run.checkpoints, state.images_seen)
        logger.info("resuming %s at %d images", run.path, state.images_seen)
    elif read_ranks().first and run.metrics_file.exists():
        how = how_to_take_back(run.checkpoints)
        logger.warning("%s has no checkpoint yet: it starts over%s", run.path, how)


def check_bounds(row: dict[str, float], state: TrainState) -> None:
    """Stop a run whose numbers have left all bounds, before they get into a checkpoint.

    Weights can be the first: a finite loss may have a gradient that is not. Statistics of BatchNorm
    count as weights.

    Raises:
        Diverged: a value of the row or a weight is not finite, or logits are absurdly large; names
            it and the first weight that is not finite.
    """
    networks = {"discriminator": state.discriminator, "generator": state.generator}
    if state.generator_ema is not state.generator:
        networks["generator_ema"] = state.generator_ema
    value = next((name for name, mean in row.items() if not np.isfinite(mean)), None)
    weights = next(
        (
            f"{network}.{name}"
            for network, module in networks.items()
            for name, values in [*module.named_parameters(), *module.named_buffers()]
            if not values.isfinite().all()
        ),
        None,
    )
    if value is None and row.get("logit_size", 0.0) > _ABSURD_LOGIT:
        value = "logit_size"
    if value is None and weights is None:
        return
    what = f"{value} became {row[value]:g}" if value else "weights became nan or infinite"
    raise Diverged(what, state.images_seen, weights)


def roll_back(
    state: TrainState,
    run: RunDirectory,
    config: TrainConfig,
    diverged: Diverged,
    class_count: int,
) -> None:
    """Return to the newest good checkpoint, to go on with half the learning rate.

    Raises:
        RunError: rolling back is not asked for, or has not helped often enough.
    """
    how = say_how_to_go_on(config, state.rollbacks)
    if config.on_divergence == "stop":
        # There may be none: it can diverge before the first is due.
        raise RunError(f"{diverged}; checkpoints before it are kept. {how}") from diverged
    rollbacks = state.rollbacks + 1
    if rollbacks > _MAX_ROLLBACKS:
        vain = f"{_MAX_ROLLBACKS} rollbacks have not helped{how_to_take_back(run.checkpoints)}"
        raise RunError(f"{diverged}; {vain}. {how}") from diverged
    if state.rolled_back_to is not None and read_ranks().first:
        # Nothing good has been saved since the last time: what was gone back to leads astray.
        aside = set_aside(run.checkpoints, state.rolled_back_to, config.keep_checkpoints)
        if aside:
            logger.warning("the checkpoint gone back to leads astray; it is set aside as %s", aside)
    values = find_newest(run)
    if values is None:  # it diverged before the first one
        device = next(state.generator.parameters()).device
        values = create_state(config, device, class_count).state_dict()
    state.load_state_dict(values)
    state.rollbacks, state.rolled_back_to = rollbacks, state.images_seen
    if state.images_seen and read_ranks().first:
        # Once more, or a run that is killed before its next checkpoint would forget the rollback.
        save_checkpoint(state, run.checkpoints, config.keep_checkpoints)
    logger.warning(
        "%s. Rolling back to %d images with %g of the learning rate and another order of the data "
        "(%d of %d)",
        *(diverged, state.images_seen, ROLLBACK_LR**rollbacks, rollbacks, _MAX_ROLLBACKS),
    )
