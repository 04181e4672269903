"""Servers are replaced, swapped in versions and killed under load: the benchmark, made small."""

import asyncio
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ganserve.latents import draw_latents
from ganserve.server import running
from tests.ganserve.conftest import server_config
from tests.ganserve.tiny import reveal_pixels, write_artifact

ROOT = Path(__file__).resolve().parents[1]
ROUTES = ("haproxy", "round-robin")
ROUNDS, SWAPS = 2, 2


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("rolling") / "results.json"
    flags = {"rounds": ROUNDS, "swaps": SWAPS, "kills": 1, "calls": 1000, "quiet-seconds": 0}
    flags |= {"drain-seconds": 2, "json": path}
    command = [sys.executable, ROOT / "benchmarks/rolling_update.py", "--together"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


def pick(results, route, *, kills, retries=True) -> dict[str, Any]:
    found = [
        result
        for result in results
        if (result["route"], result["retries"], bool(result["kills"])) == (route, retries, kills)
    ]
    if not found:
        assert route == "haproxy", "the other needs nothing that may be missing"
        pytest.skip("needs haproxy")
    return found[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("route", ROUTES)
def test_no_call_is_lost_while_servers_are_replaced_and_versions_swapped(results, route):
    result = pick(results, route, kills=False)
    assert result["failures"] == {}
    assert result["wrong"] == 0
    assert result["started"] == sum(result["handled"].values())
    assert result["handled"]["OK"] == result["answered"] >= 1000
    assert result["exit_codes"] == {"0": 3 * (ROUNDS + 1)}
    assert {"replacing", "swapping"} <= result["latency_ms"].keys()
    assert min(result["calls_by_client"].values()) > 50


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("route", ROUTES)
def test_the_clients_retries_hide_a_server_that_is_killed(results, route):
    result = pick(results, route, kills=True)
    assert (result["failures"], result["wrong"]) == ({}, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("route", ROUTES)
def test_without_retries_the_calls_under_way_on_it_fail_and_no_others(results, route):
    result = pick(results, route, kills=True, retries=False)
    assert sum(result["failures"].values()) <= result["under_way_at_most"]
    assert {name.split()[-1] for name in result["failures"]} <= {"UNAVAILABLE"}
    assert result["wrong"] == 0
    if route == "round-robin":  # HAProxy repeats lost calls by itself
        assert result["failures"], "or no failure can be seen at all"


@pytest.mark.parametrize("kind", ["threads", "asyncio", "node"])
async def test_a_client_sees_a_wrong_byte(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    processes = importlib.import_module("rolling_processes")
    modules = None
    if kind == "node":
        modules = await asyncio.to_thread(processes.install_node_modules, tmp_path / "node")
        if isinstance(modules, str):
            pytest.skip(modules)
    write_artifact(tmp_path / "models")
    images = reveal_pixels(draw_latents(np.array([1, 2], np.uint64), 4))
    images[1, 3, 3, 2] ^= 1  # the last byte of the second seed
    pixels = {str(seed): image.tobytes().hex() for seed, image in zip((1, 2), images, strict=True)}
    (tmp_path / "expected.json").write_text(json.dumps({"1": pixels}))

    def call(address: str) -> list[Any]:
        settings = {"name": kind, "concurrency": 2, "retries": True, "round_robin": False}
        client = processes.start_client(kind, address, tmp_path, node_modules=modules, **settings)
        while client.calls < 100:
            client.check()
            time.sleep(0.01)
        return client.stop()

    async with running(server_config(tmp_path / "models")) as server:
        await server.wait_until_ready()
        rows = await asyncio.to_thread(call, server.address)
    verdicts = [row.verdict for row in rows]
    assert len(rows) >= 100
    assert 0 < verdicts.count("wrong") < len(rows)
    assert verdicts.count("wrong") + verdicts.count("right") == len(rows)
