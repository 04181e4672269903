"""Nodes and constants of an ONNX graph that is being rewritten, and the graph that they make."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

CHANNELS_LAST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class Draft:
    """A graph under way; what it adds is named after `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = prefix

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        output: str = "",
        domain: str = "",
        **attributes: Any,  # noqa: ANN401 - whatever the operator has
    ) -> str:
        """Add a node and return the name of its output."""
        output = output or f"{self._prefix}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"{self._prefix}.constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def sizes(self, *values: int) -> str:
        """Add a constant list of sizes or positions."""
        return self.constant(np.array(values, np.int64))

    def transpose(self, name: str, order: Sequence[int]) -> str:
        """Add a transposition."""
        return self.add("Transpose", [name], perm=order)

    def to_model(self, model: onnx.ModelProto, domains: Sequence[str] = ()) -> onnx.ModelProto:
        """The model with these nodes in place of its own; constants that none reads are left out.

        `domains` are those of operators beyond ONNX's own, in version 1.
        """
        graph = model.graph
        used = {name for node in self.nodes for name in node.input}
        known = [*graph.initializer, *self.constants]
        constants = [entry for entry in known if entry.name in used]
        made = helper.make_model(
            helper.make_graph(self.nodes, graph.name, graph.input, graph.output, constants),
            opset_imports=[
                *(entry for entry in model.opset_import if entry.domain not in domains),
                *(helper.make_opsetid(domain, 1) for domain in domains),
            ],
            ir_version=model.ir_version,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
        )
        onnx.checker.check_model(made)
        return made
