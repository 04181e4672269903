"""Runs `ganserve` without metrics, to show what they cost.

python benchmarks/serving_silent.py serve --models DIR ...
"""

import sys
from typing import Any

import ganserve.server
from ganserve.cli import main


class Silent:
    """Stands for all metrics, each of their series and each of their methods; does nothing."""

    def __init__(self, registry: Any = None) -> None:  # noqa: ANN401 - as Metrics has it
        if registry is not None:
            self.registry = registry

    def __getattr__(self, name: str) -> "Silent":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: object, **__: object) -> "Silent":
        """Do nothing."""
        return self


if __name__ == "__main__":
    vars(ganserve.server)["Metrics"] = Silent
    sys.exit(main())
