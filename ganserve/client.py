"""Hides channel, retries and messages behind calls that take seeds and return images."""

import queue
from collections.abc import Iterator
from types import TracebackType
from typing import Self, Unpack

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganserve.async_client import AsyncClient
from ganserve.channel_security import ChannelSecurity, open_channel
from ganserve.client_channel import make_channel_options
from ganserve.client_messages import (
    CallError,
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

__all__ = ["AsyncClient", "CallError", "Client", "EncodedFormat", "ImageRequest"]


class Client:
    """Asks for images; may be shared between threads. `AsyncClient` is the same for event loops.

    A call that finds the server starting, draining, restarting, lost or too busy is made again
    until it succeeds, 5 attempts are used up or its time is over: as late as the server asks for,
    else after pauses that grow. What fails for good raises `CallError`.
    """

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
        """Connect to HOST:PORT once a call needs it.

        Args:
            address: The server, HOST:PORT. Several: a name that stands for all of them, as
                `dns:///NAME:PORT`, or `ipv4:HOST:PORT,HOST:PORT`.
            model: The model's name where a call gives none; empty is the server's default.
            timeout_seconds: How long a call may take where it gives no time of its own.
            security: TLS and token, where the server asks for them.
            retries: False lets every failure through at once.
            round_robin: Send calls to all servers behind the address in turn, but for those that
                say they do not serve. Otherwise one gets them all, and another if it is lost.
            hedge_after_seconds: Ask a second time where no reply has come after so many seconds,
                and take the reply that comes first, also where the other call fails. Set well above
                the usual time of a call, or servers have twice the work. Streams are never asked
                for twice.

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
        self._channel = open_channel(address, security, options)
        self._stub = ImageGenerationServiceStub(self._channel)
        self._closed = False

    def generate(self, **request: Unpack[ImageRequest]) -> NDArray[np.uint8]:
        """Generate images as an array [n, height, width, channels]; see `ImageRequest`."""
        return read_pixels(self.generate_reply(**request))

    def generate_reply(
        self,
        format: ImageFormat = "raw",  # noqa: A002 - the word of the public proto
        **request: Unpack[ImageRequest],
    ) -> pb.GenerateImagesResponse:
        """Generate images as the server's reply, with its model, version and timing."""
        return self._generate(build_message(request, self._model, format), request)

    def generate_images(self, **request: Unpack[ImageRequest]) -> list[Image.Image]:
        """Generate images as Pillow images, grey or RGB; see `ImageRequest`."""
        return [to_picture(pixels) for pixels in self.generate(**request)]

    def generate_files(
        self,
        format: EncodedFormat = "png",  # noqa: A002 - the word of the public proto
        quality: int | None = None,
        **request: Unpack[ImageRequest],
    ) -> list[bytes]:
        """Generate images as the contents of one file each; see `ImageRequest`.

        Args:
            format: `png` is lossless, and so is `webp` unless `quality` is given.
            quality: 1 to 100, for `jpeg` and `webp`.
            request: What to generate.
        """
        message = build_message(request, self._model, format, quality)
        return list(self._generate(message, request).images)

    def stream(self, **request: Unpack[ImageRequest]) -> Iterator[NDArray[np.uint8]]:
        """Generate images as arrays [some, height, width, channels], in order, as they are made.

        Where the server is lost on the way, another goes on with the same version.
        """
        message = build_message(request, self._model, "raw")
        timeout = choose_timeout(request.get("timeout_seconds"), self._timeout_seconds)
        progress = StreamProgress(message, timeout)
        with readable_errors(self._address, timeout, tls=self._tls):
            while True:
                call = self._stub.StreamImages(
                    progress.message, timeout=progress.remaining_seconds, metadata=self._metadata
                )
                try:
                    for response in call:
                        yield from progress.take(response)
                    return
                except grpc.RpcError:
                    if self._closed or not progress.may_go_on(call.code()):
                        raise
                finally:
                    call.cancel()  # the caller may have stopped early

    def models(self, *, timeout_seconds: float | None = None) -> list[pb.Model]:
        """List what serves and what could not be loaded, by name, newest version first."""
        timeout = choose_timeout(timeout_seconds, self._timeout_seconds)
        with readable_errors(self._address, timeout, tls=self._tls):
            reply = self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout, metadata=self._metadata
            )
            return list(reply.models)

    def close(self) -> None:
        """Close the connection; calls under way fail with CANCELLED."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _generate(
        self, message: pb.GenerateImagesRequest, request: ImageRequest
    ) -> pb.GenerateImagesResponse:
        timeout = choose_timeout(request.get("timeout_seconds"), self._timeout_seconds)
        with readable_errors(self._address, timeout, tls=self._tls):
            if self._hedge_after_seconds is not None:
                return self._generate_hedged(message, timeout, self._hedge_after_seconds)
            return self._stub.GenerateImages(message, timeout=timeout, metadata=self._metadata)

    def _generate_hedged(
        self, message: pb.GenerateImagesRequest, timeout: float, hedge_after: float
    ) -> pb.GenerateImagesResponse:
        """Dean and Barroso, The Tail at Scale (2013): hedged requests.

        Where both fail the first says why, as it would without hedging.
        """
        ended: queue.SimpleQueue[grpc.Future[pb.GenerateImagesResponse]] = queue.SimpleQueue()
        calls: list[grpc.Future[pb.GenerateImagesResponse]] = []

        def ask(limit: float) -> None:
            call = self._stub.GenerateImages.future(message, timeout=limit, metadata=self._metadata)
            calls.append(call)
            call.add_done_callback(ended.put)

        try:
            ask(timeout)
            try:
                return ended.get(timeout=hedge_after).result()
            except queue.Empty:
                ask(max(0.0, timeout - hedge_after))
            in_order = (ended.get() for _ in calls)
            answered = (call for call in in_order if call.exception() is None)
            return next(answered, calls[0]).result()
        finally:
            for call in calls:
                call.cancel()
