"""The load tester: what it offers, and that its figures are those of what happened."""

import asyncio
import time
from collections import Counter

import pytest

from ganserve.load_test.latency_histogram import LatencyHistogram
from ganserve.load_test.plan import LoadPlan, LoadTally
from ganserve.load_test.report import make_report, render_report
from ganserve.v1 import image_generation_pb2 as pb
from tests.ganserve.conftest import eventually, free_port
from tests.ganserve.slow_service import SlowService, offer, running
from tests.ganserve.tiny import write_artifact


def tally(milliseconds=(), code: str = "OK", **fields) -> LoadTally:
    histogram = LatencyHistogram()
    for number in milliseconds:
        histogram.record(number / 1000)
    latencies = {code: histogram} if milliseconds else {}
    return LoadTally(latencies=latencies, window_seconds=10.0, **fields)


def test_the_figures_of_processes_are_put_together():
    told = {"error_details": {"UNAVAILABLE": "draining"}}
    failed = tally([7, 9], "UNAVAILABLE", **told, cpu_seconds=5.0, cpu_window_seconds=10.0)
    tallies = [
        tally(range(1, 51), completed=40, cpu_seconds=1.0, cpu_window_seconds=10.0),
        tally(range(51, 101), completed=60, unfinished=2),
        failed,
    ]
    report = make_report(LoadPlan("host:1", images_per_request=3), tallies)
    assert (report.seconds, report.calls, report.unfinished) == (10.0, 102, 2)
    assert (report.calls_per_second, report.images_per_second) == (10.0, 30.0)
    assert report.errors == {"UNAVAILABLE": 2}
    assert report.error_latency_seconds["UNAVAILABLE"]["max"] == 0.009
    assert report.error_details == {"UNAVAILABLE": "draining"}
    milliseconds = {name: round(1000 * value) for name, value in report.latency_seconds.items()}
    assert milliseconds == {"p50": 50, "p90": 90, "p99": 99, "p99.9": 100, "max": 100}
    assert report.mean_latency_seconds == pytest.approx(0.0505)
    assert report.tester.cpu_share == 0.5
    assert report.tester.cpu_seconds_per_call == pytest.approx(6 / 102)
    assert report.warnings == []


def test_a_report_without_a_success_has_no_latency():
    report = make_report(LoadPlan("host:1"), [tally([1000], "NOT_FOUND")])
    assert (report.latency_seconds, report.mean_latency_seconds) == ({}, None)
    assert "NOT_FOUND" in render_report(report)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        pytest.param(
            tally([5], cpu_seconds=9.7, cpu_window_seconds=10.0), "97% of a core", id="busy"
        ),
        pytest.param(tally([5], lateness=tally([3]).latencies["OK"]), "3.0 ms late", id="late"),
        pytest.param(tally([5], not_sent=8), "8 calls were not sent because 4096", id="capped"),
        pytest.param(
            tally([5], too_late=8), "8 calls were not sent because the tester came", id="behind"
        ),
    ],
)
def test_what_makes_figures_doubtful_is_said(one, message):
    report = make_report(LoadPlan("host:1", rate=1.0), [one, tally([5])])
    (warning,) = report.warnings
    assert message in warning
    assert f"warning: {warning}" in render_report(report)


def test_late_starts_that_matter_little_are_not_warned_of():
    one = tally([100], lateness=tally([3]).latencies["OK"])
    assert make_report(LoadPlan("host:1", rate=1.0), [one]).warnings == []


async def test_a_closed_loop_keeps_its_number_of_calls_under_way():
    service = SlowService(seconds=0.01)
    async with running(service) as address:
        report = await offer(address, concurrency=4, seconds=0.5, warm_up_seconds=0.1)
    assert service.most_at_once == 4
    # Each waits for the three before it.
    assert report.latency_seconds["p50"] > 0.03
    assert report.calls_per_second < 100


async def test_an_open_loop_counts_from_the_intended_start_and_shows_the_queue():
    service = SlowService(seconds=0.02)  # can answer 50 calls a second
    async with running(service) as address:
        report = await offer(address, rate=200, seconds=0.5, warm_up_seconds=0)
    assert report.calls == len(service.requests)
    assert 60 < report.calls < 140
    assert report.latency_seconds["max"] > 0.5
    assert service.most_at_once > 20
    assert report.calls_per_second <= 50  # those that the window saw the end of


async def test_an_overloaded_open_loop_has_no_more_calls_under_way_than_allowed():
    service = SlowService(seconds=0.02)
    async with running(service) as address:
        report = await offer(
            address, rate=400, seconds=0.5, warm_up_seconds=0, max_calls_under_way=5
        )
    assert service.most_at_once == 5
    assert report.calls == len(service.requests) < 40
    assert 120 < report.not_sent + report.calls < 280  # what was meant to start
    assert "not sent because 5 were under way" in report.warnings[-1]


async def test_a_late_load_generator_is_not_flattered():
    service = SlowService(seconds=0)
    async with running(service) as address:
        task = asyncio.create_task(
            offer(address, rate=200, seconds=1, warm_up_seconds=0, timeout_seconds=10)
        )
        await service.asked.wait()
        time.sleep(0.3)  # noqa: ASYNC251 - what is tested: nothing can start meanwhile
        report = await task
    assert report.latency_seconds["max"] > 0.2
    assert report.start_lateness_seconds["max"] > 0.2
    assert any("ms late" in warning for warning in report.warnings)
    assert report.calls > 140


async def test_a_tester_that_cannot_keep_up_leaves_out_what_is_far_too_late_and_says_so():
    service = SlowService(seconds=0)
    async with running(service) as address:
        task = asyncio.create_task(
            offer(address, rate=200, seconds=0.5, warm_up_seconds=0, timeout_seconds=0.3)
        )
        await service.asked.wait()
        time.sleep(1)  # noqa: ASYNC251 - what is tested: nothing can start meanwhile
        report = await task
    assert report.not_sent > 50
    assert any("the tester came to them more than 0.3 s" in text for text in report.warnings)


async def test_an_open_loop_can_be_stopped_while_nothing_is_due():
    service = SlowService(seconds=0)
    stop = asyncio.Event()
    async with running(service) as address:
        task = asyncio.create_task(
            offer(address, rate=0.1, seconds=1000, warm_up_seconds=0, stop=stop)
        )
        await asyncio.sleep(0.5)
        stop.set()
        async with asyncio.timeout(10):
            report = await task
    assert report.interrupted


async def test_arrivals_are_random_but_the_same_every_time():
    counts = []
    for _ in range(2):
        service = SlowService(seconds=0)
        async with running(service) as address:
            counts.append((await offer(address, rate=100, seconds=0.5, warm_up_seconds=0)).calls)
    assert counts[0] == counts[1]


async def test_every_call_asks_for_other_seeds_and_as_many_as_wanted():
    service = SlowService(seconds=0)
    async with running(service) as address:
        report = await offer(
            address,
            model="cats",
            concurrency=3,
            images_per_request=5,
            image_format="webp",
            class_label=7,
            seconds=0.3,
            warm_up_seconds=0,
        )
    starts = sorted(request.seed_range.start for request in service.requests)
    assert starts == list(range(0, 5 * len(starts), 5))
    first = service.requests[0]
    assert (first.model_name, first.seed_range.count) == ("cats", 5)
    assert (first.format, list(first.class_labels)) == (pb.IMAGE_FORMAT_WEBP, [7])
    assert report.images_per_second == pytest.approx(5 * report.calls_per_second)


async def test_connections_share_the_calls():
    service = SlowService(seconds=0)
    async with running(service) as address:
        await offer(address, connections=3, concurrency=6, seconds=0.3, warm_up_seconds=0)
    assert len(service.peers) == 3
    assert max(service.peers.values()) <= min(service.peers.values()) + 6


async def test_errors_are_counted_by_code_and_are_no_throughput():
    service = SlowService(seconds=0.01, refused=True)
    async with running(service) as address:
        report = await offer(address, seconds=0.3, warm_up_seconds=0)
    assert report.errors == {"RESOURCE_EXHAUSTED": report.calls}
    assert report.error_latency_seconds["RESOURCE_EXHAUSTED"]["p50"] > 0.01
    assert report.error_details == {"RESOURCE_EXHAUSTED": "full"}
    assert report.calls_per_second == 0


@pytest.mark.parametrize("seconds", [0.2, 2.0])
async def test_a_server_that_is_not_there_is_an_error_with_its_reason_however_short_the_time(
    seconds,
):
    address = f"127.0.0.1:{free_port()}"
    said = rf"no result from {address} within {seconds:g} s: .* Connection refused"
    with pytest.raises(ConnectionError, match=said):
        await offer(address, timeout_seconds=seconds)


async def test_where_no_connection_can_be_made_the_error_says_why():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"{address} does not serve: .* Connection refused"):
        await offer(address, processes=2)


async def test_a_server_without_a_model_yet_is_one_that_answers(tmp_path, running_server):
    (tmp_path / "models").mkdir()
    async with running_server(tmp_path / "models", until_ready=False) as server:
        await server.repository.index.first_scan_over.wait()  # which early calls wait for
        report = await offer(server.address, seconds=0.3, warm_up_seconds=0)
    assert report.errors == {"UNAVAILABLE": report.calls}
    assert report.calls


@pytest.mark.parametrize("settings", [{"rate": 50}, {"concurrency": 2}], ids=["open", "closed"])
async def test_a_server_that_vanishes_and_comes_back_is_in_the_report(settings):
    service, stop = SlowService(seconds=0.005), asyncio.Event()
    times = {"seconds": 100, "warm_up_seconds": 0, "timeout_seconds": 5}
    async with running(service) as address:
        task = asyncio.create_task(offer(address, stop=stop, **times, **settings))
        await service.asked.wait()
    await asyncio.sleep(0.7)  # what is tested: nobody is there for a while
    again = SlowService(seconds=0.005)
    async with running(again, port=int(address.rpartition(":")[2])):
        await eventually(lambda: again.answered > 10)
        stop.set()
        report = await task
    assert set(report.errors) <= {"UNAVAILABLE", "CANCELLED"}
    most = 2 * (report.seconds / 0.01 + 1)  # a caller pauses: not as fast as calls fail
    assert 0 < report.errors["UNAVAILABLE"] <= most
    assert report.latency_seconds


@pytest.mark.parametrize("settings", [{"rate": 5}, {"concurrency": 2}], ids=["open", "closed"])
async def test_a_test_that_is_stopped_reports_the_time_so_far(settings):
    service = SlowService(seconds=60)
    stop = asyncio.Event()
    async with running(service) as address:
        task = asyncio.create_task(
            offer(address, seconds=100, warm_up_seconds=0, stop=stop, **settings)
        )
        await several(service, 2)
        stop.set()
        report = await task
    assert report.interrupted
    assert 0 < report.seconds < 50
    assert report.calls == 0
    # Of an open loop a call may be on its way to the server in that moment; hardly two, so slow.
    on_the_way = report.unfinished - len(service.requests)
    assert on_the_way in ((0, 1) if "rate" in settings else (0,))


async def test_a_test_that_is_stopped_before_it_begins_reports_nothing():
    stop = asyncio.Event()
    stop.set()
    report = await offer("127.0.0.1:1", stop=stop)
    assert (report.interrupted, report.calls, report.seconds) == (True, 0, 0)
    assert render_report(report)


@pytest.mark.parametrize("image_format", ["raw", "png"])
@pytest.mark.parametrize("settings", [{"rate": 50}, {"concurrency": 4}], ids=["open", "closed"])
async def test_a_real_server_answers_every_call_with_the_right_bytes(
    settings, image_format, repository, running_server
):
    async with running_server(repository) as server:
        report = await offer(
            server.address,
            images_per_request=3,
            image_format=image_format,
            verify=True,
            seconds=0.5,
            warm_up_seconds=0.1,
            **settings,
        )
        images = server.metrics.images.labels("tiny", "1").value
    assert report.errors == {}
    assert report.calls > 10
    assert images >= 66 + 3 * report.calls  # each seed's reference first
    assert (report.verification.calls, report.verification.wrong) == (report.calls, 0)
    assert report.tester.cpu_seconds_per_call > 0


async def test_a_conditional_model_is_given_its_class(tmp_path, running_server):
    write_artifact(tmp_path / "models", class_names=("cat", "dog"))
    async with running_server(tmp_path / "models") as server:
        report = await offer(
            server.address, class_label=1, verify=True, seconds=0.2, warm_up_seconds=0
        )
    assert (report.errors, report.verification.wrong) == ({}, 0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        pytest.param({}, "model_name: expected one of pets, tiny, got none", id="no-model"),
        pytest.param(
            {"model": "dogs"}, "model 'dogs': expected one of pets, tiny", id="no-such-model"
        ),
        pytest.param(
            {"model": "tiny", "images_per_request": 4097},
            "seed_range.count: .* got 4097",
            id="too-many-images",
        ),
        pytest.param({"model": "pets"}, "class_labels: expected 1 label", id="no-label"),
        pytest.param(
            {"model": "pets", "class_label": 2}, "class_labels: .* 0 to 1, got 2", id="too-large"
        ),
        pytest.param(
            {"model": "tiny", "class_label": 0}, "class_labels: expected none", id="no-classes"
        ),
    ],
)
async def test_what_every_call_would_be_refused_for_is_told_before_the_load(
    settings, problem, repository, running_server
):
    write_artifact(repository, "pets", class_names=("cat", "dog"))
    async with running_server(repository) as server:
        code = "NOT_FOUND" if settings.get("model") == "dogs" else "INVALID_ARGUMENT"
        with pytest.raises(ValueError, match=f"^{code}: {problem}"):
            await offer(server.address, seconds=60, **settings)


async def test_calls_that_all_take_too_long_are_shown_by_the_load():
    class ListingService(SlowService):
        async def ListModels(self, *_):  # noqa: N802 - gRPC's name
            return pb.ListModelsResponse()

    async with running(ListingService(seconds=30)) as address:
        settings = {"images_per_request": 100, "timeout_seconds": 0.2, "warm_up_seconds": 0}
        report = await offer(address, seconds=0.3, **settings)
    assert set(report.errors) == {"DEADLINE_EXCEEDED"}


async def test_a_default_model_is_load_tested_without_a_name(repository, running_server):
    write_artifact(repository, "pets", class_names=("cat", "dog"))
    async with running_server(repository, default_model="pets") as server:
        report = await offer(server.address, class_label=1, seconds=0.2, warm_up_seconds=0)
    assert report.calls
    assert not report.errors


async def test_one_wrong_byte_of_one_image_is_found():
    service = SlowService(seconds=0)
    async with running(service) as address:
        task = asyncio.create_task(
            offer(address, images_per_request=4, verify=True, seconds=1, warm_up_seconds=0)
        )
        await several(service, 67 + 10)  # 67 references
        service.wrong_seed = 9
        report = await task
    verification = report.verification
    assert verification.calls == report.calls
    assert 0 < verification.wrong < verification.calls
    assert set(verification.wrong_requests) <= {6, 7, 8, 9}  # those that seed 9 is among
    asked = Counter(request.seed_range.start for request in service.requests[67:])
    assert set(asked) == set(range(64))  # each in many places and neighbourhoods
    assert "wrong bytes" in render_report(report)


async def test_another_version_is_told_from_wrong_bytes():
    service = SlowService(seconds=0)
    async with running(service) as address:
        task = asyncio.create_task(offer(address, verify=True, seconds=0.5, warm_up_seconds=0))
        await several(service, 64 + 10)
        service.digest, service.wrong_seed = "second", 9
        verification = (await task).verification
    assert 0 < verification.other_version < verification.calls
    assert verification.wrong == 0


async def test_references_that_cannot_be_fetched_are_an_error(repository, running_server, tmp_path):
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    async with running_server(repository, token_file=tmp_path / "tokens") as server:
        with pytest.raises(ValueError, match=r"^reference image of seed 0: UNAUTHENTICATED: "):
            await offer(server.address, verify=True)


async def test_references_are_fetched_as_late_as_a_busy_server_asks_for(repository, running_server):
    settings = {"rate_limit_images_per_second": 40, "rate_limit_burst_images": 10}
    async with running_server(repository, **settings) as server:
        report = await offer(server.address, verify=True, rate=10, seconds=0.5, warm_up_seconds=0)
    assert report.verification.calls > 0
    assert report.verification.wrong == 0


async def several(service: SlowService, calls: int) -> None:
    """Wait for so many calls."""
    async with asyncio.timeout(20):
        while len(service.requests) < calls:
            service.asked.clear()
            await service.asked.wait()
