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


async def test_what_a_read_raises_is_raised():
    with pytest.raises(FileNotFoundError):
        await FileReads("the models").run(open, "/nowhere/at/all")


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


async def test_after_a_read_its_thread_ends():
    reads = FileReads("the models")
    thread = await reads.run(threading.current_thread)
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


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
