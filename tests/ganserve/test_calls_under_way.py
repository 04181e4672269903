import asyncio

import pytest

from ganserve.errors import ShuttingDown, TooManyCalls
from ganserve.transport.calls_under_way import CallsUnderWay
from ganserve.transport.unread_replies import UnreadReplies


def at_most(max_calls):
    return CallsUnderWay(max_calls, UnreadReplies(20, 20))


async def test_calls_beyond_the_limit_are_refused_until_one_has_ended():
    calls = at_most(2)
    for _ in range(3):
        calls.begin()
    with pytest.raises(TooManyCalls, match="the limit is 2 calls under way"):
        calls.check()
    calls.end()
    calls.check()


async def test_replies_that_have_not_left_count_too():
    unread = UnreadReplies(20, 20)
    calls = CallsUnderWay(2, unread)
    calls.begin()
    calls.begin()
    with unread.status(), pytest.raises(TooManyCalls):
        calls.check()
    calls.check()


async def test_new_calls_are_refused_and_the_last_one_is_waited_for():
    calls = at_most(2)
    await calls.wait_until_idle()
    calls.begin()
    calls.begin()
    calls.check()
    calls.refuse_new()
    with pytest.raises(ShuttingDown):
        calls.check()
    calls.end()
    idle = asyncio.ensure_future(calls.wait_until_idle())
    await asyncio.sleep(0)
    assert not idle.done()
    calls.end()
    await idle


@pytest.mark.parametrize(
    ("most", "of_one"), [pytest.param(1000, 125, id="an eighth"), pytest.param(100, 64, id="64")]
)
async def test_one_address_has_its_share_of_exempt_streams(most, of_one):
    calls, streams = at_most(most), []

    def enter(address):
        stream = calls.exempt_stream(address)
        stream.__enter__()
        streams.append(stream)

    for _ in range(of_one):
        enter("one")
    for _ in range(2):
        with pytest.raises(TooManyCalls):
            enter("one")
        streams.pop().__exit__(None, None, None)  # which makes room for one, not for more
        enter("one")
    for number in range(most - of_one):
        enter(f"other {number}")
    with pytest.raises(TooManyCalls):
        enter("another")
    calls.check()  # of calls that are not exempt there may be as many again
    for stream in streams:
        stream.__exit__(None, None, None)
    assert not calls.exempt_streams, "nothing is kept of who has left"
