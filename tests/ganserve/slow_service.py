"""A service for load tests that answers one call at a time, and notes what it was asked."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import grpc

from ganserve.load_test.plan import LoadPlan
from ganserve.load_test.report import LoadReport
from ganserve.load_test.run import offer_load
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1 import image_generation_pb2_grpc


class SlowService(image_generation_pb2_grpc.ImageGenerationServiceServicer):
    """Answers one call at a time, each after some seconds; pixels are the seed's last byte."""

    def __init__(self, seconds: float, refused: bool = False) -> None:
        self.seconds = seconds
        self.refused = refused
        self.requests: list[pb.GenerateImagesRequest] = []
        self.asked = asyncio.Event()
        self.answered = 0
        self.peers: Counter[str] = Counter()
        self.most_at_once = 0
        self.wrong_seed: int | None = None  # whose pixels are others
        self.digest = "first"
        self._now = 0
        self._turn = asyncio.Lock()

    async def GenerateImages(self, request, context):  # noqa: N802 - gRPC's name
        self.requests.append(request)
        self.asked.set()
        self.peers[context.peer()] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            async with self._turn:
                await asyncio.sleep(self.seconds)
        finally:
            self._now -= 1
        if self.refused:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        self.answered += 1
        start, count = request.seed_range.start, request.seed_range.count
        pixels = bytearray(seed % 256 for seed in range(start, start + count))
        if self.wrong_seed in range(start, start + count):
            pixels[self.wrong_seed - start] ^= 1
        return pb.GenerateImagesResponse(
            count=count, pixels=bytes(pixels), model=pb.ModelIdentity(digest=self.digest)
        )


async def offer(address: str, *, processes=1, verify=False, stop=None, **plan) -> LoadReport:
    """Offer a load, of which only what matters is said."""
    return await offer_load(
        LoadPlan(address, **plan), processes=processes, verify=verify, stop=stop
    )


@contextlib.asynccontextmanager
async def running(
    service: image_generation_pb2_grpc.ImageGenerationServiceServicer, port: int = 0
) -> AsyncIterator[str]:
    """Serve on a free port of 127.0.0.1; yields HOST:PORT."""
    server = grpc.aio.server()
    image_generation_pb2_grpc.add_ImageGenerationServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
