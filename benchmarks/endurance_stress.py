"""Hides the stress: everything at once for as long as is asked, and what must hold at the end."""

import argparse
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from endurance_bars import Bar, Findings, equal_bar, none_bar, say
from endurance_models import expected_pixels, prepare_versions, tiny
from endurance_processes import MEGABYTE, Books, Footprint, calling, serving

_CONCURRENCY = 24
_WARM_UP_SECONDS = 5.0
_CHANGES_A_VICTIM = 3
_MOST_SWAPS = 150
_FLAGS = ("--poll-seconds", "0.1", "--chunk-bytes", "65536")
# Pools of threads (to encode, to look at files, gRPC's own) fill up as they are needed.
_MORE_THREADS, _MORE_DESCRIPTORS = 6, 2
_MORE_TASKS = 2  # there are one or two fewer while the repository is looked through
_BROKEN_OFF, _ANSWERED = {"CANCELLED", "DEADLINE_EXCEEDED"}, {"OK", "RESOURCE_EXHAUSTED"}
# What may become of each kind of call; of all others nothing but these two.
_ALLOWED = {
    "cancelled": _BROKEN_OFF | _ANSWERED,
    "late": _BROKEN_OFF | _ANSWERED,
    "left_stream": _BROKEN_OFF | _ANSWERED,
    "wrong": {"INVALID_ARGUMENT", "NOT_FOUND"},
    "unknown_method": {"UNIMPLEMENTED"},
}


def measure_stress(arguments: argparse.Namespace, folder: Path) -> Findings:
    """Do everything at once for so many minutes, after a short while to warm up."""
    models, expected, seconds = folder / "models", folder / "expected.npy", arguments.minutes * 60
    # The images of so many versions are still counted when they have gone.
    pause = max(1.0, seconds / _MOST_SWAPS)
    swaps = int((seconds + _WARM_UP_SECONDS) / pause) + 4
    disturbances = _disturbances(models, folder / "prepared", swaps)
    next(disturbances)
    np.save(expected, expected_pixels(swaps))
    codes, images, wrong = Counter[str](), Counter[str](), list[str]()
    held: list[Footprint] = []
    with serving(models, folder / "server", *_FLAGS) as server:
        for duration in (_WARM_UP_SECONDS, seconds):
            # A process each time: what the server holds is looked at without any connection.
            with calling("endurance_stress_client", server.address, expected) as client:
                client.begin("stress", seconds=duration, concurrency=_CONCURRENCY)
                _disturb(disturbances, pause, duration, server.address, expected)
                told = client.end()
            codes.update(told["codes"])
            images.update(told["images"])
            wrong += told["wrong"]
            books = server.books()
            held.append(server.look())
            say(f"stress: {codes.total():,} calls, {held[-1]}")
        exit_code, log = server.stop(), server.log()
    for fault in re.findall(r"(?:.*\n){0,3}.*(?:Traceback|internal error)(?:.*\n){0,40}", log):
        say(f"stress: in the log:\n{fault}")
    bars = judge_calls(codes, wrong, log)
    bars += judge_server(books, images, held[0], held[1])
    bars.append(equal_bar("stress: exit code", 0, exit_code))
    return Findings(bars, _notes(codes, books, held, pause))


def judge_calls(codes: Counter[str], wrong: list[str], log: str) -> list[Bar]:
    """What must hold of the calls, as the clients saw them; `codes` by kind and status."""
    unexpected = []
    for name in codes:
        kind, code = name.split()
        if code not in _ALLOWED.get(kind, _ANSWERED):
            unexpected.append(f"{name}, {codes[name]} times")
    return [
        none_bar(f"stress: of {codes.total():,} calls, other statuses than its kind's", unexpected),
        none_bar("stress: replies with bytes of another version, or of several", wrong),
        none_bar("stress: faults in the log", re.findall("Traceback|internal error", log)),
    ]


def judge_server(
    books: Books, images: Counter[str], before: Footprint, after: Footprint
) -> list[Bar]:
    """What must hold of the server once everybody has left; `images` are those received."""
    bad = sorted({"UNKNOWN", "INTERNAL"} & books.handled.keys())
    return [
        equal_bar("stress: started = handled", books.started, books.handled.total()),
        *(
            equal_bar(f"stress: images counted = received, {model}", books.images_of(model), count)
            for model, count in sorted(images.items())
        ),
        none_bar("stress: UNKNOWN or INTERNAL at the server", bad),
        equal_bar("stress: images pending", 0, books.pending),
        _most_bar("tasks of the event loop", before.tasks, after.tasks, _MORE_TASKS),
        _most_bar("threads", before.threads, after.threads, _MORE_THREADS),
        _most_bar("descriptors", before.descriptors, after.descriptors, _MORE_DESCRIPTORS),
    ]


def _most_bar(what: str, before: int, after: int, more: int) -> Bar:
    limit = f"at most {more} more"
    return Bar(
        f"stress: {what}, before and after", limit, f"{before}, {after}", after <= before + more
    )


def _disturbances(models: Path, prepared: Path, swaps: int) -> Iterator[None]:
    """Write the models; then one change of them each time."""
    versions = prepare_versions(prepared, "kept", swaps)
    (models / "kept").mkdir(parents=True)
    next(versions)(models / "kept")
    tiny.write_artifact(models, "left")
    tiny.write_artifact(models, "wide", height=64, width=64)
    yield
    for number, publish in enumerate(versions):
        match number % 4:
            case 1:
                tiny.publish(models, "left", 2 + number, b"rubbish")
            case 2:
                tiny.write_artifact(models, "passing")
            case 3:
                shutil.rmtree(models / "passing")
        publish(models / "kept")
        yield


def _disturb(
    disturbances: Iterator[None], pause: float, seconds: float, address: str, expected: Path
) -> None:
    """A change of the models after each pause; every few of them a client is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with calling("endurance_stress_client", address, expected) as victim:
            victim.begin("vanish", seconds=seconds, concurrency=4)
            for _ in range(_CHANGES_A_VICTIM):
                if (left := end - time.monotonic()) > 0:
                    next(disturbances)
                    time.sleep(min(pause, left))


def _notes(codes: Counter[str], books: Books, held: list[Footprint], pause: float) -> list[str]:
    often, victims = f"every {pause:.1f} s", f"every {_CHANGES_A_VICTIM * pause:.1f} s"
    grown = (held[1].anonymous - held[0].anonymous) / MEGABYTE
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, count in sorted(codes.items()):
        kind, code = name.split()
        kinds[kind].append(f"{count:,} {code}")
    return [
        f"- {_CONCURRENCY} calls at a time; a client is killed {victims}",
        f"- a new version {often}; every four a bad one, and a model that comes and goes",
        f"- at the server: {', '.join(f'{n:,} {code}' for code, n in books.handled.most_common())}",
        f"- RssAnon {grown:+.1f} MB since the end of the warm-up of {_WARM_UP_SECONDS:g} s",
        "",
        "| kind of call | what became of it |",
        "|---|---|",
        *(f"| {kind.replace('_', ' ')} | {', '.join(ends)} |" for kind, ends in kinds.items()),
    ]
