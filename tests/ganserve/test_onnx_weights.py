import random

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ganserve.errors import ModelError
from ganserve.latents import draw_latents
from ganserve.models.loading import load_model
from ganserve.models.onnx_file import check_onnx_file
from ganserve.models.onnx_weights import _SHORTEST, WEIGHTS_NAME, split_weights
from ganserve.models.runtime import open_session
from tests.ganserve.tiny import build_network, publish, write_artifact

SEEDS = np.arange(3, dtype=np.uint64)


@pytest.fixture
def model():
    return build_network("convolutional", 4, 16, 16, 3, 0, 0)


def add_weights(model, name, shape, seed=0, **extra):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    tensor = numpy_helper.from_array(values, name)
    for field, value in extra.items():
        setattr(tensor, field, value)
    model.graph.initializer.append(tensor)
    return tensor


def put_back(file):
    """The model that a split file stands for, as the onnx package reads it."""
    model = onnx.load_from_string(file.graph)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place.pop("location") == WEIGHTS_NAME
            begin, length = int(place.pop("offset")), int(place.pop("length"))
            assert not place
            tensor.raw_data = file.content[begin : begin + length]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model


class TestParting:
    def test_long_weights_stand_in_neither_part_and_nothing_else_is_lost(self, model):
        for number in range(40):
            add_weights(model, f"long-{number}", (3, number + 1, 200), number)
            add_weights(model, f"short-{number}", (3, number % 9), number, doc_string="kept")
        whole = model.SerializeToString()
        file = split_weights(whole)
        assert put_back(file) == model
        assert len(file.outline) < len(file.graph) < len(whole) / 10
        assert file.is_split

    def test_the_outline_has_nothing_in_the_place_of_weights(self, model):
        add_weights(model, "long", (400,))
        (before,) = [t for t in model.graph.initializer if t.name == "long"]
        (left,) = [
            tensor
            for tensor in onnx.load_from_string(
                split_weights(model.SerializeToString()).outline
            ).graph.initializer
            if tensor.name == "long"
        ]
        before.ClearField("raw_data")
        assert left == before

    @pytest.mark.parametrize("length", [_SHORTEST - 4, _SHORTEST])
    def test_short_ones_stay(self, model, length):
        add_weights(model, "weights", (length // 4,))
        graph = onnx.load_from_string(split_weights(model.SerializeToString()).graph).graph
        (left,) = [tensor for tensor in graph.initializer if tensor.name == "weights"]
        assert bool(left.external_data) == (length == _SHORTEST)

    def test_what_is_referred_to_in_the_file_itself_is_seen_by_the_check(self, model):
        tensor = add_weights(model, "stolen", (400,), data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=WEIGHTS_NAME)
        del model.graph.initializer[-1]
        model.graph.initializer.append(tensor)
        with pytest.raises(ModelError, match="tensor 'stolen': expected its values in this file"):
            check_onnx_file(split_weights(model.SerializeToString()).outline)

    def test_a_graph_in_two_pieces_is_put_together_as_protobuf_does(self, model):
        whole = model.SerializeToString()
        add_weights(model, "long", (400,))
        second = helper.make_model(helper.make_graph([], "", [], []))
        second.ClearField("ir_version")
        second.ClearField("opset_import")
        add_weights(second, "long", (400,))
        second.graph.ClearField("name")
        file = split_weights(whole + second.SerializeToString())
        assert file.is_split
        assert put_back(file) == model

    def test_a_tensor_with_two_values_is_left_as_it_is(self):
        tensor = TensorProto(name="twice", data_type=1, dims=[400], raw_data=bytes(1600))
        twice = tensor.SerializeToString() + TensorProto(raw_data=b"\1" * 1600).SerializeToString()
        content = field(7, field(5, twice))
        assert split_weights(content).graph == content

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"not a model", id="text"),
            pytest.param(b"\x3a\xff", id="a length that does not end"),
            pytest.param(b"\x3a\x05abc", id="longer than the file"),
            pytest.param(b"\x3a\x02\x2a\x05abcde", id="longer than its message"),
            pytest.param(b"\x3b\x3c", id="a group"),
            pytest.param(b"\xff" * 30, id="a number without an end"),
        ],
    )
    def test_anything_else_is_left_whole(self, content):
        file = split_weights(content)
        assert file.outline == file.graph == content

    def test_damaged_files_are_read_as_before_or_refused(self, model):
        add_weights(model, "long", (400,))
        sound = model.SerializeToString()
        random_ = random.Random(0)
        split = 0
        for _ in range(2000):
            damaged = bytearray(sound)
            for _ in range(random_.randint(1, 4)):
                damaged[random_.randrange(len(damaged))] = random_.randrange(256)
            content = bytes(damaged[: random_.randint(len(damaged) - 20, len(damaged))])
            file = split_weights(content)
            split += file.is_split
            try:
                expected = onnx.load_from_string(content)
            except Exception:  # whatever protobuf makes of it
                continue
            refers = [t for t in expected.graph.initializer if t.external_data or t.data_location]
            if not refers:
                assert put_back(file) == expected
        assert split > 100


def field(number, content):
    """A field of bytes or a message, as it travels."""
    size, length = b"", len(content)
    while length >= 128:
        size += bytes([length % 128 + 128])
        length //= 128
    return bytes([number * 8 + 2]) + size + bytes([length]) + content


class TestLoading:
    def test_the_pixels_are_those_of_the_whole_file(self, tmp_path):
        path = write_artifact(tmp_path, network="convolutional", height=16, width=16)
        content = path.read_bytes()
        assert split_weights(content).is_split
        assert b"location" in split_weights(content).graph
        latents = draw_latents(SEEDS, 4)
        whole = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        expected = whole.run(["images"], {"latents": latents})[0]
        assert expected.std() > 1
        model = load_model(path, "cpu", threads=1)
        assert np.array_equal(model.run_batch(latents), expected)

    def test_the_session_needs_the_file_no_longer(self, tmp_path):
        path = write_artifact(tmp_path, network="convolutional", height=16, width=16)
        model = load_model(path, "cpu", threads=1)
        before = model.run_batch(draw_latents(SEEDS, 4))
        filled = [bytes([number]) * 100_000 for number in range(200)]  # where its bytes were
        path.unlink()
        assert np.array_equal(model.run_batch(draw_latents(SEEDS, 4)), before)
        assert len(filled) == 200

    @pytest.mark.parametrize("change", [-4, 4])
    def test_weights_of_another_length_than_their_shape_are_refused(self, tmp_path, change):
        model = onnx.load(write_artifact(tmp_path, network="convolutional", height=16, width=16))
        tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        tensor.raw_data = (tensor.raw_data + bytes(4))[: len(tensor.raw_data) + change]
        path = publish(tmp_path, "tiny", 2, model.SerializeToString())
        with pytest.raises(ModelError, match=r"cannot load it.*size mismatch"):
            load_model(path, "cpu", threads=1)

    def test_a_file_that_cannot_be_split_is_opened_whole(self, tmp_path):
        content = write_artifact(tmp_path).read_bytes()
        whole = split_weights(content)._replace(graph=content, outline=content)
        session = open_session(whole, "cpu", 1)
        assert [value.name for value in session.get_inputs()] == ["latents"]
