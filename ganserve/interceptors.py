"""Hides what surrounds every call: its status, its deadline, its metrics and its log line."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext

from ganserve.batcher import DEADLINE_SLACK_SECONDS
from ganserve.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    RequestError,
    ShuttingDown,
    to_status,
)
from ganserve.metrics import Metrics

logger = logging.getLogger(__name__)

Context = ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only

_ABORT_SECONDS = 1.0
# Whether requests and responses are streams: the label, and the attribute of a handler.
_KINDS = {
    (False, False): ("unary", "unary_unary"),
    (False, True): ("server_stream", "unary_stream"),
    (True, False): ("client_stream", "stream_unary"),
    (True, True): ("bidi_stream", "stream_stream"),
}


@dataclass(frozen=True)
class Method:
    """A method under its labels in the metrics; `exempt` ones have no deadline and no gate."""

    grpc_type: str
    service: str
    name: str
    exempt: bool

    @property
    def labels(self) -> tuple[str, str, str]:
        """In the order of the metrics' labels."""
        return self.grpc_type, self.service, self.name


class Interceptor(grpc.aio.ServerInterceptor):
    """Surrounds every call of every service, streams included.

    Calls of `exempt_services` (health, reflection) have no deadline imposed, are answered while
    the server drains, and are not waited for.
    """

    def __init__(
        self, metrics: Metrics, *, deadline_seconds: float, exempt_services: Collection[str] = ()
    ) -> None:
        self._metrics = metrics
        self._deadline_seconds = deadline_seconds
        self._exempt_services = exempt_services
        self._handlers: dict[str, Handler] = {}
        # One for all methods that do not exist, or their names would become labels.
        unknown = Method("unknown", "unknown", "unknown", exempt=True)
        self._unknown: Handler = grpc.stream_stream_rpc_method_handler(
            self._surround_stream(unknown, _refuse_unknown_method)
        )
        self._refusing = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def refuse_new_calls(self) -> None:
        """Answer new calls with UNAVAILABLE from now on; those under way go on."""
        self._refusing = True

    async def wait_until_idle(self) -> None:
        """Return when the last call under way was answered."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap a method's handler, once for each method."""
        path = handler_call_details.method
        if path not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return self._unknown
            self._handlers[path] = self._surround(path, handler)
        return self._handlers[path]

    def _surround(self, path: str, handler: Handler) -> Handler:
        _, service, name = path.split("/")
        grpc_type, attribute = _KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, attribute)
        build = getattr(grpc, f"{attribute}_rpc_method_handler")
        method = Method(grpc_type, service, name, service in self._exempt_services)
        surround = self._surround_stream if handler.response_streaming else self._surround_unary
        deserialize = handler.request_deserializer
        if deserialize is not None and not handler.request_streaming:
            # Done by gRPC, it would fail outside of all this, as if the mistake were ours.
            behaviour = partial(_deserialize_first, behaviour, deserialize)
            deserialize = None
        surrounded: Handler = build(
            surround(method, behaviour),
            request_deserializer=deserialize,
            response_serializer=handler.response_serializer,
        )
        return surrounded

    def _surround_unary(
        self, method: Method, behaviour: Callable[[Any, Context], Awaitable[Any]]
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: object, context: Context) -> object:
            async with self._surroundings(method, context):
                return await behaviour(request, context)

        return call

    def _surround_stream(
        self, method: Method, behaviour: Callable[[Any, Context], AsyncGenerator[Any]]
    ) -> Callable[[Any, Context], Awaitable[None]]:
        async def call(request: object, context: Context) -> None:
            async with self._surroundings(method, context):
                responses = behaviour(request, context)
                try:
                    async for response in responses:
                        await _write(context, response)
                finally:
                    await responses.aclose()

        return call

    @contextlib.asynccontextmanager
    async def _surroundings(self, method: Method, context: Context) -> AsyncIterator[None]:
        began = time.perf_counter()
        self._metrics.started.labels(*method.labels).inc()
        self._count_in_flight(method, 1)
        code, status = grpc.StatusCode.OK, None
        try:
            async with self._deadline(method, context):
                if self._refusing and not method.exempt:
                    raise ShuttingDown("the server is shutting down")
                yield
        except RequestError as error:
            code, status = error.code, to_status(error)
            self._metrics.rejected_requests.labels(error.reason).inc()
        except grpc.aio.AbortError:
            code = context.code()
            raise
        except asyncio.CancelledError:
            code = _cancellation_code(context)
            raise
        except Exception:
            error_id = uuid.uuid4().hex
            logger.exception("%s/%s: internal error, id %s", method.service, method.name, error_id)
            internal = InternalError(f"internal error, id {error_id}")
            code, status = internal.code, to_status(internal)
        finally:
            self._count_in_flight(method, -1)
            self._record(method, code, time.perf_counter() - began)
        if status is not None:
            await _abort(context, status)

    @contextlib.asynccontextmanager
    async def _deadline(self, method: Method, context: Context) -> AsyncIterator[None]:
        """Impose a deadline where the caller set none."""
        if method.exempt or context.time_remaining() is not None:
            yield
            return
        try:
            async with asyncio.timeout(self._deadline_seconds) as timeout:
                yield
        except TimeoutError as error:
            if timeout.expired():
                raise DeadlineExceeded(
                    f"the call took longer than {self._deadline_seconds:g} s, the server's limit "
                    "for calls without a deadline"
                ) from error
            raise

    def _count_in_flight(self, method: Method, change: int) -> None:
        if not method.exempt:
            self._in_flight += change
            if self._in_flight:
                self._idle.clear()
            else:
                self._idle.set()

    def _record(self, method: Method, code: grpc.StatusCode, seconds: float) -> None:
        self._metrics.handled.labels(*method.labels, code.name).inc()
        self._metrics.handling_seconds.labels(*method.labels).observe(seconds)
        logger.debug("%s/%s %s %.6f s", method.service, method.name, code.name, seconds)


def _deserialize_first(
    behaviour: Callable[[Any, Context], Any],
    deserialize: Callable[[bytes], Any],
    request: bytes,
    context: Context,
) -> Any:  # noqa: ANN401 - an awaitable or a generator, as the behaviour returns
    try:
        message = deserialize(request)
    except DecodeError as error:
        raise InvalidRequest(
            "request", "expected a message as in the proto, got other bytes"
        ) from error
    return behaviour(message, context)


async def _abort(context: Context, status: grpc.Status) -> None:
    """Send a status, if the caller is there to take it: behind unread messages it never leaves."""
    try:
        async with asyncio.timeout(_ABORT_SECONDS):
            await context.abort_with_status(status)
    except (TimeoutError, grpc.aio.InternalError) as error:
        raise asyncio.CancelledError from error


async def _write(context: Context, response: object) -> None:
    """Send one message of a stream; waits for a slow reader."""
    try:
        await context.write(response)
    except grpc.aio.InternalError as error:
        # What gRPC raises where the caller leaves during the write; before or after it cancels.
        raise asyncio.CancelledError from error


def _cancellation_code(context: Context) -> grpc.StatusCode:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= DEADLINE_SLACK_SECONDS:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


async def _refuse_unknown_method(_: object, context: Context) -> AsyncGenerator[None]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
    yield  # makes this a stream
