"""What does serving from a GPU cost, and does it keep its promise?

    python benchmarks/gpu_serving.py --record

Needs a GPU and the extras gpu and train. The 64x64 generator of benchmarks/serving.py, in float32
and float16. The bare session is one with fixed buffers (I/O binding), called from one thread at its
best batch size; ours is the server with that batch size, asked for requests of 64 RAW images by
several clients; both in turns. What limits it stands beside it: the copies to and from the device
alone, and a Python echo with replies as long. Then: strict against fast, CUDA graphs against none,
float16 against float32, the bits at every batch size, and what a server does that finds no GPU.
With `--device cpu` everything is done on the CPU, which shows that the script works and says
nothing of GPUs. Prints a Markdown page, --record keeps it; exits with 1 where there is no such
device.
"""

import argparse
import datetime as dt
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from gpu_measurements import (
    CALLS_EACH,
    CLIENTS,
    IMAGES,
    call,
    count_wrong,
    gpu_name,
    pixels,
    provider_of,
    refuses_without_gpu,
    run_bare,
    run_copies,
)
from gpu_models import NAMES, open_model, write_generators
from records import arguments_given, commit, processor, write_record
from serving import Bar, Cost, in_turns, ratios, wall
from serving_processes import echoing, serving

from ganserve.errors import ModelError, ProviderUnavailable
from ganserve.models.gpu_sessions import GpuSettings
from ganserve.models.model import Model
from ganserve.models.providers import FIRST_PROVIDERS

IMAGE_BYTES = 64 * 64 * 3

# A name for each way to run the model: its precision, and what the server would be told.
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "fp32, strict, no graphs": ("fp32", {"reproducibility": "strict", "cuda_graphs": "off"}),
    "fp32, strict, graphs where quicker": ("fp32", {"reproducibility": "strict"}),
    "fp32, fast": ("fp32", {"reproducibility": "fast"}),
    "fp16, strict": ("fp16", {"reproducibility": "strict"}),
    "fp16, fast": ("fp16", {"reproducibility": "fast"}),
}
OURS = "fp32, strict, graphs where quicker"  # the defaults


def main() -> None:
    """Measure, print the page; --record keeps it."""
    arguments = parse_arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1, "gpu") as executor:
        repository = Path(folder)
        write_generators(repository)
        try:
            models, refused = open_ways(repository, arguments, executor)
        except ProviderUnavailable as error:
            print(f"no CUDA device here, so nothing was measured: {error}")
            sys.exit(1)
        speeds = measure_sizes(models, arguments)
        bars = compare_bits(models, arguments)
        if OURS in models:
            bars += measure_serving(repository, models[OURS], speeds[OURS], arguments)
        bars += compare_ways(speeds)
        right = refuses_without_gpu(repository, arguments.device)
        bars.append(yes_or_no("without a visible GPU the server ends with 1", right))
    page = render_page(arguments, bars, speeds, refused, time.monotonic() - began)
    print(f"\n{page}")
    if arguments.record and arguments.device == "cpu":
        print("not recorded: the CPU stood for a GPU")
    elif arguments.record:
        print(write_record("gpu-serving", page))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "tensorrt", "cpu"], default="cuda")
    parser.add_argument("--batch-sizes", default="1,2,4,8,16,32,64,128", help="to be tried")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each kind")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    arguments.batch_sizes = sorted(map(int, arguments.batch_sizes.split(",")))
    return arguments


def open_ways(
    repository: Path, arguments: argparse.Namespace, executor: ThreadPoolExecutor
) -> tuple[dict[str, Model], dict[str, str]]:
    """Load the generator to be run in each way; of some ways why it was refused.

    Raises:
        ProviderUnavailable: there is no such device.
    """
    models, refused = {}, {}
    for way, (precision, settings) in WAYS.items():
        gpu = GpuSettings(executor, **settings)  # type: ignore[arg-type]  # words of the table
        started = time.perf_counter()
        try:
            models[way] = open_model(
                repository, precision, arguments.device, arguments.batch_sizes, gpu
            )
        except ProviderUnavailable:
            raise
        except ModelError as error:
            refused[way] = str(error).partition("model.onnx: ")[2]
            print(f"{way}: {refused[way]}", flush=True)
        else:
            seconds = time.perf_counter() - started
            sizes = models[way].batch_sizes
            print(f"{way}: loaded in {seconds:.2f} s, batch sizes {sizes}", flush=True)
    return models, refused


Speeds = dict[int, list[float]]  # images a second by batch size, turn by turn


def measure_sizes(models: dict[str, Model], arguments: argparse.Namespace) -> dict[str, Speeds]:
    """How many images each model makes at each of its batch sizes, all of them once a turn."""
    seconds = arguments.seconds / 4
    kinds: dict[str, Callable[[], Cost]] = {
        f"{way} at {size}": lambda model=model, size=size: run_bare(model, size, seconds)  # type: ignore[misc]
        for way, model in models.items()
        for size in model.batch_sizes
    }
    turns = in_turns(kinds, arguments.turns)
    return {
        way: {
            size: [cost.per_second for cost in turns[f"{way} at {size}"]]
            for size in model.batch_sizes
        }
        for way, model in models.items()
    }


def best_size(speeds: Speeds) -> int:
    """The batch size at which most images are made."""
    return max(speeds, key=lambda size: statistics.median(speeds[size]))


def compare_bits(models: dict[str, Model], arguments: argparse.Namespace) -> list[Bar]:
    """Whether images are the same at every size, and how far `fast` is off."""
    bars = []
    wanted = len(arguments.batch_sizes)
    for way in [way for way in models if "strict" in way]:
        used = len(models[way].batch_sizes)
        name = f"{way}: batch sizes with the bits of the largest, of {wanted}"
        bars.append(Bar(name, wanted, True, [used], ".0f"))
        wrong = count_wrong(models[way])
        bars.append(
            Bar(f"{way}: images with other bits, batches of 1 to 64", 0, False, [wrong], ".0f")
        )
    if {OURS, "fp32, fast"} <= models.keys():
        share = float(np.mean(pixels(models[OURS]) != pixels(models["fp32, fast"])))
        name = "fp32: share of bytes that fast makes otherwise"
        bars.append(Bar(name, None, False, [share], ".2%"))
    return bars


def measure_serving(
    repository: Path, model: Model, speeds: Speeds, arguments: argparse.Namespace
) -> list[Bar]:
    """Requests of 64 RAW images, beside the bare session and what may limit them."""
    size, seconds, device = best_size(speeds), arguments.seconds, arguments.device
    sizes = ",".join(str(other) for other in model.batch_sizes if other <= size)
    flags = ["--max-batch-size", str(size), "--batch-sizes", sizes, "--threads", "1"]
    name = NAMES["fp32"]
    with (
        serving(repository, *flags, "--instances", "1", device=device) as one,
        serving(repository, *flags, "--instances", "2", device=device) as two,
        echoing(IMAGES * IMAGE_BYTES) as echo,
    ):
        used = {provider_of(process, name) for process in (one, two)}
        kinds: dict[str, Callable[[], Cost]] = {
            "bare": lambda: run_bare(model, size, seconds),
            "copies": lambda: run_copies(device, size, seconds / 2),
            "echo": lambda: call(echo, name, seconds),
            "one": lambda: call(one, name, seconds),
            "two": lambda: call(two, name, seconds),
        }
        turns = in_turns(kinds, arguments.turns)
    bare = turns["bare"]
    provider = FIRST_PROVIDERS[device]
    return [
        Bar(f"RAW requests of 64 at batch size {size}: images per second over bare, one instance",
            0.9, True, ratios(turns["one"], bare, wall)),
        Bar("the same, two instances", 0.9, True, ratios(turns["two"], bare, wall)),
        Bar("limit: an echo with the same replies over bare", None, True,
            ratios(turns["echo"], bare, wall)),
        Bar("limit: copies to and from the device alone over bare", None, True,
            ratios(turns["copies"], bare, wall)),
        Bar("bare, images per second", None, True, [cost.per_second for cost in bare], ".0f"),
        yes_or_no(f"both servers run the model on {provider}", used == {provider}),
    ]  # fmt: skip


def compare_ways(speeds: dict[str, Speeds]) -> list[Bar]:
    """What the settings cost, each at its own best size, and at the smallest that both have."""
    bars = []
    for name, over, under in (
        ("CUDA graphs where quicker, over none", OURS, "fp32, strict, no graphs"),
        ("fp32: fast over strict", "fp32, fast", OURS),
        ("fp16 over fp32, strict", "fp16, strict", OURS),
        ("fp16: fast over strict", "fp16, fast", "fp16, strict"),
    ):
        if not {over, under} <= speeds.keys():
            continue
        above, below = speeds[over], speeds[under]
        pairs = zip(above[best_size(above)], below[best_size(below)], strict=True)
        bars.append(Bar(f"{name}, best sizes", None, True, [a / b for a, b in pairs]))
        if common := above.keys() & below.keys():
            size = min(common)
            pairs = zip(above[size], below[size], strict=True)
            bars.append(Bar(f"{name}, batches of {size}", None, True, [a / b for a, b in pairs]))
    return bars


def yes_or_no(name: str, right: bool) -> Bar:
    """A bar that is met or not: 1 or 0."""
    return Bar(name, 1, True, [float(right)], ".0f")


def render_page(
    arguments: argparse.Namespace,
    bars: list[Bar],
    speeds: dict[str, Speeds],
    refused: dict[str, str],
    seconds: float,
) -> str:
    """The result as Markdown."""
    sizes = arguments.batch_sizes
    rows = []
    for way, row in speeds.items():
        cells = [f"{statistics.median(row[size]):.0f}" if size in row else "-" for size in sizes]
        rows.append(f"| {way} | {' | '.join(cells)} |")
    lines = [
        f"# Serving from {gpu_name(arguments.device)}, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/gpu_serving.py {arguments_given()}`, {seconds:.0f} s",
        f"- commit {commit()}, {versions()}, Python {platform.python_version()}",
        f"- {processor()}, {os.cpu_count()} CPUs, shared by server, clients and bare session",
        f"- medians (lowest to highest) of {arguments.turns} turns; {CLIENTS} clients in Python,",
        f"  {CALLS_EACH} calls each",
        *(f"- refused: {way}: {why}" for way, why in refused.items()),
        "",
        "| bar | value | measured | met |",
        "|---|---|---|---|",
        *(bar.row() for bar in bars),
        "",
        "Images a second of the session alone, by batch size:",
        "",
        f"| way | {' | '.join(map(str, sizes))} |",
        "|---" * (len(sizes) + 1) + "|",
        *rows,
    ]
    return "\n".join([*lines, ""])


def versions() -> str:
    """Of what takes part, as far as it is installed."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu", "nvidia-cudnn-cu13", "grpcio", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    main()
