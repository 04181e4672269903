"""Hides how a rendered manifest is spoilt in one place, to see whether anybody notices."""

import json
from collections.abc import Callable
from typing import Any

from tests.deploy.manifests import Manifest, of_kind

Spoil = Callable[[list[Manifest]], None]


def one(kind: str, spoil: Callable[[Manifest], object]) -> Spoil:
    """Spoil the first manifest of a kind."""

    def apply(manifests: list[Manifest]) -> None:
        spoil(of_kind(manifests, kind)[0])

    return apply


def pod(spoil: Callable[[dict[str, Any]], object], kind: str = "Deployment") -> Spoil:
    """Spoil the pods of a workload."""
    return one(kind, lambda manifest: spoil(manifest["spec"]["template"]["spec"]))


def job(spoil: Callable[[dict[str, Any]], object]) -> Spoil:
    """Spoil the first job of a JobSet."""
    return one("JobSet", lambda m: spoil(m["spec"]["replicatedJobs"][0]["template"]["spec"]))


def server(spoil: Callable[[dict[str, Any]], object]) -> Spoil:
    """Spoil the container that serves."""
    return pod(lambda spec: spoil(spec["containers"][0]))


def setting(**values: str | None) -> Spoil:
    """Set variables, or take them away."""

    def apply(manifest: Manifest) -> None:
        data = manifest["data"]
        data.update({name: value for name, value in values.items() if value is not None})
        for name in [name for name, value in values.items() if value is None]:
            del data[name]

    return lambda manifests: apply(_settings_of(manifests))


def spec(kind: str, **values: object) -> Spoil:
    """Replace fields of the spec."""
    return one(kind, lambda manifest: manifest["spec"].update(values))


def twice(kind: str) -> Spoil:
    """Two where there should be one."""
    return lambda manifests: manifests.append(of_kind(manifests, kind)[0])


def without(kind: str) -> Spoil:
    """None where there should be one."""

    def apply(manifests: list[Manifest]) -> None:
        manifests[:] = [manifest for manifest in manifests if manifest["kind"] != kind]

    return apply


def limits(**values: str) -> Spoil:
    """Other limits of the server."""
    return server(lambda container: container["resources"]["limits"].update(values))


def requests(**values: str) -> Spoil:
    """Other requests of the server."""
    return server(lambda container: container["resources"]["requests"].update(values))


def expression(text: str) -> Spoil:
    """Another expression in the first alert."""
    return one(
        "PrometheusRule", lambda rule: rule["spec"]["groups"][0]["rules"][0].update(expr=text)
    )


def panel(text: str) -> Spoil:
    """Another query in the dashboard's first panel."""

    def apply(manifests: list[Manifest]) -> None:
        (config,) = (m for m in of_kind(manifests, "ConfigMap") if "ganserve.json" in m["data"])
        dashboard = json.loads(config["data"]["ganserve.json"])
        first = next(one for one in dashboard["panels"] if one["type"] != "row")
        first["targets"][0]["expr"] = text
        config["data"]["ganserve.json"] = json.dumps(dashboard)

    return apply


def _settings_of(manifests: list[Manifest]) -> Manifest:
    (config,) = (m for m in of_kind(manifests, "ConfigMap") if "GANSERVE_MODELS" in m["data"])
    return config
