"""Hides what surrounds every call: its status, its deadline, its metrics and its log line."""

import asyncio
import logging
import math
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection
from functools import partial
from operator import methodcaller
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext

from ganserve.admission import CallMetadata
from ganserve.batcher import DEADLINE_SLACK_SECONDS
from ganserve.deadlines import Deadlines
from ganserve.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    RequestError,
    ShuttingDown,
    TooManyCalls,
    Unauthenticated,
    to_status,
)
from ganserve.metrics import Metrics

logger = logging.getLogger(__name__)

Context = ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only
Deserialize = Callable[[bytes], object]

_ABORT_SECONDS = 1.0
_TOO_MANY_CALLS_RETRY_SECONDS = 0.5  # nobody can know: calls take from a millisecond to minutes
# Whether requests and responses are streams: the label, and the attribute of a handler.
_KINDS = {
    (False, False): ("unary", "unary_unary"),
    (False, True): ("server_stream", "unary_stream"),
    (True, False): ("client_stream", "stream_unary"),
    (True, True): ("bidi_stream", "stream_stream"),
}


class Method:
    """A method and its metrics.

    `exempt` ones have no deadline and no gate, `open` ones need no token.
    """

    def __init__(
        self,
        metrics: Metrics,
        grpc_type: str,
        service: str,
        name: str,
        *,
        exempt: bool,
        open: bool,  # noqa: A002 - what it is
    ) -> None:
        self.service = service
        self.name = name
        self.exempt = exempt
        self.open = open
        labels = grpc_type, service, name
        # Looked up once: for a small image the look-ups would cost as much as all else here.
        self._count_started = metrics.started.labels(*labels).inc
        self._observe_seconds = metrics.handling_seconds.labels(*labels).observe
        self._handled = partial(metrics.handled.labels, *labels)
        self._count_handled: dict[grpc.StatusCode, Callable[[], None]] = {}

    def begin(self) -> float:
        """Count a call; what comes back is for `end`."""
        self._count_started()
        return time.perf_counter()

    def end(self, began: float, code: grpc.StatusCode) -> None:
        """Count the call's end."""
        seconds = time.perf_counter() - began
        if code not in self._count_handled:
            self._count_handled[code] = self._handled(code.name).inc
        self._count_handled[code]()
        self._observe_seconds(seconds)
        logger.debug("%s/%s %s %.6f s", self.service, self.name, code.name, seconds)


class Interceptor(grpc.aio.ServerInterceptor):
    """Surrounds every call of every service, streams included.

    Calls of `exempt_services` (health, reflection) have no deadline imposed, are answered while
    the server drains, and are not waited for. They do not count among the `max_calls` under way;
    of their streams, such as watches, there may be as many again. Where there is `has_token`, which
    is given a call's metadata, nothing else is answered, `open_services` excepted.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        deadline_seconds: float,
        max_deadline_seconds: float = math.inf,
        max_calls: int = sys.maxsize,
        exempt_services: Collection[str] = (),
        open_services: Collection[str] = (),
        has_token: Callable[[CallMetadata], bool] | None = None,
    ) -> None:
        self._metrics = metrics
        self._exempt_services = exempt_services
        self._open_services = open_services
        self._has_token = has_token
        self._max_calls = max_calls
        self._deadlines = Deadlines(deadline_seconds)
        self._longest_deadlines = Deadlines(max_deadline_seconds)
        self._handlers: dict[str, tuple[Method, Handler]] = {}
        # One for all methods that do not exist, or their names would become labels. It has no
        # series before the first such call.
        self._unknown: Handler | None = None
        self._refusing = False
        self._in_flight = 0
        self._exempt_streams = 0
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
                return self._unknown or self._surround_unknown()
            self._handlers[path] = self._surround(path, handler)
        method, surrounded = self._handlers[path]
        if (
            self._has_token is not None
            and not method.open
            and not self._has_token(handler_call_details.invocation_metadata)
        ):
            return self._turn_away(method)
        return surrounded

    def _turn_away(self, method: Method) -> Handler:
        """Answer a call without a token, before a byte of its message is read."""
        handler: Handler = grpc.stream_stream_rpc_method_handler(
            self._surround_stream(method, _refuse_without_token, None)
        )
        return handler

    def _surround_unknown(self) -> Handler:
        unknown = Method(self._metrics, "unknown", "unknown", "unknown", exempt=True, open=True)
        self._unknown = grpc.stream_stream_rpc_method_handler(
            self._surround_stream(unknown, _refuse_unknown_method, None)
        )
        return self._unknown

    def _surround(self, path: str, handler: Handler) -> tuple[Method, Handler]:
        _, service, name = path.split("/")
        grpc_type, attribute = _KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, attribute)
        build = getattr(grpc, f"{attribute}_rpc_method_handler")
        method = Method(
            *(self._metrics, grpc_type, service, name),
            exempt=service in self._exempt_services,
            open=service in self._open_services,
        )
        surround = self._surround_stream if handler.response_streaming else self._surround_unary
        deserialize = handler.request_deserializer
        # Done by gRPC, it would fail as if the mistake were ours.
        if not handler.request_streaming:
            surrounded = surround(method, behaviour, deserialize)
        elif deserialize is not None:
            surrounded = surround(method, partial(_with_messages, behaviour, deserialize), None)
        else:
            surrounded = surround(method, behaviour, None)
        built: Handler = build(
            surrounded,
            # Not that of the message's class: a reply may know how to serialize itself.
            response_serializer=handler.response_serializer and methodcaller("SerializeToString"),
        )
        return method, built

    def _surround_unary(
        self,
        method: Method,
        behaviour: Callable[[Any, Context], Awaitable[Any]],
        deserialize: Deserialize | None,
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> object:  # noqa: ANN401 - as gRPC has it
            began = self._begin(method, context)
            try:
                self._check_open(method)
                if deserialize is not None:
                    request = _deserialize(deserialize, request)
                response = await behaviour(request, context)
            except BaseException as error:
                await self._fail(method, began, context, error)
            self._end(method, began, grpc.StatusCode.OK)
            return response

        return call

    def _surround_stream(
        self,
        method: Method,
        behaviour: Callable[[Any, Context], AsyncGenerator[Any]],
        deserialize: Deserialize | None,
    ) -> Callable[[Any, Context], Awaitable[None]]:
        async def call(request: Any, context: Context) -> None:  # noqa: ANN401 - as gRPC has it
            began = self._begin(method, context)
            self._exempt_streams += method.exempt
            try:
                self._check_open(method)
                self._check_exempt_stream(method)
                if deserialize is not None:
                    request = _deserialize(deserialize, request)
                responses = behaviour(request, context)
                try:
                    async for response in responses:
                        await _write(context, response)
                finally:
                    await responses.aclose()
            except BaseException as error:
                await self._fail(method, began, context, error)
            finally:
                self._exempt_streams -= method.exempt
            self._end(method, began, grpc.StatusCode.OK)

        return call

    # One `begin` and one `end` a call; no context managers, which cost as much as all their work.

    def _begin(self, method: Method, context: Context) -> float:
        if not method.exempt:
            self._in_flight += 1
            self._idle.clear()
            remaining = context.time_remaining()
            if remaining is None:
                self._deadlines.impose()
            elif remaining > self._longest_deadlines.seconds:
                self._longest_deadlines.impose()
        return method.begin()

    def _check_open(self, method: Method) -> None:
        if self._refusing and not method.exempt:
            raise ShuttingDown("the server is shutting down")
        if self._in_flight > self._max_calls and not method.exempt:
            raise self._too_many_calls()

    def _check_exempt_stream(self, method: Method) -> None:
        if self._exempt_streams > self._max_calls and method.exempt:
            raise self._too_many_calls()

    def _too_many_calls(self) -> TooManyCalls:
        return TooManyCalls(
            f"the limit is {self._max_calls} calls under way at the same time",
            retry_seconds=_TOO_MANY_CALLS_RETRY_SECONDS,
        )

    def _end(self, method: Method, began: float, code: grpc.StatusCode) -> None:
        if not method.exempt:
            self._deadlines.lift()
            self._longest_deadlines.lift()
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
        method.end(began, code)

    def _passed_deadline(self) -> DeadlineExceeded | None:
        """The deadline of ours that cancelled the current call, if one did."""
        if self._deadlines.has_passed():
            return _late(self._deadlines.seconds, "calls without a deadline")
        if self._longest_deadlines.has_passed():
            return _late(self._longest_deadlines.seconds, "all calls")
        return None

    async def _fail(
        self, method: Method, began: float, context: Context, error: BaseException
    ) -> NoReturn:
        """End a call that raised, and tell its caller why."""
        if isinstance(error, asyncio.CancelledError):
            error = self._passed_deadline() or error
        if isinstance(error, grpc.aio.AbortError):
            code = context.code()
        elif isinstance(error, asyncio.CancelledError):
            code = _cancellation_code(context)
        elif isinstance(error, RequestError):
            self._metrics.rejected_requests.labels(error.reason).inc()
            code = error.code
        elif isinstance(error, Exception):
            error_id = uuid.uuid4().hex
            logger.error(
                "%s/%s: internal error, id %s",
                method.service,
                method.name,
                error_id,
                exc_info=error,
            )
            error = InternalError(f"internal error, id {error_id}")
            code = error.code
        else:
            code = grpc.StatusCode.INTERNAL
        self._end(method, began, code)
        if isinstance(error, RequestError):
            await _abort(context, to_status(error))
        raise error


def _late(seconds: float, which: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the call took longer than {seconds:g} s, the server's limit for {which}"
    )


def _deserialize(deserialize: Deserialize, request: bytes) -> object:
    try:
        return deserialize(request)
    except DecodeError as error:
        raise InvalidRequest(
            "request", "expected a message as in the proto, got other bytes"
        ) from error


def _with_messages(
    behaviour: Callable[[Any, Context], Any],
    deserialize: Deserialize,
    requests: AsyncIterable[bytes],
    context: Context,
) -> Any:  # noqa: ANN401 - an awaitable or a generator, as the behaviour returns
    async def messages() -> AsyncGenerator[object]:
        async for request in requests:
            yield _deserialize(deserialize, request)

    return behaviour(messages(), context)


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


async def _refuse_without_token(_: object, __: Context) -> AsyncGenerator[None]:
    raise Unauthenticated("expected the metadata `authorization: Bearer TOKEN` with a known token")
    yield  # makes this a stream


async def _refuse_unknown_method(_: object, context: Context) -> AsyncGenerator[None]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
    yield  # makes this a stream
