"""What do requests that come alone gain by a session that uses all CPUs, and what do others lose?

    python benchmarks/lone_batches.py [--turns 8] [--record]

Two servers of the 64x64 generator, one with its defaults and one with `--threads 1`, are called in
turns by h2load, over one connection, with so many calls under way. Latency and CPU time are those
of a call; each ratio is the median over turns of the first server's over the other's in the same
turn. Prints a Markdown page, --record keeps it.
"""

import argparse
import datetime as dt
import statistics
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from records import arguments_given, commit, processor, write_record
from serving_models import write_models
from serving_processes import Process, call_with_h2load, serving
from turns import in_order

from ganserve.cpus import usable_cpus

IMAGE_BYTES = 64 * 64 * 3
# Images a request, calls under way.
LOADS = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (1, 2), (1, 4), (1, 64), (64, 4))
_SECONDS = 1.5  # of a turn, about
_DEFAULT, _ONE = "defaults", "--threads 1"
_COLUMNS = (
    *("images a request, calls under way", "latency with all CPUs, ms", "with one thread, ms"),
    *("ratio", "CPU time with all CPUs, ms", "with one thread, ms", "ratio"),
)


@dataclass
class Turns:
    """What a server took for a call, turn by turn, in milliseconds."""

    latency: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, print the page; --record keeps it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_models(models)
        with serving(models) as default, serving(models, "--threads", "1") as one:
            page = measure({_DEFAULT: default, _ONE: one}, arguments.turns)
    print(page)
    if arguments.record:
        print(write_record("lone-batches", page))


def measure(servers: dict[str, Process], turns: int) -> str:
    """All loads in turns, as a page."""
    lines = [
        f"# Batches that come alone, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/lone_batches.py {arguments_given()}`",
        f"- commit {commit()}, onnxruntime {version('onnxruntime')}",
        f"- {processor()}, {usable_cpus()} CPUs, shared by both servers and h2load",
        f"- medians of {turns} turns; ratios with their lowest and highest value",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for images, concurrency in LOADS:
        found = {name: Turns() for name in servers}
        first = call(servers[_ONE], images, concurrency, concurrency * 4)[0]
        calls = max(concurrency * 4, int(_SECONDS * 1e3 / first * concurrency))
        for number in range(turns):
            for name in in_order([*servers], number):
                latency, cpu = call(servers[name], images, concurrency, calls)
                found[name].latency.append(latency)
                found[name].cpu.append(cpu)
        lines.append(render_row(f"{images}, {concurrency}", found[_DEFAULT], found[_ONE]))
        print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


def call(server: Process, images: int, concurrency: int, calls: int) -> tuple[float, float]:
    """Latency and the server's CPU time of a call, milliseconds."""
    before = server.cpu_seconds()
    least_bytes = images * IMAGE_BYTES
    seconds = call_with_h2load(server, "dcgan64", images, concurrency, calls, "RAW", least_bytes)
    return seconds * concurrency / calls * 1e3, (server.cpu_seconds() - before) / calls * 1e3


def render_row(load: str, first: Turns, other: Turns) -> str:
    """A row of the table."""
    cells = [load]
    for ours, theirs in ((first.latency, other.latency), (first.cpu, other.cpu)):
        ratios = [mine / its for mine, its in zip(ours, theirs, strict=True)]
        cells += [f"{statistics.median(ours):.2f}", f"{statistics.median(theirs):.2f}"]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
