"""Hides the way from a call to its images: each RPC is the table of contents of its work."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from grpc.aio import ServicerContext

from ganserve.batcher import Generated
from ganserve.encoding import Encoder, ImageFormat
from ganserve.errors import Overloaded
from ganserve.metrics import Metrics
from ganserve.repository import ModelState, Repository, Served, Version
from ganserve.request import GenerationRequest, latents_of, parse_request, parse_version
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceServicer

Context = ServicerContext[Any, Any]

_ENCODER_RETRY_SECONDS = 1.0  # about what a full line of images takes

_STATES = {
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
    ModelState.RETIRING: pb.MODEL_STATE_RETIRING,
}


@dataclass(frozen=True)
class Limits:
    """What one call may take."""

    max_images: int
    queue_size: int  # images that may wait to be encoded
    chunk_bytes: int  # of pixels, in one message of a stream
    deadline_seconds: float  # where the caller sets none


class ImageGenerationService(ImageGenerationServiceServicer):
    """`ganserve.v1.ImageGenerationService`."""

    def __init__(
        self, repository: Repository, encoder: Encoder, metrics: Metrics, limits: Limits
    ) -> None:
        self._repository = repository
        self._encoder = encoder
        self._metrics = metrics
        self._limits = limits

    async def GenerateImages(
        self, request: pb.GenerateImagesRequest, context: Context
    ) -> pb.GenerateImagesResponse:
        """Generate all images, then answer."""
        deadline = self._deadline(context)
        number = parse_version("model_version", request.model_version)
        with self._repository.use(request.model_name, number) as (version, served):
            generation = parse_request(request, served.spec, max_images=self._limits.max_images)
            self._check_encoder(generation)
            latents = latents_of(generation, served.spec.latent_dim)
            generated = await served.batcher.submit(latents, generation.labels, deadline=deadline)
            return await self._respond(version, served, generation, generated, first=0)

    async def StreamImages(
        self, request: pb.GenerateImagesRequest, context: Context
    ) -> AsyncIterator[pb.GenerateImagesResponse]:
        """Answer in chunks. The next is made when the reader has taken the one before."""
        deadline = self._deadline(context)
        number = parse_version("model_version", request.model_version)
        with self._repository.use(request.model_name, number) as (version, served):
            generation = parse_request(request, served.spec, max_images=self._limits.max_images)
            self._check_encoder(generation)
            latents, labels = latents_of(generation, served.spec.latent_dim), generation.labels
            chunk_images = max(1, self._limits.chunk_bytes // served.spec.image_bytes)
            for first in range(0, generation.count, chunk_images):
                chunk = slice(first, first + chunk_images)
                generated = await served.batcher.submit(
                    latents[chunk],
                    None if labels is None else labels[chunk],
                    deadline=deadline,
                    admitted=first > 0,
                )
                yield await self._respond(version, served, generation, generated, first=first)

    async def ListModels(self, _: pb.ListModelsRequest, __: Context) -> pb.ListModelsResponse:
        """Describe every version that has a state."""
        return pb.ListModelsResponse(models=map(describe_version, self._repository.versions))

    async def GetModel(self, request: pb.GetModelRequest, _: Context) -> pb.GetModelResponse:
        """Describe one version."""
        number = parse_version("version", request.version)
        version = self._repository.describe(request.name, number)
        return pb.GetModelResponse(model=describe_version(version))

    def _deadline(self, context: Context) -> float:
        """When the call's time is up, on time.monotonic."""
        remaining = context.time_remaining()
        return time.monotonic() + (
            self._limits.deadline_seconds if remaining is None else remaining
        )

    def _check_encoder(self, generation: GenerationRequest) -> None:
        """Refuse, before the model works on it, what the encoder could not keep up with.

        Raises:
            Overloaded: as many images as may wait in a queue wait to be encoded.
        """
        waiting = self._encoder.pending_images
        if generation.format is not ImageFormat.RAW and waiting >= self._limits.queue_size:
            raise Overloaded(
                f"the queue is full: {waiting} images wait to be encoded, the limit is "
                f"{self._limits.queue_size}",
                retry_seconds=_ENCODER_RETRY_SECONDS,
            )

    async def _respond(
        self,
        version: Version,
        served: Served,
        generation: GenerationRequest,
        generated: Generated,
        *,
        first: int,
    ) -> pb.GenerateImagesResponse:
        """Encode the images from `first` on and build their message."""
        count = len(generated.pixels)
        response = pb.GenerateImagesResponse(
            count=count,
            seeds=generation.seeds[first : first + count].tolist(),
            height=served.spec.height,
            width=served.spec.width,
            channels=served.spec.channels,
            media_type=generation.format.media_type,
            model=pb.ModelIdentity(
                name=version.name, version=str(version.number), digest=served.spec.digest
            ),
            first_index=first,
        )
        started = time.perf_counter()
        if generation.format is ImageFormat.RAW:
            response.pixels = generated.pixels.tobytes()
        else:
            response.images.extend(
                await self._encoder.encode(generated.pixels, generation.format, generation.quality)
            )
        encode_seconds = time.perf_counter() - started
        response.timing.queue_seconds = generated.queue_seconds
        response.timing.compute_seconds = generated.compute_seconds
        response.timing.encode_seconds = encode_seconds
        self._metrics.encode_seconds.labels(generation.format.value).observe(encode_seconds)
        self._metrics.images.labels(version.name, str(version.number)).inc(count)
        return response


def describe_version(version: Version) -> pb.Model:
    """Build a version's message."""
    model = pb.Model(
        name=version.name,
        version=str(version.number),
        state=_STATES[version.state],
        error=version.error,
    )
    if version.served is not None:
        spec = version.served.spec
        model.latent_dim = spec.latent_dim
        model.height = spec.height
        model.width = spec.width
        model.channels = spec.channels
        model.class_names.extend(spec.class_names)
        model.seed_contract = spec.seed_contract
        model.digest = spec.digest
        model.execution_provider = spec.provider
        for name, value in sorted(spec.evaluation.items()):
            model.evaluation.add(name=name, value=value)
    return model
