"""What an ONNX file may hold: a file from elsewhere is checked before it is run.

ONNX Runtime would follow paths that stand in a file and run operators of every domain it knows, one
of which (`EPContext`) opens files and runs machine code. Some of the standard's repeat others for
ever. So a file is read here first, with the same protobuf library, as far as such things can stand
in it.
"""

from collections.abc import Iterator
from functools import cache

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from ganserve import wire_format
from ganserve.errors import ModelError

# The operators of the ONNX standard: https://onnx.ai/onnx/operators/
_STANDARD_DOMAINS = frozenset({b"", b"ai.onnx", b"ai.onnx.ml"})
# What `onnxruntime.quantization` writes into a static int8 model beyond the standard's operators.
_RUNTIME_DOMAIN = b"com.microsoft"
_RUNTIME_OPERATORS = frozenset(
    {
        *(b"QuantizeLinear", b"DequantizeLinear", b"QGemm", b"QLinearAdd", b"QLinearMul"),
        *(b"QLinearConcat", b"QLinearWhere", b"QLinearLeakyRelu", b"QLinearSigmoid"),
        *(b"QLinearSoftmax", b"QLinearAveragePool", b"QLinearGlobalAveragePool"),
    }
)
# Of the standard too, but how often they repeat is theirs to say, without bound: a call would never
# end. Whatever else is in the standard ends with its inputs. No export writes them.
_REPEATING_OPERATORS = frozenset({b"Loop", b"Scan", b"SequenceMap"})
_FIRST_TAG = wire_format.tag(1, wire_format.VARINT)  # of `ir_version`, as all exports begin
_FLATBUFFER_MARK = b"ORTM"  # ONNX Runtime's own format, which it tells by these bytes

# The fields of onnx.proto under which nodes and tensors may stand, at any depth. The rest of a
# file, weights above all, is passed over as unknown fields.
_TABLE = {
    "Model": {
        "graph": (7, "Graph"),
        "training_info": (20, "Training"),
        "functions": (25, "Function"),
    },
    "Training": {"initialization": (1, "Graph"), "algorithm": (2, "Graph")},
    "Graph": {
        "node": (1, "Node"),
        "initializer": (5, "Tensor"),
        "sparse_initializer": (15, "SparseTensor"),
    },
    "Function": {"node": (7, "Node"), "attribute_proto": (11, "Attribute")},
    "Node": {"op_type": (4, "bytes"), "attribute": (5, "Attribute"), "domain": (7, "bytes")},
    "Attribute": {
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "tensors": (10, "Tensor"),
        "graphs": (11, "Graph"),
        "sparse_tensor": (22, "SparseTensor"),
        "sparse_tensors": (23, "SparseTensor"),
    },
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Tensor": {
        "name": (8, "bytes"),
        "external_data": (13, "bytes"),
        "data_location": (14, "int32"),
    },
}
_SCALARS = {"bytes", "int32"}
_REPEATED = {
    *("training_info", "functions", "node", "initializer", "sparse_initializer", "attribute"),
    *("attribute_proto", "tensors", "graphs", "sparse_tensors", "external_data"),
}

# What else of onnx.proto can hold any number of fields. It is not looked into, but counted.
_FURTHER = {
    "Model": {26: "Device"},
    "Graph": {11: "Value", 12: "Value", 13: "Value", 14: "Annotation"},
    "Function": {12: "Value"},
    "Node": {10: "NodeDevice"},
    "Attribute": {14: "Type", 15: "Type"},
    "NodeDevice": {2: "Sharding"},
    "Sharding": {3: "IntList", 4: "ShardedDim"},
    "Value": {2: "Type"},
    "Type": {1: "TensorType", 4: "Sequence", 5: "Map", 8: "TensorType", 9: "Sequence"},
    "TensorType": {2: "Shape"},
    "Sequence": {1: "Type"},
    "Map": {2: "Type"},
}
_COUNTED: dict[str, dict[int, str]] = {
    name: {number: kind for number, kind in _TABLE.get(name, {}).values() if kind not in _SCALARS}
    | _FURTHER.get(name, {})
    for name in {**_TABLE, **_FURTHER}
}
_MOST_FIELDS = 100_000  # an export has some 2,000


def check_onnx_fields(content: bytes | memoryview) -> None:
    """Make sure that a file is worth being read: a field of two bytes may take hundreds of memory.

    Counted are nodes, weights and all of their fields. The values of a weight are one.

    Raises:
        ModelError: it has too many fields, or is no ONNX file.
    """
    check_format(content)
    try:
        wire_format.check_fields(
            content, "Model", _MOST_FIELDS, lambda kind: _COUNTED.get(kind, {})
        )
    except wire_format.TooManyFields as error:
        raise ModelError(f"expected a graph of at most {_MOST_FIELDS} fields, got more") from error
    except wire_format.Malformed as error:
        raise ModelError(f"expected an ONNX file, got {_what_came(content)}") from error


def check_onnx_file(content: bytes) -> None:
    """Make sure that a file holds all of its weights and none but known operators.

    It is parsed as a whole, so `check_onnx_fields` comes first.

    Raises:
        ModelError: it does not, or is no ONNX file.
    """
    check_format(content)
    try:
        model = _model_class().FromString(content)
    except DecodeError as error:
        raise ModelError(f"expected an ONNX file, got {_what_came(content)}") from error
    if not model.HasField("graph"):
        came = "one without a graph" if content else "an empty one: copy it again"
        raise ModelError(f"expected an ONNX file, got {came}")
    for message in _walk(model):
        kind = message.DESCRIPTOR.name
        if kind == "Node":
            _check_operator(message.domain, message.op_type)  # type: ignore[attr-defined]
        elif kind == "Tensor" and (message.external_data or message.data_location):  # type: ignore[attr-defined]
            name = _show(message.name)  # type: ignore[attr-defined]
            raise ModelError(
                f"tensor {name}: expected its values in this file, got a reference to other data: "
                "save the model as one file"
            )


def check_format(content: bytes | memoryview) -> None:
    """Make sure that ONNX Runtime will not take these bytes for a file in its own format.

    Raises:
        ModelError: it would.
    """
    if content[4:8] == _FLATBUFFER_MARK:
        raise ModelError("expected an ONNX file, got one in ONNX Runtime's own format")


def _what_came(content: bytes | memoryview) -> str:
    """What a file is that cannot be read: a copy that broke off ends within a field."""
    try:
        for _ in wire_format.read_fields(content, 0, len(content)):
            pass
    except wire_format.EndsEarly:
        if content[:1] == _FIRST_TAG:
            return "only the beginning of one: copy it again"
    except wire_format.Malformed:
        pass
    return "other bytes"


def _check_operator(domain: bytes, operator: bytes) -> None:
    if domain in _STANDARD_DOMAINS:
        if operator in _REPEATING_OPERATORS:
            raise ModelError(
                f"operator {_show(operator)}: expected none that repeats others, which may never "
                "end: unroll it"
            )
        return
    if domain == _RUNTIME_DOMAIN and operator in _RUNTIME_OPERATORS:
        return
    raise ModelError(
        f"operator {_show(operator)} of the domain {_show(domain)}: expected one of the ONNX "
        "standard, or of those that ONNX Runtime's static quantization writes"
    )


def _walk(message: Message) -> Iterator[Message]:
    """A message and all within it. No deeper than protobuf reads: 100 levels."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from _walk(child)


def _show(name: bytes) -> str:
    return repr(name[:80].decode(errors="replace"))


@cache
def _model_class() -> type[Message]:
    """The class of ModelProto, cut down to the table."""
    file = descriptor_pb2.FileDescriptorProto(name="onnx_file.proto", package="onnx_file")
    file.syntax = "proto2"  # as in the standard: the last of two values counts, enums are closed
    for name, fields in _TABLE.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if field_name in _REPEATED else field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = field.TYPE_BYTES if kind == "bytes" else field.TYPE_INT32
            else:
                field.type, field.type_name = field.TYPE_MESSAGE, f".onnx_file.{kind}"
    pool = descriptor_pool.DescriptorPool()  # of its own: the process may know the real onnx.proto
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx_file.Model"))
