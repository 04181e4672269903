"""What callers may know of a model, read from its graph's inputs and output and its metadata."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganserve.errors import ModelError
from ganserve.latents import SEED_CONTRACT, draw_latents
from ganserve.models.artifact import Metadata
from ganserve.models.batch_sizes import RunRows
from ganserve.models.bound_session import BoundSession
from ganserve.models.runtime import Session

GraphValue = Any  # onnxruntime.NodeArg, untyped


@dataclass(frozen=True)
class ModelSpec:
    """What a caller may know about a model."""

    latent_dim: int
    height: int
    width: int
    channels: int  # 1 (grey) or 3 (RGB)
    class_names: tuple[str, ...]  # in the order of their labels; empty where not conditional
    seed_contract: str
    digest: str  # SHA-256 of the file, in hexadecimal
    provider: str
    evaluation: Mapping[str, float]
    precision: str = "fp32"  # of weights and arithmetic

    @property
    def image_bytes(self) -> int:
        """The size of one image's pixels."""
        return self.height * self.width * self.channels


def read_spec(session: Session, metadata: Metadata, digest: str) -> ModelSpec:
    """Check the graph's inputs and output, and read the sizes from them.

    Raises:
        ModelError: they are not those of a generator, as docs/artifact.md defines.
    """
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    conditional = bool(metadata.class_names)
    expected = {"latents", "labels"} if conditional else {"latents"}
    if set(inputs) != expected:
        raise ModelError(
            f"inputs: expected {sorted(expected)} for {len(metadata.class_names)} class names, "
            f"got {sorted(inputs)}"
        )
    if set(outputs) != {"images"}:
        raise ModelError(f"outputs: expected ['images'], got {sorted(outputs)}")
    (latent_dim,) = _fixed_sizes(inputs["latents"], "tensor(float)", dimensions=1)
    if conditional:
        _fixed_sizes(inputs["labels"], "tensor(int64)", dimensions=0)
    height, width, channels = _fixed_sizes(outputs["images"], "tensor(uint8)", dimensions=3)
    if channels not in (1, 3):
        raise ModelError(f"images: expected 1 or 3 channels, got {channels}")
    return ModelSpec(
        latent_dim=latent_dim,
        height=height,
        width=width,
        channels=channels,
        class_names=metadata.class_names,
        seed_contract=SEED_CONTRACT,
        digest=digest,
        provider=session.get_providers()[0],
        evaluation=metadata.evaluation,
        precision=metadata.precision.kind,
    )


def _fixed_sizes(value: GraphValue, element_type: str, *, dimensions: int) -> list[int]:
    """Return the sizes after the batch, which must be dynamic; the others must be fixed."""
    batch, *rest = value.shape or [None]
    sizes = [size for size in rest if isinstance(size, int) and size > 0]
    as_expected = value.type == element_type and not isinstance(batch, int)
    if not as_expected or len(sizes) != dimensions or len(rest) != dimensions:
        raise ModelError(
            f"{value.name}: expected {element_type} with a dynamic batch and {dimensions} fixed "
            f"dimensions after it, got {value.type} {value.shape}"
        )
    return sizes


def runner_of_rows(session: Session | BoundSession, spec: ModelSpec, count: int) -> RunRows:
    """Calls of the session with any of `count` known rows, for comparing what it makes of them."""
    feeds = make_feeds(spec, count)

    def run_rows(rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        chosen = {name: values[rows] for name, values in feeds.items()}
        images: NDArray[np.uint8] = session.run(["images"], chosen)[0]
        return images

    return run_rows


def make_feeds(spec: ModelSpec, size: int, variant: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs for a batch: latents [size, latent_dim] and, of conditional models, labels [size].

    Each variant has other ones.
    """
    seeds = np.arange(variant * size, (variant + 1) * size, dtype=np.uint64)
    feeds: dict[str, NDArray[Any]] = {"latents": draw_latents(seeds, spec.latent_dim)}
    if spec.class_names:
        feeds["labels"] = (seeds % len(spec.class_names)).astype(np.int64)
    return feeds
