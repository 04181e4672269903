import asyncio

import grpc
import pytest

from ganserve.errors import Overloaded, to_status
from ganserve.transport.messages import abort

STATUS = to_status(Overloaded("the queue is full", retry_seconds=1.0))


class Context:
    """Where a status goes; `remaining` is what is left of the caller's own deadline."""

    def __init__(self, remaining):
        self.sent = []
        self._remaining = remaining
        self._trailing = (("x-request-id", "a"),)

    def time_remaining(self):
        return self._remaining

    def trailing_metadata(self):
        return self._trailing

    def set_trailing_metadata(self, metadata):
        self._trailing = metadata

    async def abort(self, code, _):
        self.sent.append((code, [name for name, _ in self._trailing]))
        raise grpc.aio.AbortError


@pytest.mark.parametrize("remaining", [None, 0.001], ids=["no deadline", "in time"])
async def test_a_status_is_sent(remaining):
    context = Context(remaining)
    with pytest.raises(grpc.aio.AbortError):
        await abort(context, STATUS)
    names = ["x-request-id", "grpc-status-details-bin", "grpc-retry-pushback-ms"]
    assert context.sent == [(grpc.StatusCode.RESOURCE_EXHAUSTED, names)]


async def test_nothing_is_sent_to_a_caller_whose_deadline_has_passed():
    context = Context(remaining=0)
    with pytest.raises(asyncio.CancelledError):
        await abort(context, STATUS)
    assert context.sent == []
