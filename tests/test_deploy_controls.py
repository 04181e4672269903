"""The checks of manifests see what they are for: each manifest here is spoilt in one place."""

from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy import network_checks as network
from tests.deploy import queries
from tests.deploy import workload_checks as workload
from tests.deploy.manifests import COMPONENTS, VOLUMES, Variant, of_kind, quantity, render
from tests.deploy.spoiling import (
    Spoil,
    expression,
    job,
    limits,
    one,
    panel,
    pod,
    requests,
    server,
    setting,
    spec,
    twice,
    without,
)

CPU, GPU = Variant("overlays/cpu"), Variant("overlays/gpu")
DEV = Variant("overlays/dev")
ALL = COMPONENTS[-1]
SINGLE, DISTRIBUTED = Variant("training/single"), Variant("training/distributed")

CONTROLS: list[tuple[str, Callable[..., Any], Variant, Spoil, str]] = [
    ("unknown variable", workload.check_settings, CPU, setting(GANSERVE_QUEUE="9"), "no setting"),
    ("bad value", workload.check_settings, CPU, setting(GANSERVE_QUEUE_SIZE="many"), "queue_size"),
    (
        *("values that contradict each other", workload.check_settings, CPU),
        *(setting(GANSERVE_DEADLINE_SECONDS="61"), "deadline_seconds"),
    ),
    (
        *("service links", workload.check_settings, CPU),
        *(pod(lambda s: s.pop("enableServiceLinks")), "GANSERVE_PORT"),
    ),
    ("port", workload.check_ports, CPU, setting(GANSERVE_METRICS_PORT="9091"), "9091"),
    ("no health port", workload.check_ports, CPU, setting(GANSERVE_HEALTH_PORT=None), "None"),
    (
        *("probe of the wrong service", workload.check_probes, CPU),
        *(server(lambda c: c["livenessProbe"]["grpc"].update(service="")), "livenessProbe"),
    ),
    (
        *("probe of the port with TLS", workload.check_probes, ALL),
        *(server(lambda c: c["readinessProbe"]["grpc"].update(port=50051)), "readinessProbe"),
    ),
    (
        *("short grace", workload.check_grace, CPU),
        *(pod(lambda s: s.update(terminationGracePeriodSeconds=84)), "expected 85 or more, got 84"),
    ),
    (
        *("longer drain", workload.check_grace, CPU),
        *(setting(GANSERVE_DRAIN_SECONDS="60"), "terminationGracePeriodSeconds"),
    ),
    ("no preStop", workload.check_grace, CPU, server(lambda c: c.pop("lifecycle")), "preStop"),
    (
        *("a job that does not tell who ended it", workload.check_interruptions, DISTRIBUTED),
        *(job(lambda j: j.pop("podFailurePolicy")), "taken away counts as a failure"),
    ),
    (
        *("restarts that all count", workload.check_interruptions, DISTRIBUTED),
        *(spec("JobSet", failurePolicy={"maxRestarts": 10}), "taken away counts as a failure"),
    ),
    (
        *("a job that fails before it is known why", workload.check_interruptions, DISTRIBUTED),
        *(job(lambda j: j.update(backoffLimit=0)), "backoffLimit"),
    ),
    (
        *("torchrun sooner than the node", workload.check_interruptions, DISTRIBUTED),
        job(lambda j: j["template"]["spec"].update(terminationGracePeriodSeconds=300)),
        "expected --shutdown-timeout=290",
    ),
    (
        *("torchrun as it is by default", workload.check_interruptions, DISTRIBUTED),
        job(
            lambda j: j["template"]["spec"]["containers"][0]["args"].remove(
                "--shutdown-timeout=110"
            )
        ),
        "expected --shutdown-timeout=110",
    ),
    ("request over limit", workload.check_resources, CPU, requests(cpu="2001m"), "over the limit"),
    ("calls over memory", workload.check_resources, CPU, limits(memory="1Gi"), "1024 MiB"),
    (
        *("replies over memory", workload.check_resources, CPU),
        *(setting(GANSERVE_MAX_IMAGES_PER_REQUEST="512"), "3328 MiB"),
    ),
    (
        *("streams over memory", workload.check_resources, CPU),
        *(setting(GANSERVE_CHUNK_BYTES="1048576"), "1280 MiB"),
    ),
    (
        *("no memory but for calls", workload.check_resources, DEV, limits(memory="512Mi")),
        "the process may hold 768 MiB",
    ),
    (
        *("no limit", workload.check_resources, SINGLE),
        *(pod(lambda s: s["containers"][0].pop("resources"), "Job"), "request and a limit"),
    ),
    (
        *("unbounded emptyDir", workload.check_temporary_space, CPU),
        *(pod(lambda s: s["volumes"][0]["emptyDir"].clear()), "ephemeral-storage"),
    ),
    (
        *("GPU without its device", workload.check_device, GPU),
        *(setting(GANSERVE_DEVICE="cpu"), "GANSERVE_DEVICE is cpu"),
    ),
    (
        *("GPU with the image for CPUs", workload.check_device, GPU),
        *(server(lambda c: c.update(image="ganserve:cpu")), "ganserve:cpu"),
    ),
    (
        *("compiled kernels that fill /tmp", workload.check_temporary_space, GPU),
        *(server(lambda c: c.pop("env")), "CUDA_CACHE_MAXSIZE: expected at most half of /tmp"),
    ),
    ("taint", workload.check_device, GPU, pod(lambda s: s.pop("tolerations")), "tainted"),
    (
        *("root", workload.check_rights, CPU),
        *(pod(lambda s: s["securityContext"].update(runAsUser=0)), "runAsUser"),
    ),
    (
        *("files can be written", workload.check_rights, CPU),
        *(server(lambda c: c["securityContext"].pop("readOnlyRootFilesystem")), "readOnly"),
    ),
    (
        *("token", workload.check_rights, CPU),
        *(pod(lambda s: s.pop("automountServiceAccountToken")), "token"),
    ),
    ("no account", workload.check_rights, CPU, without("ServiceAccount"), "serviceAccountName"),
    (
        *("mount of nothing", workload.check_volumes, CPU),
        *(pod(lambda s: s["volumes"].pop()), "mounts of"),
    ),
    ("no claim", workload.check_volumes, ALL, without("PersistentVolumeClaim"), "no claim"),
    (
        *("claim that nobody applies", workload.check_volumes, SINGLE),
        pod(
            lambda s: s["volumes"][0]["persistentVolumeClaim"].update(claimName="runs"),
            "Job",
        ),
        "no claim runs",
    ),
    (
        *("claim that goes with its Job", workload.check_volumes, SINGLE),
        *(lambda manifests: manifests.extend(render(VOLUMES)), "goes when training is deleted"),
    ),
    ("no certificate", workload.check_volumes, ALL, without("Certificate"), "no secret"),
    (
        *("models elsewhere", workload.check_volumes, CPU),
        *(setting(GANSERVE_MODELS="/data"), "/data is not mounted"),
    ),
    (
        *("tag that moves", workload.check_images, CPU),
        *(server(lambda c: c.update(image="ganserve:latest")), "a tag that stays"),
    ),
    (
        *("unknown image", workload.check_images, CPU),
        *(server(lambda c: c.update(image="gan-serve:cpu")), "nothing builds"),
    ),
    (
        *("two tags", workload.check_images, SINGLE),
        *(pod(lambda s: s["containers"][0].update(image="gantrain:1"), "Job"), "several tags"),
    ),
    (
        *("another namespace", network.check_namespaces, CPU),
        *(one("Service", lambda m: m["metadata"].update(namespace="other")), "one namespace"),
    ),
    (
        *("namespace without its standard", network.check_namespaces, CPU),
        *(one("Namespace", lambda m: m["metadata"]["labels"].clear()), "restricted"),
    ),
    (
        *("wrong selector", network.check_selectors, CPU),
        *(spec("Service", selector={"app": "ganserve"}), "selects no pod"),
    ),
    (
        *("budget of other pods", network.check_selectors, CPU),
        *(spec("PodDisruptionBudget", selector={"matchLabels": {"app": "x"}}), "selects no pod"),
    ),
    (
        *("spread of other pods", network.check_selectors, CPU),
        pod(
            lambda s: s["topologySpreadConstraints"][1].update(
                labelSelector={"matchLabels": {"app": "x"}}
            )
        ),
        "spreads other pods",
    ),
    (
        *("no spread", network.check_spread, CPU),
        *(pod(lambda s: s["topologySpreadConstraints"].pop(0)), "topology.kubernetes.io/zone"),
    ),
    (
        *("Service to no port", network.check_service_ports, CPU),
        one("Service", lambda m: m["spec"]["ports"][0].update(targetPort="http")),
        "the container has",
    ),
    (
        *("no headless Service", network.check_service_ports, CPU),
        lambda manifests: manifests.remove(of_kind(manifests, "Service")[1]),
        "one without",
    ),
    (
        *("calls in the clear that are said to use TLS", network.check_protocols, CPU),
        one("Service", lambda m: m["spec"]["ports"][0].update(appProtocol="https")),
        "expected appProtocol kubernetes.io/h2c",
    ),
    (
        *("TLS that is not said", network.check_protocols, ALL),
        one("Service", lambda m: m["spec"]["ports"][0].update(appProtocol="kubernetes.io/h2c")),
        "expected appProtocol https",
    ),
    (
        *("metrics that are said to use TLS", network.check_protocols, ALL),
        lambda manifests: of_kind(manifests, "Service")[2]["spec"]["ports"][0].update(
            appProtocol="https"
        ),
        "Service/ganserve-metrics: metrics: expected appProtocol http",
    ),
    (
        *("scraped twice", network.check_scrapes, CPU),
        spec("ServiceMonitor", selector={"matchLabels": {"app.kubernetes.io/name": "ganserve"}}),
        "expected one Service",
    ),
    (
        *("draining pods not scraped", network.check_scrapes, CPU),
        lambda manifests: of_kind(manifests, "Service")[2]["spec"].pop("publishNotReadyAddresses"),
        "leaves out pods",
    ),
    (
        *("scrape of no port", network.check_scrapes, CPU),
        *(spec("ServiceMonitor", endpoints=[{"port": "http"}]), "no such port"),
    ),
    (
        "probes kept out",
        network.check_network_policy,
        CPU,
        spec("NetworkPolicy", ingress=[]),
        "probe",
    ),
    ("no names", network.check_network_policy, CPU, spec("NetworkPolicy", egress=[]), "resolved"),
    (
        *("metrics open to all", network.check_network_policy, CPU),
        one("NetworkPolicy", lambda m: m["spec"]["ingress"][2].pop("from")),
        "nobody else",
    ),
    (
        *("traces kept in", network.check_network_policy, CPU),
        *(setting(GANSERVE_TRACE_ENDPOINT="http://collector:4317"), "traces do not reach"),
    ),
    ("way out", network.check_network_policy, CPU, spec("NetworkPolicy", egress=[{}]), "anybody"),
    (
        *("autoscaler of nothing", network.check_scaling, CPU),
        one(
            "HorizontalPodAutoscaler",
            lambda m: m["spec"]["scaleTargetRef"].update(name="ganserve-cpu"),
        ),
        "no Deployment/ganserve-cpu",
    ),
    ("replicas", network.check_scaling, CPU, spec("Deployment", replicas=2), "set them back"),
    (
        *("two autoscalers", network.check_scaling, CPU),
        *(twice("HorizontalPodAutoscaler"), "would fight"),
    ),
    ("bounds", network.check_scaling, ALL, spec("ScaledObject", maxReplicaCount=1), "2 <= 2 <= 1"),
    (
        *("scaling by CPU", network.check_scaling, CPU),
        *(spec("HorizontalPodAutoscaler", metrics=[{"type": "Resource"}]), "who waits"),
    ),
    (
        *("no room to drain", network.check_disruption, CPU),
        *(spec("PodDisruptionBudget", maxUnavailable=0), "no node could ever be drained"),
    ),
    (
        *("all may go", network.check_disruption, CPU),
        *(spec("PodDisruptionBudget", maxUnavailable="60%"), "may go at once"),
    ),
    (
        *("name left out", network.check_addresses, ALL),
        *(one("Certificate", lambda m: m["spec"]["dnsNames"].pop()), "expected the name"),
    ),
    (
        *("route to an unknown RPC", network.check_addresses, ALL),
        one(
            "GRPCRoute",
            lambda m: m["spec"]["rules"][0]["matches"][0]["method"].update(service="x.Y"),
        ),
        "no RPC service x.Y",
    ),
    (
        *("route to no port", network.check_addresses, ALL),
        one("GRPCRoute", lambda m: m["spec"]["rules"][0]["backendRefs"][0].update(port=80)),
        "no port 80",
    ),
    (
        *("machines that are not there", network.check_addresses, DISTRIBUTED),
        job(lambda j: j.update(completions=3)),
        "--nnodes",
    ),
    (
        *("alert about nothing", queries.check_queries, CPU),
        *(expression("ganserve_rejects_total > 0"), "ganserve_rejects_total is not exported"),
    ),
    (
        *("alert with an unknown label", queries.check_queries, CPU),
        *(expression('ganserve_images_total{name="a"} > 0'), "no label name"),
    ),
    (
        *("alert with an unknown value", queries.check_queries, CPU),
        expression('ganserve_rejected_requests_total{reason="queue_is_full"} > 0'),
        "never queue_is_full",
    ),
    ("alert of others", queries.check_queries, CPU, expression("up == 0"), "no series of the"),
    (
        *("targets of others", queries.check_queries, CPU, expression('up{job="node"} == 0')),
        "no series of the",
    ),
    (
        *("rule that is not recorded", queries.check_queries, CPU),
        *(expression("ganserve:calls:rate7m > 0"), "ganserve:calls:rate7m is not recorded"),
    ),
    (
        *("unknown series of Kubernetes", queries.check_queries, CPU),
        *(expression("kube_deployment_replicas == 0"), "has no kube_deployment_replicas"),
    ),
    (
        *("panel about nothing", queries.check_queries, CPU),
        *(panel("rate(ganserve_pictures_total[1m])"), "ganserve_pictures_total is not exported"),
    ),
    (
        *("trigger of another namespace", queries.check_queries, ALL),
        one("ScaledObject", lambda m: m["metadata"].update(namespace="other")),
        'expected namespace="other"',
    ),
    (
        *("metric that the adapter lacks", queries.check_queries, CPU),
        one(
            "HorizontalPodAutoscaler",
            lambda m: m["spec"]["metrics"][0]["pods"]["metric"].update(name="ganserve_waiting"),
        ),
        "shows no ganserve_waiting",
    ),
]


@pytest.mark.parametrize(
    ("check", "variant", "spoil", "complaint"),
    [control[1:] for control in CONTROLS],
    ids=[control[0] for control in CONTROLS],
)
def test_a_spoilt_manifest_is_seen(check, variant: Variant, spoil: Spoil, complaint: str):
    manifests = render(variant)
    assert list(check(manifests)) == []
    spoil(manifests)
    found = list(check(manifests))
    assert any(complaint in sentence for sentence in found), found


def test_every_check_has_a_control():
    checks = [*workload.CHECKS, *network.CHECKS, *queries.CHECKS]
    assert {check.__name__ for check in checks} == {control[1].__name__ for control in CONTROLS}


def test_the_schemas_refuse_unknown_fields_and_wrong_types():
    for spoil in (spec("Deployment", replica=2), spec("Deployment", minReadySeconds="soon")):
        manifests = render(CPU)
        spoil(manifests)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(of_kind(manifests, "Deployment")[0], "1.30", strict=True)


@pytest.mark.parametrize(
    ("text", "number"), [("250m", 0.25), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("3k", 3000), (4, 4)]
)
def test_quantities_are_read_as_kubernetes_reads_them(text, number):
    assert float(quantity(text)) == number
