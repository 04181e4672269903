"""Hides how layers are written in 8-bit integers, as operators of ONNX and of ONNX Runtime.

Activations are uint8 on one grid a tensor, weights are int8 on one grid a column, sums are int32
and exact, so an image's bytes cannot depend on its batch. Weights keep to 7 bits: processors
without VNNI add two products in 16 bits, where 2 x 255 x 64 just fits. With 8 bits such sums would
saturate there, and the same artifact would make other images on another machine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gantrain.export.graph_draft import CHANNELS_FIRST, CHANNELS_LAST, Draft
from gantrain.export.window_nodes import corners, crop, write_product_of_each
from gantrain.export.window_products import Product, WindowProducts

MICROSOFT = "com.microsoft"
WEIGHT_BITS = 7
_LARGEST_WEIGHT = 2 ** (WEIGHT_BITS - 1) - 1
_LARGEST_BIAS = 2.0**24  # of 2^31; the products of 130,000 rows fit beside it


@dataclass(frozen=True)
class Grid:
    """What a uint8 value u stands for: scale * (u - zero)."""

    scale: float
    zero: int


def grid_between(lowest: float, highest: float) -> Grid:
    """A grid that reaches over a range and has 0 on it, where padding and ReLU need it."""
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    scale = (highest - lowest) / 255 or 1.0
    return Grid(scale, round(-lowest / scale))


@dataclass(frozen=True)
class Operand:
    """A tensor in integers: [n, features], or maps with the channels last."""

    name: str
    grid: Grid


def write_grid(draft: Draft, grid: Grid) -> list[str]:
    """Scale and zero point, as operators take them."""
    return [
        draft.constant(np.array(grid.scale, np.float32)),
        draft.constant(np.array(grid.zero, np.uint8)),
    ]


def quantize(draft: Draft, source: str, grid: Grid, *, maps: bool) -> Operand:
    """Round a float tensor to its grid; maps come with the channels first."""
    name = draft.add("QuantizeLinear", [source, *write_grid(draft, grid)])
    return Operand(draft.transpose(name, CHANNELS_LAST) if maps else name, grid)


def dequantize(draft: Draft, operand: Operand, output: str, *, maps: bool) -> None:
    """Make the float tensor again, maps with the channels first, under a name of its own."""
    name = draft.transpose(operand.name, CHANNELS_FIRST) if maps else operand.name
    draft.add("DequantizeLinear", [name, *write_grid(draft, operand.grid)], output=output)


@dataclass(frozen=True)
class Weights:
    """A matrix in integers, each column on a grid of its own around 0, and what is added."""

    values: NDArray[np.int8]  # [rows, columns]
    scales: NDArray[np.float32]  # [columns]
    bias: NDArray[np.int32]  # [columns], in units of the grids' product

    def operands(self, draft: Draft, values: NDArray[np.int8]) -> list[str]:
        """The values, laid out as an operator wants them, their scales and zero points."""
        zeros = np.zeros(len(self.scales), np.int8)
        return [draft.constant(values), draft.constant(self.scales), draft.constant(zeros)]


def round_weights(
    matrix: NDArray[np.float32],  # [rows, columns]
    bias: NDArray[np.float32],  # [columns]
    means: NDArray[np.float32],  # [rows], what comes in on the average
    grid: Grid,  # of what comes in
) -> Weights:
    """Round a matrix to integers; the bias makes up for what rounding does to the average.

    That is the bias correction of Nagel et al., "Data-free quantization through weight equalization
    and bias correction", 2019, with means that were measured.
    """
    # A column of almost nothing takes a coarser grid, on which its bias is still an integer.
    scales = np.maximum(
        np.abs(matrix).max(axis=0) / _LARGEST_WEIGHT, np.abs(bias) / (grid.scale * _LARGEST_BIAS)
    )
    scales[scales == 0] = 1
    scales = scales.astype(np.float32)
    values = np.rint(matrix / scales)
    lost = means.astype(np.float64) @ (matrix - values * scales)
    whole_bias = np.rint((bias + lost) / (np.float64(grid.scale) * scales))
    return Weights(values.astype(np.int8), scales, whole_bias.astype(np.int32))


def write_dense(
    draft: Draft, source: Operand, weights: Weights, result: Grid | None, output: str = ""
) -> str:
    """Rows times a matrix: uint8 on a grid, clamped at its ends, or float where there is none."""
    return draft.add(
        "QGemm",
        [
            *(source.name, *write_grid(draft, source.grid)),
            *weights.operands(draft, weights.values),
            draft.constant(weights.bias),
            *(write_grid(draft, result) if result else []),
        ],
        output=output,
        domain=MICROSOFT,
    )


def write_convolution(
    draft: Draft,
    source: Operand,
    products: WindowProducts,
    bias: NDArray[np.float32],  # [channels]
    means: NDArray[np.float32],  # [channels, height, width], of what comes in
    result: Grid,
) -> Operand:
    """Maps to maps, both with the channels last."""
    top, left, bottom, right = products.pads
    padded_means = np.pad(means, ((0, 0), (top, bottom), (left, right)))
    rounded = [
        round_weights(
            product.matrix,
            np.tile(bias, product.matrix.shape[1] // len(bias)),
            window_means(padded_means, product, products.positions),
            source.grid,
        )
        for product in products.products
    ]
    if len(rounded) == 1:
        name = _write_product_of_all(draft, source, products, rounded[0], result)
    else:

        def multiply(rows: str, phase: int) -> str:
            return write_dense(draft, Operand(rows, source.grid), rounded[phase], result)

        zero = write_grid(draft, source.grid)[1]
        name = write_product_of_each(draft, source.name, products, multiply, zero)
    return Operand(crop(draft, name, products), result)


def window_means(
    padded: NDArray[np.float32],  # [channels, height, width]
    product: Product,
    positions: tuple[int, int],
) -> NDArray[np.float32]:  # [taps * channels]
    """The mean over positions of what each row of a product's matrix meets."""
    return np.concatenate(
        [
            padded[:, y : y + positions[0], x : x + positions[1]].mean(axis=(1, 2))
            for y, x in corners(product)
        ]
    )


def _write_product_of_all(
    draft: Draft, source: Operand, products: WindowProducts, weights: Weights, result: Grid
) -> str:
    """A plain convolution, whose channels are then spread over the phases."""
    ((height, width),) = (product.taps for product in products.products)
    columns = len(weights.scales)
    kernels = weights.values.reshape(height, width, -1, columns).transpose(3, 2, 0, 1)
    name = draft.add(
        "QLinearConv",
        [
            *(draft.transpose(source.name, CHANNELS_FIRST), *write_grid(draft, source.grid)),
            *weights.operands(draft, np.ascontiguousarray(kernels)),
            *(*write_grid(draft, result), draft.constant(weights.bias)),
        ],
        pads=products.pads,
        kernel_shape=[height, width],
    )
    name = draft.transpose(name, CHANNELS_LAST)
    (down, across), (rows, columns) = products.phases, products.positions
    if (down, across) == (1, 1):
        return name
    apart = draft.sizes(-1, rows, columns, down, across, products.channels)
    name = draft.add("Reshape", [name, apart])
    name = draft.transpose(name, [0, 1, 3, 2, 4, 5])
    together = draft.sizes(-1, rows * down, columns * across, products.channels)
    return draft.add("Reshape", [name, together])
