"""Hides how load is offered to a server and how its answers become figures.

Closed loop: a fixed number of calls is under way at any time, so a slow server is asked less.
Open loop: calls start at random times of a given mean rate, whatever the server does, and their
latency counts from the intended start; only so do queues show.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from ganserve.channel_security import ChannelSecurity, open_async_channel
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

if TYPE_CHECKING:
    from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceAsyncStub

_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", -1),
    # Channels to one address share a connection unless each has a pool of its own.
    ("grpc.use_local_subchannel_pool", 1),
]
_PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


@dataclass(frozen=True)
class Outcome:
    """One call: when it was meant to start and when it ended (same clock), and its result."""

    start: float
    end: float
    code: str
    images: int


@dataclass(frozen=True)
class LoadReport:
    """What a server did under load, over the calls that were meant to start in the window."""

    seconds: float
    calls: int
    calls_per_second: float  # that succeeded
    images_per_second: float
    latency_seconds: dict[str, float]  # p50, p90, p99, max of those calls; empty if there are none
    errors: dict[str, int]  # status code to count


Call = Callable[[float], Coroutine[Any, Any, None]]  # takes the intended start


async def offer_load(
    address: str,
    *,
    model: str = "",
    rate: float | None = None,
    concurrency: int = 8,
    images_per_request: int = 1,
    image_format: str = "raw",
    seconds: float = 10.0,
    warm_up_seconds: float = 1.0,
    connections: int = 1,
    timeout_seconds: float = 30.0,
    security: ChannelSecurity | None = None,
) -> LoadReport:
    """Ask for images for some time and report; open loop if `rate` (calls a second) is given.

    Every call asks for other seeds. Calls that start in the first `warm_up_seconds` are not
    counted; calls under way at the end are waited for.

    Raises:
        ConnectionError: no server answers within `timeout_seconds`.
        OSError: a file of `security` cannot be read.
    """
    outcomes: list[Outcome] = []
    first_seeds = itertools.count(step=images_per_request)
    security = security or ChannelSecurity()
    metadata = security.metadata()
    async with _connected(address, connections, timeout_seconds, security) as stubs:

        async def call(start: float) -> None:
            first_seed = next(first_seeds)
            message = pb.GenerateImagesRequest(
                model_name=model,
                seed_range=pb.SeedRange(start=first_seed, count=images_per_request),
                format=pb.ImageFormat.Value(f"IMAGE_FORMAT_{image_format.upper()}"),
            )
            stub = stubs[first_seed // images_per_request % len(stubs)]
            code, images = await _call(stub, message, timeout_seconds, metadata)
            outcomes.append(Outcome(start, time.perf_counter(), code, images))

        begin = time.perf_counter()
        end = begin + warm_up_seconds + seconds
        await (
            _closed_loop(call, concurrency, end) if rate is None else _open_loop(call, rate, end)
        )
    return summarize(outcomes, begin + warm_up_seconds, end)


def summarize(outcomes: list[Outcome], begin: float, end: float) -> LoadReport:
    """The figures of the calls that were meant to start from `begin` until `end`."""
    counted = [outcome for outcome in outcomes if begin <= outcome.start < end]
    good = [outcome for outcome in counted if outcome.code == "OK"]
    # Whoever starts in the window may end after it; the rate counts the time until the last does.
    seconds = max([end, *(outcome.end for outcome in counted)]) - begin
    latencies = [outcome.end - outcome.start for outcome in good]
    return LoadReport(
        seconds=seconds,
        calls=len(counted),
        calls_per_second=len(good) / seconds,
        images_per_second=sum(outcome.images for outcome in good) / seconds,
        # Observed latencies, none between two of them.
        latency_seconds={
            name: float(np.percentile(latencies, percent, method="inverted_cdf"))
            for name, percent in _PERCENTILES.items()
            if latencies
        },
        errors=dict(Counter(outcome.code for outcome in counted if outcome.code != "OK")),
    )


def render_report(report: LoadReport) -> str:
    """The report as a table of two columns."""
    rows = [
        ("calls", f"{report.calls} in {report.seconds:.1f} s"),
        ("calls/s", f"{report.calls_per_second:.1f}"),
        ("images/s", f"{report.images_per_second:.1f}"),
        *(
            (f"latency {name}", f"{seconds * 1000:.2f} ms")
            for name, seconds in report.latency_seconds.items()
        ),
        *((f"errors {code}", str(count)) for code, count in sorted(report.errors.items())),
    ]
    return "\n".join(f"{name:<24}{value:>20}" for name, value in rows)


@contextlib.asynccontextmanager
async def _connected(
    address: str, connections: int, timeout_seconds: float, security: ChannelSecurity
) -> "AsyncIterator[list[ImageGenerationServiceAsyncStub]]":
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(open_async_channel(address, security, _CHANNEL_OPTIONS))
            for _ in range(connections)
        ]
        try:
            async with asyncio.timeout(timeout_seconds):
                for channel in channels:
                    await channel.channel_ready()
        except TimeoutError:
            message = f"no server answers at {address} within {timeout_seconds:g} s"
            raise ConnectionError(message) from None
        yield [ImageGenerationServiceStub(channel) for channel in channels]


async def _call(
    stub: "ImageGenerationServiceAsyncStub",
    message: pb.GenerateImagesRequest,
    timeout_seconds: float,
    metadata: tuple[tuple[str, str], ...],
) -> tuple[str, int]:
    """The status code's name and the number of images received."""
    try:
        response = await stub.GenerateImages(message, timeout=timeout_seconds, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name, 0
    return "OK", response.count


async def _closed_loop(call: Call, concurrency: int, end: float) -> None:
    async def caller() -> None:
        while (now := time.perf_counter()) < end:
            await call(now)

    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller())


async def _open_loop(call: Call, rate: float, end: float) -> None:
    gaps = random.Random(0)  # noqa: S311 - arrivals, not secrets
    start = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        while (start := start + gaps.expovariate(rate)) < end:
            await asyncio.sleep(start - time.perf_counter())  # at once where we are late
            calls.create_task(call(start))
