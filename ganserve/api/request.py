"""A `GenerateImagesRequest` becomes a checked value, or an error that names the field."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ganserve.encoding import ImageFormat
from ganserve.errors import InvalidRequest
from ganserve.latents import interpolate_latents, truncate
from ganserve.models.model_files import parse_version_number
from ganserve.models.model_spec import ModelSpec
from ganserve.v1 import image_generation_pb2 as pb

_FORMATS = {
    pb.IMAGE_FORMAT_UNSPECIFIED: ImageFormat.PNG,
    pb.IMAGE_FORMAT_RAW: ImageFormat.RAW,
    pb.IMAGE_FORMAT_PNG: ImageFormat.PNG,
    pb.IMAGE_FORMAT_JPEG: ImageFormat.JPEG,
    pb.IMAGE_FORMAT_WEBP: ImageFormat.WEBP,
}
_LARGEST_SEED = 2**64 - 1
_LARGEST_REPLY_BYTES = 2**31 - 2**16  # of protobuf's limit, less what is said once
_SEED_BYTES = 10  # at most, in a reply
_LENGTH_BYTES = 6  # at most, with its tag, before each file


@dataclass(frozen=True)
class FromSeeds:
    """One image a seed."""

    seeds: NDArray[np.uint64]  # [count]

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.seeds)


@dataclass(frozen=True)
class FromLatents:
    """One image a row."""

    latents: NDArray[np.float32]  # [count, latent_dim]

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.latents)


@dataclass(frozen=True)
class FromInterpolation:
    """A walk from seed to seed."""

    seeds: NDArray[np.uint64]  # [stations], at least two
    frames_per_segment: int

    @property
    def count(self) -> int:
        """How many images."""
        return _count_frames(len(self.seeds), self.frames_per_segment)


Source = FromSeeds | FromLatents | FromInterpolation


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate, checked against the model that will do it."""

    source: Source
    labels: NDArray[np.int64] | None  # [count], conditional models only
    truncation: float
    format: ImageFormat
    quality: int | None

    @property
    def count(self) -> int:
        """How many images."""
        return self.source.count

    @property
    def seeds(self) -> NDArray[np.uint64]:  # [count], or [0]
        """The seed of each image; empty where images have none."""
        return self.source.seeds if isinstance(self.source, FromSeeds) else np.empty(0, np.uint64)


def parse_request(
    request: pb.GenerateImagesRequest, spec: ModelSpec, *, max_images: int
) -> GenerationRequest:
    """Check every field.

    Raises:
        InvalidRequest: names the field, what was expected and what came.
    """
    source = _parse_source(request, spec, max_images)
    image_format = _parse_format(request)
    return GenerationRequest(
        source=source,
        labels=_parse_labels(request, spec, source.count),
        truncation=_parse_truncation(request),
        format=image_format,
        quality=_parse_quality(request, image_format),
    )


def rows_of(
    generation: GenerationRequest, latent_dim: int
) -> tuple[NDArray[np.uint64] | NDArray[np.float32], float]:
    """What a batcher takes, seeds [count] or latents [count, latent_dim], and their truncation.

    Seeds stay seeds, for their latents cost less when drawn with those of others; all else becomes
    latents, which are truncated here.
    """
    match generation.source:
        case FromSeeds(seeds):
            return seeds, generation.truncation
        case FromLatents(latents):
            return truncate(latents, generation.truncation), 1.0
        case FromInterpolation(seeds, frames_per_segment):
            latents = interpolate_latents(seeds, frames_per_segment, latent_dim)
            return truncate(latents, generation.truncation), 1.0


def parse_version(field: str, text: str) -> int | None:
    """Read a model's version; None for the newest.

    Raises:
        InvalidRequest: it is no positive integer below 2^63.
    """
    if text == "":
        return None
    number = parse_version_number(text)
    if number is None:
        raise InvalidRequest(field, f"expected a positive integer below 2^63, got {text[:40]!r}")
    return number


def check_count(field: str, count: int, what: str, max_images: int) -> int:
    """Refuse what is empty or more than one request may ask for.

    Raises:
        InvalidRequest: it is.
    """
    if not 1 <= count <= max_images:
        raise InvalidRequest(field, f"expected 1 to {max_images} {what}, got {count}")
    return count


def check_one_reply(field: str, generation: GenerationRequest, spec: ModelSpec) -> None:
    """Refuse more pixels than one message can hold; no client could read it.

    Raises:
        InvalidRequest: there are more.
    """
    most = _LARGEST_REPLY_BYTES // (spec.image_bytes + _SEED_BYTES)
    if generation.format is ImageFormat.RAW and generation.count > most:
        raise InvalidRequest(
            field,
            f"expected at most {most} images of this model as pixels in one reply, got "
            f"{generation.count}: StreamImages sends more",
        )


def check_files(files: Sequence[bytes]) -> None:
    """Refuse more encoded images than one message can hold; that shows only once they are made.

    Raises:
        InvalidRequest: there are more.
    """
    size = sum(map(len, files)) + (_LENGTH_BYTES + _SEED_BYTES) * len(files)
    if size > _LARGEST_REPLY_BYTES:
        raise InvalidRequest(
            "format",
            f"expected files of at most {_LARGEST_REPLY_BYTES} bytes in one reply, got {size}: "
            "StreamImages sends more",
        )


def check_finite(field: str, values: NDArray[np.float32]) -> None:
    """Refuse NaN and infinities; `values` has one dimension.

    Raises:
        InvalidRequest: there is one.
    """
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite))
        raise InvalidRequest(field, f"expected finite numbers, got {values[index]} at {index}")


def check_labels(field: str, labels: NDArray[np.int64], classes: int) -> None:
    """Refuse labels [n] of classes that the model does not have.

    Raises:
        InvalidRequest: there is one.
    """
    for label in (labels.min(), labels.max()):
        if not 0 <= label < classes:
            raise InvalidRequest(field, f"expected labels from 0 to {classes - 1}, got {label}")


def check_truncation(field: str, truncation: float) -> float:
    """Refuse what is outside of (0, 1].

    Raises:
        InvalidRequest: it is.
    """
    if not 0 < truncation <= 1:
        raise InvalidRequest(field, f"expected more than 0 and at most 1, got {truncation}")
    return truncation


def _parse_source(request: pb.GenerateImagesRequest, spec: ModelSpec, max_images: int) -> Source:
    match request.WhichOneof("source"):
        case "seeds":
            values = request.seeds.values
            count = check_count("seeds.values", len(values), "seeds", max_images)
            return FromSeeds(np.fromiter(values, np.uint64, count))
        case "seed_range":
            start = request.seed_range.start
            count = check_count("seed_range.count", request.seed_range.count, "seeds", max_images)
            if start + count - 1 > _LARGEST_SEED:
                raise InvalidRequest(
                    "seed_range",
                    f"expected seeds up to 2^64 - 1, got start {start} and count {count}",
                )
            return FromSeeds(np.fromiter(range(start, start + count), np.uint64, count))
        case "latents":
            return _parse_latents(request.latents, spec.latent_dim, max_images)
        case "interpolation":
            return _parse_interpolation(request.interpolation, max_images)
        case None:
            raise InvalidRequest(
                "source", "expected one of seeds, seed_range, latents, interpolation, got none"
            )


def _parse_latents(latents: pb.Latents, latent_dim: int, max_images: int) -> FromLatents:
    if latents.latent_dim not in (0, latent_dim):
        raise InvalidRequest(
            "latents.latent_dim", f"expected the model's, {latent_dim}, got {latents.latent_dim}"
        )
    field, length = "latents.values", len(latents.values)
    if length == 0 or length % latent_dim:
        raise InvalidRequest(
            field, f"expected a multiple of latent_dim ({latent_dim}) numbers, got {length}"
        )
    count = check_count(field, length // latent_dim, "rows", max_images)
    values = np.fromiter(latents.values, np.float32, length)
    check_finite(field, values)
    return FromLatents(values.reshape(count, latent_dim))


def _parse_interpolation(interpolation: pb.Interpolation, max_images: int) -> FromInterpolation:
    stations, frames = len(interpolation.seeds), interpolation.frames_per_segment
    if stations < 2:
        raise InvalidRequest("interpolation.seeds", f"expected at least 2 seeds, got {stations}")
    if frames < 1:
        raise InvalidRequest(
            "interpolation.frames_per_segment", f"expected at least 1 frame, got {frames}"
        )
    check_count("interpolation", _count_frames(stations, frames), "frames in all", max_images)
    return FromInterpolation(np.fromiter(interpolation.seeds, np.uint64, stations), frames)


def _count_frames(stations: int, frames_per_segment: int) -> int:
    return frames_per_segment * (stations - 1) + 1


def _parse_labels(
    request: pb.GenerateImagesRequest, spec: ModelSpec, count: int
) -> NDArray[np.int64] | None:  # [count]
    field, classes, given = "class_labels", len(spec.class_names), len(request.class_labels)
    if not classes:
        if given:
            raise InvalidRequest(
                field, f"expected none, for the model is not conditional, got {given}"
            )
        return None
    if given not in (1, count):
        expected = "1 label" if count == 1 else f"1 label for all images or {count}, one for each"
        raise InvalidRequest(field, f"expected {expected}, got {given}")
    labels = np.fromiter(request.class_labels, np.int64, given)
    check_labels(field, labels, classes)
    return np.ascontiguousarray(np.broadcast_to(labels, (count,)))


def _parse_truncation(request: pb.GenerateImagesRequest) -> float:
    if not request.HasField("truncation"):
        return 1.0
    return check_truncation("truncation", request.truncation)


def _parse_format(request: pb.GenerateImagesRequest) -> ImageFormat:
    if request.format not in _FORMATS:
        names = ", ".join(pb.ImageFormat.Name(number) for number in _FORMATS)
        raise InvalidRequest("format", f"expected one of {names}, got {request.format}")
    return _FORMATS[request.format]


def _parse_quality(request: pb.GenerateImagesRequest, image_format: ImageFormat) -> int | None:
    if not request.HasField("quality"):
        return None
    if not image_format.takes_quality:
        raise InvalidRequest(
            "quality", f"expected none for {image_format.name}, got {request.quality}"
        )
    if not 1 <= request.quality <= 100:
        raise InvalidRequest("quality", f"expected 1 to 100, got {request.quality}")
    return request.quality
