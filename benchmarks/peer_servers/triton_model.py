"""The model that Triton's Python backend loads."""

from __future__ import annotations  # types that Triton adds only after this was read

import os
import sys

sys.path[:0] = os.environ["PYTHONPATH"].split(":")

import triton_python_backend_utils as triton  # noqa: E402
from generator import Generator  # noqa: E402


class TritonPythonModel:
    """From seeds to pixels, for all requests of a batch together."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002
        """Open a session in each instance."""
        self._generate = Generator()

    def execute(self, requests: list[triton.InferenceRequest]) -> list[triton.InferenceResponse]:
        """Of a batch."""
        seeds = [
            triton.get_input_tensor_by_name(request, "seeds").as_numpy()[:, 0]
            for request in requests
        ]
        return [
            triton.InferenceResponse([triton.Tensor("images", pixels)])
            for pixels in self._generate.together(seeds)
        ]
