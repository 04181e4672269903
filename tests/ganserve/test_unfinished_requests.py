"""How requests are read that grpc.aio does not take directly; more is in `test_accepting`."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from ganserve.transport.unfinished_requests import RequestReading, UnfinishedRequests
from tests.ganserve.conftest import eventually


class LeftCall:
    """A context whose caller has gone before its request came: it ends, and can be sent nothing."""

    async def read(self):
        return grpc.aio.EOF

    async def abort(self, _, __):
        raise grpc.aio.InternalError('Failed "execute_batch"')


async def test_who_leaves_before_the_request_has_come_is_no_error():
    async def find(_):
        return grpc.unary_stream_rpc_method_handler(None)

    unfinished = UnfinishedRequests(20)
    handler = await RequestReading(unfinished).intercept_service(find, SimpleNamespace())
    with pytest.raises(asyncio.CancelledError):  # which grpc.aio keeps to itself
        await handler.stream_stream(None, LeftCall())
    assert len(unfinished) == 0


class UnfinishedCall:
    """A call that ends where it is refused, or for whose refusal there is no memory."""

    def __init__(self, has_memory=True):
        self.refused = False
        self._has_memory = has_memory

    def refuse(self, _, __):
        if not self._has_memory:
            raise MemoryError
        self.refused = True


async def test_a_refusal_that_fails_is_not_the_last():
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    unfinished, later = UnfinishedRequests(0.02), UnfinishedCall()
    unfinished.add(UnfinishedCall(has_memory=False))
    unfinished.add(later)
    unfinished.start()
    await eventually(lambda: later.refused)
    unfinished.close()


async def test_of_too_many_the_oldest_are_refused(monkeypatch):
    monkeypatch.setattr("ganserve.transport.unfinished_requests._MANY", 2)
    monkeypatch.setattr("ganserve.transport.unfinished_requests._LONG_SECONDS", 0.0)
    monkeypatch.setattr("ganserve.transport.unfinished_requests._BETWEEN_LOOKS", 0.02)
    told, calls = [], [UnfinishedCall() for _ in range(5)]
    unfinished = UnfinishedRequests(60, told.append)
    for call in calls:
        unfinished.add(call)
    unfinished.start()
    await eventually(lambda: told)
    assert [call.refused for call in calls] == [True, True, True, False, False]
    assert (told, len(unfinished)) == ([3], 2)
    unfinished.close()
    assert all(call.refused for call in calls)
