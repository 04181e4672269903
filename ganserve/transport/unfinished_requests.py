"""Limits on requests that have not come whole: how long they may take, and how many may wait.

gRPC keeps what has come of a request in memory, up to the largest that is accepted, and waits for
the rest as long as its caller likes.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from ganserve.errors import RequestError, ShuttingDown, UnfinishedRequest

logger = logging.getLogger(__name__)

# Of more than so many requests that have been coming for longer than this, which few honest ones
# do, the oldest are refused.
_MANY = 64
_LONG_SECONDS = 1.0
_BETWEEN_LOOKS = 1.0  # seconds, at most


class UnfinishedCall(Protocol):
    """A call whose request has not come whole."""

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """End it; called in the event loop."""


class UnfinishedRequests:
    """Calls of a server whose requests have not come whole; how many is its length.

    Args:
        seconds: how long a request may take to come.
        on_refused: called with the number of those that took too long, whenever there are some.
    """

    def __init__(self, seconds: float, on_refused: Callable[[int], None] = lambda _: None) -> None:
        self._seconds = seconds
        self._on_refused = on_refused
        self._since: dict[UnfinishedCall, float] = {}  # on time.monotonic; the oldest first
        self._next_look: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    def add(self, call: UnfinishedCall) -> None:
        """Await the request of a call; may be called in any thread, as `remove` may."""
        self._since[call] = time.monotonic()

    def remove(self, call: UnfinishedCall) -> None:
        """It has come, or is not awaited any more."""
        self._since.pop(call, None)

    def start(self) -> None:
        """Look for those that take too long from now on; needs a running event loop."""
        pause = min(self._seconds / 2, _BETWEEN_LOOKS)
        self._next_look = asyncio.get_running_loop().call_later(pause, self._look)

    def close(self) -> None:
        """Look no more, and await nothing that has not come: the server stops."""
        if self._next_look is not None:
            self._next_look.cancel()
        for call in list(self._since):
            self._refuse(call, ShuttingDown("the server is shutting down"))

    def _look(self) -> None:
        self.start()  # first, or a look that fails, for want of memory perhaps, would be the last
        now = time.monotonic()
        waiting = list(self._since.items())
        late = [call for call, since in waiting if now - since > self._seconds]
        long = [call for call, since in waiting if _LONG_SECONDS < now - since <= self._seconds]
        too_many = long[: max(len(long) - _MANY, 0)]
        for call in late:
            self._refuse(call, _did_not_come(f"within {self._seconds:g} s"))
        for call in too_many:
            self._refuse(call, _did_not_come(f"while more than {_MANY} others did not, either"))
        if refused := len(late) + len(too_many):
            logger.warning("refused: calls whose request did not come whole (%d)", refused)
            self._on_refused(refused)

    def _refuse(self, call: UnfinishedCall, error: RequestError) -> None:
        self.remove(call)
        call.refuse(error.code, str(error))


def _did_not_come(when: str) -> UnfinishedRequest:
    return UnfinishedRequest(f"the request did not come whole {when}")


class RequestReading(grpc.aio.ServerInterceptor):
    """Reads the requests of calls that grpc.aio handles, which would wait for them for ever.

    The outermost interceptor. Handlers that answer with a stream must write it to their context.
    """

    def __init__(self, unfinished: UnfinishedRequests) -> None:
        self._unfinished = unfinished
        self._reading: dict[Any, Any] = {}  # handlers that read, by those that are given a request

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - a handler, generic for the type checker only
        """Have the request read first, unless requests are a stream."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        if handler not in self._reading:
            self._reading[handler] = self._read_first(handler)
        return self._reading[handler]

    def _read_first(self, handler: Any) -> Any:  # noqa: ANN401
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary

        async def answer(_: object, context: Any) -> object:  # noqa: ANN401
            return await behaviour(await self._read(context), context)

        build = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return build(answer, handler.request_deserializer, handler.response_serializer)

    async def _read(self, context: Any) -> object:  # noqa: ANN401
        call = _Reading()
        self._unfinished.add(call)
        try:
            request = await context.read()
        except asyncio.CancelledError:
            if call.status is None:
                raise
            call.task.uncancel()
            await _abort(context, *call.status)
        finally:
            self._unfinished.remove(call)
        if request is grpc.aio.EOF:
            await _abort(context, grpc.StatusCode.UNIMPLEMENTED, "expected a request, got none")
        return request


async def _abort(context: Any, code: grpc.StatusCode, details: str) -> None:  # noqa: ANN401
    try:
        await context.abort(code, details)
    except grpc.aio.InternalError as error:  # the caller has gone, and gRPC does not know yet
        raise asyncio.CancelledError from error


class _Reading:
    """The current task, which reads the request of a call."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.status: tuple[grpc.StatusCode, str] | None = None

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Have the task end the call."""
        self.status = code, details
        self.task.cancel()
