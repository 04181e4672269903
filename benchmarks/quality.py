"""Is the flagship better than the recipe of 2015 after as many images, and does it stay so?

    python benchmarks/quality.py DATA... [--seeds 0-2] [--images 16000,32000,64000,128000]
                                 [--filters 32] [--precision bf16] [--runs DIR] [--record]

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
import logging
import statistics
import sys
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

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

RECIPES = ("dcgan", "dcgan-2015")
MEASURED = ("frechet_distance", "precision", "recall", "coverage", "class_distance")
BEST_RATIO, LAST_RATIO = 1 / 2, 1 / 3  # of the flagship's distance to that of the other recipe


def run_seed(
    arguments: argparse.Namespace, source: str, recipe: str, seed: int, judge: Judge
) -> list[Evaluation]:
    """Train a recipe with its preset's own settings but for the width, and measure on the way."""
    settings = {
        "preset": recipe,
        "data": source,
        "seed": seed,
        "filters": arguments.filters,
        "precision": arguments.precision,
        "threads": 1,
    }
    name = f"{Path(source).name}-{recipe}-{arguments.filters}-{seed}"
    run_dir = arguments.runs / (name if arguments.precision == "fp32" else f"{name}-bf16")
    return train_and_measure(settings, run_dir, arguments.images, judge.measure, MEASURED)


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
    ratios = [ratio for runs in flagship.values() if (ratio := later_over_best(runs)) is not None]
    what = f"{name}: after four times the images over the best"
    if len(ratios) == len(flagship):
        yield bar_row(what, STABLE_RATIO, ratios)
    else:
        missing = f"not seen of {len(flagship) - len(ratios)} of {len(flagship)}: still improving"
        yield f"| {what} | at most {STABLE_RATIO:.2f} | {missing} | no |", False


def bar_row(what: str, bar: float, ratios: list[float]) -> tuple[str, bool]:
    """One row of the table of bars."""
    mean = statistics.mean(ratios)
    met = mean <= bar
    found = f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} seeds)"
    return f"| {what} | at most {bar:.2f} | {found} | {'yes' if met else 'no'} |", met


def render_page(
    arguments: argparse.Namespace, accuracies: list[str], bars: list[str], rows: list[str]
) -> str:
    """The result as Markdown."""
    lines = [
        *page_head(
            "The flagship beside the recipe of 2015", ", shared with other jobs; one thread a run"
        ),
        f"- both with {arguments.filters} filters in {arguments.precision}, each with its preset's",
        "  own settings otherwise",
        *(f"- {accuracy}" for accuracy in accuracies),
        "- no number here is an FID: distances are on that classifier's features",
        "",
        "| bar | value | measured | met |",
        "|---|---|---|---|",
        *bars,
        "",
        *table_head(MEASURED),
        *rows,
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", help="folders of MNIST-format files")
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2))
    parser.add_argument("--images", type=parse_images, default="16000,32000,64000,128000")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    judges = {source: Judge(source) for source in arguments.data}
    all_found: dict[str, Found] = {source: {r: {} for r in RECIPES} for source in arguments.data}
    for seed in map(int, arguments.seeds):
        for source, found in all_found.items():
            for recipe in RECIPES:
                found[recipe][seed] = run_seed(arguments, source, recipe, seed, judges[source])
    accuracies, bars, rows, all_met = [], [], [], True
    for source, found in all_found.items():
        first = next(iter(found["dcgan"].values()))[0]
        facts = first.features
        accuracies.append(f"{Path(source).name}: {facts.kind}, {facts.accuracy:.2%} right")
        for line, met in judge(source, found):
            bars.append(line)
            all_met = all_met and met
        rows.append(floor_row(f"{Path(source).name}, real", first, MEASURED))
        measured = [one for runs in found.values() for seed in runs for one in runs[seed]]
        rows += [row(one, MEASURED) for one in measured]
    page = render_page(arguments, accuracies, bars, rows)
    print(page)
    if arguments.record:
        name = "quality" if arguments.precision == "fp32" else "quality-bf16"
        print(write_record(name, page))
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
