"""The queries of autoscalers and alerts: Prometheus accepts them, and autoscalers get it right."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, Variant, of_kind, render
from tests.deploy.queries import adapter_names, check_query, queries

KEDA = Variant("base", ("monitoring", "autoscaling-keda"))


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool here: the queries of deploy/ are NOT checked by Prometheus")
    return found


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_alerts(promtool):
    run(promtool, "check", "rules", "--lint-fatal", str(DEPLOY / "monitoring/alerts.yaml"))


@pytest.mark.parametrize("name", adapter_names())
def test_the_adapter_asks_for_what_is_exported(name):
    assert list(check_query(adapter_names()[name])) == []


# Two replicas a and b: 40 and 24 images wait; their calls wait 0.3 and 0.1 s; c had no call.
SERIES = {
    'ganserve_pending_images{%s,pod="a"}': "40x20",
    'ganserve_pending_images{%s,pod="b"}': "24x20",
    'ganserve_queue_seconds_sum{%s,pod="a"}': "0+3x20",
    'ganserve_queue_seconds_count{%s,pod="a"}': "0+10x20",
    'ganserve_queue_seconds_sum{%s,pod="b"}': "0+4x20",
    'ganserve_queue_seconds_count{%s,pod="b"}': "0+40x20",
    'ganserve_queue_seconds_sum{%s,pod="c"}': "5x20",
    'ganserve_queue_seconds_count{%s,pod="c"}': "50x20",
    # The models of a are busy for half the time of two workers, those of b for a tenth.
    'ganserve_compute_seconds_sum{%s,pod="a",model="m"}': "0+9x20",
    'ganserve_compute_seconds_sum{%s,pod="a",model="n"}': "0+6x20",
    'ganserve_compute_seconds_sum{%s,pod="b",model="m"}': "0+3x20",
    'ganserve_model_workers{%s,pod="a",model="m"}': "2x20",
    'ganserve_model_workers{%s,pod="a",model="n"}': "2x20",
    'ganserve_model_workers{%s,pod="b",model="m"}': "2x20",
    # d waited and computed like a, until it was deleted 45 seconds before the queries.
    'ganserve_pending_images{%s,pod="d"}': "40x13 stale",
    'ganserve_queue_seconds_sum{%s,pod="d"}': "0+3x13 stale",
    'ganserve_queue_seconds_count{%s,pod="d"}': "0+10x13 stale",
    'ganserve_compute_seconds_sum{%s,pod="d",model="m"}': "0+9x13 stale",
    'ganserve_model_workers{%s,pod="d",model="m"}': "2x13 stale",
    'up{%s,pod="d"}': "1x13 stale",
    'up{%s,pod="a"}': "1x20",
    'up{%s,pod="b"}': "1x20",
    'up{%s,pod="c"}': "1x20",
    # Of another cluster's namespace: not ours.
    'ganserve_pending_images{job="ganserve",namespace="other",pod="a"}': "1000x20",
}


def expect(query: str, *samples: tuple[str, float]) -> dict[str, object]:
    found = [{"labels": labels, "value": value} for labels, value in samples]
    return {"expr": query, "eval_time": "4m", "exp_samples": found}


def rounded(query: str) -> str:
    return f"round({query}, 1e-6)"


def triggers() -> tuple[str, str, str]:
    """KEDA's queries: what waits, how long, how busy the workers are."""
    (scaler,) = of_kind(render(KEDA), "ScaledObject")
    pending, waiting, busy = (t["metadata"]["query"] for t in scaler["spec"]["triggers"])
    return pending, waiting, busy


def evaluate(
    promtool: str, folder: Path, series: Mapping[str, str], cases: Sequence[dict[str, object]]
) -> None:
    """Have Prometheus compare what the queries find in the series, `%s` being our labels."""
    ours = 'job="ganserve",namespace="ganserve"'
    values = [{"series": n.replace("%s", ours), "values": v} for n, v in series.items()]
    test = {"interval": "15s", "input_series": values, "promql_expr_test": cases}
    (folder / "test.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    run(promtool, "test", "rules", str(folder / "test.yaml"))


def test_both_autoscalers_see_the_same_queue(promtool, tmp_path: Path):
    pending, waiting, busy = triggers()
    shown = {name: query.text.replace("a|b", "a|b|c") for name, query in adapter_names().items()}
    cases = [
        expect(pending, ("{}", 64)),  # KEDA divides by the number of replicas
        expect(shown["ganserve_pending_images"], ('{pod="a"}', 40), ('{pod="b"}', 24)),
        expect(rounded(waiting), ("{}", 0.4)),
        expect(
            rounded(shown["ganserve_queue_seconds_mean"]),
            *[('{pod="a"}', 0.3), ('{pod="b"}', 0.1), ('{pod="c"}', 0)],
        ),
        expect(rounded(busy), ("{}", 0.6)),
        expect(rounded(shown["ganserve_busy_share"]), ('{pod="a"}', 0.5), ('{pod="b"}', 0.1)),
    ]
    evaluate(promtool, tmp_path, SERIES, cases)


# A replica that computed all the time, and then was too busy to be scraped for 45 seconds.
UNSCRAPED = {
    'ganserve_pending_images{%s,pod="a"}': "40x13 stale",
    'ganserve_queue_seconds_sum{%s,pod="a"}': "0+3x13 stale",
    'ganserve_queue_seconds_count{%s,pod="a"}': "0+10x13 stale",
    'ganserve_compute_seconds_sum{%s,pod="a",model="m"}': "0+30x13 stale",
    'ganserve_model_workers{%s,pod="a",model="m"}': "2x13 stale",
    'up{%s,pod="a"}': "1x13 0x6",
}


def test_both_autoscalers_count_a_replica_that_is_too_busy_to_be_scraped(promtool, tmp_path: Path):
    cases = [expect(f"({query}) > bool 0", ("{}", 1)) for query in triggers()]
    shown = adapter_names().values()
    cases += [expect(f"({query.text}) > bool 0", ('{pod="a"}', 1)) for query in shown]
    evaluate(promtool, tmp_path, UNSCRAPED, cases)


def test_the_queries_of_alerts_and_triggers_are_found():
    found = [query.where for query in queries(render(KEDA))]
    assert any(where.startswith("alert: ") for where in found)
    assert "ScaledObject/ganserve: queue-seconds" in found
