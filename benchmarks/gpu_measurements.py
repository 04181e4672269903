"""Hides how the GPU benchmark measures: the session, what may limit it, servers and their bits."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from serving import Cost
from serving_models import LATENT_DIM
from serving_processes import FOLDER, Process, own_cpu_seconds

from ganserve.latents import draw_latents
from ganserve.models.bound_session import BoundSession
from ganserve.models.model import Model
from ganserve.setting_values import Device
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

IMAGES = 64  # in a request
CLIENTS, CALLS_EACH = 4, 2
_LEAD_SECONDS = 0.3  # of calls that are not counted


def run_bare(model: Model, size: int, seconds: float) -> Cost:
    """Call the session with its fixed buffers, again and again in its own thread."""
    session = model.session
    assert isinstance(session, BoundSession)
    feeds = {"latents": draw_latents(np.arange(size, dtype=np.uint64), LATENT_DIM)}

    def repeat() -> Cost:
        calls, started, cpu = 0, time.perf_counter(), own_cpu_seconds()
        while time.perf_counter() < started + seconds:
            session.run_here(feeds)
            calls += 1
        return Cost(time.perf_counter() - started, own_cpu_seconds() - cpu, calls * size)

    return session.call(repeat)


def run_copies(device: Device, size: int, seconds: float) -> Cost:
    """Copy latents to the device and as many pixels back, and run nothing."""
    place = "cpu" if device == "cpu" else "cuda"
    make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    latents = make([size, LATENT_DIM], np.float32, place, 0)
    pixels = make([size, 64, 64, 3], np.uint8, place, 0)
    rows = np.zeros((size, LATENT_DIM), np.float32)
    calls, started, cpu = 0, time.perf_counter(), own_cpu_seconds()
    while time.perf_counter() < started + seconds:
        latents.update_inplace(rows)
        pixels.numpy()  # a copy, where the pixels are on a GPU
        calls += 1
    return Cost(time.perf_counter() - started, own_cpu_seconds() - cpu, calls * size)


def pixels(model: Model) -> NDArray[np.uint8]:
    """Of 64 seeds."""
    return model.run_batch(draw_latents(np.arange(IMAGES, dtype=np.uint64), LATENT_DIM))


def count_wrong(model: Model) -> int:
    """How many images are others than alone, in batches of every size as the server makes them."""
    latents = draw_latents(np.arange(IMAGES, dtype=np.uint64), LATENT_DIM)
    alone = np.concatenate([model.run_batch(latents[row : row + 1]) for row in range(IMAGES)])
    wrong = 0
    for rows in range(1, IMAGES + 1):
        made = model.run_batch(latents[:rows])
        wrong += sum(not np.array_equal(a, b) for a, b in zip(made, alone, strict=False))
    return wrong


def call(process: Process, model: str, seconds: float) -> Cost:
    """Keep calls under way from several processes, for one client would be the limit."""
    command = [sys.executable, str(FOLDER / "serving_client.py"), "shared", process.address]
    command += [model, *map(str, (IMAGES, CALLS_EACH, seconds))]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_client(command)) for _ in range(CLIENTS)]
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()  # it is connected
        # One window for all. Added up, rates of windows that overlap in part are too high: who
        # begins early or ends late has the server for itself then.
        begin = time.monotonic() + _LEAD_SECONDS
        for client in clients:
            assert client.stdin is not None
            client.stdin.write(f"{begin}\n")
            client.stdin.flush()
        time.sleep(begin - time.monotonic())
        cpu = process.cpu_seconds()
        time.sleep(begin + seconds - time.monotonic())
        cpu = process.cpu_seconds() - cpu
        reports = [json.loads(client.communicate()[0]) for client in clients]
    return Cost(seconds, cpu, sum(report["calls"] for report in reports) * IMAGES)


@contextlib.contextmanager
def _client(command: list[str]) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        command, cwd=FOLDER.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            yield client
        finally:
            client.kill()


def provider_of(process: Process, model: str) -> str:
    """What the server says it runs the model on."""
    with grpc.insecure_channel(process.address) as channel:
        stub = ImageGenerationServiceStub(channel)
        return stub.GetModel(pb.GetModelRequest(name=model)).model.execution_provider


def refuses_without_gpu(repository: Path, device: Device) -> bool:
    """Whether a server that is to use a GPU, and sees none, ends and says so."""
    wanted = "cuda" if device == "cpu" else device
    command = [sys.executable, "-m", "ganserve", "serve", "--models", str(repository)]
    command += ["--port", "0", "--metrics-port", "0", "--device", wanted]
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 1 and f"device {wanted}: expected" in done.stderr


def gpu_name(device: Device) -> str:
    """What nvidia-smi calls it."""
    program = shutil.which("nvidia-smi")
    if device == "cpu" or program is None:
        return "the CPU, which stands for a GPU" if device == "cpu" else "a GPU"
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].strip()
