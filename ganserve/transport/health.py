"""The health protocol: the newest status of each service, checked or watched."""

import asyncio
from collections.abc import AsyncIterator, Collection

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ganserve.transport.call_context import Context

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

READINESS = ""  # may calls be sent? NOT_SERVING while loading and draining
# Does the process work? SERVING from the opening of the ports to the end of the process: whatever
# keeps the event loop from answering is what a liveness probe is there to find. A process that
# drains works, and must not be killed for not being ready.
LIVENESS = "liveness"


class Health(health_pb2_grpc.HealthServicer):
    """`grpc.health.v1.Health`: "" is readiness, `liveness` the process, others are the models.

    A model called `liveness` has no status of its own.

    The servicer of grpcio-health-checking is not used: there a watcher that reads slowly holds up
    every change of status, one that leaves cuts the others off, and "" begins as SERVING.
    """

    def __init__(self) -> None:
        self._serving = {READINESS: False}  # and the models
        self._changed = asyncio.Event()
        self._shutting_down = False
        self._closed = False

    def set(self, service: str, serving: bool) -> None:
        """Set a status, unless the server is shutting down."""
        if not self._shutting_down and self._serving.get(service) is not serving:
            self._serving[service] = serving
            self._wake_watchers()

    def keep_only(self, services: Collection[str]) -> None:
        """Make all other services unknown."""
        gone = self._serving.keys() - services
        for name in gone:
            del self._serving[name]
        if gone:
            self._wake_watchers()

    def shut_down(self) -> None:
        """Say NOT_SERVING for all services but `liveness` from now on."""
        self._shutting_down = True
        self._serving = dict.fromkeys(self._serving, False)
        self._wake_watchers()

    def close(self) -> None:
        """End all watches, for they would outlast the server."""
        self._closed = True
        self._wake_watchers()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Answer with the status as it is now."""
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=status)

    async def Watch(
        self, request: HealthCheckRequest, _: Context
    ) -> AsyncIterator[HealthCheckResponse]:
        """Answer with the status as it is now and whenever it differs from the last answer."""
        last = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != last:
                yield HealthCheckResponse(status=status)
                last = status
            elif self._closed:  # the last status was told before
                return
            else:
                await changed.wait()

    def _status(self, service: str) -> int:
        if service == LIVENESS:
            return HealthCheckResponse.SERVING
        if service not in self._serving:
            return HealthCheckResponse.SERVICE_UNKNOWN
        if self._serving[service]:
            return HealthCheckResponse.SERVING
        return HealthCheckResponse.NOT_SERVING

    def _wake_watchers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
