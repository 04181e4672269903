"""The tallies of a load test become figures, warnings and a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from ganserve.load_test.latency_histogram import LatencyHistogram
from ganserve.load_test.plan import LoadPlan, LoadTally

# Of one core. Python runs on one core at a time, so beyond this the tester has no time to spare.
_BUSY_SHARE = 0.9
# Timers are good to a millisecond; what is late by more, and by much of the latency, distorts it.
_LATE_SECONDS = 0.002
_LATE_SHARE_OF_LATENCY = 0.1


@dataclass(frozen=True)
class Verification:
    """How many answered calls had their images compared, and with what result.

    Attributes:
        calls: Calls compared.
        wrong: Calls whose images were not those that their seeds gave before the test.
        other_version: Calls that another version of the model answered; not compared further.
        wrong_requests: First seeds of some wrong ones.
    """

    calls: int
    wrong: int
    other_version: int
    wrong_requests: list[int]


@dataclass(frozen=True)
class TesterEffort:
    """What the tester itself cost.

    Attributes:
        processes: How many offered the load.
        cpu_share: CPU time over time, of the busiest process; 1 is one core.
        cpu_seconds_per_call: CPU time of all processes over the calls that ended.
    """

    processes: int
    cpu_share: float
    cpu_seconds_per_call: float | None


@dataclass(frozen=True)
class LoadReport:
    """What a server did under load.

    Attributes:
        rate: Calls a second offered; None in a closed loop.
        concurrency: Calls kept under way; None in an open loop.
        seconds: Length of the window.
        calls: Calls that were meant to start in the window and ended, whenever and however.
        calls_per_second: Calls that ended well within the window, over its length.
        images_per_second: Images of these calls.
        latency_seconds: p50, p90, p99, p99.9, max of the good ones among `calls`, from the
            intended start to the end; empty if there are none.
        mean_latency_seconds: Of the same calls.
        errors: Status code to the number of calls among `calls`.
        error_latency_seconds: Status code to percentiles as above.
        error_details: Status code to what one of these calls was told.
        not_sent: Open loop: calls left out because as many as allowed were under way, or because
            the tester could not keep up.
        unfinished: Calls given up because the test was interrupted.
        start_lateness_seconds: Open loop: by how much calls started later than intended.
        verification: Where images were compared.
        tester: What the tester itself cost.
        warnings: Why the figures may not be those of the server alone.
        interrupted: Whether the test ended early.
    """

    rate: float | None
    concurrency: int | None
    seconds: float
    calls: int
    calls_per_second: float
    images_per_second: float
    latency_seconds: dict[str, float]
    mean_latency_seconds: float | None
    errors: dict[str, int]
    error_latency_seconds: dict[str, dict[str, float]]
    error_details: dict[str, str]
    not_sent: int
    unfinished: int
    start_lateness_seconds: dict[str, float]
    verification: Verification | None
    tester: TesterEffort
    warnings: list[str]
    interrupted: bool


def make_report(plan: LoadPlan, tallies: Sequence[LoadTally]) -> LoadReport:
    """The figures of what all processes saw together; of none, those of a test without calls."""
    codes = sorted({code for tally in tallies for code in tally.latencies})
    latencies = {code: _merge_latencies(tallies, code) for code in codes}
    good = latencies.pop("OK", LatencyHistogram())
    lateness = LatencyHistogram.merged(tally.lateness for tally in tallies)
    calls = good.total + sum(histogram.total for histogram in latencies.values())
    seconds = max((tally.window_seconds for tally in tallies), default=0.0)
    rate = sum(tally.completed for tally in tallies) / seconds if seconds else 0.0
    tester = _measure_tester(tallies, calls)
    not_sent = sum(tally.not_sent for tally in tallies)
    too_late = sum(tally.too_late for tally in tallies)
    return LoadReport(
        rate=plan.rate,
        concurrency=plan.concurrency if plan.rate is None else None,
        seconds=seconds,
        calls=calls,
        calls_per_second=rate,
        images_per_second=rate * plan.images_per_request,
        latency_seconds=good.summary(),
        mean_latency_seconds=good.mean if good.total else None,
        errors={code: histogram.total for code, histogram in latencies.items()},
        error_latency_seconds={code: times.summary() for code, times in latencies.items()},
        error_details=_first_details(tallies),
        not_sent=not_sent + too_late,
        unfinished=sum(tally.unfinished for tally in tallies),
        start_lateness_seconds=lateness.summary(),
        verification=_sum_verification(tallies) if plan.references else None,
        tester=tester,
        warnings=_warnings(good, lateness, tester, (not_sent, too_late), plan),
        interrupted=any(tally.interrupted for tally in tallies) or not tallies,
    )


def render_report(report: LoadReport) -> str:
    """The report as a table of two columns, and the warnings."""
    offered = f"rate {report.rate:g}/s" if report.rate else f"concurrency {report.concurrency}"
    rows = [
        ("offered", offered),
        ("calls", f"{report.calls} in {report.seconds:.1f} s"),
        ("calls/s", f"{report.calls_per_second:.1f}"),
        ("images/s", f"{report.images_per_second:.1f}"),
        *_latency_rows("latency", report.latency_seconds),
    ]
    for code, count in report.errors.items():
        rows.append((f"errors {code}", str(count)))
        rows += _latency_rows(f"  {code}", report.error_latency_seconds[code])[2:3]
    rows += _verification_rows(report.verification)
    for name, count in (("not sent", report.not_sent), ("unfinished", report.unfinished)):
        if count:
            rows.append((name, str(count)))
    if report.start_lateness_seconds:
        rows += _latency_rows("started late", report.start_lateness_seconds)[2:3]
    tester = report.tester
    rows.append(("tester processes", str(tester.processes)))
    rows.append(("tester CPU, busiest", f"{tester.cpu_share:.0%} of a core"))
    if tester.cpu_seconds_per_call is not None:
        rows.append(("tester CPU a call", f"{tester.cpu_seconds_per_call * 1e6:.0f} us"))
    lines = [f"{name:<32}{value:>24}" for name, value in rows]
    lines += [f"{code}: {details}" for code, details in report.error_details.items()]
    return "\n".join(lines + [f"warning: {warning}" for warning in report.warnings])


def _latency_rows(name: str, seconds: dict[str, float]) -> list[tuple[str, str]]:
    return [(f"{name} {part}", f"{value * 1000:.2f} ms") for part, value in seconds.items()]


def _verification_rows(verification: Verification | None) -> list[tuple[str, str]]:
    if verification is None:
        return []
    rows = [("verified calls", str(verification.calls)), ("wrong bytes", str(verification.wrong))]
    if verification.other_version:
        rows.append(("of another version", str(verification.other_version)))
    return rows


def _merge_latencies(tallies: Sequence[LoadTally], code: str) -> LatencyHistogram:
    return LatencyHistogram.merged(
        tally.latencies[code] for tally in tallies if code in tally.latencies
    )


def _first_details(tallies: Sequence[LoadTally]) -> dict[str, str]:
    details: dict[str, str] = {}
    for tally in tallies:
        details = tally.error_details | details
    return dict(sorted(details.items()))


def _sum_verification(tallies: Sequence[LoadTally]) -> Verification:
    return Verification(
        calls=sum(tally.verified for tally in tallies),
        wrong=sum(tally.wrong for tally in tallies),
        other_version=sum(tally.other_version for tally in tallies),
        wrong_requests=[seed for tally in tallies for seed in tally.wrong_requests],
    )


def _measure_tester(tallies: Sequence[LoadTally], calls: int) -> TesterEffort:
    shares = [
        tally.cpu_seconds / tally.cpu_window_seconds
        for tally in tallies
        if tally.cpu_window_seconds > 0
    ]
    cpu_seconds = sum(tally.cpu_seconds for tally in tallies)
    return TesterEffort(
        processes=len(tallies),
        cpu_share=max(shares, default=0.0),
        cpu_seconds_per_call=cpu_seconds / calls if calls else None,
    )


def _warnings(
    good: LatencyHistogram,
    lateness: LatencyHistogram,
    tester: TesterEffort,
    left_out: tuple[int, int],
    plan: LoadPlan,
) -> list[str]:
    not_sent, too_late = left_out
    warnings = []
    if tester.cpu_share >= _BUSY_SHARE:
        warnings.append(
            f"a process of the tester used {tester.cpu_share:.0%} of a core, so the tester may be "
            "the limit: use more --processes"
        )
    if lateness.total:
        late = lateness.percentile(99)
        typical = good.percentile(50) if good.total else 0.0
        if late > max(_LATE_SECONDS, _LATE_SHARE_OF_LATENCY * typical):
            warnings.append(
                f"1 % of the calls started {late * 1000:.1f} ms late or later, which counts as "
                "latency: the tester lacks CPU; use more --processes or another machine"
            )
    if not_sent:
        warnings.append(
            f"{not_sent} calls were not sent because {plan.max_calls_under_way} were under way "
            "(--max-calls-under-way); their latency, longer than any, is missing above"
        )
    if too_late:
        warnings.append(
            f"{too_late} calls were not sent because the tester came to them more than "
            f"{plan.timeout_seconds:g} s after the end: use more --processes or a lower rate"
        )
    return warnings
