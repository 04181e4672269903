"""The whole road on the built-in digits: train, export, serve, ask for images, read the metrics."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

FOLDER = Path(__file__).resolve().parent
RUN, MODELS, GRID = FOLDER / "run", FOLDER / "models", FOLDER / "grid.png"
# About a minute of training on two cores.
SETTINGS = "--image-size 16 --filters 32 --batch-size 32 --total-images 50000"
STAGES = {
    "waiting for a batch": "ganserve_queue_seconds",
    "in the model": "ganserve_compute_seconds",
    "encoding": "ganserve_encode_seconds",
}


def main() -> None:
    """Run every step that has not been done yet; the first failure ends the demo."""
    train()
    if not is_published():
        shutil.rmtree(MODELS, ignore_errors=True)
        run(f"gantrain export {quote(RUN)} --repository {quote(MODELS)} --name digits")
    port, metrics_port = free_port(), free_port()
    with serving(port, metrics_port):
        run(f"ganserve models --address localhost:{port}")
        run(f"ganserve generate --address localhost:{port} --seeds 0-63 --out {quote(GRID)}")
        report_latency(f"http://localhost:{metrics_port}/metrics")
    print(f"\n64 digits that nobody wrote: {show(str(GRID))}")


def train() -> None:
    """Begin the run, or go on with that of an earlier demo."""
    begun = RUN.exists()
    code = run_program(
        f"gantrain train --preset dcgan --data digits --run-dir {quote(RUN)} {SETTINGS}"
    )
    if begun and code == 1:  # another version may have begun it, with other settings
        print(f"To start the demo over, remove its earlier run: rm -r {show(quote(RUN))}")
    if code:
        sys.exit(code)


def run(command: str) -> None:
    """Show a command and run it; its failure is the demo's."""
    if code := run_program(command):
        sys.exit(code)


def run_program(command: str) -> int:
    """Show a command, run it and return its exit code."""
    print(f"\n$ {show(command)}", flush=True)
    return subprocess.run(arguments(command), check=False).returncode


def arguments(command: str) -> list[str]:
    """The words of a command, its program taken from beside this interpreter."""
    program, *rest = shlex.split(command)
    return [str(Path(sys.executable).with_name(program)), *rest]


def quote(path: Path) -> str:
    """A path as one word of a command, whatever folder this clone lies in."""
    return shlex.quote(str(path))


def show(command: str) -> str:
    """A command with paths as the reader would type them here."""
    here = str(Path.cwd()) + os.sep
    return command.replace(here, "")


def is_published() -> bool:
    """Whether the artifact is there and newer than the run's last checkpoint."""
    artifacts = list(MODELS.glob("digits/*/model.onnx"))
    trained = max(path.stat().st_mtime for path in RUN.glob("checkpoints/*.pt"))
    return any(path.stat().st_mtime > trained for path in artifacts)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(port: int, metrics_port: int) -> Iterator[None]:
    """A server on these ports, from ready to drained."""
    command = (
        f"ganserve serve --models {quote(MODELS)} --port {port} --metrics-port {metrics_port} "
        "--drain-seconds 0"
    )
    print(f"\n$ {show(command)} &", flush=True)
    server = subprocess.Popen(arguments(command))
    try:
        wait_until_ready(server, f"http://localhost:{metrics_port}/readyz")
        yield
    finally:
        server.terminate()
        code = server.wait(timeout=60)
    print(f"the server answered everything it had accepted and ended with exit code {code}")
    if code:
        sys.exit(1)


def wait_until_ready(server: "subprocess.Popen[bytes]", url: str) -> None:
    """Return once the server is ready; end the demo if it ends first."""
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    sys.exit("the server did not become ready; its last lines above say why")


def report_latency(url: str) -> None:
    """Print mean times of the stages as the server's own histograms have them."""
    with urlopen(url, timeout=5) as reply:
        families = {
            family.name: family for family in text_string_to_metric_families(reply.read().decode())
        }
    print(f"\nLatency from {url}:")
    for stage, name in STAGES.items():
        samples = families[name].samples
        seconds = sum(sample.value for sample in samples if sample.name == f"{name}_sum")
        count = sum(sample.value for sample in samples if sample.name == f"{name}_count")
        print(
            f"  {stage:20} {1000 * seconds / max(count, 1):7.2f} ms on average, {count:.0f} times"
        )
    handled = families["grpc_server_handling_seconds"].samples
    for sample in handled:
        if sample.name.endswith("_sum") and sample.labels["grpc_method"] == "GenerateImages":
            print(f"  {'the whole call':20} {1000 * sample.value:7.2f} ms for 64 images")


if __name__ == "__main__":
    main()
