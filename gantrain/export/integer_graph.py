"""Hides how layers of a float graph change places with integer ones, the rest left as it is."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from gantrain.export.graph_draft import Draft
from gantrain.export.integer_layers import (
    MICROSOFT,
    Grid,
    Operand,
    dequantize,
    grid_between,
    quantize,
    round_weights,
    write_convolution,
    write_dense,
    write_grid,
)
from gantrain.export.window_products import (
    WindowProducts,
    lower_convolution,
    lower_transposed,
    transposed_axes,
)

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "LeakyRelu")
# Integer kernels work on panels of 16 columns, so where a map becomes an image of 1 or 3 channels
# they gain nothing: measured, see docs/decisions. And nowhere else does rounding cost as much.
_FEWEST_COLUMNS = 4


@dataclass(frozen=True)
class Range:
    """What was seen of a tensor."""

    lowest: float
    highest: float
    means: NDArray[np.float32]  # over examples, in the shape of one

    @property
    def grid(self) -> Grid:
        """A grid over all of it."""
        return grid_between(self.lowest, self.highest)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that can be computed in integers."""

    node: onnx.NodeProto
    weights: NDArray[np.float32]  # as the operator holds them; of Gemm [rows, columns]
    bias: NDArray[np.float32]  # [columns or channels]
    activation: onnx.NodeProto | None  # a ReLU, leaky or not, that alone sees its output
    attributes: Mapping[str, Any]

    @cached_property
    def name(self) -> str:
        """As the generator calls it."""
        return self.node.input[1].removesuffix(".weight").removeprefix("generator.")

    @property
    def source(self) -> str:
        """The tensor that comes in."""
        return self.node.input[0]

    @property
    def result(self) -> str:
        """The tensor that goes out, after the activation."""
        return (self.activation or self.node).output[0]

    @property
    def dense(self) -> bool:
        """Whether it takes rows rather than maps."""
        return self.node.op_type == "Gemm"

    @property
    def tensors(self) -> set[str]:
        """What must be known of the graph's values before the layer can be rounded."""
        return {self.source, self.node.output[0], self.result}

    def products(self, inputs: tuple[int, int], outputs: tuple[int, int]) -> WindowProducts:
        """The convolution for maps of these sizes."""
        pads = tuple(self.attributes.get("pads", (0, 0, 0, 0)))
        if self.node.op_type == "Conv":
            return lower_convolution(self.weights, pads, inputs)
        kernel, strides = self.weights.shape[2:], self.attributes.get("strides", (1, 1))
        return lower_transposed(
            self.weights, transposed_axes(inputs, outputs, kernel, strides, pads[:2])
        )

    def work(self, ranges: Mapping[str, Range]) -> int:
        """Multiplications of an image, zeros that only fill windows up included."""
        if self.dense:
            return self.weights.size
        products = self.products(*self._sizes(ranges))
        positions = products.positions[0] * products.positions[1]
        return positions * sum(product.matrix.size for product in products.products)

    def write(
        self, draft: Draft, source: Operand, ranges: Mapping[str, Range], *, to_integers: bool
    ) -> Operand | None:
        """Write the layer; None where a dense one goes out as the float tensor it was."""
        seen, made = ranges[self.source], ranges[self.node.output[0]]
        relu = self.activation is not None and self.activation.op_type == "Relu"
        if self.dense:
            weights = round_weights(self.weights, self.bias, seen.means, source.grid)
            if not (relu and to_integers):
                write_dense(draft, source, weights, None, self.node.output[0])
                if self.activation is not None:
                    draft.nodes.append(self.activation)
                return None
            grid = ranges[self.result].grid
            return Operand(write_dense(draft, source, weights, grid), grid)
        # A grid that starts at 0 is a ReLU: what is below is clamped.
        grid = ranges[self.result].grid if relu else made.grid
        products = self.products(*self._sizes(ranges))
        written = write_convolution(draft, source, products, self.bias, seen.means, grid)
        if self.activation is None or relu:
            return written
        leaky = ranges[self.result].grid
        inputs = [written.name, *write_grid(draft, grid), *write_grid(draft, leaky)]
        alpha = helper.get_node_attr_value(self.activation, "alpha")
        return Operand(draft.add("QLinearLeakyRelu", inputs, domain=MICROSOFT, alpha=alpha), leaky)

    def _sizes(self, ranges: Mapping[str, Range]) -> tuple[tuple[int, int], tuple[int, int]]:
        (_, *inputs), (_, *outputs) = (
            ranges[name].means.shape for name in (self.source, self.node.output[0])
        )
        return (inputs[0], inputs[1]), (outputs[0], outputs[1])


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers that can be computed in integers and may gain by it.

    Not among them: what takes the latents, which have no bounds and little work, layers of few
    columns, and convolutions of kinds that no generator here has.
    """
    graph = model.graph
    constants = {entry.name: entry for entry in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    readers = {name: node for node in graph.node for name in node.input}
    early = {value.name for value in graph.input} | constants.keys()  # no layer before it yet
    found = []
    for node in graph.node:
        if node.op_type not in _LAYERS:
            if early.issuperset(node.input):
                early.update(node.output)
            continue
        if node.input[0] in early or not {*node.input[1:]} <= constants.keys():
            continue
        reader = readers.get(node.output[0])
        alone = uses[node.output[0]] == 1
        activation = reader if reader and alone and reader.op_type in _ACTIVATIONS else None
        parts = [numpy_helper.to_array(constants[name]) for name in node.input[1:]]
        layer = _as_layer(node, parts, activation)
        if layer is not None and len(layer.bias) >= _FEWEST_COLUMNS:
            found.append(layer)
    return found


def _as_layer(
    node: onnx.NodeProto, parts: list[NDArray[np.float32]], activation: onnx.NodeProto | None
) -> Layer | None:
    """The layer, or None of a kind that has no integer form here."""
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    weights, *bias = parts
    if node.op_type == "Gemm" and _is_plain_product(attributes):
        weights = weights.T if attributes.get("transB", 0) else weights
        columns = weights.shape[1]
    elif node.op_type == "Conv" and _is_plain_convolution(weights, attributes, {1}):
        columns = weights.shape[0]
    elif node.op_type == "ConvTranspose" and _is_plain_convolution(weights, attributes):
        columns = weights.shape[1]
    else:
        return None
    added = bias[0] if bias else np.zeros(columns, np.float32)
    return Layer(node, weights, added, activation, attributes) if added.ndim == 1 else None


def _is_plain_product(attributes: Mapping[str, Any]) -> bool:
    factors = {attributes.get(name, 1.0) for name in ("alpha", "beta")}
    return factors == {1.0} and not attributes.get("transA", 0)


def _is_plain_convolution(
    weights: NDArray[np.float32], attributes: Mapping[str, Any], strides: Collection[int] = ()
) -> bool:
    """Whether it is one of maps, whole, of these strides; of any that leave no holes if empty."""
    found = attributes.get("strides", (1, 1))
    return (
        weights.ndim == 4
        and attributes.get("group", 1) == 1
        and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        and set(attributes.get("dilations", (1,))) == {1}
        and (not strides or set(found) <= set(strides))
        and all(size >= stride for size, stride in zip(weights.shape[2:], found, strict=True))
    )


def to_integers(
    model: onnx.ModelProto, layers: Collection[Layer], ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """The graph with these layers in integers."""
    chosen = {layer.node.output[0]: layer for layer in layers}
    activations = {layer.activation.output[0] for layer in layers if layer.activation}
    graph = model.graph
    draft = Draft("integer")
    integers: dict[str, tuple[Operand, bool]] = {}  # by float name; whether they are maps

    def make_floats(names: Iterable[str]) -> None:
        for name in names:
            if name in integers:
                operand, maps = integers.pop(name)
                dequantize(draft, operand, name, maps=maps)

    for node in graph.node:
        if node.output[0] in activations:
            continue  # written with its layer
        layer = chosen.get(node.output[0])
        if layer is None:
            make_floats(node.input)
            draft.nodes.append(node)
            continue
        maps = not layer.dense
        if layer.source in integers:
            source = integers[layer.source][0]
        else:
            source = quantize(draft, layer.source, ranges[layer.source].grid, maps=maps)
        only = _only_readers(graph.node, layer.result, chosen)
        written = layer.write(draft, source, ranges, to_integers=only)
        if written is not None:
            integers[layer.result] = written, maps
    make_floats(value.name for value in graph.output)
    return draft.to_model(model, [MICROSOFT])


def _only_readers(
    nodes: Iterable[onnx.NodeProto], tensor: str, chosen: Mapping[str, Layer]
) -> bool:
    """Whether dense integer layers alone read a tensor."""
    readers = [chosen.get(node.output[0]) for node in nodes if tensor in node.input]
    return all(reader is not None and reader.dense for reader in readers)
