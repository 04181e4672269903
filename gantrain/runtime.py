"""Hides how ONNX Runtime comes in: silent, and where it is missing with what to install."""

import importlib
import os
from typing import Any

from gantrain.errors import RunError


def import_runtime(module: str = "onnxruntime") -> Any:  # noqa: ANN401 - untyped library
    """Import ONNX Runtime, or a module of it, so that it reports to nobody.

    Its telemetry keeps an id below the home folder and sends events to its makers. It begins with
    the import, so this is the only way in; a variable `ORT_DISABLE_TELEMETRY` that is set decides.

    Raises:
        RunError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RunError(
            "ONNX Runtime is not installed: install the extra `cpu` or `gpu` beside `train`"
        ) from None
