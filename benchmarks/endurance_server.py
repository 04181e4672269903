"""Runs `ganserve`, tells on SIGUSR1 what it holds, and can be made to leak.

python benchmarks/endurance_server.py FILE KEEP serve ...

FILE gets a JSON object at each SIGUSR1, after a collection of garbage. KEEP is `nothing`, which
changes nothing; `calls:100`, which keeps so many bytes of each call; `models`, which never lets go
of a version; or `loop:0.3`, which keeps the event loop busy for so many seconds when a version of
the model `large-0` comes into service. They show that the bars can be missed.
"""

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ganserve.repository.repository
from ganserve.api.methods import Method
from ganserve.cli import main

kept: list[object] = []


def allocated_bytes() -> int:
    """What the C library has handed out and not got back; 0 where it is not glibc 2.33 or newer."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0

    class Information(ctypes.Structure):  # struct mallinfo2 in malloc.h
        _fields_ = [(f"field{number}", ctypes.c_size_t) for number in range(10)]

    libc.mallinfo2.restype = Information
    found = libc.mallinfo2()
    return int(found.field7 + found.field4)  # uordblks, and hblkhd of those mapped alone


def tell_when_asked(file: Path) -> None:
    """Write down what the process holds whenever it is asked, each time with a higher number."""
    answers = 0

    def tell(*_: object) -> None:
        nonlocal answers
        answers += 1
        gc.collect()
        held = {
            "answers": answers,
            "blocks": sys.getallocatedblocks(),
            "allocated": allocated_bytes(),
            "tasks": len(asyncio.all_tasks()),
            "python_threads": sorted(thread.name for thread in threading.enumerate()),
        }
        part = file.with_suffix(".part")
        part.write_text(json.dumps(held))
        part.replace(file)

    signal.signal(signal.SIGUSR1, tell)


def keep_of_each_call(size: int) -> None:
    """Leak so many bytes a call."""
    end = Method.end

    def end_and_keep(*arguments: Any) -> None:  # noqa: ANN401 - as they come
        kept.append(os.urandom(size))
        end(*arguments)

    Method.end = end_and_keep  # type: ignore[method-assign, assignment]


def keep_models() -> None:
    """Leak every version that was retired."""
    let_go = ganserve.repository.repository._let_go  # noqa: SLF001 - there is no other place to leak it

    def hold_on(version: Any) -> None:  # noqa: ANN401 - whatever it is
        kept.append(version.served)
        let_go(version)

    vars(ganserve.repository.repository)["_let_go"] = hold_on


def keep_loop(seconds: float) -> None:
    """Stall once a round of loading."""
    put_into_service = ganserve.repository.repository.Repository._put_into_service  # noqa: SLF001 - in the event loop

    def stall_and_put(repository: Any, version: Any, *more: Any) -> None:  # noqa: ANN401 - as they come
        if version.name == "large-0":
            time.sleep(seconds)
        put_into_service(repository, version, *more)

    ganserve.repository.repository.Repository._put_into_service = stall_and_put  # type: ignore[method-assign, assignment]  # noqa: SLF001


if __name__ == "__main__":
    answer_file, keep = Path(sys.argv.pop(1)), sys.argv.pop(1)
    if keep == "models":
        keep_models()
    elif keep.startswith("loop:"):
        keep_loop(float(keep.removeprefix("loop:")))
    elif keep != "nothing":
        keep_of_each_call(int(keep.removeprefix("calls:")))
    tell_when_asked(answer_file)
    main()
