"""Hides the processes of the endurance runs: a server that can be looked into, and its clients."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from rolling_processes import ROOT, read_samples
from serving_processes import free_port, wait_for_port, wait_until_serving

MEGABYTE = 1_000_000
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Footprint:
    """What a server holds while no call is under way."""

    resident: int  # bytes
    anonymous: int  # bytes; of the resident ones those that belong to no file
    threads: int
    python_threads: list[str]
    descriptors: int
    tasks: int
    blocks: int  # of memory that Python's objects have
    allocated: int  # bytes that the C library has handed out; Python's pools count as used


@dataclass(frozen=True)
class Books:
    """What a server counted of calls and images, once all calls have ended."""

    started: int
    handled: Counter[str]  # by status, health checks and reflection included
    answered: int  # calls of GenerateImages that ended well
    images: dict[tuple[str, str], int]  # by model and version
    pending: int
    balanced: bool  # started = handled

    def images_of(self, model: str) -> int:
        """Of all versions."""
        return sum(count for (name, _), count in self.images.items() if name == model)


class Server:
    """A running server."""

    def __init__(self, folder: Path, port: int, metrics_port: int, process: Any) -> None:  # noqa: ANN401 - Popen[bytes]
        self.address = f"127.0.0.1:{port}"
        self.id: int = process.pid
        self._answer, self._log = folder / "answer.json", folder / "server.log"
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        self._process = process
        self._asked = 0

    def look(self) -> Footprint:
        """What it holds after a collection of garbage."""
        self._asked += 1
        self._process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError):
                told = json.loads(self._answer.read_text())
                if told["answers"] >= self._asked:
                    break
            time.sleep(0.01)
        else:
            raise TimeoutError("the server does not tell what it holds")
        folder = Path(f"/proc/{self.id}")
        status = (folder / "status").read_text()

        def number(name: str) -> int:
            return int(re.findall(rf"^{name}:\s*(\d+)", status, re.MULTILINE)[0])

        return Footprint(
            number("VmRSS") * 1024,
            number("RssAnon") * 1024,
            number("Threads"),
            told["python_threads"],
            len([*(folder / "fd").iterdir()]),
            told["tasks"],
            told["blocks"],
            told["allocated"],
        )

    def log(self) -> str:
        """What it said so far."""
        return self._log.read_text()

    def books(self) -> Books:
        """What it counted; waits until every call's end is counted, within reason."""
        end = time.monotonic() + 20
        while not (books := self._read_books()).balanced or books.pending:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        return books

    def _read_books(self) -> Books:
        started, pending, answered = 0, 0, 0
        handled, images = Counter[str](), dict[tuple[str, str], int]()
        with urlopen(self._metrics, timeout=_PATIENCE_SECONDS) as reply:
            page = reply.read().decode()
        for sample in read_samples(page):
            value, labels = sample.value, sample.labels
            match sample.name:
                case "grpc_server_started_total":
                    started += int(value)
                case "grpc_server_handled_total":
                    handled[labels["grpc_code"]] += int(value)
                    if labels["grpc_code"] == "OK" and labels["grpc_method"] == "GenerateImages":
                        answered += int(value)
                case "ganserve_images_total":
                    images[labels["model"], labels["version"]] = int(value)
                case "ganserve_pending_images":
                    pending = int(value)
        balanced = started == handled.total()
        return Books(started, +handled, answered, images, pending, balanced)

    def stop(self) -> int:
        """Drain it to its end; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return int(self._process.wait(_PATIENCE_SECONDS))


@contextlib.contextmanager
def serving(models: Path, folder: Path, *flags: str, keep: str = "nothing") -> Iterator[Server]:
    """A server of these models until the end of the block; `folder` is for its log.

    `keep` is that of endurance_server.py.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, metrics_port = free_port(), free_port()
    command = [
        *(sys.executable, str(ROOT / "benchmarks" / "endurance_server.py")),
        *(str(folder / "answer.json"), keep, "serve", "--models", str(models)),
        *("--host", "127.0.0.1", "--port", str(port), "--metrics-port", str(metrics_port)),
        *("--device", "cpu", "--drain-seconds", "0", *flags),
    ]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log)
    try:
        wait_for_port(port)
        wait_until_serving(f"127.0.0.1:{port}")
        yield Server(folder, port, metrics_port, process)
    finally:
        process.kill()
        process.wait()


class Client:
    """A process that does what it is asked to, a JSON object at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def begin(self, task: str, **arguments: object) -> None:
        """Let it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task} | arguments) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for what came of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a client ended before its task")
        result: dict[str, Any] = json.loads(line)
        return result

    def do(self, task: str, **arguments: object) -> dict[str, Any]:
        """Let it do something, and wait for what came of it."""
        self.begin(task, **arguments)
        return self.end()


@contextlib.contextmanager
def calling(program: str, *arguments: object) -> Iterator[Client]:
    """A client process of the module `program` until the end of the block."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{program}.py"), *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            yield Client(process)
        finally:
            process.kill()
