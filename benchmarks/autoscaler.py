"""Does the autoscaler's rule keep queues short without hunting? A simulation on load curves says.

    python benchmarks/autoscaler.py --record

The rule is read from the manifest, once as it is and once without the busy share, by queues alone.
The curves: a constant load, a step to five times the load, and the recorded one of
results/autoscaler_curve.csv (see autoscaler_curve.py), of which a second lasts half a minute and
whose server's capacity stands for ten replicas. First the simulated queue is compared with the one
that was recorded. Takes about half a minute.
"""

import argparse
import csv
import datetime as dt
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from autoscaler_curve import CURVE, IMAGES_PER_REQUEST
from autoscaler_rule import Rule, read_rule
from autoscaler_simulation import (
    BUSY,
    Floats,
    Outcome,
    Service,
    lindley,
    simulate,
    turns,
    with_targets,
)
from records import arguments_given, commit

RESULTS = CURVE.parent
# 1.6 ms an image and core and 0.88 of the bare session (docs/capacity.md), two cores.
SERVICE = Service(images_per_second=2 / 0.0016 * 0.88, images_per_request=8)
STRETCH = 30  # seconds that a recorded second lasts
SCALE = 10  # replicas that the recorded server stands for
SETTLED = 900.0  # seconds after which a constant load should be met by a constant number


@dataclass(frozen=True)
class Scenario:
    """A load curve in images a second, and how many replicas there are at its begin."""

    name: str
    curve: Floats
    replicas: int


@dataclass(frozen=True)
class Recorded:
    """What autoscaler_curve.py wrote."""

    capacity: float
    arrived: Floats
    queue_seconds: Floats
    calls: Floats


def read_curve() -> Recorded:
    """The recorded seconds."""
    with CURVE.open() as file:
        capacity = float(file.readline().split()[2])
        rows = list(csv.DictReader(file))
    columns = (np.array([float(row[name]) for row in rows]) for name in COLUMNS)
    return Recorded(capacity, *columns)


COLUMNS = ("arrived", "queue_seconds", "calls")


def scenarios() -> list[Scenario]:
    """The curves, scaled to replicas."""
    one = SERVICE.images_per_second
    recorded = read_curve()
    smooth = np.convolve(recorded.arrived, np.ones(8) / 8, mode="valid")  # a step lasts 8 seconds
    at = np.arange(len(smooth) * STRETCH) / STRETCH
    day = np.interp(at, np.arange(len(smooth)), smooth) * SCALE * one / recorded.capacity
    return [
        Scenario("constant", np.full(5400, 6 * one), 9),
        Scenario("step", np.concatenate([np.full(900, 2 * one), np.full(3600, 10 * one)]), 3),
        Scenario("recorded", day, 3),
    ]


def rules() -> dict[str, Rule]:
    """The manifest's, and the same without the busy share."""
    rule = read_rule()
    queues = {name: target for name, target in rule.targets.items() if name != BUSY}
    return {"by queues alone": with_targets(rule, **queues), "as in the manifest": rule}


def compare_with_recorded() -> tuple[float, list[float]]:
    """Mean seconds in the queue of the recorded calls, and of the same calls simulated."""
    recorded = read_curve()
    service = Service(recorded.capacity, IMAGES_PER_REQUEST, in_calls=16, queue_size=1024)
    seconds = np.arange(len(recorded.arrived))
    begun = np.repeat(seconds, (recorded.arrived / IMAGES_PER_REQUEST).astype(int))
    simulated = []
    for seed in range(10):  # when within its second a call came is not known
        arrivals = np.sort(begun + np.random.default_rng(seed).random(len(begun)))
        waits, _ = lindley(arrivals, 0.0, 0.0, service)
        simulated.append(float(np.nanmean(waits)))
    return float(np.average(recorded.queue_seconds, weights=recorded.calls)), simulated


def row(scenario: Scenario, rule: str, outcome: Outcome) -> str:
    """A line of the table."""
    counts = [one.replicas for one in outcome.intervals]
    ideal = float(np.mean(scenario.curve)) / SERVICE.images_per_second
    late = float((outcome.waits > 1).mean())
    return (
        f"| {scenario.name} | {rule} | {min(counts)} to {max(counts)} | "
        f"{np.mean(counts) / ideal:.2f} | {turns(outcome, SETTLED)} | "
        f"{np.median(outcome.waits) * 1e3:.1f} | {np.quantile(outcome.waits, 0.99) * 1e3:.0f} | "
        f"{late:.2%} | {outcome.rejected / outcome.offered:.2%} |"
    )


def plot(outcomes: dict[str, dict[str, Outcome]], path: Path) -> None:
    """Replicas, those that the load would fill, and the 99th percentile of the queue."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(outcomes), figsize=(13, 6), sharex="col")
    for column, (name, by_rule) in enumerate(outcomes.items()):
        replicas, queue = axes[0][column], axes[1][column]
        for rule, outcome in by_rule.items():
            minutes = [one.at / 60 for one in outcome.intervals]
            replicas.step(minutes, [one.replicas for one in outcome.intervals], label=rule)
            waits = [max(one.p99_queue_seconds, 1e-3) for one in outcome.intervals]
            queue.plot(minutes, waits, label=rule)
        full = [one.offered / SERVICE.images_per_second for one in outcome.intervals]
        replicas.plot(minutes, full, "k:", label="filled by the load")
        replicas.set_title(name)
        queue.set_yscale("log")
        queue.set_xlabel("minutes")
    axes[0][0].set_ylabel("replicas")
    axes[1][0].set_ylabel("p99 in the queue, seconds")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def report(seconds: float, lines: list[str]) -> str:
    """The record."""
    measured, simulated = compare_with_recorded()
    targets = ", ".join(f"{name} {value:g}" for name, value in read_rule().targets.items())
    return f"""\
# The autoscaler's rule, simulated, {dt.datetime.now(dt.UTC).date()}

- command: `python benchmarks/autoscaler.py {arguments_given()}`, {seconds:.0f} s; commit {commit()}
- a replica: {SERVICE.images_per_second:.0f} images/s, requests of {SERVICE.images_per_request}, \
ready {SERVICE.start_seconds:g} s after it was asked for (assumed), queue of {SERVICE.queue_size}
- targets of the manifest: {targets}; scrapes each 15 s, seen one scrape late
- calls spread at random over ready replicas; one run of each, seed 0

Against the recorded server: its calls waited {measured * 1e3:.0f} ms in the mean, the same \
simulated {np.median(simulated) * 1e3:.0f} ms ({min(simulated) * 1e3:.0f} to \
{max(simulated) * 1e3:.0f}, ten seeds).

| load | rule | replicas | over the load | turns | p50, ms | p99, ms | over 1 s | rejected |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

Replicas over the load: their mean number over what the mean load would fill. Turns: changes between
growing and shrinking after {math.ceil(SETTLED / 60)} minutes. Times are those in the queue.

![Simulated replicas and queues](autoscaler_simulation.png)
"""


def main() -> None:
    """Simulate, print, and with --record write the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write into benchmarks/results")
    record = parser.parse_args().record
    begin = time.monotonic()
    outcomes: dict[str, dict[str, Outcome]] = {}
    lines = []
    for scenario in scenarios():
        for name, rule in rules().items():
            outcome = simulate(scenario.curve, rule, SERVICE, replicas=scenario.replicas)
            outcomes.setdefault(scenario.name, {})[name] = outcome
            lines.append(row(scenario, name, outcome))
    text = report(time.monotonic() - begin, lines)
    print(text)
    if record:
        today = dt.datetime.now(dt.UTC).date()
        (RESULTS / f"autoscaler_simulation_{today}.md").write_text(text)
        plot(outcomes, RESULTS / "autoscaler_simulation.png")


if __name__ == "__main__":
    main()
