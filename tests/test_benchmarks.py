"""The benchmarks judge as they say: what is counted, from when, in which order."""

import asyncio
import contextlib
import importlib
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

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


@contextlib.asynccontextmanager
async def answering(answer):
    """A server whose calls of GenerateImages are answered so; its address."""
    server = grpc.aio.server()
    handlers = {"GenerateImages": grpc.unary_unary_rpc_method_handler(answer)}
    service = "ganserve.v1.ImageGenerationService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_refusal_s_time_counts_from_when_the_call_was_due(module):
    async def refuse(_, context):
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    async with answering(refuse) as address:
        # Few calls are under way then, and some forty are due until it ends.
        asyncio.get_running_loop().call_later(0.5, time.sleep, 0.2)
        report = await module("serving_client").open_loop(address, "any", "1", "200", "2")
    assert report["refused"] > 300
    assert report["refusal"]["p99"] > 0.15
    assert report["lateness"]["p99"] > 0.15


async def test_clients_count_what_ends_in_the_window_that_all_share(module, monkeypatch):
    async def answer(_, __):
        await asyncio.sleep(0.05)
        return b""

    begin = time.monotonic() + 0.4
    monkeypatch.setattr(sys.stdin, "readline", lambda: f"{begin}\n", raising=False)
    async with answering(answer) as address:
        report = await module("serving_client").shared(address, "any", "1", "2", "0.5")
    assert time.monotonic() > begin + 0.5
    assert 4 <= report["calls"] <= 20  # not those of the time before, which would be 16 more
