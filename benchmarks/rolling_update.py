"""Does a rolling update lose a call? Servers are replaced, swapped in versions, killed, under load.

python benchmarks/rolling_update.py --record

Three servers, a model of a few bytes whose pixels tell seed and version, and clients in three
processes (threads, asyncio, Node.js) that always have calls under way and compare every reply with
the bytes that its seed and its version must have. Behind HAProxy, with examples/haproxy.cfg, and
with the clients' own round robin: quiet; every server replaced, one after another, again and again;
new versions published; then SIGKILL of each server, with the client's retries and without. Exit
code 1 where a call was lost that must not be. Nothing else is measured: latencies are shown to see
what an update does to them.
"""

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from records import write_record
from rolling_processes import (
    HAPROXY,
    ClientKind,
    LoadClient,
    Row,
    Server,
    Totals,
    balancing,
    install_node_modules,
    serving,
    start_client,
)
from rolling_record import render_page

from ganserve.latents import draw_latents

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the tests' artifacts are the smallest
tiny: Any = importlib.import_module("tests.ganserve.tiny")

Route = Literal["haproxy", "round-robin"]
LATENT_DIM = 4
SEEDS = np.array([0, 1, 2**53 + 1, 2**64 - 1, *range(1000, 1252)], np.uint64)
POLL_SECONDS = 0.2
SERVERS = 3


@dataclass(frozen=True)
class Phase:
    """What was done from when to when, in monotonic seconds."""

    name: str
    begin: float
    end: float


@dataclass
class Result:
    """What became of the calls of one run over one route."""

    route: str
    retries: bool
    seconds: float
    calls_by_client: dict[str, int]
    failures: Counter[str]  # client and status code
    details: list[str]  # of the first failures
    wrong: int
    latency_ms: dict[str, dict[str, float]]  # by phase
    started: int = 0  # over all servers, and all routes where several are taken together
    handled: dict[str, int] = field(default_factory=dict)
    answered: int = 0  # OK at the clients, to be compared with handled OK
    exit_codes: dict[int, int] = field(default_factory=dict)
    kills: int = 0
    under_way_at_most: int = 0

    @property
    def calls(self) -> int:
        """All of them."""
        return sum(self.calls_by_client.values())

    def problems(self) -> list[str]:
        """What must not be."""
        found = []
        if self.wrong:
            found.append(f"{self.wrong} replies with wrong bytes")
        if self.kills and not self.retries:
            if {name.split()[-1] for name in self.failures} - {"UNAVAILABLE"}:
                found.append(f"failed otherwise than with UNAVAILABLE: {dict(self.failures)}")
            if self.failures.total() > self.kills * self.under_way_at_most:
                found.append(f"more calls failed than were under way: {dict(self.failures)}")
        elif self.failures:
            found.append(f"failed calls: {dict(self.failures)}, such as {self.details}")
        if not self.kills:
            if self.started != sum(self.handled.values()):
                found.append(f"started {self.started}, handled {self.handled}")
            if self.handled.get("OK") != self.answered:
                found.append(f"handled {self.handled}, answered {self.answered}")
            if set(self.exit_codes) - {0}:
                found.append(f"exit codes {self.exit_codes}")
        return found


class Fleet:
    """The servers and their models, and the clients that call them."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, modules: Path | None) -> None:
        self.folder, self.models = folder, folder / "models"
        self.version = 1
        self._concurrency, self._modules = arguments.concurrency, modules
        self._kinds: list[ClientKind] = [
            kind for kind in get_args(ClientKind) if kind != "node" or modules is not None
        ]
        tiny.write_artifact(self.models, version=1, offset=1)
        (folder / "expected.json").write_text(json.dumps(expected_pixels(arguments.swaps + 1)))
        self.servers = [
            Server(self.models, folder / f"{number}.log", arguments.drain_seconds, POLL_SECONDS)
            for number in range(SERVERS)
        ]

    @property
    def under_way_at_most(self) -> int:
        """Calls of one route at any moment."""
        calls: int = self._concurrency * len(self._kinds)
        return calls

    @contextlib.contextmanager
    def addresses(self, routes: list[Route]) -> Iterator[dict[Route, str]]:
        """Where the clients of each route call."""
        with contextlib.ExitStack() as stack:
            found: dict[Route, str] = {}
            if "haproxy" in routes:
                found["haproxy"] = stack.enter_context(balancing(self.servers))
            if "round-robin" in routes:
                found["round-robin"] = f"ipv4:{','.join(s.address for s in self.servers)}"
            yield found

    def start_clients(
        self, addresses: dict[Route, str], label: str, *, retries: bool
    ) -> dict[Route, list[LoadClient]]:
        """Begin to call over each route."""
        return {
            route: [
                start_client(
                    *(kind, address, self.folder),
                    name=f"{label}.{route}.{kind}",
                    concurrency=self._concurrency,
                    retries=retries,
                    round_robin=route == "round-robin",
                    node_modules=self._modules,
                )
                for kind in self._kinds
            ]
            for route, address in addresses.items()
        }

    def swap(self) -> None:
        """Publish the next version; return once every server serves it, and no other."""
        self.version += 1
        tiny.write_artifact(self.models, version=self.version, offset=self.version)
        end = time.monotonic() + 60
        while any(server.versions_served() != {self.version} for server in self.servers):
            if time.monotonic() > end:
                raise TimeoutError(f"version {self.version} does not serve everywhere")
            time.sleep(0.1)


def expected_pixels(versions: int) -> dict[str, dict[str, str]]:
    """Version to seed to pixels, computed without a server."""
    latents = draw_latents(SEEDS, LATENT_DIM)
    return {
        str(version): {
            str(seed): pixels.tobytes().hex()
            for seed, pixels in zip(SEEDS, tiny.reveal_pixels(latents, offset=version), strict=True)
        }
        for version in range(1, versions + 1)
    }


def main() -> None:
    """Run everything, print the page; --record keeps it."""
    arguments = parse_arguments()
    routes: list[Route] = [*get_args(Route)]
    notes = []
    if HAPROXY is None:
        routes.remove("haproxy")
        notes.append("without HAProxy, which is not installed")
    results = []
    with tempfile.TemporaryDirectory() as name:
        modules = install_node_modules(Path(name) / "node")
        if isinstance(modules, str):
            notes.append(f"without the client in JavaScript: {modules}")
        found = modules if isinstance(modules, Path) else None
        groups = [routes] if arguments.together else [[route] for route in routes]
        for number, group in enumerate(groups):
            fleet = Fleet(Path(name) / str(number), arguments, found)
            with fleet.addresses(group) as addresses:
                results += update_under_load(fleet, addresses, arguments, len(groups))
                with serving(fleet.servers):
                    for retries in (True, False):
                        results += kill_under_load(fleet, addresses, arguments.kills, retries)
    problems = [f"{result.route}: {text}" for result in results for text in result.problems()]
    page = render_page(arguments, results, notes, problems)
    print(page)
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(result) for result in results]))
    if arguments.record:
        print(write_record("rolling-update", page))
    sys.exit("\n".join(problems) or 0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=200_000, help="at least, over all routes")
    parser.add_argument("--rounds", type=int, default=10, help="replacements of every server")
    parser.add_argument("--swaps", type=int, default=10, help="new versions under load")
    parser.add_argument("--kills", type=int, default=SERVERS, help="servers killed")
    parser.add_argument("--quiet-seconds", type=float, default=10.0, help="before all that")
    parser.add_argument("--drain-seconds", type=float, default=3.0, help="as in ganserve serve")
    parser.add_argument("--concurrency", type=int, default=8, help="calls of a client process")
    parser.add_argument("--no-retries", action="store_true", help="clients that never try again")
    parser.add_argument("--together", action="store_true", help="both routes at the same time")
    parser.add_argument("--json", type=Path, help="write what was counted to this file")
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    return parser.parse_args()


def update_under_load(
    fleet: Fleet, addresses: dict[Route, str], arguments: argparse.Namespace, groups: int
) -> list[Result]:
    """Replace every server and swap the version, again and again; one result a route."""
    phases: list[Phase] = []

    def run(name: str, *steps: Callable[[], None]) -> None:
        begin = time.monotonic()
        for step in steps:
            step()
        phases.append(Phase(name, begin, time.monotonic()))
        print(f"{', '.join(addresses)}: {name}, {phases[-1].end - begin:.0f} s", file=sys.stderr)

    retries = not arguments.no_retries
    begin = time.monotonic()
    with serving(fleet.servers):
        clients = fleet.start_clients(addresses, "update", retries=retries)
        everyone = [client for some in clients.values() for client in some]
        wait_for_calls(everyone, 50 * len(everyone))
        run("quiet", lambda: time.sleep(arguments.quiet_seconds))
        replacements = [step for s in fleet.servers for step in (s.stop, s.start)]
        run("replacing", *replacements * arguments.rounds)
        run("swapping", *[fleet.swap] * arguments.swaps)
        left = arguments.calls // groups - sum(client.calls for client in everyone)
        run("the rest", lambda: wait_for_calls(everyone, left))
        rows = {route: stop_clients(some) for route, some in clients.items()}
    totals, exit_codes = Totals(), Counter[int]()
    for server in fleet.servers:
        totals.add(server.ended)
        exit_codes += server.exit_codes
    seconds = time.monotonic() - begin
    answered = sum(row.code == "OK" for some in rows.values() for row in some)
    results = [summarize(route, rows[route], phases, seconds, retries) for route in rows]
    for result in results:
        result.started, result.handled = totals.started, dict(totals.handled)
        result.answered, result.exit_codes = answered, dict(exit_codes)
    return results


def kill_under_load(
    fleet: Fleet, addresses: dict[Route, str], kills: int, retries: bool
) -> list[Result]:
    """Kill one server after another, each started again; one result a route."""
    begin = time.monotonic()
    clients = fleet.start_clients(addresses, f"kill-{retries}", retries=retries)
    everyone = [client for some in clients.values() for client in some]
    wait_for_calls(everyone, 50 * len(everyone))
    for server in fleet.servers[:kills]:
        server.kill()
        wait_for_calls(everyone, 50 * len(everyone))
        server.start()
        wait_for_calls(everyone, 50 * len(everyone))
    rows = {route: stop_clients(some) for route, some in clients.items()}
    seconds = time.monotonic() - begin
    results = [summarize(route, rows[route], [], seconds, retries) for route in rows]
    for result in results:
        result.kills, result.under_way_at_most = kills, fleet.under_way_at_most
    return results


def wait_for_calls(clients: list[LoadClient], calls: int) -> None:
    """Return when so many more calls have ended, and some of every client's."""
    before = [client.calls for client in clients]
    while True:
        more = [client.calls - old for client, old in zip(clients, before, strict=True)]
        if sum(more) >= calls and all(more):
            return
        for client in clients:
            client.check()
        time.sleep(0.05)


def stop_clients(clients: list[LoadClient]) -> list[Row]:
    """All at the same time."""
    rows: list[Row] = []
    threads = [threading.Thread(target=lambda c=c: rows.extend(c.stop())) for c in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows


def summarize(
    route: Route, rows: list[Row], phases: list[Phase], seconds: float, retries: bool
) -> Result:
    """Count."""
    latency = {}
    for phase in phases:
        times = [row.seconds for row in rows if phase.begin <= row.begin < phase.end]
        if times:
            p50, p99, longest = np.percentile(times, [50, 99, 100]) * 1e3
            latency[phase.name] = {"p50": p50, "p99": p99, "max": longest, "calls": len(times)}
    failed = [row for row in rows if row.code != "OK"]
    return Result(
        route=route,
        retries=retries,
        seconds=seconds,
        calls_by_client=dict(Counter(row.client.rpartition(".")[2] for row in rows)),
        failures=Counter(f"{row.client.rpartition('.')[2]} {row.code}" for row in failed),
        details=[row.details for row in failed[:5]],
        wrong=sum(row.verdict == "wrong" for row in rows),
        latency_ms=latency,
    )


if __name__ == "__main__":
    main()
