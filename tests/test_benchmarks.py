"""The benchmarks judge as they say: what is counted, from when, in which order."""

import argparse
import asyncio
import importlib
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from ganserve.models.loading import load_model
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceServicer
from gantrain.diagnosis.diagnostics import Diagnosis, Finding
from tests.ganserve import tiny
from tests.ganserve.slow_service import running

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_no_kind_is_first_in_every_turn(module):
    in_order = module("turns").in_order
    turns = [in_order({"bare": 1, "echo": 2, "ours": 3}, turn) for turn in range(3)]
    there = ["bare", "echo", "ours"]
    assert turns == [there, there[::-1], there]


def test_a_record_never_takes_the_place_of_another(module, monkeypatch, tmp_path):
    records = module("records")
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    paths = [records.write_record("serving", f"{number}\n") for number in range(3)]
    assert [path.read_text() for path in paths] == ["0\n", "1\n", "2\n"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    names = [path.name.partition("_")[0] for path in paths]
    assert names == ["serving", "serving-2", "serving-3"]


BUSY = """
import sys, threading, time

def work():
    while time.thread_time() < 0.05:
        pass

for thread in [threading.Thread(target=work) for _ in range(2)]:
    thread.start()
    thread.join()
print("done", flush=True)
sys.stdin.read()
"""


def test_a_server_s_cpu_time_is_that_of_all_threads_and_finer_than_a_tick(module):
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        seconds = module("serving_processes").Process(0, process.pid).cpu_seconds()
        process.stdin.close()
    assert 0.1 < seconds < 1
    assert abs(seconds - round(seconds, 2)) > 1e-7


class Answering(ImageGenerationServiceServicer):
    def __init__(self, answer):
        self.GenerateImages = answer


async def test_a_refusal_s_time_counts_from_when_the_call_was_due(module):
    async def refuse(_, context):
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    async with running(Answering(refuse)) as address:
        # Few calls are under way then, and some forty are due until it ends.
        asyncio.get_running_loop().call_later(0.5, time.sleep, 0.2)
        report = await module("serving_client").open_loop(address, "any", "1", "200", "2")
    assert report["refused"] > 300
    assert report["refusal"]["p99"] > 0.15
    assert report["lateness"]["p99"] > 0.15


async def test_clients_count_what_ends_in_the_window_that_all_share(module, monkeypatch):
    async def answer(_, __):
        await asyncio.sleep(0.05)
        return pb.GenerateImagesResponse()

    begin = time.monotonic() + 0.4
    monkeypatch.setattr(sys.stdin, "readline", lambda: f"{begin}\n", raising=False)
    async with running(Answering(answer)) as address:
        report = await module("serving_client").shared(address, "any", "1", "2", "0.5")
    assert time.monotonic() > begin + 0.5
    assert 4 <= report["calls"] <= 20  # not those of the time before, which would be 16 more


def test_the_median_is_judged_by_all_its_digits(module):
    verdict_on = module("ranks").verdict_on
    assert [verdict_on([1.0, ratio, 2.0]) for ratio in (1.7, 1.6999)] == ["met", "missed"]


@pytest.mark.parametrize(("mebibytes", "met"), [(1900, "yes"), (1960, "no")])
def test_peak_memory_is_judged_beside_pytorch_s_own(mebibytes, met, module, monkeypatch, tmp_path):
    speed = module("training_speed")
    monkeypatch.setattr(speed, "peak_memory", lambda flags: mebibytes if flags else 500)
    (bar,) = [line for line in speed.memory_lines("mnist", tmp_path) if "at most 1.5" in line]
    assert bar.endswith(f"| {met} |")


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [(0.03, ["yes", "yes"]), (0.031, ["yes", "no"]), (0.061, ["no", "no"])],
)
def test_the_stretch_of_stacked_mnist_is_judged_as_published_and_may_be_missed(
    divergence, expected, module
):
    values = {"modes": 1000, "reverse_kl": divergence - 0.004, "reverse_kl_uniform": divergence}
    measured = {name: SimpleNamespace(mean=value) for name, value in values.items()}
    evaluations = [SimpleNamespace(measurements=measured)]
    arguments = argparse.Namespace(quarter=False)
    (_, *rows), met = module("stacked_mnist").judge_bars(arguments, evaluations)
    assert [row.split("|")[-2].strip() for row in rows] == expected
    assert met is (expected[0] == "yes")


@pytest.mark.parametrize(
    ("states", "expected", "right"),
    [
        pytest.param([(), ()], (), True, id="sound"),
        pytest.param([("mode collapse",), ()], (), False, id="an alarm on the way"),
        pytest.param([(), ("stalled",)], ("stalled",), True, id="named at the end"),
        pytest.param([("stalled",), ()], ("stalled",), False, id="taken back"),
    ],
)
def test_the_doctor_is_judged_by_every_diagnosis_of_a_sound_run(states, expected, right, module):
    looks = tuple(
        Diagnosis("; ".join(names), tuple(Finding(name, "", ()) for name in names))
        for names in states
    )
    doctor = module("doctor")
    assert doctor.is_right(doctor.Outcome(looks[-1], looks, 0, 0), expected) is right


def test_where_nothing_was_refused_the_bar_on_refusals_is_not_met(module):
    p99 = module("serving_client").percentiles([])["p99"]
    assert module("serving").Bar("a refusal's p99", 5, False, [p99]).row().endswith("| no |")


def test_a_seed_that_was_not_seen_long_after_its_best_is_not_left_out(module):
    def run(*distances):
        return [
            SimpleNamespace(
                measurements={"frechet_distance": SimpleNamespace(mean=distance)},
                generator=SimpleNamespace(images_seen=100 * 2**number),
            )
            for number, distance in enumerate(distances)
        ]

    stays, improves = run(10.0, 11.0, 10.1), run(10.0, 9.0, 8.0)
    for seeds, expected in (({0: stays}, "yes"), ({0: stays, 1: improves}, "no")):
        found = {"dcgan": seeds, "dcgan-2015": dict.fromkeys(seeds, run(50.0, 50.0, 50.0))}
        *_, (line, met) = module("quality").judge("mnist", found)
        assert line.endswith(f"| {expected} |")
        assert met is (expected == "yes")


def test_other_servers_run_the_model_with_the_bare_session_s_options(module, monkeypatch, tmp_path):
    path = tiny.write_artifact(tmp_path)
    for name, value in (("PORT", 0), ("SECOND_PORT", 0), ("MODEL", path)):
        monkeypatch.setenv(f"PEER_{name}", str(value))
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "peer_servers")
    theirs = module("generator").Generator()._session.get_session_options()
    bare = load_model(path, "cpu", threads=1).session.get_session_options()
    names = [name for name in dir(bare) if name.startswith(("enable_", "execution_", "graph_"))]
    names += [name for name in dir(bare) if name.endswith("_num_threads")]
    for name in names:
        assert getattr(theirs, name) == getattr(bare, name), name
    spinning = "session.intra_op.allow_spinning"
    assert theirs.get_session_config_entry(spinning) == bare.get_session_config_entry(spinning)
