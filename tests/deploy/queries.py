"""Hides where PromQL stands in deploy/, and which series of ours it asks for."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from ganserve.metrics import Metrics
from tests.deploy.manifests import DEPLOY, Manifests, name_of, of_kind

_SERIES = re.compile(r"\b((?:ganserve|grpc_server|process|kube)_[a-z_]+)\b(?:\{([^}]*)\})?")
_RECORDED = re.compile(r"\bganserve:[a-z0-9_:]+")
_OUR_TARGETS = re.compile(r'\bup\{[^}]*job="ganserve"[^}]*\}')
_CONSTANT = re.compile(r"vector\([0-9.]+\)")
_MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
# What Prometheus and its operator add to every series.
_TARGET_LABELS = {"job", "namespace", "pod", "instance", "service", "container", "endpoint"}
# What kube-state-metrics says of Deployments, of that what we ask for.
_KUBE_STATE = {
    "kube_deployment_spec_replicas": frozenset({"deployment"}),
    "kube_deployment_status_condition": frozenset({"deployment", "condition", "status"}),
    "kube_deployment_status_replicas": frozenset({"deployment"}),
    "kube_deployment_status_replicas_ready": frozenset({"deployment"}),
    "kube_deployment_status_replicas_updated": frozenset({"deployment"}),
}


@dataclass(frozen=True)
class Query:
    """An expression, and where it stands."""

    where: str
    text: str


def adapter_rules() -> list[dict[str, object]]:
    """The rules of the Prometheus adapter."""
    rules: list[dict[str, object]] = yaml.safe_load(
        (DEPLOY / "monitoring/prometheus-adapter.yaml").read_text()
    )["rules"]
    return rules


def adapter_names() -> dict[str, Query]:
    """Name of a metric that the adapter shows to its query for the pods of a namespace."""
    found = {}
    for rule in adapter_rules():
        series, name = str(rule["seriesQuery"]), rule["name"]
        assert isinstance(name, dict)
        text = str(rule["metricsQuery"]).replace("<<.Series>>", series.partition("{")[0])
        text = text.replace("<<.LabelMatchers>>", 'namespace="ganserve",pod=~"a|b"')
        found[name["as"]] = Query(f"adapter: {name['as']}", text.replace("<<.GroupBy>>", "pod"))
    return found


def queries(manifests: Manifests) -> Iterator[Query]:
    """Every expression of the manifests: alerts, recorded rules, dashboards, triggers."""
    for rule in of_kind(manifests, "PrometheusRule"):
        for group in rule["spec"]["groups"]:
            for one in group["rules"]:
                yield Query(f"alert: {one.get('alert', one.get('record'))}", one["expr"])
    for dashboard in dashboards(manifests):
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Query(f"panel: {panel['title']}", target["expr"])
    for scaler in of_kind(manifests, "ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            yield Query(f"{name_of(scaler)}: {trigger['name']}", trigger["metadata"]["query"])


def dashboards(manifests: Manifests) -> Iterator[dict[str, Any]]:
    """The dashboards that Grafana's sidecar finds."""
    for config in of_kind(manifests, "ConfigMap"):
        if config["metadata"].get("labels", {}).get("grafana_dashboard"):
            yield from map(json.loads, config["data"].values())


def recorded(manifests: Manifests) -> set[str]:
    """The names of recorded rules."""
    rules = of_kind(manifests, "PrometheusRule")
    groups = [group for rule in rules for group in rule["spec"]["groups"]]
    return {one["record"] for group in groups for one in group["rules"] if "record" in one}


@cache
def exported() -> Mapping[str, tuple[frozenset[str], Mapping[str, frozenset[str]]]]:
    """Each series of /metrics to its labels, and to those values that are shown from the start."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    ProcessCollector(registry=registry)
    found: dict[str, tuple[frozenset[str], Mapping[str, frozenset[str]]]] = {}
    for family in registry.collect():
        labels = _labels_of(metrics, family.name)
        values = {
            label: frozenset(s.labels[label] for s in family.samples if label in s.labels)
            for label in labels
        }
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        for suffix in suffixes.get(family.type, ("",)):
            extra = {"le"} if suffix == "_bucket" else set()
            found[family.name + suffix] = (labels | extra, values)
    return found


def _labels_of(metrics: Metrics, family: str) -> frozenset[str]:
    for metric in vars(metrics).values():
        if getattr(metric, "_name", None) == family:
            return frozenset(metric._labelnames)
    return frozenset()


def check_query(query: Query, known: Collection[str] = ()) -> Iterator[str]:
    """All series are exported or `known` as recorded, with the labels that are asked for."""
    found = _SERIES.findall(query.text)
    names = _RECORDED.findall(query.text)
    for name in set(names) - set(known):
        yield f"{query.where}: {name} is not recorded"
    if not (found or names or _OUR_TARGETS.search(query.text) or _CONSTANT.fullmatch(query.text)):
        yield f"{query.where}: asks for no series of the server's"
    for name, matchers in found:
        if name.startswith("kube_"):
            labels = {label for label, _, _ in _MATCHER.findall(matchers)}
            if name not in _KUBE_STATE or labels - _KUBE_STATE[name] - _TARGET_LABELS:
                yield f"{query.where}: kube-state-metrics has no {name}{{{matchers}}}"
            continue
        if name not in exported():
            yield f"{query.where}: {name} is not exported"
            continue
        labels, shown = exported()[name]
        for label, operator, value in _MATCHER.findall(matchers):
            if label not in labels | _TARGET_LABELS:
                yield f"{query.where}: {name} has no label {label}"
            elif operator == "=" and shown.get(label) and value not in shown[label]:
                yield f"{query.where}: {name}: {label} is never {value}"


def check_queries(manifests: Manifests) -> Iterator[str]:
    """Every expression asks for what is exported; autoscalers for what the adapter shows."""
    names = recorded(manifests)
    for query in queries(manifests):
        yield from check_query(query, names)
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            name = metric["pods"]["metric"]["name"]
            if name not in adapter_names():
                yield f"{name_of(scaler)}: the adapter shows no {name}"
    for scaler in of_kind(manifests, "ScaledObject"):
        namespace = f'namespace="{scaler["metadata"]["namespace"]}"'
        for trigger in scaler["spec"]["triggers"]:
            if trigger["metadata"]["query"].count(namespace) == 0:
                yield f"{name_of(scaler)}: {trigger['name']}: expected {namespace}"


CHECKS = [check_queries]
