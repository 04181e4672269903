"""A load test as a whole: references, connections, one process or several, figures.

The load is offered by this process, or by several others where one Python process is too slow.
"""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import grpc

from ganserve.client.async_client import AsyncClient
from ganserve.client.failures import CallError
from ganserve.client.models import ModelInfo
from ganserve.load_test.offering import connected, offer_share
from ganserve.load_test.plan import LoadPlan, LoadTally
from ganserve.load_test.references import fetch_references
from ganserve.load_test.report import LoadReport, make_report
from ganserve.load_test.workers import offer_in_processes

_USUALLY_ALLOWED_IMAGES = 64  # a call; a server may allow more


async def offer_load(
    plan: LoadPlan,
    *,
    processes: int = 1,
    verify: bool = False,
    stop: asyncio.Event | None = None,
) -> LoadReport:
    """Ask for images as planned and report.

    Calls that start in the first `warm_up_seconds` are not counted; calls under way at the end
    are waited for. Each call asks for other seeds.

    Args:
        plan: The whole load.
        processes: Processes that share the load; 1 is this one.
        verify: Whether the images of the same seeds are asked for again and again and compared
            with those fetched before the load.
        stop: Set it to end the test early; the report is then that of the time so far.

    Raises:
        ConnectionError: no server answers, within `timeout_seconds` and the attempts of a client;
            it says why.
        OSError: a file of `security` cannot be read, or a process of ours is lost.
        ValueError: a file of `security` holds not what it must, the server refuses what every call
            asks for, such as no model of several, or no references can be fetched.
    """
    stop = stop or asyncio.Event()
    began = asyncio.Event()
    offering = asyncio.create_task(_offer(plan, processes, verify, began, stop))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({offering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not offering.done() and not began.is_set():
            return make_report(plan, [])  # stopped before there was any load
        return make_report(*await offering)
    finally:
        for task in (offering, stopping):
            task.cancel()
        await asyncio.gather(offering, stopping, return_exceptions=True)


@contextlib.contextmanager
def stopped_by_interrupts() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C ends the program as it usually does.

    Signals go to the main thread; in others the event is never set.
    """
    stop = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _offer(
    plan: LoadPlan, processes: int, verify: bool, began: asyncio.Event, stop: asyncio.Event
) -> tuple[LoadPlan, list[LoadTally]]:
    await _require_answer(plan)
    if verify:
        async with connected(replace(plan, connections=1)) as (generate,):
            plan = replace(plan, references=await fetch_references(plan, generate))
    if processes > 1:
        return plan, await offer_in_processes(plan, processes, began, stop)
    async with connected(plan) as connections:
        began.set()
        return plan, [await offer_share(plan, connections, time.perf_counter(), stop)]


async def _require_answer(plan: LoadPlan) -> None:
    """Make sure that a server is there, before connections are waited for that do not say why not.

    Whatever else it answers will do: the load shows how calls fail, such as those without a token,
    or of so many images that they take too long.

    Raises:
        ConnectionError, OSError, ValueError: as `offer_load` does.
    """
    seconds, security = plan.timeout_seconds, plan.security
    async with AsyncClient(plan.address, timeout_seconds=seconds, security=security) as client:
        try:
            models = await client.models()
        except CallError as error:
            if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ConnectionError(str(error)) from None
            return
        if not _may_be_refused(plan, models):
            return
        labels = [] if plan.class_label is None else [plan.class_label]
        seeds = range(plan.images_per_request)
        try:
            await client.generate(model=plan.model, seeds=seeds, class_labels=labels)
        except CallError as error:
            if error.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                raise ValueError(str(error)) from None


def _may_be_refused(plan: LoadPlan, models: Sequence[ModelInfo]) -> bool:
    """Whether every call may ask for too much, or for what the server's models do not have."""
    names = {model.name for model in models}
    if plan.images_per_request > _USUALLY_ALLOWED_IMAGES:
        return True
    if plan.model not in names and (plan.model or len(names) > 1):
        return True  # unless the server has a default
    return any(
        bool(model.class_names) != (plan.class_label is not None)
        or (plan.class_label or 0) >= max(len(model.class_names), 1)
        for model in models
        if model.state == "ready" and plan.model in ("", model.name)
    )
