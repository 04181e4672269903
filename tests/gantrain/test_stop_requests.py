import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from gantrain.training.stop_requests import stop_requests

HANGUP, INTERRUPT, TERMINATE = signal.SIGHUP, signal.SIGINT, signal.SIGTERM


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # Python calls handlers between its own steps


@pytest.fixture(autouse=True)
def heeded() -> Iterator[list[int]]:
    """Signals that came to who listened before, which is told instead of being killed."""
    told: list[int] = []
    numbers = (HANGUP, INTERRUPT, TERMINATE)
    previous = [signal.signal(number, lambda number, _: told.append(number)) for number in numbers]
    yield told
    for number, handler in zip(numbers, previous, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [HANGUP, INTERRUPT, TERMINATE])
def test_the_first_signal_is_a_wish_to_stop(number: signal.Signals, heeded: list[int]):
    with stop_requests() as stop:
        assert not stop.is_set()
        send(number)
        assert stop.is_set()
    assert heeded == []
    send(number)
    assert heeded == [number], "afterwards it is as before"


@pytest.mark.parametrize("first", [HANGUP, INTERRUPT, TERMINATE])
@pytest.mark.parametrize("second", [INTERRUPT, TERMINATE])
def test_who_insists_is_heard_at_once(
    first: signal.Signals, second: signal.Signals, heeded: list[int]
):
    with stop_requests():
        send(first)
        send(second)
    assert heeded == [second]


@pytest.mark.parametrize("first", [HANGUP, INTERRUPT, TERMINATE])
def test_a_terminal_that_goes_twice_does_not_keep_a_run_from_saving(
    first: signal.Signals, heeded: list[int]
):
    with stop_requests() as stop:
        for number in (first, HANGUP, HANGUP):  # the shell and the kernel each send one
            send(number)
        assert stop.is_set()
    assert heeded == []


def test_under_nohup_a_terminal_that_goes_is_nothing():
    signal.signal(HANGUP, signal.SIG_IGN)
    with stop_requests() as stop:
        send(HANGUP)
        assert not stop.is_set()


def test_beside_the_main_thread_no_signal_is_heeded():
    seen: list[bool] = []

    def listen() -> None:
        with stop_requests() as stop:
            seen.append(signal.getsignal(TERMINATE) is before)
            seen.append(stop.is_set())

    before = signal.getsignal(TERMINATE)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [True, False]
