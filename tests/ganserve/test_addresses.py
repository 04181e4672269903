import pytest

from ganserve.addresses import check_address
from ganserve.client import AsyncClient, Client


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:50051", "10.0.0.1:1", "[::1]:65535", "[fe80::1%25eth0]:50051", "a_b.c-d:80"),
        *("dns:///faces.default.svc:50051", "dns:faces:50051", "dns://10.0.0.1:53/faces:50051"),
        *("dns:///[::1]:50051", "dns:///faces", "dns:///[::1]", "DNS:///faces:50051"),
        *("ipv4:10.0.0.1:1,10.0.0.2:1", "ipv6:[::1]:1,[::2]:1", "xds:///faces"),
        *("unix:/run/ganserve.sock", "unix:///run/ganserve.sock", "unix-abstract:ganserve"),
    ],
)
def test_what_grpc_understands_is_an_address(address):
    assert check_address(address) == address


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        *((text, "expected HOST:PORT such as") for text in ("", "foo", "localhost:", ":50051")),
        *((text, "expected HOST:PORT such as") for text in ("::1", "a:b:1", "http://h:1", "h:x")),
        *((text, "expected HOST:PORT such as") for text in ("dns:", "dns:///", "h:-1", "h:\u0661")),
        *((text, "expected a port from 1 to") for text in ("h:0", "h:65536", "localhost:99999")),
        *((text, "expected a port from 1 to") for text in ("dns:///h:99999", "h:" + "9" * 10_000)),
    ],
)
def test_what_would_call_another_port_or_none_is_refused(address, problem):
    with pytest.raises(ValueError, match=problem):
        check_address(address)


@pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["threads", "asyncio"])
@pytest.mark.parametrize("address", ["", "foo", "localhost:99999"])
async def test_clients_name_the_argument(kind, address):
    with pytest.raises(ValueError, match=r"^address: expected .*, got "):
        kind(address)
