"""Write the Grafana dashboard from dashboard.yaml, which says what it shows and nothing of frames.

`--check` writes nothing and fails where the file is not up to date.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).resolve().parent
SOURCE = MONITORING / "dashboard.yaml"
# Where kustomize finds it: files from outside a kustomization's folder are refused.
DASHBOARD = MONITORING.parent / "components/monitoring/dashboard.json"

SCHEMA_VERSION = 41  # of Grafana 12; newer ones bring it up to date by themselves
GRID_WIDTH = 24
PANEL_SIZES = {"timeseries": (8, 8), "table": (12, 8), "stat": (4, 4)}  # width, height
PERCENTILES = (50, 90, 99)
DATA_SOURCE = {"type": "prometheus", "uid": "$datasource"}

_HERE = 'namespace=~"$namespace",pod=~"$pod"'
_SERVICES = "ganserve.v1.ImageGenerationService|inference.GRPCInferenceService"
CHOSEN = {
    "<here>": _HERE,
    "<model>": f'{_HERE},model=~"$model"',
    "<calls>": f'{_HERE},grpc_service=~"{_SERVICES}"',
    "<rate>": "[$__rate_interval]",
}
VARIABLES = {
    "namespace": "label_values(ganserve_queue_size_images, namespace)",
    "pod": 'label_values(ganserve_queue_size_images{namespace=~"$namespace"}, pod)',
    "model": 'label_values(ganserve_model_ready{namespace=~"$namespace"}, model)',
}


def render_dashboard(source: str) -> str:
    """The dashboard as JSON, from the text of its YAML."""
    dashboard = {
        "uid": "ganserve",
        "title": "ganserve",
        "tags": ["ganserve"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one cross-hair for all panels
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": variables()},
        "panels": list(place_panels(yaml.safe_load(source))),
    }
    return json.dumps(dashboard, indent=1) + "\n"


def variables() -> list[dict[str, Any]]:
    """What a reader may choose: the data source, and several or all values of some labels."""
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
    }
    labels = [
        {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": DATA_SOURCE,
            "definition": query,
            "query": {"query": query, "refId": f"variable-{name}"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",  # also series without that label, outside Kubernetes
            "current": {"text": "All", "value": "$__all"},
        }
        for name, query in VARIABLES.items()
    ]
    return [source, *labels]


def place_panels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows and their panels, placed from left to right and downwards."""
    number = y = 0
    for row in rows:
        number += 1
        place = {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": row["row"], "gridPos": place, "panels": []}
        y += 1
        x = tallest = 0
        for panel in row["panels"]:
            width, height = PANEL_SIZES[panel.get("kind", "timeseries")]
            width = panel.get("width", width)
            if x + width > GRID_WIDTH:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            place = {"x": x, "y": y, "w": width, "h": height}
            yield {"id": number, "gridPos": place, **frame(panel)}
            x, tallest = x + width, max(tallest, height)
        y += tallest


def frame(panel: dict[str, Any]) -> dict[str, Any]:
    """A panel as Grafana wants it."""
    kind = panel.get("kind", "timeseries")
    options: dict[str, Any] = {
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}},
        "table": {},
    }
    return {
        "type": kind,
        "title": panel["title"],
        "description": panel.get("description", ""),
        "datasource": DATA_SOURCE,
        "fieldConfig": {"defaults": {"unit": panel["unit"], "min": 0}, "overrides": []},
        "options": options[kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATA_SOURCE,
                "editorMode": "code",
                "expr": expression,
                "legendFormat": legend,
                # Numbers and tables show the last value alone.
                "range": kind == "timeseries",
                "instant": kind != "timeseries",
                "format": "table" if kind == "table" else "time_series",
            }
            for index, (expression, legend) in enumerate(queries(panel))
        ],
    }


def queries(panel: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The expressions of a panel with their legends."""
    for query in panel.get("queries", ()):
        yield expand(query["query"]), query.get("legend", "__auto")
    if "percentiles" in panel:
        histogram, series, by = (panel["percentiles"][key] for key in ("histogram", "series", "by"))
        labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
        buckets = f"sum by ({labels}) (rate({histogram}_bucket{{{series}}}<rate>))"
        for percentile in PERCENTILES:
            expression = f"histogram_quantile({percentile / 100}, {buckets})"
            yield expand(expression), f"p{percentile}{legend}"


def expand(query: str) -> str:
    """A query with what stands for choices replaced by them."""
    for name, text in CHOSEN.items():
        query = query.replace(name, text)
    return query


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    text = render_dashboard(SOURCE.read_text())
    if not check:
        DASHBOARD.write_text(text)
    elif DASHBOARD.read_text() != text:
        command = f"python deploy/monitoring/{Path(__file__).name}"
        sys.exit(f"{DASHBOARD.name} is not up to date: run {command}")


if __name__ == "__main__":
    main()
