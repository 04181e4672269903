"""What handlers may use of a call, whichever way it was taken."""

from collections.abc import Iterable
from typing import NoReturn, Protocol

import grpc

# As gRPC hands it over: pairs of a name and a text, or bytes where the name ends in -bin.
CallMetadata = Iterable[tuple[str, str | bytes]] | None


class Context(Protocol):
    """What `grpc.aio.ServicerContext` and `CoreCall` have both."""

    def invocation_metadata(self) -> CallMetadata:
        """The metadata that the caller sent."""

    def peer(self) -> str:
        """Who calls, as in `ipv4:127.0.0.1:50051`."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None where it set none."""

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str | bytes], ...], /) -> None:
        """What goes with the status."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """What was set."""

    def code(self) -> grpc.StatusCode:
        """The status that `abort` sent."""

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Send a status instead of a response.

        Raises:
            AbortError: always.
        """
