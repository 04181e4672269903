"""From a run to a published artifact: written, proven equal to the generator, moved into place."""

import base64
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import re
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image

from gantrain.checkpoint import fsync_folder
from gantrain.class_labels import spread_labels
from gantrain.errors import RunError, UsageError
from gantrain.evaluation_results import read_evaluation
from gantrain.latents import SEED_CONTRACT, draw_latents
from gantrain.sampling import (
    SCHEMA,
    PixelGenerator,
    Pixels,
    RunGenerator,
    generate,
    load_run_generator,
    open_session,
    run_session,
)

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
PROOF_BATCHES = (1, 2, 7, 64)
_OPSET = 20
_GOLDEN_SEEDS = (0, 1, 2**32, 2**64 - 1)
# PyTorch and ONNX Runtime sum in different orders, so a value on the edge between two grey levels
# may fall to either side: measured on a few pixels in a million.
# One is always allowed: of the 64 values of an 8x8 image it is more than any sensible share.
_PROOF_DIFFERENCE, _PROOF_SHARE = 1, 1e-3
# Another processor or provider sums in yet another order. Small images may differ in as many values
# as make up the share in one of 20x20 pixels.
_GOLDEN_DIFFERENCE, _GOLDEN_SHARE, _GOLDEN_VALUES = 2, 0.01, 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LOCAL_SETTINGS = {"run_dir", "data", "device", "threads"}  # of the machine, not of the model


def export_run(run_path: Path, repository: Path, name: str) -> Path:
    """Publish the run's averaged generator as the next version of a model; return the file.

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
    metadata = {**describe(name, run), "evaluation": current_evaluation(run_path, run)}
    artifact = write_artifact(run.generator, run.config.latent_dim, metadata)
    prove(artifact, run.generator, run.config.latent_dim, len(run.class_names))
    return publish(artifact, repository, name)


def describe(name: str, run: RunGenerator) -> dict[str, Any]:
    """The metadata of docs/artifact.md, less evaluation and golden images."""
    settings = run.config.model_dump(mode="json", exclude=_LOCAL_SETTINGS)
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


def current_evaluation(run_path: Path, run: RunGenerator) -> dict[str, float]:
    """The numbers of the run's newest evaluation, none where it is of other weights.

    Raises:
        RunError: the evaluation cannot be read.
    """
    evaluation = read_evaluation(run_path)
    if evaluation is None:
        return {}
    if evaluation.generator.weights != run.weights:
        logger.warning(
            "the artifact carries no evaluation: %s has one after %d images, exported is the "
            "generator after %d; evaluate again",
            run_path,
            evaluation.generator.images_seen,
            run.images_seen,
        )
        return {}
    return evaluation.numbers()


def write_artifact(generator: PixelGenerator, latent_dim: int, metadata: dict[str, Any]) -> bytes:
    """The ONNX file of a generator, with metadata and golden images."""
    classes = len(metadata["class_names"])
    model = to_onnx(generator, latent_dim, classes)
    session = open_session(model.SerializeToString())
    seeds = np.array(_GOLDEN_SEEDS, np.uint64)
    labels = spread_labels(classes, len(seeds)) if classes else None
    pixels = run_session(session, draw_latents(seeds, latent_dim), labels)
    of_class = [{}] * len(seeds) if labels is None else [{"label": int(label)} for label in labels]
    golden = {
        "tolerance": {
            "max_difference": _GOLDEN_DIFFERENCE,
            "differing_share": max(_GOLDEN_SHARE, _GOLDEN_VALUES / pixels[0].size),
        },
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


def prove(artifact: bytes, generator: PixelGenerator, latent_dim: int, classes: int = 0) -> None:
    """Compare the artifact with the PyTorch generator, and its batches with each other.

    Batches of a conditional generator are of mixed classes.

    Raises:
        RunError: images differ by more than rounding, or depend on the batch they are made in.
    """
    session = open_session(artifact)
    seeds = np.arange(max(PROOF_BATCHES), dtype=np.uint64)
    latents = draw_latents(seeds, latent_dim)
    labels = spread_labels(classes, len(seeds)) if classes else None
    expected = generate(generator, latents, labels)
    largest_batch = run_session(session, latents, labels)
    for batch in PROOF_BATCHES:
        some_labels = None if labels is None else labels[:batch]
        pixels = run_session(session, latents[:batch], some_labels)
        compare(pixels, expected[:batch], batch)
        if not np.array_equal(pixels, largest_batch[:batch]):
            raise RunError(
                f"the artifact's images in a batch of {batch} differ from those in a batch of "
                f"{max(PROOF_BATCHES)}; nothing was published"
            )


def compare(pixels: Pixels, expected: Pixels, batch: int) -> None:
    """Raise RunError where two sets of images differ by more than rounding explains."""
    if pixels.shape != expected.shape:
        raise RunError(
            f"the artifact makes {pixels.shape}, the generator {expected.shape}; nothing was "
            "published"
        )
    difference = np.abs(pixels.astype(np.int16) - expected)
    share = float(np.mean(difference > 0))
    if difference.max() > _PROOF_DIFFERENCE or share > max(_PROOF_SHARE, 1 / difference.size):
        raise RunError(
            f"the artifact's images differ from the generator's in a batch of {batch}: by up to "
            f"{difference.max()} grey levels (at most {_PROOF_DIFFERENCE} allowed), on {share:.2%} "
            f"of values (at most {_PROOF_SHARE:.2%}); nothing was published"
        )


def publish(artifact: bytes, repository: Path, name: str) -> Path:
    """Move the artifact into place as the next version, in one step that a watcher cannot split.

    Raises:
        RunError: the repository cannot be written.
    """
    folder = repository / name
    staging = folder / f".staging-{secrets.token_hex(8)}"
    try:
        staging.mkdir(parents=True)
        try:
            write_durably(staging / MODEL_FILE, artifact)
            fsync_folder(staging)
            target = claim_version(staging, folder)
        finally:
            discard(staging)
        fsync_folder(folder)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror}; nothing was published"
        ) from error
    return target / MODEL_FILE


def claim_version(staging: Path, folder: Path) -> Path:
    """Rename the staged folder to the next version number that nobody has taken."""
    while True:
        versions = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        target = folder / str(max(versions, default=0) + 1)
        try:
            return staging.rename(target)
        except OSError:
            if not target.exists():  # else somebody published in between: take the next number
                raise


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def discard(staging: Path) -> None:
    """Remove what is left of a staged folder."""
    if staging.exists():
        (staging / MODEL_FILE).unlink(missing_ok=True)
        staging.rmdir()


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """One image [height, width, channels] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
