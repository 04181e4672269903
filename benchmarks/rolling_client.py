"""One client process of the rolling update: calls all the time, and looks at every byte.

python benchmarks/rolling_client.py KIND ADDRESS EXPECTED ROWS CONCURRENCY RETRIES ROUND_ROBIN

KIND is `threads` or `asyncio`. EXPECTED is a JSON file, version to seed to pixels in hexadecimal.
ROWS gets one line a call: start (seconds, monotonic), seconds, status code, `right` or `wrong`, and
what was said of a failure. A caller whose call failed waits a moment before the next, which would
else go to the same dead server before the library has seen its end, and count as a second loss.
Prints the number of calls so far, now and then; ends with its input.
"""

import asyncio
import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import TextIO, TypedDict

from ganserve.client import AsyncClient, CallError, Client
from ganserve.v1 import image_generation_pb2 as pb

Expected = dict[str, dict[str, str]]
TIMEOUT_SECONDS = 60.0
_PAUSE_SECONDS = 0.1  # after a failure
_PROGRESS_CALLS = 50


class ClientArguments(TypedDict):
    """Of both clients."""

    timeout_seconds: float
    retries: bool
    round_robin: bool


class Ledger:
    """Writes down each call."""

    def __init__(self, expected: Expected, rows: TextIO) -> None:
        self._expected = expected
        self._rows = rows
        self._calls = 0
        self._lock = threading.Lock()

    def enter(self, begin: float, seed: str, result: pb.GenerateImagesResponse | CallError) -> None:
        """Judge a result, and write it down."""
        seconds = time.monotonic() - begin
        if isinstance(result, CallError):
            row = f"{begin:.6f},{seconds:.6f},{result.code.name},none,{result.details!r}"
        else:
            right = self._expected.get(result.model.version, {}).get(seed) == result.pixels.hex()
            row = f"{begin:.6f},{seconds:.6f},OK,{'right' if right else 'wrong'},"
        with self._lock:
            self._rows.write(f"{row}\n")
            self._calls += 1
            if self._calls % _PROGRESS_CALLS == 0:
                print(self._calls, flush=True)


def call_from_threads(client: Client, ledger: Ledger, seeds: list[str], concurrency: int) -> None:
    """Keep `concurrency` calls under way until the input ends."""
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            seed, begin = random.choice(seeds), time.monotonic()
            try:
                ledger.enter(begin, seed, client.generate_reply(seeds=[int(seed)]))
            except CallError as error:
                ledger.enter(begin, seed, error)
                time.sleep(_PAUSE_SECONDS)

    threads = [threading.Thread(target=call) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


async def call_from_event_loop(
    client: AsyncClient, ledger: Ledger, seeds: list[str], concurrency: int
) -> None:
    """Keep `concurrency` calls under way until the input ends."""
    stop = asyncio.Event()

    async def call() -> None:
        while not stop.is_set():
            seed, begin = random.choice(seeds), time.monotonic()
            try:
                ledger.enter(begin, seed, await client.generate_reply(seeds=[int(seed)]))
            except CallError as error:
                ledger.enter(begin, seed, error)
                await asyncio.sleep(_PAUSE_SECONDS)

    async with client, asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(call())
        await asyncio.to_thread(sys.stdin.read)
        stop.set()


def main() -> None:
    """Call until the input ends."""
    kind, address, expected_path, rows_path, concurrency, retries, round_robin = sys.argv[1:]
    expected: Expected = json.loads(Path(expected_path).read_text())
    seeds = list(next(iter(expected.values())))
    arguments: ClientArguments = {
        "timeout_seconds": TIMEOUT_SECONDS,
        "retries": bool(int(retries)),
        "round_robin": bool(int(round_robin)),
    }
    with Path(rows_path).open("w") as rows:
        ledger = Ledger(expected, rows)
        if kind == "threads":
            with Client(address, **arguments) as client:
                call_from_threads(client, ledger, seeds, int(concurrency))
        else:

            async def run() -> None:  # the channel belongs to the loop that it is opened in
                client = AsyncClient(address, **arguments)
                await call_from_event_loop(client, ledger, seeds, int(concurrency))

            asyncio.run(run())


if __name__ == "__main__":
    main()
