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
    """An event that SIGINT, SIGTERM or SIGHUP sets; a second signal acts as if nobody listened.

    SIGHUP, with which a terminal goes, stays ignored where it is, as under nohup.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        previous[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        logger.info("stopping after this step, to save first; once more stops at once")
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            if signal.getsignal(number) is request_stop:  # else somebody knows better
                signal.signal(number, handler)

    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        restore()
