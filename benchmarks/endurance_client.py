"""The client of the run on memory: calls of all kinds, as little of its own CPU time as may be.

python benchmarks/endurance_client.py ADDRESS

Task `call`: makes so many calls, so many at a time; tells what became of them. Of each hundred
5 are cancelled, 5 miss their deadline, 1 is wrong; of the others most ask for pixels, some
for pictures or a stream. What is broken off is long, so that it mostly happens in the midst of the
work. Of the cancelled half are streams, of the model `left`, which end after the first reply; all
else is of the model `kept`, and what may be broken off there has LEFT_IMAGES images, so that images
can be reckoned exactly: a server may have answered before it learns that the caller left.
"""

import asyncio
import random
import sys
import time
from collections import Counter
from typing import Any

import grpc
from endurance_tasks import STREAM, UNARY, connections, do_tasks

from ganserve.v1 import image_generation_pb2 as pb

LEFT_IMAGES = 256
_BROKEN_OFF = 0.05  # of all calls in each of two ways; of the others, cumulated:
_WRONG, _STREAM, _PICTURES = 0.0112, 0.03, 0.06
_CHANNELS = 2
_TIMEOUT_SECONDS = 60.0


def message(model: str, count: int, image_format: str = "RAW") -> bytes:
    """A request, ready to be sent."""
    return pb.GenerateImagesRequest(
        model_name=model,
        seed_range=pb.SeedRange(start=random.getrandbits(63), count=count),
        format=pb.ImageFormat.Value(f"IMAGE_FORMAT_{image_format}"),
    ).SerializeToString()


class Caller:
    """Makes calls over a few connections and counts."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._unary: list[Any] = [channel.unary_unary(UNARY) for channel in channels]
        self._stream: list[Any] = [channel.unary_stream(STREAM) for channel in channels]
        self._ordinary = [message("kept", random.randint(1, 8)) for _ in range(4096)]
        self._left = [message("kept", LEFT_IMAGES) for _ in range(1024)]
        self._left_streams = [message("left", LEFT_IMAGES) for _ in range(1024)]
        self._pictures = [
            message("kept", random.randint(1, 4), image_format)
            for image_format in ("PNG", "JPEG", "WEBP")
            for _ in range(100)
        ]
        self._usual_seconds = 0.02  # what an ordinary call takes, most of it waiting to be begun
        self._work_seconds = 0.01  # by which a long call takes longer; less where they end in time
        self.forget()

    def forget(self) -> None:
        """Count from nothing."""
        self.codes = Counter[str]()
        self.answered = 0  # calls that are no streams
        self.images = Counter[str]()  # received, by model

    async def call(self) -> None:
        """Make one call of some kind."""
        kind, way = random.random(), random.randrange(len(self._unary))
        enough = _BROKEN_OFF * self.codes.total()
        try:
            if self.codes["CANCELLED"] < enough:
                await (self._begin_stream(way) if kind < 0.5 else self._cancel(way))
            elif self.codes["DEADLINE_EXCEEDED"] < enough:
                await self._ask(way, random.choice(self._left), self._patience())
                self._work_seconds *= 0.8
            elif kind < _WRONG:
                nothing = message("kept", 0), message(f"no-{random.getrandbits(40)}", 1), b"\xff"
                await self._ask(way, random.choice(nothing))
            elif kind < _STREAM:
                await self._read_stream(way)
            elif kind < _PICTURES:
                await self._ask(way, random.choice(self._pictures))
            else:
                await self._ask_usual(way)
        except asyncio.CancelledError:
            self.codes["CANCELLED"] += 1
        except grpc.aio.AioRpcError as error:
            self.codes[error.code().name] += 1
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._work_seconds = min(0.02, self._work_seconds * 1.05)
        else:
            self.codes["OK"] += 1

    def _count(self, model: str, reply: bytes) -> None:
        self.images[model] += pb.GenerateImagesResponse.FromString(reply).count

    async def _ask(self, way: int, content: bytes, seconds: float = _TIMEOUT_SECONDS) -> None:
        reply = await self._unary[way](content, timeout=seconds)
        self.answered += 1
        self._count("kept", reply)

    def _patience(self) -> float:
        """A time after which a long call has begun, most likely, and not ended."""
        return self._usual_seconds + random.uniform(0, self._work_seconds)

    async def _ask_usual(self, way: int) -> None:
        begin = time.perf_counter()
        await self._ask(way, random.choice(self._ordinary))
        self._usual_seconds += 0.05 * (time.perf_counter() - begin - self._usual_seconds)

    async def _cancel(self, way: int) -> None:
        call = self._unary[way](random.choice(self._left), timeout=_TIMEOUT_SECONDS)
        await asyncio.sleep(self._patience())
        call.cancel()
        reply = await call
        self.answered += 1
        self._count("kept", reply)

    async def _begin_stream(self, way: int) -> None:
        call = self._stream[way](random.choice(self._left_streams), timeout=_TIMEOUT_SECONDS)
        self._count("left", await call.read())
        call.cancel()
        raise asyncio.CancelledError

    async def _read_stream(self, way: int) -> None:
        content = random.choice(self._ordinary)
        async for reply in self._stream[way](content, timeout=_TIMEOUT_SECONDS):
            self._count("kept", reply)


async def call_many(caller: Caller, calls: int, concurrency: int) -> dict[str, Any]:
    """Make so many calls; the tally of these alone."""
    caller.forget()
    left, begin = calls, time.perf_counter()

    async def keep_calling() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await caller.call()

    await asyncio.gather(*(keep_calling() for _ in range(concurrency)))
    return {
        "codes": caller.codes,
        "answered": caller.answered,
        "images": caller.images,
        "seconds": time.perf_counter() - begin,
    }


async def main(address: str) -> None:
    """Do tasks until the input ends."""
    async with connections(address, _CHANNELS) as channels:
        caller = Caller(channels)
        await do_tasks({"call": lambda **given: call_many(caller, **given)})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
