"""Does differentiable augmentation help where images are few? Held-out images say.

    python benchmarks/few_images.py IMAGES [--size 64] [--filters 32] [--seeds 0] [--few COUNT]
                                    [--augment NAMES] [--precision bf16]
                                    [--images 40000,80000] [--runs DIR] [--record]

IMAGES is a folder or a zip. Half of it, chosen at random but always the same, is trained on, or
COUNT images of that half; the other half is never shown to anything that learns. The flagship is
trained with `--augment` and without, and measured against the held-out half on the features of a
fixed random network, for there are no classes. The floor is the distance that other real images
have to the held-out ones: the rest of the first half, or the training images where none are left.
How near samples come to training images, beside how near held-out ones do, shows memorisation. A
run, or a measurement, that is there already is not made again. Prints a Markdown page, --record
keeps it; exits with 1 where augmentation does not bring samples nearer to the held-out images, or
they memorise.
"""

import argparse
import logging
import statistics
import sys
from pathlib import Path

import numpy as np
from milestones import floor_row, parse_images, row, table_head, train_and_measure
from PIL import Image
from records import page_head, write_record

from gantrain.data.datasets import Dataset, load_dataset
from gantrain.evaluation.evaluate import evaluate_sampler
from gantrain.evaluation.examples import RealData, Reals
from gantrain.evaluation.feature_spaces import random_space
from gantrain.evaluation.results import Evaluation
from gantrain.evaluation.yardstick import Yardstick
from gantrain.sampling import open_sampler
from gantrain.seed_ranges import parse_seeds

RECIPES = ("plain", "augmented")
MEASURED = (
    *("frechet_distance", "kernel_distance", "precision", "recall", "coverage"),
    *("training_distance", "near_training", "copies"),
)
FEWEST_DISTANT = 0.9  # of a held-out image's distance from training images, lest it be memorised


def split_images(
    source: str, size: int, few: int | None, folder: Path
) -> tuple[Dataset, Dataset, Dataset]:
    """To be trained on, held out, and others for the floor, each also as a folder of PNG files."""
    whole = load_dataset(source, image_size=size)
    order = np.random.default_rng(0).permutation(len(whole.images))
    first, second = np.array_split(order, 2)
    others = first[few:] if few is not None and few < len(first) else first
    parts = {"train": first[:few], "held-out": second, "others": others}
    for name, chosen in parts.items():
        part = folder / name
        if part.exists():
            continue
        part.mkdir(parents=True)
        for index in chosen:
            pixels = whole.images[index].transpose(1, 2, 0)
            picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            picture.save(part / f"{index:06}.png")
    learned, held_out, rest = (load_dataset(str(folder / name)) for name in parts)
    return learned, held_out, rest


class HeldOut:
    """The held-out images, looked at when first needed."""

    def __init__(self, source: str, learned: Dataset, held_out: Dataset, others: Dataset) -> None:
        count = min(len(others.images), len(held_out.images))
        described = f"{count:,} held-out images; the floor: as many other ones"
        # Files stand in their order, and neighbours are alike.
        chosen, rest = (
            part.images[np.random.default_rng(0).permutation(len(part.images))[:count]]
            for part in (held_out, others)
        )
        reals = Reals(chosen, rest, described, count)
        data = RealData(source, learned, None, trained_on=True)
        self._yardstick = Yardstick(data, reals, random_space(learned.images))

    def measure(self, run_dir: Path) -> Evaluation:
        """Measure a run's newest checkpoint."""
        return evaluate_sampler(open_sampler(run_dir), run_dir.name, self._yardstick, 1)


def run_seed(
    arguments: argparse.Namespace, recipe: str, seed: int, folder: Path, judge: HeldOut
) -> list[Evaluation]:
    """Train the flagship on one half, with augmentation or without, and measure on the way."""
    settings = {
        "data": str(folder / "train"),
        "seed": seed,
        "filters": arguments.filters,
        "augment": arguments.augment if recipe == "augmented" else "off",
        "precision": arguments.precision,
        "threads": arguments.threads,
    }
    # All that is set here but the data, for a run of that name is not made again.
    how = "plain" if recipe == "plain" else arguments.augment.replace(",", "+")
    run_dir = folder / f"{how}-{arguments.filters}-{seed}-{arguments.precision}"
    return train_and_measure(settings, run_dir, arguments.images, judge.measure, MEASURED)


def best(runs: list[Evaluation]) -> float:
    """The least Frechet distance of a run."""
    return min(each.measurements["frechet_distance"].mean for each in runs)


def judge_bars(found: dict[str, list[list[Evaluation]]]) -> tuple[list[str], bool]:
    """The table of bars, and whether all are met."""
    pairs = list(zip(found["augmented"], found["plain"], strict=True))
    best_ratios = [best(augmented) / best(plain) for augmented, plain in pairs]
    last_ratios = [best(augmented[-1:]) / best(plain[-1:]) for augmented, plain in pairs]
    last = [augmented[-1].measurements["training_distance"] for augmented, _ in pairs]
    nearness = [each.mean / (each.floor or 1.0) for each in last]
    bars = [
        ("distance to held-out images, augmented over plain, best", best_ratios, 1.0, "below 1"),
        ("the same, last", last_ratios, 1.0, "below 1"),
    ]
    rows, all_met = [], True
    for what, values, limit, bar in bars:
        met = statistics.mean(values) < limit
        all_met = all_met and met
        rows.append(bar_row(what, bar, values, met))
    met = min(nearness) >= FEWEST_DISTANT
    what = "augmented: distance from training images over that of held-out images"
    rows.append(bar_row(what, f"at least {FEWEST_DISTANT}", nearness, met))
    return rows, all_met and met


def bar_row(what: str, bar: str, values: list[float], met: bool) -> str:
    """One row of the table of bars."""
    found = f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    return f"| {what} | {bar} | {found}, seeds: {len(values)} | {'yes' if met else 'no'} |"


def render_page(
    arguments: argparse.Namespace, found: dict[str, list[list[Evaluation]]]
) -> tuple[str, bool]:
    """The result as Markdown, and whether the bars are met."""
    bars, met = judge_bars(found)
    first = found["plain"][0][0]
    lines = [
        *page_head("Few images, with augmentation and without", ", shared with other jobs"),
        f"- {arguments.size}x{arguments.size}, {arguments.filters} filters; {first.data.reals}",
        f"- trained on {arguments.few or 'half'} of the images",
        f"- {first.features.kind}",
        "",
        "| bar | value | measured | met |",
        "|---|---|---|---|",
        *bars,
        "",
        *table_head(MEASURED),
        floor_row("real images", first, MEASURED),
        *(row(each, MEASURED) for runs in found.values() for run in runs for each in run),
    ]
    return "\n".join([*lines, ""]), met


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="a folder or a zip of images")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--seeds", type=parse_seeds, default=(0,))
    parser.add_argument("--few", type=int, metavar="COUNT", help="images to train on")
    parser.add_argument("--images", type=parse_images, default="40000,80000")
    parser.add_argument("--augment", default="color,translation,cutout")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/few-images"))
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    folder = arguments.runs / (f"{arguments.size}" + (f"-{arguments.few}" if arguments.few else ""))
    parts = split_images(arguments.source, arguments.size, arguments.few, folder)
    judge = HeldOut(arguments.source, *parts)
    found: dict[str, list[list[Evaluation]]] = {recipe: [] for recipe in RECIPES}
    for seed in map(int, arguments.seeds):
        for recipe, runs in found.items():
            runs.append(run_seed(arguments, recipe, seed, folder, judge))
    page, met = render_page(arguments, found)
    print(page)
    if arguments.record:
        name = f"few-images-{arguments.few}" if arguments.few else "few-images"
        print(write_record(name, page))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
