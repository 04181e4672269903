"""The simulation of the autoscaler is sane, and with the manifests' targets the fleet is steady."""

import math
from pathlib import Path

import numpy as np
import pytest

with pytest.MonkeyPatch.context() as patch:
    # The scripts there import each other by their bare names.
    patch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    from autoscaler_rule import Autoscaler, Policy, Rule, desired_by_metric, read_rule
    from autoscaler_simulation import (
        BUSY,
        PENDING,
        Service,
        lindley,
        simulate,
        turns,
        with_targets,
    )

SERVICE = Service(images_per_second=400, images_per_request=8, queue_size=256)


def constant(replicas_filled: float, seconds: int):
    return np.full(seconds, replicas_filled * SERVICE.images_per_second)


def test_waits_are_those_of_a_queue_worked_through_one_by_one():
    random = np.random.default_rng(0)
    arrivals = np.sort(random.random(500) * 10)
    waits, _ = lindley(arrivals, 0.0, 0.1, Service(images_per_second=400, images_per_request=8))
    free_at = 0.1
    for at, wait in zip(arrivals, waits, strict=True):
        begin = max(at, free_at)
        assert wait == pytest.approx(begin - at)
        free_at = begin + 8 / 400


def test_mean_wait_is_that_of_theory():
    """Pollaczek and Khinchine: rho / (2 (1 - rho)) service times, for constant service."""
    seconds = 8 / 400
    arrivals = np.cumsum(np.random.default_rng(1).exponential(seconds / 0.7, 200_000))
    waits, _ = lindley(arrivals, 0.0, 0.0, SERVICE)
    assert np.mean(waits) == pytest.approx(0.7 / (2 * 0.3) * seconds, rel=0.05)


@pytest.mark.parametrize("filled", [0.5, 1.5, 9], ids=["idle", "busy", "far too much"])
def test_nothing_is_lost_or_counted_twice(filled: float):
    outcome = simulate(constant(filled, 300), read_rule(), SERVICE, replicas=2)
    assert outcome.offered == outcome.served + outcome.rejected + outcome.waiting
    assert outcome.offered == sum(one.requests for one in outcome.intervals) * 8
    assert outcome.waiting >= 0
    assert (outcome.rejected > 0) == (filled == 9)
    assert outcome.waits.max() <= SERVICE.longest_seconds


def test_a_constant_load_that_is_met_changes_nothing():
    outcome = simulate(constant(4, 3600), read_rule(), SERVICE, replicas=6)
    assert {one.replicas for one in outcome.intervals} == {6}


def test_after_a_step_the_number_of_replicas_settles():
    curve = np.concatenate([constant(2, 300), constant(7, 3600)])
    outcome = simulate(curve, read_rule(), SERVICE, replicas=3)
    last = [one.replicas for one in outcome.intervals if one.at > 2400]
    assert set(last) <= {math.ceil(7 / 0.7), math.ceil(7 / 0.7) + 1}
    assert turns(outcome, 1500) == 0


def test_by_queues_alone_the_number_swings_which_is_why_there_is_a_third_metric():
    rule = read_rule()
    queues = {name: target for name, target in rule.targets.items() if name != BUSY}
    outcome = simulate(constant(4, 3600), with_targets(rule, **queues), SERVICE, replicas=6)
    assert turns(outcome, 900) >= 2


@pytest.mark.parametrize(
    ("values", "current", "pending", "replicas"),
    [
        pytest.param([32, 32], 2, 0, 2, id="at the target"),
        pytest.param([35, 35], 2, 0, 2, id="within the tolerance"),
        pytest.param([64, 64], 2, 0, 4, id="twice"),
        pytest.param([0, 0], 2, 0, 0, id="nothing waits"),
        pytest.param([64, 64], 4, 2, 4, id="those that start count as idle"),
        pytest.param([16, 16], 4, 2, 1, id="those that start are left out on the way down"),
        pytest.param([16, 16], 3, 0, 2, id="one without metrics counts as at its target"),
        pytest.param([], 3, 0, 3, id="no metrics"),
    ],
)
def test_a_metric_asks_for_replicas_as_kubernetes_has_it(values, current, pending, replicas):
    assert desired_by_metric(values, current, 32, pending=pending) == replicas


def test_policies_and_windows_bound_each_change():
    rule = Rule(
        *({PENDING: 32.0}, 2, 20),
        up=(Policy("Percent", 100, 30), Policy("Pods", 2, 30)),
        down=(Policy("Percent", 10, 60), Policy("Pods", 1, 60)),
        up_window_seconds=0,
        down_window_seconds=300,
    )
    scaler = Autoscaler(rule, 2)
    grown = [scaler.look(at, {PENDING: [9999.0] * scaler.replicas}, 0) for at in range(0, 90, 15)]
    assert grown == [4, 4, 8, 8, 16, 16]  # twofold in 30 seconds
    at = 90
    while scaler.look(at, {PENDING: [0.0] * scaler.replicas}, 0) == 16:
        at += 15
    assert at > 75 + 300  # quiet for five minutes first
    later = [scaler.look(at + 15 * i, {PENDING: [0.0] * 9}, 0) for i in range(1, 9)]
    assert later == [14, 14, 14, 12, 12, 12, 12, 10]  # a tenth of 16, then one a minute
