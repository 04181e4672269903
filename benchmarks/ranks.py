"""How much faster is a run on two processes with a core each than on one?

    python benchmarks/ranks.py [--rounds 3] [--steps 20] [--size 32] [--record]

`torchrun` starts both kinds, with one and with two ranks of one thread each, turn by turn, on the
same data and the same whole batch. Rates are images a second of wall time by the run's own rows,
without the first steps, with nothing else due in between. It needs two idle cores: the load before
each turn stands beside its rate, and the ratio is that of the medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch
from records import arguments_given, commit, processor, write_record
from training_speed import make_folder

from gantrain.reporting import read_metrics
from gantrain.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
BATCH, WARM_UP = 64, 4
NEVER = 10**9  # images
BAR = 1.7


def rate(ranks: int, preset: str, data: Path, run_dir: Path, steps: int) -> float:
    """Images a second of a run by so many ranks."""
    total = (WARM_UP + steps) * BATCH
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "gantrain", "train"]
    command += [f"--preset={preset}", f"--data={data}", f"--run-dir={run_dir}", "--threads=1"]
    command += [f"--batch-size={BATCH}", f"--total-images={total}", "--device=cpu"]
    command += [f"--log-every={WARM_UP * BATCH}", "--no-tensorboard"]
    command += [f"--{name}-every={NEVER}" for name in ("sample", "diagnose", "checkpoint")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=ROOT)
    rows = read_metrics(RunDirectory(run_dir).metrics_file)
    images = rows[-1]["images_seen"] - rows[0]["images_seen"]
    return float(images / (rows[-1]["seconds"] - rows[0]["seconds"]))


def measure(preset: str, data: Path, folder: Path, rounds: int, steps: int) -> list[str]:
    """Rows of the table for one preset."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    loads = []
    for turn in range(rounds):
        for ranks, found in rates.items():
            loads.append(os.getloadavg()[0])
            found.append(rate(ranks, preset, data, folder / f"{preset}{turn}_{ranks}", steps))
            print(f"{preset}: {ranks} ranks, {found[-1]:.1f} images/s, load {loads[-1]:.1f}")
    one, two = (statistics.median(found) for found in rates.values())
    rows = [f"| {preset} | {one:.1f} | {two:.1f} | {two / one:.2f} | {max(loads):.1f} |"]
    print(rows[0], "meets" if two / one >= BAR else "misses", f"the bar of {BAR}")
    return rows


def main() -> None:
    """Measure, print, and write the record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--presets", nargs="+", default=["dcgan", "dcgan-2015"])
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/ranks_*.md")
    arguments = parser.parse_args()
    rows = [
        "| preset | one rank, images/s | two ranks | ratio | load at most |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_folder(folder / "data", arguments.size, 256)
        for preset in arguments.presets:
            rows += measure(preset, data, folder, arguments.rounds, arguments.steps)
    if arguments.record:
        how = (
            f"`python benchmarks/ranks.py {arguments_given()}`, commit {commit()}, on "
            f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}; "
            f"{arguments.size}x{arguments.size} colour images, batch {BATCH}, one thread a rank; "
            f"medians of {arguments.rounds} turns; the bar is {BAR}."
        )
        head = [f"# Two ranks against one, {datetime.now(UTC).date()}", how]
        print(write_record("ranks", "\n\n".join([*head, "\n".join(rows)]) + "\n"))


if __name__ == "__main__":
    main()
