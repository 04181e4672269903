"""The client that calls for one small image after another, and takes the time.

python benchmarks/endurance_pacer.py ADDRESS

Task `begin`: calls from now on. Task `end`: stops; tells when each call began (monotonic seconds)
and how many seconds it took, and the statuses of those that failed.
"""

import asyncio
import sys
import time
from typing import Any

import grpc
from endurance_tasks import UNARY, connections, do_tasks

from ganserve.v1 import image_generation_pb2 as pb

_PAUSE_SECONDS = 0.002
_TIMEOUT_SECONDS = 60.0


class Pacer:
    """Calls in the background."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._generate: Any = channel.unary_unary(UNARY)
        self._calling: asyncio.Task[None] | None = None
        self._stop = False
        self._times: list[tuple[float, float]] = []
        self._failed: list[str] = []

    async def begin(self) -> dict[str, Any]:
        """Call from now on."""
        self._stop, self._times, self._failed = False, [], []
        self._calling = asyncio.create_task(self._call())
        return {}

    async def end(self) -> dict[str, Any]:
        """Stop, and tell."""
        assert self._calling is not None
        self._stop = True
        await self._calling
        return {"times": self._times, "failed": self._failed}

    async def _call(self) -> None:
        content = pb.GenerateImagesRequest(
            model_name="small",
            seed_range=pb.SeedRange(start=1, count=1),
            format=pb.IMAGE_FORMAT_RAW,
        ).SerializeToString()
        while not self._stop:
            begin = time.monotonic()
            try:
                await self._generate(content, timeout=_TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                self._failed.append(error.code().name)
            self._times.append((begin, time.monotonic() - begin))
            await asyncio.sleep(_PAUSE_SECONDS)


async def main(address: str) -> None:
    """Do tasks until the input ends."""
    async with connections(address, 1) as (channel,):
        pacer = Pacer(channel)
        await do_tasks({"begin": pacer.begin, "end": pacer.end})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
