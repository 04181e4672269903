"""Weights reach ONNX Runtime uncopied: a file is split into its graph and their places in it.

Where protobuf reads a whole file, and ONNX Runtime again, weights are copied under Python's lock,
and every call that is under way waits for it. So long weights are cut out of the graph and handed
over as places within the bytes of the file.
"""

from typing import NamedTuple

from ganserve.wire_format import VARINT, Field, Malformed, delimited, read_fields, tag, varint

# The numbers of the fields in onnx.proto, and the value of TensorProto.DataLocation.
_GRAPH, _INITIALIZER, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 7, 5, 9, 13, 14
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_EXTERNAL = 1

WEIGHTS_NAME = "weights"  # under which the graph asks for the file's bytes
_SHORTEST = 1024  # bytes; ONNX Runtime looks into shorter ones while it reads the graph


class SplitFile(NamedTuple):
    """An ONNX file and what is left of it without its long weights.

    A file that cannot be split, for whatever reason, is all three.
    """

    content: bytes | memoryview
    outline: bytes  # the weights left out, and nothing in their place
    graph: bytes  # the weights replaced by their places in `content`

    @property
    def is_split(self) -> bool:
        """Whether ONNX Runtime needs the content beside the graph."""
        return self.graph is not self.content


def split_weights(content: bytes | memoryview) -> SplitFile:
    """Take the long weights out of an ONNX file. Never fails: other files are returned unchanged.

    It takes Python some time and memory for each field of the graph and its weights.
    """
    try:
        return _split(content)
    except Malformed:  # others will say so better
        whole = bytes(content)
        return SplitFile(whole, whole, whole)


def _split(content: bytes | memoryview) -> SplitFile:
    outline, graph = [], []
    for field in read_fields(content, 0, len(content)):
        if field.is_message(_GRAPH):
            fields = read_fields(content, field.body, field.end)
            inner = [_split_graph_field(content, f) for f in fields]
            outline.append(delimited(_GRAPH, b"".join(without for without, _ in inner)))
            graph.append(delimited(_GRAPH, b"".join(placed for _, placed in inner)))
        else:
            outline.append(_copy(content, field))
            graph.append(outline[-1])
    return SplitFile(content, b"".join(outline), b"".join(graph))


def _split_graph_field(content: bytes | memoryview, field: Field) -> tuple[bytes, bytes]:
    """A field of the graph without its weights, and with their place; as it is, if it has none."""
    if field.is_message(_INITIALIZER):
        inner = [*read_fields(content, field.body, field.end)]
        weights = [f for f in inner if f.is_message(_RAW_DATA)]
        if len(weights) == 1 and weights[0].length >= _SHORTEST:
            rest = b"".join(_copy(content, f) for f in inner if f is not weights[0])
            place = _place(weights[0].body, weights[0].length)
            return delimited(_INITIALIZER, rest), delimited(_INITIALIZER, rest + place)
    whole = _copy(content, field)
    return whole, whole


def _copy(content: bytes | memoryview, field: Field) -> bytes:
    """The field as it stands in the file."""
    return bytes(content[field.begin : field.end])


def _place(offset: int, length: int) -> bytes:
    """The fields of a tensor whose values stand elsewhere."""
    entries = {"location": WEIGHTS_NAME, "offset": str(offset), "length": str(length)}
    fields = [
        delimited(_EXTERNAL_DATA, delimited(_KEY, key.encode()) + delimited(_VALUE, value.encode()))
        for key, value in entries.items()
    ]
    return b"".join([*fields, tag(_DATA_LOCATION, VARINT), varint(_EXTERNAL)])
