"""MLServer in one process with adaptive batches, the session in two threads, over gRPC.

Two processes of its own (`parallel_workers`) took more CPU time and longer.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from generator import PORT, SECOND_PORT, Generator
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Dcgan64(MLModel):
    """From seeds to an element of bytes for each image."""

    async def load(self) -> bool:
        """Open the session."""
        self._generate = Generator()
        self._threads = ThreadPoolExecutor(2)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Of a batch."""
        seeds = np.array(payload.inputs[0].data.root, np.uint64)
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._threads, self._generate, seeds)
        images = [image.tobytes() for image in pixels]
        output = ResponseOutput(
            name="images", shape=[len(images), 1], datatype="BYTES", data=images
        )
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    """Serve until it is stopped."""
    settings = Settings(
        host="127.0.0.1",
        grpc_port=PORT,
        http_port=SECOND_PORT,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    model = ModelSettings(
        name="dcgan64", implementation=Dcgan64, max_batch_size=32, max_batch_time=0.005
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
