"""The client for threads: calls that take seeds and return images."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganserve.client.channel_security import ChannelSecurity, open_channel
from ganserve.client.failures import (
    CONNECTION_CHECK,
    CONNECTION_CHECK_SECONDS,
    CONNECTIVITY_SECONDS,
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

Reply = TypeVar("Reply")


class Client:
    """Asks for images; may be shared between threads. `AsyncClient` is the same for event loops.

    A call that finds the server starting, draining, restarting, lost or too busy is made again
    until it succeeds, 5 attempts are used up or its time is over: as late as the server asks for
    where it is too busy, else after pauses that grow. What fails for good raises `CallError`.
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
            ValueError: it holds no token; `address` is none; or `timeout_seconds` or
                `hedge_after_seconds` is no time.
        """
        security = security or ChannelSecurity()
        self._settings = ClientSettings(
            address, model, timeout_seconds, security, retries, round_robin, hedge_after_seconds
        )
        self._metadata = security.metadata()
        self._channel = open_channel(address, security, self._settings.channel_options())
        self._stub = ImageGenerationServiceStub(self._channel)
        self._closing = threading.Event()

    @shows_request
    def generate(self, **request: Unpack[ImageRequest]) -> NDArray[np.uint8]:
        """Generate images as an array [n, height, width, channels].

        Args:
            request: One of `seeds`, `latents` and `interpolation` (with `frames_per_segment`), and
                as needed `class_labels`, `truncation`, `model`, `version` and `timeout_seconds`:
                see `ImageRequest`. All methods that make images take these.

        Raises:
            CallError: the call failed for good.
            TypeError: the request has a name that says nothing.
            ValueError: no message can say this.
        """
        return read_pixels(self.generate_reply(**request))

    @shows_request
    def generate_reply(
        self,
        format: ImageFormat = "raw",  # noqa: A002 - the word of the public proto
        **request: Unpack[ImageRequest],
    ) -> pb.GenerateImagesResponse:
        """Generate images as the server's reply, with its model, version and timing.

        Args:
            format: `raw` gives one block of pixels, the others one file an image.
            request: What to generate; see `generate`.
        """
        return self._generate(build_message(request, self._settings.model, format), request)

    @shows_request
    def generate_images(self, **request: Unpack[ImageRequest]) -> list[Image.Image]:
        """Generate images as Pillow images, grey or RGB; see `generate`."""
        return [to_picture(pixels) for pixels in self.generate(**request)]

    @shows_request
    def generate_files(
        self,
        format: EncodedFormat = "png",  # noqa: A002 - the word of the public proto
        quality: int | None = None,
        **request: Unpack[ImageRequest],
    ) -> list[bytes]:
        """Generate images as the contents of one file each; see `generate`.

        Args:
            format: `png` is lossless, and so is `webp` unless `quality` is given.
            quality: 1 to 100, for `jpeg` and `webp`.
            request: What to generate; see `generate`.
        """
        check_encoded(format)
        message = build_message(request, self._settings.model, format, quality)
        return list(self._generate(message, request).images)

    @shows_request
    def stream(
        self, *, images_per_call: int = IMAGES_PER_CALL, **request: Unpack[ImageRequest]
    ) -> Iterator[NDArray[np.uint8]]:
        """Generate images as arrays [some, height, width, channels], in order, as they are made.

        Any number of them: a long stream takes several calls, one after the other, all of the same
        version. Where the server is lost on the way, another goes on with that version.

        Args:
            images_per_call: How many images to ask for in one call, at most; lower it where a
                server's `--max-images-per-request` is lower. An `interpolation` is always one call.
            request: What to generate, see `generate`; `timeout_seconds` is for each call.
        """
        timeout = self._settings.timeout_of(request.get("timeout_seconds"))
        stream = StreamProgress(retries=self._settings.retries)
        for message in build_messages(request, self._settings.model, images_per_call):
            with self._readable_errors(timeout):
                yield from self._stream_call(stream.begin(message, timeout))

    def models(self, *, timeout_seconds: float | None = None) -> list[ModelInfo]:
        """List what serves and what could not be loaded, by name, newest version first."""

        def ask(seconds: float) -> pb.ListModelsResponse:
            return self._stub.ListModels(
                pb.ListModelsRequest(), timeout=seconds, metadata=self._metadata
            )

        timeout = self._settings.timeout_of(timeout_seconds)
        return read_models(self._answered(ask, timeout))

    def close(self) -> None:
        """Close the connection; calls under way, and any after it, fail with CANCELLED."""
        self._closing.set()
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
        hedge_after = self._settings.hedge_after_seconds

        def ask(seconds: float) -> pb.GenerateImagesResponse:
            if hedge_after is not None:
                return self._generate_hedged(message, seconds, hedge_after)
            return self._stub.GenerateImages(message, timeout=seconds, metadata=self._metadata)

        timeout = self._settings.timeout_of(request.get("timeout_seconds"))
        reply = self._answered(ask, timeout)
        check_count(message, reply.count)
        return reply

    def _answered(self, ask: Callable[[float], Reply], seconds: float) -> Reply:
        """What a call returns that is given the seconds it has left, also by a busy server."""
        patience = self._settings.patience(seconds)
        with self._readable_errors(seconds):
            while True:
                try:
                    return ask(patience.remaining_seconds)
                except grpc.RpcError as error:
                    self._wait(patience.pause_after(error))

    def _stream_call(self, progress: CallProgress) -> Iterator[NDArray[np.uint8]]:
        """The images of one call of a stream, by however many attempts."""
        while True:
            call = self._stub.StreamImages(
                progress.message, timeout=progress.remaining_seconds, metadata=self._metadata
            )
            try:
                for response in call:
                    if (images := progress.take(response)) is not None:
                        yield images
                progress.end()
                return
            except grpc.RpcError as error:
                self._wait(progress.pause_after(error))
            finally:
                call.cancel()  # the caller may have stopped early

    def _wait(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise closed_error()

    @contextlib.contextmanager
    def _readable_errors(self, seconds: float) -> Iterator[None]:
        try:
            yield
        except ValueError:  # gRPC's word for a channel that is closed
            if self._closing.is_set():
                raise closed_error() from None
            raise
        except grpc.RpcError as error:
            if self._closing.is_set():
                raise closed_error() from None
            reason = self._why_not_connected() if is_late(error) else ""
            raise self._settings.to_call_error(error, seconds, reason) from None

    def _why_not_connected(self) -> str:
        """What gRPC says of a connection that cannot be made; empty if there is one."""
        try:
            # A call takes a turn from the servers: of two in turn, one that hangs would get all
            # calls that count, and the other those that only ask for the connection.
            if self._settings.round_robin and not self._is_disconnected():
                return ""
            check: grpc.UnaryUnaryMultiCallable[bytes, bytes]
            check = self._channel.unary_unary(CONNECTION_CHECK)
            check(b"", timeout=CONNECTION_CHECK_SECONDS)
        except grpc.RpcError as error:
            return no_connection_of(error)
        except ValueError:  # the channel was closed meanwhile
            pass
        return ""

    def _is_disconnected(self) -> bool:
        """Whether no server could be connected to, as far as gRPC says."""
        told: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
        self._channel.subscribe(told.put)
        try:
            state = told.get(timeout=CONNECTIVITY_SECONDS)
            return state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        except queue.Empty:
            return False
        finally:
            self._channel.unsubscribe(told.put)

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
