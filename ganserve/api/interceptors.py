"""What surrounds every call: its status, its deadline, its metrics and its log line."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextvars import ContextVar
from functools import partial
from operator import methodcaller
from typing import Any, NoReturn, TypeAlias

import grpc

from ganserve.api.methods import GRPC_TYPES, Method
from ganserve.calls import Call, Tracer, request_id_of
from ganserve.errors import (
    DeadlineExceeded,
    InternalError,
    RequestError,
    Unauthenticated,
    to_status,
)
from ganserve.metrics import Metrics
from ganserve.security.admission import client_address
from ganserve.transport.call_context import CallMetadata, Context
from ganserve.transport.calls_under_way import CallsUnderWay
from ganserve.transport.deadlines import Deadlines, is_deadline_due
from ganserve.transport.messages import (
    Deserialize,
    Serialize,
    StreamContext,
    abort,
    deserialize_request,
    open_stream,
    with_messages,
)
from ganserve.transport.unread_replies import UnreadReplies

logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only

_metadata: ContextVar[CallMetadata] = ContextVar("metadata")
_REFUSAL_SECONDS = 1.0  # in which a status leaves that no messages go before, or never


class Interceptor(grpc.aio.ServerInterceptor):
    """Surrounds every call of every service, streams included.

    Args:
        metrics: Where calls are counted.
        deadline_seconds: The deadline of calls whose callers set none.
        max_deadline_seconds: How long any call may take.
        max_calls: How many calls may be under way, those included that were answered and whose
            replies are `unread`.
        unread: Replies that have not left; the same in which calls taken directly count theirs.
        exempt_services: Such as health and reflection. Their calls have no deadline, are answered
            while the server drains, and are not waited for. They do not count among `max_calls`;
            of their streams, such as watches, there may be as many again, an eighth of them from
            one client.
        has_token: Given a call's metadata, whether it may be answered; asked in any thread.
        open_services: Those whose calls need no token.
        tracer: Begins the traces of calls, if there are any.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        deadline_seconds: float,
        max_deadline_seconds: float,
        max_calls: int,
        unread: UnreadReplies,
        has_token: Callable[[CallMetadata], bool],
        exempt_services: Collection[str] = (),
        open_services: Collection[str] = (),
        tracer: Tracer | None = None,
    ) -> None:
        self._metrics = metrics
        self.under_way = CallsUnderWay(max_calls, unread)
        self._exempt_services = exempt_services
        self._open_services = open_services
        self._has_token = has_token
        self._tracer = tracer
        self._deadlines = Deadlines(deadline_seconds)
        self._longest_deadlines = Deadlines(max_deadline_seconds)
        # By path: what answers, and, but for open services, what refuses callers without a token.
        self._handlers: dict[str, tuple[Handler, Handler | None]] = {}
        # One for all methods that do not exist, or their names would become labels. It has no
        # series before the first such call.
        self._unknown: Handler | None = None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap a method's handler, once for each method."""
        path = handler_call_details.method
        # In the task that will answer the call. Asked for later, gRPC would make it anew.
        _metadata.set(handler_call_details.invocation_metadata)
        if path not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return self._unknown or self._surround_unknown()
            self._handlers[path] = self._surround(path, handler)
        answer, refuse = self._handlers[path]
        if refuse is not None and not self._has_token(handler_call_details.invocation_metadata):
            return refuse
        return answer

    def _surround_unknown(self) -> Handler:
        unknown = Method(self._metrics, "unknown", "unknown", "unknown", exempt=True)
        self._unknown = grpc.stream_stream_rpc_method_handler(
            self._surround_stream(unknown, _refuse_unknown_method)
        )
        return self._unknown

    def _surround(self, path: str, handler: Handler) -> tuple[Handler, "Handler | None"]:
        _, service, name = path.split("/")
        kind = handler.request_streaming, handler.response_streaming
        attribute = "_".join("stream" if is_stream else "unary" for is_stream in kind)
        behaviour = getattr(handler, attribute)
        build = getattr(grpc, f"{attribute}_rpc_method_handler")
        make_method = partial(
            Method,
            *(self._metrics, GRPC_TYPES[kind], service, name),
            exempt=service in self._exempt_services,
        )
        method = make_method(tracer=self._tracer)
        surround = self._surround_stream if handler.response_streaming else self._surround_unary
        deserialize = handler.request_deserializer
        # Not that of the message's class: a reply may know how to serialize itself.
        serialize = handler.response_serializer and methodcaller("SerializeToString")
        # Neither is left to gRPC: there a bad request would fail as if the mistake were ours, and a
        # reply that cannot be serialized after its call was counted as answered.
        if handler.request_streaming and deserialize is not None:
            behaviour, deserialize = partial(with_messages, behaviour, deserialize), None
        built: Handler = build(surround(method, behaviour, deserialize, serialize))
        if service in self._open_services:
            return built, None
        # Before a byte of the message is read; and strangers do not decide what is traced.
        refuse = self._surround_stream(make_method(tracer=None), _refuse_without_token)
        return built, grpc.stream_stream_rpc_method_handler(refuse)

    def _surround_unary(
        self,
        method: Method,
        behaviour: Callable[[Any, Context], Awaitable[Any]],
        deserialize: Deserialize | None,
        serialize: Serialize | None,
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def answer(request: Any, context: Context) -> object:  # noqa: ANN401 - as gRPC has it
            call = self._begin(method, context)
            try:
                if not method.exempt:
                    self.under_way.check()
                if deserialize is not None:
                    request = deserialize_request(deserialize, request)
                response = await behaviour(request, context)
                if serialize is not None:
                    response = serialize(response)
            except BaseException as error:
                await self._fail(method, call, context, error)
            self._end(method, call, grpc.StatusCode.OK, context)
            return response

        return answer

    def _surround_stream(
        self,
        method: Method,
        behaviour: Callable[[Any, Context], AsyncGenerator[Any]],
        deserialize: Deserialize | None = None,
        serialize: Serialize | None = None,
    ) -> Callable[[Any, StreamContext], Awaitable[None]]:
        behave = self._count_stream(behaviour) if method.exempt else behaviour

        async def answer(request: Any, context: StreamContext) -> None:  # noqa: ANN401
            call = self._begin(method, context)
            is_open = False
            try:
                if not method.exempt:
                    self.under_way.check()
                if deserialize is not None:
                    request = deserialize_request(deserialize, request)
                async with contextlib.aclosing(behave(request, context)) as responses:
                    async for response in responses:
                        if serialize is not None:
                            response = serialize(response)
                        if not is_open:
                            await open_stream(context)
                            is_open = True
                        await context.write(response)  # waits for a slow reader
            except BaseException as error:
                await self._fail(method, call, context, error, has_messages=is_open)
            self._end(method, call, grpc.StatusCode.OK, context)

        return answer

    def _count_stream(
        self, behaviour: Callable[[Any, Context], AsyncGenerator[Any]]
    ) -> Callable[[Any, Context], AsyncGenerator[Any]]:
        async def count(request: Any, context: Context) -> AsyncGenerator[Any]:  # noqa: ANN401 - as gRPC has it
            with self.under_way.exempt_stream(client_address(context.peer())):
                async with contextlib.aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response

        return count

    # One `begin` and one `end` a call; no context managers, which cost as much as all their work.

    def _begin(self, method: Method, context: Context) -> Call:
        call = method.begin(_metadata.get(), context)  # first, for it may raise
        if not method.exempt:
            self.under_way.begin()
            seconds = context.time_remaining()
            if seconds is None:
                seconds = self._deadlines.impose()
            elif seconds > self._longest_deadlines.seconds:
                seconds = self._longest_deadlines.impose()
            call.deadline = time.monotonic() + seconds
        return call

    def _end(self, method: Method, call: Call, code: grpc.StatusCode, context: Context) -> None:
        if not method.exempt:
            self._deadlines.lift()
            self._longest_deadlines.lift()
            self.under_way.end()
        method.end(call, code, context)

    def _passed_deadline(self) -> DeadlineExceeded | None:
        """The deadline of ours that cancelled the current call, if one did."""
        if self._deadlines.take_passed():
            return _late(self._deadlines.seconds, "calls without a deadline")
        if self._longest_deadlines.take_passed():
            return _late(self._longest_deadlines.seconds, "all calls")
        return None

    async def _fail(
        self,
        method: Method,
        call: Call,
        context: Context,
        error: BaseException,
        *,
        has_messages: bool = False,
    ) -> NoReturn:
        """End a call that raised, and tell its caller why, behind messages if it has sent some."""
        if isinstance(error, grpc.aio.InternalError):
            # What gRPC raises where an answer finds no caller any more.
            error = asyncio.CancelledError("the caller has gone")
        if isinstance(error, asyncio.CancelledError):
            error = self._passed_deadline() or error
        if isinstance(error, grpc.aio.AbortError):
            code = context.code()
        elif isinstance(error, asyncio.CancelledError):
            code = _cancellation_code(call, context)
        elif isinstance(error, RequestError):
            self._metrics.rejected_requests.labels(error.reason).inc()
            code = error.code
        elif isinstance(error, Exception):
            error_id = call.request_id or request_id_of(None)
            logger.error("%s: internal error, id %s", method.path, error_id, exc_info=error)
            error = InternalError(f"internal error, id {error_id}")
            code = error.code
        else:
            code = grpc.StatusCode.INTERNAL
        self._end(method, call, code, context)
        if isinstance(error, RequestError):
            # Behind messages a status takes memory until it leaves, so it counts as a reply does.
            if has_messages and not method.exempt:
                with self.under_way.unread.status():
                    await abort(context, to_status(error))
            await abort(context, to_status(error), _REFUSAL_SECONDS)
        raise error


def _late(seconds: float, which: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the call took longer than {seconds:g} s, the server's limit for {which}"
    )


def _cancellation_code(call: Call, context: Context) -> grpc.StatusCode:
    remaining = context.time_remaining()
    if remaining is None:
        return grpc.StatusCode.CANCELLED
    if is_deadline_due(remaining, remaining + call.seconds):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


async def _refuse_without_token(_: object, __: Context) -> AsyncGenerator[None]:
    raise Unauthenticated("expected the metadata `authorization: Bearer TOKEN` with a known token")
    yield  # makes this a stream


async def _refuse_unknown_method(_: object, context: Context) -> AsyncGenerator[None]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
    yield  # makes this a stream
