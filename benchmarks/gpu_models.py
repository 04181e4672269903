"""Hides what the GPU benchmark runs: the 64x64 generator, in two precisions, on a device."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from serving_models import LATENT_DIM, write_models

from ganserve.encoding import ImageFormat, encode_image
from ganserve.latents import draw_latents
from ganserve.models.artifact import parse_metadata
from ganserve.models.gpu_sessions import GpuModel, GpuSettings, load_on_gpu
from ganserve.models.loading import load_model
from ganserve.models.model import Model
from ganserve.models.model_files import read_model_file
from ganserve.models.model_spec import read_spec
from ganserve.models.onnx_weights import split_weights
from ganserve.models.runtime import open_session
from ganserve.setting_values import Device
from gantrain.export.half_precision import to_half

NAMES = {"fp32": "dcgan64", "fp16": "dcgan64-half"}
_LARGEST = 2**30  # bytes of a model


def write_generators(repository: Path) -> None:
    """Write the generator in float32 and in float16, version 1 of each, and nothing else.

    Their golden images allow any difference of up to 8 grey levels: how far `fast` is off is
    measured here, where a server with a real artifact may refuse it.
    """
    write_models(repository)
    (repository / "dense28/1/model.onnx").unlink()
    model = onnx.load(repository / NAMES["fp32"] / "1/model.onnx")
    for precision, name in NAMES.items():
        graph = model if precision == "fp32" else to_half(model)
        _write(repository / name / "1", graph, precision)


def open_model(
    repository: Path, precision: str, device: Device, batch_sizes: Sequence[int], gpu: GpuSettings
) -> Model:
    """Load a generator as the server does; with the device `cpu` as if that were a GPU.

    Raises:
        ProviderUnavailable: there is no such device.
    """
    path = repository / NAMES[precision] / "1/model.onnx"
    if device != "cpu":
        return load_model(path, device, threads=1, warm_batch_sizes=lambda _: batch_sizes, gpu=gpu)
    file = split_weights(read_model_file(path, _LARGEST))
    session = open_session(file, "cpu", 1)
    metadata = parse_metadata(session.get_modelmeta().custom_metadata_map["gan"])
    spec = read_spec(session, metadata, hashlib.sha256(file.content).hexdigest())
    return load_on_gpu(GpuModel(file, spec, metadata.golden, "cpu", batch_sizes, threads=1), gpu)


def _write(folder: Path, model: onnx.ModelProto, precision: str) -> None:
    metadata = json.loads({entry.key: entry.value for entry in model.metadata_props}["gan"])
    metadata["precision"] = {"kind": precision}
    metadata["golden"]["tolerance"] = {"max_difference": 8, "differing_share": 1.0}
    metadata["golden"]["images"] = _golden_images(model)
    onnx.helper.set_model_props(model, {"gan": json.dumps(metadata)})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def _golden_images(model: onnx.ModelProto) -> list[dict[str, Any]]:
    session = open_session(split_weights(model.SerializeToString()), "cpu", 1)
    latents = draw_latents(np.arange(2, dtype=np.uint64), LATENT_DIM)
    images = session.run(["images"], {"latents": latents})[0]
    return [
        {
            "seed": seed,
            "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "png": base64.b64encode(encode_image(pixels, ImageFormat.PNG)).decode(),
        }
        for seed, pixels in enumerate(images)
    ]
