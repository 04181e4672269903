"""Hides how the images are tried: with podman, as a cluster with strict rules would run them.

gantrain trains and exports, the models become an image, which copies itself into a volume, and
ganserve serves them to a client outside: with a read-only root file system, without capabilities,
as a user who is not root, within a limit of memory.
"""

import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from images import ROOT, version

USER = 65532
MOST_ADDED_MB, MOST_START_SECONDS, MEMORY_MB, STARTS = 300, 2.0, 256, 5
MODEL_IMAGE, CONTAINER = "localhost/digits-model:1", "ganserve-images-offline"
# A minute's training would make nice digits; here any model of usual size will do.
TRAINING = (
    "--data digits --image-size 16 --filters 32 --batch-size 16 --total-images 160 --threads 1 "
    "--sample-every 160 --diagnose-every 160 --checkpoint-every 160"
)
# Podman where neither systemd nor a network of its own can be had.
PODMAN = ("podman", "--cgroup-manager=cgroupfs", "--runtime=runc")
SANDBOX = (
    *("--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"),
    *("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"),
)
# All folders in which the server may try to write a file, and does not succeed.
TRY_TO_WRITE = """
import os
for folder, _, _ in os.walk("/"):
    if not folder.startswith(("/proc", "/sys", "/dev")):
        try:
            open(folder + "/written", "w").close()
            print(folder)
        except OSError:
            pass
"""
READ_MEMORY_LIMIT = """
import pathlib
for name in ("memory.max", "memory/memory.limit_in_bytes"):
    file = pathlib.Path("/sys/fs/cgroup", name)
    if file.exists():
        print(file.read_text())
"""


@dataclass
class Findings:
    """What was measured and what was checked, in order; both are shown as they come."""

    measured: list[tuple[str, str]] = field(default_factory=list)
    checked: list[tuple[str, str, bool]] = field(default_factory=list)
    contents: list[tuple[str, float]] = field(default_factory=list)

    def measure(self, what: str, value: str) -> None:
        """Keep a measurement."""
        self.measured.append((what, value))
        print(f"  {what}: {value}", flush=True)

    def check(self, what: str, came: object, holds: bool) -> None:
        """Keep whether something holds."""
        self.checked.append((what, str(came), holds))
        print(f"  {'ok  ' if holds else 'FAIL'} {what}: {came}", flush=True)


@dataclass(frozen=True)
class Server:
    """A serving container that is ready."""

    address: str
    metrics: str
    pid: int
    start_seconds: float  # from the start of the process until it is ready
    start_cpu_seconds: float  # what it used of the CPUs until then
    whole_start_seconds: float  # from the command that makes the container


def run(*command: object) -> str:
    """Run a command and return what it prints; its failure ends the program."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def describe(kind: str, name: str) -> dict[str, Any]:
    """What podman knows of an image or a container."""
    found: list[dict[str, Any]] = json.loads(run("podman", kind, "inspect", name))
    return found[0]


def inspect_serving_image(name: str, base: str, findings: Findings) -> None:
    """Measure what the serving image adds to its base, and look for what it should not hold."""
    image = describe("image", name)
    base_bytes = describe("image", base)["Size"]
    added = (image["Size"] - base_bytes) / 1e6
    findings.measure("the stand-in base, MB", f"{base_bytes / 1e6:.0f}")
    findings.check(
        f"MB above the base, at most {MOST_ADDED_MB}", f"{added:.0f}", added <= MOST_ADDED_MB
    )
    root = Path(run("podman", "image", "mount", name))
    packages = next(root.glob("opt/venv/lib/python3*/site-packages"))
    sizes = {path.name: megabytes(path) for path in packages.iterdir()}
    sizes["bytecode of all, and of the standard library"] = megabytes(root / "opt/venv/bytecode")
    findings.contents += sorted(sizes.items(), key=lambda part: -part[1])[:15]
    unwanted = ("torch", "sympy", "pip", "setuptools", "onnx", "gantrain", "numpy/_core/tests")
    found = [part for part in unwanted if (packages / part).exists()]
    found += [path.name for path in root.glob("usr/bin/*") if path.name in {"gcc", "cc", "ld"}]
    found += [path.name for path in (root / "etc/pip.conf", root / "src") if path.exists()]
    findings.check("PyTorch, pip, compilers, tests, what built it", found or "none", not found)
    run("podman", "image", "unmount", name)
    prefix = "org.opencontainers.image."
    labels = {key.removeprefix(prefix): value for key, value in image["Labels"].items()}
    wanted = {"title", "description", "version", "revision", "source", "licenses"}
    right = wanted <= set(labels) and labels["version"] == version()
    findings.check("labels, version", labels["version"], right)


def megabytes(path: Path) -> float:
    """The bytes of a file, or of all files below a folder, in millions."""
    files = [file for file in [path, *path.rglob("*")] if not file.is_dir()]
    return sum(file.lstat().st_size for file in files) / 1e6


def train_and_publish(image: str, copier: str, folder: Path, findings: Findings) -> Path:
    """Train in a container, make the models an image, let it copy itself: the filled volume."""
    runs, exported, volume = (folder / name for name in ("runs", "exported", "volume"))
    for path in (runs, exported, volume):
        path.mkdir()
        os.chown(path, USER, USER)
    volumes = (f"--volume={runs}:/runs", f"--volume={exported}:/models")
    command = (*PODMAN, "run", "--rm", *SANDBOX, *volumes, image)
    start = time.monotonic()
    run(*command, "train", "--run-dir=/runs/digits", *TRAINING.split())
    run(*command, "export", "/runs/digits", "--repository=/models", "--name=digits")
    artifact = exported / "digits/1/model.onnx"
    seconds = time.monotonic() - start
    findings.check("gantrain trains and exports, seconds", f"{seconds:.0f}", artifact.exists())
    file = ROOT / "deploy" / "model.Dockerfile"
    run(
        *("buildah", "build", "--isolation=chroot", "--format=docker", "--pull-never"),
        *(f"--file={file}", f"--tag={MODEL_IMAGE}", "--build-arg=VERSION=1"),
        *(f"--build-arg=COPIER_IMAGE={copier}", exported),
    )
    copy = (*PODMAN, "run", "--rm", *SANDBOX, f"--volume={volume}:/models", MODEL_IMAGE)
    said = [run(*copy), run(*copy)]
    findings.check("an init container copies the models, once", said[0], said[1] == "")
    same = (volume / "digits/1/model.onnx").read_bytes() == artifact.read_bytes()
    left = sorted(str(path.relative_to(volume)) for path in volume.rglob("*"))
    findings.check("what it copied", left[-1], same and len(left) == 3)
    return volume


def serve_and_check(image: str, models: Path, folder: Path, findings: Findings) -> None:
    """Start the server several times for its time, then call it and look at how it is confined."""
    starts = []
    for _ in range(STARTS):
        with serving(image, models) as server:
            starts.append(server)
    clock = [one.start_seconds for one in starts]
    findings.check(
        f"seconds by the clock from process start to ready, at most {MOST_START_SECONDS:g}",
        spread(clock),
        statistics.median(clock) <= MOST_START_SECONDS,
    )
    # On a busy machine the clock tells more of the other jobs.
    cpu = spread([one.start_cpu_seconds for one in starts])
    findings.measure("seconds of CPU from process start to ready", cpu)
    whole = spread([one.whole_start_seconds for one in starts])
    findings.measure("by the clock with podman's own time, seconds", whole)
    with serving(image, models, "--env=PYTHONPYCACHEPREFIX=/nowhere") as server:
        bare = f"{server.start_cpu_seconds:.2f} of CPU, {server.start_seconds:.2f} by the clock"
    findings.measure("without any bytecode, seconds", bare)
    with serving(image, models) as server:
        check_calls(server, folder, findings)
        check_confinement(server, findings)
        check_drain(server, folder, findings)


def spread(values: list[float]) -> str:
    """The median, and the lowest and the highest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


@contextlib.contextmanager
def serving(image: str, models: Path, *options: str) -> Iterator[Server]:
    """A serving container from ready to removed, on free ports; /tmp is not writable either."""
    port, metrics_port = free_port(), free_port()
    command = [*PODMAN, "run", "--detach", f"--name={CONTAINER}", *SANDBOX]
    command += [
        "--read-only-tmpfs=false",
        f"--memory={MEMORY_MB}m",
        f"--volume={models}:/models:ro",
    ]
    command += [f"--env=GANSERVE_PORT={port}", f"--env=GANSERVE_METRICS_PORT={metrics_port}"]
    start = time.monotonic()
    run(*command, *options, image)
    try:
        metrics = f"http://127.0.0.1:{metrics_port}"
        wait_until_ready(metrics)
        ready, ready_since_boot = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
        pid = describe("container", CONTAINER)["State"]["Pid"]
        started, cpu = process_times(pid)
        seconds = ready_since_boot - started
        yield Server(f"127.0.0.1:{port}", metrics, pid, seconds, cpu, ready - start)
    finally:
        subprocess.run([*PODMAN, "rm", "--force", "--time=0", CONTAINER], capture_output=True)


def wait_until_ready(metrics: str) -> None:
    """Return as soon as the server says that it serves."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urlopen(f"{metrics}/readyz", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.01)
    log = subprocess.run(["podman", "logs", CONTAINER], capture_output=True, text=True)
    sys.exit(f"the container did not become ready:\n{log.stdout}{log.stderr}")


def process_times(pid: int) -> tuple[float, float]:
    """When a process was started, in seconds since the machine was, and its seconds of CPU."""
    # The name, second, may hold spaces. After it: user and system time 12th and 13th, start 20th.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[19]) / ticks, (int(fields[11]) + int(fields[12])) / ticks


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def generate(server: Server, file: Path) -> int:
    """Ask from outside the container for 64 images: the exit code."""
    command = [str(Path(sys.executable).with_name("ganserve")), "generate"]
    command += [f"--address={server.address}", "--seeds=0-63", f"--out={file}"]
    return subprocess.run(command, capture_output=True).returncode


def check_calls(server: Server, folder: Path, findings: Findings) -> None:
    """Calls from outside are answered, the same each time."""
    codes = [generate(server, folder / f"{name}.png") for name in ("first", "second")]
    same = (folder / "first.png").read_bytes() == (folder / "second.png").read_bytes()
    found = f"{(folder / 'first.png').stat().st_size} bytes of PNG twice"
    findings.check("64 images for a client outside", found, codes == [0, 0] and same)


def check_confinement(server: Server, findings: Findings) -> None:
    """No root, no capabilities, nothing to write to, a limit of memory."""
    text = Path(f"/proc/{server.pid}/status").read_text()
    status = dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))
    users = set(map(int, [*status["Uid"].split(), *status["Gid"].split()]))
    findings.check("user and group", users, users == {USER})
    capabilities = {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}
    findings.check("capabilities", capabilities, capabilities == {0})
    findings.check("no new privileges", status["NoNewPrivs"], status["NoNewPrivs"] == "1")
    execute = (*PODMAN, "exec", CONTAINER, "python", "-c")
    written = run(*execute, TRY_TO_WRITE).split()
    findings.check(
        "folders that can be written to, of all but /dev, /proc, /sys",
        written or "none",
        not written,
    )
    limit = run(*execute, READ_MEMORY_LIMIT)
    findings.check("limit of memory, bytes", limit, limit == str(MEMORY_MB * 2**20))
    peak = int(status["VmHWM"].split()[0]) / 1024
    findings.measure("memory of the server at its peak, MiB", f"{peak:.0f}")
    threads = status["Threads"]
    findings.measure("its threads", threads)


def check_drain(server: Server, folder: Path, findings: Findings) -> None:
    """SIGTERM: not healthy at once, calls still answered, then exit code 0."""
    healthcheck = [*PODMAN, "healthcheck", "run", CONTAINER]
    start = time.monotonic()
    code = subprocess.run(healthcheck, capture_output=True).returncode
    seconds = time.monotonic() - start
    findings.check("the health check while it serves", f"exit code {code}", code == 0)
    findings.measure("the health check takes, with podman's own time", f"{seconds:.2f} s")
    run(*PODMAN, "kill", "--signal=TERM", CONTAINER)
    answered = generate(server, folder / "draining.png")
    findings.check("a call while it drains", f"exit code {answered}", answered == 0)
    code = subprocess.run(healthcheck, capture_output=True).returncode
    findings.check("the health check while it drains", f"exit code {code}", code == 1)
    code = int(run(*PODMAN, "wait", CONTAINER))
    findings.check("exit code after SIGTERM", code, code == 0)
