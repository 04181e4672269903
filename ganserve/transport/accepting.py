"""Calls are taken off gRPC's core many at a time, where grpc.aio asks for one.

Most calls do not come through grpc.aio at all: see `direct_calls`. What still does is streams, of
images, health and reflection, and every call where gRPC's core lacks what the direct way needs.
Such a call waits in the core until somebody asks for it. grpc.aio asks for one, is woken through
another thread, and asks for the next; so on a busy machine they trickle in and their batches stay
small. Here many are asked for at any moment. The class that is extended for it is private to gRPC:
where it lacks what is needed here, calls are taken one by one.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # published without types

from ganserve.transport.direct_calls import DirectCalls, DirectMethods, core_server
from ganserve.transport.unfinished_requests import RequestReading, UnfinishedRequests

# Between 8 and 32, which with 64 calls under way cut a call's CPU about alike: see docs/decisions.
_ASKED_FOR = 16
_TURNS_TO_HAND_OVER = 2 * _ASKED_FOR

# grpc.aio must ask for some call, or it would not notice the stop.
_NO_METHOD = "/"
_EVER = 365 * 86400.0  # seconds

_AioServer: Any = cygrpc.AioServer


class _EagerServer(_AioServer):  # type: ignore[misc]  # published without types
    """Keeps `_ASKED_FOR` calls of each method asked for, takes some directly, and stops once.

    Those of methods that do not exist are taken directly: grpc.aio (1.85) closes its ports for good
    where the path of one is not UTF-8. And of two stops in grpc.aio one may destroy what both use:
    the second, whose time is over in that moment, would end the process (1.85).
    """

    # Set by `make_aio_server`.
    unfinished: UnfinishedRequests
    direct_methods: DirectMethods
    interceptors: Sequence[Any]  # of calls that are taken directly

    def __init__(self, *arguments: object) -> None:
        self._handlers: list[Any] = []  # filled by the next line already
        super().__init__(*arguments)
        # By method, in the order in which they are used.
        self._asked_for: defaultdict[bytes | None, deque[asyncio.Task[Any]]] = defaultdict(deque)
        self._direct: DirectCalls | None = None
        self._stopping: asyncio.Future[None] | None = None

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Remember them, for calls that are taken directly."""
        self._handlers += handlers
        super().add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, method_handlers: dict[str, Any]) -> None:
        """Have grpc.aio ask for their calls, but for those of direct methods."""
        direct = self.direct_methods.paths
        others = {path: method_handlers[path] for path in method_handlers if path not in direct}
        super().add_registered_method_handlers(others)

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Task[Any]":
        """A task that ends with a new call, which may already have come.

        A version of gRPC that does not know this method asks for one call at a time.
        """
        if method is None and self._direct is not None:
            method = _NO_METHOD.encode()
        asked_for = self._asked_for[method]
        while len(asked_for) <= _ASKED_FOR:
            task = super()._make_request_call_future(method)
            task.add_done_callback(_look_at_failure)
            asked_for.append(task)
        return asked_for.popleft()

    async def start(self) -> None:
        """Start, wait for no request too long, and take calls past grpc.aio where that can be."""
        server = core_server(self)
        if server is not None:
            server.register_method(_NO_METHOD)
            find = self._find
            for interceptor in reversed(self.interceptors):
                find = partial(interceptor.intercept_service, find)
            self._direct = DirectCalls(server, self.direct_methods, find, self.unfinished)
        await super().start()
        self.unfinished.start()
        if self._direct is not None:
            self._direct.start()

    async def _find(self, details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401
        found = (handler.service(details) for handler in self._handlers)
        return next((handler for handler in found if handler is not None), None)

    async def shutdown(self, grace: float | None) -> None:
        """Stop, once the calls that have come are being handled.

        A further stop shortens the time that calls have, if this version of gRPC can.
        """
        if self._direct is not None:
            self._direct.take_no_more()
        for _ in range(_TURNS_TO_HAND_OVER):
            if not any(task.done() for tasks in self._asked_for.values() for task in tasks):
                break
            await asyncio.sleep(0)
        # A call that comes at this very moment finds nobody: it is cancelled as soon as nobody
        # holds it, where its caller would wait until its deadline.
        self._asked_for.clear()
        await self._stop(grace)
        direct, self._direct = self._direct, None  # a hasty stop may come on top of another
        if direct is not None:
            await direct.close()

    async def _stop(self, grace: float | None) -> None:
        """Stop grpc.aio and the core, once however often this is called."""
        self.unfinished.close()
        can_end_calls = may_stop_again(self)
        if self._stopping is None:
            stop = super().shutdown(_EVER if can_end_calls else grace)
            self._stopping = asyncio.ensure_future(stop)
        if can_end_calls:
            await asyncio.wait([self._stopping], timeout=0 if grace is None else grace)
            if not self._stopping.done():
                core_server(self).cancel_all_calls()
        await asyncio.shield(self._stopping)


def make_aio_server(
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    options: Sequence[tuple[str, Any]],
    unfinished: UnfinishedRequests,
    direct_methods: DirectMethods,
) -> grpc.aio.Server:
    """A server of grpc.aio that takes its calls many at a time, if this version of gRPC can.

    No request is `unfinished` for ever. Handlers that answer with a stream must write it to their
    context.
    """
    cygrpc.AioServer = _EagerServer  # where `grpc.aio.server` looks it up
    try:
        reading = [RequestReading(unfinished), *interceptors]  # what is direct is read in the core
        server = grpc.aio.server(interceptors=reading, options=options)
    finally:
        cygrpc.AioServer = _AioServer
    inner = _inner(server)
    inner.unfinished = unfinished
    inner.interceptors = interceptors
    inner.direct_methods = direct_methods
    return server


def may_stop_again(server: object) -> bool:
    """Whether a stop may end calls for which an earlier one of the same server still waits.

    If it may not, the first stop's grace period holds for every later one.
    """
    inner = server if isinstance(server, _AioServer) else _inner(server)
    return hasattr(core_server(inner), "cancel_all_calls")


def _inner(server: Any) -> Any:  # noqa: ANN401 - published without types
    return server._server  # noqa: SLF001


def _look_at_failure(task: "asyncio.Task[Any]") -> None:
    """Those that wait when the server stops fail, and nobody else looks at them."""
    if not task.cancelled():
        task.exception()
