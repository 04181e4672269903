"""How far is the flagship's default learning rate from one that makes it unsteady?

    python benchmarks/learning_rate.py IMAGES [--shapes 32x64 64x32 64x64] [--factors 1 2 4 8]
                                       [--images 8192] [--seeds 0] [--precision bf16] [--record]

IMAGES is a folder or a zip. For each shape, a size in pixels and a number of filters, the flagship
is trained at its default rate and at multiples of it, and the largest R1 penalty and discriminator
loss of the means over 256 images are told. A steady run's penalty stays around 1 and below; one
that has left it comes back, if it does, to a discriminator that has forgotten what it knew. One
thread and two runs at a time. Prints a Markdown page, --record keeps it; exits with 1 where a run
at the default rate had a penalty over 100.
"""

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from records import page_head, write_record

from gantrain.run_directory import RunDirectory
from gantrain.run_log import read_metrics
from gantrain.seed_ranges import parse_seeds

ROOT = Path(__file__).resolve().parents[1]
ROW_IMAGES = 256  # a row of metrics is a mean over so many
NEVER = 10**9
LARGEST_STEADY = 100.0  # R1 penalty; those of runs that leave are hundreds to tens of thousands
Run = tuple[int, int, float, int]  # size, filters, factor, seed


def default_rate(run_dir: Path, flags: list[str]) -> float:
    """What `--lr` is where it is not given: that of a run of one step."""
    train(run_dir, [*flags, "--total-images=64"])
    settings, _ = RunDirectory(run_dir).read()
    return settings.generator_rate


def train(run_dir: Path, flags: list[str]) -> bool:
    """Train in a process of its own; whether it came to its end and did not diverge."""
    quiet = [f"--{name}-every={NEVER}" for name in ("sample", "diagnose", "checkpoint")]
    command = [sys.executable, "-m", "gantrain", "train", f"--run-dir={run_dir}", *quiet, *flags]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if "diverged" in (read_metrics(RunDirectory(run_dir).metrics_file) or [{}])[-1]:
        return False
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return True


def largest_of(run: Run, arguments: argparse.Namespace, folder: Path) -> tuple[float, float, float]:
    """The rate of a run, its largest R1 penalty and its largest discriminator loss."""
    size, filters, factor, seed = run
    flags = [f"--data={arguments.source}", f"--image-size={size}", f"--filters={filters}"]
    flags += ["--threads=1", "--no-tensorboard", f"--seed={seed}"]
    flags += [f"--precision={arguments.precision}", f"--log-every={ROW_IMAGES}"]
    name = f"{size}-{filters}-{factor:g}-{seed}"
    rate = factor * default_rate(folder / f"{name}-default", flags)
    run_dir = folder / name
    if train(run_dir, [*flags, f"--lr={rate}", f"--total-images={arguments.images}"]):
        rows = read_metrics(RunDirectory(run_dir).metrics_file)
        penalty = max(row["r1_penalty"] for row in rows)
        loss = max(row["discriminator_loss"] for row in rows)
    else:
        penalty = loss = math.inf
    print(f"{name}: lr {rate:g}, largest penalty {penalty:.3g}, loss {loss:.3g}", flush=True)
    return rate, penalty, loss


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="a folder or a zip of images")
    parser.add_argument("--shapes", nargs="+", default=["32x64", "64x32", "64x64"])
    parser.add_argument("--factors", nargs="+", type=float, default=[1, 2, 4, 8])
    parser.add_argument("--images", type=int, default=8192, help="length of a run")
    parser.add_argument("--seeds", type=parse_seeds, default=(0,))
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    if 1 not in arguments.factors:
        parser.error(f"--factors: expected 1 among them, got {arguments.factors}")
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes]
    runs = [
        (size, filters, factor, int(seed))
        for (size, filters), factor, seed in itertools.product(
            shapes, arguments.factors, arguments.seeds
        )
    ]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda run: largest_of(run, arguments, Path(name)), runs))
    lines = [
        *page_head(
            "Multiples of the default learning rate", f"; {arguments.images:,} images a run"
        ),
        "",
        "| size, filters, seed | over the default | learning rate | largest R1 penalty | loss |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {size}x{size}, {filters}, {seed} | {factor:g} | {rate:g} | {penalty:.3g} | {loss:.3g} |"
        for (size, filters, factor, seed), (rate, penalty, loss) in zip(runs, found, strict=True)
    ]
    page = "\n".join([*lines, ""])
    print(page)
    if arguments.record:
        print(write_record("learning-rate", page))
    at_default = [row[1] for run, row in zip(runs, found, strict=True) if run[2] == 1]
    return 0 if max(at_default) <= LARGEST_STEADY else 1


if __name__ == "__main__":
    sys.exit(main())
