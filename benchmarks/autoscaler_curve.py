"""Record a load curve: what a real server was asked for, second by second, and how it coped.

    python benchmarks/autoscaler_curve.py

One replica with one worker serves the 64x64 generator of the serving benchmark, in requests of four
RAW images. Closed-loop load finds what it can do; then calls arrive at random times at a rate that
rises beyond that and falls again, and `/metrics` is read each second. Takes two and a half minutes
and writes results/autoscaler_curve.csv, which the simulation is fed with and checked against.
"""

import asyncio
import csv
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from serving_models import write_models
from serving_processes import free_port, running, wait_until_serving

from ganserve.load_test.plan import LoadPlan
from ganserve.load_test.run import offer_load

CURVE = Path(__file__).resolve().parent / "results/autoscaler_curve.csv"
IMAGES_PER_REQUEST = 4
STEP_SECONDS = 8.0
# Of what the replica can do: a day with a morning, a peak beyond it, an evening and a late crowd.
SHARES = (0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.3, 1.3, 0.9, 0.7, 0.5, 0.35, 0.2, 0.8, 0.3, 0.2)
COLUMNS = ("second", "arrived", "served", "rejected", "pending", "queue_seconds", "calls")


def read_totals(port: int) -> dict[str, float]:
    """Sums over all labels of what the curve is made of."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            named = sample.labels.get("reason", "queue_full") == "queue_full"
            called = sample.labels.get("grpc_method", "GenerateImages") == "GenerateImages"
            if named and called:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


async def watch(port: int, rows: list[dict[str, float]]) -> None:
    """Append a row each second; counters are turned into differences."""
    begin = time.monotonic()
    before = await asyncio.to_thread(read_totals, port)
    while True:
        await asyncio.sleep(begin + len(rows) + 1 - time.monotonic())
        now = await asyncio.to_thread(read_totals, port)
        change = {name: now[name] - before.get(name, 0.0) for name in now}
        calls = change["ganserve_queue_seconds_count"]
        rows.append(
            {
                "second": len(rows) + 1,
                "arrived": change["grpc_server_started_total"] * IMAGES_PER_REQUEST,
                "served": change["ganserve_images_total"],
                "rejected": change["ganserve_rejected_requests_total"] * IMAGES_PER_REQUEST,
                "pending": now["ganserve_pending_images"],
                "queue_seconds": change["ganserve_queue_seconds_sum"] / calls if calls else 0.0,
                "calls": calls,
            }
        )
        before = now


async def record(address: str, metrics_port: int) -> tuple[float, list[dict[str, float]]]:
    """Capacity in images a second, and the rows."""
    plan = LoadPlan(address, concurrency=16, images_per_request=IMAGES_PER_REQUEST, seconds=8.0)
    most = await offer_load(plan)
    capacity = most.images_per_second
    print(f"capacity: {capacity:.0f} images/s", file=sys.stderr)
    rows: list[dict[str, float]] = []
    watching = asyncio.create_task(watch(metrics_port, rows))
    for share in SHARES:
        rate = share * capacity / IMAGES_PER_REQUEST
        step = replace(plan, rate=rate, seconds=STEP_SECONDS, warm_up_seconds=0.0)
        await offer_load(step)
        print(f"{len(rows)} s: {rows[-1] if rows else ''}", file=sys.stderr)
    watching.cancel()
    return capacity, rows


def main() -> None:
    """Serve, offer load, write the file."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        port, metrics_port = free_port(), free_port()
        flags = {"models": folder, "host": "127.0.0.1", "port": port, "device": "cpu"}
        flags |= {"metrics-port": metrics_port, "instances": 1, "threads": 1}
        flags |= {"drain-seconds": 0, "default-model": "dcgan64", "queue-size": 1024}
        command = [f"--{name}={value}" for name, value in flags.items()]
        with running(["-m", "ganserve", "serve", *command, "--log-level=warning"], port) as process:
            wait_until_serving(process.address)
            capacity, rows = asyncio.run(record(process.address, metrics_port))
    with CURVE.open("w", newline="") as file:
        file.write(f"# capacity {capacity:.1f} images/s, of one worker\n")
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: round(row[name], 5) for name in COLUMNS} for row in rows)


if __name__ == "__main__":
    main()
