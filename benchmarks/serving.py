"""What does serving cost? The bare ONNX Runtime session and our server, in turns, in one run.

    python benchmarks/serving.py demo/models/digits/1/model.onnx --record

Both use the same threads: one session call on each CPU. The bare session runs at its best batch
size with its latents ready and its images thrown away. The server gets RAW requests over loopback
from a client on the same CPUs, which is why CPU seconds of the server alone are compared as well.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import os
import platform
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ganserve.client import Client
from ganserve.cpus import usable_cpus
from ganserve.latents import draw_latents
from ganserve.load_test import offer_load
from ganserve.model import Model, load_model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BATCH_SIZES = (4, 8, 16, 32)
LOADS = {  # to images in a request, requests under way
    "requests of 64 images, 4 under way": (64, 4),
    "requests of 1 image, 64 under way": (1, 64),
}


@dataclass(frozen=True)
class Measurement:
    """How fast images came, and what one cost its maker (not its client)."""

    images_per_second: float
    cpu_seconds_per_image: float


def main() -> None:
    """Measure in turns and print a table; --record keeps it."""
    arguments = parse_arguments()
    model = load_model(arguments.artifact, "cpu", threads=1)
    batch_size = max(
        BATCH_SIZES,
        key=lambda size: measure_bare(model, size, arguments.seconds / 4).images_per_second,
    )
    bare = f"bare session, batches of {batch_size}"
    measurements: dict[str, list[Measurement]] = {name: [] for name in (bare, *LOADS)}
    with running_server(arguments.artifact) as (address, process_id):
        for turn in range(arguments.turns + 1):
            for name, rows in measurements.items():
                measured = (
                    measure_bare(model, batch_size, arguments.seconds)
                    if name == bare
                    else measure_served(address, process_id, arguments.seconds, LOADS[name])
                )
                print(f"turn {turn}, {name}: {measured.images_per_second:.0f} images/s", flush=True)
                if turn > 0:  # the first one warms everything up
                    rows.append(measured)
    page = render_page(arguments, model, bare, measurements)
    print(f"\n{page}")
    if arguments.record:
        path = RESULTS / f"serving_{slug(processor())}_{dt.date.today()}.md"
        path.write_text(page, encoding="utf-8")
        print(path)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the artifact is by default the one that the demo made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    demo = sorted((ROOT / "demo" / "models").glob("*/*/model.onnx"))
    parser.add_argument("artifact", type=Path, nargs="?", default=demo[-1] if demo else None)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one measurement")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each kind")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    if arguments.artifact is None:
        parser.error("give the path of an artifact, or run `make demo` first")
    return arguments


def measure_bare(model: Model, batch_size: int, seconds: float) -> Measurement:
    """Run the session from one thread on each CPU."""
    latents = draw_latents(np.arange(batch_size, dtype=np.uint64), model.spec.latent_dim)
    labels = np.zeros(batch_size, np.int64) if model.spec.class_names else None
    counts = [0] * usable_cpus()
    end = time.perf_counter() + seconds

    def run(worker: int) -> None:
        while time.perf_counter() < end:
            counts[worker] += len(model.run_batch(latents, labels))

    workers = [threading.Thread(target=run, args=(worker,)) for worker in range(len(counts))]
    start, cpu_start = time.perf_counter(), own_cpu_seconds()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed, cpu_seconds = time.perf_counter() - start, own_cpu_seconds() - cpu_start
    return Measurement(sum(counts) / elapsed, cpu_seconds / sum(counts))


def measure_served(
    address: str, process_id: int, seconds: float, load: tuple[int, int]
) -> Measurement:
    """Keep calls under way; every one must succeed."""
    cpu_start = cpu_seconds_of(process_id)
    report = asyncio.run(
        offer_load(
            address,
            images_per_request=load[0],
            concurrency=load[1],
            seconds=seconds,
            warm_up_seconds=0,
        )
    )
    cpu_seconds = cpu_seconds_of(process_id) - cpu_start
    if report.errors:
        sys.exit(f"calls failed, so there is nothing to compare: {report.errors}")
    images = report.images_per_second * report.seconds
    return Measurement(report.images_per_second, cpu_seconds / images)


@contextlib.contextmanager
def running_server(artifact: Path) -> Iterator[tuple[str, int]]:
    """Serve the artifact in a process of its own; yields HOST:PORT and the process id."""
    with tempfile.TemporaryDirectory() as folder:
        version_folder = Path(folder) / "model" / "1"
        version_folder.mkdir(parents=True)
        (version_folder / "model.onnx").symlink_to(artifact.resolve())
        port = free_port()
        flags = ["--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0"]
        flags += ["--device", "cpu", "--drain-seconds", "0", "--log-level", "warning"]
        command = [sys.executable, "-m", "ganserve", "serve", "--models", folder, *flags]
        with subprocess.Popen(command) as server:
            try:
                with Client(f"127.0.0.1:{port}") as client:
                    client.generate(seeds=[0])  # returns once the model is served
                yield f"127.0.0.1:{port}", server.pid
            finally:
                server.send_signal(signal.SIGTERM)


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def own_cpu_seconds() -> float:
    """CPU time of all threads of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cpu_seconds_of(process_id: int) -> float:
    """CPU time of all threads of another process, to a hundredth of a second."""
    stat = Path(f"/proc/{process_id}/stat").read_text()
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    user_ticks, system_ticks = int(fields[11]), int(fields[12])
    return (user_ticks + system_ticks) / os.sysconf("SC_CLK_TCK")


def render_page(
    arguments: argparse.Namespace,
    model: Model,
    bare: str,
    measurements: dict[str, list[Measurement]],
) -> str:
    """The result as Markdown: medians, their spread, and shares of the bare session's speed."""
    spec = model.spec
    versions = [f"{name} {version(name)}" for name in ("onnxruntime", "grpcio", "numpy")]
    facts = [
        f"command: `python benchmarks/serving.py {' '.join(sys.argv[1:])}`",
        f"commit {commit()}, {', '.join(versions)}, Python {platform.python_version()}",
        f"{processor()}, {usable_cpus()} CPUs, which the client shares with the server",
        f"{spec.height}x{spec.width}x{spec.channels} images from {spec.latent_dim} latents",
        f"artifact of {arguments.artifact.stat().st_size / 1e6:.1f} MB, sha256 {spec.digest[:12]}",
        f"medians (lowest to highest) of {arguments.turns} turns of {arguments.seconds:g} s each",
        "CPU time is that of the bare session or of the server, without the client",
    ]
    lines = [
        f"# Serving beside the bare session, {dt.date.today()}",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        "| | images/s | CPU ms an image | images/s over bare | images per CPU-s over bare |",
        "|---|---|---|---|---|",
    ]
    for name, rows in measurements.items():
        pairs = list(zip(measurements[bare], rows, strict=True))
        cells = [
            spread([row.images_per_second for row in rows], ".0f"),
            spread([row.cpu_seconds_per_image * 1000 for row in rows], ".3f"),
            spread([row.images_per_second / base.images_per_second for base, row in pairs], ".2f"),
            spread(
                [base.cpu_seconds_per_image / row.cpu_seconds_per_image for base, row in pairs],
                ".2f",
            ),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def spread(values: list[float], form: str) -> str:
    """The median and the range of values."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    match = re.search(r"model name\s*:\s*(.+)", text)
    return match[1].strip() if match else platform.machine()


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def commit() -> str:
    """The commit that was measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
