"""Hides the run on swaps: a new version every second under load, and whose bytes each reply has."""

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from endurance_bars import Bar, Findings, equal_bar, none_bar, say
from endurance_models import CHECKED_SEEDS, expected_pixels, prepare_versions
from endurance_processes import Books, calling, serving

_CONCURRENCY = 16
_POLL_SECONDS = 0.1
_BEFORE_AND_AFTER_SECONDS = 2.0


def measure_swaps(arguments: argparse.Namespace, folder: Path) -> Findings:
    """Publish a version every second for so many seconds while clients call."""
    models, swaps = folder / "models", arguments.swap_seconds
    versions = prepare_versions(folder / "prepared", "kept", swaps + 1)
    (models / "kept").mkdir(parents=True)
    next(versions)(models / "kept")
    np.save(folder / "expected.npy", expected_pixels(swaps + 1))
    flags = ("--poll-seconds", str(_POLL_SECONDS), "--chunk-bytes", "384")
    with (
        serving(models, folder / "server", *flags) as server,
        calling("endurance_checker", server.address, folder / "expected.npy") as client,
    ):
        seconds = swaps + 2 * _BEFORE_AND_AFTER_SECONDS
        client.begin("check", seconds=seconds, concurrency=_CONCURRENCY)
        begin = time.monotonic() + _BEFORE_AND_AFTER_SECONDS
        for number, publish in enumerate(versions):
            time.sleep(max(0.0, begin + number - time.monotonic()))
            publish(models / "kept")
            if number % 10 == 0:
                say(f"swaps: {number} of {swaps}")
        told = client.end()
        books = server.books()
        exit_code = server.stop()
    return Findings(judge_swaps(told, books, swaps, exit_code), _notes(told))


def judge_swaps(told: dict[str, Any], books: Books, swaps: int, exit_code: int) -> list[Bar]:
    """What must hold of the replies, and of what the server counted."""
    received = Counter({version: count for version, count in told["images"].items() if count})
    counted = Counter({version: count for (_, version), count in books.images.items() if count})
    differing = sorted(
        f"version {version}: {counted[version]} counted, {received[version]} received"
        for version in counted | received
        if counted[version] != received[version]
    )
    failed = Counter(told["codes"])
    calls = failed.total()
    del failed["OK"]
    return [
        Bar(
            f"a new version every second, {swaps} times: versions that replies came from",
            "all",
            f"{len(received)} of {swaps + 1}",
            len(received) == swaps + 1,
        ),
        none_bar(f"calls that failed, of {calls:,}", [*failed.elements()]),
        none_bar("replies with bytes of another version, or of several", told["wrong"]),
        equal_bar("started = handled", books.started, books.handled.total()),
        none_bar("versions whose images counted are not those received", differing),
        equal_bar("exit code", 0, exit_code),
    ]


def _notes(told: dict[str, Any]) -> list[str]:
    calls = sum(told["codes"].values())
    images = sum(told["images"].values())
    p50, p99, longest = (1e3 * told[name] for name in ("p50", "p99", "longest"))
    return [
        f"- {calls:,} calls, {_CONCURRENCY} at a time, a third of them streams",
        f"- {images:,} images, 1 to {CHECKED_SEEDS // 2} a call: most need several batches",
        f"- latency: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.0f} ms",
    ]
