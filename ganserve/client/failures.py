"""What gRPC raises becomes an error that says in a line what failed, and what to do."""

import grpc

# What gRPC says where it has waited long enough, the second of about half of the streams; a server
# that ends a call before says why.
_DEADLINE_AT_CLIENT = ("Deadline Exceeded", "Stream removed (Deadline Exceeded)")
# What it says where no connection could be made, before the reason of the last attempt.
_NO_CONNECTION = "last error: "
# What it says where the other end closed the connection, as one that waits for a handshake does.
_CLOSED = ("Socket closed", "Connection reset")
# What it says where nothing came back, by which of two clocks ended the attempt.
_UNANSWERED = ("tcp handshaker shutdown", "connect() timed out")
# A call that gRPC does not make again, so that it says at once why no connection can be made.
CONNECTION_CHECK = "/grpc.health.v1.Health/Check"
CONNECTION_CHECK_SECONDS = 0.02
CONNECTIVITY_SECONDS = 0.5  # told at once, by a thread that must get its turn on a busy machine


class CallError(Exception):
    """A call that failed for good: `code` says in which way, `details` why."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return f"{self.code.name}: {self.details}"


def closed_error() -> CallError:
    """What a call ends with whose client is closed, before it or meanwhile."""
    return CallError(grpc.StatusCode.CANCELLED, "the client was closed")


def is_late(error: grpc.RpcError) -> bool:
    """Whether a call's time was over at the client, which does not say what it was waiting for."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # a call that was started
    return (
        error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and error.details() in _DEADLINE_AT_CLIENT
    )


def to_call_error(
    error: grpc.RpcError, address: str, timeout: float, *, tls: bool, no_connection: str = ""
) -> CallError:
    """Say in a line what failed.

    Args:
        error: What gRPC raised.
        address: The server, as its caller knows it.
        timeout: How long the call could take, in seconds.
        tls: Whether the client speaks TLS.
        no_connection: Of a call that `is_late`, why there is no connection, if there is none.
    """
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # a call that was started
    code, details = error.code(), error.details() or ""
    if is_late(error):
        details = f"no result from {address} within {timeout:g} s"
        if no_connection:
            details += f": {no_connection}{_hint(no_connection, tls)}"
    elif code is grpc.StatusCode.UNAVAILABLE:
        details = f"{address} does not serve: {details}{_hint(details, tls)}"
    return CallError(code, details)


def no_connection_of(error: grpc.RpcError) -> str:
    """Why a call that was to say so found no connection; empty if it found one, or does not say."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # a call that was started
    return (error.details() or "") if error.code() is grpc.StatusCode.UNAVAILABLE else ""


def _hint(details: str, tls: bool) -> str:
    """What to do where nothing answers, or the two ends seem to want different kinds of connection.

    Else empty.
    """
    _, not_connected, reason = details.partition(_NO_CONNECTION)
    if not_connected and any(word in reason for word in _CLOSED):
        if tls:
            return (
                " (does it ask for clients' certificates? then give --tls-certificate and "
                "--tls-key, of an authority that it knows)"
            )
        return " (does it speak TLS? then give --tls-ca, in Python tls_ca)"
    if not_connected and any(words in reason for words in _UNANSWERED):
        return " (nothing answers: is the address right, and may this machine reach it?)"
    if not_connected and tls and "WRONG_VERSION_NUMBER" in reason:
        return " (does it speak no TLS? then leave out --tls-ca, in Python tls_ca)"
    return ""
