"""Protobuf's wire format, for where making messages of it would copy or cost too much."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

VARINT, BYTES = 0, 2  # wire types; `BYTES` is that of texts and messages too
_FIXED_SIZES = {1: 8, 5: 4}  # in bytes, by wire type


class Malformed(Exception):
    """Not of protobuf's form, or of one that nothing writes any more, as groups are."""


class EndsEarly(Malformed):
    """The bytes end within a field."""


class TooManyFields(Malformed):
    """More than may be looked at."""


class Field(NamedTuple):
    """Where a field stands."""

    number: int
    wire_type: int
    begin: int
    body: int  # where its content begins
    end: int

    @property
    def length(self) -> int:
        """The length of its content in bytes."""
        return self.end - self.body

    def is_message(self, number: int) -> bool:
        """Whether it has this number and holds a message or bytes."""
        return self.number == number and self.wire_type == BYTES


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


def read_fields(content: bytes | memoryview, begin: int, end: int) -> Iterator[Field]:
    """The fields of a message, which must fill it; what is in them is left alone.

    Raises:
        EndsEarly: the last field is not whole.
        Malformed: they do not.
    """
    while begin < end:
        key, body = _read_varint(content, begin, end)
        wire_type = key & 7
        if wire_type == BYTES:
            length, body = _read_varint(content, body, end)
            after = body + length
        elif wire_type == VARINT:
            _, after = _read_varint(content, body, end)
        elif wire_type in _FIXED_SIZES:
            after = body + _FIXED_SIZES[wire_type]
        else:
            raise Malformed
        if after > end:
            raise EndsEarly
        yield Field(key >> 3, wire_type, begin, body, after)
        begin = after


@cache
def message_fields(kind: Any) -> Mapping[int, Any]:  # noqa: ANN401 - a Descriptor
    """The fields of a kind of message that are messages themselves, by their numbers."""
    return {field.number: field.message_type for field in kind.fields if field.message_type}


def check_fields(
    content: bytes | memoryview,
    kind: Any,  # noqa: ANN401 - whatever `inside` takes
    most: int,
    inside: Callable[[Any], Mapping[int, Any]] = message_fields,
) -> None:
    """Refuse a message with more than so many fields, those within its fields included.

    Parsing it takes time and memory for each field, even one of two bytes.

    Args:
        content: the message.
        kind: its descriptor, or another name for it that `inside` knows.
        most: how many fields it may have.
        inside: the fields of a kind that are looked into, and of which kind they are.

    Raises:
        TooManyFields: it has more.
        Malformed: it is no message.
    """
    parts = [(kind, 0, len(content))]
    while parts:
        part, begin, end = parts.pop()
        kinds = inside(part)
        for field in read_fields(content, begin, end):
            most -= 1
            if most < 0:
                raise TooManyFields
            if field.wire_type == BYTES and field.number in kinds:
                parts.append((kinds[field.number], field.body, field.end))


def _read_varint(content: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """A number of protobuf's form, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if position == end:
            raise EndsEarly
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Malformed
