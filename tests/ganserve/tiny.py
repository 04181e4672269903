"""Writes tiny artifacts, right ones and broken ones, without torch.

The `reveal` network's pixels show which latents (and label) made them, so a test can tell from an
image whose it is; the `convolutional` network has sums long enough for rounding to matter; the
`dynamic` one is `reveal` with latents quantized by what range they have in the batch.
"""

import base64
import hashlib
import io
import itertools
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ganserve.latents import draw_latents

SEED_CONTRACT = "philox4x32-10/box-muller/1"
GOLDEN_SEEDS = (0, 1, 2**64 - 1)
Network = Literal["reveal", "convolutional", "dynamic"]


def write_artifact(
    repository: Path,
    name: str = "tiny",
    version: int = 1,
    *,
    network: Network = "reveal",
    latent_dim: int = 4,
    height: int = 4,
    width: int = 4,
    channels: int = 3,
    class_names: Sequence[str] = (),
    batch: str | int = "batch",
    offset: int = 0,
    golden_shift: int = 0,
    max_difference: int = 1,
    differing_share: float = 0.01,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Publish `repository/name/version/model.onnx` atomically and return its path.

    `offset` is added to every pixel, so that versions can be told apart. `golden_shift` is added
    to the golden images (not to the model). `metadata` replaces fields of the `gan` metadata; a
    field set to None is left out. `batch` is the declared size of a batch. The network
    `convolutional` has 16x16 pixels.
    """
    model = build_network(network, latent_dim, height, width, channels, len(class_names), offset)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].CopyFrom(_dimension(batch))
    gan: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "seed_contract": SEED_CONTRACT,
        "class_names": list(class_names),
        "training": {"images_seen": 0},
        "data": {"fingerprint": "sha256:" + "0" * 64, "count": 1, "kind": "synthetic"},
        "evaluation": {"frechet_distance_pixels": 1.5},
        "golden": golden_section(model, latent_dim, golden_shift)
        | {"tolerance": {"max_difference": max_difference, "differing_share": differing_share}},
        "writer": "tests",
    }
    gan |= metadata or {}
    gan = {field: value for field, value in gan.items() if value is not None}
    helper.set_model_props(model, {"gan": json.dumps(gan)})
    return publish(repository, name, version, model.SerializeToString())


def publish(repository: Path, name: str, version: int | str, content: bytes) -> Path:
    """Put `content` in place as that version's file, by one rename of its folder."""
    model_folder = repository / name
    staging = model_folder / f".staging-{uuid.uuid4().hex}"
    staging.mkdir(parents=True)
    (staging / "model.onnx").write_bytes(content)
    folder = model_folder / str(version)
    staging.rename(folder)
    return folder / "model.onnx"


def foreign_onnx() -> bytes:
    """A sound ONNX file that is no generator of ours."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", *_io(value))
    return _model(graph).SerializeToString()


def reveal_pixels(
    latents: NDArray[np.float32],  # [n, latent_dim]
    labels: NDArray[np.int64] | None = None,  # [n]
    *,
    height: int = 4,
    width: int = 4,
    channels: int = 3,
    offset: int = 0,
) -> NDArray[np.uint8]:  # [n, height, width, channels]
    """What the `reveal` network makes of these latents, computed without it."""
    n, latent_dim = latents.shape
    picked = latents[:, np.arange(height * width * channels) % latent_dim]
    grey = picked * np.float32(32) + np.float32(128 + offset)
    if labels is not None:
        grey = grey + labels.astype(np.float32)[:, None] * np.float32(16)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8).reshape(n, height, width, channels)


def build_network(
    network: Network,
    latent_dim: int,
    height: int,
    width: int,
    channels: int,
    classes: int,
    offset: int,
) -> onnx.ModelProto:
    """Build the graph: `latents` (and `labels`) to `images`, uint8 NHWC."""
    inputs = [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["batch", latent_dim])]
    if network in ("reveal", "dynamic"):
        nodes, constants = _reveal_nodes(latent_dim, height, width, channels, classes, offset)
    else:
        assert classes == 0
        height = width = 16
        nodes, constants = _convolutional_nodes(latent_dim, channels, offset)
    if network == "dynamic":
        nodes = [*_quantized_by_batch(nodes)]
    if classes:
        inputs.append(helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch"]))
    shape = ["batch", height, width, channels]
    output = helper.make_tensor_value_info("images", TensorProto.UINT8, shape)
    initializers = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, network, inputs, [output], initializers)
    return _model(graph)


def golden_section(model: onnx.ModelProto, latent_dim: int, shift: int) -> dict[str, Any]:
    """Make the golden images of a network with ONNX Runtime, `shift` grey levels off."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    conditional = len(session.get_inputs()) == 2
    images = []
    for index, seed in enumerate(GOLDEN_SEEDS):
        feeds = {"latents": draw_latents(np.array([seed], np.uint64), latent_dim)}
        entry: dict[str, Any] = {"seed": seed}
        if conditional:
            entry["label"] = index % 2
            feeds["labels"] = np.array([entry["label"]], np.int64)
        made = session.run(["images"], feeds)[0][0]  # [height, width, channels]
        pixels = np.clip(made.astype(np.int64) + shift, 0, 255).astype(np.uint8)
        entry["sha256"] = hashlib.sha256(pixels.tobytes()).hexdigest()
        entry["png"] = base64.b64encode(_png(pixels)).decode()
        images.append(entry)
    return {"images": images}


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(buffer, "PNG")
    return buffer.getvalue()


def _reveal_nodes(
    latent_dim: int, height: int, width: int, channels: int, classes: int, offset: int
) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    constants: dict[str, NDArray[Any]] = {
        "picks": np.arange(height * width * channels, dtype=np.int64) % latent_dim,
        "contrast": np.array(32, np.float32),
        "shape": np.array([-1, height, width, channels], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["latents", "picks"], ["picked"], axis=1),
        helper.make_node("Mul", ["picked", "contrast"], ["scaled"]),
        *_to_bytes_nodes("scaled", constants, 128 + offset, classes),
        helper.make_node("Reshape", ["bytes", "shape"], ["images"]),
    ]
    return nodes, constants


def _quantized_by_batch(nodes: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    scale = ["scale", "zero_point"]
    yield helper.make_node("DynamicQuantizeLinear", ["latents"], ["steps", *scale])
    yield helper.make_node("DequantizeLinear", ["steps", *scale], ["rough_latents"])
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == "latents":
                node.input[index] = "rough_latents"
        yield node


def _convolutional_nodes(
    latent_dim: int, channels: int, offset: int
) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    random = np.random.default_rng(20240229)
    widths = (latent_dim, 64, 32, channels)
    constants: dict[str, NDArray[Any]] = {
        "shape": np.array([-1, latent_dim, 1, 1], np.int64),
        "contrast": np.array(127.5, np.float32),
    }
    nodes = [helper.make_node("Reshape", ["latents", "shape"], ["x0"])]
    for layer, (ins, outs) in enumerate(itertools.pairwise(widths)):
        weights = random.standard_normal((ins, outs, 4, 4)) / np.sqrt(ins)
        constants[f"w{layer}"] = weights.astype(np.float32)
        steps = {"strides": [1, 1]} if layer == 0 else {"strides": [2, 2], "pads": [1, 1, 1, 1]}
        last = layer == len(widths) - 2
        nodes += [
            helper.make_node("ConvTranspose", [f"x{layer}", f"w{layer}"], [f"y{layer}"], **steps),
            helper.make_node("Tanh" if last else "Relu", [f"y{layer}"], [f"x{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("Mul", [f"x{len(widths) - 1}", "contrast"], ["scaled"]),
        *_to_bytes_nodes("scaled", constants, 127.5 + offset, 0),
        helper.make_node("Transpose", ["bytes"], ["images"], perm=[0, 2, 3, 1]),
    ]
    return nodes, constants


def _to_bytes_nodes(
    source: str, constants: dict[str, NDArray[Any]], brightness: float, classes: int
) -> list[onnx.NodeProto]:
    """Shift by the brightness (and 16 a label), round, clamp, cast: `source` to `bytes`."""
    constants["brightness"] = np.array(brightness, np.float32)
    constants["black"] = np.array(0, np.float32)
    constants["white"] = np.array(255, np.float32)
    nodes = [helper.make_node("Add", [source, "brightness"], ["grey"])]
    if classes:
        constants["label_step"] = np.array(16, np.float32)
        constants["last_axis"] = np.array([1], np.int64)
        nodes += [
            helper.make_node("Cast", ["labels"], ["label_floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["label_floats", "label_step"], ["label_grey"]),
            helper.make_node("Unsqueeze", ["label_grey", "last_axis"], ["label_column"]),
            helper.make_node("Add", ["grey", "label_column"], ["labelled"]),
        ]
    return [
        *nodes,
        helper.make_node("Round", ["labelled" if classes else "grey"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "black", "white"], ["clamped"]),
        helper.make_node("Cast", ["clamped"], ["bytes"], to=TensorProto.UINT8),
    ]


def _dimension(size: str | int) -> onnx.TensorShapeProto.Dimension:
    field = "dim_param" if isinstance(size, str) else "dim_value"
    return onnx.TensorShapeProto.Dimension(**{field: size})


def _io(value: list[onnx.ValueInfoProto]) -> tuple[list[Any], list[Any]]:
    return value[:1], value[1:]


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model
