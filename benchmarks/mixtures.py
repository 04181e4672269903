"""Does the flagship reach all modes of the two-dimensional mixtures, evenly and sharply?

    python benchmarks/mixtures.py [--data ring8,grid25] [--seeds 10-19] [--plain-seeds 10-12]
                                  [--runs DIR] [--record]

For each seed it is `gantrain train --data DATA --seed N`, on one thread, with no preset named. The
protocol is that of PacGAN (Lin et al. 2018): 2,500 samples, see `point_sets.mode_coverage`. As many
reals, drawn as often, are measured beside them: their high quality is the ceiling, their reverse KL
divergence the floor of what sampling alone shows. PacGAN's code leaves samples that are not of high
quality out of the divergence, so it is measured both ways, and both are judged. Samples that all
fell on the centres of modes would have high quality too, so the median distance from the nearest
centre is printed, in sigmas. `plain` trains the same networks by cross-entropy with the usual Adam,
without penalties and averaging. Recipe and bars were settled on seeds 0 to 3. A run that is there
already is not trained again. Prints a Markdown page, --record keeps it; exits with 1 where the
flagship misses a bar.
"""

import argparse
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from records import page_head, write_record

from gantrain.data.point_sets import POINT_SETS, ModeCoverage, PointSet, mode_coverage
from gantrain.latents import draw_latents
from gantrain.presets import resolve
from gantrain.sampling import generate, load_run_generator
from gantrain.seed_ranges import parse_seeds
from gantrain.training.loop import train

SAMPLES = 2500
FIRST_SEED = 1_000_000  # not the seeds of any committed picture
CEILING = 1 - math.exp(-4.5)  # high quality of the mixtures themselves
FLAGSHIP: dict[str, Any] = {}
PLAIN: dict[str, Any] = {
    "loss": "bce",
    "ema_half_life_images": 0,
    "lr": 2e-4,
    "discriminator_lr": 2e-4,
    "lr_decay": 0.0,
    "beta1": 0.5,
    "beta2": 0.999,
}


@dataclass(frozen=True)
class Bar:
    """What the runs of the flagship have to reach on the average; all modes in each of them."""

    high_quality: float  # at least
    reverse_kl: float  # at most, nats


BARS = {"ring8": Bar(0.98 * CEILING, 0.05), "grid25": Bar(0.96, 0.04)}


@dataclass(frozen=True)
class Measurement:
    """A run, or a draw of reals."""

    coverage: ModeCoverage
    good_reverse_kl: float  # nats, of the samples of high quality only; NaN where there are none
    median_distance: float  # of a sample from the nearest centre, in sigmas
    seconds: float = 0.0  # of training


def measure(samples: NDArray[np.float32], points: PointSet, seconds: float = 0) -> Measurement:
    """Measure samples [n, 2] against the modes of a mixture."""
    assert points.modes is not None
    distances = np.linalg.norm(samples[:, None] - points.modes[None], axis=2).min(axis=1)
    coverage = mode_coverage(samples, points.modes, points.sigma)
    good = samples[distances <= 3 * points.sigma]
    good_kl = mode_coverage(good, points.modes, points.sigma).reverse_kl if len(good) else math.nan
    return Measurement(coverage, good_kl, float(np.median(distances)) / points.sigma, seconds)


def measure_reals(points: PointSet, draws: int) -> list[Measurement]:
    """Disjoint draws of reals, as many as there are seeds (at most all reals)."""
    parts = np.split(points.points, range(SAMPLES, len(points.points), SAMPLES))
    return [measure(part, points) for part in parts[:draws]]


def run_seed(points: PointSet, settings: dict[str, Any], run_dir: Path) -> Measurement:
    """Train one run, or finish it, and measure its samples."""
    of_the_run = {"data": points.kind, "run_dir": run_dir, "threads": 1, "tensorboard": False}
    state = train(resolve({**settings, **of_the_run}))
    trained = load_run_generator(run_dir)
    seeds = np.arange(FIRST_SEED, FIRST_SEED + SAMPLES, dtype=np.uint64)
    samples = generate(trained.generator, draw_latents(seeds, trained.config.latent_dim))
    return measure(samples, points, state.seconds)


def measure_recipe(
    points: PointSet, recipe: str, settings: dict[str, Any], seeds: list[int], runs: Path
) -> list[Measurement]:
    """A run for each seed; each is told as soon as it is done."""
    measured = []
    for seed in seeds:
        run_dir = runs / f"{points.kind}-{recipe}-{seed}"
        measured.append(run_seed(points, {**settings, "seed": seed}, run_dir))
        print(row(points, recipe, str(seed), measured[-1:]), file=sys.stderr, flush=True)
    return measured


def row(points: PointSet, recipe: str, seed: str, measured: list[Measurement]) -> str:
    """A run, or the mean and the standard deviation of several, as a row of the table."""
    assert points.modes is not None
    complete = sum(one.coverage.modes == len(points.modes) for one in measured)
    modes = statistics.mean(one.coverage.modes for one in measured)
    several = f", all in {complete} of {len(measured)}" if len(measured) > 1 else ""
    return (
        f"| {points.kind} | {recipe} | {seed} | {modes:.4g} of {len(points.modes)}{several} | "
        f"{spread(measured, lambda one: one.coverage.high_quality, '.2%')} | "
        f"{spread(measured, lambda one: one.coverage.reverse_kl, '.4f')} | "
        f"{spread(measured, lambda one: one.good_reverse_kl, '.4f')} | "
        f"{spread(measured, lambda one: one.median_distance, '.2f')} | "
        f"{spread(measured, lambda one: one.seconds, '.0f')} |"
    )


def spread(measured: list[Measurement], value: Callable[[Measurement], float], form: str) -> str:
    """A value, or the mean and the standard deviation of several."""
    values = [value(one) for one in measured]
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


def judge(points: PointSet, bar: Bar, measured: list[Measurement]) -> Iterator[tuple[str, bool]]:
    """Each bar as a row of the table of bars, and whether it is met."""
    assert points.modes is not None
    modes, runs = len(points.modes), len(measured)
    complete = sum(one.coverage.modes == modes for one in measured)
    yield bar_row(
        points,
        "runs with all modes",
        f"{runs} of {runs}",
        f"{complete} of {runs}",
        complete == runs,
    )
    qualities = [one.coverage.high_quality for one in measured]
    alone = sum(quality >= bar.high_quality for quality in qualities)
    yield bar_row(
        points,
        "high quality",
        f"at least {bar.high_quality:.1%}",
        f"{statistics.mean(qualities):.2%} ({min(qualities):.2%} to {max(qualities):.2%}; "
        f"{alone} of {runs} runs alone)",
        statistics.mean(qualities) >= bar.high_quality,
    )
    for what, divergences in (
        ("reverse KL", [one.coverage.reverse_kl for one in measured]),
        ("KL, high quality only", [one.good_reverse_kl for one in measured]),
    ):
        alone = sum(divergence <= bar.reverse_kl for divergence in divergences)
        yield bar_row(
            points,
            what,
            f"at most {bar.reverse_kl}",
            f"{statistics.mean(divergences):.4f} ({min(divergences):.4f} to "
            f"{max(divergences):.4f}; {alone} of {runs} runs alone)",
            statistics.mean(divergences) <= bar.reverse_kl,
        )


def bar_row(points: PointSet, what: str, bar: str, found: str, met: bool) -> tuple[str, bool]:
    """One row of the table of bars."""
    return f"| {points.kind} | {what} | {bar} | {found} | {'yes' if met else 'NO'} |", met


def render_page(bars: list[str], rows: list[str]) -> str:
    """The result as Markdown."""
    lines = [
        *page_head(
            "Modes of the two-dimensional mixtures", ", shared with other jobs; one thread a run"
        ),
        f"- {SAMPLES:,} samples of each run; ranges are over seeds",
        "- KL: reverse, in nats; its KL: of the samples of high quality only, as in PacGAN's code",
        "- distance: median from the nearest centre, in sigmas; seconds: of training, by the clock",
        "",
        "| data | what | bar | flagship | met |",
        "|---|---|---|---|---|",
        *bars,
        "",
        "Each run, and mean ± standard deviation over runs, or over draws of reals:",
        "",
        "| data | recipe | seed | modes | high quality | KL | its KL | distance | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=",".join(BARS))
    parser.add_argument("--seeds", default="10-19")
    parser.add_argument("--plain-seeds", default="10-12")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs; unset: thrown away")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    seeds, plain_seeds = (
        [int(seed) for seed in parse_seeds(text)]
        for text in (arguments.seeds, arguments.plain_seeds)
    )
    bars, rows, all_met = [], [], True
    with tempfile.TemporaryDirectory() as folder:
        for data in arguments.data.split(","):
            points, runs = POINT_SETS[data](), arguments.runs or Path(folder)
            flagship = measure_recipe(points, "flagship", FLAGSHIP, seeds, runs)
            plain = measure_recipe(points, "plain", PLAIN, plain_seeds, runs)
            for line, met in judge(points, BARS[data], flagship):
                bars.append(line)
                all_met = all_met and met
            reals = measure_reals(points, len(seeds))
            rows.append(row(points, "real points", f"{len(reals)} draws", reals))
            for recipe, tried, measured in (
                ("flagship", seeds, flagship),
                ("plain", plain_seeds, plain),
            ):
                rows.append(row(points, recipe, "all", measured))
                each = zip(tried, measured, strict=True)
                rows += [row(points, recipe, str(seed), [one]) for seed, one in each]
    page = render_page(bars, rows)
    print(page)
    if arguments.record:
        print(write_record("mixtures", page))
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
