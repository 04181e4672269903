"""The message in which a server lists its models: each version becomes a plain value."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ganserve.v1 import image_generation_pb2 as pb

ModelState = Literal["loading", "ready", "failed", "retiring", "unspecified"]

_STATES: dict[int, ModelState] = {
    pb.MODEL_STATE_LOADING: "loading",
    pb.MODEL_STATE_READY: "ready",
    pb.MODEL_STATE_FAILED: "failed",
    pb.MODEL_STATE_RETIRING: "retiring",
}


class EvaluationResult(NamedTuple):
    """What was measured of a model, and its value."""

    name: str
    value: float


@dataclass(frozen=True)
class ModelInfo:
    """One version of one model, as a server lists it.

    What follows `state` is known where that is `ready` or `retiring`; elsewhere it is zero or
    empty.

    Attributes:
        name: The model's name.
        version: Its number, as a call takes it.
        state: `loading`; `ready` to be asked for; `failed`, for the reason in `error`; `retiring`,
            which is to answer its last calls. `unspecified` is one that this client does not know.
        latent_dim: Length of a row of latents.
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        channels: 1 (grey) or 3 (RGB).
        class_names: In the order of their labels; empty where the model is not conditional.
        seed_contract: How seeds become latents.
        digest: SHA-256 of the file, in hexadecimal.
        execution_provider: What ONNX Runtime runs the model with.
        evaluation: Results that were stored in the file; `dict(...)` of it maps names to values.
        error: Why it could not be loaded, where it is `failed`.
    """

    name: str
    version: str
    state: ModelState
    latent_dim: int
    height: int
    width: int
    channels: int
    class_names: tuple[str, ...]
    seed_contract: str
    digest: str
    execution_provider: str
    evaluation: tuple[EvaluationResult, ...]
    error: str


def read_models(response: pb.ListModelsResponse) -> list[ModelInfo]:
    """The models of a reply, in its order."""
    return [_read_model(model) for model in response.models]


def _read_model(model: pb.Model) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        version=model.version,
        state=_STATES.get(model.state, "unspecified"),
        latent_dim=model.latent_dim,
        height=model.height,
        width=model.width,
        channels=model.channels,
        class_names=tuple(model.class_names),
        seed_contract=model.seed_contract,
        digest=model.digest,
        execution_provider=model.execution_provider,
        evaluation=tuple(EvaluationResult(part.name, part.value) for part in model.evaluation),
        error=model.error,
    )
