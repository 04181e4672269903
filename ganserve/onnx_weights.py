"""Hides how weights reach ONNX Runtime uncopied: a file is parted into its graph and their places.

Where protobuf reads a whole file, and ONNX Runtime again, weights are copied under Python's lock,
and every call that is under way waits for it. So long weights are cut out of the graph and handed
over as places within the bytes of the file.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ganserve.wire_format import BYTES, VARINT, delimited, tag, varint

# The numbers of the fields in onnx.proto, and the value of TensorProto.DataLocation.
_GRAPH, _INITIALIZER, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 7, 5, 9, 13, 14
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_EXTERNAL = 1
_FIXED_SIZES = {1: 8, 5: 4}  # in bytes, by wire type

WEIGHTS_NAME = "weights"  # under which the graph asks for the file's bytes
_SHORTEST = 1024  # bytes; ONNX Runtime looks into shorter ones while it reads the graph
_MOST_FIELDS = 100_000  # more are not worth their time in Python


class PartedFile(NamedTuple):
    """An ONNX file and what is left of it without its long weights.

    A file that cannot be parted, for whatever reason, is all three.
    """

    content: bytes | memoryview
    outline: bytes  # the weights left out, and nothing in their place
    graph: bytes  # the weights replaced by their places in `content`

    @property
    def is_parted(self) -> bool:
        """Whether ONNX Runtime needs the content beside the graph."""
        return self.graph is not self.content


class _Field(NamedTuple):
    """Where a field stands in a file."""

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


class _Unpartable(Exception):
    """The file is damaged or of an unusual form; others will say so better."""


def part(content: bytes | memoryview) -> PartedFile:
    """Part an ONNX file. Never fails: what is no such file is left whole."""
    try:
        return _part(content)
    except (_Unpartable, IndexError):
        whole = bytes(content)
        return PartedFile(whole, whole, whole)


def _part(content: bytes | memoryview) -> PartedFile:
    reader = _Reader(content)
    outline, graph = [], []
    for field in reader.read_fields(0, len(content)):
        if field.is_message(_GRAPH):
            inner = [_part_graph_field(reader, f) for f in reader.read_inside(field)]
            outline.append(delimited(_GRAPH, b"".join(without for without, _ in inner)))
            graph.append(delimited(_GRAPH, b"".join(placed for _, placed in inner)))
        else:
            outline.append(reader.copy(field))
            graph.append(outline[-1])
    return PartedFile(content, b"".join(outline), b"".join(graph))


def _part_graph_field(reader: "_Reader", field: _Field) -> tuple[bytes, bytes]:
    """A field of the graph without its weights, and with their place; as it is, if it has none."""
    if field.is_message(_INITIALIZER):
        inner = [*reader.read_inside(field)]
        weights = [f for f in inner if f.is_message(_RAW_DATA)]
        if len(weights) == 1 and weights[0].length >= _SHORTEST:
            rest = b"".join(reader.copy(f) for f in inner if f is not weights[0])
            place = _place(weights[0].body, weights[0].length)
            return delimited(_INITIALIZER, rest), delimited(_INITIALIZER, rest + place)
    whole = reader.copy(field)
    return whole, whole


def _place(offset: int, length: int) -> bytes:
    """The fields of a tensor whose values stand elsewhere."""
    entries = {"location": WEIGHTS_NAME, "offset": str(offset), "length": str(length)}
    fields = [
        delimited(_EXTERNAL_DATA, delimited(_KEY, key.encode()) + delimited(_VALUE, value.encode()))
        for key, value in entries.items()
    ]
    return b"".join([*fields, tag(_DATA_LOCATION, VARINT), varint(_EXTERNAL)])


class _Reader:
    """Finds the fields of messages within a file, up to a number of them all told."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = content
        self._left = _MOST_FIELDS

    def copy(self, field: _Field) -> bytes:
        """The field as it stands in the file."""
        return bytes(self._content[field.begin : field.end])

    def read_inside(self, field: _Field) -> Iterator[_Field]:
        """The fields of a field that is a message."""
        return self.read_fields(field.body, field.end)

    def read_fields(self, begin: int, end: int) -> Iterator[_Field]:
        """The fields of a message, which must fill it."""
        while begin < end:
            self._left -= 1
            key, body = self._read_varint(begin)
            wire_type = key & 7
            if wire_type == BYTES:
                length, body = self._read_varint(body)
                after = body + length
            elif wire_type == VARINT:
                _, after = self._read_varint(body)
            elif wire_type in _FIXED_SIZES:
                after = body + _FIXED_SIZES[wire_type]
            else:
                raise _Unpartable
            if after > end or self._left < 0:
                raise _Unpartable
            yield _Field(key >> 3, wire_type, begin, body, after)
            begin = after

    def _read_varint(self, position: int) -> tuple[int, int]:
        """A number of protobuf's form, and where it ends."""
        value = 0
        for shift in range(0, 64, 7):
            byte = self._content[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, position
        raise _Unpartable
