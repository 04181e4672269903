"""Hides what makes a pod right: its settings, probes, grace, resources, rights, volumes, images.

Each check takes rendered manifests and yields a sentence for everything that is wrong.
"""

import math
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

from pydantic import ValidationError
from torch.distributed.run import get_args_parser

from ganserve.config import ServerConfig
from ganserve.memory import _TRIM_THRESHOLD
from ganserve.server import _STOP_GRACE_SECONDS
from ganserve.transport.health import LIVENESS, READINESS
from tests.deploy.manifests import (
    DEPLOY,
    VOLUMES,
    Manifests,
    Workload,
    name_of,
    of_kind,
    quantity,
    render,
    servers,
    variables,
    workloads,
)

_PREFIX = "GANSERVE_"
# Image to the file it is built from.
IMAGES = {
    "ganserve": "serve.Dockerfile",
    "ganserve-models": "model.Dockerfile",
    "gantrain": "train.Dockerfile",
}
_USER = 65532
_IMAGE_BYTES = 64 * 64 * 3  # the largest that the settings allow for
# What is there without calls: the process with its models, and freed buffers that it keeps.
_OTHER_BYTES = 256 * 2**20 + _TRIM_THRESHOLD
_GPU = "nvidia.com/gpu"
_CUDA_CACHE = "CUDA_CACHE_MAXSIZE"  # the one variable that others read: CUDA's driver, in bytes
_TORCHRUN_END_SECONDS = 10  # for what torchrun itself does after its workers have ended


def read_settings(manifests: Manifests, server: Workload) -> ServerConfig:
    """The settings as the server itself would read them."""
    given = variables(manifests, server.server)
    with mock.patch.dict(os.environ, given):
        for name in set(os.environ) - set(given):
            if name.startswith(_PREFIX):
                del os.environ[name]
        return ServerConfig()  # from the environment


def check_settings(manifests: Manifests) -> Iterator[str]:
    """Every variable is a setting, and all values hold."""
    known = {_PREFIX + name.upper() for name in ServerConfig.model_fields} | {_CUDA_CACHE}
    for server in servers(manifests):
        given = variables(manifests, server.server)
        for name in sorted(given.keys() - known):
            yield f"{server.name}: {name} is no setting"
        try:
            read_settings(manifests, server)
        except ValidationError as error:
            yield f"{server.name}: {error}"
        if server.spec.get("enableServiceLinks", True):
            yield f"{server.name}: the Service ganserve would set GANSERVE_PORT: no service links"


def check_ports(manifests: Manifests) -> Iterator[str]:
    """The container's ports are those the server listens on, and those are all."""
    for server in servers(manifests):
        config = read_settings(manifests, server)
        expected = {
            "grpc": config.port,
            "health": config.health_port,
            "metrics": config.metrics_port,
        }
        ports = {port["name"]: port["containerPort"] for port in server.server["ports"]}
        if ports != expected:
            yield f"{server.name}: ports: the settings say {expected}, the container {ports}"


def check_probes(manifests: Manifests) -> Iterator[str]:
    """Probes ask the port that is always in the clear; each asks its own question."""
    questions = {"startup": LIVENESS, "liveness": LIVENESS, "readiness": READINESS}
    for server in servers(manifests):
        config = read_settings(manifests, server)
        for probe, service in questions.items():
            expected = {"port": config.health_port, "service": service}
            asked = server.server.get(f"{probe}Probe", {}).get("grpc")
            if asked != expected:
                yield f"{server.name}: {probe}Probe: expected {expected}, got {asked}"


def check_grace(manifests: Manifests) -> Iterator[str]:
    """Nobody kills a server that is still answering."""
    for server in servers(manifests):
        config = read_settings(manifests, server)
        sleep = server.server.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        if not sleep:
            yield f"{server.name}: no preStop sleep: proxies would call a server that drains"
        needed = sleep.get("seconds", 0) + config.drain_seconds
        needed += config.max_deadline_seconds + _STOP_GRACE_SECONDS
        grace = server.spec.get("terminationGracePeriodSeconds", 30)
        if grace < needed:
            yield (
                f"{server.name}: terminationGracePeriodSeconds: expected {needed:g} or more, "
                f"got {grace}"
            )


def check_interruptions(manifests: Manifests) -> Iterator[str]:
    """A machine of several has its grace period to save in, and to be taken away is no failure."""
    for job_set in of_kind(manifests, "JobSet"):
        job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
        failing = [
            condition["type"]
            for rule in job.get("podFailurePolicy", {}).get("rules", ())
            for condition in rule["onPodConditions"]
            if rule["action"] == "FailJob" and condition["status"] == "True"
        ]
        ignored = [
            reason
            for rule in job_set["spec"]["failurePolicy"].get("rules", ())
            for reason in rule["onJobFailureReasons"]
            if rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
        ]
        if (failing, ignored) != (["DisruptionTarget"], ["PodFailurePolicy"]):
            yield f"{name_of(job_set)}: a machine that is taken away counts as a failure"
        if job["backoffLimit"] != job["completions"] - 1:
            yield f"{name_of(job_set)}: backoffLimit: expected one less than the machines"
        pod = job["template"]["spec"]
        arguments = [one.replace("$(NODE_RANK)", "0") for one in pod["containers"][0]["args"]]
        expected = pod.get("terminationGracePeriodSeconds", 30) - _TORCHRUN_END_SECONDS
        if get_args_parser().parse_args(arguments).shutdown_timeout != expected:
            yield f"{name_of(job_set)}: expected --shutdown-timeout={expected}, of its grace period"


def check_resources(manifests: Manifests) -> Iterator[str]:
    """Requests are at most limits, both are there, and calls fit the memory."""
    for workload in workloads(manifests):
        for container in workload.containers:
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            where = f"{workload.name}: {container['name']}"
            for name in ("cpu", "memory", "ephemeral-storage"):
                if name not in requests or name not in limits:
                    yield f"{where}: {name}: expected a request and a limit"
            for name in requests.keys() & limits.keys():
                if quantity(requests[name]) > quantity(limits[name]):
                    yield f"{where}: {name}: the request is over the limit"
            if requests.get(_GPU) != limits.get(_GPU):
                yield f"{where}: {_GPU}: request and limit must be equal"
    for server in servers(manifests):
        config = read_settings(manifests, server)
        # Of a stream one chunk is sent while the next is made.
        reply = max(config.max_images_per_request * _IMAGE_BYTES, 2 * config.chunk_bytes)
        # Pixels, and the message they are joined into.
        held = config.max_concurrent_calls * (config.max_message_bytes + 2 * reply)
        memory = server.server["resources"].get("limits", {}).get("memory", "0")
        if held > quantity(memory) / 2:
            yield f"{server.name}: calls may hold {held / 2**20:g} MiB, over half of {memory}"
        if held + _OTHER_BYTES > quantity(memory):
            needed = (held + _OTHER_BYTES) / 2**20
            yield f"{server.name}: the process may hold {needed:g} MiB, over {memory}"


def check_temporary_space(manifests: Manifests) -> Iterator[str]:
    """Every emptyDir is bounded, all together fit the limit of the pod, and caches fit theirs."""
    for workload in workloads(manifests):
        sizes = [volume["emptyDir"] for volume in workload.spec["volumes"] if "emptyDir" in volume]
        on_disk = [size.get("sizeLimit", "1Ti") for size in sizes if "medium" not in size]
        limit = max(
            quantity(container["resources"]["limits"]["ephemeral-storage"])
            for container in workload.containers
        )
        if sum(map(quantity, on_disk)) > limit:
            yield f"{workload.name}: emptyDirs of {on_disk} are over the limit of ephemeral-storage"
        for container in workload.containers:
            tmp = next(one["emptyDir"] for one in workload.spec["volumes"] if one["name"] == "tmp")
            cache = variables(manifests, container).get(_CUDA_CACHE, 2**30)  # the driver's default
            limits = container["resources"]["limits"]
            has_gpu = any(name.startswith("nvidia.com/") for name in limits)
            if has_gpu and 2 * quantity(cache) > quantity(tmp.get("sizeLimit", "1Ti")):
                yield f"{workload.name}: {_CUDA_CACHE}: expected at most half of /tmp, got {cache}"


def check_device(manifests: Manifests) -> Iterator[str]:
    """Who asks for a GPU computes on one, with the image for it; others ask for none."""
    for server in servers(manifests):
        device = read_settings(manifests, server).device
        resources = server.server.get("resources", {}).get("limits", {})
        has_gpu = any(name.startswith("nvidia.com/") for name in resources)
        image = server.server["image"]
        if has_gpu != (device in ("cuda", "tensorrt")):
            yield f"{server.name}: GANSERVE_DEVICE is {device}, but limits are {resources}"
        if has_gpu != image.endswith(":gpu"):
            yield f"{server.name}: image {image}, but limits are {resources}"
        tolerated = {toleration["key"] for toleration in server.spec.get("tolerations", ())}
        if has_gpu and _GPU not in tolerated:
            yield f"{server.name}: nodes with GPUs are tainted: expected a toleration of {_GPU}"


def check_rights(manifests: Manifests) -> Iterator[str]:
    """The restricted Pod Security Standard, and a file system that cannot be written to."""
    for workload in workloads(manifests):
        spec, context = workload.spec, workload.spec.get("securityContext", {})
        expected: dict[str, Any] = {"runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER}
        expected |= {"fsGroup": _USER, "seccompProfile": {"type": "RuntimeDefault"}}
        for name, value in expected.items():
            if context.get(name) != value:
                yield f"{workload.name}: securityContext.{name}: expected {value}"
        if spec.get("automountServiceAccountToken", True):
            yield f"{workload.name}: a token for the API server is mounted"
        accounts = [one["metadata"]["name"] for one in of_kind(manifests, "ServiceAccount")]
        if spec.get("serviceAccountName") not in accounts:
            yield f"{workload.name}: serviceAccountName: there are {accounts}"
        if spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}:
            yield f"{workload.name}: shares a namespace with the node"
        for container in workload.containers:
            restricted = {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            if container.get("securityContext") != restricted:
                yield f"{workload.name}: {container['name']}: expected {restricted}"


def check_volumes(manifests: Manifests) -> Iterator[str]:
    """Mounts have volumes, volumes have what they are made of, files of settings are mounted."""
    claims = {one["metadata"]["name"] for one in of_kind(manifests, "PersistentVolumeClaim")}
    if of_kind(manifests, "Job", "JobSet"):
        for claim in claims:
            yield f"{claim}: goes when training is deleted; it belongs to {VOLUMES}"
        there = of_kind(render(VOLUMES), "PersistentVolumeClaim")
        claims = {one["metadata"]["name"] for one in there}
    secrets = {one["spec"]["secretName"] for one in of_kind(manifests, "Certificate")}
    for workload in workloads(manifests):
        volumes = {volume["name"]: volume for volume in workload.spec["volumes"]}
        mounts = [mount for container in workload.containers for mount in container["volumeMounts"]]
        mounted = {mount["name"] for mount in mounts}
        if mounted != set(volumes):
            yield f"{workload.name}: mounts of {sorted(mounted)}, but volumes {sorted(volumes)}"
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                yield f"{workload.name}: no claim {claim}"
            secret = volume.get("secret", {}).get("secretName")
            if secret is not None and secret not in secrets:
                yield f"{workload.name}: no secret {secret}"
    for server in servers(manifests):
        config = read_settings(manifests, server)
        files = (config.models, config.tls_certificate, config.tls_key, config.tls_client_ca)
        paths = [mount["mountPath"] for mount in server.server["volumeMounts"]]
        for file in (*files, config.token_file):
            if file is not None and not any(file.is_relative_to(path) for path in paths):
                yield f"{server.name}: {file} is not mounted"


def check_images(manifests: Manifests) -> Iterator[str]:
    """Images are those built here; each has one tag throughout, and it is no moving one."""
    tags: dict[str, set[str]] = {}
    for workload in workloads(manifests):
        for container in workload.containers:
            name, _, tag = container["image"].partition(":")
            tags.setdefault(name, set()).add(tag)
            if name not in IMAGES or not (DEPLOY / IMAGES[name]).exists():
                yield f"{workload.name}: nothing builds the image {name}"
            if tag in ("", "latest"):
                yield f"{workload.name}: {container['image']}: expected a tag that stays"
    for name, found in tags.items():
        if len(found) > 1:
            yield f"{name}: several tags, {sorted(found)}"


def fewest_evictions(replicas: int, max_unavailable: int | str) -> int:
    """How many pods a disruption budget lets go, percentages rounded up as Kubernetes does."""
    if isinstance(max_unavailable, int):
        return max_unavailable
    return math.ceil(replicas * int(max_unavailable.removesuffix("%")) / 100)


CHECKS = [
    *(check_settings, check_ports, check_probes, check_grace, check_interruptions),
    *(
        check_resources,
        check_temporary_space,
        check_device,
        check_rights,
        check_volumes,
        check_images,
    ),
]
