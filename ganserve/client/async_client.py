"""The client for event loops: coroutines that take seeds and return images."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganserve.client.channel_security import ChannelSecurity, open_async_channel
from ganserve.client.failures import (
    CONNECTION_CHECK,
    CONNECTION_CHECK_SECONDS,
    closed_error,
    is_late,
    no_connection_of,
)
from ganserve.client.messages import (
    EncodedFormat,
    ImageFormat,
    ImageRequest,
    build_message,
    check_count,
    check_encoded,
    read_pixels,
    shows_request,
)
from ganserve.client.models import ModelInfo, read_models
from ganserve.client.settings import ClientSettings
from ganserve.client.streams import IMAGES_PER_CALL, CallProgress, StreamProgress, build_messages
from ganserve.encoding import to_picture
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

if TYPE_CHECKING:
    from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceAsyncStub

Reply = TypeVar("Reply")


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
            ValueError: it holds no token; `address` is none; or `timeout_seconds` or
                `hedge_after_seconds` is no time.
        """
        security = security or ChannelSecurity()
        self._settings = ClientSettings(
            address, model, timeout_seconds, security, retries, round_robin, hedge_after_seconds
        )
        self._metadata = security.metadata()
        self._channel = open_async_channel(address, security, self._settings.channel_options())
        self._stub: ImageGenerationServiceAsyncStub = ImageGenerationServiceStub(self._channel)
        self._closing = asyncio.Event()

    @shows_request
    async def generate(self, **request: Unpack[ImageRequest]) -> NDArray[np.uint8]:
        """Generate images as an array [n, height, width, channels]; see `Client.generate`."""
        return read_pixels(await self.generate_reply(**request))

    @shows_request
    async def generate_reply(
        self,
        format: ImageFormat = "raw",  # noqa: A002 - the word of the public proto
        **request: Unpack[ImageRequest],
    ) -> pb.GenerateImagesResponse:
        """Generate images as the server's reply; see `Client.generate_reply`."""
        return await self._generate(build_message(request, self._settings.model, format), request)

    @shows_request
    async def generate_images(self, **request: Unpack[ImageRequest]) -> list[Image.Image]:
        """Generate images as Pillow images, grey or RGB; see `Client.generate`."""
        return [to_picture(pixels) for pixels in await self.generate(**request)]

    @shows_request
    async def generate_files(
        self,
        format: EncodedFormat = "png",  # noqa: A002 - the word of the public proto
        quality: int | None = None,
        **request: Unpack[ImageRequest],
    ) -> list[bytes]:
        """Generate images as the contents of one file each; see `Client.generate_files`."""
        check_encoded(format)
        message = build_message(request, self._settings.model, format, quality)
        return list((await self._generate(message, request)).images)

    @shows_request
    async def stream(
        self, *, images_per_call: int = IMAGES_PER_CALL, **request: Unpack[ImageRequest]
    ) -> AsyncGenerator[NDArray[np.uint8]]:
        """Generate images as arrays, in order, as they are made; see `Client.stream`."""
        timeout = self._settings.timeout_of(request.get("timeout_seconds"))
        stream = StreamProgress(retries=self._settings.retries)
        for message in build_messages(request, self._settings.model, images_per_call):
            async with (
                self._readable_errors(timeout),
                contextlib.aclosing(self._stream_call(stream.begin(message, timeout))) as parts,
            ):
                async for images in parts:
                    yield images

    async def models(self, *, timeout_seconds: float | None = None) -> list[ModelInfo]:
        """List what serves and what could not be loaded, by name, newest version first."""

        async def ask(seconds: float) -> pb.ListModelsResponse:
            return await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=seconds, metadata=self._metadata
            )

        timeout = self._settings.timeout_of(timeout_seconds)
        return read_models(await self._answered(ask, timeout))

    async def close(self) -> None:
        """Close the connection; calls under way, and any after it, fail with CANCELLED."""
        self._closing.set()
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
        hedge_after = self._settings.hedge_after_seconds

        async def ask(seconds: float) -> pb.GenerateImagesResponse:
            if hedge_after is not None:
                return await self._generate_hedged(message, seconds, hedge_after)
            return await self._stub.GenerateImages(
                message, timeout=seconds, metadata=self._metadata
            )

        timeout = self._settings.timeout_of(request.get("timeout_seconds"))
        reply = await self._answered(ask, timeout)
        check_count(message, reply.count)
        return reply

    async def _answered(self, ask: Callable[[float], Awaitable[Reply]], seconds: float) -> Reply:
        """What a call returns that is given the seconds it has left, also by a busy server."""
        patience = self._settings.patience(seconds)
        async with self._readable_errors(seconds):
            while True:
                try:
                    return await ask(patience.remaining_seconds)
                except grpc.RpcError as error:
                    await self._wait(patience.pause_after(error))

    async def _stream_call(self, progress: CallProgress) -> AsyncGenerator[NDArray[np.uint8]]:
        """The images of one call of a stream, by however many attempts."""
        while True:
            call = self._stub.StreamImages(
                progress.message, timeout=progress.remaining_seconds, metadata=self._metadata
            )
            try:
                async for response in call:
                    if (images := progress.take(response)) is not None:
                        yield images
                progress.end()
                return
            except grpc.aio.AioRpcError as error:
                await self._wait(progress.pause_after(error))
            finally:
                call.cancel()  # the caller may have stopped early

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return
        raise closed_error()

    @contextlib.asynccontextmanager
    async def _readable_errors(self, seconds: float) -> AsyncIterator[None]:
        task, cancelled_before = asyncio.current_task(), _cancellations()
        try:
            yield
        # So gRPC says that the channel was closed. Somebody may have cancelled this task, too; of
        # what was asked for before, as by a TaskGroup that has failed, Python keeps count.
        except (asyncio.CancelledError, grpc.aio.UsageError):
            before = cancelled_before if asyncio.current_task() is task else 0
            if not self._closing.is_set() or _cancellations() > before:
                raise
            raise closed_error() from None
        except grpc.RpcError as error:
            reason = await self._why_not_connected() if is_late(error) else ""
            raise self._settings.to_call_error(error, seconds, reason) from None

    async def _why_not_connected(self) -> str:
        """What gRPC says of a connection that cannot be made; empty if there is one."""
        if self._channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return ""
        try:
            check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
            check = self._channel.unary_unary(CONNECTION_CHECK)
            await check(b"", timeout=CONNECTION_CHECK_SECONDS)
        except grpc.aio.AioRpcError as error:
            return no_connection_of(error)
        return ""

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


def _cancellations() -> int:
    """How often the current task has been asked to end, and not taken that back."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
