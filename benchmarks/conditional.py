"""Does a conditional generator make the class it is asked for? A classifier of real images says.

    python benchmarks/conditional.py DATA [--runs DIR] [--seeds 0-2] [any setting of gantrain train]

DATA is a folder of MNIST-format files, or `digits`. For each seed a generator is trained with
`gantrain train --conditional` (a run that is there already goes on where it stopped) and measured
as `gantrain evaluate` does: 10,000 samples, or as many as the data allow, of classes in the
proportions of the data. A generator of one image a class would be recognised too, so recall,
coverage and Frechet distance are printed beside it. Prints a Markdown page; exits with 1 where the
share recognised as the class asked for is below the bar.

On MNIST with two CPU cores a seed takes a quarter of an hour or more.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gantrain.evaluation.evaluate import evaluate
from gantrain.evaluation.results import Evaluation, write_evaluation
from gantrain.seed_ranges import parse_seeds

BAR = 0.97
MEASURED = ("recognised_as_asked", "frechet_distance", "precision", "recall", "coverage")


def train(data: str, run_dir: Path, seed: int, settings: list[str]) -> None:
    """Train a conditional generator, or go on training."""
    command = [sys.executable, "-m", "gantrain", "train", f"--data={data}", f"--seed={seed}"]
    command += ["--conditional", f"--run-dir={run_dir}", *settings]
    print("$ gantrain", *command[3:], file=sys.stderr, flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    print(f"{time.monotonic() - started:.0f} s of training", file=sys.stderr, flush=True)


def row(evaluation: Evaluation) -> str:
    """A run as a row of the table, what real images reach in brackets."""
    facts = evaluation.generator
    measured = [evaluation.measurements[name] for name in MEASURED]
    values = " | ".join(f"{one.mean:.4g} ({one.floor or 0:.4g})" for one in measured)
    return f"| {Path(facts.source).name} | {facts.images_seen:,} | {values} |"


def class_row(name: str, evaluations: list[Evaluation]) -> str:
    """A class as a row: the share of its samples that are recognised, for each run."""
    found = [evaluation.classes[name] for evaluation in evaluations]
    shares = " | ".join(f"{one.recognised or 0:.1%}" for one in found)
    return f"| {name} | {found[0].recognised_of_data or 0:.1%} | {shares} |"


def render_page(evaluations: list[Evaluation], settings: list[str]) -> str:
    """The result as Markdown."""
    first = evaluations[0]
    features = first.features
    shares = [each.measurements["recognised_as_asked"].mean for each in evaluations]
    deviation = f" ± {statistics.stdev(shares):.2%}" if len(shares) > 1 else ""
    mean = statistics.mean(shares)
    verdict = (
        f"{Path(first.data.source).name}, settings {' '.join(settings) or '(defaults)'}: "
        f"{mean:.2%}{deviation} recognised as the class asked for, the bar is {BAR:.0%}: "
        f"{'met' if mean >= BAR else 'not met'}"
    )
    measured_with = (
        f"{first.samples:,} samples a run; {features.kind}, right about "
        f"{features.accuracy or 0:.2%} of {features.held_out:,} held-out images."
    )
    return "\n".join(
        [
            *(verdict, "", measured_with, ""),
            f"| run | images seen | {' | '.join(name.replace('_', ' ') for name in MEASURED)} |",
            f"|---|---|{'---|' * len(MEASURED)}",
            *map(row, evaluations),
            "",
            f"| class | real | {' | '.join(Path(e.generator.source).name for e in evaluations)} |",
            f"|---|---|{'---|' * len(evaluations)}",
            *(class_row(name, evaluations) for name in first.classes),
            "",
        ]
    )


def main() -> int:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="a folder of MNIST-format files, or `digits`")
    parser.add_argument("--runs", type=Path, default=Path("runs/conditional"))
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2))
    arguments, settings = parser.parse_known_args()
    evaluations = []
    for seed in arguments.seeds:
        run_dir = arguments.runs / f"seed{seed}"
        train(arguments.data, run_dir, seed, settings)
        evaluations.append(evaluate(run_dir, arguments.data, repeats=1))
        write_evaluation(evaluations[-1], run_dir)
    print(render_page(evaluations, settings))
    shares = [each.measurements["recognised_as_asked"].mean for each in evaluations]
    return 0 if statistics.mean(shares) >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
