"""The training loop and its steps: what happens to a batch, in the order it happens."""

import copy
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn

from gantrain.batches import DataOrder, load_batch, random_latents, stream_seed
from gantrain.checkpoint import TrainState, newest_good_checkpoint, save_checkpoint
from gantrain.config import TrainConfig
from gantrain.datasets import Dataset, load_dataset
from gantrain.errors import Interrupted, RunError
from gantrain.image_decoding import available_cpus
from gantrain.latents import draw_latents
from gantrain.losses import (
    gradient_penalties,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from gantrain.networks import create_networks
from gantrain.reporting import (
    RunningMeans,
    StatusLine,
    Stopwatch,
    append_metrics,
    save_grid,
    truncate_metrics,
)
from gantrain.run_directory import DataFacts, RunDirectory, check_same_run, open_run
from gantrain.sampling import averaged_generator, generate_pixels

logger = logging.getLogger(__name__)

_SAMPLE_SEEDS = np.arange(64, dtype=np.uint64)

StepLosses = dict[str, Tensor]  # name -> scalar, still on the device


def train(config: TrainConfig) -> TrainState:
    """Train from the newest checkpoint of the run, or from the start, to `config.total_images`.

    Raises:
        DatasetError: the data cannot be used.
        RunError: the folder, the device or the numbers do not allow to go on.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    device = choose_device(config.device)
    torch.set_num_threads(config.threads or available_cpus())
    dataset = load_dataset(
        config.data,
        image_size=config.image_size,
        channels=config.channels,
        skip_bad_files=config.skip_bad_files,
    )
    config = settle_config(config, dataset)
    facts = DataFacts(dataset.fingerprint(), len(dataset.images), dataset.kind, dataset.class_names)
    with open_run(config.run_dir) as run, stop_requests() as stop:
        check_same_run(run, config, facts)
        run.write(config, facts)
        state = create_state(config, device)
        restore_newest(state, run)
        images = torch.from_numpy(dataset.images).to(device)
        order = DataOrder(len(images), config.batch_size, config.seed)
        noise = torch.Generator(device)
        log_every = config.log_every or max(config.total_images // 200, 1)
        sample_every = config.sample_every or max(config.total_images // 20, 1)
        checkpoint_every = config.checkpoint_every or max(config.total_images // 20, 1)
        losses = RunningMeans()
        clock = Stopwatch(state.images_seen, state.seconds)
        with StatusLine(state.images_seen, config.total_images) as status:
            while state.images_seen < config.total_images:
                noise.manual_seed(stream_seed(config.seed, state.images_seen))
                indices = torch.from_numpy(order.indices(state.images_seen)).to(device)
                real_images = load_batch(images, indices, config.flip == "on", noise)
                losses.add(discriminator_step(state, real_images, config, noise))
                losses.add(generator_step(state, real_images, config, noise))
                state.images_seen += config.batch_size
                update_ema(state, config)
                status.advance(config.batch_size)

                finished = state.images_seen >= config.total_images
                interrupted = stop.is_set() and not finished
                checkpoint_due = due(state, checkpoint_every, config) or interrupted
                if due(state, log_every, config) or checkpoint_due:
                    means = losses.take()
                    check_finite(means, state)
                    state.seconds = clock.seconds()
                    row = clock.row(state.images_seen, means)
                    append_metrics(run.metrics_file, row)
                    status.report(row)
                if due(state, sample_every, config):
                    save_samples(state, config, run)
                if checkpoint_due:
                    save_checkpoint(state, run.checkpoints, config.keep_checkpoints)
                if interrupted:
                    raise Interrupted(
                        f"interrupted after {state.images_seen} images; a checkpoint was saved in "
                        f"{run.checkpoints}: give the same command again to resume"
                    )
    return state


def choose_device(asked: str) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one.

    Raises:
        RunError: CUDA was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise RunError(
            "--device cuda: PyTorch finds no CUDA device; use --device auto, or install a driver "
            "and a CUDA build of torch"
        )
    return torch.device("cuda" if available and asked != "cpu" else "cpu")


def settle_config(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """Replace what was left to the data by what the data say.

    Raises:
        RunError: there are fewer images than a batch holds.
    """
    count, channels, size, _ = dataset.images.shape
    if count < config.batch_size:
        raise RunError(
            f"--batch-size {config.batch_size}: the data have only {count} images; "
            "use a smaller batch or more images"
        )
    # The same picture at twice the size spreads the gradient over four times the pixels and has a
    # quarter of its squared norm, so an even hand needs four times the weight.
    weight = 0.5 * (size / 32) ** 2
    return config.model_copy(
        update={
            "image_size": size,
            "channels": channels,
            "flip": config.flip if config.flip != "auto" else ("on" if channels == 3 else "off"),
            "r1_weight": weight if config.r1_weight is None else config.r1_weight,
            "r2_weight": weight if config.r2_weight is None else config.r2_weight,
        }
    )


def create_state(config: TrainConfig, device: torch.device) -> TrainState:
    """Networks, averaged generator and optimizers at the start of a run."""
    assert config.image_size is not None
    assert config.channels is not None
    networks = create_networks(
        image_size=config.image_size,
        channels=config.channels,
        latent_dim=config.latent_dim,
        filters=config.filters,
        seed=config.seed,
    )
    generator, discriminator = (network.to(device) for network in networks)

    def adam(network: nn.Module) -> torch.optim.Adam:
        betas = (config.beta1, config.beta2)
        return torch.optim.Adam(network.parameters(), lr=config.lr, betas=betas, fused=True)

    return TrainState(
        generator=generator,
        discriminator=discriminator,
        generator_ema=copy.deepcopy(generator).requires_grad_(False),
        generator_optimizer=adam(generator),
        discriminator_optimizer=adam(discriminator),
    )


def restore_newest(state: TrainState, run: RunDirectory) -> None:
    """Take over the newest good checkpoint of the run, where there is one."""
    values = newest_good_checkpoint(run.checkpoints)
    if values is not None:
        state.load_state_dict(values)
        logger.info("resuming %s at %d images", run.path, state.images_seen)
    truncate_metrics(run.metrics_file, state.images_seen)


def discriminator_step(
    state: TrainState, real_images: Tensor, config: TrainConfig, noise: torch.Generator
) -> StepLosses:
    """Update the discriminator once; the generator's weights are left alone."""
    count = len(real_images)
    with torch.no_grad():
        fake_images = state.generator(random_latents(count, config.latent_dim, noise))
    # One pass over both: without BatchNorm each logit depends on its own image alone.
    assert config.r1_weight is not None
    assert config.r2_weight is not None
    images = torch.cat([real_images, fake_images]).requires_grad_()  # penalties differentiate by it
    logits = state.discriminator(images)
    real_logits, fake_logits = logits[:count], logits[count:]
    loss = relativistic_discriminator_loss(real_logits, fake_logits)
    penalties = gradient_penalties(logits, images)
    r1_penalty, r2_penalty = penalties[:count].mean(), penalties[count:].mean()
    penalty = config.r1_weight / 2 * r1_penalty + config.r2_weight / 2 * r2_penalty
    apply_gradients(loss + penalty, state.discriminator_optimizer)
    return {
        "discriminator_loss": loss.detach(),
        "r1_penalty": r1_penalty.detach(),
        "r2_penalty": r2_penalty.detach(),
        "real_logits": real_logits.detach().mean(),
        "fake_logits": fake_logits.detach().mean(),
    }


def generator_step(
    state: TrainState, real_images: Tensor, config: TrainConfig, noise: torch.Generator
) -> StepLosses:
    """Update the generator once, against the discriminator's judgement of the same real images."""
    with torch.no_grad():
        real_logits = state.discriminator(real_images)
    state.discriminator.requires_grad_(False)  # spares its weight gradients, a third of the pass
    fake_images = state.generator(random_latents(len(real_images), config.latent_dim, noise))
    loss = relativistic_generator_loss(real_logits, state.discriminator(fake_images))
    apply_gradients(loss, state.generator_optimizer)
    state.discriminator.requires_grad_(True)
    return {"generator_loss": loss.detach()}


def apply_gradients(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step down the gradient of a scalar loss."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def update_ema(state: TrainState, config: TrainConfig) -> None:
    """Move the averaged generator's weights towards the generator's."""
    half_life = min(config.ema_half_life_images, config.ema_ramp_up * state.images_seen)
    decay = 0.5 ** (config.batch_size / half_life)
    pairs = zip(state.generator_ema.parameters(), state.generator.parameters(), strict=True)
    with torch.no_grad():
        for averaged, current in pairs:
            averaged.lerp_(current, 1 - decay)


def due(state: TrainState, every: int, config: TrainConfig) -> bool:
    """Whether the last step crossed a multiple of an interval in images, or ended the run."""
    before = state.images_seen - config.batch_size
    return before // every < state.images_seen // every or (
        state.images_seen >= config.total_images
    )


def check_finite(means: dict[str, float], state: TrainState) -> None:
    """Stop a run whose numbers have left the reals, before they get into a checkpoint.

    Weights can be the first: a finite loss may have a gradient that is not.

    Raises:
        RunError: a loss, a penalty or a weight is not finite; names it and the first such weight.
    """
    loss = next((name for name, mean in means.items() if not np.isfinite(mean)), None)
    weights = next(
        (
            f"{network}.{name}"
            for network in ("discriminator", "generator", "generator_ema")
            for name, values in getattr(state, network).named_parameters()
            if not values.isfinite().all()
        ),
        None,
    )
    if loss is None and weights is None:
        return
    what = f"{loss} became {means[loss]}" if loss else "weights became nan or infinite"
    raise RunError(
        f"{what} by {state.images_seen} images (first weights not finite: "
        f"{weights or 'none of the weights yet'}); the last checkpoint before it is kept. A lower "
        "--lr or larger --r1-weight and --r2-weight steady a run; they need a new --run-dir"
    )


def save_samples(state: TrainState, config: TrainConfig, run: RunDirectory) -> None:
    """Write the averaged generator's images of the first 64 seeds."""
    generator = averaged_generator(state.generator_ema, config.latent_dim)
    pixels = generate_pixels(generator, draw_latents(_SAMPLE_SEEDS, config.latent_dim))
    save_grid(run.samples / f"{state.images_seen:012d}.png", pixels)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second signal acts as if nobody listened."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        logger.info("stopping after this step, to save first; once more stops at once")
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        restore()
