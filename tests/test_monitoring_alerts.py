"""Each alert fires when it should and else stays silent, as promtool evaluates them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import DEPLOY
from tests.test_docs import anchors

ALERTS = DEPLOY / "monitoring/alerts.yaml"
RUNBOOKS = DEPLOY.parent / "docs/runbooks.md"

POD = 'job="ganserve",namespace="faces",pod="a",instance="a:9090"'
PEER = 'job="ganserve",namespace="faces",pod="b",instance="b:9090"'
SERVICE = f'{POD},grpc_service="ganserve.v1.ImageGenerationService",grpc_method="GenerateImages"'
HANDLED = f"grpc_server_handled_total{{{SERVICE},grpc_code=%r}}".replace("%r", '"%s"')
OK, OVERLOADED = HANDLED % "OK", HANDLED % "RESOURCE_EXHAUSTED"
INVALID = HANDLED % "INVALID_ARGUMENT"
HEALTH = f'grpc_server_handled_total{{{POD},grpc_service="grpc.health.v1.Health",grpc_code="%s"}}'
REJECTED = f'ganserve_rejected_requests_total{{{POD},reason="%s"}}'
BUCKET = f'grpc_server_handling_seconds_bucket{{{SERVICE},le="%s"}}'
PENDING, QUEUE_SIZE = f"ganserve_pending_images{{{POD}}}", f"ganserve_queue_size_images{{{POD}}}"
LOADS = f'ganserve_model_loads_total{{{POD},model="%s",outcome="%s"}}'
LOADED, OTHER = LOADS % ("m", "success"), LOADS % ("n", "success")
FAILED = f'ganserve_model_failed_versions{{{POD},model="m"}}'
READY = f'ganserve_model_ready{{{POD},model="m"}}'
INFO = 'ganserve_model_info{%s,model="m",version="1",digest="%s",provider="%s"}'
WANTED = f'ganserve_wanted_provider_info{{{POD},device="%s",provider="%s"}}'
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
KUBE = 'kube_deployment_%s{job="kube-state-metrics",namespace="faces",deployment="ganserve"}'
MEMORY = f"process_resident_memory_bytes{{{POD}}}"
BEGAN = f"process_start_time_seconds{{{POD}}}"
EXPIRY = f'ganserve_certificate_expiry_timestamp_seconds{{{POD},certificate="server"}}'
REFUSED = f'ganserve_credential_files_refused{{{POD},credential="tokens"}}'


FIRES, SILENT = True, False
LATE = {BUCKET % "2.5": "0+100x20", BUCKET % "+Inf": "0+100x20"}
READY_PODS, WANTED_PODS = KUBE % "status_replicas_ready", KUBE % "spec_replicas"
ALL_PODS, NEW_PODS = KUBE % "status_replicas", KUBE % "status_replicas_updated"
STEADY = {ALL_PODS: "2x20", NEW_PODS: "2x20"}
UPDATE = {  # of ten pods, one after another
    ALL_PODS: "10x60",
    WANTED_PODS: "10x60",
    NEW_PODS: "0x1 " + " ".join(f"{pods}x3" for pods in range(1, 10)) + " 10x23",
}
CONDITION = KUBE.replace("}", ',condition="%s",status="%s"}') % ("status_condition", "%s", "%s")
PROGRESSING = CONDITION % ("Progressing", "%s")
NOT_AVAILABLE = CONDITION % ("Available", "false")
QUEUE = {QUEUE_SIZE: "2048x10", INFO % (POD, "d", CPU): "1x10"}
THREE_QUEUES = QUEUE | {(INFO % (POD, d, CPU)).replace('"m"', f'"{d}"'): "1x10" for d in "ef"}
SETTLED = {BEGAN: "0x100"}  # since midnight of the first day
LEAK = SETTLED | {MEMORY: "100+1x100"}

ALWAYS = {REJECTED % "rate_limited": "0x1000"}  # counted from 0 on by every server
# How far apart the values of a series are, where it is not a minute.
BURNS = ("GanserveErrorBudgetBurnsFast", "GanserveErrorBudgetBurnsSlowly")
STEPS = dict.fromkeys(BURNS, "2m") | {"GanserveMemoryGrows": "10m"}
# Each alert: does it fire, in which case, when, given these series with a value each step.
CASES: dict[str, list[tuple[bool, str, str, dict[str, str]]]] = {
    "GanserveErrorBudgetBurnsFast": [
        (FIRES, "20 times the budget", "70m", {OK: "0+98x35", OVERLOADED: "0+2x35"}),
        (FIRES, "7.5 times, for hours", "370m", {OK: "0+3970x185", OVERLOADED: "0+30x185"}),
        (
            *(SILENT, "7.5 times, for an hour", "360m"),
            {OK: "0+4000x150 600000+3970x40", OVERLOADED: "0x150 0+30x40"},
        ),
        (
            *(SILENT, "mended minutes ago", "362m"),
            {OK: "0+100x150 15000+98x25 17450+100x10", OVERLOADED: "0x150 0+2x25 50x10"},
        ),
        (
            *(FIRES, "not mended", "362m"),
            {OK: "0+100x150 15000+98x36", OVERLOADED: "0x150 0+2x36"},
        ),
        (SILENT, "mended", "110m", {OK: "0+98x55", OVERLOADED: "0+2x35 70x25"}),
        (SILENT, "half the budget", "70m", {OK: "0+9995x35", OVERLOADED: "0+5x35"}),
        (SILENT, "callers' mistakes", "70m", {OK: "0+50x35", INVALID: "0+50x35"}),
        (SILENT, "health", "70m", {OK: "0+9x35", HEALTH % "UNAVAILABLE": "0+9x35"}),
        (
            *(SILENT, "a client's own limit", "70m"),
            {OK: "0+50x35", OVERLOADED: "0+50x35", REJECTED % "rate_limited": "0+50x35"},
        ),
        (SILENT, "nobody calls", "70m", {OK: "5x35", OVERLOADED: "5x35"}),
    ],
    "GanserveErrorBudgetBurnsSlowly": [
        (FIRES, "4 times the budget", "160m", {OK: "0+996x80", OVERLOADED: "0+4x80"}),
        (FIRES, "twice", "400m", {OK: "0+998x200", OVERLOADED: "0+2x200"}),
        (SILENT, "half", "400m", {OK: "0+1999x200", OVERLOADED: "0+1x200"}),
        (SILENT, "mended", "800m", {OK: "0+996x400", OVERLOADED: "0+4x190 760x210"}),
    ],
    "GanserveLatencyAboveObjective": [
        (FIRES, "5 of 100 late", "20m", LATE | {BUCKET % "1.0": "0+95x20"}),
        (SILENT, "none late", "20m", LATE | {BUCKET % "1.0": "0+100x20"}),
        (SILENT, "for minutes", "10m", LATE | {BUCKET % "1.0": "0+95x20"}),
    ],
    "GanserveQueueSaturated": [
        (FIRES, "95 % of one", "10m", QUEUE | {PENDING: "1946x10"}),
        (FIRES, "95 % of three", "10m", THREE_QUEUES | {PENDING: "5837x10"}),
        (SILENT, "half", "10m", QUEUE | {PENDING: "999x10"}),
        (SILENT, "30 % of three", "10m", THREE_QUEUES | {PENDING: "1843x10"}),
        (SILENT, "for a moment", "8m", QUEUE | {PENDING: "0x3 2048x2 0x5"}),
    ],
    "GanserveRequestsRejected": [
        (FIRES, "a tenth", "20m", {OK: "0+100x20", REJECTED % "queue_full": "0+10x20"}),
        (SILENT, "1 of 1000", "20m", {OK: "0+1000x20", REJECTED % "queue_full": "0+1x20"}),
        (SILENT, "callers", "20m", {OK: "0+9x20", REJECTED % "invalid_argument": "0+9x20"}),
    ],
    "GanserveModelLoadFailed": [
        (FIRES, "for as long as it is there", "600m", {FAILED: "0x5 1x600"}),
        (FIRES, "on one of two", "20m", {FAILED: "0x20", FAILED.replace(POD, PEER): "1x20"}),
        (SILENT, "withdrawn", "20m", {FAILED: "1x10 0x10"}),
        (SILENT, "the model is gone", "40m", {FAILED: "1x10 stale"}),
    ],
    "GanserveModelNotServed": [
        (FIRES, "no version", "15m", {READY: "1x2 0x15"}),
        (SILENT, "starting", "15m", {READY: "0x2 1x15"}),
    ],
    "GanserveWrongProvider": [
        (FIRES, "fell back", "3m", {INFO % (POD, "d", CPU): "1x3", WANTED % ("auto", CUDA): "1x3"}),
        (SILENT, "GPU", "3m", {INFO % (POD, "d", CUDA): "1x3", WANTED % ("cuda", CUDA): "1x3"}),
        (SILENT, "no GPU", "3m", {INFO % (POD, "d", CPU): "1x3", WANTED % ("auto", CPU): "1x3"}),
    ],
    "GanserveReplicasDisagree": [
        (FIRES, "files", "40m", {INFO % (p, f, CPU): "1x40" for p, f in ((POD, "d"), (PEER, "e"))}),
        (
            FIRES,
            "providers",
            "40m",
            {INFO % (POD, "d", CPU): "1x40", INFO % (PEER, "d", CUDA): "1x40"},
        ),
        (SILENT, "alike", "40m", {INFO % (pod, "d", CPU): "1x40" for pod in (POD, PEER)}),
        (
            SILENT,
            "update",
            "20m",
            {INFO % (p, f, CPU): "1x40" for p, f in ((POD, "d"), (PEER, "e"))},
        ),
    ],
    "GanserveDown": [
        (FIRES, "none answers", "10m", {f"up{{{POD}}}": "1x2 0x10"}),
        (FIRES, "none is known", "15m", {f"up{{{POD}}}": "1x2 stale"}),
        (SILENT, "one answers", "10m", {f"up{{{POD}}}": "0x10", f"up{{{PEER}}}": "1x10"}),
    ],
    "GanserveNoReplicaReady": [
        (
            *(FIRES, "an empty repository", "5m"),
            {READY_PODS: "2x2 0x10", WANTED_PODS: "2x12", f"up{{{POD}}}": "1x12"},
        ),
        (SILENT, "for a moment", "5m", {READY_PODS: "2x2 0x1 2x9", WANTED_PODS: "2x12"}),
        (SILENT, "one is", "10m", {READY_PODS: "1x10", WANTED_PODS: "2x10"}),
        (SILENT, "none is wanted", "10m", {READY_PODS: "0x10", WANTED_PODS: "0x10"}),
    ],
    "GanservePodsNotReady": [
        (FIRES, "one short", "20m", STEADY | {READY_PODS: "1x20", WANTED_PODS: "2x20"}),
        (FIRES, "a new one is not ready", "60m", UPDATE | {READY_PODS: "9x60"}),
        (
            *(FIRES, "one that a quota forbids", "20m"),
            {ALL_PODS: "1x20", NEW_PODS: "1x20", READY_PODS: "1x20", WANTED_PODS: "2x20"},
        ),
        (SILENT, "all", "20m", STEADY | {READY_PODS: "2x20", WANTED_PODS: "2x20"}),
        (SILENT, "for minutes", "20m", STEADY | {READY_PODS: "2x5 1x5 2x10", WANTED_PODS: "2x20"}),
        # Of GPUs: each new one takes the place of an old one, and minutes to load.
        *(
            (SILENT, f"an update, after {at}", at, UPDATE | {READY_PODS: "10x2 9x43 10x15"})
            for at in ("20m", "40m", "60m")
        ),
    ],
    "GanserveRolloutStuck": [
        (FIRES, "no progress", "10m", {PROGRESSING % "false": "0x5 1x5"}),
        (
            *(SILENT, "an update, and its end", "60m"),
            UPDATE | {PROGRESSING % "true": "1x60", PROGRESSING % "false": "0x60"},
        ),
        (SILENT, "rolled back", "10m", {PROGRESSING % "false": "1x5 0x5"}),
        (SILENT, "another condition", "10m", {NOT_AVAILABLE: "1x10"}),
    ],
    "GanserveRestarts": [
        (FIRES, "a loop", "30m", {BEGAN: "0x4 300x4 stale 900x6 1500x6 2100x10"}),
        (SILENT, "twice", "30m", {BEGAN: "0x10 600x10 1200x10"}),
        (SILENT, "days apart", "300m", {BEGAN: "0x80 4800x80 9600x80 14400x80"}),
        # Each pod has a name of its own, and the series of those that are gone end.
        (
            *(SILENT, "an update", "50m"),
            {
                BEGAN.replace(POD, POD.replace('"a', f'"{name}')): values
                for name, values in (
                    *(("a", "0x10 stale"), ("b", "_x10 600x10 stale")),
                    *(("c", "_x20 1200x10 stale"), ("d", "_x30 1800x20")),
                )
            },
        ),
    ],
    "GanserveMemoryGrows": [
        (FIRES, "leak", "1000m", LEAK),
        (FIRES, "models loaded at the start", "1000m", LEAK | {LOADED: "1x100", OTHER: "2x100"}),
        (FIRES, "a model loaded long before", "1000m", LEAK | {LOADED: "_x30 1x70"}),
        (FIRES, "a model taken away", "1000m", LEAK | {LOADED: "1x100", OTHER: "1x70 stale"}),
        (SILENT, "steady", "1000m", SETTLED | {MEMORY: "100x100"}),
        (SILENT, "up and down", "1000m", SETTLED | {MEMORY: " ".join(["100 180 130"] * 34)}),
        (SILENT, "young process", "1000m", {MEMORY: "100+1x100", BEGAN: "36000x100"}),
        (SILENT, "a new version", "1000m", LEAK | {LOADED: "1x70 2x30"}),
        (SILENT, "one more model", "1000m", LEAK | {LOADED: "1x100", OTHER: "_x70 1x30"}),
        (SILENT, "another model", "1000m", LEAK | {LOADED: "1x69 stale", OTHER: "_x70 1x30"}),
        (SILENT, "a version that fails", "1000m", LEAK | {LOADS % ("m", "failure"): "_x70 1x30"}),
    ],
    "GanserveCertificateExpires": [
        (FIRES, "six days left", "20m", {EXPIRY: f"{6 * 86400}x20"}),
        (SILENT, "eight days left", "20m", {EXPIRY: f"{8 * 86400}x20"}),
        (SILENT, "renewed", "20m", {EXPIRY: f"0x5 {90 * 86400}x15"}),
    ],
    "GanserveCredentialsRefused": [
        (FIRES, "for as long as it is there", "600m", {REFUSED: "0x5 1x600"}),
        (SILENT, "a look in between", "20m", {REFUSED: "0x5 1x2 0x20"}),
        (SILENT, "mended", "20m", {REFUSED: "1x10 0x20"}),
        (SILENT, "none", "20m", {REFUSED: "0x20"}),
    ],
}


def alerts() -> dict[str, dict[str, object]]:
    """The rules that are alerts, by name."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_every_alert_is_shown_to_fire_and_to_stay_silent():
    shown = {alert: {case[0] for case in cases} for alert, cases in CASES.items()}
    assert shown == {alert: {FIRES, SILENT} for alert in alerts()}


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here: the alerts of deploy/ are NOT tested")
    step = STEPS.get(alert, "1m")
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    tests = [
        {
            "name": f"{alert}: {name}",
            "interval": step,
            "input_series": [
                {"series": s, "values": values} for s, values in (ALWAYS | series).items()
            ],
            "promql_expr_test": [
                {
                    "expr": firing,
                    "eval_time": at,
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for fires, name, at, series in CASES[alert]
    ]
    file = tmp_path / "alerts_test.yaml"
    rules = {"rule_files": [str(ALERTS)], "evaluation_interval": step}
    file.write_text(yaml.safe_dump(rules | {"tests": tests}))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_says_how_bad_it_is_and_leads_to_its_runbook(alert: str):
    rule = yaml.safe_load(yaml.safe_dump(alerts()[alert]))
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/runbooks.md"
    assert anchor == alert.lower()
    assert anchor in anchors(RUNBOOKS)
    (severe,) = re.findall(r"(?s)\*\*Severity\.\*\*.*?\n\n", RUNBOOKS.read_text())
    assert (f"(#{anchor})" in severe) == (rule["labels"]["severity"] == "critical")
