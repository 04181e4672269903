"""Hides the processes of the rolling update: servers, the load balancer, and clients under load."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from serving_processes import free_port, wait_for_port, wait_until_serving

ROOT = Path(__file__).resolve().parents[1]
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
ClientKind = Literal["threads", "asyncio", "node"]
_METHOD = {"grpc_service": "ganserve.v1.ImageGenerationService", "grpc_method": "GenerateImages"}


@dataclass
class Totals:
    """Calls of GenerateImages that servers began, and ended, by status."""

    started: int = 0
    handled: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Totals") -> None:
        """Take in another server's."""
        self.started += other.started
        self.handled += other.handled


class Server:
    """One server on ports that stay the same, over several processes."""

    def __init__(self, models: Path, log: Path, drain_seconds: float, poll_seconds: float) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.ended = Totals()  # of the processes that were stopped
        self.exit_codes: Counter[int] = Counter()
        self._log, self._page = log, log.with_suffix(".metrics")
        self._command = [
            *(sys.executable, str(ROOT / "benchmarks" / "rolling_server.py"), str(self._page)),
            *("serve", "--models", str(models)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--metrics-port", str(self.metrics_port), "--device", "cpu", "--instances", "1"),
            *("--drain-seconds", str(drain_seconds), "--poll-seconds", str(poll_seconds)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start a process; return once it serves."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stderr=log)
        wait_for_port(self.port)
        wait_until_serving(self.address)

    def stop(self) -> None:
        """Drain the process to its end, and take in what it counted."""
        process = self._process
        if process is None:
            return
        self._process = None
        process.send_signal(signal.SIGTERM)
        self.exit_codes[process.wait()] += 1
        for sample in read_samples(self._page.read_text()):
            if _METHOD.items() <= sample.labels.items():
                if sample.name == "grpc_server_started_total":
                    self.ended.started += int(sample.value)
                if sample.name == "grpc_server_handled_total":
                    self.ended.handled[sample.labels["grpc_code"]] += int(sample.value)

    def kill(self) -> None:
        """End the process with SIGKILL, without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def versions_served(self) -> set[int]:
        """The versions that the process serves now."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as reply:
            page = reply.read().decode()
        return {
            int(sample.labels["version"])
            for sample in read_samples(page)
            if sample.name == "ganserve_model_info"
        }


def read_samples(page: str) -> Iterator[Sample]:
    """What a page of metrics holds."""
    for family in text_string_to_metric_families(page):
        yield from family.samples


@contextlib.contextmanager
def serving(servers: list[Server]) -> Iterator[None]:
    """All servers, from before the block to after it."""
    with ThreadPoolExecutor(len(servers)) as threads:
        try:
            list(threads.map(Server.start, servers))
            yield
        finally:
            list(threads.map(Server.stop, servers))


@contextlib.contextmanager
def balancing(servers: list[Server]) -> Iterator[str]:
    """HAProxy with the configuration of the examples before three servers; yields its address."""
    assert HAPROXY is not None
    port = free_port()
    variables = {"BIND": "127.0.0.1", "PORT": str(port)}
    for number, server in enumerate(servers, 1):
        variables |= {
            f"PORT_{number}": str(server.port),
            f"METRICS_{number}": str(server.metrics_port),
        }
    command = [HAPROXY, "-db", "-q", "-f", str(ROOT / "examples" / "haproxy.cfg")]
    process = subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Row:
    """One call, as its client saw it; `begin` is monotonic, in seconds."""

    begin: float
    seconds: float
    code: str
    verdict: str  # right, wrong, or none where there was no reply
    details: str
    client: str


class LoadClient:
    """A process that calls until it is told to stop."""

    def __init__(self, name: str, command: list[str], rows: Path, modules: Path | None) -> None:
        self.calls = 0
        self._name = name
        self._rows = rows
        environment = {} if modules is None else {"NODE_PATH": str(modules)}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.calls = int(line)

    def check(self) -> None:
        """Complain if the process has ended: it should call until it is told to stop."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the client {self._name} ended by itself")

    def stop(self) -> list[Row]:
        """Let it end its calls; what became of all of them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        code = self._process.wait(timeout=120)
        self._reader.join()
        self._process.stdout.close()
        if code != 0:
            raise RuntimeError(f"the client {self._name} failed")
        rows = [line.split(",", 4) for line in self._rows.read_text().splitlines()]
        return [
            Row(float(begin), float(seconds), code, verdict, details, self._name)
            for begin, seconds, code, verdict, details in rows
        ]


def start_client(
    kind: ClientKind,
    address: str,
    folder: Path,
    *,
    name: str,
    concurrency: int,
    retries: bool,
    round_robin: bool,
    node_modules: Path | None,
) -> LoadClient:
    """Start one; `folder` has `expected.json` and gets its rows."""
    rows = folder / f"{name}.rows"
    arguments = [address, str(folder / "expected.json"), str(rows), str(concurrency)]
    arguments += [str(int(retries)), str(int(round_robin))]
    if kind == "node":
        program = ["node", str(ROOT / "benchmarks" / "rolling_client.js")]
    else:
        program = [sys.executable, str(ROOT / "benchmarks" / "rolling_client.py"), kind]
    return LoadClient(name, [*program, *arguments], rows, node_modules)


def install_node_modules(folder: Path) -> Path | str:
    """Install the packages of the example in JavaScript; the reason where that cannot be done."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "examples" / "node" / "package.json", folder)
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        [*command, "--fetch-retries=1"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return f"npm install failed: {done.stderr.strip().splitlines()[-1:]}"
    return folder / "node_modules"
