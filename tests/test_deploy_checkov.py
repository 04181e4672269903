"""The manifests of deploy/ pass checkov; what is waived has its reason in the manifest."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import COMPONENTS, OVERLAYS, TRAINING, Variant, of_kind, render

ROOT = Path(__file__).resolve().parents[1]
# It wants other versions of our dependencies, so it has an environment of its own.
CHECKOV = ROOT / ".venv/checkov/bin/checkov"
# The last one has all components at once.
LOOKED_AT = [*OVERLAYS, COMPONENTS[-1], *TRAINING]
WAIVED = {"CKV_K8S_15", "CKV_K8S_43"}


@pytest.fixture(scope="module")
def checkov() -> str:
    found = str(CHECKOV) if CHECKOV.exists() else shutil.which("checkov")
    if found is None:
        pytest.skip("no checkov here, `make check-deploy` installs it: NOT checked for security")
    return found


@pytest.fixture(scope="module")
def results(checkov, tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """All in one run, for starting takes longest; one manifest is spoilt, and must be seen."""
    folder = tmp_path_factory.mktemp("rendered")
    for variant in LOOKED_AT:
        write(folder / f"{str(variant).replace('/', '-')}.yaml", render(variant))
    spoilt = of_kind(render(Variant("overlays/cpu")), "Deployment")[0]
    spoilt["spec"]["template"]["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    write(folder / "spoilt.yaml", [spoilt])
    command = [checkov, "--directory", str(folder), "--framework", "kubernetes"]
    command += ["--skip-download", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = json.loads(done.stdout)
    assert found["summary"]["parsing_errors"] == 0, done.stderr
    return found["results"]


def write(path: Path, manifests: list[dict[str, Any]]) -> None:
    path.write_text(yaml.safe_dump_all(manifests))


def test_no_manifest_fails(results):
    failed = [
        (check["file_path"], check["resource"], check["check_id"], check["check_name"])
        for check in results["failed_checks"]
        if not check["file_path"].endswith("spoilt.yaml")
    ]
    assert failed == []


def test_every_variant_was_looked_at(results):
    seen = {Path(check["file_path"]).stem for check in results["passed_checks"]}
    assert {str(variant).replace("/", "-") for variant in LOOKED_AT} <= seen


def test_a_privileged_container_is_seen(results):
    failed = {
        check["check_id"]
        for check in results["failed_checks"]
        if check["file_path"].endswith("spoilt.yaml")
    }
    assert "CKV_K8S_16" in failed  # privileged


def test_waivers_are_few_and_give_their_reasons(results):
    waived = results["skipped_checks"]
    assert {check["check_id"] for check in waived} == WAIVED
    assert all(len(check["check_result"]["suppress_comment"]) > 20 for check in waived)
