"""A running server: alive, ready or draining, and what it refreshes meanwhile."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from ganserve.assembly import make_interceptor, make_rate_limiter, open_repository
from ganserve.config import ServerConfig
from ganserve.file_reads import FileReads
from ganserve.metrics import Metrics
from ganserve.models.model_files import LAYOUT
from ganserve.security.admission import Admission
from ganserve.security.credentials import ServerCertificate, Tokens
from ganserve.transport.health import READINESS, Health
from ganserve.transport.unread_replies import UnreadReplies

if TYPE_CHECKING:
    from ganserve.tracing import Tracing

logger = logging.getLogger(__name__)

_NO_MODEL = "there is no model"
_LIVENESS_SECONDS = 5.0
_LOADING_SECONDS = 1.0  # how long a scan is waited for before there may be another


class RunningServer:
    """A server whose ports are open; `server.running` makes it.

    Attributes:
        address: HOST:PORT for calls.
        metrics_port: the port for HTTP.
        health_address: HOST:PORT for health checks alone; empty where there is no such port.
        metrics: what that port shows.
        stop_now: set it to cut draining short.
        health: what health checks are told.
        admission: who may call, and how much.
        unread: replies that have not left.
        interceptor: what surrounds every call of the port for calls; knows those under way.
        repository: the models, and which of them serve.
    """

    def __init__(
        self,
        config: ServerConfig,
        metrics: Metrics,
        certificate: ServerCertificate | None,
        tokens: Tokens | None,
        tracing: "Tracing | None",
        gpu_thread: Executor,
    ) -> None:
        self.address = ""
        self.metrics_port = 0
        self.health_address = ""
        self.metrics = metrics
        self.stop_now = asyncio.Event()
        self.health = Health()
        self.admission = Admission(tokens, make_rate_limiter(config))
        self.unread = UnreadReplies(config.deadline_seconds, config.max_deadline_seconds)
        self.interceptor = make_interceptor(config, metrics, self.admission, tracing, self.unread)
        self.repository = open_repository(
            config, metrics, tracing, self._publish_health, gpu_thread
        )
        self._tracing = tracing
        self._models = config.models
        self._poll_seconds = config.poll_seconds
        self._credentials = [files for files in (certificate, tokens) if files is not None]
        self._refresh_models_now = asyncio.Event()
        self._refresh_credentials_now = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._draining = False
        self._watching: list[asyncio.Task[None]] = []

    async def wait_until_ready(self) -> None:
        """Return when a model serves, and all were tried.

        Raises:
            StartupError: none can ever serve.
        """
        await self._first_of(self._ready.wait())

    async def serve_until(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set.

        Raises:
            StartupError: the models cannot run on the device that was asked for.
        """
        await self._first_of(stop.wait())

    async def drain(self, seconds: float) -> None:
        """Turn NOT_SERVING at once, but answer for some more seconds, then refuse new calls.

        Callers learn of a change of readiness only after a while; until then they keep calling.
        """
        logger.info("draining: calls are answered for %g more seconds", seconds)
        self._draining = True
        self.health.shut_down()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stop_now.wait()
        self.interceptor.under_way.refuse_new()

    def watch(self) -> None:
        """Begin to refresh the models and the credentials from their files now and again."""
        self._watching = [
            self._loop.create_task(self._refresh_for_ever()),
            self._loop.create_task(self._refresh_credentials_for_ever()),
        ]

    def refresh_now(self) -> None:
        """Do not wait for the time of the next refresh."""
        self._refresh_models_now.set()
        self._refresh_credentials_now.set()

    async def stop_watching(self) -> None:
        """Leave models and credentials as they are."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self.repository.stop_loading()

    async def close_tracing(self, seconds: float) -> None:
        """Send the last traces, for at most so many seconds."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close, seconds)

    def give_up_tracing(self) -> None:
        """Let a `close_tracing` that is under way end at once."""
        if self._tracing is not None:
            self._tracing.give_up()

    def is_alive(self) -> bool:
        """Whether the event loop still takes turns; asked in another thread."""
        turn = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop)
        try:
            turn.result(_LIVENESS_SECONDS)
        except TimeoutError:
            return False
        return True

    def why_not_ready(self) -> str | None:
        """What is missing for calls to be answered; None if nothing is."""
        if self._draining:
            return "draining"
        index = self.repository.index
        if not index.settled:
            return "loading models"
        if not any(map(index.is_serving, index.names)):
            if index.names:
                return "no model could be loaded"
            missing = [f"{name}:{number}" for name, number in sorted(self.repository.missing)]
            return f"none of --versions is there ({', '.join(missing)})" if missing else _NO_MODEL
        return None

    async def _refresh_for_ever(self) -> None:
        said: str | None = None
        timeout: float | None = None  # all models are there before the server is ready
        while True:
            await self.repository.refresh(timeout)
            timeout = _LOADING_SECONDS
            reason = said if self.repository.is_loading else self.why_not_ready()
            # One line a change, not one a poll; draining has a line of its own.
            if reason not in (None, said) and not self._draining:
                seconds = self._poll_seconds
                again = f"every {seconds:g} s" if seconds else "at SIGHUP"
                expected = f" (expected {LAYOUT})" if reason == _NO_MODEL else ""
                logger.warning(
                    "not serving: %s in %s%s; looking again %s",
                    *(reason, self._models, expected, again),
                )
            said = reason
            await self._pause(self._refresh_models_now)

    async def _refresh_credentials_for_ever(self) -> None:
        reads = FileReads("the files of certificates and tokens")
        said: str | None = None
        while True:
            await self._pause(self._refresh_credentials_now)
            problem: str | None = None
            for files in self._credentials:
                try:
                    await reads.run(files.refresh)
                except OSError as error:  # of starting a thread; what is in files they tell
                    problem = f"{error.filename}: {error.strerror}"
            if problem not in (None, said):  # one line an outage, not one a poll
                logger.warning("%s; looked at again", problem)
            said = problem

    async def _pause(self, refresh_now: asyncio.Event) -> None:
        """Wait for the time of the next refresh, or until it is wanted now."""
        with contextlib.suppress(TimeoutError):
            # `wait_for` of Python 3.11 loses a cancellation that comes together with the event.
            async with asyncio.timeout(self._poll_seconds or None):
                await refresh_now.wait()
        refresh_now.clear()

    def _publish_health(self) -> None:
        """Bring the health service up to date with the repository."""
        index = self.repository.index
        for name in index.names:
            self.health.set(name, index.is_serving(name))
        self.health.keep_only({READINESS, *index.names})
        is_ready = self.why_not_ready() is None
        self.health.set(READINESS, is_ready)
        if is_ready and not self._ready.is_set():
            self._ready.set()
            host, _, _ = self.address.rpartition(":")
            logger.info("serving on %s, metrics on %s:%d", self.address, host, self.metrics_port)

    async def _first_of(self, event: Coroutine[object, object, object]) -> None:
        """Wait for an event, or for the failure of a watching task."""
        assert self._watching
        waiting = self._loop.create_task(event)
        await asyncio.wait([waiting, *self._watching], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in self._watching:
            if task.done():
                await task
