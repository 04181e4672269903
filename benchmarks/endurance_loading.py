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
_POOLED_ROUNDS = 5  # whose calls give one p99: a round alone has too few
_PATIENCE_SECONDS = 120.0

Window = tuple[float, float]  # monotonic seconds
Times = list[tuple[float, float]]  # begin of a call, its seconds


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

    def p99s(self, windows: Sequence[Window]) -> list[float]:
        """Of the calls that were under way in some windows, in milliseconds; one for each pool."""
        found = []
        for first in range(0, len(windows), _POOLED_ROUNDS):
            pool = windows[first : first + _POOLED_ROUNDS]
            seconds = [
                took
                for begin, took in self.times
                if any(begin + took > start and begin < stop for start, stop in pool)
            ]
            found.append(float(np.percentile(seconds, 99)) * 1e3)
        return found

    def left(self) -> int:
        """Bytes that the rounds after the first left behind."""
        return self.held[-1].anonymous - self.held[1].anonymous


def measure_loading(arguments: argparse.Namespace, folder: Path) -> Findings:
    """Let large models come and go beside small calls; then once more with a server that leaks."""
    sound = _watch(folder / "sound", arguments.rounds, arguments.large_models)
    leaking = _watch(folder / "leaking", _CONTROL_ROUNDS, arguments.large_models, keep="models")
    large = f"{arguments.large_models} generators of 64x64 pixels"
    left = f"memory left by {arguments.rounds - 1} rounds of loading and unloading {large}"
    return Findings(
        [
            stall_bar("loading", large, sound.p99s(sound.quiet), sound.p99s(sound.loading)),
            stall_bar("unloading", large, sound.p99s(sound.quiet), sound.p99s(sound.unloading)),
            none_bar(f"calls that failed, of {len(sound.times):,}", sound.failed),
            Bar(left, "at most 10 MB", _megabytes(sound.left()), sound.left() <= _MOST_LEFT),
            Bar(
                f"the same after {_CONTROL_ROUNDS - 1} of a server that lets no model go",
                "over 10 MB",
                _megabytes(leaking.left()),
                leaking.left() > _MOST_LEFT,
            ),
        ],
        _notes(sound, leaking),
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


def stall_bar(what: str, large: str, before: list[float], meanwhile: list[float]) -> Bar:
    """A bar for the median of p99s, over that of the quiet times between."""
    ratio = statistics.median(meanwhile) / statistics.median(before)
    return Bar(
        f"p99 of small calls during the {what} of {large}, over that before",
        f"at most {_LARGEST_RATIO:g}",
        f"{ratio:.2f} ({statistics.median(before):.1f} to {statistics.median(meanwhile):.1f} ms)",
        ratio <= _LARGEST_RATIO,
    )


def _notes(sound: Watched, leaking: Watched) -> list[str]:
    lines = [
        f"- load at the end: {os.getloadavg()[0]:.1f} runnable threads over the last minute",
        f"- p99s are of {_POOLED_ROUNDS} rounds' calls each; the bars' are medians of these",
        "",
        "| while | seconds in all | p99s, ms |",
        "|---|---|---|",
    ]
    for name, windows in (
        ("quiet", sound.quiet),
        ("loading", sound.loading),
        ("unloading", sound.unloading),
    ):
        seconds = sum(end - begin for begin, end in windows)
        p99s = ", ".join(f"{p99:.1f}" for p99 in sound.p99s(windows))
        lines.append(f"| {name} | {seconds:.1f} | {p99s} |")
    for name, watched in (("sound", sound), ("letting no model go", leaking)):
        held = ", ".join(f"{one.anonymous / MEGABYTE:.1f}" for one in watched.held)
        lines += ["", f"RssAnon in MB, {name}, before and after each round: {held}"]
    return lines


def _megabytes(count: int) -> str:
    return f"{count / MEGABYTE:.1f} MB"
