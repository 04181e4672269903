"""A sweep: load is raised step by step until that is enough, and the knee is found.

The knee is the load of highest power, throughput over mean latency, among those that were carried:
beyond it latency grows faster than throughput (Kleinrock, "Power and deterministic rules of thumb
for probabilistic problems in computer communications", ICC 1979). A server that refuses what is too
much keeps the latency of the rest, so at loads where calls fail power says nothing.
"""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ganserve.load_test.report import LoadReport

LoadKind = Literal["concurrency", "rate"]
# Throughput that rises by less than this is taken for noise; twice in a row, for the end.
_LEAST_RISE = 1.05
_STEPS_WITHOUT_RISE = 2
# Of what arrives. A server that answers less is far beyond its limit.
_OVERLOADED_SHARE = 0.5
_FEWEST_ARRIVALS = 10  # that tell anything; there are fewer where calls take seconds
_CARRIED_SHARE = 0.99  # of the calls, that must succeed at the knee
_MOST_DOUBLINGS = 16
# Each arrival of an open loop is gone through, also those that come too late to be sent: of many
# more than a tester can send, a test would not end.
MOST_LOAD = 1_000_000


@dataclass(frozen=True)
class SweepLoads:
    """What to raise, and its values from low to high; without values they are found."""

    kind: LoadKind
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """Reports from low load to high.

    Attributes:
        kind: What was raised.
        points: A report for each load.
        knee: Index of the point of highest power of those where at most 1 % of the calls fail, or
            of all if there are none; None if no call succeeded at any.
        interrupted: Whether the last point was cut short and those after it are missing.
        failure: Why points are missing; None if none are for another reason than that.
    """

    kind: LoadKind
    points: "list[LoadReport]"
    knee: int | None
    interrupted: bool
    failure: str | None


Offer = Callable[[LoadKind, float], "Awaitable[LoadReport]"]  # at that load
Add = Callable[[float], Awaitable[None]]


def parse_sweep(text: str) -> SweepLoads:
    """Read `concurrency`, `rate`, `concurrency=1,2,4` or `rate=50,100`.

    Raises:
        ValueError: not of this form.
    """
    name, equals, numbers = text.partition("=")
    kinds: dict[str, LoadKind] = {"concurrency": "concurrency", "rate": "rate"}
    try:
        kind = kinds[name]
        values = [float(number) for number in numbers.split(",")] if equals else []
    except (KeyError, ValueError):
        kind, values = "rate", [0.0]
    whole = kind == "rate" or all(value.is_integer() for value in values)
    if not whole or not all(0 < value <= MOST_LOAD for value in values):
        raise ValueError(
            "expected concurrency, rate, or values such as concurrency=1,2,4 or rate=50,100.5, "
            f"each {MOST_LOAD} at most, got {text!r}"
        )
    return SweepLoads(kind, tuple(sorted(set(values))))


async def sweep(loads: SweepLoads, offer: Offer) -> Sweep:
    """Offer each load in turn.

    Without values the load is doubled, from one call at a time or a quarter of the rate that this
    gives, until throughput has not risen for two steps or is not half of what arrives. Then the
    loads halfway between the knee and its neighbours are added. A server that cannot be reached any
    more ends the sweep.

    Raises:
        ConnectionError, OSError, ValueError: as `offer` does, at the first load.
    """
    points: dict[float, LoadReport] = {}

    async def add(value: float) -> None:
        if not _is_interrupted(points):
            points[value] = await offer(loads.kind, value)

    failure = None
    try:
        if loads.values:
            for value in loads.values:
                await add(value)
        else:
            await _double(points, add, await _first_load(loads.kind, offer))
            await _refine(points, add, whole=loads.kind == "concurrency")
    except (OSError, ValueError) as error:
        if not points:
            raise
        failure = str(error)
    ordered = [points[value] for value in sorted(points)]
    return Sweep(loads.kind, ordered, find_knee(ordered), _is_interrupted(points), failure)


def find_knee(points: "Sequence[LoadReport]") -> int | None:
    """Index of the report with the highest power of those that carried their load, as `Sweep` says.

    Of equals it is the first.
    """
    carried = [_is_carried(point) for point in points]
    powers = [
        _power(point) if is_carried or not any(carried) else 0.0
        for point, is_carried in zip(points, carried, strict=True)
    ]
    return powers.index(max(powers)) if any(powers) else None


def render_sweep(result: Sweep) -> str:
    """The points as a table, a line each, the knee marked; their warnings; what was verified."""
    columns = (result.kind, "calls/s", "images/s", "p50 ms", "p99 ms", "errors", "not sent", "")
    rows: list[tuple[str, ...]] = [columns]
    for index, point in enumerate(result.points):
        times = [
            f"{point.latency_seconds[name] * 1000:.2f}" if point.latency_seconds else "-"
            for name in ("p50", "p99")
        ]
        rates = f"{point.calls_per_second:.1f}", f"{point.images_per_second:.1f}"
        counts = str(sum(point.errors.values())), str(point.not_sent)
        mark = "knee" if index == result.knee else ""
        rows.append((f"{_load(point):g}", *rates, *times, *counts, mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    for point in result.points:
        lines += [f"warning: at {_load(point):g}: {warning}" for warning in point.warnings]
    return "\n".join(lines + _verification_lines(result.points))


def _verification_lines(points: "Sequence[LoadReport]") -> list[str]:
    parts = [point.verification for point in points if point.verification is not None]
    if not parts:
        return []
    calls, wrong = sum(part.calls for part in parts), sum(part.wrong for part in parts)
    other = sum(part.other_version for part in parts)
    of_another = f", of another version {other}" if other else ""
    return [f"verified calls {calls}, wrong bytes {wrong}{of_another}"]


async def _first_load(kind: LoadKind, offer: Offer) -> float:
    if kind == "concurrency":
        return 1.0
    alone = await offer("concurrency", 1)
    return _three_digits(alone.calls_per_second / 4) or 1.0


async def _double(points: "dict[float, LoadReport]", add: Add, value: float) -> None:
    best, without_rise = 0.0, 0
    for _ in range(_MOST_DOUBLINGS):
        await add(value)
        point = points[value]
        arrived = point.calls + point.not_sent
        answered = point.calls_per_second * point.seconds
        few = point.rate is not None and arrived < _FEWEST_ARRIVALS
        rises = point.calls_per_second > best * _LEAST_RISE
        without_rise = 0 if rises or few else without_rise + 1
        best = max(best, point.calls_per_second)
        overloaded = point.rate is not None and answered < arrived * _OVERLOADED_SHARE
        ended = without_rise == _STEPS_WITHOUT_RISE or (overloaded and not few)
        if ended or _is_interrupted(points):
            break
        value *= 2


async def _refine(points: "dict[float, LoadReport]", add: Add, whole: bool) -> None:
    values = sorted(points)
    knee = find_knee([points[value] for value in values])
    if knee is None:
        return
    for low, high in itertools.pairwise(values):
        middle = (low * high) ** 0.5  # as loads are doubled, so are they halved
        middle = float(round(middle)) if whole else _three_digits(middle)
        if values[knee] in (low, high) and low < middle < high:
            await add(middle)


def _three_digits(value: float) -> float:
    """Rounded, so that loads read well."""
    return float(f"{value:.3g}")


def _power(point: "LoadReport") -> float:
    return point.calls_per_second / point.mean_latency_seconds if point.mean_latency_seconds else 0


def _is_carried(point: "LoadReport") -> bool:
    failed = sum(point.errors.values()) + point.not_sent
    return bool(point.calls) and failed <= (1 - _CARRIED_SHARE) * (point.calls + point.not_sent)


def _load(point: "LoadReport") -> float:
    load = point.concurrency if point.rate is None else point.rate
    assert load is not None
    return load


def _is_interrupted(points: "dict[float, LoadReport]") -> bool:
    return any(point.interrupted for point in points.values())
