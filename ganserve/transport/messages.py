"""What may go wrong with a call's messages: garbage, readers who are slow, or leave."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext

from ganserve.errors import InvalidRequest
from ganserve.transport.call_context import Context
from ganserve.wire_format import Malformed, check_fields

StreamContext = ServicerContext[Any, Any]
Deserialize = Callable[[bytes], object]
Serialize = Callable[[Any], bytes]

_LONG = 64 * 1024  # bytes; shorter messages are parsed in milliseconds, whatever they hold
_MOST_FIELDS = 10_000  # of long ones; tensors and lists of seeds are one field each
_HEADERS_SECONDS = 1.0


def deserialize_request(deserialize: Deserialize, request: bytes) -> object:
    """Make a message of bytes.

    Raises:
        InvalidRequest: they are no message, or a long one with too many fields to be parsed in
            milliseconds.
    """
    try:
        message = getattr(deserialize, "__self__", None)  # the class, of its `FromString`
        if len(request) > _LONG and message is not None:
            check_fields(request, message.DESCRIPTOR, _MOST_FIELDS)
        return deserialize(request)
    except (DecodeError, Malformed) as error:
        raise InvalidRequest(
            "request", "expected a message as in the proto, got other bytes"
        ) from error


def with_messages(
    behaviour: Callable[[Any, Context], Any],
    deserialize: Deserialize,
    requests: AsyncIterable[bytes],
    context: Context,
) -> Any:  # noqa: ANN401 - an awaitable or a generator, as the behaviour returns
    """Call a behaviour with a stream of messages instead of one of bytes."""

    async def messages() -> AsyncGenerator[object]:
        async for request in requests:
            yield deserialize_request(deserialize, request)

    return behaviour(messages(), context)


async def abort(context: Context, status: grpc.Status, seconds: float | None = None) -> None:
    """Send a status, and wait until it has left, for so long or for ever.

    Behind messages that nobody reads it does not leave.

    Its details go beside what the trailing metadata hold already.

    Raises:
        AbortError: always, but for:
        CancelledError: the caller has gone.
    """
    if context.time_remaining() == 0:
        # The caller knows. And gRPC (1.85) never frees what it was given and could not send.
        raise asyncio.CancelledError
    try:
        context.set_trailing_metadata((*context.trailing_metadata(), *status.trailing_metadata))
        async with asyncio.timeout(seconds):
            await context.abort(status.code, status.details)
    except (TimeoutError, grpc.aio.InternalError) as error:
        raise asyncio.CancelledError from error


async def open_stream(context: StreamContext) -> None:
    """Send a stream's headers, which wait for no reader, before its first message.

    grpc.aio (1.85) would send them with that message, and if the call were cut short meanwhile,
    once more with the status; its core refuses those, and the caller would wait for ever.

    Raises:
        grpc.aio.InternalError: the caller has gone.
    """
    opening = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait([opening], timeout=_HEADERS_SECONDS)
        opening.cancel()
        raise
