"""Hides how protobuf writes what we write ourselves, where a message would be copied to no end."""

VARINT, BYTES = 0, 2  # wire types; `BYTES` is that of texts and messages too


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first, 0x80 for "more"."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def tag(number: int, wire_type: int) -> bytes:
    """What stands before a field's value."""
    return varint(number << 3 | wire_type)


def delimited(number: int, body: bytes) -> bytes:
    """A field of bytes, a text or a message."""
    return tag(number, BYTES) + varint(len(body)) + body
