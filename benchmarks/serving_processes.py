"""Hides the processes of the serving benchmark: servers, clients, and the CPU time they take."""

import contextlib
import json
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ganserve.v1 import image_generation_pb2 as pb

FOLDER = Path(__file__).resolve().parent
_METHOD = "/ganserve.v1.ImageGenerationService/GenerateImages"
H2LOAD = shutil.which("h2load")
# Windows that hold several replies of a megabyte.
GRPC_FLAGS = ["-w", "24", "-W", "26", "-H", "content-type: application/grpc", "-H", "te: trailers"]


@dataclass(frozen=True)
class Process:
    """A running server."""

    port: int
    id: int

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far, of those that have ended too; it has no children.

        By the process's own clock, in nanoseconds: /proc counts in hundredths of a second.
        """
        return time.clock_gettime((~self.id << 3) | 2)  # as clock_getcpuclockid(3) makes it


def own_cpu_seconds() -> float:
    """CPU time of all threads of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[Process]:
    """A process of ours, until the end of the block; the first call waits for its port."""
    with subprocess.Popen([sys.executable, *command], cwd=FOLDER.parent) as process:
        try:
            wait_for_port(port)
            yield Process(port, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def serving(
    models: Path, *flags: str, silent: bool = False, device: str = "cpu"
) -> Iterator[Process]:
    """Our server; yields once it serves. `silent` leaves the metrics out."""
    port = free_port()
    program = [str(FOLDER / "serving_silent.py")] if silent else ["-m", "ganserve"]
    command = [*program, "serve", "--models", str(models), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--metrics-port", "0", "--device", device]
    command += ["--drain-seconds", "0", "--log-level", "warning", *flags]
    with running(command, port) as process:
        wait_until_serving(process.address)
        yield process


@contextlib.contextmanager
def echoing(reply_bytes: int, *model: str) -> Iterator[Process]:
    """The server that does nothing, or only runs a model: its file and its latents' length."""
    port = free_port()
    command = [str(FOLDER / "serving_echo.py"), str(port), str(reply_bytes), *model]
    with running(command, port) as process:
        yield process


def wait_for_port(port: int, seconds: float = 30) -> None:
    """Return once something listens."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nothing listens on port {port}")


def wait_until_serving(address: str, seconds: float = 60) -> None:
    """Return once the health service says so."""
    end = time.monotonic() + seconds
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < end:
            with contextlib.suppress(grpc.RpcError):
                reply = stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=5)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            time.sleep(0.01)
    raise TimeoutError(f"{address} does not serve")


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask_client(*arguments: object) -> dict[str, Any]:
    """Run a client of serving_client.py to its end and read what it prints."""
    command = [sys.executable, str(FOLDER / "serving_client.py"), *map(str, arguments)]
    output = subprocess.run(
        command, cwd=FOLDER.parent, capture_output=True, text=True, check=True
    ).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def call_with_h2load(
    process: Process,
    model: str,
    images: int,
    concurrency: int,
    calls: int,
    image_format: str,
    least_bytes: int,
) -> float:
    """Make calls with h2load, a client in C that takes next to no CPU; the seconds it took.

    A refused call is a success to HTTP, so the replies must have `least_bytes` each.
    """
    message = pb.GenerateImagesRequest(
        model_name=model,
        seed_range=pb.SeedRange(start=1, count=images),
        format=pb.ImageFormat.Value(f"IMAGE_FORMAT_{image_format}"),
    ).SerializeToString()
    flags = ["-c", "1", "-m", str(concurrency), *GRPC_FLAGS]
    return run_h2load(
        f"http://{process.address}{_METHOD}", grpc_frame(message), flags, calls, least_bytes
    )


def grpc_frame(message: bytes) -> bytes:
    """A message as the body of a call: not compressed, its length, itself."""
    return b"\0" + struct.pack(">I", len(message)) + message


def run_h2load(
    url: str, body: bytes, flags: list[str], calls: int, least_bytes: int, seconds: float = 300
) -> float:
    """Post a body many times, at most for so long; the seconds that it took.

    Raises:
        RuntimeError: a call failed, or the replies are too short.
        subprocess.TimeoutExpired: it took longer.
    """
    assert H2LOAD is not None
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = [H2LOAD, "-n", str(calls), "-d", file.name, *flags, url]
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=seconds
        ).stdout
    received = re.findall(r"\((\d+)\) data", output)
    if f" {calls} succeeded" not in output or int(received[0]) < calls * least_bytes:
        raise RuntimeError(f"calls failed, so there is nothing to compare:\n{output}")
    value, unit = re.findall(r"finished in ([\d.]+)(us|ms|s)", output)[0]
    return float(value) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
