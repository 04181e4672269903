"""How many of Stacked-MNIST's 1000 modes does the flagship reach, and how evenly?

    python benchmarks/stacked_mnist.py MNIST [--seeds 0-2] [--images 128000,256000] [--quarter]
                                       [--filters 64] [--runs DIR] [--record]

MNIST is a folder of MNIST-format files. Three random digits become the colours of an image, 128,000
of them to train on; the protocol is PacGAN's (Lin et al. 2018): 26,000 samples, a mode is there if
one sample falls into it, the reverse KL divergence is from the uniform distribution. That from the
distribution of stacks of the data's digits stands beside it. Who sees the digits is a classifier of
single ones, whose accuracy is printed; real stacks are measured beside the samples. `--quarter`
gives the discriminator half the filters, so a quarter of the convolutions' weights (PacGAN's table
3 has a discriminator a quarter of the generator). A run, or a measurement, that is there already is
not made again. Prints a Markdown page, --record keeps it; exits with 1 where a bar is missed.
"""

import argparse
import logging
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from milestones import Judge, floor_row, parse_images, row, table_head, train_and_measure
from records import page_head, write_record

from gantrain.config import TrainConfig
from gantrain.data.stacked_mnist import CLASS_NAMES, PREFIX
from gantrain.evaluation.results import Evaluation
from gantrain.networks import Shape, count_parameters, create_networks
from gantrain.seed_ranges import parse_seeds

MOST_KL, STRETCH_KL = 0.06, 0.03  # nats, of the runs with networks of one capacity
FEWEST_MODES = 900  # with a quarter of a discriminator
MEASURED = (
    *("modes", "reverse_kl_uniform", "reverse_kl"),
    *("frechet_distance", "precision", "recall"),
)


def run_seed(arguments: argparse.Namespace, seed: int, judge: Judge) -> list[Evaluation]:
    """Train the flagship with its own settings but for the width, and measure on the way."""
    settings = {
        "data": f"{PREFIX}{arguments.data}",
        "seed": seed,
        "filters": arguments.filters,
        "discriminator_filters": discriminator_filters(arguments),
        "threads": arguments.threads,
    }
    kind = "quarter" if arguments.quarter else "whole"
    run_dir = arguments.runs / f"{kind}-{arguments.filters}-{seed}"
    return train_and_measure(settings, run_dir, arguments.images, judge.measure, MEASURED)


def discriminator_filters(arguments: argparse.Namespace) -> int:
    """A convolution's weights grow with the square of the filters."""
    return int(arguments.filters // 2 if arguments.quarter else arguments.filters)


def judge_bars(arguments: argparse.Namespace, last: list[Evaluation]) -> tuple[list[str], bool]:
    """The table of bars, and whether each but the stretch is met by the mean over seeds."""
    modes = [each.measurements["modes"].mean for each in last]
    divergences = [each.measurements["reverse_kl_uniform"].mean for each in last]
    if arguments.quarter:
        met = statistics.mean(modes) >= FEWEST_MODES
        return [bar_row("modes", f"at least {FEWEST_MODES}", modes, met)], met
    all_modes = min(modes) == len(CLASS_NAMES)
    divergence = statistics.mean(divergences)
    close = divergence <= MOST_KL
    return [
        bar_row("modes", f"{len(CLASS_NAMES)}", modes, all_modes),
        bar_row("reverse KL from uniform, nats", f"at most {MOST_KL}", divergences, close),
        bar_row(
            "the same, stretch", f"at most {STRETCH_KL}", divergences, divergence <= STRETCH_KL
        ),
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
    lines = [
        *page_head("Stacked-MNIST", ", shared with other jobs"),
        f"- {count_weights(arguments.filters, discriminator_filters(arguments))}",
        f"- {first.samples:,} samples; {features.kind}",
        f"- that classifier is right about {features.accuracy:.2%} of held-out digits",
        "",
        "| bar | value | measured | met |",
        "|---|---|---|---|",
        *bars,
        "",
        *table_head(MEASURED),
        floor_row("real stacks", first, MEASURED),
        *(row(each, MEASURED) for run in runs for each in run),
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
        kind = "-quarter" if arguments.quarter else ""
        print(write_record(f"stacked-mnist{kind}", page))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
