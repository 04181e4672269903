"""The client that calls for a small image at fixed times, and tells how late each answer came.

python benchmarks/endurance_pacer.py ADDRESS

Task `begin`: calls from now on. Task `end`: stops; tells when each call was due (monotonic seconds)
and how many seconds later it ended, and the statuses of those that failed. A call is due whether
the server has answered the last ones or not, or a stall of any length would be one slow call.
"""

import asyncio
import sys
import time
from typing import Any

import grpc
from endurance_tasks import UNARY, connections, do_tasks

from ganserve.cpus import use_short_time_slices
from ganserve.v1 import image_generation_pb2 as pb

_PERIOD_SECONDS = 0.003
_MOST_UNDER_WAY = 64  # what is due beyond these waits here, and that counts
_TIMEOUT_SECONDS = 60.0


class Pacer:
    """Calls in the background."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._generate: Any = channel.unary_unary(UNARY)
        self._calling: asyncio.Task[None] | None = None
        self._stop = False
        self._times: list[tuple[float, float]] = []
        self._failed: list[str] = []

    async def begin(self) -> dict[str, Any]:
        """Call from now on."""
        await self._channel.channel_ready()  # the first calls need not wait for it
        self._stop, self._times, self._failed = False, [], []
        self._calling = asyncio.create_task(self._keep_schedule())
        return {}

    async def end(self) -> dict[str, Any]:
        """Stop, and tell."""
        assert self._calling is not None
        self._stop = True
        await self._calling
        return {"times": self._times, "failed": self._failed}

    async def _keep_schedule(self) -> None:
        content = pb.GenerateImagesRequest(
            model_name="small",
            seed_range=pb.SeedRange(start=1, count=1),
            format=pb.IMAGE_FORMAT_RAW,
        ).SerializeToString()
        slots = asyncio.Semaphore(_MOST_UNDER_WAY)
        due = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            while not self._stop:
                await asyncio.sleep(due - time.monotonic())  # at once where we are late
                await slots.acquire()
                calls.create_task(self._call_once(content, due, slots))
                due += _PERIOD_SECONDS

    async def _call_once(self, content: bytes, due: float, slots: asyncio.Semaphore) -> None:
        try:
            await self._generate(content, timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            self._failed.append(error.code().name)
        self._times.append((due, time.monotonic() - due))
        slots.release()


async def main(address: str) -> None:
    """Do tasks until the input ends."""
    use_short_time_slices()  # what this client waits for a CPU is not the server's time
    async with connections(address, 1) as (channel,):
        pacer = Pacer(channel)
        await do_tasks({"begin": pacer.begin, "end": pacer.end})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
