"""From a generator to an ONNX graph that tells nothing of the machine it was made on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch

from gantrain.sampling import PixelGenerator

_OPSET = 20


def to_onnx(generator: PixelGenerator, latent_dim: int, classes: int = 0) -> onnx.ModelProto:
    """The generator as an ONNX graph with dynamic batch, free of paths and source text."""
    # torch.export takes a batch of 1 for a constant
    inputs = {"latents": torch.zeros(2, latent_dim)}
    if classes:
        inputs["labels"] = torch.zeros(2, dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1)
    with quiet_exporter():
        program = torch.onnx.export(
            generator,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["images"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip_origin(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter from telling of its internals and of packages it could also use."""
    exporter = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            exporter.setLevel(level)


def strip_origin(model: onnx.ModelProto) -> None:
    """Remove stack traces, doc strings and whatever else tells of the exporting machine."""
    graph = model.graph
    for part in [model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name = "generator"
    model.ClearField("functions")
