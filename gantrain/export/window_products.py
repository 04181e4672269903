"""Convolutions, plain and transposed, as products of windows of the map with matrices.

ONNX Runtime has integer kernels for products and for plain convolutions, none for transposed
ones. A transposed convolution of stride s computes, for each of the s x s phases of the output
grid, a plain one of stride 1: output y of one axis is made of the inputs i with y + pad = s * i + k
for some kernel index k, so all outputs with the same y mod s see the same kernel indices. Both ways
to compute the phases are exact: a product for each, or one over windows that all phases share, with
zeros where a phase does not look.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]  # [taps * channels, columns], the channels of a tap together

# Where a product for each phase is faster than one for all: measured, see docs/decisions. It needs
# no wider map, which counts where maps are small, but four copies of the map.
_SPLIT_UP_TO = 8  # pixels a side of the incoming map


@dataclass(frozen=True)
class Product:
    """Windows of the padded map, each times a matrix."""

    first: tuple[int, int]  # where in the padded map the first window starts: row, column
    taps: tuple[int, int]  # height and width of a window
    matrix: Matrix  # [taps[0] * taps[1] * channels, columns]


@dataclass(frozen=True)
class WindowProducts:
    """What computes a convolution: products at every position, then phases interleaved.

    With one product its columns hold the phases, phase by phase, and its windows start at 0.
    """

    pads: tuple[int, int, int, int]  # top, left, bottom, right
    positions: tuple[int, int]  # of a window
    phases: tuple[int, int]  # outputs of a position: rows and columns
    products: tuple[Product, ...]  # one, or one for each phase, row by row
    crop: tuple[int, int]  # rows and columns of the interleaved map before the output's first
    size: tuple[int, int]  # of the output
    channels: int  # of the output


@dataclass(frozen=True)
class Phase:
    """What one phase of an axis sees: window r starts at input `first + r`."""

    first: int
    kernel: tuple[int, ...]  # the kernel index that each input of the window meets


@dataclass(frozen=True)
class Axis:
    """One axis of a transposed convolution."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    pad: int  # at the beginning

    def phases(self, shift: int) -> list[Phase]:
        """The phases of the axis, with `shift` outputs more at its beginning."""
        pad = self.pad - shift
        found = []
        for phase in range(self.stride):
            index = (phase + pad) % self.stride
            last = (phase + pad - index) // self.stride  # input that kernel index `index` meets
            kernel = tuple(range(index, self.kernel, self.stride))[::-1]
            found.append(Phase(last - len(kernel) + 1, kernel))
        return found

    def positions(self, shift: int) -> int:
        """Windows that it takes to make all outputs."""
        return -(-(self.outputs + shift) // self.stride)

    def best_shift(self) -> int:
        """The shift with which the phases share the narrowest windows."""
        return min(range(self.stride), key=lambda shift: _span(self.phases(shift))[1])


def transposed_axes(
    inputs: Sequence[int],  # height and width, as in all that follows
    outputs: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],  # at the beginning
) -> tuple[Axis, Axis]:
    """Both axes of a transposed convolution, rows and columns."""
    sizes = zip(inputs, outputs, kernel, strides, pads, strict=True)
    rows, columns = (Axis(*of_axis) for of_axis in sizes)
    return rows, columns


def lower_convolution(
    weights: NDArray[np.float32],  # [outputs, inputs, height, width]
    pads: Sequence[int],  # top, left, bottom, right
    inputs: tuple[int, int],
) -> WindowProducts:
    """A plain convolution of stride 1 of maps of that size."""
    columns, _, *taps = weights.shape
    matrix = weights.transpose(2, 3, 1, 0).reshape(-1, columns)
    top, left, bottom, right = pads
    height = inputs[0] + top + bottom - taps[0] + 1
    width = inputs[1] + left + right - taps[1] + 1
    product = Product((0, 0), (taps[0], taps[1]), matrix)
    size = (height, width)
    return WindowProducts(
        (top, left, bottom, right), size, (1, 1), (product,), (0, 0), size, columns
    )


def lower_transposed(
    weights: NDArray[np.float32],  # [inputs, outputs, height, width]
    axes: tuple[Axis, Axis],  # rows, columns
    split: bool | None = None,
) -> WindowProducts:
    """A transposed convolution; unless told, the faster of both ways is taken."""
    if split is None:
        split = max(axis.inputs for axis in axes) <= _SPLIT_UP_TO
    shifts = (0, 0) if split else (axes[0].best_shift(), axes[1].best_shift())
    rows, columns = (axis.phases(shift) for axis, shift in zip(axes, shifts, strict=True))
    spans = (_span(rows), _span(columns))
    positions = (axes[0].positions(shifts[0]), axes[1].positions(shifts[1]))
    before = tuple(max(0, -first) for first, _ in spans)
    after = tuple(
        max(0, first + taps + count - 1 - axis.inputs)
        for (first, taps), count, axis in zip(spans, positions, axes, strict=True)
    )
    make = _product_of_each if split else _product_of_all
    return WindowProducts(
        pads=(before[0], before[1], after[0], after[1]),
        positions=positions,
        phases=(len(rows), len(columns)),
        products=make(weights, rows, columns, before),
        crop=shifts,
        size=(axes[0].outputs, axes[1].outputs),
        channels=weights.shape[1],
    )


def _product_of_each(
    weights: NDArray[np.float32],
    rows: Sequence[Phase],
    columns: Sequence[Phase],
    before: Sequence[int],
) -> tuple[Product, ...]:
    return tuple(
        Product(
            (row.first + before[0], column.first + before[1]),
            (len(row.kernel), len(column.kernel)),
            weights[:, :, row.kernel][..., column.kernel]
            .transpose(2, 3, 0, 1)
            .reshape(-1, weights.shape[1]),
        )
        for row, column in itertools.product(rows, columns)
    )


def _product_of_all(
    weights: NDArray[np.float32],
    rows: Sequence[Phase],
    columns: Sequence[Phase],
    before: Sequence[int],
) -> tuple[Product, ...]:
    height, width = (
        taps + first + pad
        for (first, taps), pad in zip((_span(rows), _span(columns)), before, strict=True)
    )
    inputs, outputs = weights.shape[:2]
    matrix = np.zeros((height, width, inputs, len(rows), len(columns), outputs), np.float32)
    for (y, row), (x, column) in itertools.product(enumerate(rows), enumerate(columns)):
        top, left = row.first + before[0], column.first + before[1]
        for (dy, ky), (dx, kx) in itertools.product(
            enumerate(row.kernel), enumerate(column.kernel)
        ):
            matrix[top + dy, left + dx, :, y, x] = weights[:, :, ky, kx]
    flat = matrix.reshape(height * width * inputs, -1)
    return (Product((0, 0), (height, width), flat),)


def _span(phases: Sequence[Phase]) -> tuple[int, int]:
    """The first input that any phase's first window sees, and how many all of them see."""
    first = min(phase.first for phase in phases)
    return first, max(phase.first + len(phase.kernel) for phase in phases) - first
