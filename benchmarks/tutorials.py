"""Trains every system of the tutorials and gathers what docs/tutorials.md shows.

Each run is an ordinary `gantrain train`; shorter than its source's where the arguments say so. Give
the folders of the data; runs whose data are missing are left out and said to be. A run that was cut
short goes on where it stopped, so the whole may be given again.

    python benchmarks/tutorials.py --mnist DIR --fashion DIR --emoji FILE.zip [--only NAME ...]
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gantrain.data.point_sets import sine_distance
from gantrain.latents import draw_latents
from gantrain.sampling import generate, load_run_generator

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
POINTS = 2500


@dataclass(frozen=True)
class Run:
    """One row of the page."""

    name: str
    preset: str
    data: str  # a name, or the option that gives the path
    arguments: tuple[str, ...] = field(default=())


RUNS = [
    Run("sine", "sine", "sine"),
    Run("keras-mlp", "keras-mlp", "mnist", ("--total-images=640000",)),
    Run("keras-mlp-conv-critic", "keras-mlp-conv-critic", "mnist", ("--total-images=640000",)),
    Run("selu-dense", "selu-dense", "fashion", ("--total-images=600000",)),
    Run("torch-mlp-mnist", "torch-mlp", "mnist", ("--total-images=360000",)),
    Run("torch-mlp-fashion", "torch-mlp", "fashion", ("--total-images=360000",)),
    Run("keras-conv64", "keras-conv64", "emoji", ("--total-images=32000", "--sample-every=6400")),
    Run("faces-rmsprop", "faces-rmsprop", "emoji", ("--filters=8",)),
]


def train(run: Run, source: str, folder: Path, threads: int) -> float:
    """Train, or go on training; returns the seconds this took."""
    command = [sys.executable, "-m", "gantrain", "train", f"--preset={run.preset}"]
    command += [f"--data={source}", f"--run-dir={folder}", f"--threads={threads}", *run.arguments]
    print("$", *command[1:], flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT)
    return time.monotonic() - started


def gather(run: Run, folder: Path) -> dict[str, Any]:
    """Copy the newest picture and collect the numbers of the last rows."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    diagnosed = [row for row in rows if "diagnosis" in row]
    newest = max((folder / "samples").glob("*.png"))
    shutil.copy(newest, PICTURES / f"tutorial-{run.name}.png")
    last = diagnosed[-1]
    numbers = {
        name: value
        for name, value in last.items()
        if isinstance(value, float | int) and name not in ("rollbacks", "lr")
    }
    if run.data == "sine":
        generator = load_run_generator(folder)
        seeds = np.arange(POINTS, dtype=np.uint64)
        latents = draw_latents(seeds, generator.config.latent_dim)
        numbers["sine_distance"] = sine_distance(generate(generator.generator, latents))
    return {"name": run.name, "diagnosis": last["diagnosis"], **numbers}


def main() -> None:
    """Run what there is data for and print one JSON object a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("mnist", "fashion", "emoji"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--runs", type=Path, default=Path("runs/tutorials"))
    parser.add_argument("--only", nargs="*", choices=[run.name for run in RUNS])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for run in wanted(options.only):
        source = getattr(options, run.data, run.data)
        if source is None:
            print(f"{run.name}: left out, for --{run.data} was not given", flush=True)
            continue
        seconds = train(run, source, options.runs / run.name, options.threads)
        result = {**gather(run, options.runs / run.name), "wall_seconds": round(seconds)}
        print(json.dumps(result), flush=True)


def wanted(only: list[str] | None) -> Iterator[Run]:
    """The runs asked for, in the order of the table."""
    return (run for run in RUNS if only is None or run.name in only)


if __name__ == "__main__":
    main()
