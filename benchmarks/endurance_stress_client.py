"""The client of the stress: everything that can be asked for, and much that should not be.

python benchmarks/endurance_stress_client.py ADDRESS EXPECTED

EXPECTED is that of endurance_checker.py. Task `stress`: calls for so many seconds, so many at a
time; tells what became of each kind of call, and how many images came from the models whose calls
are never broken off: `kept`, which is swapped, and `wide`, whose replies are large. Calls that are
broken off ask for images of `left`.
"""

import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from endurance_checker import Checker
from endurance_models import LATENT_DIM
from endurance_tasks import connections, do_tasks
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ganserve.inference.v2 import open_inference_pb2 as oip
from ganserve.inference.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

_CHANNELS = 4
_TIMEOUT_SECONDS = 60.0
_IMPATIENCE_SECONDS = 0.2  # the longest after which a call is broken off
_SLOW_READER_SECONDS = 0.1
_LONG_STREAM = 400


def request(model: str, count: int, **fields: Any) -> pb.GenerateImagesRequest:  # noqa: ANN401
    """A request for pixels of some seeds, or whatever `fields` say."""
    source = {"seed_range": pb.SeedRange(start=random.getrandbits(63), count=count)}
    return pb.GenerateImagesRequest(
        model_name=model, **{"format": pb.IMAGE_FORMAT_RAW} | source | fields
    )


class Stress:
    """All kinds of calls, over a few connections."""

    def __init__(
        self, address: str, channels: list[grpc.aio.Channel], expected: np.ndarray[Any, Any]
    ) -> None:
        self._address, self._channels = address, channels
        self.checker = Checker(channels, "kept", expected)
        self.images = Counter[str]()
        self.codes = Counter[str]()  # kind and status
        kinds: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            *((20, self.checked), (5, self.given), (5, self.interpolated), (8, self.pictures)),
            *((5, self.inferred), (2, self.slowly_read), (6, self.cancelled), (6, self.late)),
            *((4, self.left_stream), (1, self.vanished), (4, self.wrong), (2, self.unknown_method)),
            *((3, self.described), (3, self.health), (2, self.watched), (2, self.reflected)),
        ]
        self._weights, self._kinds = zip(*kinds, strict=True)

    def _stub(self, kind: Any = ImageGenerationServiceStub) -> Any:  # noqa: ANN401 - any service's
        return kind(random.choice(self._channels))

    async def call(self) -> None:
        """Make one call of some kind."""
        kind = random.choices(self._kinds, self._weights)[0]
        try:
            await kind()
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except asyncio.CancelledError:
            code = "CANCELLED"
        self.codes[f"{kind.__name__} {code}"] += 1

    async def _take(self, asked: pb.GenerateImagesRequest) -> None:
        reply = await self._stub().GenerateImages(asked, timeout=_TIMEOUT_SECONDS)
        self.images[asked.model_name] += reply.count

    async def checked(self) -> None:
        """Every byte is looked at, of streams too."""
        await self.checker.call()

    async def given(self) -> None:
        """With latents of the caller's own."""
        values = np.random.default_rng().standard_normal(LATENT_DIM * random.randint(1, 40))
        await self._take(request("kept", 1, latents=pb.Latents(values=values), truncation=0.7))

    async def interpolated(self) -> None:
        """A walk."""
        seeds = [random.getrandbits(64) for _ in range(random.randint(2, 5))]
        walk = pb.Interpolation(seeds=seeds, frames_per_segment=random.randint(1, 20))
        await self._take(request("kept", 1, interpolation=walk))

    async def pictures(self) -> None:
        """Encoded ones, large and small."""
        image_format = random.choice(("PNG", "JPEG", "WEBP"))
        asked = request(random.choice(("kept", "wide")), random.randint(1, 12))
        asked.format = pb.ImageFormat.Value(f"IMAGE_FORMAT_{image_format}")
        if image_format != "PNG" and random.random() < 0.5:
            asked.quality = random.randint(1, 100)
        await self._take(asked)

    async def inferred(self) -> None:
        """The Open Inference Protocol."""
        asked = oip.ModelInferRequest(model_name="kept")
        count = random.randint(1, 40)
        seeds = asked.inputs.add(name="seeds", datatype="UINT64", shape=[count])
        seeds.contents.uint64_contents.extend(random.getrandbits(64) for _ in range(count))
        stub = self._stub(GRPCInferenceServiceStub)
        reply = await stub.ModelInfer(asked, timeout=_TIMEOUT_SECONDS)
        self.images["kept"] += reply.outputs[0].shape[0]

    async def slowly_read(self) -> None:
        """A stream of megabytes whose reader takes its time."""
        asked = request("wide", _LONG_STREAM)
        async for reply in self._stub().StreamImages(asked, timeout=_TIMEOUT_SECONDS):
            self.images["wide"] += reply.count
            await asyncio.sleep(random.uniform(0, _SLOW_READER_SECONDS))

    async def cancelled(self) -> None:
        """At any moment."""
        call = self._stub().GenerateImages(request("left", random.randint(1, 400)))
        await asyncio.sleep(random.uniform(0, _IMPATIENCE_SECONDS))
        call.cancel()
        await call

    async def late(self) -> None:
        """With a deadline that is too short, most often."""
        asked = request("left", random.randint(1, 400))
        ask = random.choice((self._stub().GenerateImages, self._stub().StreamImages))
        call = ask(asked, timeout=random.uniform(0.001, _IMPATIENCE_SECONDS))
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call

    async def left_stream(self) -> None:
        """A stream of which one reply, or none, is read."""
        call = self._stub().StreamImages(request("left", _LONG_STREAM))
        if random.random() < 0.8:
            await call.read()
        call.cancel()

    async def vanished(self) -> None:
        """A connection is closed with streams and calls on it."""
        async with connections(self._address, 1) as (channel,):
            stub = ImageGenerationServiceStub(channel)
            calls = [stub.StreamImages(request("left", _LONG_STREAM)) for _ in range(3)]
            asked = stub.GenerateImages(request("left", 100))
            await calls[0].read()
        del asked

    async def wrong(self) -> None:
        """What must be refused."""
        await self._stub().GenerateImages(
            random.choice(
                (
                    request("kept", 0),
                    request("kept", 10_000),
                    request(f"no-{random.getrandbits(40)}", 1),
                    request("kept", 1, model_version="none"),
                    request("kept", 1, truncation=2.0),
                    request("kept", 1, latents=pb.Latents(values=[float("nan")] * LATENT_DIM)),
                    request("kept", 1, class_labels=[1]),
                    request("kept", 1, quality=5),
                )
            )
        )

    async def unknown_method(self) -> None:
        """Of a service that there is, or of none."""
        service = random.choice(("ganserve.v1.ImageGenerationService", "no.such.Service"))
        ask: Any = random.choice(self._channels).unary_unary(f"/{service}/Nothing{random.random()}")
        await ask(b"", timeout=_TIMEOUT_SECONDS)

    async def described(self) -> None:
        """The models."""
        await self._stub().ListModels(pb.ListModelsRequest())
        await self._stub().GetModel(pb.GetModelRequest(name="kept"))

    async def health(self) -> None:
        """As probes ask."""
        await self._stub(health_pb2_grpc.HealthStub).Check(
            health_pb2.HealthCheckRequest(service=random.choice(("", "liveness", "kept")))
        )

    async def watched(self) -> None:
        """The health of a model, for a while."""
        watch = self._stub(health_pb2_grpc.HealthStub).Watch(
            health_pb2.HealthCheckRequest(service="kept")
        )
        await watch.read()
        await asyncio.sleep(random.uniform(0, _IMPATIENCE_SECONDS))
        watch.cancel()

    async def reflected(self) -> None:
        """What services there are."""
        ask = self._stub(reflection_pb2_grpc.ServerReflectionStub).ServerReflectionInfo
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for reply in ask(iter([asked])):
            assert reply.list_services_response.service


async def stress(address: str, expected: Path, seconds: float, concurrency: int) -> dict[str, Any]:
    """Call for so many seconds, over connections that are closed in the end."""
    async with connections(address, _CHANNELS) as channels:
        calls = Stress(address, channels, np.load(expected))
        await _repeat(calls.call, seconds, concurrency)
    del calls.codes["checked OK"]  # what is looked at counts by itself
    calls.codes.update({f"checked {code}": n for code, n in calls.checker.codes.items()})
    images = calls.images + Counter(kept=calls.checker.images.total())
    return {"codes": calls.codes, "images": images, "wrong": calls.checker.wrong}


async def begin_streams(address: str, seconds: float, concurrency: int) -> dict[str, Any]:
    """Read long streams that nothing is counted of: until somebody kills this process."""
    async with connections(address, 1) as (channel,):
        generate = ImageGenerationServiceStub(channel).StreamImages

        async def read() -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):  # such as from a full queue
                async for _ in generate(request("left", _LONG_STREAM)):
                    await asyncio.sleep(random.uniform(0, _SLOW_READER_SECONDS))

        await _repeat(read, seconds, concurrency)
    return {}


async def _repeat(call: Callable[[], Awaitable[object]], seconds: float, concurrency: int) -> None:
    end = time.monotonic() + seconds

    async def keep_calling() -> None:
        while time.monotonic() < end:
            await call()

    await asyncio.gather(*(keep_calling() for _ in range(concurrency)))


if __name__ == "__main__":
    server, file = sys.argv[1], Path(sys.argv[2])
    asyncio.run(
        do_tasks(
            {
                "stress": lambda **given: stress(server, file, **given),
                "vanish": lambda **given: begin_streams(server, **given),
            }
        )
    )
