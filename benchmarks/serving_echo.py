"""A server that does nothing: it answers every call with the same pixels, as Python's gRPC does.

    python benchmarks/serving_echo.py PORT REPLY_BYTES

What its calls cost is the floor for any server in Python; the rest is ours.
"""

import asyncio
import sys
from typing import Any

import grpc

from ganserve.v1 import image_generation_pb2 as pb

SERVICE = "ganserve.v1.ImageGenerationService"


def echo(pixels: bytes) -> "grpc.RpcMethodHandler[Any, Any]":
    """Decode each request and build a reply for it, like any service."""

    async def answer(
        request: pb.GenerateImagesRequest,  # noqa: ARG001
        context: Any,  # noqa: ANN401, ARG001 - as gRPC has it
    ) -> pb.GenerateImagesResponse:
        return pb.GenerateImagesResponse(pixels=pixels, count=1)

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=pb.GenerateImagesRequest.FromString,
        response_serializer=pb.GenerateImagesResponse.SerializeToString,
    )


async def main() -> None:
    """Serve until killed."""
    port, size = int(sys.argv[1]), int(sys.argv[2])
    server = grpc.aio.server()
    handlers = {"GenerateImages": echo(bytes(size))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
