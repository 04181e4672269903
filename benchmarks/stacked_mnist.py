"""How many of Stacked-MNIST's 1000 modes does the flagship reach, and how evenly?

    python benchmarks/stacked_mnist.py MNIST [--seeds 0-2] [--images 128000,256000] [--quarter]
                                       [--filters 64] [--runs DIR] [--record]

MNIST is a folder of MNIST-format files. Three random digits become the colours of an image, 128,000
of them to train on; the protocol is PacGAN's (Lin et al. 2018): 26,000 samples, a mode is there if
one sample falls into it, the reverse KL divergence is from the distribution of stacks of the data's
digits. Who sees the digits is a classifier of single ones, whose accuracy is printed; real stacks
are measured beside the samples. `--quarter` gives the discriminator half the filters, so a quarter
of the convolutions' weights (PacGAN's table 3 has a discriminator a quarter of the generator). A
run, or a measurement, that is there already is not made again. Prints a Markdown page, --record
keeps it; exits with 1 where a bar is missed.
"""

import argparse
import datetime as dt
import logging
import os
import platform
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from quality import commit, processor

from gantrain.config import TrainConfig
from gantrain.evaluation import choose_space, evaluate_sampler
from gantrain.evaluation_data import choose_reals, load_real_data
from gantrain.evaluation_results import Evaluation
from gantrain.networks import Shape, count_parameters, create_networks
from gantrain.presets import resolve
from gantrain.sampling import open_sampler
from gantrain.seed_ranges import parse_seeds
from gantrain.stacked_mnist import CLASS_NAMES, PREFIX
from gantrain.training import train
from gantrain.yardstick import Yardstick

RESULTS = Path(__file__).resolve().parent / "results"
MOST_KL = 0.06  # nats, of the runs with networks of one capacity
FEWEST_MODES = 900  # with a quarter of a discriminator
MEASURED = ("modes", "reverse_kl", "frechet_distance", "precision", "recall")


def settings_of(
    arguments: argparse.Namespace, seed: int, images: int, run_dir: Path
) -> dict[str, Any]:
    """The flagship's own settings but for the width; nothing depends on where the run ends."""
    every = arguments.images[0]
    return {
        "data": f"{PREFIX}{arguments.data}",
        "seed": seed,
        "filters": arguments.filters,
        "discriminator_filters": discriminator_filters(arguments),
        "total_images": images,
        "run_dir": run_dir,
        "threads": arguments.threads,
        "tensorboard": False,
        **dict.fromkeys(("log_every", "sample_every", "diagnose_every", "checkpoint_every"), every),
    }


def discriminator_filters(arguments: argparse.Namespace) -> int:
    """A convolution's weights grow with the square of the filters."""
    return int(arguments.filters // 2 if arguments.quarter else arguments.filters)


class Judge:
    """The classifier and the real stacks, looked at when first needed."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._yardstick: Yardstick | None = None

    def measure(self, run_dir: Path) -> Evaluation:
        """Measure a run's newest checkpoint."""
        sampler = open_sampler(run_dir)
        if self._yardstick is None:
            data = load_real_data(self._source, sampler)
            self._yardstick = Yardstick(data, choose_reals(data, None), choose_space(data, None))
        return evaluate_sampler(sampler, run_dir.name, self._yardstick, 1)


def run_seed(arguments: argparse.Namespace, seed: int, judge: Judge) -> list[Evaluation]:
    """Train to each number of images in turn and measure there."""
    kind = "quarter" if arguments.quarter else "whole"
    run_dir = arguments.runs / f"{kind}-{arguments.filters}-{seed}"
    found = []
    for images in arguments.images:
        path = arguments.runs / f"{run_dir.name}-{images}.json"
        if not path.exists():
            train(resolve(settings_of(arguments, seed, images, run_dir)))
            path.write_text(judge.measure(run_dir).to_json())
        found.append(Evaluation.model_validate_json(path.read_bytes()))
        print(row(found[-1]), file=sys.stderr, flush=True)
    return found


def row(evaluation: Evaluation) -> str:
    """A measurement as a row of the table."""
    values = " | ".join(format(evaluation.measurements[name].mean, ".4g") for name in MEASURED)
    return f"| {evaluation.generator.source} | {evaluation.generator.images_seen:,} | {values} |"


def floor_row(evaluation: Evaluation) -> str:
    """What as many real stacks show, as a row of the table."""
    floors = [evaluation.measurements[name].floor for name in MEASURED]
    values = " | ".join("-" if floor is None else format(floor, ".4g") for floor in floors)
    return f"| real stacks | - | {values} |"


def judge_bars(arguments: argparse.Namespace, last: list[Evaluation]) -> tuple[list[str], bool]:
    """The table of bars, and whether each is met by the mean over seeds."""
    modes = [each.measurements["modes"].mean for each in last]
    divergences = [each.measurements["reverse_kl"].mean for each in last]
    if arguments.quarter:
        met = statistics.mean(modes) >= FEWEST_MODES
        return [bar_row("modes", f"at least {FEWEST_MODES}", modes, met)], met
    all_modes = min(modes) == len(CLASS_NAMES)
    close = statistics.mean(divergences) <= MOST_KL
    return [
        bar_row("modes", f"{len(CLASS_NAMES)}", modes, all_modes),
        bar_row("reverse KL, nats", f"at most {MOST_KL}", divergences, close),
    ], all_modes and close


def bar_row(what: str, bar: str, values: list[float], met: bool) -> str:
    """One row of the table of bars."""
    found = f"{statistics.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"
    return f"| {what} | {bar} | {found}, {len(values)} seeds | {'yes' if met else 'no'} |"


def count_weights(filters: int, discriminator_filters: int) -> str:
    """The trainable weights of both networks."""
    shape = Shape(28, 3, TrainConfig.model_fields["latent_dim"].default, filters, 5)
    pair = create_networks(
        "dcgan", "dcgan", replace(shape, discriminator_filters=discriminator_filters), seed=0
    )
    generator, discriminator = (count_parameters(network)["trainable"] for network in pair)
    return f"generator {generator:,} weights, discriminator {discriminator:,}"


def render_page(arguments: argparse.Namespace, runs: list[list[Evaluation]]) -> tuple[str, bool]:
    """The result as Markdown, and whether the bars are met."""
    bars, met = judge_bars(arguments, [each[-1] for each in runs])
    first = runs[0][0]
    features = first.features
    flags = " ".join(Path(a).name if a.startswith("/") else a for a in sys.argv[1:])
    lines = [
        f"# Stacked-MNIST, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/stacked_mnist.py {flags}`",
        f"- commit {commit()}, torch {torch.__version__}, Python {platform.python_version()}",
        f"- {processor()}, {os.cpu_count()} CPUs, shared with other jobs",
        f"- {count_weights(arguments.filters, discriminator_filters(arguments))}",
        f"- {first.samples:,} samples; {features.kind}",
        f"- that classifier is right about {features.accuracy:.2%} of held-out digits",
        "",
        "| bar | value | measured | met |",
        "|---|---|---|---|",
        *bars,
        "",
        f"| run | images seen | {' | '.join(name.replace('_', ' ') for name in MEASURED)} |",
        f"|---|---|{'---|' * len(MEASURED)}",
        floor_row(first),
        *(row(each) for run in runs for each in run),
    ]
    return "\n".join([*lines, ""]), met


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="a folder of MNIST-format files")
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2))
    parser.add_argument("--images", type=parse_images, default="128000,256000")
    parser.add_argument("--quarter", action="store_true", help="a quarter of a discriminator")
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/stacked-mnist"))
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    judge = Judge(f"{PREFIX}{arguments.data}")
    runs = [run_seed(arguments, int(seed), judge) for seed in arguments.seeds]
    page, met = render_page(arguments, runs)
    print(page)
    if arguments.record:
        hardware = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
        kind = "-quarter" if arguments.quarter else ""
        path = RESULTS / f"stacked-mnist{kind}_{hardware}_{dt.date.today()}.md"
        path.write_text(page, encoding="utf-8")
        print(path)
    return 0 if met else 1


def parse_images(text: str) -> list[int]:
    """Numbers of images, ascending."""
    return sorted(int(count) for count in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
