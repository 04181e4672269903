"""Is the flagship better than the recipe of 2015 after as many images, and does it stay so?

    python benchmarks/quality.py DATA... [--seeds 0-2] [--images 16000,32000,64000,128000]
                                 [--filters 32] [--runs DIR] [--record]

DATA are folders of MNIST-format files. For each data set, seed and recipe a generator is trained
with the preset's own settings but for the width, one thread each, and measured whenever it has seen
one of the numbers of images: Frechet distance, precision, recall and coverage of 10,000 samples, on
the features of one classifier for both (`gantrain evaluate`, one draw of samples). The last
checkpoint is the one after the most images, the best that with the least distance among those
measured. Real test images beside the same training images are the floor. A run that is there
already is not trained again, a measurement not made again. Seeds come one after the other, so that
what is there when it is stopped is whole. Prints a Markdown page, --record keeps it; exits with 1
where a bar is missed.
"""

import argparse
import datetime as dt
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from gantrain.evaluation import choose_space, evaluate_sampler
from gantrain.evaluation_data import choose_reals, load_real_data
from gantrain.evaluation_results import Evaluation
from gantrain.presets import resolve
from gantrain.sampling import open_sampler
from gantrain.seed_ranges import parse_seeds
from gantrain.training import train
from gantrain.yardstick import Yardstick

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECIPES = ("dcgan", "dcgan-2015")
MEASURED = ("frechet_distance", "precision", "recall", "coverage", "class_distance")
BEST_RATIO, LAST_RATIO = 1 / 2, 1 / 3  # of the flagship's distance to that of the other recipe
STABLE_RATIO = 1.05  # of the flagship's distance to its best, after four times the images


@dataclass(frozen=True)
class Plan:
    """What is trained and measured."""

    images: list[int]  # ascending
    filters: int
    runs: Path


class Yardsticks:
    """The yardstick of each data set, made when first needed: it looks at 20,000 images."""

    def __init__(self) -> None:
        self._made: dict[str, Yardstick] = {}

    def measure(self, run_dir: Path, source: str) -> Evaluation:
        """Measure a run's newest checkpoint."""
        sampler = open_sampler(run_dir)
        if source not in self._made:
            data = load_real_data(source, sampler)
            reals = choose_reals(data, None)
            self._made[source] = Yardstick(data, reals, choose_space(data, None))
        return evaluate_sampler(sampler, run_dir.name, self._made[source], 1)


def run_seed(
    source: str, recipe: str, seed: int, plan: Plan, yardsticks: Yardsticks
) -> list[Evaluation]:
    """Train to each number of images in turn and measure there."""
    run_dir = plan.runs / f"{Path(source).name}-{recipe}-{seed}"
    found = []
    for images in plan.images:
        path = plan.runs / f"{run_dir.name}-{images}.json"
        if path.exists():
            found.append(Evaluation.model_validate_json(path.read_bytes()))
            continue
        train(resolve(settings_of(source, recipe, seed, images, plan, run_dir)))
        found.append(yardsticks.measure(run_dir, source))
        path.write_text(found[-1].to_json())
        print(row(found[-1]), file=sys.stderr, flush=True)
    return found


def settings_of(
    source: str, recipe: str, seed: int, images: int, plan: Plan, run_dir: Path
) -> dict[str, Any]:
    """The preset's settings; what is written down on the way does not depend on where it ends."""
    every = plan.images[0]
    return {
        "preset": recipe,
        "data": source,
        "seed": seed,
        "filters": plan.filters,
        "total_images": images,
        "run_dir": run_dir,
        "threads": 1,
        "tensorboard": False,
        **dict.fromkeys(("log_every", "sample_every", "diagnose_every", "checkpoint_every"), every),
    }


def distance(evaluation: Evaluation) -> float:
    """The Frechet distance of an evaluation."""
    return evaluation.measurements["frechet_distance"].mean


def row(evaluation: Evaluation) -> str:
    """A measurement as a row of the table."""
    values = [format(evaluation.measurements[name].mean, ".4g") for name in MEASURED]
    facts = evaluation.generator
    return f"| {facts.source} | {facts.images_seen:,} | {' | '.join(values)} |"


def floor_row(source: str, evaluation: Evaluation) -> str:
    """What real test images score, as a row of the table."""
    floors = [evaluation.measurements[name].floor for name in MEASURED]
    values = ["-" if floor is None else format(floor, ".4g") for floor in floors]
    return f"| {Path(source).name}, real | - | {' | '.join(values)} |"


Found = dict[str, dict[int, list[Evaluation]]]  # recipe -> seed -> in order of images


def judge(source: str, found: Found) -> Iterator[tuple[str, bool]]:
    """Each bar as a row of the table of bars, and whether the mean over seeds meets it."""
    name = Path(source).name
    flagship, other = found["dcgan"], found["dcgan-2015"]
    choices: list[tuple[str, float, Callable[[list[float]], float]]] = [
        ("best", BEST_RATIO, min),
        ("last", LAST_RATIO, itemgetter(-1)),
    ]
    for which, bar, choose in choices:
        ratios = [
            choose([*map(distance, flagship[seed])]) / choose([*map(distance, other[seed])])
            for seed in flagship
        ]
        yield bar_row(f"{name}: distance over that of `dcgan-2015`, {which}", bar, ratios)
    ratios = []
    for runs in flagship.values():
        best = min(runs, key=distance)
        later = [
            each for each in runs if each.generator.images_seen >= 4 * best.generator.images_seen
        ]
        ratios += [distance(later[0]) / distance(best)] if later else []
    if ratios:
        yield bar_row(f"{name}: after four times the images over the best", STABLE_RATIO, ratios)
    else:
        what = f"{name}: after four times the images over the best"
        yield f"| {what} | at most {STABLE_RATIO:.2f} | not seen: still improving | no |", False


def bar_row(what: str, bar: float, ratios: list[float]) -> tuple[str, bool]:
    """One row of the table of bars."""
    mean = statistics.mean(ratios)
    met = mean <= bar
    found = f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} seeds)"
    return f"| {what} | at most {bar:.2f} | {found} | {'yes' if met else 'no'} |", met


def render_page(plan: Plan, accuracies: list[str], bars: list[str], rows: list[str]) -> str:
    """The result as Markdown."""
    lines = [
        f"# The flagship beside the recipe of 2015, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/quality.py {' '.join(map(shorten, sys.argv[1:]))}`",
        f"- commit {commit()}, torch {torch.__version__}, Python {platform.python_version()}",
        f"- {processor()}, {os.cpu_count()} CPUs, shared with other jobs; one thread a run",
        f"- both with {plan.filters} filters, each with its preset's own settings otherwise",
        *(f"- {accuracy}" for accuracy in accuracies),
        "- no number here is an FID: distances are on that classifier's features",
        "",
        "| bar | value | measured | met |",
        "|---|---|---|---|",
        *bars,
        "",
        f"| run | images seen | {' | '.join(name.replace('_', ' ') for name in MEASURED)} |",
        f"|---|---|{'---|' * len(MEASURED)}",
        *rows,
    ]
    return "\n".join([*lines, ""])


def shorten(argument: str) -> str:
    """An argument as it is written down: of a path the name alone."""
    return Path(argument).name if argument.startswith("/") else argument


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    match = re.search(r"model name\s*:\s*(.+)", text)
    return match[1].strip() if match else platform.machine()


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", help="folders of MNIST-format files")
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2))
    parser.add_argument("--images", default="16000,32000,64000,128000")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    images = sorted(int(count) for count in arguments.images.split(","))
    plan = Plan(images, arguments.filters, arguments.runs)
    plan.runs.mkdir(parents=True, exist_ok=True)
    yardsticks = Yardsticks()
    all_found: dict[str, Found] = {source: {r: {} for r in RECIPES} for source in arguments.data}
    for seed in map(int, arguments.seeds):
        for source, found in all_found.items():
            for recipe in RECIPES:
                found[recipe][seed] = run_seed(source, recipe, seed, plan, yardsticks)
    accuracies, bars, rows, all_met = [], [], [], True
    for source, found in all_found.items():
        first = next(iter(found["dcgan"].values()))[0]
        facts = first.features
        accuracies.append(f"{Path(source).name}: {facts.kind}, {facts.accuracy:.2%} right")
        for line, met in judge(source, found):
            bars.append(line)
            all_met = all_met and met
        rows.append(floor_row(source, first))
        rows += [row(one) for runs in found.values() for seed in runs for one in runs[seed]]
    page = render_page(plan, accuracies, bars, rows)
    print(page)
    if arguments.record:
        hardware = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
        path = RESULTS / f"quality_{hardware}_{dt.date.today()}.md"
        path.write_text(page, encoding="utf-8")
        print(path)
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
