import asyncio

import pytest

from ganserve.transport.deadlines import Deadlines, is_deadline_due


async def wait_for_ever(deadlines):
    deadlines.impose()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return deadlines.take_passed()
    finally:
        deadlines.lift()


@pytest.mark.parametrize(
    ("remaining", "allowed", "is_due"),
    [
        pytest.param(0.004, 0.1, True, id="clocks read at different moments"),
        pytest.param(0.05, 0.1, False, id="halfway"),
        pytest.param(0.01, 1.01, True, id="sent in steps of 10 ms"),
        pytest.param(0.1, 10.1, True, id="sent in steps of 100 ms"),
        pytest.param(0.5, 10.0, False, id="half a second early"),
        pytest.param(-1.0, 1.0, True, id="passed"),
    ],
)
def test_a_caller_gone_just_before_its_deadline_was_late(remaining, allowed, is_due):
    assert is_deadline_due(remaining, allowed) is is_due


async def test_a_task_is_cancelled_when_its_time_is_up():
    deadlines = Deadlines(0.02)
    started = asyncio.get_running_loop().time()
    assert await asyncio.wait_for(wait_for_ever(deadlines), 20) is True
    assert asyncio.get_running_loop().time() - started >= 0.02


async def test_each_task_has_its_own_time():
    deadlines = Deadlines(0.05)
    loop = asyncio.get_running_loop()
    begin, ends = loop.time(), []

    async def wait(delay):
        await asyncio.sleep(delay)
        assert await wait_for_ever(deadlines)
        ends.append((delay, loop.time() - begin))

    await asyncio.wait_for(asyncio.gather(*(wait(delay) for delay in (0.0, 0.02, 0.04))), 20)
    assert [delay for delay, _ in ends] == [0.0, 0.02, 0.04]
    assert all(end >= delay + 0.05 for delay, end in ends)


async def test_whoever_ends_in_time_is_left_alone():
    deadlines = Deadlines(0.02)
    deadlines.impose()
    deadlines.lift()
    await asyncio.sleep(0.06)
    assert not deadlines.take_passed()


async def test_after_a_time_without_tasks_the_next_has_its_deadline_too():
    deadlines = Deadlines(0.02)
    deadlines.impose()
    deadlines.lift()
    await asyncio.sleep(0.06)  # when that one's time is up, there is none
    assert await asyncio.wait_for(wait_for_ever(deadlines), 20) is True


async def test_a_caller_who_cancels_is_not_mistaken_for_the_deadline():
    deadlines = Deadlines(20)
    task = asyncio.ensure_future(wait_for_ever(deadlines))
    await asyncio.sleep(0)
    task.cancel()
    assert await task is False


async def test_a_caller_who_cancels_at_the_deadline_has_left():
    deadlines = Deadlines(20)
    task = asyncio.ensure_future(wait_for_ever(deadlines))
    await asyncio.sleep(0)
    deadlines._ends[task] = 0.0  # its time is up
    deadlines._cancel_late()
    task.cancel()
    assert await task is False


async def test_a_task_without_a_deadline_has_none():
    deadlines = Deadlines(0.01)
    assert not deadlines.take_passed()
    deadlines.lift()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.Event().wait()
