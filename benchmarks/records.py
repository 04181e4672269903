"""Hides where the pages of benchmarks are kept, and what each says of code and machine."""

import datetime as dt
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
RESULTS = _FOLDER / "results"


def write_record(name: str, page: str) -> Path:
    """Keep a page under its name, the processor and the day; a second of a day has a number."""
    hardware = re.sub(r"[^a-z0-9]+", "-", _name().lower()).strip("-")
    tail = f"{hardware}_{dt.date.today()}.md"
    path, number = RESULTS / f"{name}_{tail}", 1
    while path.exists():
        number += 1
        path = RESULTS / f"{name}-{number}_{tail}"
    path.write_text(page, encoding="utf-8")
    return path


def page_head(title: str, machine: str) -> list[str]:
    """The first lines of a page about training: what, when, how to have it again, and where.

    `machine` goes on after the number of CPUs, as in "; one thread a run".
    """
    return [
        f"# {title}, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/{Path(sys.argv[0]).name} {arguments_given()}`",
        f"- commit {commit()}, torch {version('torch')}, Python {platform.python_version()}",
        f"- {processor()}, {os.cpu_count()} CPUs{machine}",
    ]


def processor() -> str:
    """The name of the processor and which it is, as far as the system tells.

    In clouds the name may be one for all of a maker's.
    """
    return " ".join([_name(), *_family_and_model()])


def cpu_information() -> str:
    """What Linux tells of the processors; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _name() -> str:
    match = re.search(r"model name\s*:\s*(.+)", cpu_information())
    return match[1].strip() if match else platform.machine()


def _family_and_model() -> list[str]:
    pattern = r"cpu family\s*:\s*(\d+)\s+model\s*:\s*(\d+)"
    match = re.search(pattern, cpu_information())
    return [f"(family {match[1]}, model {match[2]})"] if match else []


def stolen_seconds() -> float:
    """CPU time that a hypervisor has given to others since the start, of all CPUs; 0 elsewhere.

    While it is taken, threads that wait for one another wait longer, and caches are emptied.
    """
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    return int(path.read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


def commit() -> str:
    """The commit that is measured."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(
        command, cwd=_FOLDER, capture_output=True, text=True, check=True
    ).stdout.strip()


def arguments_given() -> str:
    """The command line's arguments; of paths the name alone, for the rest is the machine's."""
    return " ".join(Path(word).name if "/" in word else word for word in sys.argv[1:])
