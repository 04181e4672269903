"""Hides how servers are called: one call after the other, over gRPC or HTTP, as bytes.

    python benchmarks/peers_client.py TRANSPORT ADDRESS PATH CONTENT_TYPE BODY_FILE CALLS

prints the latency's percentiles as JSON. gRPC messages stay bytes, for they are built and read
elsewhere: what is measured is the server. Over gRPC all have one client, over HTTP another.
"""

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import grpc
from serving_client import percentiles

Transport = Literal["grpc", "http"]
Ask = Callable[[bytes], bytes]
_WARM_UP_CALLS = 20
_DEADLINE_SECONDS = 30.0


@contextlib.contextmanager
def calling(transport: Transport, address: str, path: str, content_type: str) -> Iterator[Ask]:
    """A connection that is kept; the function returns the body or message of a reply."""
    if transport == "grpc":
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(address, options=options) as channel:
            call: Callable[..., bytes] = channel.unary_unary(path)
            yield lambda message: call(message, timeout=_DEADLINE_SECONDS)
        return
    connection = http.client.HTTPConnection(address, timeout=_DEADLINE_SECONDS)

    def post(body: bytes) -> bytes:
        connection.request("POST", path, body, {"Content-Type": content_type})
        reply = connection.getresponse()
        content = reply.read()
        if reply.status != http.HTTPStatus.OK:
            raise ConnectionError(f"status {reply.status}: {content[:200]!r}")
        return content

    with contextlib.closing(connection):
        yield post


def main() -> None:
    """Measure one call after the other."""
    transport: Transport = "grpc" if sys.argv[1] == "grpc" else "http"
    address, path, content_type = sys.argv[2:5]
    body, calls = Path(sys.argv[5]).read_bytes(), int(sys.argv[6])
    times = []
    with calling(transport, address, path, content_type) as ask:
        for number in range(calls + _WARM_UP_CALLS):
            started = time.perf_counter()
            ask(body)
            if number >= _WARM_UP_CALLS:
                times.append(time.perf_counter() - started)
    print(json.dumps(percentiles(times)))


if __name__ == "__main__":
    main()
