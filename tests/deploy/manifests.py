"""Hides how kustomizations become manifests, and where in them workloads and settings are."""

import copy
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]
Manifests = Sequence[Manifest]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_SUFFIXES = {"m": "0.001", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12"}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Variant:
    """A kustomization of the project, alone or with components added to it."""

    path: str
    components: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join((self.path, *self.components))


OVERLAYS = [Variant(f"overlays/{name}") for name in ("dev", "cpu", "gpu")]
# Each component alone, and all that go together.
COMPONENTS = [
    *(
        Variant("base", (name,))
        for name in ("autoscaling-keda", "gateway", "models-pvc", "tls", "tracing")
    ),
    Variant("overlays/cpu", ("tls", "gateway", "models-pvc")),
    Variant("overlays/gpu", ("tls", "models-pvc")),
    Variant("base", ("monitoring", "autoscaling-keda", "tls", "gateway", "models-pvc", "tracing")),
]
SERVING = [*OVERLAYS, *COMPONENTS]
TRAINING = [Variant("training/single"), Variant("training/distributed")]
VOLUMES = Variant("training/volumes")  # what these find in the cluster
EVERY = [*SERVING, *TRAINING]


def render(variant: Variant) -> list[Manifest]:
    """What `kubectl apply -k` would send; a copy, free to be changed.

    Skips the test where there is no kubectl.
    """
    return copy.deepcopy(_parse(variant))


@functools.cache
def _parse(variant: Variant) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(render_text(variant)) if manifest]


@functools.cache
def render_text(variant: Variant) -> str:
    """The manifests as YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = DEPLOY / variant.path
        if variant.components or variant.path == "base":
            path = Path(folder)
            _write_overlay(path, variant)
        return kustomize(path)


def kustomize(folder: Path) -> str:
    """What `kubectl kustomize` makes of a folder. Skips the test where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here: the manifests of deploy/ are NOT checked")
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    assert not done.stderr, f"{folder}: {done.stderr}"  # such as a field that is deprecated
    return done.stdout


def _write_overlay(folder: Path, variant: Variant) -> None:
    def relative(path: str) -> str:
        return os.path.relpath(DEPLOY / path, folder.resolve())

    overlay: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "ganserve",
        "resources": [relative(variant.path)],
        "components": [relative(f"components/{name}") for name in variant.components],
    }
    if variant.path == "base":  # what each cluster says itself
        tags = {"ganserve": "cpu", "ganserve-models": "1"}
        overlay["images"] = [{"name": name, "newTag": tag} for name, tag in tags.items()]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))


def of_kind(manifests: Manifests, *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def name_of(manifest: Manifest) -> str:
    """KIND/NAME."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


@dataclass(frozen=True)
class Workload:
    """What makes pods: its name, the labels its pods get, their spec."""

    name: str
    labels: Mapping[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All, those that run first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def server(self) -> dict[str, Any]:
        """The container that serves."""
        return next(one for one in self.spec["containers"] if one["name"] == "server")


def workloads(manifests: Manifests) -> Iterator[Workload]:
    """Everything that makes pods."""
    for manifest in of_kind(manifests, "Deployment", "Job"):
        yield _workload(name_of(manifest), manifest["spec"]["template"])
    for job_set in of_kind(manifests, "JobSet"):
        for job in job_set["spec"]["replicatedJobs"]:
            template = job["template"]["spec"]["template"]
            yield _workload(f"{name_of(job_set)}/{job['name']}", template)


def _workload(name: str, template: Mapping[str, Any]) -> Workload:
    return Workload(name, template["metadata"]["labels"], template["spec"])


def servers(manifests: Manifests) -> list[Workload]:
    """The workloads that serve."""
    return [_workload(name_of(m), m["spec"]["template"]) for m in of_kind(manifests, "Deployment")]


def variables(manifests: Manifests, container: Mapping[str, Any]) -> dict[str, str]:
    """The environment that a container is given; of ConfigMaps that are there."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        for config in of_kind(manifests, "ConfigMap"):
            if config["metadata"]["name"] == source.get("configMapRef", {}).get("name"):
                found |= config["data"]
    return found | {entry["name"]: entry.get("value", "") for entry in container.get("env", ())}


def quantity(text: str | int) -> Decimal:
    """The number that a quantity such as 250m, 2 or 1.5Gi stands for."""
    text = str(text)
    for suffix, factor in _BINARY.items():
        if text.endswith(suffix):
            return Decimal(text.removesuffix(suffix)) * factor
    if text[-1] in _SUFFIXES:
        return Decimal(text[:-1]) * Decimal(_SUFFIXES[text[-1]])
    return Decimal(text)


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether all labels of a selector are there."""
    return selector.items() <= labels.items()
