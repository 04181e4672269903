"""A server that does nothing: it answers every call with the same pixels, as Python's gRPC does.

    python benchmarks/serving_echo.py PORT REPLY_BYTES [MODEL LATENT_DIM]

What its calls cost is the floor for any server in Python; the rest is ours. With a model's file it
runs that in each call, on latents that are ready: what a server costs that does nothing else.
"""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from ganserve.latents import draw_latents
from ganserve.models.loading import load_model
from ganserve.v1 import image_generation_pb2 as pb

SERVICE = "ganserve.v1.ImageGenerationService"


def echo(pixels: Callable[[], bytes]) -> "grpc.RpcMethodHandler[Any, Any]":
    """Decode each request and build a reply for it, like any service."""

    async def answer(
        request: pb.GenerateImagesRequest,  # noqa: ARG001
        context: Any,  # noqa: ANN401, ARG001 - as gRPC has it
    ) -> pb.GenerateImagesResponse:
        return pb.GenerateImagesResponse(pixels=pixels(), count=1)

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=pb.GenerateImagesRequest.FromString,
        response_serializer=pb.GenerateImagesResponse.SerializeToString,
    )


def generating(path: Path, latent_dim: int) -> Callable[[], bytes]:
    """The pixels of one image, made anew by each call."""
    model = load_model(path, "cpu", threads=1)
    latents = draw_latents(np.arange(1, dtype=np.uint64), latent_dim)
    return lambda: model.run_batch(latents).tobytes()


async def main() -> None:
    """Serve until killed."""
    port, size = int(sys.argv[1]), int(sys.argv[2])
    constant = bytes(size)
    model = sys.argv[3:]
    pixels = generating(Path(model[0]), int(model[1])) if model else lambda: constant
    server = grpc.aio.server()
    handlers = {"GenerateImages": echo(pixels)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
