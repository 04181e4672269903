"""The service `ganserve.v1.ImageGenerationService`: each RPC reads as the steps of its work."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganserve.api.replies import Reply, reply_head
from ganserve.api.request import (
    GenerationRequest,
    check_files,
    check_one_reply,
    parse_request,
    parse_version,
    rows_of,
)
from ganserve.batching.entries import Generated
from ganserve.calls import current_deadline, current_trace, note_request
from ganserve.encoding import Encoder, ImageFormat
from ganserve.errors import Overloaded
from ganserve.metrics import Metrics
from ganserve.repository.model_index import ModelIndex
from ganserve.repository.versions import ModelState, Served, Version
from ganserve.security.admission import Admission
from ganserve.transport.call_context import Context
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceServicer

_SMALL_PART = 2  # half of a batch at most
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


class ImageGenerationService(ImageGenerationServiceServicer):
    """`ganserve.v1.ImageGenerationService`."""

    def __init__(
        self,
        index: ModelIndex,
        encoder: Encoder,
        admission: Admission,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self._index = index
        self._admission = admission
        self._encoder = encoder
        self._limits = limits
        # Looked up once: the look-up of a series costs more than its change.
        self._observe_encode_seconds = {
            image_format: metrics.encode_seconds.labels(image_format.value).observe
            for image_format in ImageFormat
        }

    async def GenerateImages(  # type: ignore[override]  # a reply may serialize itself
        self, request: pb.GenerateImagesRequest, context: Context
    ) -> Reply:
        """Generate all images, then answer."""
        number = parse_version("model_version", request.model_version)
        await self._index.wait_for_first_scan(request.model_name, number)
        with self._index.use(request.model_name, number) as (version, served):
            generation = parse_request(request, served.spec, max_images=self._limits.max_images)
            check_one_reply("format", generation, served.spec)
            note_request(version.name, version.number, generation.count)
            self._check_encoder(generation)
            with self._admission.taking_images(context, generation.count):
                rows, truncation = rows_of(generation, served.spec.latent_dim)
                generated = await served.batcher.submit(
                    rows, generation.labels, deadline=current_deadline(), truncation=truncation
                )
            reply = await self._respond(version, served, generation, generated, first=0)
            served.count_images(generation.count)
            return reply

    async def StreamImages(  # type: ignore[override]  # a reply may serialize itself
        self, request: pb.GenerateImagesRequest, context: Context
    ) -> AsyncIterator[Reply]:
        """Answer in chunks. While one is sent the next is made; a slow reader holds that up."""
        number = parse_version("model_version", request.model_version)
        await self._index.wait_for_first_scan(request.model_name, number)
        with self._index.use(request.model_name, number) as (version, served):
            generation = parse_request(request, served.spec, max_images=self._limits.max_images)
            note_request(version.name, version.number, generation.count)
            self._check_encoder(generation)
            with self._admission.taking_images(context, generation.count):
                chunks = self._make_chunks(version, served, generation)
                # Closed here, or what is made ahead would outlast a call whose caller leaves.
                async with contextlib.aclosing(chunks) as replies:
                    async for reply in replies:
                        # Before it is sent: a caller that leaves may have received it.
                        served.count_images(reply.message.count)
                        yield reply

    async def ListModels(self, _: pb.ListModelsRequest, __: Context) -> pb.ListModelsResponse:
        """Describe every version that has a state."""
        return pb.ListModelsResponse(models=map(describe_version, self._index.versions))

    async def GetModel(self, request: pb.GetModelRequest, _: Context) -> pb.GetModelResponse:
        """Describe one version."""
        number = parse_version("version", request.version)
        version = self._index.describe(request.name, number)
        return pb.GetModelResponse(model=describe_version(version))

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

    def _make_chunks(
        self, version: Version, served: Served, generation: GenerationRequest
    ) -> AsyncGenerator[Reply]:
        """The replies of a stream, each of at most the chunk size but of one image at least."""
        rows, truncation = rows_of(generation, served.spec.latent_dim)
        labels = generation.labels
        chunk_images = max(1, self._limits.chunk_bytes // served.spec.image_bytes)

        async def make(first: int) -> Reply:
            chunk = slice(first, first + chunk_images)
            generated = await served.batcher.submit(
                rows[chunk],
                None if labels is None else labels[chunk],
                deadline=current_deadline(),
                truncation=truncation,
                continues=first > 0,
            )
            if generation.format is ImageFormat.RAW:
                generated = generated._replace(pixels=own_pixels(generated.pixels))
            return await self._respond(version, served, generation, generated, first=first)

        return prefetch(make, range(0, generation.count, chunk_images))

    async def _respond(
        self,
        version: Version,
        served: Served,
        generation: GenerationRequest,
        generated: Generated,
        *,
        first: int,
    ) -> Reply:
        """Encode the images from `first` on and build their message."""
        spec, image_format = served.spec, generation.format
        count = len(generated.pixels)
        images: Sequence[bytes] = ()
        encode_seconds = 0.0  # of RAW, which is not encoded
        if image_format is not ImageFormat.RAW:
            started = time.perf_counter()
            images = await self._encoder.encode(generated.pixels, image_format, generation.quality)
            encode_seconds = time.perf_counter() - started
            check_files(images)
        trace = current_trace()
        if trace is not None and trace.exemplar is not None and images:
            trace.add_stage("encode", time.monotonic() - encode_seconds, encode_seconds)
        exemplar = None if trace is None else trace.exemplar
        self._observe_encode_seconds[image_format](encode_seconds, exemplar)
        return Reply(
            reply_head(
                *(version.name, version.number, spec.digest),
                (spec.height, spec.width, spec.channels),
                image_format.media_type,
            ),
            pb.GenerateImagesResponse(
                images=images,
                count=count,
                seeds=generation.seeds[first : first + count].tolist(),
                timing=pb.Timing(
                    queue_seconds=generated.queue_seconds,
                    compute_seconds=generated.compute_seconds,
                    encode_seconds=encode_seconds,
                ),
                first_index=first,
            ),
            generated.pixels if image_format is ImageFormat.RAW else None,
        )


def own_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """These pixels, as a copy where they are a small part of a batch.

    What waits for a slow reader would else keep the images of all others of the batch.
    """
    batch = pixels.base
    if isinstance(batch, np.ndarray) and pixels.nbytes <= batch.nbytes // _SMALL_PART:
        return pixels.copy()
    return pixels


async def prefetch(
    make: Callable[[int], Coroutine[Any, Any, Reply]], starts: Sequence[int]
) -> AsyncGenerator[Reply]:
    """Make one reply after the other, the next while the consumer is busy with the last."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(make(starts[0]))
    try:
        for start in starts[1:]:
            reply = await task
            task = loop.create_task(make(start))
            yield reply
        yield await task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # of a reply that nobody waits for any more


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
