"""Does the flagship stay as good as it was at its best, long after?

    python benchmarks/stability.py DATA [--seeds 0] [--images 256000,512000,...] [--filters 32]
                                   [--variants lr_decay=0 lr_decay=1e-4] [--precision bf16]
                                   [--runs DIR] [--record]

DATA is a folder of MNIST-format files. A generator is trained with the preset's own settings but
for the width and what a variant sets (`NAME=VALUE,...`, names as in `gantrain.TrainConfig`), one
thread each and one after the other, and measured whenever it has seen one of the numbers of images:
Frechet distance, precision, recall and coverage of 10,000 samples, on the features of a classifier
(`gantrain evaluate`, one draw of samples). A run that is there already is not trained again, a
measurement not made again: variants may be trained side by side by two calls, and told of by a
third. Prints a Markdown page, --record keeps it; exits with 1 where the bar is missed or the run
was too short to tell.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from milestones import (
    STABLE_RATIO,
    Judge,
    distance,
    floor_row,
    later_over_best,
    parse_images,
    row,
    table_head,
    train_and_measure,
)
from records import page_head, write_record

from gantrain.evaluation.results import Evaluation
from gantrain.seed_ranges import parse_seeds

MEASURED = ("frechet_distance", "precision", "recall", "coverage", "class_distance")


def parse_variant(text: str) -> dict[str, Any]:
    """`NAME=VALUE,...` as settings; nothing at all is the preset as it is."""
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {name: float(value) for name, _, value in pairs}


def run_variant(
    arguments: argparse.Namespace, variant: str, seed: int, judge: Judge
) -> list[Evaluation]:
    """Train the flagship with its own settings but for the width and the variant's, and measure."""
    settings = {
        "preset": "dcgan",
        "data": arguments.data,
        "seed": seed,
        "filters": arguments.filters,
        "precision": arguments.precision,
        "threads": 1,
        **parse_variant(variant),
    }
    kind = f"{arguments.filters}-{arguments.precision}-{seed}"
    name = "-".join(filter(None, (Path(arguments.data).name, variant, kind)))
    run_dir = arguments.runs / name
    return train_and_measure(settings, run_dir, arguments.images, judge.measure, MEASURED)


def verdict(variant: str, seed: int, found: list[Evaluation]) -> tuple[str, bool]:
    """The bar as a row of its table, and whether it is met.

    A run that ends before four times the images of its best has not been seen to stay.
    """
    last = found[-1].generator.images_seen
    best = min(found, key=distance)
    images = best.generator.images_seen
    head = f"| {variant or 'as it is'}, seed {seed} | {distance(best):.2f} after {images:,} |"
    ratio = later_over_best(found)
    if ratio is None:
        ratio = distance(found[-1]) / distance(best)
        so_far = f"{ratio:.2f} after {last / images:.1f} times the images"
        return f"{head} {so_far} | not seen |", False
    met = ratio <= STABLE_RATIO
    return f"{head} {ratio:.2f} | {'yes' if met else 'no'} |", met


def render_page(
    arguments: argparse.Namespace, first: Evaluation, bars: list[str], rows: list[str]
) -> str:
    """The result as Markdown; `first` tells of the classifier and of the real images."""
    judged = f"{first.features.kind}, {first.features.accuracy:.2%} right"
    lines = [
        *page_head(
            "The flagship long after its best", ", shared with other jobs; one thread a run"
        ),
        f"- preset `dcgan` with {arguments.filters} filters in {arguments.precision}, otherwise",
        "  its own settings but for the variants'",
        f"- {Path(arguments.data).name}: {judged}",
        "- no number here is an FID: distances are on that classifier's features",
        "",
        f"| variant | best | after four times the images (bar {STABLE_RATIO:.2f}) | met |",
        "|---|---|---|---|",
        *bars,
        "",
        *table_head(MEASURED),
        floor_row("real", first, MEASURED),
        *rows,
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="a folder of MNIST-format files")
    parser.add_argument("--seeds", type=parse_seeds, default=(0,))
    parser.add_argument("--images", type=parse_images, default="256000,512000,1024000,2048000")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--variants", nargs="+", default=[""], metavar="NAME=VALUE,...")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--runs", type=Path, default=Path("runs/stability"))
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    judge = Judge(arguments.data)
    bars, rows, all_met = [], [], True
    first: Evaluation | None = None
    for seed in map(int, arguments.seeds):
        for variant in arguments.variants:
            found = run_variant(arguments, variant, seed, judge)
            first = first or found[0]
            line, met = verdict(variant, seed, found)
            bars.append(line)
            all_met = all_met and met
            rows += [row(one, MEASURED) for one in found]
    assert first is not None
    page = render_page(arguments, first, bars, rows)
    print(page)
    if arguments.record:
        print(write_record("stability", page))
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
