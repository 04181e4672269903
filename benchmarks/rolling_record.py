"""Hides how the rolling update's counts become a page of Markdown."""

import argparse
import datetime as dt
import platform
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from records import commit, processor

from ganserve.cpus import usable_cpus

if TYPE_CHECKING:
    from rolling_update import Result

_KINDS = ("threads", "asyncio", "node")


def render_page(
    arguments: argparse.Namespace, results: "list[Result]", notes: list[str], problems: list[str]
) -> str:
    """The result as Markdown."""
    updates = [result for result in results if not result.kills]
    kills = [result for result in results if result.kills]
    total = sum(result.calls for result in updates)
    routes = len({result.route for result in results})
    # Routes taken together took the same time.
    seconds = sum(result.seconds for result in results) / (routes if arguments.together else 1)
    names = ("grpcio", "onnxruntime")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    flags = " ".join(flag for flag in sys.argv[1:] if not flag.startswith("--json"))
    retries = "without" if arguments.no_retries else "with"
    lines = [
        f"# Rolling updates and failures under load, {dt.date.today()}",
        "",
        f"- command: `python benchmarks/rolling_update.py {flags}`",
        f"- commit {commit()}, {versions}, Python {platform.python_version()}",
        f"- {processor()}, {usable_cpus()} CPUs for servers, balancer, clients and others",
        f"- took {seconds:.0f} s; other work on the machine: what counts is calls",
        f"- 3 servers, {arguments.drain_seconds:g} s to drain, replaced {arguments.rounds} times",
        f"- then {arguments.swaps} new versions, one after another",
        "- on each route a process with `Client` in threads, `AsyncClient` and `@grpc/grpc-js`",
        f"- {arguments.concurrency} calls of each process under way, {retries} retries",
        *(f"- {note}" for note in notes),
        "",
        f"**{total:,} calls while updating. Problems: {'; '.join(problems) or 'none'}.**",
        "",
        "## Replacing servers, swapping versions",
        "",
        "| route | calls: threads, asyncio, Node.js | failed | wrong bytes | exit codes |",
        "|---|---|---|---|---|",
        *map(_update_row, updates),
        "",
        "| route | started | handled | OK at servers | OK at clients | refused, then repeated |",
        "|---|---|---|---|---|---|",
        *map(_count_row, updates),
        "",
        "Refused are attempts that a server answered otherwise than with OK. Attempts that never",
        "reached a server are repeated by gRPC (transparent retries) or HAProxy unseen.",
        *(["Servers counted both routes' calls, which came together."] * arguments.together),
        "",
        "| route | while | calls | p50 ms | p99 ms | longest ms |",
        "|---|---|---|---|---|---|",
        *(
            f"| {result.route} | {phase} | {times['calls']:,.0f} | {times['p50']:.1f} | "
            f"{times['p99']:.1f} | {times['max']:.0f} |"
            for result in updates
            for phase, times in result.latency_ms.items()
        ),
        "",
        "## SIGKILL of each server, one after another",
        "",
        "| route | client's retries | calls | failed | under way, all kills | wrong bytes |",
        "|---|---|---|---|---|---|",
        *map(_kill_row, kills),
    ]
    return "\n".join([*lines, ""])


def _update_row(result: "Result") -> str:
    calls = ", ".join(f"{result.calls_by_client.get(kind, 0):,}" for kind in _KINDS)
    codes = ", ".join(f"{count} times {code}" for code, count in result.exit_codes.items())
    return f"| {result.route} | {calls} | {_failures(result)} | {result.wrong} | {codes} |"


def _count_row(result: "Result") -> str:
    handled = sum(result.handled.values())
    ok = result.handled.get("OK", 0)
    refused = ", ".join(f"{n} {code}" for code, n in result.handled.items() if code != "OK" and n)
    return (
        f"| {result.route} | {result.started:,} | {handled:,} | {ok:,} | {result.answered:,} "
        f"| {refused or 0} |"
    )


def _kill_row(result: "Result") -> str:
    return (
        f"| {result.route} | {'yes' if result.retries else 'no'} | {result.calls:,} "
        f"| {_failures(result)} | {result.kills * result.under_way_at_most} | {result.wrong} |"
    )


def _failures(result: "Result") -> str:
    if not result.failures:
        return "0"
    return ", ".join(f"{count} {name}" for name, count in sorted(result.failures.items()))
