from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn.functional import conv2d

from gantrain.export.integer_graph import Range, find_layers, to_integers
from gantrain.export.integer_layers import grid_between, round_weights, window_means
from gantrain.export.window_products import lower_convolution
from gantrain.sampling import open_session

RANDOM = np.random.default_rng(0)
CHANNELS = 6


def whole_weights(*shape: int) -> NDArray[np.float32]:
    """Integers of 7 bits whose grid has steps of 1: the largest is there in each product."""
    weights = RANDOM.integers(-20, 21, shape)
    weights[0] = RANDOM.choice([-63, 63], weights[0].shape)
    weights[:, 0] = RANDOM.choice([-63, 63], weights[:, 0].shape)
    return weights.astype(np.float32)


def build(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], inputs: int, rank: int = 4
) -> onnx.ModelProto:
    """A graph with input `latents` and float output `y`."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["batch", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*"nchw"][:rank])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, latents: NDArray[np.float32]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = open_session(model.SerializeToString()).run(
        ["y"], {"latents": latents}
    )[0]
    return values


def whole_range(*shape: int) -> Range:
    """Grids of steps of 1, and no mean whose loss would be made up for."""
    return Range(0, 255, np.zeros(shape, np.float32))


def after_a_first_layer(height: int, width: int) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Nodes that hand the latents on as maps `x`; the first layer itself must stay in float."""
    features = CHANNELS * height * width
    nodes = [
        helper.make_node("Gemm", ["latents", "first.weight"], ["features"]),
        helper.make_node("Reshape", ["features", "shape"], ["x"]),
    ]
    shape = np.array([-1, CHANNELS, height, width], np.int64)
    return nodes, {"first.weight": np.eye(features, dtype=np.float32), "shape": shape}


@pytest.mark.parametrize("activation", ["Relu", None])
@pytest.mark.parametrize(
    ("operator", "size", "attributes", "positions"),
    [
        pytest.param("ConvTranspose", (3, 4), {"strides": [2, 2]}, 3 * 4, id="each phase"),
        pytest.param("ConvTranspose", (9, 10), {"strides": [2, 2]}, 10 * 11, id="all phases"),
        pytest.param(
            "ConvTranspose", (3, 3), {"strides": [2, 2], "output_padding": [1, 1]}, 4 * 4, id="odd"
        ),
        pytest.param("ConvTranspose", (3, 4), {"pads": None}, 6 * 7, id="as ONNX has it"),
        pytest.param("Conv", (5, 6), {}, 4 * 5, id="plain"),
    ],
)
def test_integers_compute_what_floats_do(
    operator: str,
    size: tuple[int, int],
    attributes: dict[str, Any],
    positions: int,  # of windows
    activation: str | None,
):
    nodes, constants = after_a_first_layer(*size)
    constants["main.3.weight"] = whole_weights(CHANNELS, CHANNELS, 4, 4)
    constants["main.3.bias"] = np.arange(-300, 300, 100, dtype=np.float32)
    layer = ["x", "main.3.weight", "main.3.bias"]
    attributes = {"pads": [1, 1, 1, 1], **attributes}
    nodes.append(helper.make_node(operator, layer, ["z"], **attributes))
    nodes.append(helper.make_node(activation or "Identity", ["z"], ["y"]))
    model = build(nodes, constants, CHANNELS * size[0] * size[1])
    latents = RANDOM.integers(0, 256, (3, CHANNELS * size[0] * size[1])).astype(np.float32)
    expected = run(model, latents)
    assert (expected < 0).any() == (activation is None)
    assert (expected > 255).any()

    (found,) = find_layers(model)
    assert found.name == "main.3"
    seen = whole_range(CHANNELS, *size)
    made = whole_range(*expected.shape[1:])
    unused = Range(-1e6, 1e6, made.means)  # of what a ReLU takes from the layer
    ranges = {"x": seen, "z": unused if activation else made, found.result: made}
    assert found.work(ranges) == positions * CHANNELS * CHANNELS * 4 * 4
    quantized = to_integers(model, [found], ranges)
    operators = {node.op_type for node in quantized.graph.node}
    assert operator not in operators
    assert operators & {"QGemm", "QLinearConv"}
    # The grid has nothing beyond its ends, and that is how it does a ReLU.
    assert np.array_equal(run(quantized, latents), expected.clip(0, 255))


def test_dense_layers_hand_integers_to_each_other():
    features = 32
    constants = {
        "first.weight": np.eye(features, dtype=np.float32),
        "2.weight": whole_weights(features, features),
        "4.weight": whole_weights(features, features),
        "4.bias": np.arange(features, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Identity", ["latents"], ["joined"]),  # as where labels are joined to them
        helper.make_node("Gemm", ["joined", "first.weight"], ["x"]),
        helper.make_node("Gemm", ["x", "2.weight"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "4.weight", "4.bias"], ["y"]),
    ]
    model = build(nodes, constants, features, rank=2)
    latents = RANDOM.integers(0, 256, (3, features)).astype(np.float32)
    layers = find_layers(model)
    assert [layer.name for layer in layers] == ["2", "4"]
    ranges = {name: whole_range(features) for layer in layers for name in layer.tensors}
    assert [layer.work(ranges) for layer in layers] == [features**2, features**2]
    quantized = to_integers(model, layers, ranges)
    _, *operators = (node.op_type for node in quantized.graph.node)
    assert operators == ["Gemm", "QuantizeLinear", "QGemm", "QGemm"]  # the last makes floats again
    hidden = (latents @ constants["2.weight"].T).clip(0, 255)
    expected = hidden @ constants["4.weight"] + constants["4.bias"]
    assert np.array_equal(run(quantized, latents), expected)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
def test_a_dense_layer_whose_activation_others_read_makes_floats(activation: str):
    features = 32
    constants = {
        "first.weight": np.eye(features, dtype=np.float32),
        "2.weight": whole_weights(features, features),
    }
    nodes = [
        helper.make_node("Gemm", ["latents", "first.weight"], ["x"]),
        helper.make_node("Gemm", ["x", "2.weight"], ["a"]),
        helper.make_node(activation, ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
    ]
    model = build(nodes, constants, features, rank=2)
    latents = RANDOM.integers(0, 256, (3, features)).astype(np.float32)
    (layer,) = find_layers(model)
    ranges = dict.fromkeys(layer.tensors, whole_range(features))
    quantized = to_integers(model, [layer], ranges)
    assert "QGemm" in {node.op_type for node in quantized.graph.node}
    assert np.array_equal(run(quantized, latents), run(model, latents))  # in no grid's bounds


def test_an_activation_that_is_not_alone_in_reading_a_layer_stays_apart():
    nodes, constants = after_a_first_layer(3, 3)
    constants["w"] = whole_weights(CHANNELS, CHANNELS, 4, 4)
    nodes += [
        helper.make_node("ConvTranspose", ["x", "w"], ["z"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["z", "z"], ["twice"]),
        helper.make_node("Relu", ["z"], ["a"]),
        helper.make_node("Add", ["a", "twice"], ["y"]),
    ]
    model = build(nodes, constants, CHANNELS * 9)
    latents = RANDOM.integers(0, 256, (3, CHANNELS * 9)).astype(np.float32)
    (layer,) = find_layers(model)
    assert layer.activation is None
    ranges = {"x": whole_range(CHANNELS, 3, 3), "z": whole_range(CHANNELS, 6, 6)}
    made = run(to_integers(model, [layer], ranges), latents)
    expected = run(model, latents)
    assert np.array_equal(made, expected.clip(0, 3 * 255))  # the grid clamps each


def test_leaky_layers_stay_in_integers():
    nodes, constants = after_a_first_layer(3, 3)
    constants["w"] = whole_weights(CHANNELS, CHANNELS, 4, 4) / 1000
    nodes += [
        helper.make_node("ConvTranspose", ["x", "w"], ["z"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["z"], ["y"], alpha=0.25),
    ]
    model = build(nodes, constants, CHANNELS * 9)
    latents = RANDOM.integers(-128, 128, (3, CHANNELS * 9)).astype(np.float32)
    expected = run(model, latents)
    (layer,) = find_layers(model)
    lowest = float(expected.min())
    made = np.zeros(expected.shape[1:], np.float32)
    ranges = {
        "x": Range(-128, 127, np.zeros((CHANNELS, 3, 3), np.float32)),
        "z": Range(lowest / 0.25, float(expected.max()), made),
        "y": Range(lowest, float(expected.max()), made),
    }
    quantized = to_integers(model, [layer], ranges)
    assert "LeakyRelu" not in {node.op_type for node in quantized.graph.node}
    step = ranges["z"].grid.scale
    assert np.abs(run(quantized, latents) - expected).max() < 1.5 * step


def test_what_has_no_integer_form_stays_as_it_is():
    maps, constants = after_a_first_layer(4, 4)
    constants |= {
        "wide": whole_weights(CHANNELS, CHANNELS, 3, 3),
        "image": whole_weights(CHANNELS, 3, 4, 4),
        "narrow": whole_weights(CHANNELS, CHANNELS, 2, 2),
        "line": whole_weights(CHANNELS, CHANNELS, 4),
        "square": whole_weights(CHANNELS * 16, CHANNELS * 16),
        "one": np.array(1, np.float32),
    }
    rows = ["features", "square"]
    nodes = [
        helper.make_node("Gemm", rows, ["d"], alpha=0.5),
        helper.make_node("Gemm", rows, ["e"], transA=1),
        helper.make_node("Gemm", [*rows, "one"], ["f"]),  # its bias is no column's own
        helper.make_node("Gemm", ["features", "d"], ["g"]),  # its weights are no constants
        helper.make_node("ConvTranspose", ["x", "line"], ["h"], strides=[2]),
        helper.make_node("ConvTranspose", ["x", "narrow"], ["i"], group=2),
        helper.make_node("ConvTranspose", ["x", "narrow"], ["j"], auto_pad="SAME_UPPER"),
        helper.make_node("Conv", ["x", "wide"], ["a"], strides=[2, 2]),  # no generator has it
        helper.make_node("Conv", ["x", "wide"], ["b"], dilations=[2, 2], pads=[2, 2, 2, 2]),
        helper.make_node("ConvTranspose", ["x", "narrow"], ["c"], strides=[3, 3]),  # holes
        helper.make_node("ConvTranspose", ["x", "image"], ["y"], strides=[2, 2]),  # 3 channels
    ]
    assert find_layers(build([*maps, *nodes], constants, CHANNELS * 16)) == []


def test_a_grid_has_zero_on_it():
    for lowest, highest in [(-1.0, 3.0), (2.0, 5.0), (-5.0, -2.0), (0.0, 0.0), (-1e-3, 7.0)]:
        grid = grid_between(lowest, highest)
        assert 0 <= grid.zero <= 255
        assert grid.scale * (0 - grid.zero) <= min(lowest, 0.0) + grid.scale / 2
        assert grid.scale * (255 - grid.zero) >= max(highest, 0.0) - grid.scale / 2
        reach = max(highest, 0.0) - min(lowest, 0.0)
        assert grid.scale == pytest.approx(reach / 255 or 1.0), "it wastes no step"


def test_sums_of_two_products_fit_16_bits_and_biases_32():
    matrix = RANDOM.standard_normal((64, 5)).astype(np.float32)
    matrix[:, 1] = 0
    matrix[:, 2] *= 1e-20
    bias = np.array([0, 0, 1, -2, 1e6], np.float32)
    grid = grid_between(0, 4)
    rounded = round_weights(matrix, bias, np.zeros(64, np.float32), grid)
    assert 2 * 255 * np.abs(rounded.values.astype(int)).max() < 2**15
    assert np.abs(rounded.bias.astype(np.int64)).max() <= 2**24 + 1
    steps = rounded.scales.astype(np.float64) * grid.scale
    assert (np.abs(rounded.bias * steps - bias) <= 0.51 * steps).all()


def test_the_bias_makes_up_for_what_rounding_does_to_the_mean():
    matrix = RANDOM.standard_normal((64, 16)).astype(np.float32)
    inputs = RANDOM.uniform(0, 4, (4096, 64)).astype(np.float32)
    grid = grid_between(0, 4)
    bias = np.zeros(16, np.float32)
    expected = inputs.mean(axis=0) @ matrix

    def shift(means: NDArray[np.float32]) -> float:
        rounded = round_weights(matrix, bias, means, grid)
        whole = inputs.mean(axis=0) @ (rounded.values * rounded.scales)
        return float(np.abs(whole + rounded.bias * rounded.scales * grid.scale - expected).max())

    assert shift(inputs.mean(axis=0)) < 1e-3 < 0.05 < shift(np.zeros(64, np.float32))


def test_what_the_bias_makes_up_for_is_what_windows_meet_on_the_average():
    weights = RANDOM.standard_normal((5, CHANNELS, 3, 3)).astype(np.float32)
    maps = RANDOM.standard_normal((CHANNELS, 6, 7)).astype(np.float32)
    expected = conv2d(torch.from_numpy(maps), torch.from_numpy(weights), padding=1).mean((1, 2))

    products = lower_convolution(weights, (1, 1, 1, 1), (6, 7))
    (product,) = products.products
    top, left, bottom, right = products.pads
    padded = np.pad(maps, ((0, 0), (top, bottom), (left, right)))
    found = window_means(padded, product, products.positions) @ product.matrix
    assert np.allclose(found, expected.numpy(), atol=1e-5)
