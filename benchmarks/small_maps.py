"""What do generators gain by the way in which exported graphs double their smallest maps?

    python benchmarks/small_maps.py [--turns 20] [--record]

Flagship generators with random weights, which change nothing about speed, as PyTorch's exporter
writes them and as `gantrain export` does, in turns in one process, on one thread. CPU time counts,
for others may share the machine. A ratio is the median over turns of the first's time over the
other's in the same turn; ranges are quartiles. Where the smallest map is 3x3 and has few weights,
as at 28x28, the export leaves the graph alone: what it would gain is shown. Prints a Markdown page,
--record keeps it.
"""

import argparse
import datetime as dt
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from records import arguments_given, commit, processor, write_record
from turns import in_order

from ganserve.models.onnx_weights import split_weights
from ganserve.models.runtime import open_session
from gantrain.export.onnx_graph import to_onnx
from gantrain.export.small_maps import lower_small_maps
from gantrain.latents import draw_latents
from gantrain.networks import Shape, create_networks
from gantrain.sampling import PixelGenerator

LATENT_DIM = 64
# Pixels a side of the image, filters, pixels a side of its smallest map.
GENERATORS = (
    *((8, 64, 2), (16, 64, 2), (32, 64, 2), (64, 64, 2), (128, 64, 2)),
    *((32, 16, 2), (28, 64, 3), (48, 64, 3), (96, 64, 3)),
)
BATCHES = (1, 4, 16)
IMAGES_A_TURN = 64

Run = Callable[[], Any]


def build(image_size: int, filters: int) -> onnx.ModelProto:
    """The flagship's generator of RGB images as the exporter writes it."""
    shape = Shape(image_size, 3, latent_dim=LATENT_DIM, filters=filters, kernel_size=5)
    generator, _ = create_networks("dcgan", "dcgan", shape, seed=0)
    return to_onnx(PixelGenerator(generator).eval(), LATENT_DIM)


def runner(model: onnx.ModelProto, batch: int) -> Run:
    """A batch made by a session as the server opens it, with one thread."""
    session = open_session(split_weights(model.SerializeToString()), "cpu", 1)
    latents = draw_latents(np.arange(batch, dtype=np.uint64), LATENT_DIM)
    return lambda: session.run(["images"], {"latents": latents})


def cpu_seconds(run: Run, batch: int) -> float:
    """CPU time an image."""
    calls = max(1, IMAGES_A_TURN // batch)
    began = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - began) / (calls * batch)


def compare(image_size: int, filters: int, side: int, turns: int) -> list[str]:
    """A row for each size of batch."""
    plain = build(image_size, filters)
    lowered = lower_small_maps(plain, many_weights=1)
    rows = []
    for batch in BATCHES:
        runs = [runner(model, batch) for model in (plain, lowered)]
        first, second = (run()[0].astype(int) for run in runs)
        furthest, share = np.abs(first - second).max(), (first != second).mean()
        pairs = []
        for turn in range(turns):
            took = {which: cpu_seconds(runs[which], batch) for which in in_order((0, 1), turn)}
            pairs.append([took[0], took[1]])
        before, after = (1e6 * statistics.median(column) for column in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles([old / new for old, new in pairs], n=4)
        rows.append(
            f"| {image_size}x{image_size} | {filters} | {side}x{side} | {batch} | {before:.0f} | "
            f"{after:.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) | {furthest}, {share:.1e} |"
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    rows = [row for generator in GENERATORS for row in compare(*generator, arguments.turns)]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    page = "\n".join(
        [
            f"# The smallest maps of generators, {dt.date.today()}",
            "",
            f"- command: `python benchmarks/small_maps.py {arguments_given()}`",
            f"- commit {commit()}, onnxruntime {onnxruntime.__version__}",
            f"- {processor()}, one thread, load average {load}",
            "- flagship generators, random weights; CPU microseconds an image",
            "",
            (
                "| images | filters | smallest map | batch | ConvTranspose | products | times | "
                "furthest, share of values that differ |"
            ),
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    print(page)
    if arguments.record:
        print(write_record("small-maps", page))


if __name__ == "__main__":
    main()
