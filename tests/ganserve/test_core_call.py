import time
from types import SimpleNamespace

import grpc
import pytest

from ganserve.transport.core_call import CallDetails, CoreCall

Code = grpc.StatusCode


class Core:
    """What gRPC's core holds of a call: notes what it is told."""

    def __init__(self):
        self.fails = 0  # batches for which there is no memory
        self.batches = []
        self.cancelled = []

    def start_server_batch(self, operations, _):
        if self.fails:
            self.fails -= 1
            raise MemoryError
        self.batches.append(operations)

    def cancel(self, _, details):
        self.cancelled.append(details)


def arrive(core, seconds=60.0):
    """A call with so many seconds left."""
    details = SimpleNamespace(deadline=time.time() + seconds)
    return CoreCall(CallDetails("/a.B/C", ()), SimpleNamespace(call=core, call_details=details))


def leave(call):
    operation = SimpleNamespace(cancelled=lambda: True)
    call.closed(SimpleNamespace(batch_operations=[operation]))()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda call: call.send(b"images", lambda _: None), id="answer"),
        pytest.param(lambda call: call.refuse(Code.UNAVAILABLE, "stopping"), id="refusal"),
    ],
)
def test_who_has_left_is_sent_nothing_that_grpc_would_keep(end):
    core = Core()
    call = arrive(core)
    leave(call)
    end(call)
    assert core.batches == []


def test_a_reply_to_who_has_left_is_over_at_once():
    call, over = arrive(Core()), []
    leave(call)
    call.send(b"images", over.append)
    assert len(over) == 1


def test_the_core_is_left_to_end_a_call_whose_deadline_has_passed():
    core = Core()
    call = arrive(core, seconds=-1)
    call.drop()
    assert (core.cancelled, call.code()) == ([], Code.DEADLINE_EXCEEDED)


def test_a_call_that_nobody_answers_is_cancelled_once():
    core = Core()
    call = arrive(core)
    call.drop()
    call.drop()
    assert (core.cancelled, call.code()) == (["cancelled"], Code.CANCELLED)


async def test_a_status_is_sent_once_whatever_comes_after():
    core = Core()
    call = arrive(core)
    with pytest.raises(grpc.aio.AbortError):
        await call.abort(Code.NOT_FOUND, "no such model")
    with pytest.raises(grpc.aio.AbortError):
        await call.abort(Code.INTERNAL, "too late")
    call.refuse(Code.UNAVAILABLE, "stopping")
    call.drop()
    assert (len(core.batches), core.cancelled, call.code()) == (1, [], Code.NOT_FOUND)


async def test_where_an_answer_cannot_be_sent_an_error_can():
    core = Core()
    core.fails = 1
    call = arrive(core)
    with pytest.raises(MemoryError):
        call.send(b"images")
    with pytest.raises(grpc.aio.AbortError):
        await call.abort(Code.INTERNAL, "internal error")
    assert (len(core.batches), call.code()) == (1, Code.INTERNAL)


@pytest.mark.parametrize(
    "end", [leave, lambda call: call.refuse(Code.UNAVAILABLE, "stopping")], ids=["left", "refused"]
)
async def test_a_message_that_comes_after_the_end_is_not_worked_on(end):
    async def answer(*_):
        raise AssertionError("nobody waits for it")

    call = arrive(Core())
    end(call)
    call.begin(answer, b"message")
    assert call._task is None


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [pytest.param(2.0**63, None, id="none"), pytest.param(0, 0, id="past")],
)
def test_the_time_that_remains(deadline, expected):
    details = SimpleNamespace(deadline=deadline)
    event = SimpleNamespace(call=Core(), call_details=details)
    assert CoreCall(CallDetails("/a.B/C", ()), event).time_remaining() == expected
