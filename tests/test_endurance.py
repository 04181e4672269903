"""The server lasts: the benchmark made small, and each of its bars can be missed."""

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ganserve.v1 import image_generation_pb2 as pb

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def run(tmp_path, *flags) -> list[dict[str, Any]]:
    """The bars of a short run, all of which are met."""
    path = tmp_path / "bars.json"
    command = [sys.executable, ROOT / "benchmarks/endurance.py", "--json", path, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (bars,) = json.loads(path.read_text()).values()
    return bars


def test_calls_leave_nothing_behind_and_a_leak_would_be_seen(tmp_path):
    flags = ("--calls", "2000", "--warm-up", "800", "--control-share", "0.5")
    growth, leak, *_ = run(tmp_path, "--parts", "memory", *flags, "--leak-bytes", "20000")
    assert "growth" in growth["what"]
    assert leak["limit"] == "over 10 MB"
    assert float(leak["measured"].split()[0]) > 15


def test_a_new_version_every_second_fails_no_call(tmp_path):
    bars = run(tmp_path, "--parts", "swaps", "--swap-seconds", "4")
    assert bars[0]["measured"] == "5 of 5"


def test_all_kinds_of_calls_and_disturbances_at_once(tmp_path):
    bars = run(tmp_path, "--parts", "stress", "--minutes", "0.15")
    assert {bar["what"] for bar in bars} >= {
        "stress: started = handled",
        "stress: images counted = received, kept",
        "stress: tasks of the event loop, before and after",
    }


def missed(bars) -> list[str]:
    return [bar.what for bar in bars if not bar.met]


def books(module, **changed):
    sound = {
        "started": 6,
        "handled": Counter(OK=5, CANCELLED=1),
        "answered": 4,
        "images": {("kept", "1"): 30, ("left", "1"): 7},
        "pending": 0,
        "balanced": True,
    }
    return module("endurance_processes").Books(**sound | changed)


CALLS = {"codes": Counter(OK=5, CANCELLED=1), "images": Counter(kept=30, left=5), "answered": 4}


@pytest.mark.parametrize(
    ("told", "changed", "expected"),
    [
        pytest.param({}, {}, [], id="sound"),
        pytest.param({}, {"started": 7}, ["started = handled"], id="lost call"),
        pytest.param({"images": Counter(kept=29)}, {}, ["images counted"], id="lost image"),
        pytest.param({"images": Counter(kept=30, left=8)}, {}, ["images of streams"], id="more"),
        pytest.param({"codes": Counter(UNKNOWN=1)}, {}, ["statuses"], id="status"),
        pytest.param({}, {"pending": 1}, ["images pending"], id="pending"),
    ],
)
def test_the_memory_run_sees(told, changed, expected, module):
    judge = module("endurance_memory").judge_memory
    found = missed(judge(**CALLS | told, books=books(module, **changed), exit_code=0))
    assert [what[: len(start)] for what, start in zip(found, expected, strict=True)] == expected


def test_an_answer_that_crossed_with_a_cancel_is_reckoned(module):
    memory = module("endurance_memory")
    crossed = books(module, answered=5, images={("kept", "1"): 30 + memory.LEFT_IMAGES})
    told = CALLS | {"images": Counter(kept=30)}
    assert missed(memory.judge_memory(**told, books=crossed, exit_code=0)) == []


def test_growth_beyond_the_bar_is_seen(module):
    bar = module("endurance_memory").growth_bar
    assert [bar(size, 1000).met for size in (-1, 10_000_000, 10_000_001)] == [True, True, False]


def test_a_ratio_of_p99s_beyond_the_bar_is_seen(module):
    loading = module("endurance_loading")

    def judged(slow_ms: float, **more: bool) -> bool:
        """Of calls every 3 ms, of which 50 of the 1000 while loading are slow."""
        times = [(0.003 * call, 1e-3) for call in range(1000)]
        times += [(10 + 0.003 * call, slow_ms / 1e3 if call < 50 else 1e-3) for call in range(1000)]
        watched = loading.Watched(quiet=[(0, 3)], loading=[(10, 13)], times=times)
        return loading.stall_bar("loading", watched, watched.loading, **more).met

    assert [judged(1.9), judged(2.1), judged(2.1, is_seen=True)] == [True, False, True]


def test_a_stall_of_the_server_makes_many_calls_late(module, tmp_path):
    loading = module("endurance_loading")
    stalled = loading._watch(tmp_path, 1, 2, keep="loop:0.3")
    assert not stalled.failed
    assert sum(took > 0.1 for _, took in stalled.times) > 30  # of the 67 that were due until then
    assert loading.stall_bar("loading", stalled, stalled.loading, is_seen=True).met


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        pytest.param({}, "", id="sound"),
        pytest.param({"codes": {"OK": 9, "UNAVAILABLE": 1}}, "failed", id="failed call"),
        pytest.param({"wrong": ["seed 3"]}, "bytes", id="wrong bytes"),
        pytest.param({"images": {"1": 30, "2": 3}}, "counted are not those", id="lost images"),
        pytest.param({"images": {"1": 30}}, "versions that replies", id="a version never seen"),
    ],
)
def test_the_run_on_swaps_sees(changed, seen, module):
    told = {"codes": {"OK": 10}, "wrong": [], "images": {"1": 30, "2": 4}} | changed
    images = {("kept", version): told["images"].get(version, 0) for version in ("1", "2")}
    if seen.startswith("counted"):
        images["kept", "2"] += 1
    judged = module("endurance_swaps").judge_swaps(told, books(module, images=images), 1, 0)
    assert [seen in what for what in missed(judged)] == [True] * bool(seen)


def footprint(module, **changed):
    sound = {"resident": 0, "anonymous": 0, "threads": 20, "python_threads": []}
    sound |= {"descriptors": 17, "tasks": 22, "blocks": 0, "allocated": 0}
    return module("endurance_processes").Footprint(**sound | changed)


@pytest.mark.parametrize(
    ("counted", "held", "expected"),
    [
        pytest.param({}, {}, [], id="sound"),
        pytest.param({"started": 7}, {}, ["started = handled"], id="lost call"),
        pytest.param({"handled": Counter(INTERNAL=6)}, {}, ["UNKNOWN or INTERNAL at the server"]),
        pytest.param({"pending": 1}, {}, ["images pending"], id="pending"),
        pytest.param({}, {"tasks": 25}, ["tasks of the event loop, before and after"], id="task"),
        pytest.param({}, {"threads": 40}, ["threads, before and after"], id="threads"),
        pytest.param({}, {"descriptors": 20}, ["descriptors, before and after"], id="descriptors"),
        pytest.param({"images": {}}, {}, ["images counted = received, kept"], id="images"),
    ],
)
def test_the_stress_sees(counted, held, expected, module):
    judged = module("endurance_stress").judge_server(
        books(module, **counted),
        Counter(kept=30),
        footprint(module),
        footprint(module, **held),
    )
    assert [what.removeprefix("stress: ") for what in missed(judged)] == expected


@pytest.mark.parametrize(
    ("codes", "wrong", "log", "count"),
    [
        pytest.param({"checked OK": 9, "cancelled CANCELLED": 1}, [], "", 0, id="sound"),
        pytest.param({"checked CANCELLED": 1}, [], "", 1, id="status"),
        pytest.param({"wrong OK": 1}, [], "", 1, id="what should be refused"),
        pytest.param({"checked OK": 9}, ["seed 3"], "", 1, id="wrong bytes"),
        pytest.param({"checked OK": 9}, [], "internal error, id 5", 1, id="fault in the log"),
    ],
)
def test_the_stress_sees_of_calls(codes, wrong, log, count, module):
    judged = module("endurance_stress").judge_calls(Counter(codes), wrong, log)
    assert len(missed(judged)) == count


@pytest.mark.parametrize("fault", ["none", "byte", "other version", "two versions", "too few"])
def test_the_checking_client_sees(fault, module):
    models = module("endurance_models")
    expected = models.expected_pixels(2)
    checker = module("endurance_checker").Checker([], "kept", expected)

    def reply(first, count, version=1, named=1):
        pixels = expected[version, first : first + count].tobytes()
        identity = pb.ModelIdentity(version=str(named))
        return pb.GenerateImagesResponse(pixels=pixels, count=count, model=identity)

    replies = [reply(5, 3), reply(8, 2)]
    if fault == "byte":
        replies[0].pixels = bytes([replies[0].pixels[0] ^ 1]) + replies[0].pixels[1:]
    elif fault == "other version":
        replies[1] = reply(8, 2, version=2)
    elif fault == "two versions":
        replies[1] = reply(8, 2, version=2, named=2)
    elif fault == "too few":
        del replies[1]
    checker.judge(5, 5, replies)
    assert bool(checker.wrong) is (fault != "none")
    assert not np.array_equal(expected[1], expected[2])
