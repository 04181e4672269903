"""The training loop: what happens to a batch and when what is due, in the order it happens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gantrain.checkpoint import TrainState, checkpoint_path, save_checkpoint
from gantrain.config import TrainConfig
from gantrain.config_rules import network_kinds
from gantrain.cpus import usable_cpus
from gantrain.data.datasets import load_source, tell_left_out
from gantrain.errors import Interrupted, RunError
from gantrain.optimizers import set_rates, update_ema
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
from gantrain.training.determinism import full_float32, repeatable
from gantrain.training.out_of_memory import memory_errors_explained, upload
from gantrain.training.recorded_steps import CudaRecorder, RecordedStep
from gantrain.training.recovery import (
    Diverged,
    check_bounds,
    refuse_lost_checkpoints,
    restore_newest,
    roll_back,
)
from gantrain.training.run_monitor import RunMonitor
from gantrain.training.run_quality import RunQuality
from gantrain.training.run_setup import (
    LONGEST_UNSAVED,
    check_place,
    check_share,
    choose_device,
    create_state,
    describe_data,
    interval,
    load_labels,
    settle_config,
    tell_checkpoints,
)
from gantrain.training.step_means import StepMeans, gradient_norm
from gantrain.training.steps import Feed, StepResults, take_step
from gantrain.training.stop_requests import stop_requests

_DROPOUT = -1  # the stream of a step's noise from which that is drawn; others are ranks


def train(config: TrainConfig) -> TrainState:
    """Train from the newest checkpoint of the run, or from the start, to `config.total_images`.

    Raises:
        DatasetError: the data cannot be used.
        RunError: the folder, the device or the numbers do not allow to go on.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; a checkpoint was saved.
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
    config = settle_config(config, data)
    check_share(config.batch_size, place.count)
    check_place(config, data)
    facts = describe_data(data)
    with (
        join_ranks(device) as ranks,
        hold_run(config, facts, ranks) as run,
        stop_requests() as stop,
        memory_errors_explained(config, place.count),
        full_float32(),
        repeatable(config.deterministic),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        tell_left_out(data)
        state = create_state(config, device, len(facts.class_names))
        restore_newest(state, run)
        feed = Feed(
            examples=upload(torch.from_numpy(data.examples), device),
            labels=load_labels(data, config, device),
            lowest=network_kinds(config)[0].lowest,
            share=ranks.share(config.batch_size),
        )
        step = create_step(state, feed, config, ranks)
        log_every = config.log_every or max(config.total_images // 200, 1)
        sample_every = interval(config.sample_every, config)
        diagnose_every = interval(config.diagnose_every, config)
        checkpoint_every = interval(config.checkpoint_every, config)
        order = data_order(len(data.examples), config, state, device)
        means = StepMeans(config.loss)
        if ranks.first:
            tell_checkpoints(config, state.images_seen, checkpoint_every)
        clock = Stopwatch(state.images_seen, state.seconds)
        saved_at = state.seconds
        monitor = RunMonitor(run, config, data, state.images_seen) if ranks.first else None
        quality = None
        if ranks.first and config.evaluate_every:
            quality = RunQuality(run, config, data)
            if state.images_seen and due(state, config.evaluate_every, config):
                quality.catch_up(checkpoint_path(run.checkpoints, state.images_seen))
        with StatusLine(state.images_seen, config.total_images, shown=ranks.first) as status:
            while state.images_seen < config.total_images:
                indices = order.indices(state.images_seen).view(-1, config.batch_size)
                set_rates(state, config)
                for results in step(stream_seed(order.seed, state.images_seen), indices):
                    means.add(results)
                state.images_seen += config.images_per_step
                update_ema(state, config)
                status.advance(config.images_per_step)

                finished = state.images_seen >= config.total_images
                interrupted = agree(stop.is_set()) and not finished
                row_due = due(state, log_every, config)
                checkpoint_due = due(state, checkpoint_every, config) or interrupted
                if row_due and config.checkpoint_every is None:
                    late = agree(clock.seconds() - saved_at >= LONGEST_UNSAVED)
                    checkpoint_due = checkpoint_due or late
                samples_due = due(state, sample_every, config)
                diagnosis_due = due(state, diagnose_every, config)
                evaluation_due = (
                    config.evaluate_every is not None
                    and due(state, config.evaluate_every, config)
                    and not interrupted
                )
                checkpoint_due = checkpoint_due or evaluation_due
                if row_due or checkpoint_due or samples_due or diagnosis_due:
                    run.check_held()
                if row_due or checkpoint_due or diagnosis_due:
                    row = take_row(state, means, clock)
                    try:
                        check_bounds(row, state)
                    except Diverged as diverged:
                        if monitor:  # before it is known whether the run ends here
                            monitor.record_divergence(row, diverged.what)
                        before = state.images_seen
                        roll_back(state, run, config, diverged, len(facts.class_names))
                        order = data_order(len(data.examples), config, state, device)
                        step = create_step(state, feed, config, ranks)
                        status.advance(state.images_seen - before)
                        clock.go_back(state.images_seen)
                        if monitor:
                            monitor.roll_back(state.images_seen, str(diverged))
                        continue
                    if monitor:
                        if diagnosis_due:
                            row |= monitor.diagnose(state, row, clock, urgent=finished)
                        monitor.record(row)
                        status.report(row)
                if monitor and samples_due:
                    monitor.save_samples(state)
                if checkpoint_due:
                    state.rolled_back_to = None
                    if ranks.first:
                        path = save_checkpoint(state, run.checkpoints, config.keep_checkpoints)
                    if quality and evaluation_due:
                        quality.evaluate(path)
                    saved_at = clock.seconds()
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
        RunError: it cannot be held, or holds another run or one that has lost its checkpoints, or a
            rank has other data.
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
        refuse_lost_checkpoints(run)
        run.write(config, facts)
        broadcast(facts.fingerprint)
        yield run


def create_step(
    state: TrainState, feed: Feed, config: TrainConfig, ranks: Ranks
) -> Callable[[int, Tensor], list[StepResults]]:
    """What takes a step, given the seed of its noise and the indices of its batches.

    On a GPU it is recorded, if asked for and if no other rank takes part.
    """
    device = feed.examples.device
    noise = torch.Generator(device)  # the same on all ranks
    own_noise = torch.Generator(device) if ranks.count > 1 else noise
    # Dropout draws from no other generator. `torch.manual_seed` seeds those of all kinds of device,
    # and formats a stack for each that is not there: 0.3 ms of each step.
    default = torch.default_generator
    if device.type == "cuda":
        default = torch.cuda.default_generators[device.index]

    def seed_noise(seed: int) -> None:
        noise.manual_seed(seed)
        if own_noise is not noise:
            own_noise.manual_seed(stream_seed(seed, ranks.rank))
        # Of another seed, or on a GPU both would draw the same numbers.
        default.manual_seed(stream_seed(own_noise.initial_seed(), _DROPOUT))

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
    return DataOrder(count, config.images_per_step, seed, device)


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
