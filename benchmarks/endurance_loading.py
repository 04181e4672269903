"""Hides the run on loading: small calls while large models come and go, and what stays of them."""

import argparse
import os
import re
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from endurance_bars import Bar, Findings, none_bar, say
from endurance_models import tiny
from endurance_processes import MEGABYTE, Footprint, Server, calling, serving
from serving_models import write_models

_LARGEST_RATIO = 2.0
_MOST_LEFT = 10 * MEGABYTE
_QUIET_SECONDS = 1.5
_SETTLING_SECONDS = 0.3  # a version's memory goes just after the log says that it is retired
_CONTROL_ROUNDS = 2
_STALL_SECONDS = 0.3  # of the control that stalls, once a round
_POOLED_ROUNDS = 5  # whose calls give one p99: a round alone has too few
_PATIENCE_SECONDS = 120.0

Window = tuple[float, float]  # monotonic seconds
Times = list[tuple[float, float]]  # when a call was due, seconds until it had ended


class LargeModels:
    """Models that are put into the repository and taken out of it, all at once."""

    def __init__(self, folder: Path, models: Path, count: int) -> None:
        write_models(folder)
        self._file = folder / "dcgan64" / "1" / "model.onnx"
        self._models, self._count = models, count

    def load(self, server: Server, version: int) -> Window:
        """Publish them, by links, for writing them is not loading; return once all serve."""
        begin = time.monotonic()
        for number in range(self._count):
            staging = self._models / f"large-{number}" / ".staging"
            staging.mkdir(parents=True)
            (staging / "model.onnx").hardlink_to(self._file)
            staging.rename(staging.with_name(str(version)))
        self._wait(server, f"version {version} serves")
        return begin, time.monotonic()

    def unload(self, server: Server, version: int) -> Window:
        """Take them out; return once the last is gone."""
        begin = time.monotonic()
        for number in range(self._count):
            shutil.rmtree(self._models / f"large-{number}")
        self._wait(server, f"version {version} is retired")
        time.sleep(_SETTLING_SECONDS)
        return begin, time.monotonic()

    def _wait(self, server: Server, event: str) -> None:
        end = time.monotonic() + _PATIENCE_SECONDS
        while len(re.findall(rf"model large-\d+ {event}", server.log())) < self._count:
            if time.monotonic() > end:
                raise TimeoutError(f"the log does not say of all models: {event}")
            time.sleep(0.02)


@dataclass
class Watched:
    """What was done when, and what calls took meanwhile."""

    quiet: list[Window] = field(default_factory=list)
    loading: list[Window] = field(default_factory=list)
    unloading: list[Window] = field(default_factory=list)
    times: Times = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    held: list[Footprint] = field(default_factory=list)  # before, and after each round

    def percentiles(self, windows: Sequence[Window], percent: float = 99) -> list[float]:
        """Of the calls that were under way in some windows, in milliseconds; one for each pool."""
        found = []
        for first in range(0, len(windows), _POOLED_ROUNDS):
            pool = windows[first : first + _POOLED_ROUNDS]
            seconds = [
                took
                for due, took in self.times
                if any(due + took > start and due < stop for start, stop in pool)
            ]
            found.append(float(np.percentile(seconds, percent)) * 1e3)
        return found

    def left(self) -> int:
        """Bytes that the rounds after the first left behind."""
        return self.held[-1].anonymous - self.held[1].anonymous


def measure_loading(arguments: argparse.Namespace, folder: Path) -> Findings:
    """Let large models come and go beside small calls; then beside servers that leak and stall."""
    count = arguments.large_models
    sound = _watch(folder / "sound", arguments.rounds, count)
    leaking = _watch(folder / "leaking", _CONTROL_ROUNDS, count, keep="models")
    stalling = _watch(folder / "stalling", _CONTROL_ROUNDS, count, keep=f"loop:{_STALL_SECONDS}")
    large = f"{count} generators of 64x64 pixels"
    left = f"memory left by {arguments.rounds - 1} rounds of loading and unloading {large}"
    return Findings(
        [
            stall_bar(f"the loading of {large}", sound, sound.loading),
            stall_bar(f"the unloading of {large}", sound, sound.unloading),
            stall_bar(
                f"loading by a server that stalls for {_STALL_SECONDS:g} s once a round",
                stalling,
                stalling.loading,
                is_seen=True,
            ),
            none_bar(f"calls that failed, of {len(sound.times):,}", sound.failed),
            Bar(left, "at most 10 MB", _megabytes(sound.left()), sound.left() <= _MOST_LEFT),
            Bar(
                f"the same after {_CONTROL_ROUNDS - 1} of a server that lets no model go",
                "over 10 MB",
                _megabytes(leaking.left()),
                leaking.left() > _MOST_LEFT,
            ),
        ],
        _notes({"sound": sound, "letting no model go": leaking, "stalling": stalling}),
    )


def _watch(folder: Path, rounds: int, count: int, keep: str = "nothing") -> Watched:
    models, watched = folder / "models", Watched()
    tiny.write_artifact(models, "small")
    large = LargeModels(folder / "large", models, count)
    with (
        serving(models, folder / "server", "--poll-seconds", "0.1", keep=keep) as server,
        calling("endurance_pacer", server.address) as client,
    ):
        watched.held.append(server.look())
        for version in range(1, rounds + 1):
            client.do("begin")
            begin = time.monotonic()
            time.sleep(_QUIET_SECONDS)
            watched.quiet.append((begin, time.monotonic()))
            watched.loading.append(large.load(server, version))
            watched.unloading.append(large.unload(server, version))
            told: dict[str, Any] = client.do("end")
            watched.times += told["times"]
            watched.failed += told["failed"]
            watched.held.append(server.look())
            say(
                f"loading, keeping {keep}: round {version} of {rounds}, "
                f"{_megabytes(watched.held[-1].anonymous)}"
            )
    return watched


def stall_bar(what: str, watched: Watched, windows: Sequence[Window], is_seen: bool = False) -> Bar:
    """A bar for the median of p99s, over that of the quiet times between.

    `is_seen`: of a server that does stall, so the ratio must be beyond the limit.
    """
    before = statistics.median(watched.percentiles(watched.quiet))
    meanwhile = statistics.median(watched.percentiles(windows))
    longest = max(watched.percentiles(windows, 100))
    ratio = meanwhile / before
    return Bar(
        f"p99 of small calls during {what}, over that before",
        f"{'over' if is_seen else 'at most'} {_LARGEST_RATIO:g}",
        f"{ratio:.2f} ({before:.1f} to {meanwhile:.1f} ms; the longest {longest:.1f} ms)",
        (ratio > _LARGEST_RATIO) is is_seen,
    )


def _notes(servers: dict[str, Watched]) -> list[str]:
    lines = [
        f"- load at the end: {os.getloadavg()[0]:.1f} runnable threads over the last minute",
        "- latencies are from the time when a call was due until its end",
        f"- p99s are of {_POOLED_ROUNDS} rounds' calls each; the bars' are medians of these",
        "",
        "| server | while | seconds in all | p99s, ms | longest, ms |",
        "|---|---|---|---|---|",
    ]
    for server, watched in servers.items():
        for name, windows in (
            ("quiet", watched.quiet),
            ("loading", watched.loading),
            ("unloading", watched.unloading),
        ):
            seconds = sum(end - begin for begin, end in windows)
            p99s, longest = (
                ", ".join(f"{found:.1f}" for found in watched.percentiles(windows, percent))
                for percent in (99, 100)
            )
            lines.append(f"| {server} | {name} | {seconds:.1f} | {p99s} | {longest} |")
    for name, watched in servers.items():
        held = ", ".join(f"{one.anonymous / MEGABYTE:.1f}" for one in watched.held)
        lines += ["", f"RssAnon in MB, {name}, before and after each round: {held}"]
    return lines


def _megabytes(count: int) -> str:
    return f"{count / MEGABYTE:.1f} MB"
