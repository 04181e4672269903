"""Hides how weights follow their gradients: optimizers, learning rates, the averaged generator."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gantrain.checkpoint import TrainState
from gantrain.config import TrainConfig

ROLLBACK_LR = 0.5  # the learning rate after each rollback, over that before


def create_optimizer(network: nn.Module, lr: float, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of one network.

    Of Keras' optimizers that have `decay`, RMSprop adds epsilon where PyTorch does, to the root of
    the mean square. Adam adds it there too, before the bias is corrected and not after it, so that
    it weighs more in the first steps: this is not carried over.
    """
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            network.parameters(), lr=lr, alpha=config.rho, eps=config.optimizer_eps
        )
    betas = (config.beta1, config.beta2)
    return torch.optim.Adam(
        network.parameters(), lr=lr, betas=betas, eps=config.optimizer_eps, fused=True
    )


def set_rates(state: TrainState, config: TrainConfig) -> None:
    """Give both optimizers their learning rate of the coming step, and count its updates.

    It falls with the updates before the step and is halved by each rollback. Where it is a tensor
    that is filled, for a recorded step reads it there.
    """
    half_steps = 2 if config.discriminator_step == "two-steps" else 1
    coming = (
        (state.generator_optimizer, config.generator_rate, config.generator_updates),
        (
            state.discriminator_optimizer,
            config.discriminator_rate,
            config.discriminator_updates * half_steps,
        ),
    )
    for optimizer, lr, count in coming:
        updates = updates_so_far(optimizer)
        lr = lr * ROLLBACK_LR**state.rollbacks / (1 + config.lr_decay * updates)
        for group in optimizer.param_groups:
            group["updates"] = updates + count
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def updates_so_far(optimizer: torch.optim.Optimizer) -> int:
    """How often the optimizer has stepped, as noted beside its learning rate in checkpoints, too.

    Its own count is in the device's memory: to read it is to wait for the device at each step.
    """
    noted = optimizer.param_groups[0].get("updates")
    if noted is None:  # at the start, and in checkpoints before 0.10.0
        return next((int(values["step"]) for values in optimizer.state.values()), 0)
    return int(noted)


def apply_gradients(
    network: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> None:
    """Let the optimizer use the gradients that are there, clipped where asked for."""
    if config.gradient_clip is not None:
        nn.utils.clip_grad_value_(network.parameters(), config.gradient_clip)
    optimizer.step()


def update_ema(state: TrainState, config: TrainConfig) -> None:
    """Move the averaged generator's weights towards the generator's, where there is averaging."""
    if not config.ema_half_life_images:
        return  # it is the generator itself
    half_life = min(config.ema_half_life_images, config.ema_ramp_up * state.images_seen)
    decay = 0.5 ** (config.images_per_step / half_life)
    averaged, current = state.generator_ema.parameters(), state.generator.parameters()
    # All weights in few operations, where the device has such.
    get_ema_multi_avg_fn(decay)([*averaged], [*current], None)  # type: ignore[no-untyped-call]
