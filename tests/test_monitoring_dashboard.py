"""The dashboard is what its source says, and such as Grafana takes."""

import itertools
import json
import re
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import load_script
from tests.deploy.manifests import DEPLOY, Variant, render
from tests.deploy.queries import dashboards

KINDS = {"timeseries", "stat", "table", "row"}
# Of Grafana's units, those in use.
UNITS = {"s", "bytes", "none", "percentunit", "reqps"}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_script(DEPLOY / "monitoring/generate_dashboard.py")


@pytest.fixture(scope="module")
def dashboard(generator: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(generator.DASHBOARD.read_text())
    return found


def test_the_dashboard_is_made_from_its_source(generator: ModuleType):
    made = generator.render_dashboard(generator.SOURCE.read_text())
    assert generator.DASHBOARD.read_text() == made, "run deploy/monitoring/generate_dashboard.py"


def test_grafana_finds_it_in_the_cluster(dashboard: dict[str, Any]):
    assert list(dashboards(render(Variant("overlays/cpu")))) == [dashboard]


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    columns = range(place["x"], place["x"] + place["w"])
    return set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [cell for panel in panels for cell in cells(panel)]
    assert len(set(taken)) == len(taken)
    assert all(0 <= x < 24 for x, _ in taken)


def test_panels_that_overlap_would_be_seen():
    one, other = ({"gridPos": {"x": x, "y": 0, "w": 8, "h": 8}} for x in (0, 7))
    assert cells(one) & cells(other)


def test_every_panel_is_whole(dashboard: dict[str, Any]):
    assert dashboard["schemaVersion"] >= 39
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert len(titles) == len(set(titles))
    for panel in dashboard["panels"]:
        assert panel["type"] in KINDS
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [chr(ord("A") + i) for i in range(len(letters))] != []


def test_queries_use_the_choices_that_there_are_and_each_is_used(dashboard: dict[str, Any]):
    choices = dashboard["templating"]["list"]
    text = json.dumps(dashboard["panels"]) + json.dumps([one["query"] for one in choices])
    used = set(re.findall(r"\$([a-z_]+)", text)) - {"__rate_interval"}
    assert used - {"__rate_interval", "_", "__"} == {one["name"] for one in choices}
    assert {one["name"] for one in choices} == {"datasource", "namespace", "pod", "model"}
    assert "<" not in re.sub(r"(<|>) ", "", "".join(_expressions(dashboard)))


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())]
