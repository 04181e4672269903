import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv2d, conv_transpose2d

from gantrain.export.window_products import (
    Axis,
    WindowProducts,
    lower_convolution,
    lower_transposed,
)

# Small integers, so that float32 sums are exact in whatever order.
RANDOM = np.random.default_rng(0)

Sizes = int | tuple[int, int]  # of both axes, or of each


def integers(*shape: int) -> NDArray[np.float32]:
    return RANDOM.integers(-9, 10, shape).astype(np.float32)


def apply(products: WindowProducts, maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the products make of maps [n, height, width, channels], as the module describes it."""
    top, left, bottom, right = products.pads
    padded = np.pad(maps, ((0, 0), (top, bottom), (left, right), (0, 0)))
    (rows, columns), (down, across) = products.positions, products.phases
    made = []
    for product in products.products:
        (y, x), (height, width) = product.first, product.taps
        windows = [
            padded[:, y + dy : y + dy + rows, x + dx : x + dx + columns]
            for dy in range(height)
            for dx in range(width)
        ]
        made.append(np.concatenate(windows, axis=3) @ product.matrix)
    phases = np.concatenate(made, axis=3)
    apart = phases.reshape(-1, rows, columns, down, across, products.channels)
    whole = apart.transpose(0, 1, 3, 2, 4, 5).reshape(
        -1, rows * down, columns * across, products.channels
    )
    (y, x), (height, width) = products.crop, products.size
    return whole[:, y : y + height, x : x + width]


@pytest.mark.parametrize("split", [True, False], ids=["each phase", "all phases"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "output_pad", "size"),
    [
        pytest.param(4, 2, 1, 0, (2, 2), id="dcgan"),
        pytest.param(4, 2, 1, 0, (5, 3), id="dcgan, oblong"),
        pytest.param(4, 2, 1, 1, (3, 3), id="dcgan, odd"),
        pytest.param(5, 2, 1, 0, (4, 4), id="keras, to be cropped"),
        pytest.param(3, 2, 1, 1, (4, 6), id="kernel 3"),
        pytest.param(2, 2, 0, 0, (3, 3), id="no overlap"),
        pytest.param(6, 3, 2, 0, (3, 4), id="stride 3"),
        pytest.param(7, 3, 0, 2, (3, 4), id="stride 3, odd kernel"),
        pytest.param(5, 2, 4, 1, (5, 5), id="more padding than taps"),
        pytest.param(4, 1, 0, 0, (1, 1), id="from one pixel"),
        pytest.param((7, 2), (2, 1), (0, 1), (1, 0), (3, 4), id="each axis its own"),
    ],
)
def test_a_transposed_convolution_is_computed_exactly(
    kernel: Sizes, stride: Sizes, pad: Sizes, output_pad: Sizes, size: tuple[int, int], split: bool
):
    kernel, stride, pad = (np.broadcast_to(of, 2).tolist() for of in (kernel, stride, pad))
    maps, weights = integers(2, *size, 3), integers(3, 5, *kernel)
    expected = (
        conv_transpose2d(
            torch.from_numpy(maps.transpose(0, 3, 1, 2).copy()),
            torch.from_numpy(weights),
            None,
            stride,
            pad,
            output_pad,
        )
        .permute(0, 2, 3, 1)
        .numpy()
    )
    rows, columns = (
        Axis(*of_axis)
        for of_axis in zip(size, expected.shape[1:3], kernel, stride, pad, strict=True)
    )
    products = lower_transposed(weights, (rows, columns), split)
    assert np.array_equal(apply(products, maps), expected)


def test_a_dcgan_layer_needs_windows_of_two_by_two():
    layer = integers(3, 5, 4, 4)
    axis = Axis(inputs=16, outputs=32, kernel=4, stride=2, pad=1)
    together = lower_transposed(layer, (axis, axis), split=False)
    assert [product.taps for product in together.products] == [(2, 2)]
    assert together.positions == (17, 17)  # one more than the map, and no zeros among the weights
    assert np.count_nonzero(together.products[0].matrix) == np.count_nonzero(layer)
    apart = lower_transposed(layer, (axis, axis), split=True)
    assert [product.taps for product in apart.products] == [(2, 2)] * 4
    assert apart.positions == (16, 16)


@pytest.mark.parametrize("pads", [(2, 2, 2, 2), (1, 2, 2, 1), (0, 0, 0, 0)])
def test_a_plain_convolution_is_computed_exactly(pads: tuple[int, int, int, int]):
    maps, weights = integers(2, 6, 7, 3), integers(5, 3, 4, 5)
    top, left, bottom, right = pads
    padded = np.pad(maps, ((0, 0), (top, bottom), (left, right), (0, 0))).transpose(0, 3, 1, 2)
    expected = conv2d(torch.from_numpy(padded.copy()), torch.from_numpy(weights))
    products = lower_convolution(weights, pads, (6, 7))
    assert np.array_equal(apply(products, maps), expected.permute(0, 2, 3, 1).numpy())
