"""Sweeps: which loads are offered, where the knee is, and what is printed and drawn of them."""

import asyncio
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ganserve.cli import run
from ganserve.load_test.plan import LoadPlan
from ganserve.load_test.plot import draw_sweep, number_latencies
from ganserve.load_test.report import LoadReport, Verification, make_report
from ganserve.load_test.sweep import SweepLoads, find_knee, parse_sweep, render_sweep, sweep
from tests.ganserve.slow_service import SlowService, running

SERVICE_RATE = 100.0  # calls a second of the queues below
EMPTY = make_report(LoadPlan("host:1"), [])


def point(throughput: float, seconds: float, **fields) -> LoadReport:
    latency = {"p50": seconds, "p99": 2 * seconds} if throughput else {}
    measured = {"calls_per_second": throughput, "latency_seconds": latency, "interrupted": False}
    measured |= {"seconds": 10.0, "calls": int(10 * throughput)}
    measured["mean_latency_seconds"] = seconds if throughput else None
    return dataclasses.replace(EMPTY, **(measured | fields))


async def queue(kind: str, load: float) -> LoadReport:
    """Textbook queues: M/M/1 for a rate, one that always serves for a concurrency."""
    if kind == "concurrency":
        return point(SERVICE_RATE, load / SERVICE_RATE, concurrency=int(load))
    throughput = min(load, SERVICE_RATE)
    seconds = 1 / (SERVICE_RATE - load) if load < 0.999 * SERVICE_RATE else 10.0
    return point(throughput, seconds, rate=load, concurrency=None)


async def test_rates_are_doubled_until_throughput_no_longer_rises_and_then_refined():
    result = await sweep(SweepLoads("rate"), queue)
    rates = [report.rate for report in result.points]
    # From a quarter of what one caller reaches; two beyond the limit; two around the knee.
    assert rates == [25, 35.4, 50, 70.7, 100, 200, 400]
    assert (result.failure, result.interrupted) == (None, False)


async def test_a_rate_of_which_less_than_half_is_answered_is_the_last():
    async def rising(kind: str, load: float) -> LoadReport:
        if kind == "concurrency":
            return point(100, 0.01, concurrency=1)
        return point(load**0.85, 0.01, rate=load, concurrency=None, calls=int(10 * load))

    result = await sweep(SweepLoads("rate"), rising)
    assert result.points[-1].rate == 200  # 100 ** 0.85 is 50.1, 200 ** 0.85 is 90.3


async def test_a_server_that_takes_seconds_a_call_is_asked_for_more_until_it_answers_no_more():
    async def slow(kind: str, load: float) -> LoadReport:
        if kind == "concurrency":
            return point(0.5, 2.0, concurrency=1)
        calls = int(load * 10)  # few arrive in ten seconds, and the last are answered after them
        answered = max(0, min(calls - 2, 5))
        return point(answered / 10, 2.0, rate=load, concurrency=None, calls=calls)

    result = await sweep(SweepLoads("rate"), slow)
    assert result.points[0].rate == 0.125
    assert result.points[-1].rate >= 1


async def test_loads_that_are_not_carried_are_no_knee_however_quick_the_rest_is():
    async def refusing(kind: str, load: float) -> LoadReport:
        if kind == "concurrency":
            return point(SERVICE_RATE, 0.01, concurrency=1)
        good = min(load, SERVICE_RATE)
        errors = {"RESOURCE_EXHAUSTED": int(load - good)} if load > good else {}
        seconds = 0.01 + 0.01 * min(load, SERVICE_RATE) / SERVICE_RATE
        fields = {"rate": load, "concurrency": None, "calls": int(load), "errors": errors}
        return point(good + load / 1000, seconds, **fields)

    result = await sweep(SweepLoads("rate"), refusing)
    assert result.points[result.knee].rate == SERVICE_RATE
    everywhere = [
        point(10, 0.1, calls=20, errors={"UNAVAILABLE": 10}),
        point(20, 0.1, calls=40, errors={"UNAVAILABLE": 20}),
    ]
    assert find_knee(everywhere) == 1, "where no load is carried the best of all is shown"


async def test_the_knee_of_an_open_queue_is_at_half_its_limit():
    # Power of M/M/1 is rate * (limit - rate), as Kleinrock shows.
    values = tuple(float(rate) for rate in range(5, 100, 5))
    result = await sweep(SweepLoads("rate", values), queue)
    assert result.points[result.knee].rate == 50


async def test_the_knee_of_four_servers_is_where_all_are_busy_and_loads_are_whole():
    async def four_servers(_: str, load: float) -> LoadReport:
        return point(SERVICE_RATE * min(load, 4), max(load, 4) / 4, concurrency=load)

    result = await sweep(SweepLoads("concurrency"), four_servers)
    loads = [report.concurrency for report in result.points]
    assert loads == [1, 2, 3, 4, 6, 8, 16]
    assert result.points[result.knee].concurrency == 4


def test_there_is_no_knee_where_nothing_succeeded():
    assert find_knee([point(0, 0), point(0, 0)]) is None
    assert find_knee([]) is None


async def test_what_fails_at_the_first_load_fails_and_later_ends_the_sweep():
    async def vanishing(kind: str, load: float) -> LoadReport:
        if load > limit:
            raise ConnectionError("no server answers")
        return await queue(kind, load)

    limit = 0
    with pytest.raises(ConnectionError):
        await sweep(SweepLoads("concurrency"), vanishing)
    limit = 1
    result = await sweep(SweepLoads("concurrency"), vanishing)
    assert (len(result.points), result.failure) == (1, "no server answers")


async def test_an_interrupted_point_is_the_last():
    asked = []

    async def interrupted(kind: str, load: float) -> LoadReport:
        asked.append(load)
        return dataclasses.replace(await queue(kind, load), interrupted=load == 2)

    for loads in (SweepLoads("concurrency", (1, 2, 4)), SweepLoads("concurrency")):
        asked.clear()
        result = await sweep(loads, interrupted)
        assert (asked, result.interrupted, len(result.points)) == ([1, 2], True, 2)


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("rate", SweepLoads("rate")),
        ("concurrency=4,1,2,1", SweepLoads("concurrency", (1, 2, 4))),
        ("rate=50,0.5", SweepLoads("rate", (0.5, 50))),
    ],
)
def test_loads_are_read(text, loads):
    assert parse_sweep(text) == loads


@pytest.mark.parametrize(
    "text",
    [
        "",
        "speed",
        "rate=",
        "rate=x",
        "rate=0",
        "rate=inf",
        "rate=nan",
        "concurrency=1.5",
        "rate=1e7",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="expected concurrency, rate, or values such as"):
        parse_sweep(text)


async def test_the_table_marks_the_knee_and_repeats_warnings():
    values = (10.0, 50.0, 90.0)
    result = await sweep(SweepLoads("rate", values), queue)
    result.points[2] = dataclasses.replace(result.points[2], warnings=["busy"])
    header, *rows, warning = render_sweep(result).splitlines()
    assert header.split()[:2] == ["rate", "calls/s"]
    assert [row.split()[0] for row in rows] == ["10", "50", "90"]
    assert [row.endswith("knee") for row in rows] == [False, True, False]
    assert warning == "warning: at 90: busy"
    assert "-" in render_sweep(dataclasses.replace(result, points=[point(0, 0, rate=1.0)]))


@pytest.mark.parametrize(
    ("other_version", "line"),
    [
        pytest.param(0, "verified calls 900, wrong bytes 1", id="one"),
        pytest.param(5, "verified calls 900, wrong bytes 1, of another version 5", id="another"),
    ],
)
async def test_what_was_verified_is_the_last_line_of_the_table(other_version, line):
    result = await sweep(SweepLoads("rate", (10.0, 50.0)), queue)
    verified = Verification(400, 0, 0, []), Verification(500, 1, other_version, [7])
    points = [
        dataclasses.replace(point, verification=part, warnings=["busy"])
        for point, part in zip(result.points, verified, strict=True)
    ]
    table = render_sweep(dataclasses.replace(result, points=points))
    assert table.splitlines()[-1] == line
    assert "verified" not in render_sweep(result)


async def test_the_picture_shows_both_curves_and_the_knee(tmp_path):
    result = await sweep(SweepLoads("rate"), queue)
    result.points.append(point(0, 0, rate=800.0))  # nothing succeeded there
    target = tmp_path / "new" / "curve.png"
    draw_sweep(result, target)
    with Image.open(target) as picture:
        assert (picture.format, picture.size) == ("PNG", (960, 600))
        pixels = np.asarray(picture.convert("RGB"))
    for colour in ((0x1F, 0x5A, 0x99), (0xC2, 0x57, 0x1A), (0x3A, 0x7D, 0x44)):
        assert (pixels == colour).all(axis=2).sum() > 100


async def test_a_sweep_from_the_command_line(tmp_path, capsys):
    service = SlowService(seconds=0.004)
    picture = tmp_path / "curve.png"
    flags = ["--seconds", "0.3", "--warm-up-seconds", "0", "--sweep"]
    async with running(service) as address:
        flags = ["load-test", "--address", address, *flags]
        code = await asyncio.to_thread(run, [*flags, "concurrency", "--plot", str(picture)])
        table = capsys.readouterr().out.splitlines()
        assert code == 0
        code = await asyncio.to_thread(run, [*flags, "rate=20,60", "--json", "--verify"])
        result = json.loads(capsys.readouterr().out)
        assert code == 0
    assert table[0].split()[:2] == ["concurrency", "calls/s"]
    assert sum(line.endswith("knee") for line in table) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [point["rate"] for point in result["points"]] == [20, 60]
    assert result["points"][1]["verification"]["wrong"] == 0
    assert service.requests


async def test_wrong_bytes_fail_the_command(capsys):
    service = SlowService(seconds=0.005)
    async with running(service) as address:
        flags = ["--address", address, "--verify", "--seconds", "1", "--warm-up-seconds", "0"]
        task = asyncio.create_task(asyncio.to_thread(run, ["load-test", *flags]))
        async with asyncio.timeout(20):
            while len(service.requests) < 65:
                service.asked.clear()
                await service.asked.wait()
        service.wrong_seed = 3
        assert await task == 1
    printed = capsys.readouterr()
    assert "wrong bytes" in printed.out
    assert "calls gave images of other bytes than before the load" in printed.err
    assert printed.err.endswith("first seeds: 3\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep", "speed"], "--sweep: expected concurrency, rate"),
        (["--sweep", "rate", "--rate", "5"], "--sweep: expected neither --rate"),
        (["--plot", "x.png"], "--plot: expected --sweep with it"),
        (["--plot", "x.pdf", "--sweep", "rate"], "--plot: expected FILE.png, got 'x.pdf'"),
    ],
)
def test_bad_usage_is_one_line_that_names_the_flag(flags, message, capsys):
    assert run(["load-test", "--address", "localhost:1", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ganserve load-test: {message}")


@pytest.mark.parametrize(
    ("latencies", "numbers"),
    [
        pytest.param((0.4, 3), {"0.5", "1", "2"}, id="below-a-millisecond"),
        pytest.param((3, 13), {"5", "10"}, id="within-a-decade"),
        pytest.param((4, 3000), {"5", "10", "1000", "2000"}, id="decades"),
    ],
)
def test_latencies_of_a_picture_are_plain_numbers(latencies: tuple[float, ...], numbers: set[str]):
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([1, 2], latencies)
    number_latencies(axes)
    figure.draw_without_rendering()
    labels = [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]
    written = {label.get_text() for label in labels} - {""}
    assert numbers <= written
    assert all(float(text) > 0 for text in written), "no powers of ten"


def test_without_matplotlib_the_extra_is_named_before_any_load():
    program = """
import sys
from ganserve.cli import run

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("not installed")

sys.meta_path.insert(0, Refuse())
sys.exit(run(["load-test", "--address", "127.0.0.1:1", "--sweep", "rate", "--plot", "x.png"]))
"""
    command = [sys.executable, "-W", "error", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (
        "ganserve load-test: a plot needs matplotlib: in a checkout, pip install '.[load-test]'\n"
    )
    assert (finished.returncode, finished.stderr) == (1, said)
