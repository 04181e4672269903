"""A second session for batches that come alone: where it pays, and never with other bytes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ganserve.latents import draw_latents
from ganserve.models import lone_session
from ganserve.models.loading import load_model, read_checked_file
from ganserve.models.lone_session import open_lone_session
from ganserve.models.onnx_weights import SplitFile
from tests.ganserve.conftest import connected
from tests.ganserve.test_reproducibility import images, seeds
from tests.ganserve.tiny import reveal_pixels, write_artifact


@pytest.fixture
def however_fast(monkeypatch):
    """Tiny models have such a session, too."""
    monkeypatch.setattr(lone_session, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(lone_session, "_LEAST_SECONDS_PER_THREAD", 1e-9)


def load(path, lone_threads=2):
    return load_model(
        path,
        "cpu",
        threads=1,
        lone_threads=lone_threads,
        warm_batch_sizes=lambda _: (1, 8),
    )


def threads_of(session):
    return session.get_session_options().intra_op_num_threads


@pytest.mark.usefixtures("however_fast")
def test_it_has_the_threads_that_were_asked_for(tmp_path):
    model = load(write_artifact(tmp_path, network="convolutional"), lone_threads=3)
    assert (threads_of(model.session), threads_of(model.lone_session)) == (1, 3)


@pytest.mark.usefixtures("however_fast")
def test_its_images_are_those_of_their_labels(tmp_path):
    model = load(write_artifact(tmp_path, class_names=["cat", "dog"]))
    latents = draw_latents(np.arange(3, dtype=np.uint64), 4)
    labels = np.array([0, 1, 1], np.int64)
    assert (model.run_lone_batch(latents, labels) == reveal_pixels(latents, labels)).all()


@pytest.mark.usefixtures("however_fast")
def test_without_more_threads_there_is_none(tmp_path):
    assert load(write_artifact(tmp_path), lone_threads=1).lone_session is None


def test_a_model_that_is_quick_anyway_has_none(tmp_path):
    assert load(write_artifact(tmp_path)).lone_session is None


@pytest.mark.usefixtures("however_fast")
def test_there_are_no_more_threads_than_there_is_work_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lone_session, "_LEAST_SECONDS_PER_THREAD", 60.0)
    assert threads_of(load(write_artifact(tmp_path), lone_threads=9).lone_session) == 2


@pytest.mark.usefixtures("however_fast")
def test_one_with_other_bytes_is_not_kept(tmp_path, caplog):
    model = load(write_artifact(tmp_path))
    others = read_checked_file(write_artifact(tmp_path, version=2, offset=1), 2**20)
    settings = {"threads": 2, "largest_batch": 8}
    assert open_lone_session(others, model.spec, model.session, **settings) is None
    assert "get one thread, not 2: with more images differ" in caplog.text


def brighten_batches_of(size, path):
    """Let the model at that path make brighter images in batches of that size, and in no others."""
    model = onnx.load(path)
    nodes = model.graph.node
    at, shift = next((at, node) for at, node in enumerate(nodes) if "brightness" in node.input)
    shift.output[0] = "as_before"
    for name, value in {"rows": 0, "size": size}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    for node in (
        helper.make_node("Add", ["as_before", "more"], ["grey"]),
        helper.make_node("Cast", ["is_size"], ["more"], to=TensorProto.FLOAT),
        helper.make_node("Equal", ["count", "size"], ["is_size"]),
        helper.make_node("Gather", ["shape_of_latents", "rows"], ["count"]),
        helper.make_node("Shape", ["latents"], ["shape_of_latents"]),
    ):
        nodes.insert(at + 1, node)
    onnx.save(model, path)


@pytest.mark.usefixtures("however_fast")
@pytest.mark.parametrize("size", [1, 8])
def test_one_with_other_bytes_of_one_size_of_batch_is_not_kept(tmp_path, size):
    model = load(write_artifact(tmp_path))
    path = write_artifact(tmp_path, version=2)
    brighten_batches_of(size, path)
    others = read_checked_file(path, 2**20)
    settings = {"threads": 2, "largest_batch": 8}
    assert open_lone_session(others, model.spec, model.session, **settings) is None


@pytest.mark.usefixtures("however_fast")
def test_one_that_cannot_be_opened_is_done_without(tmp_path, caplog):
    model = load(write_artifact(tmp_path))
    rubbish = SplitFile(*[b"rubbish"] * 3)
    settings = {"threads": 2, "largest_batch": 8}
    assert open_lone_session(rubbish, model.spec, model.session, **settings) is None
    assert "get one thread, not 2: ONNX Runtime cannot load it on cpu" in caplog.text


@pytest.mark.usefixtures("however_fast")
async def test_images_are_the_same_bytes_alone_and_under_load(tmp_path, running_server):
    write_artifact(tmp_path, network="convolutional")
    bytes_of = {}
    for threads in (None, 1):
        async with running_server(tmp_path, threads=threads, instances=2) as server:
            version = server.repository.index.describe("tiny", 1)
            has_way = version.served.batcher._run_lone_batch is not None
            assert has_way == (threads is None)
            async with connected(server) as stub:
                alone = [(await images(stub, seeds(seed)))[0] for seed in range(8)]
                together = await images(stub, seeds(*range(40)))
                assert together[:8] == alone
                bytes_of[threads] = together
    assert bytes_of[None] == bytes_of[1]
