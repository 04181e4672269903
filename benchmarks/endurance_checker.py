"""The client that looks at every byte: of which version is it, and is it right?

python benchmarks/endurance_checker.py ADDRESS EXPECTED

EXPECTED is a NumPy file [versions, seeds, bytes of an image]. Task `check`: calls for so many
seconds, so many calls at a time; tells what was wrong, and the images received of each version.
"""

import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from endurance_tasks import STREAM, UNARY, connections, do_tasks
from numpy.typing import NDArray

from ganserve.v1 import image_generation_pb2 as pb

_TIMEOUT_SECONDS = 60.0
_STREAMS = 1 / 3
_CHANNELS = 2


class Checker:
    """Makes calls and compares."""

    def __init__(
        self, channels: list[grpc.aio.Channel], model: str, expected: NDArray[np.uint8]
    ) -> None:
        self._model, self._expected = model, expected
        self._unary: list[Any] = [channel.unary_unary(UNARY) for channel in channels]
        self._stream: list[Any] = [channel.unary_stream(STREAM) for channel in channels]
        self.codes, self.images = Counter[str](), Counter[str]()
        self.wrong: list[str] = []
        self.times: list[float] = []

    async def call(self) -> None:
        """Make one call, and look at what comes."""
        seeds = self._expected.shape[1]
        count = random.randint(1, seeds // 2)
        first = random.randint(0, seeds - count)
        content = pb.GenerateImagesRequest(
            model_name=self._model,
            seed_range=pb.SeedRange(start=first, count=count),
            format=pb.IMAGE_FORMAT_RAW,
        ).SerializeToString()
        begin, way = time.perf_counter(), random.randrange(len(self._unary))
        try:
            if random.random() < _STREAMS:
                call = self._stream[way](content, timeout=_TIMEOUT_SECONDS)
                replies = [pb.GenerateImagesResponse.FromString(one) async for one in call]
            else:
                reply = await self._unary[way](content, timeout=_TIMEOUT_SECONDS)
                replies = [pb.GenerateImagesResponse.FromString(reply)]
        except grpc.aio.AioRpcError as error:
            self.codes[error.code().name] += 1
            return
        self.codes["OK"] += 1
        self.times.append(time.perf_counter() - begin)
        self.judge(first, count, replies)

    def judge(self, first: int, count: int, replies: list[pb.GenerateImagesResponse]) -> None:
        """Compare the replies to one call with the version that they name."""
        versions = {reply.model.version for reply in replies}
        for reply in replies:
            self.images[reply.model.version] += reply.count
        if len(versions) != 1:
            self.wrong.append(f"a stream of the versions {sorted(versions)}")
            return
        version = int(versions.pop())
        pixels = b"".join(reply.pixels for reply in replies)
        if pixels != self._expected[version, first : first + count].tobytes():
            self.wrong.append(f"seeds from {first}, {count} of them, version {version}")


async def check(checker: Checker, seconds: float, concurrency: int) -> dict[str, Any]:
    """Call for so many seconds."""
    end = time.monotonic() + seconds

    async def keep_calling() -> None:
        while time.monotonic() < end:
            await checker.call()

    await asyncio.gather(*(keep_calling() for _ in range(concurrency)))
    p50, p99, longest = np.percentile(checker.times, [50, 99, 100])
    return {
        "codes": checker.codes,
        "images": checker.images,
        "wrong": checker.wrong,
        "p50": p50,
        "p99": p99,
        "longest": longest,
    }


async def main(address: str, expected: Path) -> None:
    """Do tasks until the input ends."""
    async with connections(address, _CHANNELS) as channels:
        checker = Checker(channels, "kept", np.load(expected))
        await do_tasks({"check": lambda **given: check(checker, **given)})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
