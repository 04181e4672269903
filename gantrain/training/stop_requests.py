"""Hides how signals become a wish to stop that the loop can look at."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM or SIGHUP sets; a second one acts as if nobody listened.

    Not a second SIGHUP: of a terminal that goes both the shell and the kernel tell, within
    milliseconds of each other. SIGHUP stays ignored where it is, as under nohup.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return
    insistent = [signal.SIGINT, signal.SIGTERM]
    heeded = [*insistent]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heeded.append(signal.SIGHUP)
    previous = {number: signal.getsignal(number) for number in heeded}

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set()
            logger.info("stopping after this step, to save first; once more stops at once")
            restore(insistent)

    def restore(numbers: list[signal.Signals]) -> None:
        for number in numbers:
            if signal.getsignal(number) is request_stop:  # else somebody knows better
                signal.signal(number, previous[number])

    for number in heeded:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        restore(heeded)
