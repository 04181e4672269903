"""Hides how Kubernetes' HorizontalPodAutoscaler decides, as its documentation and source have it.

Followed: https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ ("Algorithm
details", "Configurable scaling behavior"), for metrics of type Pods with an AverageValue.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MANIFEST = (
    Path(__file__).resolve().parents[1]
    / "deploy/components/autoscaling-hpa/horizontal-pod-autoscaler.yaml"
)
TOLERANCE = 0.1  # the controller's default: closer than this to the target nothing changes
SYNC_SECONDS = 15.0


@dataclass(frozen=True)
class Policy:
    """So many pods, or so many percent of the pods, within a period."""

    kind: str  # Pods or Percent
    value: float
    period_seconds: float


@dataclass(frozen=True)
class Rule:
    """What the manifest says."""

    targets: Mapping[str, float]
    least: int
    most: int
    up: tuple[Policy, ...]
    down: tuple[Policy, ...]
    up_window_seconds: float
    down_window_seconds: float


def read_rule(path: Path = MANIFEST) -> Rule:
    """The rule of a HorizontalPodAutoscaler whose policies are joined by Max."""
    spec = yaml.safe_load(path.read_text())["spec"]
    up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
    assert {up["selectPolicy"], down["selectPolicy"]} == {"Max"}
    return Rule(
        {
            metric["pods"]["metric"]["name"]: _number(metric["pods"]["target"]["averageValue"])
            for metric in spec["metrics"]
        },
        spec["minReplicas"],
        spec["maxReplicas"],
        _policies(up),
        _policies(down),
        up["stabilizationWindowSeconds"],
        down["stabilizationWindowSeconds"],
    )


def _number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _policies(behavior: Mapping[str, Any]) -> tuple[Policy, ...]:
    return tuple(
        Policy(one["type"], one["value"], one["periodSeconds"]) for one in behavior["policies"]
    )


def desired_by_metric(
    values: Sequence[float], current: int, target: float, *, pending: int = 0
) -> int:
    """Replicas that bring a metric's mean to its target.

    Args:
        values: The metric of each pod that has it.
        current: Replicas asked for so far.
        target: The mean wanted.
        pending: Pods that do not run yet: taken for 0 where more are wanted, left out else.
    """
    missing = max(0, current - pending - len(values))
    if not values:
        return current
    ratio = sum(values) / len(values) / target
    if not missing and not (pending and ratio > 1):
        if abs(ratio - 1) <= TOLERANCE:
            return current
        return math.ceil(ratio * len(values))
    filled = [*values, *[target if ratio < 1 else 0.0] * missing]
    if ratio > 1:
        filled += [0.0] * pending
    again = sum(filled) / len(filled) / target
    if abs(again - 1) <= TOLERANCE or (ratio < 1) != (again < 1):
        return current
    replicas = math.ceil(again * len(filled))
    turned = (again < 1 and replicas > current) or (again > 1 and replicas < current)
    return current if turned else replicas


@dataclass
class Autoscaler:
    """A rule, and what it remembers from one look to the next."""

    rule: Rule
    replicas: int
    _wanted: list[tuple[float, int]] = field(default_factory=list)  # when, recommendation
    _changes: list[tuple[float, int]] = field(default_factory=list)  # when, replicas added

    def look(self, now: float, metrics: Mapping[str, Sequence[float]], pending: int) -> int:
        """Decide how many replicas there are to be; called every SYNC_SECONDS."""
        rule, current = self.rule, self.replicas
        wanted = max(
            desired_by_metric(metrics[name], current, target, pending=pending)
            for name, target in rule.targets.items()
        )
        self._wanted.append((now, wanted))
        horizon = now - max(rule.down_window_seconds, rule.up_window_seconds)
        self._wanted = [(when, count) for when, count in self._wanted if when >= horizon]
        lowest = min(c for when, c in self._wanted if when >= now - rule.up_window_seconds)
        highest = max(c for when, c in self._wanted if when >= now - rule.down_window_seconds)
        steady = min(max(current, lowest), highest)
        replicas = min(max(steady, self._floor(now)), self._ceiling(now))
        replicas = min(max(replicas, rule.least), rule.most)
        if replicas != current:
            self._changes.append((now, replicas - current))
        self.replicas = replicas
        return replicas

    def _ceiling(self, now: float) -> int:
        """The most that the policies for scaling up allow."""
        limits = []
        for policy in self.rule.up:
            begin = self.replicas - self._changed(now, policy)
            by = policy.value if policy.kind == "Pods" else begin * policy.value / 100
            limits.append(math.ceil(begin + by))
        return max(self.replicas, *limits)

    def _floor(self, now: float) -> int:
        """The fewest that the policies for scaling down allow."""
        limits = []
        for policy in self.rule.down:
            begin = self.replicas - self._changed(now, policy)
            by = policy.value if policy.kind == "Pods" else begin * policy.value / 100
            limits.append(int(begin - by))
        return min(self.replicas, *limits)

    def _changed(self, now: float, policy: Policy) -> int:
        """Replicas added less those removed within a policy's period."""
        since = now - policy.period_seconds
        return sum(count for when, count in self._changes if when > since)
