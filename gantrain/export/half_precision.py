"""A graph in float16, with float32 latents and the way to bytes as they were."""

import warnings

import onnx

from gantrain.runtime import import_runtime

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with weights and arithmetic in float16, up to and including the last layer.

    What makes bytes of the last layer's output stays in float32: it costs next to nothing, and half
    precision has steps of an eighth of a grey level there. Values too large for float16 become the
    largest that there is; the distance from the float32 graph, which is measured, would show it.

    Raises:
        RunError: ONNX Runtime's converter is missing.
    """
    float16 = import_runtime("onnxruntime.transformers.float16")
    onnx_model = import_runtime("onnxruntime.transformers.onnx_model")
    half = onnx.ModelProto()
    half.CopyFrom(model)
    nodes = half.graph.node
    for index, node in enumerate(nodes):
        node.name = f"node_{index}"
    last = max(index for index, node in enumerate(nodes) if node.op_type in _LAYERS)
    tail = [node.name for node in nodes[last + 1 :]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every weight that float16 rounds to 0
        half = float16.convert_float_to_float16(half, keep_io_types=True, node_block_list=tail)
    assert isinstance(half, onnx.ModelProto)
    join_floats(half)
    onnx_model.OnnxModel(half).topological_sort()  # the converter puts its casts last
    half.graph.ClearField("value_info")
    onnx.checker.check_model(half, full_check=True)
    return half


def join_floats(model: onnx.ModelProto) -> None:
    """Remove detours through float16 between nodes that both compute in float32."""
    graph = model.graph
    makers = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        maker = makers.get(node.input[0]) if _casts_to(node, onnx.TensorProto.FLOAT) else None
        if maker is not None and _casts_to(maker, onnx.TensorProto.FLOAT16):
            _replace_input(graph, node.output[0], maker.input[0])
    while True:
        used = {name for node in graph.node for name in node.input}
        used.update(value.name for value in graph.output)
        unused = [node for node in graph.node if used.isdisjoint(node.output)]
        if not unused:
            return
        for node in unused:
            graph.node.remove(node)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == kind


def _replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == old:
                node.input[at] = new
