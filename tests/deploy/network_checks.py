"""Hides what makes manifests fit each other: selectors, Services, policies, scaling, addresses.

Each check takes rendered manifests and yields a sentence for everything that is wrong.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ganserve.inference.v2 import open_inference_pb2
from ganserve.v1 import image_generation_pb2
from tests.deploy.manifests import (
    Manifest,
    Manifests,
    Workload,
    name_of,
    of_kind,
    selects,
    servers,
    workloads,
)
from tests.deploy.workload_checks import fewest_evictions, read_settings

RPC_SERVICES = {
    service.full_name
    for file in (image_generation_pb2, open_inference_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}
_NAME_OF_NAMESPACE = "kubernetes.io/metadata.name"


def check_namespaces(manifests: Manifests) -> Iterator[str]:
    """All is in one namespace, which lets no pod with more rights in."""
    names = {one["metadata"].get("namespace") for one in manifests if one["kind"] != "Namespace"}
    if len(names) != 1:
        yield f"expected one namespace, got {names}"
    for namespace in of_kind(manifests, "Namespace"):
        if {namespace["metadata"]["name"]} != names:
            yield f"{name_of(namespace)}: all else is in {names}"
        labels = namespace["metadata"]["labels"]
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{name_of(namespace)}: expected pod security restricted"


def check_selectors(manifests: Manifests) -> Iterator[str]:
    """What selects pods selects some."""
    labels = [workload.labels for workload in workloads(manifests)]
    for manifest in of_kind(
        manifests, "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"
    ):
        spec = manifest["spec"]
        selector = spec.get("selector", spec.get("podSelector"))
        selector = selector.get("matchLabels", selector)
        if not selector or not any(selects(selector, found) for found in labels):
            yield f"{name_of(manifest)}: selects no pod: {selector}"
    for deployment in of_kind(manifests, "Deployment"):
        template = deployment["spec"]["template"]
        for spread in template["spec"].get("topologySpreadConstraints", ()):
            if not selects(spread["labelSelector"]["matchLabels"], template["metadata"]["labels"]):
                yield f"{name_of(deployment)}: {spread['topologyKey']}: spreads other pods"


def check_spread(manifests: Manifests) -> Iterator[str]:
    """Servers spread over nodes and zones."""
    for server in servers(manifests):
        keys = {one["topologyKey"] for one in server.spec.get("topologySpreadConstraints", ())}
        missing = {"kubernetes.io/hostname", "topology.kubernetes.io/zone"} - keys
        if missing:
            yield f"{server.name}: not spread by {sorted(missing)}"


def _takes_calls(service: Manifest) -> bool:
    return any(port["name"] == "grpc" for port in service["spec"]["ports"])


def check_service_ports(manifests: Manifests) -> Iterator[str]:
    """A Service's port leads to a port of the container, under the same number and name."""
    for service in of_kind(manifests, "Service"):
        for server in _selected(manifests, service["spec"]["selector"]):
            ports = {port["name"]: port["containerPort"] for port in server.server["ports"]}
            for port in service["spec"]["ports"]:
                target = port["targetPort"]
                if ports.get(target) != port["port"] or port["name"] != target:
                    yield f"{name_of(service)}: {port['name']}: the container has {ports}"
    services = filter(_takes_calls, of_kind(manifests, "Service"))
    kinds = {one["spec"].get("clusterIP") == "None" for one in services}
    if servers(manifests) and kinds != {True, False}:
        yield "expected a Service with an address and one without"


def check_protocols(manifests: Manifests) -> Iterator[str]:
    """Ports say what they speak, for service meshes go by it: TLS on those of calls alone."""
    for service in of_kind(manifests, "Service"):
        for server in _selected(manifests, service["spec"]["selector"]):
            has_tls = read_settings(manifests, server).tls_certificate is not None
            spoken = {"grpc": "https" if has_tls else "kubernetes.io/h2c", "metrics": "http"}
            for port in service["spec"]["ports"]:
                expected = spoken[port["name"]]
                if port.get("appProtocol") != expected:
                    yield f"{name_of(service)}: {port['name']}: expected appProtocol {expected}"


def check_scrapes(manifests: Manifests) -> Iterator[str]:
    """Each replica is scraped once, on a port that its Service has, until it ends."""
    for monitor in of_kind(manifests, "ServiceMonitor"):
        spec = monitor["spec"]
        found = [
            service
            for service in of_kind(manifests, "Service")
            if selects(spec["selector"]["matchLabels"], service["metadata"]["labels"])
        ]
        if len(found) != 1:
            yield f"{name_of(monitor)}: expected one Service, got {[*map(name_of, found)]}"
        for service in found:
            names = {port["name"] for port in service["spec"]["ports"]}
            if any(endpoint["port"] not in names for endpoint in spec["endpoints"]):
                yield f"{name_of(monitor)}: no such port in {name_of(service)}: {sorted(names)}"
            if not service["spec"].get("publishNotReadyAddresses"):
                yield f"{name_of(monitor)}: {name_of(service)} leaves out pods that load or drain"
            if service["metadata"]["labels"].get(spec["jobLabel"]) != "ganserve":
                yield f"{name_of(monitor)}: the queries expect job=ganserve"


def check_network_policy(manifests: Manifests) -> Iterator[str]:
    """Calls, probes and scrapes come in, each on its port; questions for names go out."""
    for server in servers(manifests):
        policies = [
            policy
            for policy in of_kind(manifests, "NetworkPolicy")
            if selects(policy["spec"]["podSelector"]["matchLabels"], server.labels)
        ]
        rules = [rule for policy in policies for rule in policy["spec"].get("ingress", ())]
        if not _peers(rules, "grpc"):
            yield f"{server.name}: nobody may call"
        if None not in _peers(rules, "health"):
            yield f"{server.name}: the node may not probe"
        monitoring = {"namespaceSelector": {"matchLabels": {_NAME_OF_NAMESPACE: "monitoring"}}}
        if _peers(rules, "metrics") != [monitoring]:
            yield f"{server.name}: expected metrics for monitoring and nobody else"
        out = [rule for policy in policies for rule in policy["spec"].get("egress", ())]
        names = {(p["port"], p["protocol"]) for rule in out for p in rule.get("ports", ())}
        if not {(53, "UDP"), (53, "TCP")} <= names:
            yield f"{server.name}: names cannot be resolved"
        endpoint = read_settings(manifests, server).trace_endpoint
        if endpoint is not None and (urlsplit(endpoint).port, "TCP") not in names:
            yield f"{server.name}: traces do not reach {endpoint}"
        if any("ports" not in rule or "to" not in rule for rule in out):
            yield f"{server.name}: may call anybody"


def _peers(rules: list[dict[str, Any]], port: str) -> list[Mapping[str, Any] | None]:
    """Who may reach a port; None stands for all."""
    found: list[Mapping[str, Any] | None] = []
    for rule in rules:
        if any(one["port"] == port for one in rule.get("ports", ())):
            found += rule.get("from", [None])
    return found


def check_scaling(manifests: Manifests) -> Iterator[str]:
    """One autoscaler at most, of a Deployment that is there and names no number of replicas."""
    scalers = of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    if len(scalers) > 1:
        yield f"several autoscalers would fight: {[*map(name_of, scalers)]}"
    for scaler in scalers:
        reference = scaler["spec"]["scaleTargetRef"]
        target = [
            one
            for one in of_kind(manifests, reference["kind"])
            if (one["apiVersion"], one["metadata"]["name"])
            == (reference["apiVersion"], reference["name"])
        ]
        if not target:
            yield f"{name_of(scaler)}: no {reference['kind']}/{reference['name']}"
        if any("replicas" in one["spec"] for one in target):
            yield f"{name_of(scaler)}: its target says replicas, so an update would set them back"
        fewest, most = _bounds(scaler)
        if not 2 <= fewest <= most:
            yield f"{name_of(scaler)}: expected 2 <= {fewest} <= {most}"
        if any(metric["type"] == "Resource" for metric in scaler["spec"].get("metrics", ())):
            yield f"{name_of(scaler)}: scales by CPU or memory, which do not say who waits"


def _bounds(scaler: Manifest) -> tuple[int, int]:
    spec = scaler["spec"]
    if scaler["kind"] == "ScaledObject":
        return spec["minReplicaCount"], spec["maxReplicaCount"]
    return spec["minReplicas"], spec["maxReplicas"]


def check_disruption(manifests: Manifests) -> Iterator[str]:
    """With the fewest replicas a node can still be drained, and with two or more one stays."""
    scalers = of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
    for deployment in of_kind(manifests, "Deployment"):
        replicas = _bounds(scalers[0])[0] if scalers else deployment["spec"]["replicas"]
        budgets = of_kind(manifests, "PodDisruptionBudget")
        if len(budgets) != 1:
            yield f"{name_of(deployment)}: expected one budget, got {len(budgets)}"
        for budget in budgets:
            may_go = fewest_evictions(replicas, budget["spec"].get("maxUnavailable", 0))
            if may_go < 1:
                yield f"{name_of(budget)}: no node could ever be drained"
            if may_go >= replicas > 1:
                yield f"{name_of(budget)}: all {replicas} replicas may go at once"


def check_addresses(manifests: Manifests) -> Iterator[str]:
    """Certificates name the Services of calls; routes lead to what there is."""
    services = {one["metadata"]["name"]: one for one in of_kind(manifests, "Service")}
    for certificate in of_kind(manifests, "Certificate"):
        namespace = certificate["metadata"]["namespace"]
        called = [name for name, one in services.items() if _takes_calls(one)]
        for name in called:
            full = f"{name}.{namespace}.svc.cluster.local"
            for expected in (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", full):
                if expected not in certificate["spec"]["dnsNames"]:
                    yield f"{name_of(certificate)}: expected the name {expected}"
    for route in of_kind(manifests, "GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                service = services.get(backend["name"])
                ports = [port["port"] for port in service["spec"]["ports"]] if service else []
                if backend["port"] not in ports:
                    yield f"{name_of(route)}: no port {backend['port']} in {backend['name']}"
            for match in rule["matches"]:
                if match["method"]["service"] not in RPC_SERVICES:
                    yield f"{name_of(route)}: no RPC service {match['method']['service']}"
    for job_set in of_kind(manifests, "JobSet"):
        jobs = job_set["spec"]["replicatedJobs"]
        first = f"{job_set['metadata']['name']}-{jobs[0]['name']}-0-0"
        container = jobs[0]["template"]["spec"]["template"]["spec"]["containers"][0]
        if f"--master-addr={first}.{job_set['metadata']['name']}" not in container["args"]:
            yield f"{name_of(job_set)}: the first machine is {first}"
        if f"--nnodes={jobs[0]['template']['spec']['completions']}" not in container["args"]:
            yield f"{name_of(job_set)}: --nnodes and completions differ"


def _selected(manifests: Manifests, selector: Mapping[str, str]) -> list[Workload]:
    return [server for server in servers(manifests) if selects(selector, server.labels)]


CHECKS = [
    *(check_namespaces, check_selectors, check_spread, check_service_ports, check_protocols),
    *(check_scrapes, check_network_policy, check_scaling, check_disruption, check_addresses),
]
