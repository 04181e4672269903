"""What is asked of Prometheus has answers: a real server under load, scraped by a real Prometheus.

Windows are shortened, for nobody waits three days; nothing else of an expression is.
"""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import grpc
import pytest
import yaml

from ganserve.client.channel_security import ChannelSecurity, open_async_channel
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.deploy.manifests import DEPLOY
from tests.deploy.queries import Query, adapter_names, exported
from tests.ganserve.certificates import Authority
from tests.ganserve.conftest import code_of, free_port
from tests.ganserve.tiny import publish, write_artifact

ROOT = DEPLOY.parent
ALERTS = DEPLOY / "monitoring/alerts.yaml"
DASHBOARD = DEPLOY / "components/monitoring/dashboard.json"
SCALED_OBJECT = DEPLOY / "components/autoscaling-keda/scaled-object.yaml"
TARGET = {"job": "ganserve", "namespace": "ganserve", "pod": "a"}
# What no server exports; tests/test_monitoring_alerts.py has the alerts about it.
FROM_KUBERNETES = {
    f"alert: Ganserve{name}" for name in ("NoReplicaReady", "PodsNotReady", "RolloutStuck")
}
WINDOW = "10s"
PATIENCE = 60  # seconds; an idle machine needs about ten


@dataclass(frozen=True)
class Live:
    """A Prometheus with data of a server under load."""

    url: str
    models: Path  # the server's repository

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of Prometheus' API."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


def shorten(text: str) -> str:
    """The same rules, of moments in place of minutes and days."""
    text = re.sub(r"\[\d+[smhd]\]", f"[{WINDOW}]", text)
    text = re.sub(r"offset \d+[smhd]", f"offset {WINDOW}", text)
    return re.sub(r"\bfor: \d+[smhd]", "for: 1s", text)


def without_comparison(expression: str) -> str:
    """An expression that has data if all parts of an alert's have, whether it fires or not.

    Comparisons say 0 or 1 in place of filtering; what joins or takes away demands both sides.
    """
    pieces = re.split(r"(\{[^}]*\})", expression)  # matchers stay as they are
    for index in range(0, len(pieces), 2):
        piece = re.sub(r"(==|!=|>=|<=|>|<)", r"\1 bool", pieces[index])
        piece = re.sub(r"\b(or|unless)\b", "and", piece)
        pieces[index] = piece.replace("absent(", "sum by (namespace) (")
    return "".join(pieces)


def test_the_data_of_an_alert_are_those_of_all_its_parts():
    assert without_comparison('a{b!="<"} > 1 or absent(c)') == (
        'a{b!="<"} > bool 1 and sum by (namespace) (c)'
    )
    assert without_comparison("a < on () b unless c") == "a < bool on () b and c"


def rules() -> list[Query]:
    """Every recorded rule and every alert, without comparisons."""
    groups = yaml.safe_load(shorten(ALERTS.read_text()))["groups"]
    return [
        Query(f"{kind}: {rule[kind]}", without_comparison(rule["expr"]))
        for group in groups
        for rule in group["rules"]
        for kind in ("alert", "record")
        if kind in rule
    ]


def panels() -> list[Query]:
    """Every query of the dashboard, with everything chosen."""
    text = DASHBOARD.read_text().replace("$__rate_interval", WINDOW)
    text = re.sub(r"\$(namespace|pod|model)", ".*", text)
    return [
        Query(f"panel: {panel['title']}", without_comparison(target["expr"]))
        for panel in json.loads(text)["panels"]
        for target in panel.get("targets", ())
    ]


def autoscalers() -> list[Query]:
    """What KEDA asks, and what the Prometheus adapter does for the HorizontalPodAutoscaler."""
    triggers = yaml.safe_load(SCALED_OBJECT.read_text())["spec"]["triggers"]
    keda = [Query(f"trigger: {one['name']}", one["metadata"]["query"]) for one in triggers]
    return [Query(q.where, shorten(q.text)) for q in (*keda, *adapter_names().values())]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server under load of every kind, and a Prometheus that scrapes it each second."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here: queries of alerts and panels are NOT tried on live data")
    folder = tmp_path_factory.mktemp("monitoring")
    with (
        running_server(folder) as (address, metrics_port, authority),
        running_prometheus(folder, metrics_port) as found,
        load(address, authority.ca, folder / "models"),
    ):
        yield found


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until a page is there."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        assert process.poll() is None, f"{process.args} ended"
        with contextlib.suppress(URLError, ConnectionError), urlopen(url, timeout=5):
            return
        time.sleep(0.05)
    pytest.fail(f"{url} is not there")


@contextlib.contextmanager
def stopped_at_the_end(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[tuple[str, int, Authority]]:
    """Its certificate ends tomorrow, its queue is short, its batches are padded."""
    authority = Authority(folder / "tls")
    certificate, key = authority.issue(days=1)
    write_artifact(folder / "models", network="convolutional")
    port, metrics_port = free_port(), free_port()
    settings = {"host": "127.0.0.1", "port": port, "metrics-port": metrics_port}
    settings |= {"models": folder / "models", "device": "cpu", "threads": 1, "instances": 1}
    settings |= {"queue-size": 64, "max-images-per-request": 64, "batch-sizes": "1,4,16"}
    settings |= {"tls-certificate": certificate, "tls-key": key, "poll-seconds": 0.5}
    settings |= {"drain-seconds": 0, "log-level": "error"}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    with stopped_at_the_end(sys.executable, "-m", "ganserve", "serve", *flags) as process:
        wait_for(f"http://127.0.0.1:{metrics_port}/readyz", process)
        yield f"127.0.0.1:{port}", metrics_port, authority


@contextlib.contextmanager
def running_prometheus(folder: Path, metrics_port: int) -> Iterator[Live]:
    """With the rules of deploy/, shortened."""
    (folder / "alerts.yaml").write_text(shorten(ALERTS.read_text()))
    targets = {"targets": [f"127.0.0.1:{metrics_port}"], "labels": TARGET}
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "ganserve", "static_configs": [targets]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with stopped_at_the_end(
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ) as process:
        wait_for(f"http://{address}/-/ready", process)
        yield Live(f"http://{address}", folder / "models")


@contextlib.contextmanager
def load(address: str, ca: Path, models: Path) -> Iterator[None]:
    """Calls of every fate until the end of the block, and a version that cannot be loaded."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(keep_calling(address, ca, stop))
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        publish(models, "tiny", 2, b"no model")
        Authority(models.parent / "tls").issue(days=1)  # of another authority, and taken over
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures


async def keep_calling(address: str, ca: Path, stop: threading.Event) -> None:
    """Rounds of calls: answered, streamed, invalid, to no model, too many, given up."""
    security = ChannelSecurity(tls_ca=ca)
    async with open_async_channel(address, security, []) as channel:
        stub = ImageGenerationServiceStub(channel)
        as_png = pb.GenerateImagesRequest(seed_range=pb.SeedRange(start=0, count=3))
        while not stop.is_set():
            crowd = [request(count=64) for _ in range(8)]
            await code_of(stub.GenerateImages(as_png, timeout=20))
            await asyncio.gather(
                drain(stub.StreamImages(request(count=20), timeout=20)),
                code_of(stub.GenerateImages(pb.GenerateImagesRequest(), timeout=20)),
                code_of(stub.GenerateImages(request(model="other"), timeout=20)),
                *(code_of(stub.GenerateImages(one, timeout=20)) for one in crowd),
                *(code_of(stub.GenerateImages(request(), timeout=0.002)) for _ in range(4)),
            )


def request(model: str = "", count: int = 1) -> pb.GenerateImagesRequest:
    return pb.GenerateImagesRequest(
        model_name=model, seed_range=pb.SeedRange(start=1, count=count), format=pb.IMAGE_FORMAT_RAW
    )


async def drain(stream: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in stream:
            pass


def test_every_query_has_data(live: Live):
    queries = [*rules(), *panels(), *autoscalers()]
    missing = [query for query in queries if query.where not in FROM_KUBERNETES]
    assert {q.where for q in queries} >= FROM_KUBERNETES
    give_up = time.monotonic() + PATIENCE
    while missing and time.monotonic() < give_up:
        missing = [query for query in missing if not live.query(query.text)]
        time.sleep(0.2)
    assert missing == []


def test_a_query_for_what_nobody_exports_would_be_seen(live: Live):
    assert (
        live.query(without_comparison("ganserve_pictures_total > 0 or ganserve_images_total")) == []
    )


def test_every_metric_is_there(live: Live):
    names = set(exported())
    give_up = time.monotonic() + PATIENCE
    while (missing := names - set(live.get("label/__name__/values"))) and (
        time.monotonic() < give_up
    ):
        time.sleep(0.2)
    assert missing == set()


def test_alerts_fire_and_say_so_in_words(live: Live):
    publish(live.models, "tiny", 3, b"no model either")
    expected = {"GanserveModelLoadFailed", "GanserveCertificateExpires"}
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        firing = {
            alert["labels"]["alertname"]: alert
            for alert in live.get("alerts")["alerts"]
            if alert["state"] == "firing"
        }
        if firing.keys() >= expected:
            break
        time.sleep(0.2)
    assert firing.keys() >= expected
    assert not firing.keys() & {"GanserveDown", "GanserveWrongProvider", "GanserveModelNotServed"}
    for alert in firing.values():
        assert "<no value>" not in "".join(alert["annotations"].values())
    assert "of tiny in ganserve" in firing["GanserveModelLoadFailed"]["annotations"]["description"]


def test_prometheus_evaluates_every_rule_without_errors(live: Live):
    groups = live.get("rules")["groups"]
    assert groups
    assert [r for g in groups for r in g["rules"] if r["health"] not in ("ok", "unknown")] == []
