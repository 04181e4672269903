import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from ganserve.batching.batcher import Batcher
from ganserve.batching.entries import Batch, Entry, Part, gather
from ganserve.batching.latency_estimate import LatencyEstimate
from ganserve.batching.results import Results, fail
from ganserve.calls import Call, current_call
from ganserve.errors import DeadlineExceeded, Overloaded, ShuttingDown
from ganserve.latents import draw_latents, truncate
from ganserve.metrics import Metrics
from tests.ganserve.conftest import eventually, settle

SHAPE = (1, 2, 1)


class GatedModel:
    """Doubles its latents, once the gate is open; remembers every batch."""

    def __init__(self, *, is_open=False):
        self.batches = []
        self.fails_on = None
        self._loop = asyncio.get_running_loop()
        self._started = asyncio.Semaphore(0)
        self._gate = threading.Semaphore(10_000 if is_open else 0)

    def __call__(self, latents, labels):
        self.batches.append(latents[:, 0].astype(int).tolist())
        self._loop.call_soon_threadsafe(self._started.release)
        assert self._gate.acquire(timeout=20)
        if self.fails_on in self.batches[-1]:
            raise ArithmeticError("a fault of the model")
        shift = 0 if labels is None else labels[:, None]
        return (latents * 2 + shift).astype(np.uint8).reshape(-1, *SHAPE)

    async def has_started(self):
        """Wait for the next batch to reach the model."""
        await asyncio.wait_for(self._started.acquire(), 20)

    def release(self, batches=10_000):
        self._gate.release(batches)


@contextlib.asynccontextmanager
async def running(model, **settings):
    metrics = Metrics(CollectorRegistry())
    batcher = Batcher(
        model,
        SHAPE,
        metrics,
        model_name="m",
        **{"latent_dim": 2, "max_batch_size": 4, "queue_size": 64} | settings,
    )
    batcher.metrics = metrics
    try:
        yield batcher
    finally:
        model.release()
        await batcher.close()


def rows(*values):
    return np.repeat(np.array(values, np.float32)[:, None], 2, axis=1)


def images(*values):
    return (rows(*values) * 2).astype(np.uint8).reshape(-1, *SHAPE)


def start(batcher, *values, seconds=60.0, **arguments):
    deadline = time.monotonic() + seconds
    return asyncio.ensure_future(batcher.submit(rows(*values), deadline=deadline, **arguments))


def sample(batcher, name, **labels):
    return batcher.metrics.registry.get_sample_value(name, labels)


async def test_one_request_is_answered_with_its_images_and_times():
    model = GatedModel(is_open=True)
    async with running(model) as batcher:
        generated = await start(batcher, 1, 2)
    assert (generated.pixels == images(1, 2)).all()
    assert generated.pixels.dtype == np.uint8
    assert 0 <= generated.queue_seconds < 20
    assert 0 < generated.compute_seconds < 20


async def test_what_waits_during_a_model_call_shares_the_next():
    model = GatedModel()
    async with running(model) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        others = [start(batcher, value) for value in (2, 3, 4)]
        await settle()
        model.release()
        answers = [answer.pixels for answer in await asyncio.gather(first, *others)]
    assert model.batches == [[1], [2, 3, 4]]
    assert (np.concatenate(answers) == images(1, 2, 3, 4)).all()


async def test_a_large_request_is_split_and_answered_in_order():
    model = GatedModel(is_open=True)
    async with running(model) as batcher:
        generated = await start(batcher, *range(11))
    assert [len(batch) for batch in model.batches] == [4, 4, 3]
    assert (generated.pixels == images(*range(11))).all()


async def test_a_small_request_is_not_held_up_by_a_large_one():
    model = GatedModel()
    async with running(model) as batcher:
        large = start(batcher, *range(12))
        await model.has_started()
        small = start(batcher, 100)
        await settle()
        model.release(3)  # the batch under way, the large one's turn, the small one's turn
        assert ((await small).pixels == images(100)).all()
        assert not large.done()
        model.release()
        assert ((await large).pixels == images(*range(12))).all()
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [100, 8, 9, 10], [11]]


async def test_two_large_requests_take_turns():
    model = GatedModel()
    async with running(model) as batcher:
        blocker = start(batcher, 0)
        await model.has_started()
        requests = [start(batcher, *range(10, 18)), start(batcher, *range(20, 28))]
        await settle()
        model.release()
        await asyncio.gather(blocker, *requests)
    assert model.batches[1:] == [
        [10, 11, 12, 13],
        [20, 21, 22, 23],
        [14, 15, 16, 17],
        [24, 25, 26, 27],
    ]


async def test_labels_reach_the_model_with_their_rows():
    model = GatedModel()
    async with running(model) as batcher:
        requests = [
            start(batcher, value, labels=np.array([label], np.int64))
            for value, label in ((1, 10), (2, 20), (3, 30))
        ]
        await settle()
        model.release()
        answers = [answer.pixels for answer in await asyncio.gather(*requests)]
    expected = images(1, 2, 3) + np.array([10, 20, 30], np.uint8)[:, None, None, None]
    assert (np.concatenate(answers) == expected).all()


async def test_idle_workers_share_a_request():
    model = GatedModel()
    async with running(model, instances=2, max_batch_size=8) as batcher:
        await eventually(lambda: batcher._idle == 2)
        request = start(batcher, *range(8))
        await model.has_started()
        await model.has_started()
        model.release()
        assert ((await request).pixels == images(*range(8))).all()
    assert sorted(model.batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_idle_workers_do_not_share_what_is_half_a_batch_or_less():
    model = GatedModel(is_open=True)
    async with running(model, instances=2, max_batch_size=8) as batcher:
        await eventually(lambda: batcher._idle == 2)
        assert ((await start(batcher, *range(4))).pixels == images(*range(4))).all()
    assert model.batches == [[0, 1, 2, 3]]


async def test_a_batch_has_all_cpus_while_no_other_worker_is_busy():
    shared, alone = GatedModel(), GatedModel()
    settings = {"instances": 2, "max_batch_size": 8, "run_lone_batch": alone}
    async with running(shared, **settings) as batcher:
        await eventually(lambda: batcher._idle == 2)
        first = start(batcher, 1)
        await alone.has_started()
        second = start(batcher, 2)
        await shared.has_started()
        alone.release()
        assert ((await first).pixels == images(1)).all()
        third = start(batcher, 3)  # the worker of the first is idle, that of the second is not
        await shared.has_started()
        shared.release(2)
        answers = [answer.pixels for answer in await asyncio.gather(second, third)]
        assert (np.concatenate(answers) == images(2, 3)).all()
        await eventually(lambda: batcher._idle == 2)
        large = start(batcher, *range(8))  # which both workers share
        await shared.has_started()
        await shared.has_started()
        shared.release()
        assert ((await large).pixels == images(*range(8))).all()
    assert alone.batches == [[1]]
    assert sorted(shared.batches) == [[0, 1, 2, 3], [2], [3], [4, 5, 6, 7]]


async def test_a_batch_that_had_all_cpus_says_nothing_of_one_in_the_event_loop():
    shared, alone = GatedModel(is_open=True), GatedModel(is_open=True)
    settings = {"inline_seconds": 60, "run_lone_batch": alone}
    async with running(shared, **settings) as batcher:
        for _ in range(3):
            await eventually(lambda: batcher._idle == 1)
            await start(batcher, 1)
    assert (len(alone.batches), shared.batches) == (3, [])


async def test_a_batch_in_the_event_loop_has_one_cpu():
    shared, alone = SeenModel(), SeenModel()
    async with running(shared, inline_seconds=60, run_lone_batch=alone) as batcher:
        await eventually(lambda: batcher._idle == 1)
        batcher._latency.update(1, 0.001)  # no batch has come that was not alone
        await submit(batcher, seeds(1))
    assert (shared.threads, alone.threads) == ([threading.current_thread()], [])


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    model = GatedModel()
    async with running(model, queue_size=4) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        waiting = start(batcher, 2, 3, 4)
        await settle()
        with pytest.raises(Overloaded, match="3 images wait, 2 more") as refusal:
            await start(batcher, 5, 6)
        assert 0 < refusal.value.retry_seconds <= 10
        last = start(batcher, 7)
        await settle()
        assert sample(batcher, "ganserve_pending_images") == 4
        model.release()
        await asyncio.gather(first, waiting, last)
        assert sample(batcher, "ganserve_pending_images") == 0


@pytest.mark.parametrize("instances", [1, 2])
async def test_more_workers_have_a_refused_caller_come_back_sooner(instances):
    model = GatedModel()
    async with running(model, queue_size=4, instances=instances) as batcher:
        requests = []
        for value in range(instances):
            requests.append(start(batcher, value))
            await model.has_started()
        requests.append(start(batcher, 2, 3, 4))
        await settle()
        with pytest.raises(Overloaded) as refusal:
            await start(batcher, 5, 6)
        model.release()
        await asyncio.gather(*requests)
    guess = LatencyEstimate().seconds_per_row  # no call has ended yet
    assert refusal.value.retry_seconds == pytest.approx(3 * guess / instances)


async def test_a_refused_caller_comes_back_within_ten_seconds():
    model = GatedModel()
    async with running(model, queue_size=2000) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        waiting = start(batcher, *range(2000))
        await settle()
        assert 2000 * LatencyEstimate().seconds_per_row > 10
        with pytest.raises(Overloaded) as refusal:
            await start(batcher, 5)
        assert refusal.value.retry_seconds == 10
        waiting.cancel()
        model.release()
        await first


class TestFurtherChunks:
    """Of calls that were admitted before."""

    async def test_they_enter_as_soon_as_others_reach_the_model(self):
        model = GatedModel()
        async with running(model, queue_size=2) as batcher:
            first = start(batcher, 1)
            await model.has_started()
            waiting, chunk = start(batcher, 2, 3), start(batcher, 4, 5, continues=True)
            model.release(1)
            await model.has_started()  # the model works on 2 and 3
            await eventually(lambda: sample(batcher, "ganserve_pending_images") == 2)
            assert not waiting.done()
            model.release()
            await asyncio.gather(first, waiting, chunk)

    async def test_they_wait_for_room_and_are_never_refused(self):
        model = GatedModel()
        async with running(model, queue_size=2) as batcher:
            first = start(batcher, 1)
            await model.has_started()
            waiting, chunk = start(batcher, 2, 3), start(batcher, 4, continues=True)
            await settle()
            assert sample(batcher, "ganserve_pending_images") == 2
            model.release()
            assert ((await chunk).pixels == images(4)).all()
            await asyncio.gather(first, waiting)

    async def test_they_leave_half_of_the_queue_to_calls_that_come(self):
        model = GatedModel()
        async with running(model, queue_size=8) as batcher:
            first = start(batcher, 1)
            await model.has_started()
            chunks = [
                start(batcher, value, value + 1, continues=True) for value in range(10, 20, 2)
            ]
            await settle()
            assert sample(batcher, "ganserve_pending_images") == 4
            calls = [start(batcher, value) for value in (20, 21, 22, 23)]
            await settle()
            assert sample(batcher, "ganserve_pending_images") == 8
            with pytest.raises(Overloaded):
                await start(batcher, 24)
            model.release()
            answers = [answer.pixels for answer in await asyncio.gather(*chunks, *calls)]
            assert (np.concatenate(answers) == images(*range(10, 24))).all()
            await first

    async def test_calls_that_come_do_not_overtake_the_chunk_that_is_next(self):
        model = GatedModel()
        async with running(model, queue_size=4, max_batch_size=1) as batcher:
            calls = [start(batcher, 1)]
            await model.has_started()
            calls += [start(batcher, value) for value in (2, 3, 4, 5)]
            chunk = start(batcher, 6, 7, continues=True)
            for batch in range(2):
                await settle()
                with pytest.raises(Overloaded, match="more would pass the limit of 4"):
                    await start(batcher, 8)
                assert sample(batcher, "ganserve_pending_images") == 4 - batch
                model.release(1)
                await model.has_started()
            await calls[1]
            await settle()
            assert sample(batcher, "ganserve_pending_images") == 4, "the chunk is in"
            model.release()
            assert ((await chunk).pixels == images(6, 7)).all()
            await asyncio.gather(*calls)

    async def test_one_larger_than_the_queue_enters_once_nothing_waits(self):
        model = GatedModel()
        async with running(model, queue_size=2) as batcher:
            first = start(batcher, 1)
            await model.has_started()
            waiting = start(batcher, 2)
            chunks = [start(batcher, *range(10, 15), continues=True) for _ in range(3)]
            await settle()
            assert sample(batcher, "ganserve_pending_images") == 1
            model.release()
            for chunk in chunks:
                assert ((await chunk).pixels == images(*range(10, 15))).all()
            await asyncio.gather(first, waiting)

    async def test_one_whose_caller_has_gone_makes_way_for_the_next(self):
        model = GatedModel()
        async with running(model, queue_size=2) as batcher:
            first = start(batcher, 1)
            await model.has_started()
            call = start(batcher, 2)
            leaver, stayer = (start(batcher, *values, continues=True) for values in ((3, 4), (5,)))
            await settle()
            assert sample(batcher, "ganserve_pending_images") == 1
            leaver.cancel()
            await settle()
            assert sample(batcher, "ganserve_pending_images") == 2
            model.release()
            assert ((await stayer).pixels == images(5)).all()
            await asyncio.gather(first, call)
        assert leaver.cancelled()
        assert model.batches == [[1], [2, 5]]
        assert sample(batcher, "ganserve_abandoned_images_total", reason="cancelled") == 2

    async def test_a_call_that_has_gone_makes_way_for_them(self):
        model = GatedModel()
        async with running(model, queue_size=2) as batcher:
            first = start(batcher, 1)
            await model.has_started()
            leaver, chunk = start(batcher, 2, 3), start(batcher, 4, continues=True)
            await settle()
            leaver.cancel()
            await settle()
            assert sample(batcher, "ganserve_pending_images") == 1
            model.release()
            assert ((await chunk).pixels == images(4)).all()
            await first

    async def test_one_past_its_deadline_never_reaches_the_model(self):
        model = GatedModel()
        async with running(model, queue_size=1) as batcher:
            first = start(batcher, 1)
            await model.has_started()
            waiting, late = start(batcher, 2), start(batcher, 3, seconds=0, continues=True)
            await settle()
            model.release()
            with pytest.raises(DeadlineExceeded):
                await late
            await asyncio.gather(first, waiting)
        assert model.batches == [[1], [2]]

    async def test_a_fault_of_the_model_does_not_hold_them_up(self):
        model = GatedModel()
        model.fails_on = 1
        async with running(model, queue_size=2) as batcher:
            faulty = start(batcher, 1, 1)
            await model.has_started()
            waiting = start(batcher, 1, 1)
            chunk = start(batcher, 2, 3, continues=True)
            await settle()
            model.release()
            assert ((await chunk).pixels == images(2, 3)).all()
            for request in (faulty, waiting):
                with pytest.raises(RuntimeError):
                    await request

    async def test_closing_answers_them(self):
        model = GatedModel()
        async with running(model, queue_size=2) as batcher:
            first = start(batcher, 1)
            await model.has_started()
            chunks = [start(batcher, 2, 3, continues=True) for _ in range(3)]
            await settle()
            closing = asyncio.ensure_future(batcher.close())
            await settle()
            model.release()
            await closing
            for chunk in chunks:
                assert ((await chunk).pixels == images(2, 3)).all()
            await first

    async def test_under_random_load_the_queue_stays_bounded_and_everyone_is_answered(self):
        random = np.random.default_rng(9)
        model = GatedModel(is_open=True)
        async with running(model, queue_size=16, instances=2) as batcher:
            peaks = [0.0]

            async def stream(values, leaves):
                for _ in range(10):
                    chunk = start(batcher, *values, continues=True)
                    if random.random() < 0.1:
                        await asyncio.sleep(0)
                        chunk.cancel()
                    await asyncio.wait([chunk])
                    peaks.append(sample(batcher, "ganserve_pending_images"))
                    if not chunk.cancelled():
                        assert (chunk.result().pixels == images(*values)).all()
                        if leaves:
                            return

            async def call(value):
                for _ in range(20):
                    with contextlib.suppress(Overloaded):
                        assert ((await start(batcher, value)).pixels == images(value)).all()
                        peaks.append(sample(batcher, "ganserve_pending_images"))
                    await asyncio.sleep(0)

            streams = [
                stream(random.integers(0, 120, size=random.integers(1, 17)), random.random() < 0.2)
                for _ in range(30)
            ]
            async with asyncio.timeout(60):
                await asyncio.gather(*streams, *map(call, range(30)))
            assert max(peaks) <= 16
            assert sample(batcher, "ganserve_pending_images") == 0


async def test_a_cancelled_caller_leaves_its_batchmates_unharmed():
    model = GatedModel()
    async with running(model) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        leaver, stayer = start(batcher, 2), start(batcher, 3)
        await settle()
        model.release(1)
        await model.has_started()  # both are in this batch
        leaver.cancel()
        model.release()
        assert ((await stayer).pixels == images(3)).all()
        await first
        with pytest.raises(asyncio.CancelledError):
            await leaver
    assert model.batches == [[1], [2, 3]]
    assert sample(batcher, "ganserve_abandoned_images_total", reason="cancelled") == 0


async def test_rows_of_a_caller_that_has_gone_never_reach_the_model():
    model = GatedModel()
    async with running(model) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        leaver, stayer = start(batcher, 2, 3), start(batcher, 4)
        await settle()
        leaver.cancel()
        await settle()
        assert sample(batcher, "ganserve_pending_images") == 1
        model.release()
        await asyncio.gather(first, stayer)
    assert model.batches == [[1], [4]]
    assert sample(batcher, "ganserve_abandoned_images_total", reason="cancelled") == 2


async def test_a_half_served_caller_that_has_gone_frees_the_rest():
    model = GatedModel()
    async with running(model) as batcher:
        leaver = start(batcher, *range(10))
        await model.has_started()
        leaver.cancel()
        await settle()
        model.release()
        assert ((await start(batcher, 50)).pixels == images(50)).all()
    assert model.batches == [[0, 1, 2, 3], [50]]
    assert sample(batcher, "ganserve_abandoned_images_total", reason="cancelled") == 6


async def test_rows_past_their_deadline_never_reach_the_model():
    model = GatedModel()
    async with running(model) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        late, stayer = start(batcher, 2, 3, seconds=0), start(batcher, 4)
        await settle()
        model.release()
        with pytest.raises(DeadlineExceeded):
            await late
        await asyncio.gather(first, stayer)
    assert model.batches == [[1], [4]]
    assert sample(batcher, "ganserve_abandoned_images_total", reason="deadline") == 2


async def test_a_caller_cancelled_at_its_deadline_counts_as_such():
    model = GatedModel()
    async with running(model) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await start(batcher, 2, seconds=0.02)
        model.release()
        await first
    assert sample(batcher, "ganserve_abandoned_images_total", reason="deadline") == 1


async def test_a_caller_cancelled_just_before_its_deadline_was_cancelled_by_it():
    model = GatedModel()
    async with running(model) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        late = start(batcher, 2, seconds=0.004)
        await asyncio.sleep(0)
        late.cancel()
        model.release()
        await asyncio.wait([first, late])
    assert sample(batcher, "ganserve_abandoned_images_total", reason="deadline") == 1


async def test_the_time_that_a_call_was_given_counts_not_that_of_its_last_chunk():
    model = GatedModel()
    call = Call("")
    call.began -= 15  # the slack of so long a call is 0.15 s
    async with running(model) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        token = current_call.set(call)
        late = start(batcher, 2, seconds=0.1)
        current_call.reset(token)
        await asyncio.sleep(0)
        late.cancel()
        model.release()
        await asyncio.wait([first, late])
    assert sample(batcher, "ganserve_abandoned_images_total", reason="deadline") == 1


async def test_a_fault_fails_its_batch_alone():
    model = GatedModel()
    model.fails_on = 2
    async with running(model) as batcher:
        first = start(batcher, 1)
        await model.has_started()
        faulty, batchmate = start(batcher, 2), start(batcher, 3)
        large = start(batcher, *range(10, 18))  # two rows in the faulty batch
        await settle()
        model.release()
        for request in (faulty, batchmate, large):
            with pytest.raises(RuntimeError, match="failed on a batch") as failure:
                await request
            assert isinstance(failure.value.__cause__, ArithmeticError)
        assert ((await first).pixels == images(1)).all()
        assert ((await start(batcher, 5)).pixels == images(5)).all()
    assert model.batches == [[1], [2, 3, 10, 11], [5]]
    assert sample(batcher, "ganserve_abandoned_images_total", reason="failed") == 6


async def test_closing_answers_what_was_accepted_and_refuses_the_rest():
    model = GatedModel()
    async with running(model) as batcher:
        accepted = [start(batcher, *range(value, value + 3)) for value in (0, 10, 20)]
        await model.has_started()
        closing = asyncio.ensure_future(batcher.close())
        await settle()
        with pytest.raises(ShuttingDown):
            await start(batcher, 99)
        assert not closing.done()
        model.release()
        await closing
        for value, request in zip((0, 10, 20), accepted, strict=True):
            assert ((await request).pixels == images(*range(value, value + 3))).all()


async def test_closing_waits_for_no_company():
    model = GatedModel(is_open=True)
    async with running(model, max_wait_seconds=60) as batcher:
        request = start(batcher, 1)
        await settle()
        await asyncio.wait_for(batcher.close(), 20)
        assert ((await request).pixels == images(1)).all()


async def test_the_oldest_waits_for_company_no_longer_than_allowed():
    model = GatedModel(is_open=True)
    async with running(model, max_wait_seconds=0.1) as batcher:
        started = time.monotonic()
        generated = await start(batcher, 1)
        assert time.monotonic() - started >= 0.1
        assert generated.queue_seconds >= 0.1


async def test_a_full_batch_does_not_wait():
    model = GatedModel(is_open=True)
    async with running(model, max_wait_seconds=60) as batcher:
        await asyncio.wait_for(asyncio.gather(start(batcher, 1, 2), start(batcher, 3, 4)), 20)
    assert model.batches == [[1, 2, 3, 4]]


async def test_what_a_full_batch_leaves_waits_for_company():
    model = GatedModel(is_open=True)
    async with running(model, max_wait_seconds=60) as batcher:
        first = start(batcher, *range(5))
        await eventually(lambda: model.batches and batcher._idle == 1)
        assert model.batches == [[0, 1, 2, 3]]
        await asyncio.wait_for(asyncio.gather(first, start(batcher, 5, 6, 7)), 20)
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_a_full_batch_that_idle_workers_share_does_not_wait():
    model = GatedModel(is_open=True)
    async with running(model, max_wait_seconds=60, instances=2) as batcher:
        await eventually(lambda: batcher._idle == 2)
        await asyncio.wait_for(start(batcher, 1, 2, 3, 4), 20)
    assert sorted(model.batches) == [[1, 2], [3, 4]]


async def test_every_batch_and_request_is_measured():
    model = GatedModel(is_open=True)
    async with running(model) as batcher:
        await start(batcher, *range(6))
    assert sample(batcher, "ganserve_batch_images_count", model="m") == 2
    assert sample(batcher, "ganserve_batch_images_sum", model="m") == 6
    assert sample(batcher, "ganserve_compute_seconds_count", model="m") == 2
    assert sample(batcher, "ganserve_queue_seconds_count") == 1
    assert sample(batcher, "ganserve_padding_images_total", model="m") == 0


async def test_the_model_calls_of_a_split_request_are_summed():
    model = GatedModel(is_open=True)
    async with running(model) as batcher:
        generated = await start(batcher, *range(10))
    assert sample(batcher, "ganserve_compute_seconds_count", model="m") == 3
    seconds = sample(batcher, "ganserve_compute_seconds_sum", model="m")
    assert generated.compute_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("inline_seconds", [0, 60], ids=["worker", "inline"])
async def test_a_fault_of_who_is_told_of_batches_harms_no_caller(inline_seconds):
    faults = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: faults.append(context["exception"])
    )

    def tell(_, __):
        raise ArithmeticError("a fault of tracing")

    model = GatedModel(is_open=True)
    async with running(model, on_batch=tell, inline_seconds=inline_seconds) as batcher:
        await start(batcher, 0)  # so that the batcher knows how long the model takes
        await eventually(lambda: batcher._idle == batcher._instances)
        assert len((await start(batcher, *range(10))).pixels) == 10
    assert sample(batcher, "ganserve_abandoned_images_total", reason="failed") == 0
    assert [type(fault) for fault in faults] == [ArithmeticError] * len(model.batches)


async def test_who_is_told_of_batches_is_told_of_those_that_failed_too():
    model, told = GatedModel(is_open=True), []
    model.fails_on = 2
    async with running(model, on_batch=lambda *batch: told.append(batch)) as batcher:
        await start(batcher, 1)
        before = time.monotonic()
        with pytest.raises(RuntimeError):
            await start(batcher, 2, 3)
        assert (await start(batcher, 4)).pixels.shape == (1, *SHAPE)
    (_, nothing), (failed, cause), (_, nothing_again) = told
    assert nothing is nothing_again is None
    assert isinstance(cause, ArithmeticError)
    assert (failed.rows, failed.images.shape) == (2, (0, *SHAPE))
    assert before <= failed.started_at <= failed.started_at + failed.seconds <= time.monotonic()


async def test_a_request_whose_images_find_no_memory_fails_alone_and_at_once():
    side = 2**23  # more bytes of an image than an address can say
    model = GatedModel()

    def make_images(latents, labels):
        model(latents, labels)
        return np.broadcast_to(np.uint8(7), (len(latents), side, side, 3))

    metrics = Metrics(CollectorRegistry())
    shape = (side, side, 3)
    settings = {"model_name": "m", "latent_dim": 2, "max_batch_size": 4, "queue_size": 64}
    told = []
    batcher = Batcher(
        *(make_images, shape, metrics),
        **settings,
        on_batch=lambda _, error: told.append(error),
    )
    large = start(batcher, *range(5))
    await model.has_started()
    small = start(batcher, 100)
    await settle()
    model.release()
    async with asyncio.timeout(20):
        assert (await small).pixels[0, 0, 0, 0] == 7
        with pytest.raises(RuntimeError, match="the model failed on a batch") as error:
            await large
    assert isinstance(error.value.__cause__, MemoryError)
    assert told == [None, None]  # the model did not fail, and each batch is told of once
    assert metrics.registry.get_sample_value("ganserve_pending_images") == 0
    await batcher.close()


async def test_a_request_too_large_for_the_memory_leaves_the_rest_of_its_batch_unharmed():
    side = 2**23  # more bytes of two images than an address can say
    results = Results((side, side, 3), Metrics(CollectorRegistry()), "m")
    loop = asyncio.get_running_loop()
    large, small = (Entry(rows(*range(n)), None, 1.0, 0.0, loop.create_future()) for n in (2, 1))
    images = np.broadcast_to(np.uint8(7), (2, side, side, 3))
    parts = [Part(large, 0, 1), Part(small, 0, 1)]
    ((part, error),) = results.deliver(Batch(parts, images, 0.0, 0.0, 0.0))
    assert part.entry is large
    assert isinstance(error, MemoryError)
    assert (await small.future).pixels[0, 0, 0, 0] == 7
    fail(large, RuntimeError("so it is told"))
    later = [Part(large, 1, 2)]  # was on its way already
    assert results.deliver(Batch(later, images[:1], 0.0, 0.0, 0.0)) == []


async def test_rows_that_come_after_some_that_found_no_memory_do_not_complete_a_request(
    monkeypatch,
):
    results = Results(SHAPE, Metrics(CollectorRegistry()), "m")
    entry = Entry(rows(1, 2), None, 1.0, 0.0, asyncio.get_running_loop().create_future())

    def find_no_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("ganserve.batching.results.np.empty", find_no_memory)
        assert results.deliver(Batch([Part(entry, 0, 1)], images(1), 0.0, 0.0, 0.0))
    results.deliver(Batch([Part(entry, 1, 2)], images(2), 0.0, 0.0, 0.0))
    assert not entry.future.done()  # the first row is whatever lay in memory


async def test_an_error_that_nobody_waits_for_any_more_is_silent():
    loop, told = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: told.append(context))
    entry = Entry(rows(1), None, 1.0, 0.0, loop.create_future())
    fail(entry, DeadlineExceeded("too late"))
    fail(entry, DeadlineExceeded("told twice, as where two batches with rows of it fail"))
    del entry
    gc.collect()
    assert told == []


async def test_under_random_load_and_cancels_everyone_who_stays_gets_their_own_images():
    random = np.random.default_rng(7)
    model = GatedModel(is_open=True)
    async with running(model, instances=2, queue_size=100_000) as batcher:
        requests = []
        for _ in range(300):
            values = random.integers(0, 120, size=random.integers(1, 11)).tolist()
            request = start(batcher, *values)
            requests.append((values, request, random.random() < 0.2))
            if random.random() < 0.3:
                await settle()
        for _, request, leaves in requests:
            if leaves:
                request.cancel()
        for values, request, leaves in requests:
            if not leaves:
                assert ((await request).pixels == images(*values)).all()
        await asyncio.wait([request for _, request, _ in requests])
        assert sample(batcher, "ganserve_pending_images") == 0


class SeenModel:
    """Keeps the latents and labels of every batch; its images are the rows' places in them."""

    def __init__(self):
        self.batches = []
        self.labels = []
        self.threads = []
        self.error = None

    def __call__(self, latents, labels):
        self.batches.append(latents)
        self.labels.append(labels)
        self.threads.append(threading.current_thread())
        if self.error is not None:
            raise self.error
        places = np.arange(len(latents), dtype=np.uint8)
        return np.repeat(places, 2).reshape(-1, *SHAPE)

    def release(self):
        """Never holds anything."""


def submit(batcher, rows, seconds=60.0, **arguments):
    deadline = time.monotonic() + seconds
    return asyncio.ensure_future(batcher.submit(rows, deadline=deadline, **arguments))


async def become_quick(batcher):
    """Let the batcher learn how long a call takes; the worker waits again afterwards."""
    await submit(batcher, seeds(1))
    await eventually(lambda: batcher._idle == batcher._instances)


def seeds(*values):
    return np.array(values, np.uint64)


async def test_latents_of_seeds_are_drawn_with_the_batch_each_with_its_truncation():
    model = SeenModel()
    async with running(model, max_batch_size=16) as batcher:
        given = rows(7, 8)
        requests = [
            submit(batcher, seeds(1, 2)),
            submit(batcher, given),
            submit(batcher, seeds(3), truncation=0.5),
            submit(batcher, seeds(2**64 - 1)),
        ]
        answers = [answer.pixels[:, 0, 0, 0].tolist() for answer in await asyncio.gather(*requests)]
    (batch,) = model.batches
    expected = [
        draw_latents(seeds(1, 2), 2),
        given,
        truncate(draw_latents(seeds(3), 2), 0.5),
        draw_latents(seeds(2**64 - 1), 2),
    ]
    assert batch.dtype == np.float32
    assert (batch == np.concatenate(expected)).all()
    assert answers == [[0, 1], [2, 3], [4], [5]]


async def test_seeds_of_a_split_request_are_drawn_once_each():
    model = SeenModel()
    async with running(model) as batcher:
        await submit(batcher, seeds(*range(10)))
    assert [len(batch) for batch in model.batches] == [4, 4, 2]
    assert (np.concatenate(model.batches) == draw_latents(seeds(*range(10)), 2)).all()


async def test_rows_from_within_requests_keep_their_order_labels_and_truncation():
    loop = asyncio.get_running_loop()

    def part(rows, start, stop, truncation=1.0):
        labels = np.arange(len(rows)) + 10 * int(rows.flat[0])
        return Part(Entry(rows, labels, truncation, 0.0, loop.create_future()), start, stop)

    parts = [
        part(seeds(1, 2, 3, 4), 2, 4),
        part(rows(5, 6, 7), 1, 2),
        part(seeds(8, 9, 10), 1, 3, truncation=0.5),
        part(seeds(11), 0, 1),
    ]
    latents, labels = gather(parts, 2)
    expected = [
        draw_latents(seeds(3, 4), 2),
        rows(6),
        truncate(draw_latents(seeds(9, 10), 2), 0.5),
        draw_latents(seeds(11), 2),
    ]
    assert (latents == np.concatenate(expected)).all()
    assert labels.tolist() == [12, 13, 51, 81, 82, 110]
    padded = np.empty((8, *SHAPE), np.uint8)
    assert Batch(parts, padded, 0.0, 0.0).rows == 6


async def test_what_arrives_in_one_turn_of_the_event_loop_shares_a_call():
    model = SeenModel()
    async with running(model) as batcher:
        await asyncio.gather(*(submit(batcher, seeds(value)) for value in range(4)))
    assert [len(batch) for batch in model.batches] == [4]


@pytest.mark.parametrize("inline_seconds", [0, 60], ids=["worker", "inline"])
async def test_a_caller_that_leaves_before_it_is_queued_never_reaches_the_model(inline_seconds):
    model = SeenModel()
    async with running(model, inline_seconds=inline_seconds) as batcher:
        await become_quick(batcher)
        model.batches.clear()
        leaver, stayer = submit(batcher, seeds(1)), submit(batcher, seeds(2))
        await asyncio.sleep(0)  # both have arrived, neither is queued
        leaver.cancel()
        await stayer
    assert leaver.cancelled()
    assert [len(batch) for batch in model.batches] == [1]
    assert sample(batcher, "ganserve_abandoned_images_total", reason="cancelled") == 1
    assert sample(batcher, "ganserve_pending_images") == 0


@pytest.mark.parametrize(
    ("count", "calls"), [(1, [2]), (2, [2]), (3, [8]), (8, [8]), (9, [8, 2]), (20, [8, 8, 8])]
)
async def test_batches_are_padded_up_to_the_next_size_and_that_is_counted(count, calls):
    model = SeenModel()
    async with running(model, max_batch_size=8, batch_sizes=(8, 2)) as batcher:
        pixels = (await submit(batcher, seeds(*range(count)))).pixels
    assert [len(batch) for batch in model.batches] == calls
    assert (np.concatenate(model.batches)[:count] == draw_latents(seeds(*range(count)), 2)).all()
    assert len(pixels) == count
    assert sample(batcher, "ganserve_padding_images_total", model="m") == sum(calls) - count
    assert sample(batcher, "ganserve_batch_images_sum", model="m") == count


async def test_padding_has_labels_too():
    model = SeenModel()
    async with running(model, batch_sizes=(4,)) as batcher:
        await submit(batcher, seeds(1, 2), labels=np.array([5, 6], np.int64))
    assert model.labels[0].tolist() == [5, 6, 0, 0]


async def test_quick_calls_are_made_in_the_event_loop_once_they_are_known_to_be():
    model = SeenModel()
    async with running(model, inline_seconds=60) as batcher:
        await become_quick(batcher)
        for _ in range(2):
            await submit(batcher, seeds(1))
    here = threading.current_thread()
    assert [thread is here for thread in model.threads] == [False, True, True]


async def test_calls_that_are_not_quick_are_made_by_the_workers():
    model = SeenModel()
    async with running(model, inline_seconds=1e-9) as batcher:
        await become_quick(batcher)
        for _ in range(2):
            await submit(batcher, seeds(1))
    assert threading.current_thread() not in model.threads


async def test_calls_that_are_not_quick_wait_for_no_company():
    """What comes while a worker is busy is company enough for those that wait for it."""
    model, reached = SeenModel(), threading.Event()

    def run_batch(latents, labels):
        reached.set()
        return model(latents, labels)

    run_batch.release = model.release
    async with running(run_batch) as batcher:
        request = submit(batcher, seeds(1))
        for _ in range(2):  # turns: it arrives, and is brought to the workers
            await asyncio.sleep(0)
        assert reached.wait(10)  # the event loop takes no more of them meanwhile
        await request


@pytest.mark.parametrize(
    ("count", "inline_seconds", "is_quick"),
    [
        pytest.param(1, 0.02, True, id="small"),
        pytest.param(4, 0.02, False, id="full"),
        pytest.param(40, 0.05, True, id="several"),
    ],
)
async def test_how_quick_a_call_is_depends_on_its_rows_and_not_on_all_that_wait(
    count, inline_seconds, is_quick
):
    model = SeenModel()
    async with running(model, inline_seconds=inline_seconds) as batcher:
        await become_quick(batcher)
        batcher._latency = LatencyEstimate()
        batcher._latency.update(1, 0.01)  # so the four of a full batch should take 0.04 s
        model.threads.clear()
        await submit(batcher, seeds(*range(count)))
    assert (model.threads[0] is threading.current_thread()) == is_quick


async def test_calls_whose_latents_are_slow_to_draw_are_not_quick(monkeypatch):
    def gather_slowly(*arguments):
        time.sleep(0.1)
        return gather(*arguments)

    monkeypatch.setattr("ganserve.batching.batcher.gather", gather_slowly)
    model = SeenModel()
    async with running(model, inline_seconds=0.05) as batcher:
        await become_quick(batcher)
        for _ in range(2):
            generated = await submit(batcher, seeds(1))
    assert threading.current_thread() not in model.threads
    assert generated.compute_seconds < 0.1


async def test_quick_calls_are_left_to_the_workers_while_those_work():
    model, gate, held = SeenModel(), threading.Semaphore(1), threading.Event()

    def run_batch(latents, labels):
        images = model(latents, labels)
        held.set()
        assert gate.acquire(timeout=20)
        return images

    run_batch.release = gate.release
    async with running(run_batch, inline_seconds=60) as batcher:
        await become_quick(batcher)
        batcher._inline_seconds = 0.0  # for once
        first = submit(batcher, seeds(1))
        held.clear()
        await asyncio.to_thread(held.wait, 20)
        batcher._inline_seconds = 60
        second = submit(batcher, seeds(2))
        await settle()
        gate.release(2)
        await asyncio.gather(first, second)
    assert threading.current_thread() not in model.threads


async def test_quick_calls_wait_for_company_too_where_that_is_asked_for():
    model = SeenModel()
    async with running(model, inline_seconds=60, max_wait_seconds=0.1) as batcher:
        await become_quick(batcher)
        assert (await submit(batcher, seeds(1))).queue_seconds >= 0.1


async def test_how_long_one_batch_waited_takes_nothing_from_the_next():
    model = SeenModel()
    async with running(model, inline_seconds=60) as batcher:
        await become_quick(batcher)
        await asyncio.gather(submit(batcher, seeds(1)), submit(batcher, seeds(2)))
        await submit(batcher, seeds(3))  # waits some turns, as the last had company
        model.batches.clear()
        first = submit(batcher, seeds(4))
        for _ in range(4):
            await asyncio.sleep(0)
        await asyncio.gather(first, submit(batcher, seeds(5)))
    assert [len(batch) for batch in model.batches] == [2]


async def test_a_full_batch_in_the_event_loop_waits_for_no_company():
    model = SeenModel()
    async with running(model, inline_seconds=60) as batcher:
        await become_quick(batcher)
        await asyncio.gather(submit(batcher, seeds(1)), submit(batcher, seeds(2)))
        model.batches.clear()  # what comes now waits some turns, as the last had company
        request, turns = submit(batcher, seeds(*range(4))), 0
        while not model.batches:
            await asyncio.sleep(0)
            turns += 1
        await request
    assert turns <= 2  # it arrives in one and reaches the model in the next


async def test_a_caller_that_is_late_has_no_other_wait_for_company():
    model = SeenModel()
    async with running(model, inline_seconds=60) as batcher:
        await become_quick(batcher)
        for _ in range(80):  # until requests that stay alone do not wait at all
            await submit(batcher, seeds(1))
        with pytest.raises(DeadlineExceeded):
            await submit(batcher, seeds(2), seconds=0)
        model.batches.clear()
        first = submit(batcher, seeds(3))
        for _ in range(4):
            await asyncio.sleep(0)
        await asyncio.gather(first, submit(batcher, seeds(4)))
    assert [len(batch) for batch in model.batches] == [1, 1]


async def test_a_fault_in_the_event_loop_fails_its_batch_alone():
    model = SeenModel()
    async with running(model, inline_seconds=60) as batcher:
        await become_quick(batcher)
        model.error = ArithmeticError("a fault of the model")
        with pytest.raises(RuntimeError, match="failed on a batch") as failure:
            await submit(batcher, seeds(2))
        assert failure.value.__cause__ is model.error
        model.error = None
        assert len((await submit(batcher, seeds(3))).pixels) == 1
    assert threading.current_thread() in model.threads


async def test_a_large_request_in_the_event_loop_leaves_turns_to_others():
    model = SeenModel()
    async with running(model, inline_seconds=60) as batcher:
        await become_quick(batcher)
        large, turns = submit(batcher, seeds(*range(40))), 0
        while not large.done():
            await asyncio.sleep(0)
            turns += 1
        assert len((await large).pixels) == 40
    assert turns >= 10
    assert [len(batch) for batch in model.batches[1:]] == [4] * 10  # the workers have no share


@pytest.mark.parametrize("leaves", [False, True], ids=["stay", "leave"])
async def test_calls_that_come_during_a_backlog_add_no_model_call_to_a_turn(leaves):
    model, here = SeenModel(), threading.current_thread()
    async with running(model, inline_seconds=60, queue_size=1000) as batcher:
        await become_quick(batcher)
        large = [submit(batcher, seeds(*range(100))) for _ in range(3)]
        small, calls = [], []
        while not all(request.done() for request in large):
            before = model.threads.count(here)
            small.append(submit(batcher, seeds(1)))
            await asyncio.sleep(0)
            calls.append(model.threads.count(here) - before)
            if leaves:
                small[-1].cancel()
        await asyncio.wait(small)
    assert max(calls) == 1


async def test_images_are_let_go_while_no_other_batch_comes():
    async with running(GatedModel(is_open=True), instances=2) as batcher:
        one, several = [weakref.ref((await start(batcher, *v)).pixels) for v in ([1], range(9))]
        await eventually(lambda: one() is None and several() is None)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
async def test_the_models_threads_let_the_event_loop_go_first():
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    priorities = []
    model = SeenModel()

    def run_batch(latents, labels):
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return model(latents, labels)

    run_batch.release = model.release
    async with running(run_batch) as batcher:
        await submit(batcher, seeds(1))
    assert priorities == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.parametrize("inline_seconds", [0, 60], ids=["worker", "inline"])
async def test_closing_answers_what_has_arrived_but_is_not_queued(inline_seconds, monkeypatch):
    model = SeenModel()
    async with running(model, inline_seconds=inline_seconds) as batcher:
        await become_quick(batcher)
        end_workers = batcher._end_workers

        def end_them_at_once():
            end_workers()
            for worker in batcher._workers:
                worker.join(20)  # before the event loop's next turn, which would queue the request

        monkeypatch.setattr(batcher, "_end_workers", end_them_at_once)
        request = submit(batcher, seeds(2))
        await asyncio.sleep(0)
        await batcher.close()
        assert len((await asyncio.wait_for(request, 5)).pixels) == 1


async def test_under_random_quick_load_everyone_gets_their_own_images():
    random = np.random.default_rng(8)
    seen = {}

    def model(latents, _):
        return (latents[:, :1] * 16 + 128).astype(np.uint8).repeat(2, 1).reshape(-1, *SHAPE)

    model.release = lambda: None
    async with running(model, inline_seconds=60, instances=2, queue_size=100_000) as batcher:
        for _ in range(300):
            values = seeds(*random.integers(0, 1000, size=random.integers(1, 11)))
            seen[submit(batcher, values)] = values
            if random.random() < 0.3:
                await settle()
        leavers = [request for request in seen if random.random() < 0.1]
        for request in leavers:
            request.cancel()
        await asyncio.wait(seen)
        for request, values in seen.items():
            if not request.cancelled():
                assert (request.result().pixels == model(draw_latents(values, 2), None)).all()
        assert sample(batcher, "ganserve_pending_images") == 0
