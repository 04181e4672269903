"""Hides how a client process gets its tasks: JSON objects, a line each, on standard input."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

Task = Callable[..., Awaitable[dict[str, Any]]]
_SERVICE = "/ganserve.v1.ImageGenerationService"
UNARY, STREAM = f"{_SERVICE}/GenerateImages", f"{_SERVICE}/StreamImages"


async def do_tasks(tasks: dict[str, Task]) -> None:
    """Do one task after the other, each with its arguments, until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        arguments = json.loads(line)
        result = await tasks[arguments.pop("task")](**arguments)
        print(json.dumps(result), flush=True)


@contextlib.asynccontextmanager
async def connections(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """So many channels with a connection each; gRPC would share one among them."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(count)
        ]
