"""The calls that matter most for speed are taken and answered past grpc.aio.

grpc.aio gives each call several tasks and futures, and each of its steps a change of threads; that
is most of what an empty call costs. Here the event loop itself takes calls and their messages off
gRPC's core, and answers each in one task and one step. Only while nothing comes a thread waits for
it: that hands the loop what comes, and sleeps until the loop has nothing left to take. Only methods
with one request and one response are taken so, and those that do not exist; everything else of the
server is grpc.aio's own.

What this stands on is private to gRPC, but its own servers for threads stand on it too.
"""

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # published without types

from ganserve.transport.call_context import Context
from ganserve.transport.core_call import CallDetails, CoreCall, Metadata
from ganserve.transport.unfinished_requests import UnfinishedRequests
from ganserve.transport.unread_replies import BETWEEN_LOOKS, UnreadReplies

logger = logging.getLogger(__name__)

_ASKED_FOR = 64  # calls of each method; what comes beyond them waits in the core
_MOST_A_TURN = 256  # events; then others have theirs
_QUIET_TURNS = 2  # of the event loop, until the thread waits for it
_AT_ONCE = 0.0  # a deadline that has passed
_SHUT_DOWN = cygrpc.CompletionType.queue_shutdown
_NO_EVENTS = (cygrpc.CompletionType.queue_timeout, _SHUT_DOWN)
_NO_FLAGS = 0
_JOIN_SECONDS = 5.0
_UNREGISTERED = None  # in place of a method: those that are not registered with the core

Work = Callable[[], None]
Find = Callable[[Any], Awaitable[Any]]  # details of a call -> its handler, None for none
MayCall = Callable[[Metadata], bool]


def core_server(aio_server: object) -> Any:  # noqa: ANN401 - published without types
    """The server of gRPC's core that a `cygrpc.AioServer` keeps to itself; None where it has none.

    The same port must serve all methods, so there can be but one.
    """
    to_register = "register_completion_queue", "register_method"
    needed = (*to_register, "request_registered_call", "request_call")
    for held in gc.get_referents(aio_server):
        if type(held) is cygrpc.Server and all(hasattr(held, name) for name in needed):
            return held
    return None


def _without_token(metadata: Metadata) -> Metadata:
    return [pair for pair in metadata if pair[0] != "authorization"]


@dataclass(frozen=True)
class DirectMethods:
    """Methods with one request and one response whose calls are taken past grpc.aio."""

    paths: Sequence[str]  # as in `/package.Service/Method`
    may_call: MayCall  # of whom messages are read, asked in any thread; handlers refuse others
    unread: UnreadReplies  # the same that the interceptors count among the calls under way
    # Those of `paths` that anybody may call; their replies, being short, are not counted.
    open_paths: Collection[str] = ()


class DirectCalls:
    """Takes calls of some methods off a server that has not started yet.

    And those of methods that are not registered with it, whose handlers must refuse.

    Args:
        server: from `core_server`.
        methods: those whose calls are taken.
        find: the handler of a call; it may be one of a stream that sends nothing but a status.
        unfinished: calls whose message has not come.
    """

    def __init__(
        self,
        server: Any,  # noqa: ANN401
        methods: DirectMethods,
        find: Find,
        unfinished: UnfinishedRequests,
    ) -> None:
        self._server = server
        self._find = find
        self._open_paths, self._may_call = methods.open_paths, methods.may_call
        self._unfinished = unfinished
        self._unread = methods.unread
        self._next_look: asyncio.TimerHandle | None = None
        self._queue = cygrpc.CompletionQueue()
        self._loop = asyncio.get_running_loop()
        self._stopping = self._ended = False
        self._quiet_turns = 0
        self._arrivals = {
            method: partial(self._arrived, method) for method in (*methods.paths, _UNREGISTERED)
        }
        self._nothing_left = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._wait, name="direct-calls", daemon=True)
        server.register_completion_queue(self._queue)
        for method in methods.paths:
            server.register_method(method)

    def start(self) -> None:
        """Begin, now that the server has started."""
        for method in self._arrivals:
            for _ in range(_ASKED_FOR):
                self._ask(method)
        self._thread.start()
        self._look_for_unread_replies()

    def take_no_more(self) -> None:
        """Answer what has come, and leave what comes now; the server is about to stop."""
        self._stopping = True

    async def close(self) -> None:
        """End the thread, once the server has stopped."""
        if self._next_look is not None:
            self._next_look.cancel()
        self._queue.shutdown()
        await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)

    def _wait(self) -> None:
        """The thread: wait for work, bring it to the event loop, sleep while that takes more."""
        while not self._ended:
            if self._hand_over():
                self._nothing_left.acquire()

    def _hand_over(self) -> bool:
        """Wait for an event, and bring its work, if it has any, to the event loop.

        What it is of, a call and its message, is let go with this: the thread may wait for long.
        """
        event = self._poll()
        if event is None:
            return False
        if event.completion_type == _SHUT_DOWN:
            self._ended = True
            return False
        work = _work_of(event)
        if work is None:
            return False
        try:
            self._loop.call_soon_threadsafe(self._take, work)
        except RuntimeError:  # the loop has ended
            self._ended = True
            return False
        return True

    def _take(self, work: Work | None = None) -> None:
        """A turn of the event loop: work, take more, and come again until nothing comes."""
        self._quiet_turns += 1
        _do(work)
        for _ in range(_MOST_A_TURN):
            event = self._poll(_AT_ONCE)
            if event is None:
                continue
            if event.completion_type in _NO_EVENTS:
                self._ended = event.completion_type == _SHUT_DOWN
                break
            self._quiet_turns = 0
            _do(_work_of(event))
        if self._ended or self._quiet_turns > _QUIET_TURNS:
            self._nothing_left.release()
        else:
            self._loop.call_soon(self._take)

    def _poll(self, deadline: float | None = None) -> Any:  # noqa: ANN401
        """The next event; None if there was no memory for it: it is lost, others may be smaller.

        If it was a message, its call is refused as one whose message has not come. If it was the
        arrival of a call, the next one must be asked for, and which method's it was is lost too.
        """
        try:
            return self._queue.poll(deadline)
        except MemoryError:
            logger.exception("a call was lost")
            if not self._stopping:
                for asked_for in self._arrivals:
                    self._ask(asked_for)
            return None

    def _ask(self, method: str | None) -> None:
        tag = self._arrivals[method]
        if method is None:
            self._server.request_call(self._queue, self._queue, tag)
        else:
            self._server.request_registered_call(self._queue, self._queue, method, tag)

    def _look_for_unread_replies(self) -> None:
        # First, or a look that fails, for want of memory perhaps, would be the last.
        self._next_look = self._loop.call_later(BETWEEN_LOOKS, self._look_for_unread_replies)
        if unread := self._unread.give_up_late():
            logger.warning("given up: replies that were not read in time (%d)", unread)

    # Tags of what the core was asked for: called with its event, wherever that was taken. They
    # return what is left to do in the event loop, if anything is.

    def _arrived(self, asked_for: str | None, event: Any) -> Work | None:  # noqa: ANN401
        """A call has come, or the server stops."""
        if not event.success or event.call is None:
            return None
        if not self._stopping:
            self._ask(asked_for)
        method = asked_for or event.call_details.method.decode(errors="replace")
        call = CoreCall(CallDetails(method, event.invocation_metadata), event)
        # An operation holds the memory of its result, so each call has its own.
        end = cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)
        event.call.start_server_batch((end,), call.closed)
        if asked_for is _UNREGISTERED:
            return partial(call.begin, self._answer, b"")  # its handler can but refuse
        if method not in self._open_paths and not self._may_call(event.invocation_metadata):
            # The message of a caller without a token is not read, so that it fills no memory. The
            # token is taken off: were it to become known only now, the handler would answer b"".
            call.details = CallDetails(method, _without_token(event.invocation_metadata))
            return partial(call.begin, self._answer, b"")
        self._unfinished.add(call)
        message = cygrpc.ReceiveMessageOperation(_NO_FLAGS)
        event.call.start_server_batch((message,), partial(self._received, call))
        return None

    def _received(self, call: CoreCall, event: Any) -> Work:  # noqa: ANN401
        """The message is there; none comes from who has left, or sends none, or too long a one."""
        self._unfinished.remove(call)
        message = event.batch_operations[0].message()
        return call.drop if message is None else partial(call.begin, self._answer, message)

    async def _answer(self, call: CoreCall, message: bytes) -> None:
        """Find the handler, run it and send what it returns."""
        context: Context = call
        try:
            handler = await self._find(call.details)
            if handler is None:
                await call.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
            if handler.unary_unary is None:  # a stream that refuses
                await handler.stream_stream(message, context)
                await call.abort(grpc.StatusCode.INTERNAL, "there was no response")
            response = await handler.unary_unary(message, context)
            serialize = handler.response_serializer
            reply = response if serialize is None else serialize(response)
            if call.details.method in self._open_paths:
                call.send(reply)
            else:
                self._unread.add(call, len(reply), call.has_deadline)
                call.send(reply, partial(self._unread.remove, call))
        except grpc.aio.AbortError:
            pass  # its status is sent
        except asyncio.CancelledError:
            call.drop()
            raise
        except Exception:
            logger.exception("%s: a call could not be answered", call.details.method)
            self._unread.remove(call)  # if it was added, it was not sent
            with contextlib.suppress(grpc.aio.AbortError):
                await call.abort(grpc.StatusCode.INTERNAL, "internal error")


def _work_of(event: Any) -> Work | None:  # noqa: ANN401
    try:
        work: Work | None = event.tag(event)
    except Exception:
        logger.exception("a call was lost")
        return None
    return work


def _do(work: Work | None) -> None:
    try:
        if work is not None:
            work()
    except Exception:
        logger.exception("a call was lost")
