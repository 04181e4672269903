"""Which layers of a generator go into 8-bit integers, and what their numbers are rounded to."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from gantrain.errors import RunError
from gantrain.export.integer_graph import Layer, Range, find_layers, to_integers
from gantrain.export.integer_layers import WEIGHT_BITS
from gantrain.export.precision_distance import (
    CALIBRATION,
    MEASURED,
    Distance,
    Inputs,
    measure_distance,
    measured_images,
    refuse_below,
)
from gantrain.pictures import Pixels
from gantrain.sampling import open_session

logger = logging.getLogger(__name__)

_BATCH = 64
_TRIED_ON = MEASURED[:64]  # enough to tell which layer costs most


@dataclass(frozen=True)
class Quantized:
    """A graph with layers in integers."""

    model: onnx.ModelProto
    distance: Distance
    layers: dict[str, str]  # name -> `int8` or `fp32`, of all that could be in integers
    work_share: float  # of the multiplications of those layers that are in integers

    def facts(self) -> dict[str, object]:
        """What the artifact's metadata tell of the method."""
        return {
            "method": "static",
            "weight_bits": WEIGHT_BITS,
            "layers": self.layers,
            "work_share": self.work_share,
            "calibration": {"first_seed": int(CALIBRATION[0]), "images": len(CALIBRATION)},
        }


def quantize_graph(model: onnx.ModelProto, inputs: Inputs, min_psnr: float) -> Quantized:
    """Put as much work into integers as keeps the images within `min_psnr` of the float graph's.

    All layers that have an integer form start in it; as long as the images are too far off, the one
    that costs most of the error for its share of the work goes back to float.

    Raises:
        RunError: the generator has no such layer, or not one may stay in integers.
    """
    layers = find_layers(model)
    if not layers:
        raise RunError(
            "--precision int8: this generator has no layer that would gain by it; export it as "
            "fp32; nothing was published"
        )
    ranges = calibrate(model, layers, inputs)
    expected = measured_images(model, inputs)
    work = {layer: layer.work(ranges) for layer in layers}
    chosen, trial = list(layers), _Trial(model, ranges, inputs)
    while True:
        quantized = to_integers(model, chosen, ranges)
        distance = measure_distance(measured_images(quantized, inputs), expected)
        logger.info("%d of %d layers in integers: %s", len(chosen), len(layers), distance)
        if distance.psnr >= min_psnr or len(chosen) == 1:
            break
        chosen.remove(trial.worst(chosen, work))
    refuse_below(distance, min_psnr, f"int8, even with {chosen[0].name} alone in integers,")
    return Quantized(
        model=quantized,
        distance=distance,
        layers={layer.name: "int8" if layer in chosen else "fp32" for layer in layers},
        work_share=sum(work[layer] for layer in chosen) / sum(work.values()),
    )


@dataclass(frozen=True, eq=False)
class _Trial:
    """What it takes to try a choice of layers."""

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    inputs: Inputs

    @cached_property
    def expected(self) -> Pixels:
        """The float graph's images."""
        return measured_images(self.model, self.inputs, _TRIED_ON)

    def worst(self, chosen: Sequence[Layer], work: Mapping[Layer, int]) -> Layer:
        """The layer whose return to float takes away most of the error for its work."""
        whole = self._error(chosen)
        return max(
            chosen,
            key=lambda layer: (
                (whole - self._error([other for other in chosen if other is not layer]))
                / work[layer]
            ),
        )

    def _error(self, chosen: Collection[Layer]) -> float:
        """Mean squared error, grey levels squared."""
        quantized = to_integers(self.model, chosen, self.ranges)
        pixels = measured_images(quantized, self.inputs, _TRIED_ON)
        return float(np.mean((pixels.astype(np.float64) - self.expected) ** 2))


def calibrate(
    model: onnx.ModelProto, layers: Collection[Layer], inputs: Inputs
) -> dict[str, Range]:
    """Lowest and highest values and means of what goes into the layers and comes out of them."""
    names = sorted({name for layer in layers for name in layer.tensors})
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(observed.SerializeToString())
    lowest = dict.fromkeys(names, np.inf)
    highest = dict.fromkeys(names, -np.inf)
    sums = dict.fromkeys(names, np.zeros((), np.float64))
    latents, labels = inputs.draw(CALIBRATION)
    for at in range(0, len(latents), _BATCH):
        rows = slice(at, at + _BATCH)
        feeds = {"latents": latents[rows]} | ({} if labels is None else {"labels": labels[rows]})
        for name, values in zip(names, session.run(names, feeds), strict=True):
            lowest[name] = min(lowest[name], float(values.min()))
            highest[name] = max(highest[name], float(values.max()))
            sums[name] = sums[name] + values.sum(axis=0, dtype=np.float64)
    return {
        name: Range(lowest[name], highest[name], (sums[name] / len(CALIBRATION)).astype(np.float32))
        for name in names
    }
