"""The tensors of a `ModelInferRequest` become the same checked value as our own requests."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ganserve.api.request import (
    FromLatents,
    FromSeeds,
    GenerationRequest,
    check_count,
    check_finite,
    check_labels,
    check_truncation,
)
from ganserve.encoding import ImageFormat
from ganserve.errors import InvalidRequest
from ganserve.inference.v2 import open_inference_pb2 as pb
from ganserve.models.model_spec import ModelSpec

OUTPUT = "images"


@dataclass(frozen=True)
class TensorType:
    """What one of the inputs must be made of."""

    datatype: str  # as the protocol spells it
    dtype: DTypeLike  # little-endian, as raw contents are
    contents: str  # the field that holds the elements where they are not raw


INPUTS = {
    "seeds": TensorType("UINT64", "<u8", "uint64_contents"),
    "latents": TensorType("FP32", "<f4", "fp32_contents"),
    "labels": TensorType("INT64", "<i8", "int64_contents"),
}
# What clients send along and what changes no image. All else is refused by name: a misspelt
# truncation, or data in shared memory, would otherwise give other images than were asked for.
_HARMLESS = ("binary_data", "binary_data_size", "binary_data_output", "priority")
_HARMLESS_PREFIX = "triton_"
_MOST_PARAMETERS = 64
_NUMBERS = ("double_param", "int64_param", "uint64_param")


def parse_inference(
    request: pb.ModelInferRequest, spec: ModelSpec, *, max_images: int
) -> GenerationRequest:
    """Check every field.

    Raises:
        InvalidRequest: names the field, what was expected and what came.
    """
    _check_outputs(request)
    _check_parameters("parameters", request.parameters, ("truncation", "timeout"))
    inputs = _find_inputs(request)
    _check_raw_contents(request)
    source = _parse_source(inputs, spec, max_images)
    return GenerationRequest(
        source=source,
        labels=_parse_labels(inputs, spec, source.count),
        truncation=_parse_truncation(request),
        format=ImageFormat.RAW,
        quality=None,
    )


def parse_timeout_seconds(request: pb.ModelInferRequest) -> float:
    """How long the caller gives the call, within its deadline; infinity where it does not say.

    Raises:
        InvalidRequest: the parameter is no number of microseconds.
    """
    if "timeout" not in request.parameters:
        return math.inf
    microseconds = _number("parameters.timeout", request.parameters["timeout"])
    if not 0 <= microseconds < 2**63:
        raise InvalidRequest(
            "parameters.timeout", f"expected microseconds from 0 up, got {microseconds:g}"
        )
    return microseconds / 1e6 or math.inf  # 0 is none, as in the clients' own defaults


@dataclass(frozen=True)
class _Input:
    """One input, its place, and its raw contents, if there are any."""

    tensor: pb.ModelInferRequest.InferInputTensor
    index: int
    raw: bytes | None


def _find_inputs(request: pb.ModelInferRequest) -> dict[str, _Input]:
    """Name the inputs, at most one of each."""
    found: dict[str, _Input] = {}
    raw = request.raw_input_contents
    for index, tensor in enumerate(request.inputs):
        if tensor.name not in INPUTS:
            raise InvalidRequest(
                f"inputs[{index}].name",
                f"expected one of {', '.join(INPUTS)}, got {tensor.name[:80]!r}",
            )
        if tensor.name in found:
            raise InvalidRequest(
                f"inputs[{index}].name", f"expected each input once, got {tensor.name!r} again"
            )
        _check_parameters(f"inputs.{tensor.name}.parameters", tensor.parameters, ())
        found[tensor.name] = _Input(tensor, index, raw[index] if index < len(raw) else None)
    return found


def _check_raw_contents(request: pb.ModelInferRequest) -> None:
    """Make sure that all contents are raw or none are."""
    given, inputs = len(request.raw_input_contents), len(request.inputs)
    if not given:
        return
    if given != inputs:
        raise InvalidRequest(
            "raw_input_contents", f"expected none or {inputs}, one for each input, got {given}"
        )
    for tensor in request.inputs:
        if tensor.contents.ListFields():
            raise InvalidRequest(
                f"inputs.{tensor.name}.contents", "expected none beside raw_input_contents"
            )


def _parse_source(
    inputs: Mapping[str, _Input], spec: ModelSpec, max_images: int
) -> FromSeeds | FromLatents:
    sources = [name for name in ("seeds", "latents") if name in inputs]
    if len(sources) != 1:
        raise InvalidRequest(
            "inputs", f"expected one of seeds and latents, got {' and '.join(sources) or 'none'}"
        )
    if sources == ["seeds"]:
        count = _check_shape("seeds", inputs["seeds"], (), "seeds", max_images)
        return FromSeeds(_read_elements("seeds", inputs["seeds"], count))
    row = (spec.latent_dim,)
    count = _check_shape("latents", inputs["latents"], row, "rows", max_images)
    values = _read_elements("latents", inputs["latents"], count * spec.latent_dim)
    check_finite("inputs.latents", values)
    return FromLatents(values.reshape(count, spec.latent_dim))


def _parse_labels(
    inputs: Mapping[str, _Input], spec: ModelSpec, count: int
) -> NDArray[np.int64] | None:  # [count]
    classes, given = len(spec.class_names), inputs.get("labels")
    if not classes:
        if given is not None:
            raise InvalidRequest(
                "inputs.labels", "expected none, for the model is not conditional, got some"
            )
        return None
    if given is None:
        raise InvalidRequest("inputs.labels", f"expected {count}, one for each image, got none")
    shape = list(given.tensor.shape)
    if shape != [count]:
        raise InvalidRequest(
            "inputs.labels.shape", f"expected [{count}], one for each image, got {_show(shape)}"
        )
    labels: NDArray[np.int64] = _read_elements("labels", given, count)
    check_labels("inputs.labels", labels, classes)
    return labels


def _check_shape(name: str, given: _Input, row: tuple[int, ...], what: str, max_images: int) -> int:
    """Return the number of rows of a tensor [n, *row]."""
    field, shape = f"inputs.{name}.shape", list(given.tensor.shape)
    if len(shape) != 1 + len(row) or tuple(shape[1:]) != row:
        expected = ", ".join(["n", *map(str, row)])
        raise InvalidRequest(field, f"expected [{expected}], got {_show(shape)}")
    return check_count(field, shape[0], what, max_images)


def _read_elements(name: str, given: _Input, length: int) -> NDArray[Any]:  # [length]
    """Read what a tensor holds, from wherever it is."""
    field, expected = f"inputs.{name}", INPUTS[name]
    if given.tensor.datatype != expected.datatype:
        raise InvalidRequest(
            f"{field}.datatype",
            f"expected {expected.datatype}, got {given.tensor.datatype[:80]!r}",
        )
    if given.raw is not None:
        size = length * np.dtype(expected.dtype).itemsize
        if len(given.raw) != size:
            raise InvalidRequest(
                f"raw_input_contents[{given.index}]",
                f"expected {size} bytes, as the shape of {name} says, got {len(given.raw)}",
            )
        return np.frombuffer(given.raw, expected.dtype)
    filled = [descriptor.name for descriptor, _ in given.tensor.contents.ListFields()]
    if other := [name for name in filled if name != expected.contents]:
        raise InvalidRequest(f"{field}.contents", f"expected {expected.contents}, got {other[0]}")
    values = getattr(given.tensor.contents, expected.contents)
    if len(values) != length:
        raise InvalidRequest(
            f"{field}.contents.{expected.contents}",
            f"expected {length} numbers, as the shape says, got {len(values)}",
        )
    return np.fromiter(values, expected.dtype, length)


def _check_outputs(request: pb.ModelInferRequest) -> None:
    for index, output in enumerate(request.outputs):
        field = f"outputs[{index}]"
        if output.name != OUTPUT or index > 0:
            raise InvalidRequest(
                f"{field}.name", f"expected {OUTPUT}, once, got {output.name[:80]!r}"
            )
        _check_parameters(f"{field}.parameters", output.parameters, ())


def _check_parameters(
    field: str, parameters: Mapping[str, pb.InferParameter], known: Collection[str]
) -> None:
    if len(parameters) > _MOST_PARAMETERS:
        expected = f"expected at most {_MOST_PARAMETERS}"
        raise InvalidRequest(field, f"{expected}, got {len(parameters)}")
    for name in sorted(parameters):
        if name not in (*_HARMLESS, *known) and not name.startswith(_HARMLESS_PREFIX):
            expected = f"only {', '.join(known)}" if known else "none"
            raise InvalidRequest(field, f"expected {expected}, got {name[:80]!r}")


def _parse_truncation(request: pb.ModelInferRequest) -> float:
    if "truncation" not in request.parameters:
        return 1.0
    field = "parameters.truncation"
    truncation = check_truncation(field, _number(field, request.parameters["truncation"]))
    # Again as float32, by which the latents are multiplied: what is 0 there must not pass.
    return check_truncation(field, float(np.float32(truncation)))


def _number(field: str, parameter: pb.InferParameter) -> float:
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in _NUMBERS:
        raise InvalidRequest(field, f"expected a number, got {kind or 'nothing'}")
    return float(getattr(parameter, kind))


def _show(shape: list[int]) -> str:
    """A shape as text, of fair length."""
    return str(shape) if len(shape) <= 8 else f"{len(shape)} dimensions"
