"""Write the PrometheusRule from alerts.yaml, so that the alerts are said once.

`--check` writes nothing and fails where the file is not up to date.
"""

import argparse
import sys
import textwrap
from pathlib import Path

MONITORING = Path(__file__).resolve().parent
ALERTS = MONITORING / "alerts.yaml"
RULE = MONITORING.parent / "components/monitoring/prometheus-rule.yaml"

HEADER = """\
# Written by deploy/monitoring/generate_prometheus_rule.py from alerts.yaml: edit that, not this.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: ganserve
  labels:
    app.kubernetes.io/name: ganserve
spec:
"""


def render_rule(alerts: str) -> str:
    """The PrometheusRule that holds the groups of a file of rules; its comments stay behind.

    A rules file is what `spec` of a PrometheusRule holds, so it is indented and nothing else: how
    its author wrapped and quoted is kept.
    """
    _, groups, rest = alerts.partition("groups:")
    return HEADER + textwrap.indent(groups + rest, "  ")


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    text = render_rule(ALERTS.read_text())
    if not check:
        RULE.write_text(text)
    elif RULE.read_text() != text:
        sys.exit(
            f"{RULE.name} is not up to date: run python deploy/monitoring/{Path(__file__).name}"
        )


if __name__ == "__main__":
    main()
