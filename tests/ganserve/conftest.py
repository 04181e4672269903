"""Fixtures: a repository with a tiny model, and real servers on free ports."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from ganserve.config import ServerConfig
from ganserve.models.loading import load_model
from ganserve.models.model import Model
from ganserve.running_server import RunningServer
from ganserve.server import running
from ganserve.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from tests.ganserve.tiny import write_artifact

StartServer = Callable[..., AbstractAsyncContextManager[RunningServer]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that holds the model `tiny`, version 1: 4 latents, 4x4 RGB, `reveal`."""
    folder = tmp_path / "models"
    write_artifact(folder)
    return folder


@pytest.fixture
def running_server() -> StartServer:
    """`async with running_server(repository, **settings) as server:` until it serves.

    `server.address` is HOST:PORT for calls, `server.metrics_port` for HTTP, `server.metrics` the
    metrics themselves. Ports are free ones on 127.0.0.1; polling is fast; nothing is drained for.
    `until_ready=False` yields as soon as the ports are open.
    """

    @contextlib.asynccontextmanager
    async def start(
        repository: Path, *, until_ready: bool = True, **settings: Any
    ) -> AsyncIterator[RunningServer]:
        config = server_config(repository, **settings)
        async with running(config) as server:
            if until_ready:
                await server.wait_until_ready()
            yield server

    return start


class SlowLoading:
    """Models whose loading takes until they may load, as where a GPU's engine is built.

    Where `version` is given, only those of that version.
    """

    def __init__(self) -> None:
        self.version: str | None = None
        self._begun, self._may_end = threading.Event(), threading.Event()

    def load(self, path: Path, *arguments: Any, **settings: Any) -> Model:
        if self.version in (None, path.parent.name):
            self._begun.set()
            assert self._may_end.wait(60)
        return load_model(path, *arguments, **settings)

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 20)

    @property
    def is_held(self) -> bool:
        return not self._may_end.is_set()

    def end(self) -> None:
        self._may_end.set()


@pytest.fixture
def slow_loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowLoading]:
    """Servers load their models in it."""
    loading = SlowLoading()
    monkeypatch.setattr("ganserve.assembly.load_model", loading.load)
    yield loading
    loading.end()


def server_config(repository: Path, **settings: Any) -> ServerConfig:
    """Settings for a test: free ports on 127.0.0.1, fast polling, no waiting for drains."""
    defaults = {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "poll_seconds": 0.05}
    defaults |= {"device": "cpu", "instances": 2, "threads": 1, "drain_seconds": 0}
    return ServerConfig(models=repository, **(defaults | settings))


@contextlib.asynccontextmanager
async def connected(server: RunningServer) -> AsyncIterator[ImageGenerationServiceStub]:
    """A stub on a channel of its own."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield ImageGenerationServiceStub(channel)


def fetch(server: RunningServer, path: str) -> str:
    """GET a page of the metrics port, over HTTP."""
    with urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=10) as reply:
        return reply.read().decode()


async def scrape(server: RunningServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of /metrics: (name, labels) to value."""
    text = await asyncio.to_thread(fetch, server, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def metric(server: RunningServer, name: str, **labels: str) -> float:
    """The sum of the samples of that name whose labels include these, as scraped over HTTP."""
    return sum(
        value
        for (sample_name, sample_labels), value in (await scrape(server)).items()
        if sample_name == name and labels.items() <= dict(sample_labels).items()
    )


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what tells nobody when it happens, such as a server's view of a client."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.002)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error that a call must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


def retry_seconds(error: grpc.aio.AioRpcError) -> float:
    """After how long a call that was refused may come again."""
    delay = RetryInfo()
    assert rpc_status.from_call(error).details[0].Unpack(delay)
    return delay.retry_delay.ToNanoseconds() / 1e9


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    """The status that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        if task.cancelling():  # who waits was cancelled, by a limit of time perhaps, not the call
            raise
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.OK


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
