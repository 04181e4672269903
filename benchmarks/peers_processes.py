"""Hides the processes of a server that is not ours: all of them, their CPU time, and their end."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>
_TERMINATION_SECONDS = 15.0


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent has ended, so that none gets lost."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def below(root: int, parents: Mapping[int, int]) -> set[int]:
    """All processes that descend from one, itself not among them."""
    found: set[int] = set()
    newest = {root}
    while newest:
        newest = {child for child, parent in parents.items() if parent in newest} - found
        found |= newest
    return found


def cpu_seconds() -> float:
    """CPU time of all processes below this one, and of their children that have ended."""
    table = _read_table()
    ids = below(os.getpid(), {process: row[0] for process, row in table.items()})
    return sum(table[process][1] for process in ids) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A server with all its processes, of which none is left after the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERMINATION_SECONDS)
        end = time.monotonic() + _TERMINATION_SECONDS
        while left := _descendants():  # each of them may have started others meanwhile
            if time.monotonic() > end:
                raise TimeoutError(f"processes {left} of {command[0]} do not end")
            _signal(left, signal.SIGKILL)
            process.poll()
            _reap()
            time.sleep(0.01)


@contextlib.contextmanager
def stopped() -> Iterator[None]:
    """All processes below this one stand still, for some take CPU time without any calls."""
    below_this = _descendants()
    _signal(below_this, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(below_this, signal.SIGCONT)


def _descendants() -> set[int]:
    return below(os.getpid(), {process: row[0] for process, row in _read_table().items()})


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _reap() -> None:
    """Take note of the ends of orphans that were adopted."""
    with contextlib.suppress(ChildProcessError):  # there are none left
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _read_table() -> dict[int, tuple[int, int]]:
    """Of each process its parent, and its clock ticks with those of children it waited for."""
    table = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has just ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            # Counted from the state, the third: parent, user and system time, both of children.
            table[int(folder.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    return table
