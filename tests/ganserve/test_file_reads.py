import asyncio
import logging
import threading

import pytest

from ganserve.file_reads import FileReads


@pytest.fixture
def no_threads(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")  # as Python says where there are too many

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.usefixtures("no_threads")
async def test_a_read_without_a_thread_is_an_error_of_files():
    reads = FileReads("the models")
    with pytest.raises(OSError, match="no thread to read in: can't start new thread") as error:
        await reads.run(threading.get_ident)
    assert error.value.filename == "the models"


async def test_one_read_after_the_other_takes_the_same_thread():
    reads = FileReads("the models")
    threads = {await reads.run(threading.get_ident) for _ in range(5)}
    assert len(threads) == 1


async def test_what_a_read_raises_is_raised_and_its_thread_kept():
    reads = FileReads("the models")
    thread = await reads.run(threading.get_ident)
    with pytest.raises(FileNotFoundError):
        await reads.run(open, "/nowhere/at/all")
    assert await reads.run(threading.get_ident) == thread


async def test_reads_that_hang_take_nobody_elses_thread():
    reads, may_end = FileReads("the models"), threading.Event()
    hanging = [asyncio.ensure_future(reads.run(may_end.wait, 20)) for _ in range(3)]
    await asyncio.wait_for(reads.run(threading.get_ident), 20)
    hanging[0].cancel()  # its thread goes on
    with pytest.raises(asyncio.CancelledError):
        await hanging[0]
    await asyncio.wait_for(reads.run(threading.get_ident), 20)
    may_end.set()
    assert await asyncio.gather(*hanging[1:]) == [True, True]


async def test_after_the_last_read_one_thread_at_most_is_left():
    reads, name = FileReads("the models"), "files"
    before = sum(thread.name.startswith(name) for thread in threading.enumerate())
    may_end = threading.Event()
    several = [asyncio.ensure_future(reads.run(may_end.wait, 20)) for _ in range(4)]
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.gather(*several)
    async with asyncio.timeout(20):
        while True:
            left = sum(thread.name.startswith(name) for thread in threading.enumerate())
            if left <= before + 1:
                break
            await asyncio.sleep(0.01)


async def test_that_a_read_is_slow_is_told_once(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "ganserve")
    monkeypatch.setattr("ganserve.file_reads._LONG_SECONDS", 0.0)
    reads = FileReads("the models")
    for _ in range(2):
        may_end = threading.Event()
        reading = asyncio.ensure_future(reads.run(may_end.wait, 20))
        await asyncio.sleep(0.05)
        may_end.set()
        await reading
    assert caplog.text.count("the models: not read after 0 s") == 1
