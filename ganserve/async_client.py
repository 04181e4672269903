"""Hides channel, retries and messages behind coroutines that take seeds and return images."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganserve.channel_security import ChannelSecurity, open_async_channel
from ganserve.client_channel import make_channel_options
from ganserve.client_messages import (
    EncodedFormat,
    ImageFormat,
    ImageRequest,
    build_message,
    choose_timeout,
    read_pixels,
    readable_errors,
)
from ganserve.client_streams import StreamProgress
from ganserve.encoding import to_picture
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

if TYPE_CHECKING:
    from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceAsyncStub


class AsyncClient:
    """Asks for images from an event loop, as `ganserve.client.Client` does from threads."""

    def __init__(
        self,
        address: str,
        *,
        model: str = "",
        timeout_seconds: float = 30.0,
        security: ChannelSecurity | None = None,
        retries: bool = True,
        round_robin: bool = False,
        hedge_after_seconds: float | None = None,
    ) -> None:
        """Connect once a call needs it, to be made in the event loop that makes the calls.

        All arguments are as those of `Client`.

        Raises:
            OSError: a file of `security` cannot be read.
        """
        self._address = address
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._hedge_after_seconds = hedge_after_seconds
        security = security or ChannelSecurity()
        self._tls = security.tls_ca is not None
        self._metadata = security.metadata()
        options = make_channel_options(retries=retries, round_robin=round_robin)
        self._channel = open_async_channel(address, security, options)
        self._stub: ImageGenerationServiceAsyncStub = ImageGenerationServiceStub(self._channel)

    async def generate(self, **request: Unpack[ImageRequest]) -> NDArray[np.uint8]:
        """Generate images as an array [n, height, width, channels]; see `ImageRequest`."""
        return read_pixels(await self.generate_reply(**request))

    async def generate_reply(
        self,
        format: ImageFormat = "raw",  # noqa: A002 - the word of the public proto
        **request: Unpack[ImageRequest],
    ) -> pb.GenerateImagesResponse:
        """Generate images as the server's reply, with its model, version and timing."""
        return await self._generate(build_message(request, self._model, format), request)

    async def generate_images(self, **request: Unpack[ImageRequest]) -> list[Image.Image]:
        """Generate images as Pillow images, grey or RGB; see `ImageRequest`."""
        return [to_picture(pixels) for pixels in await self.generate(**request)]

    async def generate_files(
        self,
        format: EncodedFormat = "png",  # noqa: A002 - the word of the public proto
        quality: int | None = None,
        **request: Unpack[ImageRequest],
    ) -> list[bytes]:
        """Generate images as the contents of one file each; see `Client.generate_files`."""
        message = build_message(request, self._model, format, quality)
        return list((await self._generate(message, request)).images)

    async def stream(self, **request: Unpack[ImageRequest]) -> AsyncGenerator[NDArray[np.uint8]]:
        """Generate images as arrays, in order, as they are made; see `Client.stream`."""
        message = build_message(request, self._model, "raw")
        timeout = choose_timeout(request.get("timeout_seconds"), self._timeout_seconds)
        progress = StreamProgress(message, timeout)
        with readable_errors(self._address, timeout, tls=self._tls):
            while True:
                call = self._stub.StreamImages(
                    progress.message, timeout=progress.remaining_seconds, metadata=self._metadata
                )
                try:
                    async for response in call:
                        for images in progress.take(response):
                            yield images
                    return
                except grpc.RpcError:
                    if not progress.may_go_on(await call.code()):
                        raise
                finally:
                    call.cancel()  # the caller may have stopped early

    async def models(self, *, timeout_seconds: float | None = None) -> list[pb.Model]:
        """List what serves and what could not be loaded, by name, newest version first."""
        timeout = choose_timeout(timeout_seconds, self._timeout_seconds)
        with readable_errors(self._address, timeout, tls=self._tls):
            reply = await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout, metadata=self._metadata
            )
            return list(reply.models)

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _generate(
        self, message: pb.GenerateImagesRequest, request: ImageRequest
    ) -> pb.GenerateImagesResponse:
        timeout = choose_timeout(request.get("timeout_seconds"), self._timeout_seconds)
        with readable_errors(self._address, timeout, tls=self._tls):
            if self._hedge_after_seconds is not None:
                return await self._generate_hedged(message, timeout, self._hedge_after_seconds)
            return await self._stub.GenerateImages(
                message, timeout=timeout, metadata=self._metadata
            )

    async def _generate_hedged(
        self, message: pb.GenerateImagesRequest, seconds: float, hedge_after: float
    ) -> pb.GenerateImagesResponse:
        """Ask twice, as `Client` does; where both fail the first says why."""

        async def ask(limit: float) -> pb.GenerateImagesResponse:
            return await self._stub.GenerateImages(message, timeout=limit, metadata=self._metadata)

        calls = [asyncio.create_task(ask(seconds))]
        try:
            ended, _ = await asyncio.wait(calls, timeout=hedge_after)
            if not ended:
                calls.append(asyncio.create_task(ask(max(0.0, seconds - hedge_after))))
            for call_ended in asyncio.as_completed(calls):
                with contextlib.suppress(grpc.RpcError):  # the other may still answer
                    return await call_ended
            return await calls[0]
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
