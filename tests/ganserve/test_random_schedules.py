"""The promise once more: random schedules of calls, each image as it is when asked for alone."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ganserve.latents import draw_latents
from ganserve.server import running
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.ganserve.conftest import server_config
from tests.ganserve.tiny import write_artifact

LATENT_DIM = 4
SEEDS = 200  # that calls ask for, from 2**64 - 100 over the end of the range to 99
FIRST_SEED = 2**64 - SEEDS // 2
SIZES = (1, 1, 2, 3, 7, 15, 16, 17, 33, 64)  # images a call; a model call has 16 at most
EXAMPLES = 50
LEAST_IMAGES = 10_000


@dataclass(frozen=True)
class Call:
    """What one caller does."""

    kind: str  # "seeds", "latents", "range" or "stream"
    offsets: tuple[int, ...]  # of its seeds from the first one
    after: int  # turns of the event loop that it waits
    leaves: bool  # gives up soon after it asked
    connection: int


@st.composite
def calls(draw: st.DrawFn) -> Call:
    kind = draw(st.sampled_from(["seeds", "latents", "range", "stream"]))
    size = draw(st.sampled_from(SIZES))
    if kind == "range":  # of neighbouring seeds, which do not go over the end
        first = draw(st.integers(0, SEEDS // 2 - size)) + draw(st.sampled_from([0, SEEDS // 2]))
        offsets = tuple(range(first, first + size))
    else:
        first, step = draw(st.integers(0, SEEDS - 1)), draw(st.sampled_from([0, 1, 7, 199]))
        offsets = tuple((first + step * index) % SEEDS for index in range(size))
    leaves = draw(st.integers(0, 9)) == 0
    return Call(kind, offsets, draw(st.integers(0, 5)), leaves, draw(st.integers(0, 2)))


def seed_at(offset: int) -> int:
    return (FIRST_SEED + offset) % 2**64


@contextmanager
def serving(models: Path, **settings: Any) -> Iterator[str]:
    """A server in a thread of its own, as its clients are in another process; its address."""
    address: list[str] = []
    is_up, may_end = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running(server_config(models, **settings)) as server:
            await server.wait_until_ready()
            address.append(server.address)
            is_up.set()
            await asyncio.to_thread(may_end.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert is_up.wait(30)
        yield address[0]
    finally:
        may_end.set()
        thread.join(30)


async def ask(stub: ImageGenerationServiceStub, call: Call) -> bytes:
    """All pixels of a call."""
    numbers = [seed_at(offset) for offset in call.offsets]
    request = pb.GenerateImagesRequest(format=pb.IMAGE_FORMAT_RAW)
    if call.kind == "latents":
        latents = draw_latents(np.array(numbers, np.uint64), LATENT_DIM)
        request.latents.values.extend(latents.ravel().tolist())
    elif call.kind == "range":
        request.seed_range.start, request.seed_range.count = numbers[0], len(numbers)
    else:
        request.seeds.values.extend(numbers)
    if call.kind == "stream":
        return b"".join([part.pixels async for part in stub.StreamImages(request)])
    return bytes((await stub.GenerateImages(request)).pixels)


async def play(address: str, schedule: list[Call], alone: list[bytes]) -> int:
    """Make the calls as scheduled; how many images came back, each compared with itself alone."""

    async def one(call: Call) -> int:
        for _ in range(call.after):
            await asyncio.sleep(0)
        asking = asyncio.ensure_future(ask(stubs[call.connection], call))
        if call.leaves:
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            return 0
        assert await asking == b"".join(alone[offset] for offset in call.offsets), call
        return len(call.offsets)

    # Each of them a connection: gRPC would share one among equal channels.
    options = [[("grpc.use_local_subchannel_pool", 1)] for _ in range(3)]
    channels = [grpc.aio.insecure_channel(address, options=each) for each in options]
    stubs = [ImageGenerationServiceStub(channel) for channel in channels]
    try:
        return sum(await asyncio.gather(*(one(call) for call in schedule)))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def one_at_a_time(address: str) -> list[bytes]:
    """Each seed's pixels, asked for alone."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ImageGenerationServiceStub(channel)
        return [await ask(stub, Call("seeds", (offset,), 0, False, 0)) for offset in range(SEEDS)]


@pytest.mark.parametrize(
    "server_settings",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"instances": 3, "threads": 2, "max_batch_size": 7}, id="threads"),
        pytest.param({"max_wait_seconds": 0.002, "chunk_bytes": 3000}, id="waiting"),
        pytest.param({"batch_sizes": (1, 4, 16), "max_batch_size": 16}, id="padded"),
    ],
)
@pytest.mark.parametrize("network", ["reveal", "convolutional"])
def test_an_image_is_the_same_bytes_in_any_schedule(network, server_settings, tmp_path):
    write_artifact(tmp_path, network=network, latent_dim=LATENT_DIM)
    with serving(tmp_path, instances=1, max_batch_size=1) as address, asyncio.Runner() as runner:
        alone = runner.run(one_at_a_time(address))
    assert len(set(alone)) > SEEDS // 2, "they can be told apart"
    compared = 0
    asked = {"instances": 2, **server_settings}
    with serving(tmp_path, **asked) as address, asyncio.Runner() as runner:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(calls(), min_size=20, max_size=30))
        def check(schedule: list[Call]) -> None:
            nonlocal compared
            compared += runner.run(play(address, schedule, alone))

        check()
    assert compared >= LEAST_IMAGES
