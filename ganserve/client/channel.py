"""What gRPC does for a client by itself: further attempts, and several servers in turn."""

import json
from typing import Any

from ganserve.v1 import image_generation_pb2 as pb

# gRPC repeats a call that the server could not take, for example while it starts or drains, or
# that was under way when the server was lost: soon, for the sake of another replica, and then over
# 8 s, which a restart may need. It varies each pause at random, stops at the deadline and allows 5
# attempts at most. CANCELLED is what gRPC's servers answer calls with that arrive in the moment of
# their end; a call that its caller cancels is not repeated. RESOURCE_EXHAUSTED is not for gRPC to
# repeat, which cannot tell a server that is busy from a request that is too large: see
# `patience`.
_RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "backoffMultiplier": 3,
    "maxBackoff": "6s",
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
CONNECTION_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A server that comes back is found within a second, not after minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # How long connecting may take, whatever its name says. A handshake is three or four times the
    # way to the server and back, and a busy server's is late; but nothing comes of an address
    # behind which there is no machine any more.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # A machine that vanishes closes no connection: calls would wait there, and new ones be sent
    # there, for a quarter of an hour. During a call a silent server is asked for a sign of life,
    # no more often than servers allow. The second ends connections, too, on which what was sent is
    # not confirmed for as long (TCP_USER_TIMEOUT).
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Where gRPC has just asked for reasons of its own, that must be answered as soon; and it asks
    # more than twice in a long call without data.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVICE = pb.DESCRIPTOR.services_by_name["ImageGenerationService"].full_name


def make_channel_options(*, retries: bool, round_robin: bool) -> list[tuple[str, int | str]]:
    """Options of a channel.

    Args:
        retries: Whether failed calls are made again where that may help.
        round_robin: Whether calls go to all servers behind the address in turn, those that say
            they do not serve, such as draining ones, left out.
    """
    config: dict[str, Any] = {}
    if retries:
        config["methodConfig"] = [{"name": [{"service": _SERVICE}], "retryPolicy": _RETRY_POLICY}]
    if round_robin:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": ""}
    return [
        ("grpc.service_config", json.dumps(config)),
        # A call can be repeated only while its whole request is still held.
        ("grpc.per_rpc_retry_buffer_size", 16 * 1024 * 1024),
        # The caller decides how much it asks for.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        *CONNECTION_OPTIONS,
    ]
