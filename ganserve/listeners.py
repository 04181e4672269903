"""The addresses that a host stands for, on machines with and without IPv6."""

import contextlib
import errno
import socket
from typing import Any

_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - a server in a container is called from outside it
_NO_IPV6 = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}

Address = tuple[Any, ...]  # of a family: host, port and, of IPv6, more


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Take a port, a free one for 0, of all addresses that a host stands for, as gRPC does.

    `0.0.0.0` and `::` both stand for every address of the machine, of IPv6 too where it has that.

    Raises:
        OSError: the port cannot be had; `socket.gaierror` where no such host is known.
    """
    if host in _WILDCARDS:
        return [_open_everywhere(port)]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # Python encodes it, and no name has a part like that
        raise socket.gaierror(socket.EAI_NONAME, "a part of it is empty or too long") from error
    # Some come more than once.
    addresses: dict[Address, int] = {address: family for family, *_, address in found}
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        missing = OSError(errno.EADDRNOTAVAIL, "no such address")
        for (name, wanted, *rest), family in addresses.items():
            # A free one that was found for the first address is that of the others too.
            taken = wanted or (listeners[0].getsockname()[1] if listeners else 0)
            try:
                listener = socket.create_server((name, taken, *rest), family=family)
            except OSError as error:
                missing = error  # such as ::1 where IPv6 is switched off
                if error.errno not in _NO_IPV6:
                    raise
            else:
                listeners.append(stack.enter_context(listener))
        if not listeners:
            raise missing
        stack.pop_all()
        return listeners


def _open_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    return socket.create_server(("0.0.0.0", port))  # noqa: S104 - as above
