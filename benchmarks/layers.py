"""Where is a matrix product quicker than oneDNN's convolution, on this processor?

    python benchmarks/layers.py [--batches 64,128] [--threads 1,2] [--turns 5] [--record]

The three kinds of layers that training is made of, each in both ways, by turns in one process: maps
halved, maps doubled, the gradient of the weights. Shapes are those of the smallest maps of the
networks here. A ratio is the median over turns of oneDNN's wall time over the product's in the same
turn; above 1 the product is quicker. Limits that follow from it are in
`gantrain/networks/product_limits.py`; `*` marks what they choose. Prints a Markdown page, --record
keeps it.
"""

import argparse
import datetime as dt
import os
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from records import arguments_given, commit, processor, write_record
from torch import Tensor
from turns import in_order

from gantrain.memory import keep_buffers
from gantrain.networks import convolutions
from gantrain.networks.convolutions import double_maps, halve_maps, weight_gradient
from gantrain.networks.product_limits import Way, is_product_quicker
from gantrain.seed_ranges import parse_seeds

# Channels of the small map and of the large one, pixels a side of the small map.
SHAPES = (
    *((512, 512, 2), (512, 256, 2), (256, 256, 2), (256, 128, 2), (128, 64, 2)),
    *((512, 256, 3), (256, 128, 3), (128, 64, 3)),
    *((512, 512, 4), (512, 256, 4), (256, 256, 4), (256, 128, 4), (128, 64, 4)),
    *((256, 128, 8), (128, 64, 8)),
)
Layer = Callable[[], Tensor]


def layers(
    small_channels: int, large_channels: int, side: int, batch: int, dtype: torch.dtype
) -> dict[Way, Layer]:
    """The layers between two maps."""
    layout = torch.channels_last
    small, large, weight = (
        torch.randn(shape).to(dtype, memory_format=layout)
        for shape in (
            (batch, small_channels, side, side),
            (batch, large_channels, 2 * side, 2 * side),
            (small_channels, large_channels, 4, 4),
        )
    )
    return {
        "halve": lambda: halve_maps(large, weight),
        "double": lambda: double_maps(small, weight, None, 2 * side),
        "learn": lambda: weight_gradient(small, large),
    }


def milliseconds(layer: Layer, product: bool) -> float:
    """Wall time of one call, in the way asked for."""
    with mock.patch.object(convolutions, "is_product_quicker", return_value=product):
        began = time.perf_counter()
        layer()
        return (time.perf_counter() - began) * 1e3


def rows(batch: int, threads: int, dtype: torch.dtype, turns: int) -> Iterator[str]:
    """A row for each shape."""
    torch.set_num_threads(threads)
    for small_channels, large_channels, side in SHAPES:
        cells = [f"{side}x{side}", f"{small_channels}, {large_channels}"]
        for way, layer in layers(small_channels, large_channels, side, batch, dtype).items():
            pairs = []
            for turn in range(turns + 1):
                took = {
                    product: milliseconds(layer, product)
                    for product in in_order((False, True), turn)
                }
                pairs.append([took[False], took[True]])
            del pairs[0]  # which warms up
            onednn, product = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for one, other in pairs)
            weights = 16 * small_channels * large_channels
            chosen = "*" if is_product_quicker(way, side, weights, dtype) else ""
            cells.append(f"{onednn:.1f}, {product:.1f}: {ratio:.2f}{chosen}")
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batches", type=parse_seeds, default=(64, 128))
    parser.add_argument("--threads", type=parse_seeds, default=(1, 2))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        f"# Layers of small maps in two ways, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/layers.py {arguments_given()}`",
        f"- commit {commit()}, PyTorch {torch.__version__}",
        f"- {processor()}, load average {load}",
        "- milliseconds of oneDNN, of the product: ratio; `*` where `gantrain` takes the product",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for threads in arguments.threads:
            for batch in arguments.batches:
                name = str(dtype).removeprefix("torch.")
                lines += ["", f"## {name}, {batch} images, threads: {threads}", ""]
                lines += ["| small map | channels, small and large | halved | doubled | weights |"]
                lines += ["|---|---|---|---|---|", *rows(batch, threads, dtype, arguments.turns)]
    page = "\n".join([*lines, ""])
    print(page)
    if arguments.record:
        print(write_record("layers", page))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    keep_buffers()  # as training does
    main()
