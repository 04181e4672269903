"""An artifact's metadata and its golden images, as docs/artifact.md defines them."""

import base64
import hashlib
import io
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from ganserve.errors import ModelError
from ganserve.plain_text import escape

# A file from elsewhere may say anything, and JSON of a few megabytes can take gigabytes and minutes
# to be read. An export has some hundred values besides its class names, and four golden images.
_LONGEST_TEXT = 64 * 2**20  # characters; nearly all of them golden images
_MOST_VALUES = 100_000
_MOST_CLASSES = 2**15  # callers get all names of all models in one reply
_MOST_GOLDEN_IMAGES = 100  # each is generated before a model serves
_MOST_RESULTS = 1000


def _decode_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("expected base64 text")  # the only kind pydantic reports
    return base64.b64decode(text, validate=True)


class GoldenImage(BaseModel):
    """One image that the model must make again."""

    seed: Annotated[int, Field(ge=0, lt=2**64)]
    label: Annotated[int, Field(ge=0)] | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    png: Annotated[bytes, BeforeValidator(_decode_base64)]


class Tolerance(BaseModel):
    """How far another processor or provider may be off."""

    max_difference: Annotated[int, Field(ge=0, le=255)]
    differing_share: Annotated[float, Field(ge=0, le=1)]


class Golden(BaseModel):
    """The golden images, and how far off they may be."""

    images: Annotated[list[GoldenImage], Field(min_length=1, max_length=_MOST_GOLDEN_IMAGES)]
    tolerance: Tolerance


class Precision(BaseModel):
    """Of weights and arithmetic, such as `fp32` or `int8`."""

    kind: Annotated[str, Field(pattern="^[a-z0-9]{1,16}$")]


# Callers see it; as long as the name of a folder may be.
Name = Annotated[str, Field(max_length=255), AfterValidator(escape)]


class Metadata(BaseModel):
    """The part of the artifact's metadata that serving needs; see docs/artifact.md."""

    schema_version: Literal[1] = Field(alias="schema")
    seed_contract: Literal["philox4x32-10/box-muller/1"]
    class_names: Annotated[tuple[Name, ...], Field(max_length=_MOST_CLASSES)]
    evaluation: Annotated[dict[Name, float], Field(max_length=_MOST_RESULTS)]
    golden: Golden
    precision: Precision = Precision(kind="fp32")  # older artifacts do not say it


def parse_metadata(text: str | None) -> Metadata:
    """Check the value of the metadata key `gan`.

    Raises:
        ModelError: it is missing, holds more than any export, or not what it must.
    """
    if text is None:
        raise ModelError("metadata: expected the key gan, got none: not made by `gantrain export`")
    if len(text) > _LONGEST_TEXT:
        raise ModelError(
            f"metadata gan: expected at most {_LONGEST_TEXT} characters, got {len(text)}"
        )
    # Before each value stands a comma or a bracket; those within texts are counted too.
    if sum(map(text.count, ",[{")) > _MOST_VALUES:
        raise ModelError(f"metadata gan: expected at most {_MOST_VALUES} values, got more")
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(_shorten(part) for part in ("gan", *problem["loc"]))
        got = "" if problem["type"] == "missing" else f", got {_shorten(problem['input'])}"
        raise ModelError(f"metadata {where}: {problem['msg']}{got}") from error


def check_golden_image(
    image: GoldenImage,
    pixels: NDArray[np.uint8],  # [height, width, channels]
    tolerance: Tolerance,
) -> None:
    """Compare what was generated with what is known, as docs/artifact.md defines.

    Raises:
        ModelError: they differ by more than `tolerance`, or the known one has another shape.
    """
    if hashlib.sha256(pixels.tobytes()).hexdigest() == image.sha256:
        return
    expected = _decode_png(image, pixels.shape)
    differences = np.abs(pixels.astype(np.int16) - expected.astype(np.int16))
    largest, share = int(differences.max()), float(np.count_nonzero(differences)) / pixels.size
    if largest > tolerance.max_difference or share > tolerance.differing_share:
        raise ModelError(
            f"golden image of seed {image.seed}: expected at most "
            f"{tolerance.max_difference} grey levels on {tolerance.differing_share:.3%} of its "
            f"bytes, got {largest} on {share:.3%}"
        )


def _decode_png(image: GoldenImage, shape: tuple[int, ...]) -> NDArray[np.uint8]:  # of that shape
    height, width, channels = shape
    try:
        with Image.open(io.BytesIO(image.png), formats=["PNG"]) as png:
            size, mode = png.size, png.mode  # known before any pixel is decoded
            if size != (width, height) or mode != ("L" if channels == 1 else "RGB"):
                raise ModelError(
                    f"golden image of seed {image.seed}: expected {width}x{height} with "
                    f"{channels} channels, got {size[0]}x{size[1]} {mode}"
                )
            return np.asarray(png).reshape(height, width, channels)
    except OSError as error:
        raise ModelError(f"golden image of seed {image.seed}: not a PNG: {error}") from error


def _shorten(value: object) -> str:
    """Keep a message to one line of fair length."""
    text = value if isinstance(value, str) else repr(value)  # `ModelError` escapes it
    return text if len(text) <= 80 else text[:77] + "..."
