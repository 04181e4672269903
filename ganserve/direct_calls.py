"""Hides how the calls that matter most for speed are taken and answered, past grpc.aio.

grpc.aio gives each call several tasks and futures, and each of its steps a change of threads; that
is most of what an empty call costs. Here the event loop itself takes calls and their messages off
gRPC's core, and answers each in one task and one step. Only while nothing comes a thread waits for
it: that hands the loop what comes, and sleeps until the loop has nothing left to take. Only methods
with one request and one response are taken so, and of their context only what handlers here ask for
exists. Everything else of the server is grpc.aio's own.

What this stands on is private to gRPC, but its own servers for threads stand on it too.
"""

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # published without types

logger = logging.getLogger(__name__)

_ASKED_FOR = 64  # calls of each method; what comes beyond them waits in the core
_MOST_A_TURN = 256  # events; then others have theirs
_QUIET_TURNS = 2  # of the event loop, until the thread waits for it
_AT_ONCE = 0.0  # a deadline that has passed
_SHUT_DOWN = cygrpc.CompletionType.queue_shutdown
_NO_EVENTS = (cygrpc.CompletionType.queue_timeout, _SHUT_DOWN)
_NO_FLAGS = 0
_JOIN_SECONDS = 5.0
_NO_DEADLINE = 2.0**62  # seconds; the core says the largest number it has
_LONGEST_PAUSE = 1.0  # seconds, between looks for messages that do not come

Metadata = Sequence[tuple[str, str | bytes]]
Work = Callable[[], None]
Find = Callable[[Any], Awaitable[Any]]  # details of a call -> its handler, None for none
MayCall = Callable[[Metadata], bool]


def core_server(aio_server: object) -> Any:  # noqa: ANN401 - published without types
    """The server of gRPC's core that a `cygrpc.AioServer` keeps to itself; None where it has none.

    The same port must serve all methods, so there can be but one.
    """
    needed = "register_completion_queue", "register_method", "request_registered_call"
    for held in gc.get_referents(aio_server):
        if type(held) is cygrpc.Server and all(hasattr(held, name) for name in needed):
            return held
    return None


class _Details(NamedTuple):
    """What is known of a call before its message, as `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Metadata


class DirectCalls:
    """Takes calls of some methods off a server that has not started yet.

    Args:
        server: from `core_server`.
        methods: paths, as in `/package.Service/Method`.
        find: the handler of a call; it may be one of a stream that sends nothing but a status.
        may_call: of whom the message is read; asked in any thread. The handlers of others refuse.
        message_seconds: how long the message may take to come.
    """

    def __init__(
        self,
        server: Any,  # noqa: ANN401
        methods: Sequence[str],
        find: Find,
        *,
        may_call: MayCall,
        message_seconds: float,
    ) -> None:
        self._server = server
        self._find = find
        self._may_call = may_call
        self._message_seconds = message_seconds
        # Calls whose message has not come, and since when on time.monotonic; the oldest first.
        self.unfinished: dict[_DirectCall, float] = {}
        self._next_look: asyncio.TimerHandle | None = None
        self._queue = cygrpc.CompletionQueue()
        self._loop = asyncio.get_running_loop()
        self._stopping = self._ended = False
        self._quiet_turns = 0
        self._arrivals = {method: partial(self._arrived, method) for method in methods}
        self._nothing_left = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._wait, name="direct-calls", daemon=True)
        server.register_completion_queue(self._queue)
        for method in methods:
            server.register_method(method)

    def start(self) -> None:
        """Begin, now that the server has started."""
        for method in self._arrivals:
            for _ in range(_ASKED_FOR):
                self._ask(method)
        self._thread.start()
        self._look_for_messages()

    def take_no_more(self) -> None:
        """Answer what has come, and leave what comes now; the server is about to stop."""
        self._stopping = True
        for call in list(self.unfinished):
            call.refuse(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")

    async def close(self) -> None:
        """End the thread, once the server has stopped."""
        if self._next_look is not None:
            self._next_look.cancel()
        self._queue.shutdown()
        await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)

    def _wait(self) -> None:
        """The thread: wait for work, bring it to the event loop, sleep while that takes more."""
        while not self._ended:
            event = self._queue.poll()
            if event.completion_type == _SHUT_DOWN:
                return
            work = _work_of(event)
            del event  # it may hold the last reference to a call, which keeps the queue busy
            if work is not None:
                try:
                    self._loop.call_soon_threadsafe(self._take, work)
                except RuntimeError:
                    return  # the loop has ended
                self._nothing_left.acquire()

    def _take(self, work: Work | None = None) -> None:
        """A turn of the event loop: work, take more, and come again until nothing comes."""
        self._quiet_turns += 1
        _do(work)
        for _ in range(_MOST_A_TURN):
            event = self._queue.poll(_AT_ONCE)
            if event.completion_type in _NO_EVENTS:
                self._ended = event.completion_type == _SHUT_DOWN
                break
            self._quiet_turns = 0
            _do(_work_of(event))
        if self._ended or self._quiet_turns > _QUIET_TURNS:
            self._nothing_left.release()
        else:
            self._loop.call_soon(self._take)

    def _ask(self, method: str) -> None:
        self._server.request_registered_call(
            self._queue, self._queue, method, self._arrivals[method]
        )

    def _look_for_messages(self) -> None:
        """Refuse calls whose message does not come, now and again for ever."""
        too_old = time.monotonic() - self._message_seconds
        late = [call for call, since in list(self.unfinished.items()) if since < too_old]
        for call in late:
            details = f"the request did not come whole within {self._message_seconds:g} s"
            call.refuse(grpc.StatusCode.DEADLINE_EXCEEDED, details)
        if late:
            logger.warning("refused: calls whose request did not come whole (%d)", len(late))
        pause = min(self._message_seconds / 2, _LONGEST_PAUSE)
        self._next_look = self._loop.call_later(pause, self._look_for_messages)

    # Tags of what the core was asked for: called with its event, wherever that was taken. They
    # return what is left to do in the event loop, if anything is.

    def _arrived(self, method: str, event: Any) -> Work | None:  # noqa: ANN401
        """A call has come, or the server stops."""
        if not event.success or event.call is None:
            return None
        if not self._stopping:
            self._ask(method)
        call = _DirectCall(self, _Details(method, event.invocation_metadata), event)
        # An operation holds the memory of its result, so each call has its own.
        end = cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)
        event.call.start_server_batch((end,), call.closed)
        if not self._may_call(event.invocation_metadata):
            return partial(call.begin, b"")  # strangers fill no memory with their messages
        self.unfinished[call] = time.monotonic()
        message = cygrpc.ReceiveMessageOperation(_NO_FLAGS)
        event.call.start_server_batch((message,), call.received)
        return None

    async def answer(self, call: "_DirectCall", message: bytes) -> None:
        """Find the handler, run it and send what it returns."""
        try:
            handler = await self._find(call.details)
            if handler is None:
                await call.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
            if handler.unary_unary is None:  # a stream that refuses
                await handler.stream_stream(message, call)
                await call.abort(grpc.StatusCode.INTERNAL, "there was no response")
            response = await handler.unary_unary(message, call)
            serialize = handler.response_serializer
            call.send(response if serialize is None else serialize(response))
        except grpc.aio.AbortError:
            pass  # its status is sent
        except asyncio.CancelledError:
            call.drop()
            raise
        except Exception:
            logger.exception("%s: a call could not be answered", call.details.method)
            with contextlib.suppress(grpc.aio.AbortError):
                await call.abort(grpc.StatusCode.INTERNAL, "internal error")


class _DirectCall:
    """One call; to its handler it is what `grpc.aio.ServicerContext` is, as far as they need it."""

    __slots__ = (
        *("_calls", "_code", "_core_call", "_deadline", "_gone", "_task", "_trailing"),
        "details",
    )

    def __init__(self, calls: DirectCalls, details: _Details, event: Any) -> None:  # noqa: ANN401
        self.details = details
        self._calls = calls
        self._core_call = event.call
        self._deadline: float = event.call_details.deadline  # on the clock of time.time
        self._trailing: Metadata = ()
        self._code: grpc.StatusCode | None = None
        self._gone = False
        self._task: asyncio.Task[None] | None = None

    # Tags, as above; the core keeps them, and so the call, until the call has ended.

    def received(self, event: Any) -> Work:  # noqa: ANN401
        """The message is there; none comes from who has left, or sends none, or too long a one."""
        self._calls.unfinished.pop(self, None)
        message = event.batch_operations[0].message()
        return self.drop if message is None else partial(self.begin, message)

    def closed(self, event: Any) -> Work | None:  # noqa: ANN401
        """The call has ended: answered, or left by its caller."""
        return self._leave if event.batch_operations[0].cancelled() else None

    # What follows runs in the event loop.

    def begin(self, message: bytes) -> None:
        """Answer the call, unless its caller has left or it was refused meanwhile."""
        if not self._gone and self._code is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._calls.answer(self, message))

    def _leave(self) -> None:
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def send(self, response: bytes) -> None:
        """Answer the call; that it was received is not waited for."""
        self._send(cygrpc.SendMessageOperation(response, _NO_FLAGS), grpc.StatusCode.OK, "")

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """End a call whose message has not come."""
        self._calls.unfinished.pop(self, None)
        if self._code is None:
            self._send(None, code, details)

    def drop(self) -> None:
        """End a call that nobody answers.

        The core itself ends one whose deadline has passed: told to, it would keep 80 bytes of each.
        """
        if self._code is not None or self._gone:
            return
        if self.time_remaining() == 0.0:
            self._code = grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            self._code = grpc.StatusCode.CANCELLED
            self._core_call.cancel(cygrpc.StatusCode.cancelled, "cancelled")

    def _send(self, message: Any, code: grpc.StatusCode, details: str) -> None:  # noqa: ANN401
        self._code = code
        if self._gone:
            return  # gRPC (1.85) never frees a status that it was given and could not send
        number, _ = code.value
        status = cygrpc.SendStatusFromServerOperation(
            self._trailing, number, details.encode(), _NO_FLAGS
        )
        begin = cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)
        operations = (begin, status) if message is None else (begin, message, status)
        self._core_call.start_server_batch(operations, _sent)

    # What handlers see.

    def invocation_metadata(self) -> Metadata:
        """The metadata that the caller sent."""
        return self.details.invocation_metadata

    def peer(self) -> str:
        """Who calls, as in `ipv4:127.0.0.1:50051`."""
        peer: bytes = self._core_call.peer()
        return peer.decode()

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None where it set none."""
        if self._deadline > _NO_DEADLINE:
            return None
        return max(self._deadline - time.time(), 0.0)

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """What goes with the status."""
        self._trailing = metadata

    def trailing_metadata(self) -> Metadata:
        """What was set."""
        return self._trailing

    def code(self) -> grpc.StatusCode | None:
        """The status that was sent, if one was."""
        return self._code

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """Send a status instead of a response.

        Raises:
            AbortError: always.
        """
        self._trailing = trailing_metadata or self._trailing
        if self._code is None:
            self._send(None, code, details)
        raise grpc.aio.AbortError(details)


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


def _sent(_: object) -> None:
    """What was sent has left, or could not; either way the call is over."""
