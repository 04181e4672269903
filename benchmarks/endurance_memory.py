"""Hides the run on memory: a great many calls, some of them broken off, and what stays of them."""

import argparse
from collections import Counter
from pathlib import Path

from endurance_bars import Bar, Findings, equal_bar, none_bar, say
from endurance_client import LEFT_IMAGES
from endurance_models import tiny
from endurance_processes import MEGABYTE, Books, Footprint, calling, serving

_MOST_GROWTH = 10 * MEGABYTE
_LOOKS = 20
_CONCURRENCY = 32
# An image a reply, so that a stream can be left in its midst; a queue that is never full.
_FLAGS = (
    *("--chunk-bytes", "48", "--queue-size", "100000"),
    *("--instances", "1", "--threads", "1"),
)
_EXPECTED = {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "NOT_FOUND"}


def measure_memory(arguments: argparse.Namespace, folder: Path) -> Findings:
    """Call as often as asked for, then once more with a server that leaks."""
    models = folder / "models"
    for name in ("kept", "left"):
        tiny.write_artifact(models, name)
    findings = Findings()
    calls, fewer = arguments.calls, max(1, int(arguments.calls * arguments.control_share))
    growth = _grow(findings, models, folder, arguments.warm_up, calls)
    findings.bars.insert(0, growth_bar(growth, calls))
    leak = Findings()
    keep = f"calls:{arguments.leak_bytes}"
    grown = _grow(leak, models, folder, min(arguments.warm_up, fewer // 4), fewer, keep=keep)
    control = growth_bar(grown, fewer)
    findings.bars.insert(
        1,
        Bar(
            f"the same after {fewer:,} calls of a server that keeps {arguments.leak_bytes} bytes "
            "of each",
            "over 10 MB",
            control.measured,
            not control.met,
        ),
    )
    findings.notes += ["", f"The server that keeps {arguments.leak_bytes} bytes a call:", ""]
    findings.notes += leak.notes
    return findings


def _grow(
    findings: Findings, models: Path, folder: Path, warm_up: int, calls: int, keep: str = "nothing"
) -> int:
    """The growth in bytes over so many calls after the warm-up; adds what else was found."""
    codes, images, answered, seconds = Counter[str](), Counter[str](), 0, 0.0
    looks: list[tuple[int, Footprint]] = []
    with (
        serving(models, folder / keep.replace(":", "-"), *_FLAGS, keep=keep) as server,
        calling("endurance_client", server.address) as client,
    ):
        for number in range(_LOOKS + 1):
            share = warm_up if number == 0 else calls * number // _LOOKS - looks[-1][0]
            told = client.do("call", calls=share, concurrency=_CONCURRENCY)
            codes.update(told["codes"])
            images.update(told["images"])
            answered += told["answered"]
            seconds += told["seconds"]
            books = server.books()
            looks.append((0 if number == 0 else looks[-1][0] + share, server.look()))
            done, held = looks[-1]
            say(
                f"memory, keeping {keep}: {done:,} calls after the warm-up, "
                f"{held.anonymous / MEGABYTE:.2f} MB, malloc {held.allocated / MEGABYTE:.2f} MB, "
                f"{share / told['seconds']:.0f} calls a second"
            )
        exit_code = server.stop()
    findings.bars += judge_memory(codes, images, answered, books, exit_code)
    findings.notes += [
        f"- {warm_up:,} calls to warm up, then {calls:,}, {_CONCURRENCY} at a time",
        f"- {(warm_up + calls) / seconds:,.0f} calls a second",
        f"- at the client: {_show(codes)}",
        f"- at the server: {_show(books.handled)}",
        "",
        "| calls | RssAnon, MB | RSS, MB | malloc, MB | blocks | tasks | threads | descriptors |",
        "|---|---|---|---|---|---|---|---|",
        *(_look_row(*look) for look in looks),
    ]
    return looks[-1][1].anonymous - looks[0][1].anonymous


def judge_memory(
    codes: Counter[str], images: Counter[str], answered: int, books: Books, exit_code: int
) -> list[Bar]:
    """Reckon the calls and images of the client against those of the server."""
    # What the server answered before it learned that the caller had left.
    late = books.answered - answered
    unsent = images["left"] - books.images_of("left")
    return [
        equal_bar("started = handled", books.started, books.handled.total()),
        equal_bar(
            f"images counted = images received, and {LEFT_IMAGES} for each of {late:,} answers "
            "that crossed with a cancel or a deadline",
            books.images_of("kept"),
            images["kept"] + LEFT_IMAGES * late,
        ),
        Bar(
            "images of streams that were broken off: counted, received",
            "no fewer",
            f"{books.images_of('left'):,}, {images['left']:,}",
            unsent <= 0,
        ),
        none_bar(
            "statuses other than those asked for", sorted({*books.handled, *codes} - _EXPECTED)
        ),
        equal_bar("images pending at the end", 0, books.pending),
        equal_bar("exit code", 0, exit_code),
    ]


def growth_bar(growth: int, calls: int) -> Bar:
    """A bar for the bytes that so many calls left behind."""
    return Bar(
        f"growth of memory over {calls:,} calls",
        "at most 10 MB",
        f"{growth / MEGABYTE:.2f} MB, {growth / calls:.1f} bytes a call",
        growth <= _MOST_GROWTH,
    )


def _look_row(calls: int, held: Footprint) -> str:
    return (
        f"| {calls:,} | {held.anonymous / MEGABYTE:.2f} | {held.resident / MEGABYTE:.2f} | "
        f"{held.allocated / MEGABYTE:.2f} | {held.blocks:,} | {held.tasks} | {held.threads} | "
        f"{held.descriptors} |"
    )


def _show(codes: Counter[str]) -> str:
    total = codes.total()
    return ", ".join(f"{n:,} {code} ({n / total:.1%})" for code, n in codes.most_common())
