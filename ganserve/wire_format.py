"""Hides how protobuf writes messages, where they are written, or only counted, by ourselves."""

from functools import cache
from typing import Any

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


def check_fields(content: bytes, kind: Any, most: int) -> None:  # noqa: ANN401 - a Descriptor
    """Let through a message of a kind with at most so many fields, those within its fields too.

    Parsing takes time for each field, be it of two bytes.

    Raises:
        ValueError: it has more, or is no message.
    """
    parts = [(0, len(content), kind)]
    while parts:
        position, end, part = parts.pop()
        messages = _message_fields(part)
        while position < end:
            most -= 1
            if most < 0:
                raise ValueError("too many fields")
            key, position = _read_varint(content, position)
            begin = position
            match key & 7:
                case 0:
                    _, position = _read_varint(content, position)
                case 1:
                    position += 8
                case 5:
                    position += 4
                case 2:
                    length, begin = _read_varint(content, position)
                    position = begin + length
                    if (message := messages.get(key >> 3)) is not None:
                        parts.append((begin, min(position, end), message))
                case other:
                    raise ValueError(f"unexpected wire type {other}")


@cache
def _message_fields(kind: Any) -> dict[int, Any]:  # noqa: ANN401
    """The fields of a kind of message that are messages themselves, by their numbers."""
    return {field.number: field.message_type for field in kind.fields if field.message_type}


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    """A number and what comes after it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number does not end")
