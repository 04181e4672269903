"""gRPC's ports, and the limits that gRPC itself keeps on its connections."""

import logging
import math
import resource

import grpc

from ganserve.config import ServerConfig
from ganserve.errors import StartupError
from ganserve.listeners import open_listeners

logger = logging.getLogger(__name__)

_HANDSHAKE_SECONDS = 10.0  # for a client to say what it wants
_KEEPALIVE_TIMEOUT_SECONDS = 20.0
_OTHER_DESCRIPTORS = 256  # of the HTTP port, model files, libraries, the event loop
_MOST = 2**31 - 1  # of what the core counts


def grpc_options(config: ServerConfig) -> dict[str, int]:
    """The limits that gRPC itself keeps, in its own names and milliseconds."""
    # Calls that wait to be handled. What is too much is refused elsewhere, with a reason; the core
    # would end some as CANCELLED where more than a thousand come at once.
    most_calls = min(config.max_connections * config.max_streams_per_connection, _MOST)
    return {
        "grpc.so_reuseport": 0,  # or a port in use would be shared without a word
        "grpc.max_receive_message_length": config.max_message_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.server.max_pending_requests": most_calls,
        "grpc.server.max_pending_requests_hard_limit": most_calls,
        "grpc.max_concurrent_streams": config.max_streams_per_connection,
        "grpc.max_allowed_incoming_connections": config.max_connections,
        # A client that connects and says nothing, or does not speak HTTP/2, is let go.
        "grpc.server_handshake_timeout_ms": _milliseconds(_HANDSHAKE_SECONDS),
        "grpc.max_connection_age_ms": _milliseconds(config.max_connection_age_seconds),
        # Every call has ended by then, watches excepted.
        "grpc.max_connection_age_grace_ms": _milliseconds(config.max_deadline_seconds),
        "grpc.keepalive_time_ms": _milliseconds(config.keepalive_seconds),
        "grpc.keepalive_timeout_ms": _milliseconds(_KEEPALIVE_TIMEOUT_SECONDS),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": _milliseconds(config.min_ping_seconds),
    }


def allow_connections(config: ServerConfig) -> None:
    """Let the process have as many file descriptors as its limits on connections allow for.

    Many systems begin with 1,024. Where they run short nothing can connect, not even a probe, and
    the limits on connections never come to bear.
    """
    ports = 1 if config.health_port is None else 2
    wanted = ports * config.max_connections + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if most < wanted:
        logger.warning(
            "max_connections: %d need %d file descriptors, %d are allowed: raise the limit "
            "(ulimit -n, LimitNOFILE of systemd) or lower --max-connections",
            config.max_connections,
            wanted,
            most,
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def listen(
    grpc_server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None = None,
    *,
    setting: str = "port",
) -> str:
    """Take the port, a free one for 0, and return HOST:PORT. Messages name the `setting`.

    Raises:
        StartupError: the port cannot be had.
    """
    shown_host = f"[{host}]" if ":" in host else host
    try:
        # Asked first, because gRPC prints a page of its own where a port is taken.
        for listener in open_listeners(host, port):
            listener.close()
        if credentials is None:
            return f"{shown_host}:{grpc_server.add_insecure_port(f'{shown_host}:{port}')}"
        taken = grpc_server.add_secure_port(f"{shown_host}:{port}", credentials)
        return f"{shown_host}:{taken}"
    except OSError as error:
        raise StartupError(
            f"{setting}: cannot listen on {shown_host}:{port}: {error.strerror}; "
            f"choose another --{setting.replace('_', '-')}"
        ) from error
    except RuntimeError as error:  # of gRPC, whose own look-up knows less: neither `*` nor `127.1`
        raise StartupError(
            f"host, {setting}: gRPC cannot listen on {shown_host}:{port}; choose another --host, "
            "such as 127.0.0.1"
        ) from error
