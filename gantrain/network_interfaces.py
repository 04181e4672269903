"""Hides by which of its network interfaces a machine reaches another."""

import socket
from collections.abc import Iterator

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
