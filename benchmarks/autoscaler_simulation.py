"""Hides a fleet of replicas on paper: random calls, a queue for each, pods that come and go.

Each replica is a queue with one server that takes the same time for every request: its workers
together. Requests arrive at random and are spread at random over the ready replicas. Waiting times
follow Lindley's recursion (Lindley 1952), so each request has its own; nothing is averaged before
it is measured. Prometheus scrapes each 15 s, and the autoscaler sees the scrape before the last.
"""

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from autoscaler_rule import SYNC_SECONDS, Autoscaler, Rule
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PENDING, QUEUE, BUSY = (
    "ganserve_pending_images",
    "ganserve_queue_seconds_mean",
    "ganserve_busy_share",
)
# In scrapes of 15 s: the windows of deploy/monitoring/prometheus-adapter.yaml.
WINDOWS = {PENDING: 4, QUEUE: 8, BUSY: 8}
DELAY_SCRAPES = 1


@dataclass(frozen=True)
class Service:
    """What one replica can do."""

    images_per_second: float
    images_per_request: int = 4
    in_calls: int = 32  # images that model calls hold and that no longer wait: 2 workers x 16
    queue_size: int = 2048
    start_seconds: float = 30.0  # from the decision to a ready pod

    @property
    def request_seconds(self) -> float:
        """A request's time in the model."""
        return self.images_per_request / self.images_per_second

    @property
    def longest_seconds(self) -> float:
        """The work that a replica may have before it refuses more."""
        return (self.queue_size + self.in_calls) / self.images_per_second


@dataclass
class Replica:
    """A pod: when it is ready, what it has to do still, and what was scraped from it."""

    ready_at: float
    work_seconds: float = 0.0
    scrapes: deque[tuple[float, float, float, float]] = field(
        default_factory=lambda: deque(maxlen=max(WINDOWS.values()) + DELAY_SCRAPES)
    )  # pending images, queue seconds, calls, busy share


@dataclass(frozen=True)
class Interval:
    """Fifteen seconds of the fleet."""

    at: float
    offered: float  # images a second
    replicas: int  # asked for
    ready: int
    p99_queue_seconds: float
    rejected: int  # images
    requests: int


@dataclass(frozen=True)
class Outcome:
    """A whole run, in images, and its intervals."""

    intervals: tuple[Interval, ...]
    waits: Floats  # seconds, of all requests that were accepted
    offered: int
    served: int
    rejected: int
    waiting: int


def lindley(arrivals: Floats, begin: float, work: float, service: Service) -> tuple[Floats, Floats]:
    """Waits of requests at sorted times; a refused one has NaN. Also what is left at each time.

    Args:
        arrivals: Seconds, sorted, of one replica.
        begin: When `work` seconds of work were left.
        work: Seconds.
        service: How long a request takes, and how many may wait.
    """
    seconds = service.request_seconds
    ahead = np.arange(len(arrivals)) * seconds - arrivals
    waits: Floats = np.maximum(ahead - np.minimum.accumulate(ahead), work + begin + ahead)
    if len(waits) == 0 or waits.max() + seconds <= service.longest_seconds:
        return waits, waits + seconds
    left = np.empty(len(arrivals))
    last = begin
    for index, now in enumerate(arrivals):
        work = max(0.0, work - (now - last))
        last = now
        refused = work + seconds > service.longest_seconds
        waits[index] = np.nan if refused else work
        work += 0.0 if refused else seconds
        left[index] = work
    return waits, left


def simulate(
    curve: Floats, rule: Rule, service: Service, *, replicas: int, seed: int = 0
) -> Outcome:
    """Run a fleet over a load curve.

    Args:
        curve: Images a second, one value for each second; whole intervals of 15 are used.
        rule: Of the autoscaler.
        service: Of each replica.
        replicas: How many there are at the begin, all ready.
        seed: Of the random arrivals.
    """
    random = np.random.default_rng(seed)
    step = int(SYNC_SECONDS)
    scaler = Autoscaler(rule, replicas)
    fleet = [Replica(ready_at=0.0) for _ in range(replicas)]
    intervals: list[Interval] = []
    all_waits: list[Floats] = []
    offered = served = rejected = waiting = 0
    end = len(curve) // step * step
    for begin in range(0, end, step):
        ready = [one for one in fleet if one.ready_at <= begin]
        rates = curve[begin : begin + step] / service.images_per_request
        times = np.repeat(np.arange(begin, begin + step), random.poisson(rates)).astype(float)
        times = np.sort(times + random.random(len(times)))
        where = random.integers(len(ready), size=len(times))
        now_waits = []
        refused = 0
        for index, one in enumerate(ready):
            arrivals = times[where == index]
            waits = _serve(one, arrivals, begin, service)
            accepted = ~np.isnan(waits)
            refused += int((~accepted).sum()) * service.images_per_request
            done = arrivals[accepted] + waits[accepted] + service.request_seconds
            served += int((done <= end).sum()) * service.images_per_request
            waiting += int((done > end).sum()) * service.images_per_request
            now_waits.append(waits[accepted])
        waits = np.concatenate(now_waits)
        all_waits.append(waits)
        offered += len(times) * service.images_per_request
        rejected += refused
        p99 = float(np.quantile(waits, 0.99)) if len(waits) else 0.0
        shown = (float(curve[begin : begin + step].mean()), scaler.replicas, len(ready))
        intervals.append(Interval(float(begin), *shown, p99, refused, len(times)))
        now = float(begin + step)
        _scale(scaler, fleet, now, service)
    waits = np.concatenate(all_waits)
    return Outcome(tuple(intervals), waits, offered, served, rejected, waiting)


def _serve(one: Replica, arrivals: Floats, begin: float, service: Service) -> Floats:
    """Let requests wait and be served, and scrape at the end."""
    before = one.work_seconds
    waits, left = lindley(arrivals, begin, before, service)
    now = begin + SYNC_SECONDS
    last_work, last_time = (left[-1], arrivals[-1]) if len(arrivals) else (before, begin)
    one.work_seconds = max(0.0, float(last_work - (now - last_time)))
    accepted = waits[~np.isnan(waits)]
    content = one.work_seconds * service.images_per_second
    added = len(accepted) * service.request_seconds
    busy = (before + added - one.work_seconds) / SYNC_SECONDS
    pending = max(0.0, content - service.in_calls)
    one.scrapes.append((pending, float(accepted.sum()), float(len(accepted)), busy))
    return waits


def _metrics(fleet: list[Replica]) -> Mapping[str, list[float]]:
    """What the adapter shows of each pod that has been scraped long enough ago."""
    found: dict[str, list[float]] = {PENDING: [], QUEUE: [], BUSY: []}
    for one in fleet:
        seen = list(one.scrapes)[: len(one.scrapes) - DELAY_SCRAPES]
        if seen:
            pending, seconds, calls, busy = (np.array(column) for column in zip(*seen, strict=True))
            found[PENDING].append(float(pending[-WINDOWS[PENDING] :].mean()))
            found[QUEUE].append(float(seconds.sum() / max(calls.sum(), 1e-9)))
            found[BUSY].append(float(busy.mean()))
    return found


def _scale(scaler: Autoscaler, fleet: list[Replica], now: float, service: Service) -> None:
    """Ask the autoscaler; the youngest pods go first, and what they have accepted is served."""
    pending = sum(one.ready_at > now for one in fleet)
    wanted = scaler.look(now, _metrics(fleet), pending)
    while len(fleet) > wanted:
        fleet.pop()
    while len(fleet) < wanted:
        fleet.append(Replica(ready_at=now + service.start_seconds))


def turns(outcome: Outcome, after: float) -> int:
    """How often the number of replicas turned from growing to shrinking, or back."""
    counts = [one.replicas for one in outcome.intervals if one.at >= after]
    signs = [sign for sign in np.sign(np.diff(counts)) if sign]
    return sum(a != b for a, b in itertools.pairwise(signs))


def with_targets(rule: Rule, **targets: float) -> Rule:
    """The same rule with these targets alone."""
    return replace(rule, targets=targets)
