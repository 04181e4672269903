"""A call that a busy server refused is made again as late as the server asks for."""

import time

import grpc

MOST_ATTEMPTS = 5  # as gRPC allows, which makes calls again that fail in other ways
# The server's word to a client that may come back, with the milliseconds until then.
_PUSHBACK = "grpc-retry-pushback-ms"


class Patience:
    """What is left of a call's time and attempts.

    A refusal that does not say when to come back is taken to be for good. It may be gRPC's own, of
    a request that is too large, which every attempt would meet. A proxy's that is busy says it if
    it hands the server's metadata on, or means to be asked again.
    """

    def __init__(self, timeout_seconds: float, attempts: float) -> None:
        self._end = time.monotonic() + timeout_seconds
        self._attempts_left = attempts - 1

    @property
    def remaining_seconds(self) -> float:
        """For another attempt."""
        return max(0.0, self._end - time.monotonic())

    def pause_after(self, error: grpc.RpcError) -> float:
        """The seconds to wait before another attempt.

        Raises:
            grpc.RpcError: `error`, where another attempt would help nothing or come too late.
        """
        pause = _pushback(error)
        if pause is None or self._attempts_left < 1 or pause >= self.remaining_seconds:
            raise error
        self._attempts_left -= 1
        return pause


def _pushback(error: grpc.RpcError) -> float | None:
    """After how many seconds a busy server wants to be asked again; None if it does not say so."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # a call that was started
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    asked = [value for name, value in error.trailing_metadata() or () if name == _PUSHBACK]
    # A negative number, or none, stands for "not again", as it does for gRPC.
    return int(asked[0]) / 1000 if asked and asked[0].isdigit() else None
