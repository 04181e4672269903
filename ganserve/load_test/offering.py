"""One process offers its share of the load and notes what becomes of every call.

Closed loop: a fixed number of calls is under way at any time, so a slow server is asked less.
Open loop: calls start at random times of a given mean rate, whatever the server does, and their
latency counts from the intended start; only so do queues show, and none of the calls that a slow
server or a slow tester held up is left out ("coordinated omission", Tene).
"""

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncIterator

import grpc

from ganserve.client.channel import CONNECTION_OPTIONS
from ganserve.client.channel_security import open_async_channel
from ganserve.load_test.latency_histogram import LatencyHistogram
from ganserve.load_test.plan import LoadPlan, LoadTally
from ganserve.load_test.references import VERIFIED_REQUESTS, Generate, build_message, verify

_METHOD = "/ganserve.v1.ImageGenerationService/GenerateImages"
_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", -1),
    # Channels to one address share a connection unless each has a pool of its own.
    ("grpc.use_local_subchannel_pool", 1),
    *CONNECTION_OPTIONS,
]
# Where there is no server, calls fail at once; a closed loop would do nothing but count them.
_PAUSE_WITHOUT_SERVER_SECONDS = 0.01


@contextlib.asynccontextmanager
async def connected(plan: LoadPlan) -> AsyncIterator[list[Generate]]:
    """Open the connections of a process; each yields a function that makes a call on it.

    Requests and replies stay serialized: parsing would cost the time of the CPU that is measured.

    Raises:
        ConnectionError: no server answers within the plan's `timeout_seconds`.
        OSError: a file of `security` cannot be read.
        ValueError: a file of `security` holds not what it must.
    """
    metadata = plan.security.metadata()
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                open_async_channel(plan.address, plan.security, _CHANNEL_OPTIONS)
            )
            for _ in range(plan.connections)
        ]
        try:
            async with asyncio.timeout(plan.timeout_seconds):
                for channel in channels:
                    await channel.channel_ready()
        except TimeoutError:
            message = f"no server answers at {plan.address} within {plan.timeout_seconds:g} s"
            raise ConnectionError(message) from None
        yield [
            functools.partial(
                channel.unary_unary(_METHOD), timeout=plan.timeout_seconds, metadata=metadata
            )
            for channel in channels
        ]


async def offer_share(
    plan: LoadPlan, connections: list[Generate], begin: float, stop: asyncio.Event
) -> LoadTally:
    """Offer the load of `plan` from `begin` on (of `time.perf_counter`, whose clock all share).

    Calls under way at the end are waited for, unless `stop` is set: then they are given up, and
    the tally is that of the time so far.
    """
    offering = _Offering(plan, connections, begin)
    loop = offering.closed_loop if plan.rate is None else offering.open_loop
    working = asyncio.create_task(loop())
    measuring = asyncio.create_task(offering.measure_cpu())
    stopping = asyncio.create_task(stop.wait())
    tally = offering.tally
    window_end = offering.end
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            window_end = min(window_end, time.perf_counter())
            tally.interrupted = True
            working.cancel()
            await asyncio.wait({working})
        else:
            await working
            await measuring
    finally:
        for task in (working, measuring, stopping):
            task.cancel()
        await asyncio.gather(working, measuring, stopping, return_exceptions=True)
    tally.window_seconds = max(0.0, window_end - offering.window_begin)
    return tally


class _Offering:
    """The calls of one process."""

    def __init__(self, plan: LoadPlan, connections: list[Generate], begin: float) -> None:
        self.tally = LoadTally()
        self.begin = begin
        self.window_begin = begin + plan.warm_up_seconds
        self.end = self.window_begin + plan.seconds
        self._plan = plan
        self._connections = connections
        self._next_number = 0
        self._under_way = 0
        self._verified_messages = [
            build_message(plan, seed, plan.images_per_request)
            for seed in range(VERIFIED_REQUESTS if plan.references else 0)
        ]

    async def closed_loop(self) -> None:
        """Keep a number of calls under way."""

        async def caller() -> None:
            while (now := time.perf_counter()) < self.end:
                if await self._call(now) == "UNAVAILABLE":
                    await asyncio.sleep(_PAUSE_WITHOUT_SERVER_SECONDS)

        await asyncio.sleep(self.begin - time.perf_counter())
        async with asyncio.TaskGroup() as callers:
            for _ in range(self._plan.concurrency):
                callers.create_task(caller())

    async def open_loop(self) -> None:
        """Start calls at random times, but never more than may be under way."""
        assert self._plan.rate is not None
        gaps = random.Random(self._plan.index)  # noqa: S311 - arrivals, not secrets
        start = self.begin
        async with asyncio.TaskGroup() as calls:
            while (start := start + gaps.expovariate(self._plan.rate)) < self.end:
                await asyncio.sleep(start - time.perf_counter())  # at once where we are late
                if time.perf_counter() > self.end + self._plan.timeout_seconds:
                    self.tally.too_late += start >= self.window_begin
                    continue
                if self._under_way >= self._plan.max_calls_under_way:
                    self.tally.not_sent += start >= self.window_begin
                    continue
                self._under_way += 1
                calls.create_task(self._arrive(start))
        # The last may be answered long before; until the end the test can be interrupted.
        await asyncio.sleep(self.end - time.perf_counter())

    async def measure_cpu(self) -> None:
        """Note this process's CPU time over the window."""
        await asyncio.sleep(self.window_begin - time.perf_counter())
        began, cpu_before = time.perf_counter(), time.process_time()
        try:
            await asyncio.sleep(self.end - began)
        finally:  # also when cut short
            self.tally.cpu_window_seconds = time.perf_counter() - began
            self.tally.cpu_seconds = time.process_time() - cpu_before

    async def _arrive(self, start: float) -> None:
        if start >= self.window_begin:
            self.tally.lateness.record(time.perf_counter() - start)
        try:
            await self._call(start)
        finally:
            self._under_way -= 1

    async def _call(self, start: float) -> str:
        """Make a call and note what became of it; returns its status code."""
        number = self._plan.index + self._next_number * self._plan.processes
        generate = self._connections[self._next_number % len(self._connections)]
        self._next_number += 1
        seed, message = self._request(number)
        try:
            reply, code = await generate(message), "OK"
        except grpc.aio.AioRpcError as error:
            reply, code = b"", error.code().name
            if start >= self.window_begin:
                self.tally.error_details.setdefault(code, error.details() or "")
        except asyncio.CancelledError:
            self.tally.unfinished += start >= self.window_begin
            raise
        self._note(start, time.perf_counter(), code)
        if code == "OK" and self._plan.references is not None and start >= self.window_begin:
            images = self._plan.images_per_request
            verify(self.tally, self._plan.references, reply, seed, images)
        return code

    def _request(self, number: int) -> tuple[int, bytes]:
        """First seed and message of a request: other seeds each time, or those with references."""
        if self._verified_messages:
            seed = number % VERIFIED_REQUESTS
            return seed, self._verified_messages[seed]
        seed = number * self._plan.images_per_request
        return seed, build_message(self._plan, seed, self._plan.images_per_request)

    def _note(self, start: float, end: float, code: str) -> None:
        if start >= self.window_begin:
            times = self.tally.latencies.setdefault(code, LatencyHistogram())
            times.record(end - start)
        if code == "OK" and self.window_begin <= end < self.end:
            self.tally.completed += 1
