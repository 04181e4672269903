"""LitServe with two workers; its first argument is the largest batch, 1 for none.

Requests are batched whole, so with batches one of 64 images may wait for others.
"""

import sys

import litserve
import numpy as np
from fastapi import Response
from generator import PORT, Generator
from numpy.typing import NDArray

Seeds = NDArray[np.uint64]
_BATCH = int(sys.argv[1])


class Dcgan64(litserve.LitAPI):
    """From a first seed and a count, as JSON, to bytes."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Open a session in each worker."""
        self._generate = Generator()

    def decode_request(self, request: dict[str, int]) -> Seeds:
        """JSON to seeds."""
        return np.arange(request["start"], request["start"] + request["count"], dtype=np.uint64)

    def batch(self, inputs: list[Seeds]) -> list[Seeds]:
        """Requests differ in length, so they stay a list."""
        return inputs

    def predict(self, inputs: list[Seeds] | Seeds) -> list[bytes] | bytes:
        """Of a batch, or of a request where there are no batches."""
        if isinstance(inputs, list):
            return [pixels.tobytes() for pixels in self._generate.together(inputs)]
        return self._generate(inputs).tobytes()

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """It is a list already."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """Bytes, not JSON."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = Dcgan64(max_batch_size=_BATCH, batch_timeout=0.001)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=2, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=PORT,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
