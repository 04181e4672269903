"""What does serving cost? The bare runtime, a server that does nothing and ours, turn by turn.

python benchmarks/serving.py --record

Everything shares two CPUs: the bare ONNX Runtime session at its best batch size (one thread a CPU,
latents ready, images thrown away), a Python gRPC echo whose replies are as long, our server, and
the clients. CPU time is therefore compared as well as wall time. Each figure is a ratio of
neighbours in time; medians and ranges are over the turns. Prints a table of bars and whether they
were met; takes eight to twelve minutes.
"""

import argparse
import datetime as dt
import io
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from records import commit, processor, stolen_seconds, write_record
from serving_models import LATENT_DIM, write_models
from serving_processes import (
    H2LOAD,
    Process,
    ask_client,
    call_with_h2load,
    echoing,
    own_cpu_seconds,
    serving,
)
from turns import in_order

from ganserve.cpus import usable_cpus
from ganserve.latents import draw_latents
from ganserve.models.loading import load_model
from ganserve.models.model import Model
from ganserve.png import encode_pngs

BATCH_SIZES = (4, 8, 16, 32)
CPUS = 2
STARTS = 5
SMALL_REPLY = 28 * 28


@dataclass(frozen=True)
class Cost:
    """What a number of images or calls took."""

    seconds: float
    cpu_seconds: float
    count: int

    @property
    def per_second(self) -> float:
        """Images, or calls, a second."""
        return self.count / self.seconds

    @property
    def cpu_each(self) -> float:
        """CPU seconds for one."""
        return self.cpu_seconds / self.count


@dataclass(frozen=True)
class Bar:
    """A figure, what it must be, and what it was in each turn; without a limit to compare with."""

    name: str
    limit: float | None
    at_least: bool
    values: list[float]
    form: str = ".2f"

    @property
    def median(self) -> float:
        """Of the turns."""
        return statistics.median(self.values)

    def row(self) -> str:
        """As a row of Markdown."""
        spread = f"{min(self.values):{self.form}} to {max(self.values):{self.form}}"
        measured = f"{self.median:{self.form}} ({spread})"
        if self.limit is None:
            return f"| {self.name} | - | {measured} | - |"
        met = self.median >= self.limit if self.at_least else self.median <= self.limit
        sign = "at least" if self.at_least else "at most"
        return f"| {self.name} | {sign} {self.limit:g} | {measured} | {'yes' if met else 'no'} |"


Turns = dict[str, list[Cost]]
Latencies = dict[str, list[dict[str, float]]]


def main() -> None:
    """Measure, print the table; --record keeps it."""
    arguments = parse_arguments()
    if hasattr(os, "sched_setaffinity"):  # children inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    began, stolen = time.monotonic(), stolen_seconds()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        write_models(models)
        bars = measure_large(models, arguments)
        bars += measure_small(models, arguments)
        bars += measure_metrics(models, arguments)
        bars += measure_overload(models, arguments)
        bars += measure_start(models, arguments)
    page = render_page(arguments, bars, time.monotonic() - began, stolen_seconds() - stolen)
    print(f"\n{page}")
    if arguments.record:
        print(write_record("serving", page))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.5, help="length of one measurement")
    parser.add_argument("--turns", type=int, default=7, help="measurements of each kind")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    return parser.parse_args()


def measure_large(models: Path, arguments: argparse.Namespace) -> list[Bar]:
    """The 64x64 generator, where the model takes most of the time.

    Each kind has the bare session as its neighbour, for the machine changes within seconds. Servers
    and bare sessions are started anew: by lot, some are up to a tenth quicker than others.
    """
    name, image_bytes = "dcgan64", 64 * 64 * 3
    path, seconds = models / name / "1" / "model.onnx", arguments.seconds
    model = load_model(path, "cpu", threads=1)
    batch = best_batch(model, seconds / 4)
    pixels = model.run_batch(draw_latents(np.arange(64, dtype=np.uint64), LATENT_DIM))
    turns: Turns = defaultdict(list)
    for _ in range(STARTS):
        model = load_model(path, "cpu", threads=1)
        with serving(models) as ours, echoing(image_bytes) as echo:
            run_model = partial(run_bare, model, batch, seconds / 2)
            kinds: dict[str, Callable[[], Cost]] = {
                "bare for 64": run_model,
                "64": partial(call, ours, name, 64, 4, seconds, image_bytes),
                "echo": partial(call, echo, name, 1, 64, seconds / 4, image_bytes),
                "bare for 1": run_model,
                "1": partial(call, ours, name, 1, 64, seconds / 2, image_bytes),
                "bare for Python": run_model,
                "1, Python": partial(call_from_python, ours, name, 1, 64, seconds),
                "encoder": partial(run_encoder, pixels, seconds / 4),
                "bare for png": run_model,
                "png": partial(call, ours, name, 64, 4, seconds, image_bytes // 10, "PNG"),
            }
            for kind, costs in in_turns(kinds, -(-2 * arguments.turns // STARTS)).items():
                turns[kind] += costs
    encoder = turns["encoder"]
    slower = [
        min(a.per_second, b.per_second) for a, b in zip(turns["bare for png"], encoder, strict=True)
    ]
    png = [cost.per_second / limit for cost, limit in zip(turns["png"], slower, strict=True)]
    ceiling = [
        one.cpu_each / (one.cpu_each + echo.cpu_each)
        for one, echo in zip(turns["bare for 1"], turns["echo"], strict=True)
    ]
    return [
        Bar("64x64 RAW, requests of 64: images per server CPU-second over bare", 0.97, True,
            ratios(turns["bare for 64"], turns["64"], cpu)),
        Bar("the same, images per second", 0.95, True,
            ratios(turns["64"], turns["bare for 64"], wall)),
        Bar("64x64 RAW, single images, 64 under way: images per server CPU-second over bare",
            0.85, True, ratios(turns["bare for 1"], turns["1"], cpu)),
        Bar("the same, images per second", 0.82, True,
            ratios(turns["1"], turns["bare for 1"], wall)),
        Bar("the same with a client in Python", 0.82, True,
            ratios(turns["1, Python"], turns["bare for Python"], wall)),
        Bar("single images: an echo in front of the bare session, per CPU-second over bare",
            None, True, ceiling),
        Bar("PNG of 64x64 RGB: CPU microseconds an image", 75, False,
            [cost.cpu_each * 1e6 for cost in encoder], ".0f"),
        Bar("PNG of 64x64 RGB: bytes over those of Pillow's level 1", 1, False,
            [png_bytes_over_pillow(pixels)], ".3f"),
        Bar("64x64 PNG, requests of 64: images per second over the slower of model and encoder",
            0.9, True, png),
    ]  # fmt: skip


def measure_small(models: Path, arguments: argparse.Namespace) -> list[Bar]:
    """The dense 28x28 generator, where the calls take most of the time."""
    name, seconds = "dense28", arguments.seconds / 2
    path = models / name / "1" / "model.onnx"
    model = load_model(path, "cpu", threads=1)
    batch = best_batch(model, arguments.seconds / 4)
    with (
        serving(models) as ours,
        echoing(SMALL_REPLY) as echo,
        echoing(SMALL_REPLY, str(path), str(LATENT_DIM)) as model_echo,
    ):
        kinds: dict[str, Callable[[], Cost]] = {
            "bare": lambda: run_bare(model, batch, seconds / 2),
            "echo": lambda: call(echo, name, 1, 64, seconds, SMALL_REPLY),
            "ours": lambda: call(ours, name, 1, 64, seconds, SMALL_REPLY),
        }
        turns = in_turns(kinds, arguments.turns * 2)
        callers: dict[str, Callable[[], dict[str, float]]] = {
            "bare": lambda: bare_latency(model),
            "echo": lambda: ask_client("latency", echo.address, name, 600),
            "echo with model": lambda: ask_client("latency", model_echo.address, name, 600),
            "ours": lambda: ask_client("latency", ours.address, name, 600),
        }
        latencies: Latencies = defaultdict(list)
        for turn in range(arguments.turns * 2):
            for kind in in_order(callers, turn):
                latencies[kind].append(callers[kind]())
    beyond = [
        (mine.cpu_each - bare.cpu_each) * 1e6
        for mine, bare in zip(turns["ours"], turns["bare"], strict=True)
    ]
    echo_us = statistics.median(cost.cpu_each * 1e6 for cost in turns["echo"])
    ratio = [
        mine.cpu_each / (echo.cpu_each + bare.cpu_each)
        for mine, echo, bare in zip(turns["ours"], turns["echo"], turns["bare"], strict=True)
    ]
    return [
        Bar("28x28 dense, single images, 64 under way: server CPU over echo and bare model",
            1.25, False, ratio),
        Bar("server CPU a small call beyond the model, microseconds "
            f"(the echo: {echo_us:.0f})", 250, False, beyond, ".0f"),
        Bar("latency at concurrency 1 beyond an echo's and the bare model's, p50, ms",
            0.3, False, added(latencies, "p50")),
        Bar("the same, p99, ms", 1, False, added(latencies, "p99")),
        *(
            Bar(f"beyond an echo that runs the model itself, {which}, ms", None, False,
                over_model_echo(latencies, which))
            for which in ("p50", "p99")
        ),
    ]  # fmt: skip


def measure_metrics(models: Path, arguments: argparse.Namespace) -> list[Bar]:
    """Small calls with metrics and without, which differ by less than the machine does in a second.

    So turns are short and many, each of the two comes first in half of them, and servers are
    started anew: no two lie alike in memory.
    """
    found = []
    for _ in range(arguments.turns):
        with serving(models) as ours, serving(models, silent=True) as silent:
            kinds: dict[str, Callable[[], Cost]] = {
                name: partial(call, process, "dense28", 1, 64, 0.4, SMALL_REPLY)
                for name, process in (("on", ours), ("off", silent))
            }
            turns = in_turns(kinds, 20)
        found.append(statistics.median(ratios(turns["on"], turns["off"], cpu)))
    name = "metrics on: server CPU over that with metrics off, medians of 20 neighbours"
    return [Bar(name, 1.02, False, found, ".3f")]


def measure_overload(models: Path, arguments: argparse.Namespace) -> list[Bar]:
    """Three times what it can carry, between two looks at how much that is."""
    name, images, seconds = "dcgan64", 16, arguments.seconds * 3
    goodput, refusals, lateness = [], [], []
    with serving(models, "--queue-size", "512") as ours:

        def find_peak() -> float:
            return call_from_python(ours, name, images, 8, seconds / 2).per_second

        before = find_peak()
        for _ in range(arguments.turns):
            report = ask_client(
                "open", ours.address, name, images, 3 * before / images, seconds * 1.5
            )
            if report["other"]:
                sys.exit(f"calls failed otherwise than refused: {set(report['other'])}")
            after = find_peak()
            goodput.append(report["images_per_second"] / statistics.mean([before, after]))
            refusals.append(report["refusal"]["p99"] * 1e3)
            lateness.append(report["lateness"]["p99"] * 1e3)
            before = after
    return [
        Bar("three times the load: goodput over peak", 0.9, True, goodput),
        Bar("three times the load: a refusal's p99 at the client, from the time when the call was "
            "due, ms", 5, False, refusals, ".1f"),
        Bar("of that the client's own, by which it began calls late: p99, ms",
            None, False, lateness, ".1f"),
    ]  # fmt: skip


def measure_start(models: Path, arguments: argparse.Namespace) -> list[Bar]:
    """From starting the process to SERVING, with one small model."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dense28").symlink_to(models / "dense28")
        for _ in range(min(5, arguments.turns)):
            started = time.perf_counter()
            with serving(Path(folder)):
                seconds.append(time.perf_counter() - started)
    return [Bar("process start to SERVING, small model, seconds", 1.5, False, seconds)]


def in_turns(kinds: dict[str, Callable[[], Cost]], turns: int) -> Turns:
    """Measure each kind in turn, there and back, once to warm up and then as often as asked."""
    costs: Turns = defaultdict(list)
    for turn in range(turns + 1):
        for name in in_order(kinds, turn):
            cost = kinds[name]()
            if turn > 0:
                costs[name].append(cost)
        line = ", ".join(f"{name}: {rows[-1].per_second:.0f}/s" for name, rows in costs.items())
        print(f"turn {turn} {line}", flush=True)
    return costs


def best_batch(model: Model, seconds: float) -> int:
    """The batch size at which the bare session makes most images, after a turn to warm up.

    Each is looked at there and back, for a wrong choice would flatter the server.
    """
    speeds: dict[int, float] = defaultdict(float)
    for turn in range(3):
        for size in in_order(BATCH_SIZES, turn):
            speed = run_bare(model, size, seconds / 2).per_second
            speeds[size] += speed if turn > 0 else 0
    return max(BATCH_SIZES, key=lambda size: speeds[size])


def run_bare(model: Model, batch_size: int, seconds: float) -> Cost:
    """Run the session from one thread on each CPU."""
    latents = draw_latents(np.arange(batch_size, dtype=np.uint64), LATENT_DIM)
    return in_threads(lambda: len(model.run_batch(latents)), seconds)


def run_encoder(pixels: NDArray[np.uint8], seconds: float) -> Cost:
    """Run the PNG encoder in one thread on each CPU."""
    return in_threads(lambda: len(encode_pngs(pixels)), seconds)


def in_threads(work: Callable[[], int], seconds: float) -> Cost:
    """Repeat work that returns how much it was, in one thread on each CPU."""
    counts = [0] * usable_cpus()
    end = time.perf_counter() + seconds

    def run(worker: int) -> None:
        while time.perf_counter() < end:
            counts[worker] += work()

    workers = [threading.Thread(target=run, args=(worker,)) for worker in range(len(counts))]
    start, cpu_start = time.perf_counter(), own_cpu_seconds()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Cost(time.perf_counter() - start, own_cpu_seconds() - cpu_start, sum(counts))


def call(
    process: Process,
    model: str,
    images: int,
    concurrency: int,
    seconds: float,
    image_bytes: int,
    image_format: str = "RAW",
) -> Cost:
    """Keep calls under way, with h2load where there is one; every call must succeed."""
    if H2LOAD is None:
        return call_from_python(process, model, images, concurrency, seconds, image_format)
    key = (process.id, model, images, image_format)
    calls = max(concurrency * 4, int(_RATES.get(key, 0) * seconds))
    cpu_start = process.cpu_seconds()
    elapsed = call_with_h2load(
        process, model, images, concurrency, calls, image_format, images * image_bytes
    )
    _RATES[key] = calls / elapsed
    return Cost(elapsed, process.cpu_seconds() - cpu_start, calls * images)


# Calls a second of each kind of load, as measured the last time: h2load wants a number of calls.
_RATES: dict[tuple[int, str, int, str], float] = {}


def call_from_python(
    process: Process,
    model: str,
    images: int,
    concurrency: int,
    seconds: float,
    image_format: str = "RAW",
) -> Cost:
    """Keep calls under way with gRPC's own client for asyncio."""
    cpu_start = process.cpu_seconds()
    report = ask_client(
        "closed", process.address, model, images, concurrency, seconds, image_format
    )
    cpu_seconds = process.cpu_seconds() - cpu_start
    return Cost(report["seconds"], cpu_seconds, int(report["calls"]) * images)


def bare_latency(model: Model) -> dict[str, float]:
    """Of single model calls: median and 99th percentile, after as few as its clients leave out."""
    latents, times = draw_latents(np.arange(1, dtype=np.uint64), LATENT_DIM), []
    for number in range(620):
        started = time.perf_counter()
        model.run_batch(latents)
        if number >= 20:
            times.append(time.perf_counter() - started)
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def added(latencies: Latencies, percentile: str) -> list[float]:
    """What is left of our server's latency after the echo's and the bare model's, milliseconds.

    A p99 less two p99s, which seldom fall together, is less than the server's own part.
    """
    rows = zip(latencies["ours"], latencies["echo"], latencies["bare"], strict=True)
    return [(o[percentile] - e[percentile] - b[percentile]) * 1e3 for o, e, b in rows]


def over_model_echo(latencies: Latencies, percentile: str) -> list[float]:
    """What our server adds to one that does nothing but run the model, in milliseconds.

    Between two calls the model's weights and code leave the processor's caches, and in a loop they
    do not: this has what that costs on both sides.
    """
    rows = zip(latencies["ours"], latencies["echo with model"], strict=True)
    return [(o[percentile] - e[percentile]) * 1e3 for o, e in rows]


def png_bytes_over_pillow(pixels: NDArray[np.uint8]) -> float:
    """How large our files are beside those of Pillow's compression level 1."""
    ours = sum(map(len, encode_pngs(pixels)))
    pillows = 0
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=1)
        pillows += len(file.getvalue())
    return ours / pillows


def wall(cost: Cost) -> float:
    """Its speed."""
    return cost.per_second


def cpu(cost: Cost) -> float:
    """Its CPU time for one image."""
    return cost.cpu_each


def ratios(over: list[Cost], under: list[Cost], figure: Callable[[Cost], float]) -> list[float]:
    """A figure of one kind over that of another, turn by turn."""
    return [figure(a) / figure(b) for a, b in zip(over, under, strict=True)]


def render_page(
    arguments: argparse.Namespace, bars: list[Bar], seconds: float, stolen: float
) -> str:
    """The result as Markdown."""
    names = ("onnxruntime", "grpcio", "numpy", "isal")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    client = (
        "h2load (C)" if H2LOAD else "gRPC's asyncio client, which takes as much CPU as a server"
    )
    lines = [
        f"# Serving beside the bare runtime and an echo, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/serving.py {' '.join(sys.argv[1:])}`, {seconds:.0f} s",
        f"- commit {commit()}, {versions}, Python {platform.python_version()}",
        f"- {processor()}, {usable_cpus()} CPUs, shared by server, client and bare session",
        f"- client, where nothing else is said: {client}",
        f"- medians (lowest to highest) of {arguments.turns} or more turns of each kind",
        f"- 64x64: {STARTS} starts of the server and of the bare session",
        f"- load at the end: {os.getloadavg()[0]:.1f} runnable threads over the last minute",
        f"- taken by the host's other machines: {stolen / seconds / usable_cpus():.1%} of CPU time",
        "",
        "| bar | value | measured | met |",
        "|---|---|---|---|",
        *(bar.row() for bar in bars),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
