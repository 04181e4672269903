"""Hides how what was found becomes a page of Markdown, and whether the bars were met."""

import datetime as dt
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from records import arguments_given, commit, processor

from ganserve.cpus import usable_cpus


@dataclass(frozen=True)
class Bar:
    """What was wanted and what was found."""

    what: str
    limit: str
    measured: str
    met: bool

    def row(self) -> str:
        """As a row of Markdown."""
        return f"| {self.what} | {self.limit} | {self.measured} | {'yes' if self.met else 'NO'} |"


@dataclass
class Findings:
    """What a part of the run found: bars, and whatever else is worth to be kept."""

    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # Markdown, a line each
    seconds: float = 0.0


def say(text: str) -> None:
    """Tell how far the run is."""
    print(f"{dt.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def equal_bar(what: str, expected: int, found: int) -> Bar:
    """A bar for two counts that must be the same."""
    return Bar(what, "exactly", f"{expected:,} = {found:,}", expected == found)


def none_bar(what: str, found: Sequence[object]) -> Bar:
    """A bar for what must not be."""
    first = f", such as {found[0]}" if found else ""
    return Bar(what, "none", f"{len(found) or 'none'}{first}", not found)


def render_page(parts: dict[str, Findings]) -> str:
    """The result as Markdown."""
    names = ("grpcio", "onnxruntime", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    took = ", ".join(f"{name} {part.seconds:,.0f} s" for name, part in parts.items())
    lines = [
        f"# Endurance of the server, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/endurance.py {arguments_given()}`",
        f"- commit {commit()}, {versions}, Python {platform.python_version()}",
        f"- {processor()}, {usable_cpus()} CPUs for servers, clients and others; took {took}",
        f"- load at the end: {os.getloadavg()[0]:.1f} runnable threads over the last minute",
        "",
        "| bar | value | measured | met |",
        "|---|---|---|---|",
        *(bar.row() for part in parts.values() for bar in part.bars),
    ]
    for name, part in parts.items():
        if part.notes:
            lines += ["", f"## {name.capitalize()}", "", *part.notes]
    return "\n".join([*lines, ""])
