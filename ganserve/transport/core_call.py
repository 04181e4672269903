"""One call of gRPC's core, and how it ends: answered, refused, dropped, or left by its caller.

To its handler it is a `Context`.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, NoReturn

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # published without types

_NO_FLAGS = 0
_NO_DEADLINE = 2.0**62  # seconds; the core says the largest number it has

Metadata = Sequence[tuple[str, str | bytes]]
Answer = Callable[["CoreCall", bytes], Coroutine[Any, Any, None]]  # a call and its message


def _left_or_cannot(_: object) -> None:
    """What was sent has left, or cannot any more; either way the call is over."""


class CallDetails(NamedTuple):
    """What is known of a call before its message, as `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Metadata


class CoreCall:
    """One call, from the event of its coming; handlers get it as their context."""

    __slots__ = (
        *("_code", "_core_call", "_deadline", "_gone", "_task", "_trailing"),
        "details",
    )

    def __init__(self, details: CallDetails, event: Any) -> None:  # noqa: ANN401
        self.details = details
        self._core_call = event.call
        # On time.monotonic, for the clock of time.time, in which it comes, may be set meanwhile.
        self._deadline: float = event.call_details.deadline - time.time() + time.monotonic()
        self._trailing: Metadata = ()
        self._code: grpc.StatusCode | None = None
        self._gone = False
        self._task: asyncio.Task[None] | None = None

    def closed(self, event: Any) -> Callable[[], None] | None:  # noqa: ANN401
        """Tag of the call's end: it was answered, or left by its caller.

        The core keeps it, and so the call, until then. It is called in any thread, and returns what
        is left to do in the event loop.
        """
        return self._leave if event.batch_operations[0].cancelled() else None

    # What follows runs in the event loop.

    def begin(self, answer: Answer, message: bytes) -> None:
        """Have the call answered, unless its caller has left or it was refused meanwhile."""
        if not self._gone and self._code is None:
            self._task = asyncio.get_running_loop().create_task(answer(self, message))

    def _leave(self) -> None:
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def send(self, response: bytes, sent: Callable[[Any], None] = _left_or_cannot) -> None:
        """Answer the call; that it was received is not waited for.

        `sent` is called in any thread once all has left, or cannot any more.
        """
        message = cygrpc.SendMessageOperation(response, _NO_FLAGS)
        self._send(message, grpc.StatusCode.OK, "", sent)

    def give_up(self) -> None:
        """Let go of an answer that is not read."""
        code, _ = grpc.StatusCode.DEADLINE_EXCEEDED.value
        self._core_call.cancel(code, "the reply was not read in time")

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """End a call whose message has not come."""
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

    def _send(
        self,
        message: Any,  # noqa: ANN401
        code: grpc.StatusCode,
        details: str,
        sent: Callable[[Any], None] = _left_or_cannot,
    ) -> None:
        if self._gone:
            self._code = code
            sent(None)
            return  # gRPC (1.85) never frees a status that it was given and could not send
        number, _ = code.value
        status = cygrpc.SendStatusFromServerOperation(
            self._trailing, number, details.encode(), _NO_FLAGS
        )
        begin = cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)
        operations = (begin, status) if message is None else (begin, message, status)
        self._core_call.start_server_batch(operations, sent)
        self._code = code  # where that failed another may still be sent

    # What handlers see, as `Context`.

    def invocation_metadata(self) -> Metadata:
        """The metadata that the caller sent."""
        return self.details.invocation_metadata

    def peer(self) -> str:
        """Who calls, as in `ipv4:127.0.0.1:50051`."""
        peer: bytes = self._core_call.peer()
        return peer.decode()

    @property
    def has_deadline(self) -> bool:
        """Whether its caller set one."""
        return self._deadline <= _NO_DEADLINE

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None where it set none."""
        if self._deadline > _NO_DEADLINE:
            return None
        return max(self._deadline - time.monotonic(), 0.0)

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """What goes with the status."""
        self._trailing = metadata

    def trailing_metadata(self) -> Metadata:
        """What was set."""
        return self._trailing

    def code(self) -> grpc.StatusCode:
        """The status that was sent."""
        assert self._code is not None
        return self._code

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Send a status instead of a response.

        Raises:
            AbortError: always.
        """
        if self._code is None:
            self._send(None, code, details)
        raise grpc.aio.AbortError(details)
