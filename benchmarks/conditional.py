"""Does a conditional generator make the class it is asked for? A classifier of real images says.

    python benchmarks/conditional.py DATA [--runs DIR] [--seeds 0-2] [any setting of gantrain train]

DATA is a folder of MNIST-format files, or `digits`. For each seed a generator is trained with
`gantrain train --conditional`; a run that is there already goes on where it stopped. A small
convolutional network learns the classes from the real training images at the generator's size, and
its accuracy on the test images is printed (of `digits`, which have none, 30 % are kept from it). It
then names 1,000 generated images of each class. A generator that made one image per class would
pass that, so the spread within the classes is printed beside that of the real ones. Exits with 1
where the share recognised as the class asked for is below the bar.

On MNIST with two CPU cores this takes hours.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from gantrain.datasets import Dataset, load_dataset
from gantrain.latents import draw_latents
from gantrain.sampling import generate, load_run_generator
from gantrain.seed_ranges import parse_seeds

BAR = 0.97
PER_CLASS = 1000
FIRST_SEED = 1_000_000  # not the seeds of any committed picture
STEPS, BATCH = 2000, 128  # of the classifier
COMPARED = 200  # images of a class whose distances to each other are measured


@dataclass(frozen=True)
class Split:
    """Images in [0, 1], float32 [n, channels, size, size], with labels int64 [n]."""

    images: Tensor
    labels: Tensor


def train(data: str, run_dir: Path, seed: int, settings: list[str]) -> None:
    """Train a conditional generator, or go on training."""
    command = [sys.executable, "-m", "gantrain", "train", f"--data={data}", f"--seed={seed}"]
    command += ["--conditional", f"--run-dir={run_dir}", *settings]
    print("$ gantrain", *command[3:], flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    print(f"{time.monotonic() - started:.0f} s of training", flush=True)


def load_splits(data: str, size: int, channels: int) -> tuple[Split, Split]:
    """The real images to learn the classes from, and those to test what was learned."""
    whole = load_dataset(data, image_size=size, channels=channels)
    if data != "digits":
        test = load_dataset(data, image_size=size, channels=channels, split="test")
        return as_split(whole), as_split(test)
    both = as_split(whole)
    train_rows, test_rows = train_test_split(
        np.arange(len(both.labels)), test_size=0.3, random_state=0
    )
    return (
        Split(both.images[train_rows], both.labels[train_rows]),
        Split(both.images[test_rows], both.labels[test_rows]),
    )


def as_split(dataset: Dataset) -> Split:
    """A data set as the classifier takes it."""
    assert dataset.labels is not None
    return Split(as_tensor(dataset.images), torch.from_numpy(dataset.labels))


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Scale images [n, channels, size, size] to [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).float() / 255


def train_classifier(split: Split, classes: int) -> nn.Module:
    """A small convolutional network, images -> logits [n, classes]; the same each time."""
    torch.manual_seed(0)
    channels, size = split.images.shape[1:3]
    network = nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * (size // 4) ** 2, 128), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(128, classes),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(split.labels), (BATCH,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(split.images[rows]), split.labels[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


def share_recognised(classifier: nn.Module, split: Split) -> NDArray[np.float64]:
    """The share of each class's images that the classifier gives to that class, [classes]."""
    with torch.no_grad():
        named = torch.cat(
            [classifier(images).argmax(1) for images in torch.split(split.images, 1000)]
        )
    right = (named == split.labels).double()
    sums = torch.bincount(split.labels, weights=right)
    return (sums / torch.bincount(split.labels)).numpy()


def spread_within_classes(split: Split) -> float:
    """Mean distance in pixels between two images of one class, over all classes."""
    distances = []
    for label in range(int(split.labels.max()) + 1):
        rows = split.images[split.labels == label][:COMPARED].flatten(1)
        distances.append(float(torch.pdist(rows).mean()))
    return statistics.mean(distances)


def draw(run_dir: Path) -> tuple[Split, tuple[str, ...]]:
    """Generate as many images of each class, and say what the classes are called."""
    run = load_run_generator(run_dir)
    count = PER_CLASS * len(run.class_names)
    seeds = np.arange(FIRST_SEED, FIRST_SEED + count, dtype=np.uint64)
    labels = np.arange(count, dtype=np.int64) % len(run.class_names)
    pixels = generate(run.generator, draw_latents(seeds, run.config.latent_dim), labels)
    images = as_tensor(pixels.transpose(0, 3, 1, 2))
    return Split(images, torch.from_numpy(labels)), run.class_names


def main() -> None:
    """Train, classify, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="a folder of MNIST-format files, or `digits`")
    parser.add_argument("--runs", type=Path, default=Path("runs/conditional"))
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2))
    arguments, settings = parser.parse_known_args()
    classifier: nn.Module | None = None
    shares = []
    for seed in arguments.seeds:
        run_dir = arguments.runs / f"seed{seed}"
        train(arguments.data, run_dir, seed, settings)
        generated, names = draw(run_dir)
        if classifier is None:
            channels, size = generated.images.shape[1:3]
            learned, tested = load_splits(arguments.data, size, channels)
            classifier = train_classifier(learned, len(names))
            accuracy = float((share_recognised(classifier, tested)).mean())
            real_spread = spread_within_classes(learned)
            print(f"classifier on {len(tested.labels)} held-out real images: {accuracy:.2%}")
        by_class = share_recognised(classifier, generated)
        shares.append(float(by_class.mean()))
        spread = spread_within_classes(generated) / real_spread
        print(f"seed {seed}: {shares[-1]:.2%} recognised as the class asked for, ", end="")
        print(f"spread within classes {spread:.2f} of the real one")
        listed = (f"{name} {share:.1%}" for name, share in zip(names, by_class, strict=True))
        print("  " + "  ".join(listed), flush=True)
    deviation = statistics.stdev(shares) if len(shares) > 1 else 0.0
    mean = statistics.mean(shares)
    print(f"mean {mean:.2%}, standard deviation {deviation:.2%}; the bar is {BAR:.0%}")
    sys.exit(0 if mean >= BAR else 1)


if __name__ == "__main__":
    main()
