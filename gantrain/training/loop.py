"""The training loop: what happens to a batch and when what is due, in the order it happens."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gantrain.checkpoint import (
    TrainState,
    discard_checkpoint,
    newest_good_checkpoint,
    save_checkpoint,
)
from gantrain.config import TrainConfig
from gantrain.config_rules import network_shape
from gantrain.cpus import usable_cpus
from gantrain.data.datasets import load_source
from gantrain.data.point_sets import PointSet
from gantrain.diagnosis.advice import say_how_to_go_on
from gantrain.errors import Interrupted, RunError
from gantrain.networks import GENERATORS, create_networks
from gantrain.optimizers import ROLLBACK_LR, create_optimizer, set_rates, update_ema
from gantrain.ranks import (
    Ranks,
    agree,
    average_row,
    broadcast,
    join_ranks,
    read_ranks,
    wait_for_all,
)
from gantrain.run_directory import DataFacts, RunDirectory, check_same_run, open_run
from gantrain.run_log import StatusLine, Stopwatch
from gantrain.training.batches import DataOrder, stream_seed
from gantrain.training.determinism import repeatable
from gantrain.training.out_of_memory import memory_errors_explained
from gantrain.training.recorded_steps import CudaRecorder, RecordedStep
from gantrain.training.run_monitor import RunMonitor
from gantrain.training.run_setup import (
    check_place,
    check_share,
    describe_data,
    load_labels,
    settle_config,
    tell_left_out,
)
from gantrain.training.shared_batch_norm import share_batch_norm
from gantrain.training.step_means import StepMeans, gradient_norm
from gantrain.training.steps import Feed, StepResults, take_step
from gantrain.training.stop_requests import stop_requests

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


def train(config: TrainConfig) -> TrainState:
    """Train from the newest checkpoint of the run, or from the start, to `config.total_images`.

    Raises:
        DatasetError: the data cannot be used.
        RunError: the folder, the device or the numbers do not allow to go on.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    place = read_ranks()
    device = choose_device(config.device, place.local_rank if place.count > 1 else None)
    torch.set_num_threads(config.threads or max(usable_cpus() // place.local_count, 1))
    data = load_source(
        config.data,
        image_size=config.image_size,
        channels=config.channels,
        skip_bad_files=config.skip_bad_files,
        limit=config.max_data_images,
    )
    examples = data.points if isinstance(data, PointSet) else data.images
    config = settle_config(config, data)
    check_share(config.batch_size, place.count)
    check_place(config, data)
    facts = describe_data(data)
    with (
        join_ranks(device) as ranks,
        hold_run(config, facts, ranks) as run,
        stop_requests() as stop,
        memory_errors_explained(config.batch_size, config.filters),
        repeatable(config.deterministic),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        tell_left_out(data)
        state = create_state(config, device, len(facts.class_names))
        restore_newest(state, run)
        feed = Feed(
            examples=torch.from_numpy(examples).to(device),
            labels=load_labels(data, config, device),
            lowest=GENERATORS[config.generator or ""].lowest,
            share=ranks.share(config.batch_size),
        )
        step = create_step(state, feed, config, ranks)
        log_every = config.log_every or max(config.total_images // 200, 1)
        sample_every = config.sample_every or max(config.total_images // 20, 1)
        diagnose_every = config.diagnose_every or max(config.total_images // 20, 1)
        checkpoint_every = config.checkpoint_every or max(config.total_images // 20, 1)
        order = data_order(len(examples), config, state, device)
        means = StepMeans(config.loss)
        clock = Stopwatch(state.images_seen, state.seconds)
        monitor = RunMonitor(run, config, data, state.images_seen) if ranks.first else None
        with StatusLine(state.images_seen, config.total_images, shown=ranks.first) as status:
            while state.images_seen < config.total_images:
                start, length = state.images_seen, config.images_per_step
                positions = range(start, start + length, config.batch_size)
                indices = torch.stack([order.indices(position) for position in positions])
                set_rates(state, config)
                for results in step(stream_seed(order.seed, state.images_seen), indices):
                    means.add(results)
                state.images_seen += config.images_per_step
                update_ema(state, config)
                status.advance(config.images_per_step)

                finished = state.images_seen >= config.total_images
                interrupted = agree(stop.is_set()) and not finished
                checkpoint_due = due(state, checkpoint_every, config) or interrupted
                samples_due = due(state, sample_every, config)
                diagnosis_due = due(state, diagnose_every, config)
                if due(state, log_every, config) or checkpoint_due or diagnosis_due:
                    row = take_row(state, means, clock)
                    try:
                        check_bounds(row, state)
                    except Diverged as diverged:
                        if monitor:  # before it is known whether the run ends here
                            monitor.record_divergence(row, diverged.what)
                        before = state.images_seen
                        roll_back(state, run, config, diverged, len(facts.class_names))
                        order = data_order(len(examples), config, state, device)
                        step = create_step(state, feed, config, ranks)
                        status.advance(state.images_seen - before)
                        clock.go_back(state.images_seen)
                        if monitor:
                            monitor.roll_back(state.images_seen, str(diverged))
                        continue
                    if monitor and diagnosis_due:
                        row |= monitor.diagnose(state, row, clock, urgent=finished)
                    if monitor:
                        monitor.record(row)
                        status.report(row)
                if monitor and samples_due:
                    monitor.save_samples(state)
                if checkpoint_due:
                    if ranks.first:
                        save_checkpoint(state, run.checkpoints, config.keep_checkpoints)
                    state.rolled_back_to = None
                if interrupted:
                    wait_for_all()  # who leaves first must not have the others killed while saving
                    raise Interrupted(
                        f"interrupted after {state.images_seen} images; a checkpoint was saved in "
                        f"{run.checkpoints}: give the same command again to resume"
                    )
        wait_for_all()
    return state


@contextmanager
def hold_run(config: TrainConfig, facts: DataFacts, ranks: Ranks) -> Iterator[RunDirectory]:
    """Hold the run's folder, where the settings are then written: the first rank for all.

    Raises:
        RunError: it cannot be held, or holds another run, or a rank has other data.
    """
    if not ranks.first:
        fingerprint = broadcast("")
        if facts.fingerprint != fingerprint:
            raise RunError(
                f"rank {ranks.rank} has other data ({facts.fingerprint[:19]}...) than the first "
                f"one ({fingerprint[:19]}...): give all ranks the same --data"
            )
        yield RunDirectory(config.run_dir)
        return
    with open_run(config.run_dir) as run:
        check_same_run(run, config, facts)
        run.write(config, facts)
        broadcast(facts.fingerprint)
        yield run


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


def create_state(config: TrainConfig, device: torch.device, class_count: int = 0) -> TrainState:
    """Networks, averaged generator and optimizers at the start of a run."""
    assert config.generator is not None
    assert config.discriminator is not None
    networks = create_networks(
        config.generator,
        config.discriminator,
        network_shape(config, class_count),
        seed=config.seed,
        spectral_norm=config.spectral_norm,
    )
    # Convolutions of large maps are quicker with the channels innermost, others no slower.
    generator, discriminator = (
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in networks
    )
    averaging = config.ema_half_life_images > 0
    generator_ema = copy.deepcopy(generator).requires_grad_(False) if averaging else generator
    for network in (generator, discriminator):
        share_batch_norm(network)
    return TrainState(
        generator=generator,
        discriminator=discriminator,
        generator_ema=generator_ema,
        generator_optimizer=create_optimizer(generator, config.generator_lr, config),
        discriminator_optimizer=create_optimizer(discriminator, config.discriminator_rate, config),
    )


def create_step(
    state: TrainState, feed: Feed, config: TrainConfig, ranks: Ranks
) -> Callable[[int, Tensor], list[StepResults]]:
    """What takes a step, given the seed of its noise and the indices of its batches.

    On a GPU it is recorded, if asked for and if no other rank takes part.
    """
    device = feed.examples.device
    noise = torch.Generator(device)  # the same on all ranks
    own_noise = torch.Generator(device) if ranks.count > 1 else noise

    def seed_noise(seed: int) -> None:
        noise.manual_seed(seed)
        if own_noise is not noise:
            own_noise.manual_seed(stream_seed(seed, ranks.rank))
        torch.manual_seed(own_noise.initial_seed())  # dropout draws from no other generator

    def step(indices: Tensor) -> list[StepResults]:
        return take_step(state, feed, indices, config, noise, own_noise)

    def seeded_step(seed: int, indices: Tensor) -> list[StepResults]:
        seed_noise(seed)
        return step(indices)

    if device.type != "cuda" or ranks.count > 1 or not config.cuda_graph:
        return seeded_step
    return RecordedStep(step, state, seed_noise, CudaRecorder(device, [noise]))


def data_order(
    count: int, config: TrainConfig, state: TrainState, device: torch.device
) -> DataOrder:
    """The order of the data, another one after each rollback."""
    seed = stream_seed(config.seed, -state.rollbacks) if state.rollbacks else config.seed
    return DataOrder(count, config.batch_size, seed, device)


def find_newest(run: RunDirectory) -> dict[str, Any] | None:
    """The newest good checkpoint that the first rank finds, for all ranks."""
    return broadcast(newest_good_checkpoint(run.checkpoints) if read_ranks().first else None)


def restore_newest(state: TrainState, run: RunDirectory) -> None:
    """Take over the newest good checkpoint, where there is one."""
    values = find_newest(run)
    if values is not None:
        state.load_state_dict(values)
        logger.info("resuming %s at %d images", run.path, state.images_seen)


def roll_back(
    state: TrainState,
    run: RunDirectory,
    config: TrainConfig,
    diverged: Diverged,
    class_count: int = 0,
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
        vain = f"{_MAX_ROLLBACKS} rollbacks have not helped"
        raise RunError(f"{diverged}; {vain}. {how}") from diverged
    if state.rolled_back_to is not None and read_ranks().first:
        # Nothing good has been saved since the last time: what was gone back to leads astray.
        discard_checkpoint(run.checkpoints, state.rolled_back_to)
    values = find_newest(run)
    if values is None:  # it diverged before the first one
        device = next(state.generator.parameters()).device
        values = create_state(config, device, class_count).state_dict()
    state.load_state_dict(values)
    state.rollbacks, state.rolled_back_to = rollbacks, state.images_seen
    logger.warning(
        "%s. Rolling back to %d images with %g of the learning rate and another order of the data "
        "(%d of %d)",
        *(diverged, state.images_seen, ROLLBACK_LR**rollbacks, rollbacks, _MAX_ROLLBACKS),
    )


def take_row(state: TrainState, means: StepMeans, clock: Stopwatch) -> dict[str, float]:
    """A row of metrics for this moment, of all ranks; the run's seconds are brought up to date."""
    values = average_row(means.take())
    state.seconds = clock.seconds()
    return {
        **clock.row(state.images_seen, values),
        "discriminator_gradient": gradient_norm(state.discriminator).item(),
        "generator_gradient": gradient_norm(state.generator).item(),
        "lr": float(state.generator_optimizer.param_groups[0]["lr"]),
        "rollbacks": state.rollbacks,
    }


def due(state: TrainState, every: int, config: TrainConfig) -> bool:
    """Whether the last step crossed a multiple of an interval in images, or ended the run."""
    before = state.images_seen - config.images_per_step
    return before // every < state.images_seen // every or (
        state.images_seen >= config.total_images
    )


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
