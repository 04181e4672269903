"""How much faster is a run on two processes with a core each than on one?

    python benchmarks/ranks.py [--rounds 3] [--steps 20] [--sizes 32 64]
                               [--presets dcgan dcgan-2015] [--record]

`torchrun` starts all kinds of run, turn by turn on the same data: one rank with a batch of 64, two
ranks with half of that batch each, two with a batch of 64 each, and two runs of one rank that know
nothing of each other, which is what the machine allows; one thread a rank. Rates are images a
second of wall time by the runs' own rows, without the first steps, with nothing else due in
between. It needs two idle cores: the highest load before a turn stands in each row, and above the
table how much CPU time the host took for others. Ratios are to the one rank of the same turn, for
the speed of a shared machine changes within minutes: their median, the lowest and the highest, and
whether two ranks are at the bar.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from records import arguments_given, commit, processor, stolen_seconds, write_record
from training_speed import make_folder
from training_speed_kinds import BATCH, WARM_UP, rate_of_run
from turns import in_order

ROOT = Path(__file__).resolve().parents[1]
KINDS = {  # runs at once, ranks of each, whole batch of each
    "one": (1, 1, BATCH),
    "parts": (1, 2, BATCH),
    "each": (1, 2, 2 * BATCH),
    "apart": (2, 1, BATCH),
}
NEVER = 10**9  # images
BAR = 1.7
JUDGED = ("parts", "each")  # two runs apart are what the machine allows


def rate(kind: str, preset: str, data: Path, run_dir: Path, steps: int) -> float:
    """Images a second of one kind, of all its runs together."""
    runs, ranks, batch = KINDS[kind]
    total = (WARM_UP + steps) * batch
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "gantrain", "train"]
    command += [f"--preset={preset}", f"--data={data}", "--threads=1"]
    command += [f"--batch-size={batch}", f"--total-images={total}", "--device=cpu"]
    command += [f"--log-every={WARM_UP * batch}", "--no-tensorboard"]
    command += [f"--{name}-every={NEVER}" for name in ("sample", "diagnose", "checkpoint")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folders = [run_dir / str(run) for run in range(runs)]
    commands = [[*command, f"--run-dir={folder}"] for folder in folders]
    quiet = subprocess.DEVNULL
    processes = [
        subprocess.Popen(each, stdout=quiet, stderr=quiet, env=environment, cwd=ROOT)
        for each in commands
    ]
    for process, each in zip(processes, commands, strict=True):
        if process.wait():
            sys.exit(f"failed: {' '.join(each)}")
    return sum(map(rate_of_run, folders))


def verdict_on(ratios: list[float]) -> str:
    """Whether the median is at the bar, by all its digits."""
    return "met" if statistics.median(ratios) >= BAR else "missed"


def measure(preset: str, size: int, data: Path, folder: Path, rounds: int, steps: int) -> str:
    """The row of the table for one preset and size."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    loads = []
    for turn in range(rounds):
        for kind in in_order(rates, turn):
            found = rates[kind]
            loads.append(os.getloadavg()[0])
            found.append(rate(kind, preset, data, folder / f"{preset}{size}_{turn}{kind}", steps))
            print(f"{preset}: {kind}, {found[-1]:.1f} images/s, load {loads[-1]:.1f}", flush=True)
    ones = rates.pop("one")
    cells = [f"{preset}, {size}x{size}", f"{statistics.median(ones):.1f}"]
    for kind, found in rates.items():
        ratios = [other / one for one, other in zip(ones, found, strict=True)]
        verdict = f"; {verdict_on(ratios)}" if kind in JUDGED else ""
        spread = f"{statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
        cells.append(f"{statistics.median(found):.1f} ({spread}{verdict})")
    row = f"| {' | '.join(cells)} | {max(loads):.1f} |"
    print(row, f"the bar is {BAR}", flush=True)
    return row


def main() -> None:
    """Measure, print, and write the record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="sides in pixels")
    parser.add_argument("--presets", nargs="+", default=["dcgan", "dcgan-2015"])
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/ranks_*.md")
    arguments = parser.parse_args()
    names = ["run", "one rank, images/s", "two, half the batch each", "two, a batch each"]
    names += ["two runs apart", "load at most"]
    rows = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    began, stolen = time.monotonic(), stolen_seconds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in arguments.sizes:
            data = make_folder(folder / f"data{size}", size, 256)
            for preset in arguments.presets:
                row = measure(preset, size, data, folder, arguments.rounds, arguments.steps)
                rows.append(row)
    taken = (stolen_seconds() - stolen) / (time.monotonic() - began) / (os.cpu_count() or 1)
    if arguments.record:
        how = (
            f"`python benchmarks/ranks.py {arguments_given()}`, commit {commit()}, on "
            f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}; colour images, "
            f"batches of {BATCH}, one thread a rank; in brackets the ratio to the one rank of "
            f"the same turn, whose bar is {BAR}; medians of {arguments.rounds} turns; the host's "
            f"other machines took {taken:.1%} of CPU time."
        )
        head = [f"# Two ranks against one, {datetime.now(UTC).date()}", how]
        print(write_record("ranks", "\n\n".join([*head, "\n".join(rows)]) + "\n"))


if __name__ == "__main__":
    main()
