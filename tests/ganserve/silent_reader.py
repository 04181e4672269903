"""A client of a connection of its own that asks and never reads a reply, over HTTP/2 itself."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field that is in no table, RFC 7541; both shorter than 127 bytes."""
    texts = (name.encode(), value.encode("latin-1"))
    return b"\0" + b"".join(bytes([len(text)]) + text for text in texts)


class SilentReader:
    """Has a window of 0 bytes, so no reply can leave the server; pings are answered."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._next_stream = 1

    def ask(self, path: str, message: bytes, *, missing: int = 0, **metadata: str) -> None:
        """Call a method of one message, of which some bytes may be `missing`; wait for nothing."""
        names = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "server"}
        names |= {"te": "trailers", "content-type": "application/grpc"}
        names |= metadata
        headers = b"".join(_literal(name, value) for name, value in names.items())
        body = b"\0" + struct.pack(">I", len(message) + missing) + message
        self._writer.write(frame(_HEADERS, _END_HEADERS, self._next_stream, headers))
        end = 0 if missing else _END_STREAM
        self._writer.write(frame(_DATA, end, self._next_stream, body))
        self._next_stream += 2

    async def keep_alive(self, reader: asyncio.StreamReader) -> None:
        """Answer what the connection itself asks for."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags = head[3], head[4]
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    answer = payload if kind == _PING else b""
                    self._writer.write(frame(kind, _ACK, 0, answer))


@contextlib.asynccontextmanager
async def silent_reader(address: str, own_host: str = "127.0.0.1") -> AsyncIterator[SilentReader]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(own_host, 0))
    client = SilentReader(writer)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    writer.write(frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)))
    task = asyncio.create_task(client.keep_alive(reader))
    try:
        yield client
    finally:
        writer.close()
        await task
