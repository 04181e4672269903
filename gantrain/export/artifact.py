"""From a run to a published artifact: written, proven equal to the generator, moved into place."""

import base64
import hashlib
import importlib.metadata
import io
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from gantrain.checkpoint import checkpoint_path
from gantrain.errors import RunError, UsageError
from gantrain.evaluation.results import read_evaluation
from gantrain.export.frechet_change import frechet_change
from gantrain.export.half_precision import to_half
from gantrain.export.onnx_graph import to_onnx
from gantrain.export.precision import FRECHET_SAMPLES, MIN_PSNR, Precision
from gantrain.export.precision_distance import (
    Inputs,
    measure_distance,
    measured_images,
    refuse_below,
)
from gantrain.export.proof import prove
from gantrain.export.quantization import quantize_graph
from gantrain.export.small_maps import lower_small_maps
from gantrain.latents import SEED_CONTRACT
from gantrain.publishing import publish
from gantrain.run_directory import RunDirectory, run_of
from gantrain.sampling import (
    SCHEMA,
    PixelGenerator,
    RunGenerator,
    load_run_generator,
    open_session,
    run_session,
)

logger = logging.getLogger(__name__)

_GOLDEN_SEEDS = (0, 1, 2**32, 2**64 - 1)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LOCAL_SETTINGS = {"run_dir", "data", "device", "threads"}  # of the machine, not of the model


@dataclass(frozen=True)
class Tolerance:
    """How far another processor or provider may be off the golden images.

    Small images may differ in as many values as make up the share in a larger one.
    """

    max_difference: int  # grey levels
    share: float
    values: int

    def to_json(self, values_of_an_image: int) -> dict[str, float]:
        """The fields as docs/artifact.md has them."""
        share = min(1.0, max(self.share, self.values / values_of_an_image))
        return {"max_difference": self.max_difference, "differing_share": share}


# It sums in yet another order. In float32 that moves a value on the edge between two grey levels.
# In float16 it moves many, as each sum may round to either neighbour. Before an integer layer the
# last bit may tip a value to the next step of its grid, and a whole region shows it: latents moved
# by a part in 10^5, far more than another order of sums does, changed values of 8x8 and 28x28
# images by up to 12 grey levels, and up to 28 % of one image.
_TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(max_difference=2, share=0.01, values=4),
    "fp16": Tolerance(max_difference=4, share=0.25, values=4),
    "int8": Tolerance(max_difference=24, share=0.5, values=4),
}


def export_run(
    run_path: Path,
    repository: Path,
    name: str,
    *,
    precision: Precision = "fp32",
    min_psnr: float = MIN_PSNR,
    frechet_samples: int = FRECHET_SAMPLES,
) -> Path:
    """Publish the run's averaged generator as the next version of a model; return the file.

    Args:
        run_path: the run's folder, whose newest good checkpoint is taken, or a checkpoint in it.
        repository: the folder of models.
        name: the model's.
        precision: of weights and arithmetic: `fp16` for GPUs, `int8` for CPUs.
        min_psnr: how near an artifact of lower precision must be to the generator, in dB.
        frechet_samples: of each set of seeds that the change of the Frechet distance is measured
            on; 0 leaves it out.

    Raises:
        UsageError: the name cannot be a model's.
        RunError: the run cannot be used, the artifact does not agree with the generator, or the
            repository cannot be written. Nothing is published then.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: expected 1 to 63 letters, digits, '.', '_' or '-', a letter or "
            "digit first"
        )
    run = load_run_generator(run_path)
    if not isinstance(run.generator, PixelGenerator):
        raise RunError(
            f"{run_path} makes two-dimensional points: an artifact holds images, so there is "
            "nothing to export; `gantrain sample` draws its points"
        )
    inputs = Inputs(run.config.latent_dim, len(run.class_names))
    model = to_onnx(run.generator, inputs.latent_dim, inputs.classes)
    model, facts = reduce_precision(model, inputs, precision, min_psnr)
    if precision != "fp32" and frechet_samples:
        change = frechet_change(run, model.SerializeToString(), frechet_samples)
        facts |= {} if change is None else {"frechet_distance": change}
    metadata = {
        **describe(name, run),
        "evaluation": current_evaluation(run_of(run_path), run),
        "precision": facts,
    }
    artifact = write_artifact(model, inputs, metadata)
    threshold = None if precision == "fp32" else min_psnr
    prove(artifact, run.generator, inputs, threshold)
    return publish(artifact, repository, name)


def reduce_precision(
    model: onnx.ModelProto, inputs: Inputs, precision: Precision, min_psnr: float
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph in that precision, and what its artifact's metadata say of it.

    Raises:
        RunError: its images are further from the float32 graph's than asked for.
    """
    if precision == "fp32":
        return lower_small_maps(model), {"kind": "fp32"}
    if precision == "int8":
        quantized = quantize_graph(model, inputs, min_psnr)
        facts = {**quantized.facts(), "distance": quantized.distance.to_json()}
        return quantized.model, {"kind": "int8", **facts}
    half = to_half(model)
    distance = measure_distance(measured_images(half, inputs), measured_images(model, inputs))
    logger.info("in float16: %s", distance)
    refuse_below(distance, min_psnr, "fp16")
    return half, {"kind": "fp16", "distance": distance.to_json()}


def describe(name: str, run: RunGenerator) -> dict[str, Any]:
    """The metadata of docs/artifact.md, less evaluation and golden images."""
    settings = run.config.model_dump(mode="json", exclude=_LOCAL_SETTINGS)
    settings["preset"] = Path(run.config.preset).name  # of a file, not where it was
    data = run.data
    return {
        "schema": SCHEMA,
        "name": name,
        "seed_contract": SEED_CONTRACT,
        "class_names": list(run.class_names),
        "training": {**settings, "images_seen": run.images_seen},
        "data": {"fingerprint": data.fingerprint, "count": data.count, "kind": data.kind},
        "writer": f"gantrain {importlib.metadata.version('ganserve')}",
    }


def current_evaluation(folder: RunDirectory, run: RunGenerator) -> dict[str, float]:
    """The numbers of the checkpoint's evaluation or, if it is of these weights, the run's newest.

    None where it is of other weights or other data.

    Raises:
        RunError: the evaluation cannot be read.
    """
    evaluation = read_evaluation(checkpoint_path(folder.checkpoints, run.images_seen))
    if evaluation is None or evaluation.generator.weights != run.weights:
        evaluation = read_evaluation(folder.path) or evaluation
    if evaluation is None:
        return {}
    if evaluation.generator.weights != run.weights:
        logger.warning(
            "the artifact carries no evaluation: %s has one after %d images, exported is the "
            "generator after %d; evaluate again",
            folder.path,
            evaluation.generator.images_seen,
            run.images_seen,
        )
        return {}
    if not evaluation.data.trained_on:
        logger.warning(
            "the artifact carries no evaluation: %s has one on %s, which it was not trained on; "
            "evaluate on %s",
            folder.path,
            evaluation.data.source,
            run.config.data,
        )
        return {}
    return evaluation.numbers()


def write_artifact(model: onnx.ModelProto, inputs: Inputs, metadata: dict[str, Any]) -> bytes:
    """The file of a graph, with metadata and golden images."""
    tolerance = _TOLERANCES[metadata["precision"]["kind"]]
    session = open_session(model.SerializeToString())
    seeds = np.array(_GOLDEN_SEEDS, np.uint64)
    latents, labels = inputs.draw(seeds)
    pixels = run_session(session, latents, labels)
    of_class = [{}] * len(seeds) if labels is None else [{"label": int(label)} for label in labels]
    golden = {
        "tolerance": tolerance.to_json(pixels[0].size),
        "images": [
            {
                "seed": seed,
                **label,
                "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
                "png": base64.b64encode(png_bytes(image)).decode(),
            }
            for seed, label, image in zip(_GOLDEN_SEEDS, of_class, pixels, strict=True)
        ],
    }
    onnx.helper.set_model_props(model, {"gan": json.dumps({**metadata, "golden": golden})})
    return model.SerializeToString()


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """One image [height, width, channels] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
