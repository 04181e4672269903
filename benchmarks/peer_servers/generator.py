"""Hides the work that every peer does: from seeds to pixels, with the bare session's own code."""

import os

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ganserve.latents import draw_latents

PORT = int(os.environ["PEER_PORT"])
SECOND_PORT = int(os.environ["PEER_SECOND_PORT"])
BATCH = 16  # images a session call: the bare session gains nothing from more


class Generator:
    """A session of one thread: two of them on two CPUs make 1.5 times what one of two makes."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False  # as ganserve.models.runtime has it, and why
        self._session = onnxruntime.InferenceSession(
            os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self._latent_dim = self._session.get_inputs()[0].shape[1]

    def __call__(self, seeds: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Make an image of each seed; shape [n], result [n, height, width, channels]."""
        latents = draw_latents(seeds, self._latent_dim)
        parts = [
            self._session.run(["images"], {"latents": latents[start : start + BATCH]})[0]
            for start in range(0, len(latents), BATCH)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def together(self, requests: list[NDArray[np.uint64]]) -> list[NDArray[np.uint8]]:
        """Make the images of several requests in one go."""
        ends = np.cumsum([len(seeds) for seeds in requests])[:-1]
        return np.split(self(np.concatenate(requests)), ends)
