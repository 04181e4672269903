"""Addresses of servers, as gRPC takes them: HOST:PORT, or one with a scheme of its own."""

# What gRPC resolves in ways of its own; it says itself what is wrong behind them.
_SCHEMES = ("ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:", "google-c2p:")
_DNS = "dns:"


def check_address(address: str) -> str:
    """Refuse what names no server and port: gRPC would call another port, such as 443.

    Only where `dns:` is written out may the port be left out, and 443 is meant.

    Raises:
        ValueError: so.
    """
    scheme = address.lower()
    if scheme.startswith(_SCHEMES):
        return address
    place = address
    if scheme.startswith(_DNS):  # dns:NAME, dns:///NAME or dns://AUTHORITY/NAME
        place = address[len(_DNS) :].rpartition("/")[2]
        if place and (":" not in place or place.endswith("]")):
            return address
    host, _, port = place.rpartition(":")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    if not host or not (port.isascii() and port.isdecimal()) or (":" in host and not is_ipv6):
        raise ValueError(f"expected HOST:PORT such as localhost:50051, got {address!r}")
    if not 1 <= int(port[:10]) <= 65535:
        raise ValueError(f"expected a port from 1 to 65535, got {address!r}")
    return address
