"""The steps of a batch, each reading like the method: inputs, forward, loss, update.

Examples, be they reals or fakes, are images [batch, channels, size, size] or points [batch, 2], in
float32; labels are int64 [batch], or None where the run is not conditional.

In a conditional run each fake has the label of the real it stands beside. So fakes have labels in
the data's proportions, and a loss that compares the two compares images of one class: all that is
left to tell them apart is how real they look for that class. R3GAN pairs them so too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gantrain.checkpoint import TrainState
from gantrain.config import TrainConfig
from gantrain.losses import (
    Loss,
    create_loss,
    gradient_penalties,
    interpolate,
    interpolation_penalty,
)
from gantrain.networks import judge_with_gradients, run_network
from gantrain.optimizers import apply_gradients
from gantrain.ranks import backward, take_share
from gantrain.training.augment import augment
from gantrain.training.batches import load_batch, random_latents

StepResults = dict[str, Tensor]  # scalars are losses and penalties, [batch] are logits; detached


@dataclass(frozen=True)
class Feed:
    """What the batches of a run are taken from, on its device."""

    examples: Tensor  # uint8 [count, channels, size, size], or points, float32 [count, 2]
    labels: Tensor | None  # int64 [count], if conditional
    lowest: float  # of the values that the generator makes
    share: slice  # of each batch, this rank's


def take_step(
    state: TrainState,
    feed: Feed,
    indices: Tensor,
    config: TrainConfig,
    noise: torch.Generator,
    own_noise: torch.Generator,
) -> list[StepResults]:
    """All updates of one step, on the examples at indices [discriminator_updates, batch_size].

    `noise` is the same on all ranks, `own_noise` is this one's. Nothing here asks the device for a
    value, and nothing but tensors differs from step to step, so that a GPU can repeat it.
    """
    found = []
    for chosen in indices:
        flip = config.flip == "on"
        reals = load_batch(feed.examples, chosen, flip, noise, feed.lowest, feed.share)
        labels = None if feed.labels is None else feed.labels[chosen[feed.share]]
        fakes = generate_fakes(state, config, noise, labels, with_gradient=config.reuse_fakes)
        found.append(discriminator_step(state, reals, fakes, config, own_noise, labels))
    for _ in range(config.generator_updates):
        if not config.reuse_fakes:
            fakes = generate_fakes(state, config, noise, labels, with_gradient=True)
        found.append(generator_step(state, reals, fakes, config, own_noise, labels))
    return found


def generate_fakes(
    state: TrainState,
    config: TrainConfig,
    noise: torch.Generator,
    labels: Tensor | None = None,
    *,
    with_gradient: bool,
) -> Tensor:
    """Images or points of fresh latents; with a gradient where the generator learns from them.

    Latents are drawn for the whole batch; of several ranks each takes its share of them.

    Labels [batch] are those of the reals that the fakes will stand beside, if conditional.

    Keras' `generator.predict` makes the discriminator's fakes with BatchNorm in inference mode;
    `fakes_in_inference_mode` does so too.
    """
    latents = take_share(random_latents(config.batch_size, config.latent_dim, noise))
    inference = config.fakes_in_inference_mode and not with_gradient
    with torch.set_grad_enabled(with_gradient):
        state.generator.train(not inference)
        with precision(config, latents.device):
            fakes = run_network(state.generator, latents, labels)
        state.generator.train()
    return fakes.float()


def judge(
    state: TrainState,
    examples: Tensor,
    config: TrainConfig,
    noise: torch.Generator,
    labels: Tensor | None = None,
) -> Tensor:
    """The discriminator's logits [batch], float32, of images as augmentation changes them."""
    examples = augment(examples, config.augmentations, noise)
    with precision(config, examples.device):
        return run_network(state.discriminator, examples, labels).float()


def judge_with_input_gradients(
    state: TrainState,
    examples: Tensor,
    config: TrainConfig,
    noise: torch.Generator,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `judge`, with the gradient of each logit by its example before it was augmented."""
    plain = examples.detach().requires_grad_(bool(config.augmentations))
    augmented = augment(plain, config.augmentations, noise)
    with precision(config, examples.device):
        logits, gradients = judge_with_gradients(state.discriminator, augmented, labels)
    if augmented is not plain:
        (gradients,) = torch.autograd.grad(augmented, plain, gradients, create_graph=True)
    return logits, gradients


def precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Matrix products and convolutions in the precision asked for; weights stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def discriminator_step(
    state: TrainState,
    reals: Tensor,
    fakes: Tensor,
    config: TrainConfig,
    noise: torch.Generator,
    labels: Tensor | None = None,
) -> StepResults:
    """Update the discriminator on as many reals as fakes; the generator is left alone.

    Labels [batch] are those of the reals and of the fakes, if conditional.
    """
    loss = create_loss(config.loss, config.label_smoothing)
    fakes = fakes.detach()
    if config.discriminator_step == "two-steps":
        results = _two_steps(state, reals, fakes, config, loss, noise, labels)
    else:
        results = _one_step(state, reals, fakes, config, loss, noise, labels)
    if config.weight_clip is not None:
        with torch.no_grad():
            for weights in state.discriminator.parameters():
                weights.clamp_(-config.weight_clip, config.weight_clip)
    return results


def _one_step(
    state: TrainState,
    reals: Tensor,
    fakes: Tensor,
    config: TrainConfig,
    loss: Loss,
    noise: torch.Generator,
    labels: Tensor | None,
) -> StepResults:
    """One update on reals and fakes, which pass the discriminator together or apart."""
    count = len(reals)
    if config.discriminator_step == "joint":
        both_labels = None if labels is None else torch.cat([labels, labels])
        parts = [(torch.cat([reals, fakes]), both_labels)]
    else:  # BatchNorm sees reals and fakes as batches of their own
        parts = [(reals, labels), (fakes, labels)]
    penalised = bool(config.r1_weight or config.r2_weight)
    if penalised:
        judged = [judge_with_input_gradients(state, part, config, noise, of) for part, of in parts]
        logits, gradients = (torch.cat(results) for results in zip(*judged, strict=True))
    else:
        logits = torch.cat([judge(state, part, config, noise, of) for part, of in parts])
    real_logits, fake_logits = logits[:count], logits[count:]
    total = config.discriminator_loss_weight * loss.discriminator(real_logits, fake_logits)
    results = {"discriminator_loss": total.detach()}
    if penalised:
        penalties = gradient_penalties(gradients)
        r1_penalty, r2_penalty = penalties[:count].mean(), penalties[count:].mean()
        assert config.r1_weight is not None
        assert config.r2_weight is not None
        total = total + (config.r1_weight / 2 * r1_penalty + config.r2_weight / 2 * r2_penalty)
        results |= {"r1_penalty": r1_penalty.detach(), "r2_penalty": r2_penalty.detach()}
    if config.gradient_penalty_weight:
        mix = torch.rand(count, generator=noise, device=reals.device)
        mixtures = interpolate(reals, fakes, mix)
        _, mixture_gradients = judge_with_input_gradients(state, mixtures, config, noise, labels)
        penalty = interpolation_penalty(mixture_gradients)
        total = total + config.gradient_penalty_weight * penalty
        results["gradient_penalty"] = penalty.detach()
    update_discriminator(state, total, config)
    return results | {"real_logits": real_logits.detach(), "fake_logits": fake_logits.detach()}


def _two_steps(
    state: TrainState,
    reals: Tensor,
    fakes: Tensor,
    config: TrainConfig,
    loss: Loss,
    noise: torch.Generator,
    labels: Tensor | None,
) -> StepResults:
    """An update on reals, then one on fakes, as Keras tutorials do; the loss is their mean."""
    assert loss.on_real is not None
    assert loss.on_fake is not None
    weights = (config.r1_weight or 0.0, config.r2_weight or 0.0)
    results: StepResults = {}
    losses = []
    halves = (("real", reals, loss.on_real), ("fake", fakes, loss.on_fake))
    for (half, examples, term), weight, penalty_name in zip(
        halves, weights, ("r1_penalty", "r2_penalty"), strict=True
    ):
        if weight:
            logits, gradients = judge_with_input_gradients(state, examples, config, noise, labels)
        else:
            logits = judge(state, examples, config, noise, labels)
        total = config.discriminator_loss_weight * term(logits)
        losses.append(total.detach())
        if weight:
            penalty = gradient_penalties(gradients).mean()
            total = total + weight / 2 * penalty
            results[penalty_name] = penalty.detach()
        update_discriminator(state, total, config)
        results[f"{half}_logits"] = logits.detach()
    return results | {"discriminator_loss": torch.stack(losses).mean()}


def generator_step(
    state: TrainState,
    reals: Tensor,
    fakes: Tensor,
    config: TrainConfig,
    noise: torch.Generator,
    labels: Tensor | None = None,
) -> StepResults:
    """Update the generator once through its fakes, which carry its gradient.

    The reals matter to losses that compare the two; labels [batch] are those of both.
    """
    loss = create_loss(config.loss)
    with frozen(state.discriminator):
        with torch.no_grad():
            real_logits = None  # unpaired losses do not look at them
            if loss.on_real is None:
                real_logits = judge(state, reals, config, noise, labels)
        fake_logits = judge(state, fakes, config, noise, labels)
        total = loss.generator(fake_logits if real_logits is None else real_logits, fake_logits)
        state.generator_optimizer.zero_grad()
        backward(total, state.generator)
    apply_gradients(state.generator, state.generator_optimizer, config)
    return {"generator_loss": total.detach(), "generator_logits": fake_logits.detach()}


@contextmanager
def frozen(discriminator: nn.Module) -> Iterator[None]:
    """Keep the discriminator's weights and moving statistics as they are.

    Without its weights' gradients a pass is a third cheaper. Its BatchNorm goes on judging by the
    batch, as in the combined model of Keras before TensorFlow 2; only the moving statistics stand
    still. Spectral norm goes on with its power iteration, which changes no weight.
    """
    norms = [
        module
        for module in discriminator.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    momenta = [norm.momentum for norm in norms]
    discriminator.requires_grad_(False)
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        discriminator.requires_grad_(True)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def update_discriminator(state: TrainState, loss: Tensor, config: TrainConfig) -> None:
    """One optimizer step of the discriminator down the gradient of a scalar loss."""
    state.discriminator_optimizer.zero_grad()
    backward(loss, state.discriminator)
    apply_gradients(state.discriminator, state.discriminator_optimizer, config)
