import os
import random
import subprocess
import sys
import threading

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, onnx_ml_pb2

from ganserve.errors import ModelError
from ganserve.models.loading import load_model
from ganserve.models.model_files import read_model_file
from ganserve.models.onnx_file import (
    _COUNTED,
    _MOST_FIELDS,
    _REPEATED,
    _REPEATING_OPERATORS,
    _TABLE,
    check_onnx_fields,
    check_onnx_file,
)
from ganserve.models.onnx_weights import split_weights
from ganserve.wire_format import delimited
from tests.ganserve.tiny import build_network, publish, write_artifact

REAL_NAMES = {"Training": "TrainingInfoProto"}


@pytest.fixture
def model():
    """A sound model, to be spoilt."""
    return build_network("convolutional", 4, 16, 16, 3, 0, 0)


def check(model):
    check_onnx_file(model.SerializeToString())


def real_message(name):
    return getattr(onnx_ml_pb2, REAL_NAMES.get(name, f"{name}Proto")).DESCRIPTOR


def external_tensor(location="../../../etc/passwd"):
    tensor = TensorProto(name="stolen", data_type=TensorProto.UINT8, dims=[10])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def foreign_node(operator="Anything", domain="org.example"):
    return helper.make_node(operator, ["latents"], ["y"], domain=domain)


def subgraph(node):
    return helper.make_graph([node], "inner", [], [])


class TestTheTable:
    @pytest.mark.parametrize("name", _TABLE)
    def test_has_the_numbers_of_the_standard(self, name):
        real = real_message(name).fields_by_name
        for field, (number, kind) in _TABLE[name].items():
            assert real[field].number == number
            assert real[field].is_repeated == (field in _REPEATED)
            if kind in _TABLE:
                assert real[field].message_type is real_message(kind)

    def test_leaves_no_way_to_a_node_or_a_tensor_out(self):
        def leads_there(message, seen=()):
            if message.full_name in seen:
                return False
            return message.name in ("NodeProto", "TensorProto") or any(
                leads_there(field.message_type, (*seen, message.full_name))
                for field in message.fields
                if field.message_type is not None
            )

        for name in _TABLE:
            for field in real_message(name).fields:
                if field.message_type is not None and leads_there(field.message_type):
                    assert field.name in _TABLE[name], f"{name}.{field.name}"


def test_sound_models_pass(model):
    check(model)
    model.graph.node.append(helper.make_node("Identity", ["latents"], ["y"], domain="ai.onnx"))
    model.graph.node.append(helper.make_node("QGemm", ["latents"], ["y"], domain="com.microsoft"))
    check(model)


EVERY_PLACE = pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda m, node: m.graph.node.append(node), id="the graph"),
        pytest.param(
            lambda m, node: m.graph.node.append(
                helper.make_node(
                    "If", ["c"], ["y"], then_branch=subgraph(node), else_branch=subgraph(node)
                )
            ),
            id="a branch",
        ),
        pytest.param(
            lambda m, node: m.graph.node.append(
                helper.make_node("If", ["c"], ["y"], graphs=[subgraph(node), subgraph(node)])
            ),
            id="a list of graphs",
        ),
        pytest.param(
            lambda m, node: m.functions.append(
                helper.make_function(
                    "", "Mine", ["x"], ["y"], [node], [helper.make_opsetid("", 20)]
                )
            ),
            id="a function",
        ),
        pytest.param(
            lambda m, node: m.training_info.add().algorithm.node.append(node), id="training"
        ),
    ],
)


@EVERY_PLACE
@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        ("Anything", "org.example"),
        ("EPContext", "com.microsoft"),
        ("PyOp", "com.microsoft"),
        ("Relu", "ai.onnx.training"),
        ("QGemm", "com.microsoft.extensions"),
        ("Relu", "AI.ONNX"),
        ("Relu", " "),
    ],
)
def test_operators_of_other_domains_are_found_wherever_they_stand(model, place, operator, domain):
    place(model, foreign_node(operator, domain))
    with pytest.raises(ModelError, match=f"operator '{operator}' of the domain '{domain}'"):
        check(model)


@EVERY_PLACE
@pytest.mark.parametrize("domain", ["", "ai.onnx"])
@pytest.mark.parametrize("operator", ["Loop", "Scan", "SequenceMap"])
def test_operators_that_may_repeat_for_ever_are_found_too(model, place, operator, domain):
    place(model, foreign_node(operator, domain))
    with pytest.raises(ModelError, match=f"operator '{operator}': expected none that repeats"):
        check(model)


def test_no_other_operator_of_the_standard_runs_a_graph_more_than_once():
    graphs = {onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS}
    running = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain in ("", "ai.onnx.ml")
        and any(attribute.type in graphs for attribute in schema.attributes.values())
    }
    assert {name.encode() for name in running} == {b"If", *_REPEATING_OPERATORS}


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda m, tensor: m.graph.initializer.append(tensor), id="weights"),
        pytest.param(
            lambda m, tensor: m.graph.node.append(
                helper.make_node("Constant", [], ["y"], value=tensor)
            ),
            id="a constant",
        ),
        pytest.param(
            lambda m, tensor: m.graph.node.add(op_type="X").attribute.add(tensors=[tensor]),
            id="a list of tensors",
        ),
        pytest.param(
            lambda m, tensor: m.graph.sparse_initializer.add().values.CopyFrom(tensor),
            id="sparse weights",
        ),
        pytest.param(
            lambda m, tensor: m.functions.add().attribute_proto.add(t=tensor),
            id="the default of a function",
        ),
    ],
)
@pytest.mark.parametrize(
    "location", ["weights.bin", "/etc/passwd", "../up", "*/_ORT_MEM_ADDR_/*", ""]
)
def test_data_outside_the_file_is_found_wherever_it_is_named(model, place, location):
    place(model, external_tensor(location))
    with pytest.raises(ModelError, match="tensor 'stolen': expected its values in this file"):
        check(model)


@pytest.mark.parametrize("clear", ["data_location", "external_data"])
def test_half_a_reference_is_enough(model, clear):
    tensor = external_tensor()
    tensor.ClearField(clear)
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match="tensor 'stolen'"):
        check(model)


def test_what_stands_in_a_second_graph_counts_too(model):
    """A field given twice is merged, by ONNX Runtime as well."""
    other = onnx.ModelProto()
    other.graph.node.append(foreign_node())
    with pytest.raises(ModelError, match="operator 'Anything'"):
        check_onnx_file(model.SerializeToString() + other.SerializeToString())


def test_a_file_in_the_runtimes_own_format_is_refused_even_as_a_valid_message(model):
    # An unknown field whose bytes put the mark where ONNX Runtime looks for it.
    disguised = bytes([0xFA, 0x7F, 5, 0]) + b"ORTM" + model.SerializeToString()
    assert disguised[4:8] == b"ORTM"
    assert onnx.ModelProto.FromString(disguised).graph == model.graph
    for look in (check_onnx_fields, check_onnx_file):
        with pytest.raises(ModelError, match="own format"):
            look(disguised)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x08\x0a", bytes(1000)])
def test_other_bytes_are_no_onnx_file(content):
    with pytest.raises(ModelError, match="expected an ONNX file"):
        check_onnx_file(content)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
def test_the_beginning_of_a_file_is_told_as_such(share, model):
    sound = model.SerializeToString()
    cut = sound[: int(len(sound) * share)]
    problem = "^expected an ONNX file, got only the beginning of one: copy it again$"
    with pytest.raises(ModelError, match=problem):
        check_onnx_fields(memoryview(cut))
    with pytest.raises(ModelError, match=problem):
        check_onnx_file(cut)


def test_an_empty_file_is_told_as_such():
    check_onnx_fields(b"")
    with pytest.raises(ModelError, match=r"got an empty one: copy it again"):
        check_onnx_file(b"")


@pytest.mark.parametrize("content", [b"not a model", b"<html>", b"{}\n", bytes(1000)])
def test_a_file_of_another_kind_is_not_taken_for_the_beginning_of_one(content):
    with pytest.raises(ModelError, match="expected an ONNX file, got other bytes"):
        check_onnx_file(content)


def test_no_file_does_worse_than_be_refused(model):
    """Random damage never gets through as anything but a sound model or a ModelError."""
    random_ = random.Random(1)
    sound = model.SerializeToString()
    refused = 0
    for _ in range(500):
        damaged = bytearray(sound)
        for _ in range(random_.randint(1, 8)):
            damaged[random_.randrange(min(400, len(damaged)))] = random_.randrange(256)
        try:
            check_onnx_file(bytes(damaged[: random_.randint(1, len(damaged))]))
        except ModelError:
            refused += 1
    assert refused > 100


def test_a_thousand_levels_are_refused():
    graph = b""
    for _ in range(1000):
        graph = delimited(
            1, delimited(5, delimited(6, graph))
        )  # a node with an attribute with a graph
    with pytest.raises(ModelError, match="expected an ONNX file"):
        check_onnx_file(delimited(7, graph))


class TestNumberOfFields:
    # Each ends in a place for any number of fields, here empty ones.
    PLACES = (
        pytest.param([], 14, id="metadata"),
        pytest.param([7], 1, id="nodes"),
        pytest.param([7], 5, id="weights"),
        pytest.param([7, 5], 1, id="the dimensions of a weight"),
        pytest.param([7, 1], 1, id="a node's inputs"),
        pytest.param([7, 1, 5], 9, id="an attribute's texts"),
        pytest.param([7, 1, 5, 5], 13, id="a constant's places"),
        pytest.param([7, 1, 5, 6], 1, id="a branch's nodes"),
        pytest.param([25], 7, id="a function's nodes"),
        pytest.param([7, 13, 2, 1, 2], 1, id="the dimensions of a value"),
    )

    @staticmethod
    def content(path, number, count):
        content = delimited(number, b"") * count
        for outer in reversed(path):
            content = delimited(outer, content)
        return content

    @pytest.mark.parametrize(("path", "number"), PLACES)
    def test_is_limited_wherever_they_stand(self, path, number):
        most = _MOST_FIELDS - len(path)
        check_onnx_fields(self.content(path, number, most))
        with pytest.raises(ModelError, match=f"at most {_MOST_FIELDS} fields, got more"):
            check_onnx_fields(self.content(path, number, most + 1))

    def test_nothing_in_the_standard_is_left_uncounted(self):
        def is_roomy(message, seen=()):
            return message.full_name not in seen and any(
                field.is_repeated
                or (field.message_type and is_roomy(field.message_type, (*seen, message.full_name)))
                for field in message.fields
            )

        compared = set()

        def compare(kind, message):
            if kind not in compared:
                compared.add(kind)
                expected = {
                    field.number: field.message_type
                    for field in message.fields
                    if field.message_type and is_roomy(field.message_type)
                }
                inside = _COUNTED.get(kind, {})
                assert inside.keys() == expected.keys(), kind
                for number, inner in inside.items():
                    compare(inner, expected[number])

        compare("Model", onnx.ModelProto.DESCRIPTOR)
        assert compared > _COUNTED.keys()

    def test_a_sound_model_is_far_below_the_limit(self, model):
        content = model.SerializeToString()
        check_onnx_fields(content)
        check_onnx_fields(memoryview(content))

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"\x3a\xff", id="a length that does not end"),
            pytest.param(b"\x3a\x05abc", id="longer than the file"),
            pytest.param(b"\x3a\x02\x2a\x05abcde", id="longer than its message"),
            pytest.param(b"\x1b\x1c", id="a group, which would hide what stands behind it"),
            pytest.param(b"\xff" * 30, id="a number without an end"),
        ],
    )
    def test_what_cannot_be_counted_is_refused(self, content):
        with pytest.raises(ModelError, match="expected an ONNX file, got other bytes"):
            check_onnx_fields(content)

    @pytest.mark.parametrize("before", [b"", b"\x1b\x1c"], ids=["plain", "behind a group"])
    def test_ten_million_of_them_take_no_memory(self, before, tmp_path):
        path = publish(tmp_path, "tiny", 1, before + self.content([7], 1, 10_000_000))
        script = (
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from ganserve.errors import ModelError\n"
            "from ganserve.models.loading import load_model\n"
            "import onnxruntime\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB\n"
            "before = peak()\n"
            "try:\n"
            "    load_model(Path(sys.argv[1]), 'cpu', threads=1)\n"
            "except ModelError:\n"
            "    print((peak() - before) // 1024)\n"
        )
        command = [sys.executable, "-c", script, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert int(done.stdout) < 100  # MiB; the file is of 20


class TestLoading:
    def test_a_spoilt_artifact_never_reaches_onnx_runtime(self, tmp_path, monkeypatch):
        model = onnx.load(write_artifact(tmp_path))
        secret = tmp_path / "secret.bin"
        secret.write_bytes(bytes(192))
        (weights,) = [t for t in model.graph.initializer if t.name == "picks"]
        values = numpy_helper.to_array(weights)
        secret.write_bytes(values.tobytes())
        weights.CopyFrom(external_tensor(str(secret)))
        weights.name = "picks"
        path = publish(tmp_path, "tiny", 2, model.SerializeToString())
        # Calling it would be an error.
        monkeypatch.setattr("ganserve.models.loading.open_session", None)
        with pytest.raises(ModelError, match=r"2/model.onnx: tensor 'picks': expected its values"):
            load_model(path, "cpu", threads=1)

    def test_the_graph_that_is_handed_over_is_not_taken_for_another_format(
        self, tmp_path, monkeypatch
    ):
        """The mark stands where a length in front of it takes two bytes, as in no other form."""
        name = delimited(2, b"RTM" + b"n" * (ord("O") - 3))
        content = delimited(7, name + delimited(5, delimited(9, bytes(2**14))))
        file = split_weights(content)
        assert file.graph[4:8] == b"ORTM"
        assert b"ORTM" not in (file.outline[4:8], content[4:8])
        check_onnx_file(file.outline)
        # Calling it would be an error.
        monkeypatch.setattr("ganserve.models.loading.open_session", None)
        with pytest.raises(ModelError, match="got one in ONNX Runtime's own format"):
            load_model(publish(tmp_path, "tiny", 1, content), "cpu", threads=1)

    def test_a_file_that_is_too_large_is_not_read(self, tmp_path):
        path = write_artifact(tmp_path)
        size = path.stat().st_size
        assert load_model(path, "cpu", threads=1, max_bytes=size).spec.latent_dim == 4
        with pytest.raises(ModelError, match=rf"at most {size - 1} bytes, got {size}: see --max-m"):
            load_model(path, "cpu", threads=1, max_bytes=size - 1)

    def test_a_sparse_giant_takes_no_memory(self, tmp_path):
        path = tmp_path / "model.onnx"
        with path.open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(ModelError, match="at most"):
            read_model_file(path, 2**30)

    def test_a_pipe_holds_up_nobody(self, tmp_path):
        path = tmp_path / "model.onnx"
        os.mkfifo(path)
        failures = []

        def read():
            try:
                read_model_file(path, 2**30)
            except ModelError as error:
                failures.append(str(error))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(20)
        assert failures == ["expected a file, got a pipe, a device or the like"]
