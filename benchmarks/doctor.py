"""Does the doctor tell the truth? Runs made to fail, and runs made to succeed, and what it says.

    python benchmarks/doctor.py [--cases NAME,...] [--seeds 1-3] [--runs FOLDER]
    python benchmarks/doctor.py --small [--seeds 1-3]
    python benchmarks/doctor.py --presets dcgan,keras-mlp --data SOURCE [--total-images N]

The first form trains every case below with every seed and compares the final diagnosis with what
has to come out; of a sound run no diagnosis on the way may be an alarm either. The second trains
every preset on the small data, and the third presets on any, and both only tell. Thresholds were
tuned on seed 0. Prints a Markdown table; exits with 1 where a diagnosis is wrong. A run that is
there already is not trained again, only judged again.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gantrain.diagnosis.diagnostics import Diagnosis, diagnose
from gantrain.errors import RunError
from gantrain.presets import resolve
from gantrain.run_directory import RunDirectory
from gantrain.run_log import read_metrics
from gantrain.seed_ranges import parse_seeds
from gantrain.training.loop import train

DIGITS = {"data": "digits", "filters": 8, "total_images": 40_000}
PLAIN = {"loss": "bce", "beta1": 0.5, "beta2": 0.999}
GRID = {"data": "grid25", "total_images": 256_000}
PLAIN_GRID = {
    **GRID,
    "loss": "bce",
    "generator_updates": 10,
    "lr": 1e-2,
    "discriminator_lr": 1e-2,
    "lr_decay": 0.0,
    "ema_half_life_images": 0,
    "total_images": 128_000,
}
OVERWHELMS, WEAK = "discriminator overwhelms", "discriminator too weak"
COLLAPSES = ("mode collapse", "partial mode collapse")


@dataclass(frozen=True)
class Case:
    """Settings of a run, and the findings of which one has to come out; none: no finding at all."""

    settings: dict[str, Any]
    expected: tuple[str, ...] = field(default=())


CASES = {
    "flagship-digits": Case(DIGITS),
    "flagship-grid25": Case(GRID),
    "ten-discriminator-updates": Case(
        {**DIGITS, **PLAIN, "lr": 5e-4, "discriminator_updates": 10, "total_images": 256_000},
        (OVERWHELMS,),
    ),
    "discriminator-lr-x10": Case(
        {**DIGITS, **PLAIN, "lr": 2e-4, "discriminator_lr": 2e-3}, (OVERWHELMS,)
    ),
    "ten-generator-updates": Case({**DIGITS, **PLAIN, "generator_updates": 10}, (WEAK, *COLLAPSES)),
    "discriminator-lr-x0.01": Case({**DIGITS, "discriminator_lr": 2e-5}, (WEAK,)),
    "no-penalty-lr-0.3": Case(
        {**DIGITS, "lr": 0.3, "r1_weight": 0.0, "r2_weight": 0.0}, ("diverged", "diverging")
    ),
    "bce-lr-0.1": Case(
        {**DIGITS, **PLAIN, "lr": 0.1}, ("diverged", "diverging", "oscillating", *COLLAPSES)
    ),
    "bce-grid25": Case(PLAIN_GRID, COLLAPSES),
}


# Every preset on data and at sizes that take two cores a minute or two.
SMALL_PRESETS: dict[str, dict[str, Any]] = {
    "dcgan": {"data": "digits", "filters": 8, "total_images": 40_000},
    "dcgan-2015": {"data": "digits", "image_size": 16, "filters": 16, "total_images": 40_000},
    "keras-mlp": {"data": "digits", "total_images": 600 * 128},
    "keras-mlp-conv-critic": {"data": "digits", "total_images": 600 * 128},
    "keras-conv64": {
        "data": "digits",
        "image_size": 16,
        "channels": 1,
        "filters": 8,
        "total_images": 1000 * 32,
        "log_every": 320,
        "sample_every": 16_000,
    },
    "selu-dense": {"data": "digits", "total_images": 2000 * 32},
    "points": {"data": "ring8", "total_images": 256_000},
    "sine": {"data": "sine", "total_images": 3000 * 32},
    "torch-mlp": {"data": "digits", "total_images": 2000 * 32},
    "faces-rmsprop": {
        "data": "digits",
        "image_size": 16,
        "channels": 1,
        "filters": 8,
        "total_images": 800 * 16,
    },
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    diagnosis: Diagnosis
    on_the_way: tuple[Diagnosis, ...]  # oldest first, with that at the end
    settled_at: int  # images seen when the state became what it is at the end
    seconds: float


def run(settings: dict[str, Any], run_dir: Path) -> Outcome:
    """Train, unless it is done already, and judge by all rows."""
    config = resolve({"tensorboard": False, "threads": 1, **settings, "run_dir": run_dir})
    started = time.monotonic()
    metrics_file = RunDirectory(run_dir).metrics_file
    rows = read_metrics(metrics_file)
    if not rows or rows[-1]["images_seen"] < config.total_images:
        try:
            train(config)
        except RunError as error:
            print(f"{run_dir.name}: {error}", file=sys.stderr)
        rows = read_metrics(metrics_file)
    looks = [
        (row["images_seen"], diagnose(rows[: index + 1], config))
        for index, row in enumerate(rows)
        if "diagnosis" in row or index == len(rows) - 1
    ]
    diagnosis = looks[-1][1]
    settled = rows[-1]["images_seen"]
    for images_seen, look in reversed(looks):
        if look.state != diagnosis.state:
            break
        settled = images_seen
    on_the_way = tuple(look for _, look in looks)
    return Outcome(diagnosis, on_the_way, settled, time.monotonic() - started)


def is_right(outcome: Outcome, expected: tuple[str, ...]) -> bool:
    """Whether one of the expected findings came out at the end, or never any where none may."""
    if expected:
        return bool(set(names_of(outcome.diagnosis)) & set(expected))
    return not any(look.findings for look in outcome.on_the_way)


def names_of(diagnosis: Diagnosis) -> list[str]:
    """What it finds to be wrong."""
    return [finding.name for finding in diagnosis.findings]


def judge_cases(names: list[str], seeds: list[int], runs: Path) -> Iterator[bool]:
    """Print a row for each case and seed; yields whether it is right."""
    print("| case | seed | alarms on the way | final diagnosis | since (images) | right |")
    print("|---|---|---|---|---|---|")
    for name in names:
        case = CASES[name]
        for seed in seeds:
            run_dir = runs / f"{name}-{seed}"
            outcome = run({**case.settings, "seed": seed}, run_dir)
            right = is_right(outcome, case.expected)
            alarms = sorted({alarm for look in outcome.on_the_way for alarm in names_of(look)})
            print(
                f"| {name} | {seed} | {'; '.join(alarms) or '-'} | "
                f"{outcome.diagnosis.state} | {outcome.settled_at:,} | "
                f"{'yes' if right else 'NO'} |",
                flush=True,
            )
            yield right


def judge_presets(arguments: argparse.Namespace, seeds: list[int], runs: Path) -> None:
    """Print a row for each preset and seed, with the first piece of advice."""
    print("| preset | seed | final diagnosis | evidence | first advice |\n|---|---|---|---|---|")
    for preset in arguments.presets.split(",") if arguments.presets else SMALL_PRESETS:
        for seed in seeds:
            settings = {"preset": preset, "seed": seed}
            if arguments.small:
                settings |= SMALL_PRESETS[preset]
            else:
                settings["data"] = arguments.data
            if arguments.total_images:
                settings["total_images"] = arguments.total_images
            diagnosis = run(settings, runs / f"{preset}-{seed}").diagnosis
            first = diagnosis.findings[0] if diagnosis.findings else None
            evidence = first.evidence if first else ""
            advice = first.advice[0] if first and first.advice else ""
            print(f"| {preset} | {seed} | {diagnosis.state} | {evidence} | {advice} |", flush=True)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--presets")
    parser.add_argument("--small", action="store_true", help="presets on small data, as above")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--total-images", type=int)
    parser.add_argument("--seeds", default="1-3", help="thresholds were tuned on 0")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs; unset: thrown away")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    seeds = [int(seed) for seed in parse_seeds(arguments.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.runs or Path(folder)
        if arguments.presets or arguments.small:
            judge_presets(arguments, seeds, runs)
            return 0
        return 0 if all(list(judge_cases(arguments.cases.split(","), seeds, runs))) else 1


if __name__ == "__main__":
    sys.exit(main())
