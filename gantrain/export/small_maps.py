"""Hides how the smallest maps of a generator are doubled quickly by ONNX Runtime on a CPU.

For each image apart, its transposed convolution multiplies the weights with a matrix of as many
columns as the map has pixels. Kernels work on 16 columns at a time, so a map of 2x2 pixels leaves
three quarters of the work to nothing, and all weights are read again for each image. As products of
windows the pixels of a whole batch are rows, and the weights are read once. Maps of 3x3 gain by it
where weights are many: measured, see docs/benchmarks-serving.md.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from gantrain.export.graph_draft import CHANNELS_FIRST, CHANNELS_LAST, Draft
from gantrain.export.window_nodes import crop, write_product_of_each
from gantrain.export.window_products import lower_transposed, transposed_axes

_SMALL, _LESS_SMALL = 2 * 2, 3 * 3  # pixels
_MANY_WEIGHTS = 2**20


def lower_small_maps(model: onnx.ModelProto, many_weights: int = _MANY_WEIGHTS) -> onnx.ModelProto:
    """The graph with transposed convolutions of the smallest maps as products.

    Those are maps of up to 2x2 pixels, and of up to 3x3 where there are so many weights. The graph
    computes the same sums in another order: a value on the edge between two grey levels may come
    out as the other one.
    """
    graph = model.graph
    inferred = shape_inference.infer_shapes(model).graph.value_info
    sizes = {  # of maps [n, channels, height, width]
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim][2:]
        for value in inferred
    }
    constants = {entry.name: entry for entry in graph.initializer}
    draft = Draft("small")
    for node in graph.node:
        pixels = np.prod(sizes.get(node.input[0], [0]))
        if node.op_type == "ConvTranspose" and 0 < pixels <= _LESS_SMALL:
            parts = [numpy_helper.to_array(constants[name]) for name in node.input[1:]]
            if pixels <= _SMALL or parts[0].size >= many_weights:
                _write(draft, node, parts, sizes)
                continue
        draft.nodes.append(node)
    return draft.to_model(model)


def _write(
    draft: Draft,
    node: onnx.NodeProto,
    parts: list[np.ndarray],  # weights [inputs, outputs, height, width], maybe a bias [outputs]
    sizes: dict[str, list[int]],
) -> None:
    weights, *bias = parts
    kernel = list(weights.shape[2:])
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    inputs, outputs = sizes[node.input[0]], sizes[node.output[0]]
    if inputs == [1, 1] and outputs == kernel and not any(attributes["pads"]):
        _write_pixel(draft, node, weights, bias)
        return
    axes = transposed_axes(inputs, outputs, kernel, attributes["strides"], attributes["pads"][:2])
    products = lower_transposed(weights, axes, split=True)
    added = [draft.constant(value) for value in bias]

    def multiply(rows: str, phase: int) -> str:
        matrix = draft.constant(products.products[phase].matrix)
        return draft.add("Gemm", [rows, matrix, *added])

    source = draft.transpose(node.input[0], CHANNELS_LAST)
    made = crop(draft, write_product_of_each(draft, source, products, multiply), products)
    draft.add("Transpose", [made], perm=CHANNELS_FIRST, output=node.output[0])


def _write_pixel(
    draft: Draft, node: onnx.NodeProto, weights: np.ndarray, bias: list[np.ndarray]
) -> None:
    """Each output pixel sees the one input pixel and a weight of its own."""
    inputs, outputs, height, width = weights.shape
    rows = draft.add("Reshape", [node.input[0], draft.sizes(-1, inputs)])
    operands = [weights.reshape(inputs, -1), *(value.repeat(height * width) for value in bias)]
    made = draft.add("Gemm", [rows, *map(draft.constant, operands)])
    shape = draft.sizes(-1, outputs, height, width)
    draft.add("Reshape", [made, shape], output=node.output[0])
