"""Load from several processes: one test together, and none of them left behind."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ganserve.client.channel_security import ChannelSecurity
from ganserve.load_test.plan import LoadPlan
from ganserve.load_test.workers import offer_in_processes
from tests.ganserve.certificates import Authority
from tests.ganserve.conftest import eventually
from tests.ganserve.slow_service import SlowService, offer, running

TOKEN = "0123456789abcdef0123456789abcdef"


def children(process_id: int) -> list[int]:
    """Processes that a process has started and that run still."""
    file = Path(f"/proc/{process_id}/task/{process_id}/children")
    return [int(child) for child in file.read_text().split()]


def runs(process_id: int) -> bool:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # ended; whoever adopted it has not looked


@contextlib.asynccontextmanager
async def load_test(*arguments: str):
    """`ganserve load-test` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "ganserve", "load-test", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def press_ctrl_c(process) -> None:
    """Interrupt the whole group of processes, as a terminal does."""
    os.killpg(process.pid, signal.SIGINT)


async def both_ask(service: SlowService) -> None:
    await eventually(lambda: len(service.peers) == 2)


@pytest.mark.parametrize("settings", [{"rate": 100}, {"concurrency": 5}], ids=["open", "closed"])
async def test_processes_share_the_load_and_the_seeds(settings):
    service = SlowService(seconds=0.001)
    async with running(service) as address:
        report = await offer(
            address, processes=2, images_per_request=2, seconds=1, warm_up_seconds=0, **settings
        )
    assert report.tester.processes == 2
    assert report.calls == len(service.requests) == sum(service.peers.values())
    assert len(service.peers) == 2
    starts = [request.seed_range.start for request in service.requests]
    assert len(set(starts)) == len(starts)
    assert {start % 4 for start in starts} == {0, 2}  # they take turns
    if "rate" in settings:
        assert 60 < report.calls < 140
    else:
        assert 3 <= service.most_at_once <= 5
    assert report.latency_seconds["p50"] > 0.001


async def test_there_are_no_more_processes_than_calls_under_way():
    service = SlowService(seconds=0.01)
    async with running(service) as address:
        report = await offer(address, processes=3, concurrency=1, seconds=0.3, warm_up_seconds=0)
    assert (report.tester.processes, len(service.peers), service.most_at_once) == (1, 1, 1)


async def test_processes_compare_with_the_same_references():
    service = SlowService(seconds=0)
    async with running(service) as address:
        task = asyncio.create_task(
            offer(address, processes=2, verify=True, seconds=1.0, warm_up_seconds=0)
        )
        await eventually(lambda: len(service.requests) > 64)  # all references are there
        service.wrong_seed = 3
        verification = (await task).verification
    assert len(service.peers) == 3  # the two, and this process for the references
    assert verification.wrong > 1
    assert set(verification.wrong_requests) == {3}


async def test_processes_show_certificate_and_token(tmp_path, repository, running_server):
    authority = Authority(tmp_path / "certificates")
    certificate, key = authority.issue()
    client_certificate, client_key = authority.issue("client")
    token_file = tmp_path / "tokens"
    token_file.write_text(f"{TOKEN}\n")
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": authority.ca}
    security = ChannelSecurity(authority.ca, client_certificate, client_key, token_file)
    load = {"processes": 2, "seconds": 0.3, "warm_up_seconds": 0, "timeout_seconds": 20}
    async with running_server(repository, token_file=token_file, **settings) as server:
        report = await offer(server.address, security=security, **load)
        assert (report.errors, report.calls > 0) == ({}, True)
        bare = ChannelSecurity(authority.ca, client_certificate, client_key)
        report = await offer(server.address, security=bare, **load)
        assert report.errors == {"UNAUTHENTICATED": report.calls}


@pytest.mark.parametrize(
    ("security", "error"),
    [
        pytest.param(ChannelSecurity(), ConnectionError, id="no-server"),
        pytest.param(ChannelSecurity(tls_ca="none.pem"), OSError, id="no-file"),
        pytest.param(ChannelSecurity(token_file=os.devnull), ValueError, id="no-token"),
    ],
)
async def test_what_a_process_cannot_do_is_the_error_of_the_test(security, error):
    plan = LoadPlan("127.0.0.1:1", timeout_seconds=0.2, security=security)
    with pytest.raises(error, match=r"127.0.0.1:1|none.pem|expected one token"):
        await offer_in_processes(plan, 2, asyncio.Event(), asyncio.Event())


async def test_ctrl_c_ends_all_processes_with_a_report():
    service = SlowService(seconds=0.01)
    flags = ["--processes", "2", "--seconds", "100", "--warm-up-seconds", "0", "--json"]
    async with running(service) as address, load_test("--address", address, *flags) as process:
        await both_ask(service)
        workers = children(process.pid)
        assert len(workers) == 2
        calls = len(service.requests)
        await eventually(lambda: len(service.requests) > calls + 20)
        press_ctrl_c(process)
        output, errors = await process.communicate()
        report = json.loads(output)
    assert (process.returncode, errors) == (130, b"")
    assert report["interrupted"]
    assert 0 <= report["calls"] + report["unfinished"] - len(service.requests) <= 8  # on the way
    assert report["calls"] >= 12
    assert not any(runs(worker) for worker in workers)


async def test_a_second_ctrl_c_does_not_wait_for_the_report():
    service = SlowService(seconds=60)
    async with running(service) as address:
        flags = ["--processes", "2", "--seconds", "100", "--warm-up-seconds", "0"]
        async with load_test("--address", address, *flags) as process:
            await both_ask(service)
            workers = children(process.pid)
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)  # they can answer nothing
            press_ctrl_c(process)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.wait(), 1)  # it waits for the report
            press_ctrl_c(process)
            assert await process.wait() == 130
    assert not any(runs(worker) for worker in workers)


async def test_processes_do_not_outlive_the_one_that_started_them():
    service = SlowService(seconds=0.01)
    async with running(service) as address:
        flags = ["--processes", "2", "--seconds", "100"]
        async with load_test("--address", address, *flags) as process:
            await both_ask(service)
            workers = children(process.pid)
            process.kill()
            await process.wait()
            await eventually(lambda: not any(runs(worker) for worker in workers))


async def test_a_process_that_is_lost_fails_the_test():
    service = SlowService(seconds=0.01)
    async with running(service) as address:
        task = asyncio.create_task(offer(address, processes=2, seconds=100))
        await both_ask(service)
        mine = [child for child in children(os.getpid()) if is_worker(child)]
        assert len(mine) == 2
        os.kill(mine[0], signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="ended early, with exit code -9"):
            await task
    assert not any(runs(worker) for worker in mine)


def is_worker(process_id: int) -> bool:
    return b"ganserve.load_test.workers" in Path(f"/proc/{process_id}/cmdline").read_bytes()
