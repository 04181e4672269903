"""Is int8 at least twice as fast as fp32 on a CPU, and how far are its images off?

    python benchmarks/precision.py --data IMAGES [--run DIR] [--total-images 5000] [--record]

Trains the flagship at 64x64 with 64 filters for a short while, on one thread (a run that is there
already is not trained again), exports it in each precision and measures what ONNX Runtime
makes of it on one thread, in turns of a few batches each, alternately and in one process, as this
machine's speed drifts. Ratios are medians over turns of fp32's time over the other's in the same
turn; ranges are quartiles. CPU time counts, for others share the machine; images a second are by
the clock. float16 is for GPUs: a CPU computes it in float32 and casts, and it is shown for
completeness. Beside the flagship, whose first map is 2x2 pixels, stands the generator of Radford et
al. 2015, whose first map is 4x4, with random weights, which change nothing about speed. Prints a
Markdown page, --record keeps it; exits with 1 where the bar is missed.
"""

import argparse
import datetime as dt
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from records import arguments_given, commit, cpu_information, processor, write_record
from turns import in_order

from ganserve.models.onnx_weights import split_weights
from ganserve.models.runtime import open_session
from gantrain.export.artifact import export_run, reduce_precision
from gantrain.export.onnx_graph import to_onnx
from gantrain.export.precision import MIN_PSNR, Precision
from gantrain.export.precision_distance import Inputs
from gantrain.latents import draw_latents
from gantrain.networks import Shape, create_networks
from gantrain.presets import resolve
from gantrain.sampling import PixelGenerator, open_sampler, read_artifact
from gantrain.training.loop import train

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "fp16")
BATCHES = (1, 16, 64)
BAR, BAR_BATCH = 2.0, 16  # images a CPU-second over fp32's; the batch a loaded server runs
GOAL = 2.6
IMAGES_A_TURN = 64

Run = Callable[[Any], Any]


@dataclass(frozen=True)
class Turn:
    """Seconds an image."""

    cpu: float
    wall: float


Timings = Mapping[tuple[str, int], list[Turn]]  # by precision and batch


def time_in_turns(models: Mapping[str, bytes], latent_dim: int, turns: int) -> Timings:
    """Time each model at each batch size, all of them once a turn."""
    runs = {name: runner(content) for name, content in models.items()}
    timings: dict[tuple[str, int], list[Turn]] = {
        (name, batch): [] for name in runs for batch in BATCHES
    }
    for batch in BATCHES:
        latents = draw_latents(np.arange(batch, dtype=np.uint64), latent_dim)
        for run in runs.values():
            run(latents)  # what is done the first time
        for turn in range(turns):
            for name in in_order(runs, turn):
                timings[name, batch].append(one_turn(runs[name], latents))
    return timings


def runner(content: bytes) -> Run:
    """A session as the server opens it, with one thread."""
    session = open_session(split_weights(content), "cpu", 1)
    return lambda latents: session.run(["images"], {"latents": latents})


def one_turn(run: Run, latents: Any) -> Turn:  # noqa: ANN401 - an array
    """Make as many images as a turn has."""
    calls = max(1, IMAGES_A_TURN // len(latents))
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run(latents)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Turn(cpu / (calls * len(latents)), wall / (calls * len(latents)))


def ratios(timings: Timings, name: str, batch: int) -> list[float]:
    """How many times as many images a CPU-second as fp32, turn by turn."""
    pairs = zip(timings["fp32", batch], timings[name, batch], strict=True)
    return [whole.cpu / reduced.cpu for whole, reduced in pairs]


def with_quartiles(values: list[float], form: str) -> str:
    """Write the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def speed_rows(network: str, timings: Timings) -> list[str]:
    """Each precision and batch as a row."""
    rows = []
    for batch in BATCHES:
        for name in PRECISIONS:
            turns = timings[name, batch]
            rows.append(
                f"| {network} | {batch} | {name} | "
                f"{with_quartiles([1e6 * turn.cpu for turn in turns], '.0f')} | "
                f"{with_quartiles([1 / turn.wall for turn in turns], '.0f')} | "
                f"{with_quartiles(ratios(timings, name, batch), '.2f')} |"
            )
    return rows


def quality_row(path: Path) -> str:
    """What an artifact says of itself."""
    content = path.read_bytes()
    facts = read_artifact(open_session(split_weights(content), "cpu", 1), path)["precision"]
    size = f"{len(content) / 1e6:.1f}"
    if facts["kind"] == "fp32":
        return f"| fp32 | {size} | - | - | - | - | - |"
    distance, change = facts["distance"], facts.get("frechet_distance")
    frechet = "not measured"
    if change is not None:
        frechet = (
            f"{change['change']:+.3g} of {change['fp32']:.4g}; over seeds ± "
            f"{change['seed_spread']:.2g}"
        )
    layers = facts.get("layers")
    kept = [name for name, kind in (layers or {}).items() if kind == "fp32"]
    in_integers = "all"
    if layers is None:
        in_integers = "-"
    elif kept:
        in_integers = f"{facts['work_share']:.0%} of the work, not {', '.join(kept)}"
    return (
        f"| {facts['kind']} | {size} | {distance['psnr']:.1f} | "
        f"{distance['share_off_by_more_than_2']:.2%} | {distance['max_difference']} | {frechet} | "
        f"{in_integers} |"
    )


def train_shortly(data: Path, run_dir: Path, images: int) -> None:
    """Train the flagship at 64x64, unless the run is there."""
    if run_dir.exists():
        return
    settings = {"data": str(data), "run_dir": run_dir, "image_size": 64, "filters": 64}
    train(resolve({**settings, "threads": 1, "total_images": images}))


def untrained_2015() -> tuple[dict[str, bytes], int]:
    """The generator of Radford et al. 2015 in each precision, and its latents' size."""
    shape = Shape(64, 3, latent_dim=100, filters=64, kernel_size=4)
    generator, _ = create_networks("dcgan-2015", "dcgan-2015", shape, seed=0)
    graph = to_onnx(PixelGenerator(generator).eval(), shape.latent_dim)
    made: dict[str, bytes] = {}
    for precision in PRECISIONS:
        model, _ = reduce_precision(graph, Inputs(shape.latent_dim), precision, MIN_PSNR)
        made[precision] = model.SerializeToString()
    return made, shape.latent_dim


def render_page(
    quality: list[str],
    speed: list[str],
    reached: list[float],
    other: list[float],
    images_seen: int,
    turns: int,
) -> str:
    """The result as Markdown; `reached` by the flagship, and by the `other` generator."""
    middle = statistics.median(reached)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    verdict = "met" if middle >= BAR else f"missed by {BAR - middle:.2f}"
    others = "met" if statistics.median(other) >= BAR else "missed"
    return "\n".join(
        [
            f"# Precision of a 64x64 generator on a CPU, {dt.date.today()}",
            "",
            f"- command: `python benchmarks/precision.py {arguments_given()}`",
            (
                f"- commit {commit()}, torch {torch.__version__}, ONNX {onnx.__version__}, "
                f"ONNX Runtime {onnxruntime.__version__}, Python {platform.python_version()}"
            ),
            (
                f"- {processor()} ({instructions()}), {os.cpu_count()} CPUs, load average {load}; "
                "one thread"
            ),
            (
                f"- flagship, 64x64 RGB, 64 filters, {images_seen:,} training images seen; {turns} "
                "alternating turns"
            ),
            (
                f"- **int8 makes {with_quartiles(reached, '.2f')} times the images a CPU-second of "
                f"fp32, in batches of {BAR_BATCH}; the bar of {BAR} is {verdict}, the goal of "
                f"{GOAL} {'met' if middle >= GOAL else 'missed'}**"
            ),
            (
                f"- the same of the untrained `dcgan-2015`: {with_quartiles(other, '.2f')}, "
                f"the bar is {others}"
            ),
            "",
            "Images of 256 seeds that nothing was calibrated on; a step is a grey level:",
            "",
            (
                "| precision | MB | PSNR, dB | values off by more than 2 | at most off by | "
                "Frechet distance | layers in integers |"
            ),
            "|---|---|---|---|---|---|---|",
            *quality,
            "",
            "Median and quartiles over turns:",
            "",
            "| generator | batch | precision | CPU us an image | images/s | times fp32 |",
            "|---|---|---|---|---|---|",
            *speed,
            "",
        ]
    )


def instructions() -> str:
    """Which of the instructions that integer kernels use it has."""
    flags = set(cpu_information().split())
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx_vnni": "AVX-VNNI", "avx512_vnni": "VNNI"}
    return ", ".join(name for flag, name in known.items() if flag in flags) or "unknown"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="images to train on")
    parser.add_argument("--run", type=Path, help="folder that keeps the run; unset: thrown away")
    parser.add_argument("--total-images", type=int, default=5000, help="to train on")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--frechet-samples", type=int, default=500)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run_dir, repository = arguments.run or Path(folder) / "run", Path(folder) / "models"
        train_shortly(arguments.data, run_dir, arguments.total_images)
        paths = {
            precision: export_run(
                run_dir,
                repository,
                precision,
                precision=precision,
                frechet_samples=arguments.frechet_samples,
            )
            for precision in PRECISIONS
        }
        quality = [quality_row(path) for path in paths.values()]
        sampler = open_sampler(paths["fp32"])
        flagship: dict[str, bytes] = {name: path.read_bytes() for name, path in paths.items()}
    timings = time_in_turns(flagship, sampler.latent_dim, arguments.turns)
    other = time_in_turns(*untrained_2015(), arguments.turns)
    speed = [*speed_rows("flagship", timings), *speed_rows("dcgan-2015, untrained", other)]
    reached = ratios(timings, "int8", BAR_BATCH)
    images_seen = int(sampler.settings["images_seen"])
    reached_by_other = ratios(other, "int8", BAR_BATCH)
    page = render_page(quality, speed, reached, reached_by_other, images_seen, arguments.turns)
    print(page)
    if arguments.record:
        print(write_record("precision", page))
    return 0 if statistics.median(reached) >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
