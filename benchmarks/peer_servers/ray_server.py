"""Ray Serve with two replicas behind HAProxy, optimized for throughput, over HTTP."""

import asyncio
import os
import signal
import tempfile

import numpy as np
import ray
from generator import BATCH, PORT, Generator
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=2, max_ongoing_requests=128, ray_actor_options={"num_cpus": 1})
class Dcgan64:
    """From seeds to pixels, as bytes."""

    def __init__(self) -> None:
        self._generate = Generator()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0)
    async def _batched(self, requests: list[NDArray[np.uint64]]) -> list[bytes]:
        parts = await asyncio.to_thread(self._generate.together, requests)
        return [pixels.tobytes() for pixels in parts]

    async def __call__(self, request: Request) -> Response:
        """Large requests are batches of their own."""
        seeds = np.frombuffer(await request.body(), np.uint64)
        if len(seeds) < BATCH:
            pixels = await self._batched(seeds)
        else:
            pixels = (await asyncio.to_thread(self._generate, seeds)).tobytes()
        return Response(pixels, media_type="application/octet-stream")


def main() -> None:
    """Serve until it is stopped."""
    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=4, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(Dcgan64.bind(), route_prefix="/")
        signal.sigwait([signal.SIGTERM, signal.SIGINT])
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
