"""The way onto a GPU, on the CPU provider, with models that spoil what a GPU may spoil."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ganserve.errors import ModelError, StartupError
from ganserve.latents import draw_latents
from ganserve.models.artifact import parse_metadata
from ganserve.models.gpu_sessions import (
    GpuModel,
    GpuSettings,
    check_engine_cache,
    load_on_gpu,
    make_engine_folder,
    with_graphs_if_possible,
)
from ganserve.models.model_spec import ModelSpec, read_spec
from ganserve.models.onnx_weights import split_weights
from ganserve.models.runtime import open_session
from tests.ganserve.tiny import reveal_pixels, write_artifact

SIZES = (1, 2, 4, 8)


@pytest.fixture
def open_like_a_gpu():
    """Open an artifact as on a GPU, but on the CPU provider."""
    with ThreadPoolExecutor(1, "gpu") as executor:

        def open_artifact(content, **settings):
            file = split_weights(content)
            session = open_session(file, "cpu", 1)
            text = session.get_modelmeta().custom_metadata_map["gan"]
            metadata = parse_metadata(text)
            spec = read_spec(session, metadata, "digest")
            wanted = GpuModel(file, spec, metadata.golden, "cpu", SIZES, threads=1)
            return load_on_gpu(wanted, GpuSettings(executor, **settings))

        yield open_artifact


def latents(count):
    return draw_latents(np.arange(count, dtype=np.uint64), 4)


def spoil(path, nodes, *, constants=()):
    """The artifact, whose grey levels go through these nodes: from `grey` to `spoilt`."""
    model = onnx.load(path)
    graph = model.graph
    (reader,) = [node for node in graph.node if "grey" in node.input]
    reader.input[list(reader.input).index("grey")] = "spoilt"
    position = list(graph.node).index(reader)
    rest = [*graph.node][position:]
    del graph.node[position:]
    graph.node.extend([*nodes, *rest])
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def brighter_in_batches_below(path, rows):
    """An artifact whose images are a grey level brighter in batches of fewer rows."""
    return spoil(
        path,
        [
            helper.make_node("Shape", ["latents"], ["rows"], start=0, end=1),
            helper.make_node("Less", ["rows", "enough"], ["few"]),
            helper.make_node("Cast", ["few"], ["brightening"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["grey", "brightening"], ["spoilt"]),
        ],
        constants=[("enough", np.array([rows], np.int64))],
    )


def never_the_same(path):
    """An artifact whose images are up to a grey level brighter, by chance."""
    return spoil(
        path,
        [
            helper.make_node("RandomUniformLike", ["grey"], ["brightening"], high=1.0, low=-1.0),
            helper.make_node("Add", ["grey", "brightening"], ["spoilt"]),
        ],
    )


@pytest.mark.parametrize("reproducibility", ["strict", "fast"])
def test_a_sound_model_serves_at_every_size(tmp_path, open_like_a_gpu, reproducibility):
    path = write_artifact(tmp_path, network="convolutional", height=16, width=16)
    model = open_like_a_gpu(path.read_bytes(), reproducibility=reproducibility)
    assert model.batch_sizes == SIZES
    plain = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for size in SIZES:
        expected = plain.run(["images"], {"latents": latents(size)})[0]
        assert np.array_equal(model.run_batch(latents(size)), expected)


def test_conditional_models_do_too(tmp_path, open_like_a_gpu):
    model = open_like_a_gpu(write_artifact(tmp_path, class_names=["a", "b"]).read_bytes())
    labels = np.array([0, 1, 1, 0], np.int64)
    assert model.batch_sizes == SIZES
    assert (model.run_batch(latents(4), labels) == reveal_pixels(latents(4), labels)).all()


def test_calls_are_made_in_the_thread_of_the_gpu(tmp_path, open_like_a_gpu):
    model = open_like_a_gpu(write_artifact(tmp_path).read_bytes())
    assert model.session.call(threading.current_thread).name.startswith("gpu")


def test_strict_leaves_out_sizes_that_make_other_bits(tmp_path, open_like_a_gpu, caplog):
    content = brighter_in_batches_below(write_artifact(tmp_path, differing_share=1.0), rows=4)
    model = open_like_a_gpu(content)
    assert model.batch_sizes == (4, 8)
    assert (model.run_batch(latents(1)) == reveal_pixels(latents(1))).all()
    assert "digest: batches of [1, 2] make other bits than those of 8" in caplog.text


def test_fast_takes_all_sizes(tmp_path, open_like_a_gpu):
    content = brighter_in_batches_below(write_artifact(tmp_path, differing_share=1.0), rows=4)
    model = open_like_a_gpu(content, reproducibility="fast")
    assert model.batch_sizes == SIZES
    assert (model.run_batch(latents(1)) == reveal_pixels(latents(1), offset=1)).all()


def test_strict_refuses_a_model_whose_images_depend_on_their_neighbours(tmp_path, open_like_a_gpu):
    many = {"latent_dim": 64, "height": 8, "width": 8}  # not all are rounded away
    anything = {"max_difference": 255, "differing_share": 1.0}
    content = write_artifact(tmp_path, network="dynamic", **many, **anything).read_bytes()
    with pytest.raises(ModelError, match="reproducibility strict: expected the same bits"):
        open_like_a_gpu(content)
    assert open_like_a_gpu(content, reproducibility="fast").batch_sizes == SIZES


def test_strict_refuses_a_model_that_does_not_repeat_itself(tmp_path, open_like_a_gpu):
    content = never_the_same(write_artifact(tmp_path, differing_share=1.0))
    with pytest.raises(ModelError, match="reproducibility strict: expected the same bits"):
        open_like_a_gpu(content)
    assert open_like_a_gpu(content, reproducibility="fast").batch_sizes == SIZES


def test_golden_images_are_compared_there(tmp_path, open_like_a_gpu):
    path = write_artifact(tmp_path, golden_shift=2)
    with pytest.raises(ModelError, match="golden image of seed 0"):
        open_like_a_gpu(path.read_bytes(), reproducibility="fast")


def test_more_golden_images_than_the_largest_batch_are_compared_too(tmp_path, open_like_a_gpu):
    content = write_artifact(tmp_path).read_bytes()
    model = open_like_a_gpu(content)
    assert (model.run_batch(latents(20)) == reveal_pixels(latents(20))).all()


@pytest.mark.parametrize("cuda_graphs", ["auto", "on", "off"])
def test_the_way_with_graphs_is_sound(tmp_path, open_like_a_gpu, caplog, cuda_graphs):
    content = write_artifact(tmp_path).read_bytes()
    with caplog.at_level(logging.INFO):
        model = open_like_a_gpu(content, cuda_graphs=cuda_graphs)
    for rows in (1, 3, 8, 20):
        assert (model.run_batch(latents(rows)) == reveal_pixels(latents(rows))).all()
    assert "without CUDA graphs" not in caplog.text
    assert ("CUDA graphs at batch sizes" in caplog.text) == (cuda_graphs != "off")


def test_fast_takes_graphs_of_a_model_that_does_not_repeat_itself(tmp_path, open_like_a_gpu):
    content = never_the_same(write_artifact(tmp_path, differing_share=1.0))
    model = open_like_a_gpu(content, reproducibility="fast", cuda_graphs="on")
    assert model.batch_sizes == SIZES


def test_engines_are_kept_only_where_wanted_and_possible(tmp_path, caplog):
    spec = ModelSpec(4, 4, 4, 3, (), "contract", "digest", "provider", {})
    assert make_engine_folder(GpuSettings(None, "fast"), spec) is None
    assert caplog.records == []
    assert make_engine_folder(GpuSettings(None), spec) is None
    assert "the next one may make other bits: --tensorrt-cache keeps it" in caplog.text
    folder = make_engine_folder(GpuSettings(None, tensorrt_cache=tmp_path / "cache"), spec)
    assert folder.is_dir()
    assert tmp_path / "cache" / "digest" in folder.parents
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"tensorrt_cache: .* make digest/.*: Not a directory"):
        make_engine_folder(GpuSettings(None, tensorrt_cache=tmp_path / "file"), spec)


def test_a_cache_that_cannot_be_written_to_ends_the_start(tmp_path):
    check_engine_cache(None)
    check_engine_cache(tmp_path / "new" / "cache")
    assert (tmp_path / "new" / "cache").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"tensorrt_cache: expected a folder .*/file: File exi"):
        check_engine_cache(tmp_path / "file")


class TestGraphsIfPossible:
    def prepare(self, *, cuda_graphs):
        if cuda_graphs:
            raise RuntimeError("not all nodes are on CUDA")
        return "without"

    def test_off_does_not_try(self):
        assert with_graphs_if_possible(self.prepare, "off", "digest") == "without"

    def test_auto_goes_without_and_says_why(self, caplog):
        assert with_graphs_if_possible(self.prepare, "auto", "digest") == "without"
        assert "model digest goes without CUDA graphs: not all nodes" in caplog.text

    def test_on_refuses_the_model(self):
        with pytest.raises(RuntimeError, match="not all nodes are on CUDA"):
            with_graphs_if_possible(self.prepare, "on", "digest")

    @pytest.mark.parametrize("mode", ["auto", "on"])
    def test_with_them_where_that_works(self, mode, caplog):
        assert with_graphs_if_possible(lambda cuda_graphs: cuda_graphs, mode, "digest") is True
        assert caplog.records == []

    def test_what_fails_without_them_too_is_said_without_them(self, caplog):
        def prepare(*, cuda_graphs):
            raise ModelError("with" if cuda_graphs else "without")

        with pytest.raises(ModelError, match="without"), caplog.at_level(logging.INFO):
            with_graphs_if_possible(prepare, "auto", "digest")
        assert caplog.records == []
