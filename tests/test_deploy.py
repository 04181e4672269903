"""The manifests of deploy/: they render, fit Kubernetes' published schemas, and fit the code.

That they are right is checked by sentences: each check of tests/deploy yields one for whatever is
wrong. tests/test_deploy_controls.py shows that each check sees what it is for.
"""

import os
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from gantrain.cli import run as run_gantrain
from tests.conftest import load_script
from tests.deploy import network_checks, queries, workload_checks
from tests.deploy.manifests import (
    DEPLOY,
    EVERY,
    SERVING,
    TRAINING,
    VOLUMES,
    Variant,
    kustomize,
    name_of,
    of_kind,
    quantity,
    render,
    servers,
    workloads,
)
from tests.markdown_blocks import extract_blocks

# The oldest Kubernetes that has the preStop action `sleep` by default, and the newest published.
OLDEST, NEWEST = "1.30", "1.37"
# Custom resources are published by their projects, so of these only the version is checked.
CUSTOM = {
    "Certificate": "cert-manager.io/v1",
    "GRPCRoute": "gateway.networking.k8s.io/v1",
    "JobSet": "jobset.x-k8s.io/v1alpha2",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
}
CHECKS = [*workload_checks.CHECKS, *network_checks.CHECKS, *queries.CHECKS]
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_manifests_agree_with_the_code_and_with_each_other(variant: Variant):
    manifests = render(variant)
    assert list(workloads(manifests))
    assert [complaint for check in CHECKS for complaint in check(manifests)] == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("variant", [*EVERY, VOLUMES], ids=str)
def test_manifests_fit_the_published_schemas(variant: Variant, version: str):
    for manifest in render(variant):
        if manifest["kind"] in CUSTOM:
            assert manifest["apiVersion"] == CUSTOM[manifest["kind"]]
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
        for job in manifest["spec"]["replicatedJobs"] if manifest["kind"] == "JobSet" else ():
            whole = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
            kubernetes_validate.validate(whole, version, strict=True)


def test_the_newest_schemas_are_used():
    assert kubernetes_validate.latest_version().startswith(f"{NEWEST}.")


def test_every_component_and_overlay_is_looked_at():
    parts = {part for variant in [*EVERY, VOLUMES] for part in (variant.path, *variant.components)}
    folders = {
        str(file.parent.relative_to(DEPLOY)).removeprefix("components/")
        for file in DEPLOY.rglob("kustomization.yaml")
    }
    included = {"models-volume", "training/base", "autoscaling-hpa"}  # by those that are rendered
    assert folders - parts == included
    assert of_kind(render(Variant("overlays/cpu")), "HorizontalPodAutoscaler")


@pytest.mark.parametrize("variant", TRAINING, ids=str)
def test_deleting_a_training_leaves_its_volumes(variant: Variant):
    kinds = {manifest["kind"] for manifest in render(variant)}
    assert kinds <= {"Job", "JobSet", "NetworkPolicy", "ServiceAccount"}
    volumes = render(VOLUMES)
    assert {manifest["kind"] for manifest in volumes} == {"PersistentVolumeClaim"}
    namespaces = {m["metadata"]["namespace"] for m in [*volumes, *render(variant)]}
    assert len(namespaces) == 1


def test_both_trainings_may_be_in_one_cluster():
    first, second = ({name_of(one): one for one in render(variant)} for variant in TRAINING)
    shared = first.keys() & second.keys()
    assert shared == {"NetworkPolicy/gantrain", "ServiceAccount/gantrain"}
    for name in shared:  # else the one that is applied last changes the other's
        assert first[name] == second[name]


@pytest.mark.parametrize("variant", SERVING, ids=str)
def test_runbooks_read_the_log_of_all_replicas(variant: Variant):
    text = (ROOT / "docs/runbooks.md").read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if re.match("kubectl .* logs ", line)]
    assert commands
    for command in commands:  # of a Deployment it would be one pod's, and by a label ten lines'
        selector = re.search(r" -l (\S+)=(\S+) ", command)
        assert selector is not None, command
        assert " --tail=-1 " in command
        for server in servers(render(variant)):
            assert server.labels[selector[1]] == selector[2]


def yaml_of(page: str, kind: str) -> str:
    """The first example of a page that is of a kind."""
    blocks = extract_blocks((ROOT / page).read_text())
    return next(b.code for b in blocks if b.language == "yaml" and f"kind: {kind}\n" in b.code)


def test_the_example_of_an_overlay_renders_and_lacks_no_policy(tmp_path: Path):
    example = yaml_of("deploy/README.md", "Kustomization")
    deploy = os.path.relpath(DEPLOY, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(example.replace("../deploy", deploy))
    manifests = list(yaml.safe_load_all(kustomize(tmp_path)))
    kinds = {manifest["kind"] for manifest in manifests}
    assert "GRPCRoute" in kinds
    # Without a policy, which names an authority of the cluster's, a Gateway speaks in the clear.
    assert "Certificate" not in kinds
    settings = [config["data"] for config in of_kind(manifests, "ConfigMap")]
    assert any(data.get("GANSERVE_QUEUE_SIZE") == "4096" for data in settings)


def test_the_example_of_tokens_mounts_them_where_the_server_looks(tmp_path: Path):
    blocks = extract_blocks((ROOT / "docs/kubernetes.md").read_text())
    (example,) = (b.code for b in blocks if "secretGenerator:" in b.code)
    overlay = {"kind": "Kustomization", "namespace": "ganserve"}
    overlay["resources"] = [os.path.relpath(DEPLOY / "overlays/cpu", tmp_path.resolve())]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay) + example)
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    manifests = list(yaml.safe_load_all(kustomize(tmp_path)))
    (secret,) = of_kind(manifests, "Secret")
    (server,) = servers(manifests)
    path = workload_checks.read_settings(manifests, server).token_file
    assert path is not None
    mounts = {mount["mountPath"]: mount["name"] for mount in server.server["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in server.spec["volumes"]}
    volume = volumes[mounts[str(path.parent)]]["secret"]
    assert volume["secretName"] == secret["metadata"]["name"]
    assert path.name in secret["data"]
    assert volume["defaultMode"] == 0o440  # for the group that is the server's


def test_the_example_of_a_policy_names_the_service_and_a_name_of_its_certificate():
    policy = yaml.safe_load(yaml_of("docs/kubernetes.md", "BackendTLSPolicy"))["spec"]
    manifests = render(Variant("base", ("tls", "gateway")))
    (route,) = of_kind(manifests, "GRPCRoute")
    (certificate,) = of_kind(manifests, "Certificate")
    called = {backend["name"] for rule in route["spec"]["rules"] for backend in rule["backendRefs"]}
    assert {target["name"] for target in policy["targetRefs"]} == called
    assert policy["validation"]["hostname"] in certificate["spec"]["dnsNames"]


def test_both_autoscalers_follow_one_rule():
    (hpa,) = of_kind(render(Variant("overlays/cpu")), "HorizontalPodAutoscaler")
    (keda,) = of_kind(render(Variant("base", ("autoscaling-keda",))), "ScaledObject")
    hpa, keda = hpa["spec"], keda["spec"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    assert keda["minReplicaCount"] == hpa["minReplicas"]
    assert keda["maxReplicaCount"] == hpa["maxReplicas"]
    targets = [metric["pods"]["target"] for metric in hpa["metrics"]]
    assert [target["type"] for target in targets] == [t["metricType"] for t in keda["triggers"]]
    thresholds = [trigger["metadata"]["threshold"] for trigger in keda["triggers"]]
    averages = [target["averageValue"] for target in targets]
    assert [*map(quantity, averages)] == [*map(quantity, thresholds)]


@pytest.mark.parametrize("variant", SERVING, ids=str)
def test_a_changed_setting_is_a_rolling_update(variant: Variant):
    manifests = render(variant)
    (config,) = (c for c in of_kind(manifests, "ConfigMap") if "GANSERVE_MODELS" in c["data"])
    assert re.fullmatch(r"ganserve-[a-z0-9]{10}", config["metadata"]["name"])


@pytest.mark.parametrize("variant", TRAINING, ids=str)
def test_the_commands_of_training_are_commands(variant: Variant, tmp_path: Path, capsys):
    commands = [c for one in workloads(render(variant)) for c in one.containers]
    seen = set()
    for container in commands:
        arguments = [str(argument) for argument in container["args"]]
        if container.get("command") == ["torchrun"]:
            arguments = arguments[arguments.index("gantrain") + 1 :]
        # Elsewhere than in the cluster: another folder, and no GPU perhaps.
        arguments = [a.replace("/runs", str(tmp_path)) for a in arguments]
        arguments = ["--device=cpu" if a == "--device=cuda" else a for a in arguments]
        seen.add(arguments[0])
        if arguments[0] == "train":
            assert run_gantrain([*arguments, "--dry-run"]) == 0
        else:  # understood, but there is no such run
            assert run_gantrain(arguments) == 1
            assert str(tmp_path) in capsys.readouterr().err
    assert seen == {"train", "export"}


def test_training_images_have_the_version_of_the_project():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for variant in TRAINING:
        images = {c["image"] for one in workloads(render(variant)) for c in one.containers}
        assert images == {f"gantrain:{version[1]}"}


def test_the_prometheus_rule_is_made_from_the_alerts():
    path = DEPLOY / "monitoring/generate_prometheus_rule.py"
    generator = load_script(path)
    alerts = generator.ALERTS.read_text()
    assert generator.RULE.read_text() == generator.render_rule(alerts), f"run {path.name}"
    rule = yaml.safe_load(generator.RULE.read_text())
    assert rule["spec"] == yaml.safe_load(alerts)
