"""The load tester: what it offers, and that its figures are those of what happened."""

import asyncio
import contextlib
import time
from collections import Counter

import grpc
import pytest

from ganserve.load_test import Outcome, offer_load, render_report, summarize
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1 import image_generation_pb2_grpc


class SlowService(image_generation_pb2_grpc.ImageGenerationServiceServicer):
    """Answers one call at a time, each after some seconds, and notes what it was asked."""

    def __init__(self, seconds: float, refused: bool = False) -> None:
        self.seconds = seconds
        self.refused = refused
        self.requests: list[pb.GenerateImagesRequest] = []
        self.asked = asyncio.Event()
        self.peers: Counter[str] = Counter()
        self.most_at_once = 0
        self._now = 0
        self._turn = asyncio.Lock()

    async def GenerateImages(self, request, context):  # noqa: N802 - gRPC's name
        self.requests.append(request)
        self.asked.set()
        self.peers[context.peer()] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            async with self._turn:
                await asyncio.sleep(self.seconds)
        finally:
            self._now -= 1
        if self.refused:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return pb.GenerateImagesResponse(count=request.seed_range.count)


@contextlib.asynccontextmanager
async def running(service: SlowService):
    server = grpc.aio.server()
    image_generation_pb2_grpc.add_ImageGenerationServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def outcome(start: float, seconds: float, code: str = "OK", images: int = 2) -> Outcome:
    return Outcome(start, start + seconds, code, images if code == "OK" else 0)


def test_figures_are_those_of_the_calls_in_the_window():
    outcomes = [
        outcome(9.0, 100.0),  # before it
        *(outcome(10 + index / 100, (index + 1) / 1000) for index in range(100)),
        outcome(15.0, 0.1, "UNAVAILABLE"),
        outcome(20.0, 100.0),  # after it
    ]
    report = summarize(outcomes, 10.0, 20.0)
    assert (report.seconds, report.calls) == (10.0, 101)
    assert (report.calls_per_second, report.images_per_second) == (10.0, 20.0)
    assert report.errors == {"UNAVAILABLE": 1}
    milliseconds = {name: round(1000 * value) for name, value in report.latency_seconds.items()}
    assert milliseconds == {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def test_calls_that_end_after_the_window_lengthen_the_time_that_rates_are_over():
    assert summarize([outcome(10.0, 40.0)], 10.0, 20.0).calls_per_second == 1 / 40


def test_a_report_without_a_success_has_no_latency():
    report = summarize([outcome(10.0, 1.0, "NOT_FOUND")], 10.0, 20.0)
    assert report.latency_seconds == {}
    assert "NOT_FOUND" in render_report(report)


async def test_a_closed_loop_keeps_its_number_of_calls_under_way():
    service = SlowService(seconds=0.01)
    async with running(service) as address:
        report = await offer_load(address, concurrency=4, seconds=0.5, warm_up_seconds=0.1)
    assert service.most_at_once == 4
    # Each waits for the three before it.
    assert report.latency_seconds["p50"] > 0.03
    assert report.calls_per_second < 100


async def test_an_open_loop_counts_from_the_intended_start_and_shows_the_queue():
    service = SlowService(seconds=0.02)  # can answer 50 calls a second
    async with running(service) as address:
        report = await offer_load(address, rate=200, seconds=0.5, warm_up_seconds=0)
    assert report.calls == len(service.requests)
    assert 60 < report.calls < 140
    assert report.latency_seconds["max"] > 0.5
    assert service.most_at_once > 20


async def test_a_late_load_generator_is_not_flattered():
    service = SlowService(seconds=0)
    async with running(service) as address:
        task = asyncio.create_task(
            offer_load(address, rate=200, seconds=1, warm_up_seconds=0, timeout_seconds=10)
        )
        await service.asked.wait()
        time.sleep(0.3)  # noqa: ASYNC251 - what is tested: nothing can start meanwhile
        report = await task
    assert report.latency_seconds["max"] > 0.2
    assert report.calls > 140


async def test_arrivals_are_random_but_the_same_every_time():
    counts = []
    for _ in range(2):
        service = SlowService(seconds=0)
        async with running(service) as address:
            counts.append(
                (await offer_load(address, rate=100, seconds=0.5, warm_up_seconds=0)).calls
            )
    assert counts[0] == counts[1]


async def test_every_call_asks_for_other_seeds_and_as_many_as_wanted():
    service = SlowService(seconds=0)
    async with running(service) as address:
        report = await offer_load(
            address,
            model="cats",
            concurrency=3,
            images_per_request=5,
            image_format="webp",
            seconds=0.3,
            warm_up_seconds=0,
        )
    starts = sorted(request.seed_range.start for request in service.requests)
    assert starts == list(range(0, 5 * len(starts), 5))
    first = service.requests[0]
    assert (first.model_name, first.seed_range.count) == ("cats", 5)
    assert first.format == pb.IMAGE_FORMAT_WEBP
    assert report.images_per_second == pytest.approx(5 * report.calls_per_second)


async def test_connections_share_the_calls():
    service = SlowService(seconds=0)
    async with running(service) as address:
        await offer_load(address, connections=3, concurrency=6, seconds=0.3, warm_up_seconds=0)
    assert len(service.peers) == 3
    assert max(service.peers.values()) <= min(service.peers.values()) + 6


async def test_errors_are_counted_by_code_and_are_no_throughput():
    service = SlowService(seconds=0.01, refused=True)
    async with running(service) as address:
        report = await offer_load(address, seconds=0.3, warm_up_seconds=0)
    assert report.errors == {"RESOURCE_EXHAUSTED": report.calls}
    assert report.calls_per_second == 0


async def test_a_server_that_is_not_there_is_an_error_at_once():
    with pytest.raises(ConnectionError, match=r"no server answers at 127.0.0.1:1 within 0.2 s"):
        await offer_load("127.0.0.1:1", timeout_seconds=0.2)


@pytest.mark.parametrize("settings", [{"rate": 50}, {"concurrency": 2}], ids=["open", "closed"])
async def test_a_real_server_answers_every_call(settings, repository, running_server):
    async with running_server(repository) as server:
        report = await offer_load(
            server.address, images_per_request=3, seconds=0.5, warm_up_seconds=0.1, **settings
        )
        images = server.metrics.images.labels("tiny", "1").value
    assert report.errors == {}
    assert report.calls > 10
    assert images >= 3 * report.calls
