"""Hides the generators that serving is measured with: seeded weights, no torch."""

import base64
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ganserve.encoding import ImageFormat, encode_image
from ganserve.latents import SEED_CONTRACT, draw_latents

LATENT_DIM = 100
_DCGAN_WIDTHS = (512, 256, 128, 64, 3)  # 64 filters, 209 MFLOP an image
_DENSE_WIDTHS = (LATENT_DIM, 256, 512, 1024, 28 * 28)  # 1.5 million parameters
_GOLDEN_SEEDS = (0, 1)

Weights = dict[str, NDArray[Any]]


def write_models(repository: Path) -> None:
    """Write `dcgan64` (64x64 RGB) and `dense28` (28x28 grey), version 1 of each."""
    _write(repository, "dcgan64", *_dcgan_nodes(), shape=(64, 64, 3))
    _write(repository, "dense28", *_dense_nodes(), shape=(28, 28, 1))


def _dcgan_nodes() -> tuple[list[onnx.NodeProto], Weights]:
    """Radford et al. 2015: one dense layer to 4x4, then four transposed convolutions.

    Trained kernels are smooth and random ones are not, so each is weighted like bilinear
    enlargement: the pictures then compress about as trained ones do.
    """
    random = np.random.default_rng(1)
    first = _DCGAN_WIDTHS[0] * 16
    smooth = np.outer(profile := np.array([0.25, 0.75, 0.75, 0.25]), profile)
    weights: Weights = {
        "dense": random.standard_normal((LATENT_DIM, first)).astype(np.float32) * 0.14,
        "square": np.array([-1, _DCGAN_WIDTHS[0], 4, 4], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["latents", "dense"], ["flat"]),
        helper.make_node("Relu", ["flat"], ["positive"]),
        helper.make_node("Reshape", ["positive", "square"], ["x0"]),
    ]
    for layer in range(4):
        ins, outs = _DCGAN_WIDTHS[layer : layer + 2]
        kernels = random.standard_normal((ins, outs, 1, 1))
        kernels -= kernels.mean(axis=0)  # what comes in is positive: else channels saturate
        kernels = kernels * smooth * (0.8 if layer == 3 else 2) / np.sqrt(ins)
        weights[f"w{layer}"] = kernels.astype(np.float32)
        deconvolution: dict[str, Any] = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
        nodes += [
            helper.make_node(
                "ConvTranspose", [f"x{layer}", f"w{layer}"], [f"y{layer}"], **deconvolution
            ),
            helper.make_node("Tanh" if layer == 3 else "Relu", [f"y{layer}"], [f"x{layer + 1}"]),
        ]
    nodes += _to_bytes("x4", "bytes", weights)
    nodes.append(helper.make_node("Transpose", ["bytes"], ["images"], perm=[0, 2, 3, 1]))
    return nodes, weights


def _dense_nodes() -> tuple[list[onnx.NodeProto], Weights]:
    random = np.random.default_rng(2)
    weights: Weights = {"shape": np.array([-1, 28, 28, 1], np.int64)}
    nodes, source = [], "latents"
    for layer, (ins, outs) in enumerate(itertools.pairwise(_DENSE_WIDTHS)):
        kernel = random.standard_normal((ins, outs)) * np.sqrt(2 / ins)
        weights[f"w{layer}"] = kernel.astype(np.float32)
        weights[f"b{layer}"] = np.zeros(outs, np.float32)
        nodes += [
            helper.make_node("Gemm", [source, f"w{layer}", f"b{layer}"], [f"y{layer}"]),
            helper.make_node("Tanh" if layer == 3 else "Relu", [f"y{layer}"], [f"x{layer}"]),
        ]
        source = f"x{layer}"
    nodes += _to_bytes(source, "bytes", weights)
    nodes.append(helper.make_node("Reshape", ["bytes", "shape"], ["images"]))
    return nodes, weights


def _to_bytes(source: str, target: str, weights: Weights) -> list[onnx.NodeProto]:
    weights["half"] = np.array(127.5, np.float32)
    return [
        helper.make_node("Mul", [source, "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["grey"]),
        helper.make_node("Round", ["grey"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], [target], to=TensorProto.UINT8),
    ]


def _write(
    repository: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    weights: Weights,
    *,
    shape: tuple[int, int, int],
) -> None:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["batch", LATENT_DIM])],
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *shape])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"gan": json.dumps(_metadata(name, model))})
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def _metadata(name: str, model: onnx.ModelProto) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    latents = draw_latents(np.array(_GOLDEN_SEEDS, np.uint64), LATENT_DIM)
    golden = [
        {
            "seed": seed,
            "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "png": base64.b64encode(encode_image(pixels, ImageFormat.PNG)).decode(),
        }
        for seed, pixels in zip(
            _GOLDEN_SEEDS, session.run(["images"], {"latents": latents})[0], strict=True
        )
    ]
    return {
        "schema": 1,
        "name": name,
        "seed_contract": SEED_CONTRACT,
        "class_names": [],
        "training": {"images_seen": 0},
        "data": {"fingerprint": "sha256:" + "0" * 64, "count": 1, "kind": "synthetic"},
        "evaluation": {},
        "golden": {
            "images": golden,
            "tolerance": {"max_difference": 1, "differing_share": 0.01},
        },
        "writer": "benchmarks/serving_models.py",
    }
