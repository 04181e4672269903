"""`ganserve`, which at its end writes what /metrics would have shown then to a file.

python benchmarks/rolling_server.py FILE serve ...

Whoever asks /metrics of a server that ends has to guess which answer is the last one.
"""

import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

import ganserve.server
from ganserve.cli import main
from ganserve.metrics import Metrics

if __name__ == "__main__":
    page = Path(sys.argv.pop(1))
    registries: list[CollectorRegistry] = []

    def make_metrics(registry: CollectorRegistry) -> Metrics:
        """As ever, but remembered."""
        registries.append(registry)
        return Metrics(registry)

    vars(ganserve.server)["Metrics"] = make_metrics
    try:
        sys.exit(main())
    finally:
        page.write_bytes(b"".join(map(generate_latest, registries)))
