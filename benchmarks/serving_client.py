"""Clients of the serving benchmark, each in a process of its own; they print JSON.

python benchmarks/serving_client.py latency ADDRESS MODEL CALLS
python benchmarks/serving_client.py closed ADDRESS MODEL IMAGES CONCURRENCY SECONDS FORMAT
python benchmarks/serving_client.py shared ADDRESS MODEL IMAGES CONCURRENCY SECONDS
python benchmarks/serving_client.py open ADDRESS MODEL IMAGES RATE SECONDS

`shared` is one of several: it says when it is connected, is told on standard input when all begin
to count (monotonic seconds), calls from then on or sooner, and counts what ends in that window.
"""

import asyncio
import json
import math
import random
import sys
import time

import grpc
import numpy as np

from ganserve.cpus import use_short_time_slices
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

_OPTIONS = [("grpc.max_receive_message_length", -1)]


def request(model: str, images: int, image_format: str = "RAW") -> pb.GenerateImagesRequest:
    """Ask for seeds from 1 on."""
    return pb.GenerateImagesRequest(
        model_name=model,
        seed_range=pb.SeedRange(start=1, count=images),
        format=pb.ImageFormat.Value(f"IMAGE_FORMAT_{image_format}"),
    )


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile; of nothing they are no numbers, which meet no bar."""
    if not seconds:
        return {"p50": math.nan, "p99": math.nan}
    return {"p50": float(np.percentile(seconds, 50)), "p99": float(np.percentile(seconds, 99))}


def latency(address: str, model: str, calls: str) -> dict[str, float]:
    """One call after the other."""
    message, times = request(model, 1), []
    with grpc.insecure_channel(address) as channel:
        generate = ImageGenerationServiceStub(channel).GenerateImages
        for number in range(int(calls) + 20):
            started = time.perf_counter()
            generate(message)
            if number >= 20:
                times.append(time.perf_counter() - started)
    return percentiles(times)


async def closed(
    address: str, model: str, images: str, concurrency: str, seconds: str, image_format: str
) -> dict[str, float]:
    """Keep a number of calls under way."""
    message = request(model, int(images), image_format)
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        generate = ImageGenerationServiceStub(channel).GenerateImages
        begin = time.perf_counter()
        end = begin + float(seconds)

        async def caller() -> int:
            calls = 0
            while time.perf_counter() < end:
                await generate(message)
                calls += 1
            return calls

        calls = sum(await asyncio.gather(*(caller() for _ in range(int(concurrency)))))
        return {"calls": calls, "seconds": time.perf_counter() - begin}


async def shared(
    address: str, model: str, images: str, concurrency: str, seconds: str
) -> dict[str, float]:
    """Keep a number of calls under way over a window that other clients have too."""
    message = request(model, int(images))
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        generate = ImageGenerationServiceStub(channel).GenerateImages
        await generate(message)
        print("connected", flush=True)
        begin = float(sys.stdin.readline())
        if time.monotonic() > begin:
            sys.exit("this client was told too late when all begin")
        end = begin + float(seconds)

        async def caller() -> int:
            calls = 0
            while time.monotonic() < end:
                await generate(message)
                calls += begin <= time.monotonic() < end
            return calls

        calls = sum(await asyncio.gather(*(caller() for _ in range(int(concurrency)))))
        return {"calls": calls}


async def open_loop(
    address: str, model: str, images: str, rate: str, seconds: str
) -> dict[str, object]:
    """Start calls at random times, whatever becomes of them.

    A refusal's time counts from when the call was due, for a client that is busy begins late and
    would else take a late answer for a quick one.
    """
    use_short_time_slices()  # what this client waits for a CPU is not the server's time
    message = request(model, int(images))
    answered, refused, lateness = [], [], []
    other: list[str] = []
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        generate = ImageGenerationServiceStub(channel).GenerateImages

        async def call(due: float) -> None:
            lateness.append(time.perf_counter() - due)
            try:
                await generate(message, timeout=60)
                answered.append(time.perf_counter())
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    refused.append(time.perf_counter() - due)
                else:
                    other.append(error.code().name)

        arrivals, start = random.Random(0), time.perf_counter()
        begin, end = start, start + float(seconds)
        async with asyncio.TaskGroup() as calls:
            while (start := start + arrivals.expovariate(float(rate))) < end:
                await asyncio.sleep(start - time.perf_counter())
                calls.create_task(call(start))
        # The queue fills in the first third and is full from then on.
        first = begin + float(seconds) / 3
        done = sum(first <= moment < end for moment in answered)
    return {
        "images_per_second": done * int(images) / (end - first),
        "refused": len(refused),
        "other": other,
        "refusal": percentiles(refused),
        "lateness": percentiles(lateness),
    }


if __name__ == "__main__":
    mode, arguments = sys.argv[1], sys.argv[2:]
    if mode == "latency":
        print(json.dumps(latency(*arguments)))
    elif mode == "closed":
        print(json.dumps(asyncio.run(closed(*arguments))))
    elif mode == "shared":
        print(json.dumps(asyncio.run(shared(*arguments))))
    else:
        print(json.dumps(asyncio.run(open_loop(*arguments))))
