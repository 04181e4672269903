"""The processes of a load test: started, begun at the same moment, heard out, ended.

Each reads its plan as a line of JSON, connects, says so, waits for the moment to begin and answers
with its tally. Whatever else comes, be it the end of the pipe, makes it stop: no process outlives
the one that started it.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Any

from pydantic import TypeAdapter

from ganserve.load_test.offering import connected, offer_share
from ganserve.load_test.plan import LoadPlan, LoadTally

_PLAN, _TALLY = TypeAdapter(LoadPlan), TypeAdapter(LoadTally)
# What a process may end with, in the order in which they are told apart.
_FAILURES = (ConnectionError, OSError, ValueError)
_LONGEST_LINE_BYTES = 1 << 27
# For the order to begin to reach all processes before the moment comes.
_LEAD_SECONDS = 0.05
# Beyond the time that a test may take, before a process that says nothing is given up.
_PATIENCE_SECONDS = 60.0


async def offer_in_processes(
    plan: LoadPlan, processes: int, began: asyncio.Event, stop: asyncio.Event
) -> list[LoadTally]:
    """Offer the load of `plan` from so many processes, fewer if there are fewer calls to make.

    `began` is set once all are connected; `stop` ends the test early, as in `offer_share`.

    Raises:
        ConnectionError: no server answers within the plan's `timeout_seconds`.
        OSError: a process ends without a tally, or a file of `security` cannot be read.
        ValueError: a file of `security` holds not what it must.
    """
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(_started(share)) for share in plan.shares(processes)
        ]
        await asyncio.gather(*(_hear(worker, "ready") for worker in workers))
        begin = time.perf_counter() + _LEAD_SECONDS
        _tell(workers, repr(begin))
        began.set()
        stopping = asyncio.create_task(_stop(workers, stop))
        longest = plan.warm_up_seconds + plan.seconds + _PATIENCE_SECONDS
        longest += 2 * plan.timeout_seconds  # the last call may be that late, and take as long
        try:
            async with asyncio.timeout(longest):
                tallies = await asyncio.gather(*(_hear(worker, "tally") for worker in workers))
        except TimeoutError:
            message = f"the processes of the load test did not answer within {longest:g} s"
            raise ChildProcessError(message) from None
        finally:
            stopping.cancel()
        return [_TALLY.validate_python(tally) for tally in tallies]


@contextlib.asynccontextmanager
async def _started(plan: LoadPlan) -> AsyncIterator[Process]:
    """A process with its plan, until the end of the block."""
    options = [f"-W{option}" for option in sys.warnoptions]
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, *options, "-m", "ganserve.load_test.workers"),
        stdin=PIPE,
        stdout=PIPE,
        limit=_LONGEST_LINE_BYTES,
        # Ctrl-C reaches this process alone, which tells the others.
        process_group=0,
    )
    try:
        _tell([worker], _PLAN.dump_json(plan).decode())
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()  # it has said what it had to say, or will not
        assert worker.stdin is not None
        worker.stdin.close()
        await worker.wait()


async def _stop(workers: list[Process], stop: asyncio.Event) -> None:
    await stop.wait()
    _tell(workers, "stop")


def _tell(workers: list[Process], line: str) -> None:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(line.encode() + b"\n")


async def _hear(worker: Process, expected: str) -> Any:  # noqa: ANN401 - JSON
    """What a process says under that name.

    Raises:
        ConnectionError, OSError, ValueError: it failed, or ended without a word.
    """
    assert worker.stdout is not None
    line = await worker.stdout.readline()
    if not line.endswith(b"\n"):
        code = await worker.wait()
        raise ChildProcessError(f"a process of the load test ended early, with exit code {code}")
    said = json.loads(line)
    for kind in _FAILURES:
        if kind.__name__ in said:
            raise kind(said[kind.__name__])
    return said[expected]


async def _work(plan: LoadPlan) -> None:
    stop = asyncio.Event()
    async with _input() as lines, connected(plan) as connections:
        _say("ready", True)
        order = await lines.readline()
        if not order:
            return
        listening = asyncio.create_task(_listen(lines, stop))
        tally = await offer_share(plan, connections, float(order), stop)
        listening.cancel()
    _say("tally", _TALLY.dump_python(tally, mode="json"))


@contextlib.asynccontextmanager
async def _input() -> AsyncIterator[asyncio.StreamReader]:
    lines = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(lines)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: protocol, sys.stdin)
    try:
        yield lines
    finally:
        transport.close()


async def _listen(lines: asyncio.StreamReader, stop: asyncio.Event) -> None:
    await lines.readline()
    stop.set()


def _say(name: str, content: object) -> None:
    print(json.dumps({name: content}), flush=True)


def main() -> None:
    """Be one process of a load test."""
    plan = _PLAN.validate_json(sys.stdin.buffer.readline())
    try:
        asyncio.run(_work(plan))
    except BrokenPipeError:  # nobody listens any more
        os._exit(1)  # at its end Python would try to write what is left
    except _FAILURES as error:
        kind = next(kind for kind in _FAILURES if isinstance(error, kind))
        _say(kind.__name__, str(error))


if __name__ == "__main__":
    main()
