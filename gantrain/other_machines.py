"""Hides how a machine reaches others: by which interface, and how it notices that it does not."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil

_ANY_PORT = 9  # nothing is sent to it


def interface_towards(host: str) -> str | None:
    """The interface that leads to a host, such as `eth0`; None where it cannot be told."""
    own = {*_addresses_towards(host)}
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address in own for each in addresses):
            return name
    return None


def address_towards(host: str) -> str | None:
    """This machine's address on the way to a host; None where no way leads there."""
    return next(_addresses_towards(host), None)


def _addresses_towards(host: str) -> Iterator[str]:
    """For each address of the host, as the system routes it: to connect UDP sends nothing."""
    for family, kind, _, _, where in socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(where)
                yield str(probe.getsockname()[0])
        except OSError:  # such as an IPv6 address where there is no IPv6
            continue


def end_silent_connections(seconds: int) -> None:
    """Have the system end this process' connections on which nothing answers for so long.

    A machine that vanishes closes no connection. The other side's system answers, not its program,
    which may be busy or stopped. Of the connections that there are, on Linux alone, and as far as
    the system allows it: whoever waits has a timeout of its own, though a longer one.
    """
    if sys.platform != "linux":
        return
    options = (
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(seconds // 3, 1)),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(seconds // 9, 1)),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    )
    try:
        connections = psutil.Process().net_connections("tcp")
    except psutil.Error:
        return
    for connection in connections:
        if connection.status != psutil.CONN_ESTABLISHED:
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as same:
            for option in options:
                same.setsockopt(*option)
