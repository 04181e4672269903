import base64
import hashlib
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from ganserve.errors import ModelError, ProviderUnavailable, StartupError
from ganserve.latents import draw_latents
from ganserve.models.gpu_sessions import GpuSettings
from ganserve.models.loading import load_model
from ganserve.models.runtime import can_use, check_runtime, is_shortage
from tests.ganserve.tiny import (
    foreign_onnx,
    golden_section,
    publish,
    reveal_pixels,
    write_artifact,
)


def load(path, device="cpu", **settings):
    defaults = {"threads": 1, "warm_batch_sizes": lambda _: (1, 2)}
    defaults["gpu"] = GpuSettings(ThreadPoolExecutor(1))  # without a thread until it is used
    return load_model(path, device, **defaults | settings)


def latents(count, latent_dim=4):
    return draw_latents(np.arange(count, dtype=np.uint64), latent_dim)


def test_a_sound_artifact_is_described(tmp_path):
    path = write_artifact(tmp_path, latent_dim=7, height=3, width=5, channels=1)
    spec = load(path).spec
    assert (spec.latent_dim, spec.height, spec.width, spec.channels) == (7, 3, 5, 1)
    assert spec.class_names == ()
    assert spec.seed_contract == "philox4x32-10/box-muller/1"
    assert spec.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert spec.provider == "CPUExecutionProvider"
    assert spec.evaluation == {"frechet_distance_pixels": 1.5}


def test_an_artifact_says_its_precision_and_an_older_one_is_fp32(tmp_path):
    assert load(write_artifact(tmp_path)).spec.precision == "fp32"
    metadata = {"precision": {"kind": "int8", "distance": {"psnr": 48.5}}}
    assert load(write_artifact(tmp_path, version=2, metadata=metadata)).spec.precision == "int8"


def test_images_are_those_of_their_latents(tmp_path):
    model = load(write_artifact(tmp_path))
    assert (model.run_batch(latents(5)) == reveal_pixels(latents(5))).all()


def test_images_are_those_of_their_labels(tmp_path):
    model = load(write_artifact(tmp_path, class_names=["cat", "dog"]))
    labels = np.array([0, 1, 1], np.int64)
    assert model.spec.class_names == ("cat", "dog")
    assert (model.run_batch(latents(3), labels) == reveal_pixels(latents(3), labels)).all()


def test_a_model_runs_in_several_threads_at_once(tmp_path):
    model = load(write_artifact(tmp_path, network="convolutional"))
    expected = model.run_batch(latents(8))
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(model.run_batch, [latents(8)] * 16):
            assert (made == expected).all()


def test_the_device_auto_finds_one(tmp_path):
    assert load(write_artifact(tmp_path), "auto").run_batch(latents(1)).shape == (1, 4, 4, 3)


def available_gpu_providers():
    gpu = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
    return gpu & set(onnxruntime.get_available_providers())


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_not_there_is_no_reason_to_use_another(tmp_path, device):
    if available_gpu_providers():
        pytest.skip("this ONNX Runtime has GPU providers")
    path = write_artifact(tmp_path)
    with pytest.raises(ProviderUnavailable, match=rf"device {device}: expected \w+Execution"):
        load(path, device)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        pytest.param({"schema": 2}, "gan.schema: Input should be 1, got 2", id="schema"),
        pytest.param({"schema": None}, "gan.schema: Field required", id="no schema"),
        pytest.param({"seed_contract": "mt19937"}, "gan.seed_contract: .*got mt19937", id="seeds"),
        pytest.param({"golden": None}, "gan.golden: Field required", id="no golden section"),
        pytest.param({"class_names": ["a"]}, r"inputs: expected \['labels'", id="no labels input"),
        pytest.param({"evaluation": {"x": "good"}}, "gan.evaluation.x", id="evaluation"),
        pytest.param({"precision": {"kind": "a b"}}, "gan.precision.kind", id="precision"),
        pytest.param({"class_names": ["a" * 256]}, "gan.class_names.0: .*at most 255", id="name"),
        pytest.param(
            {"class_names": ["a"] * 32_769},
            "gan.class_names: .*at most 32768 .*32769",
            id="classes",
        ),
        pytest.param(
            {"evaluation": {str(number): 1.0 for number in range(1001)}},
            "gan.evaluation: .*at most 1000",
            id="results",
        ),
        pytest.param(
            {"training": [[]] * 50_001}, "gan: expected at most 100000 values", id="values"
        ),
        pytest.param(
            {"writer": "x" * 2**26}, "gan: expected at most 67108864 characters, got", id="text"
        ),
    ],
)
def test_wrong_metadata_is_named(tmp_path, metadata, message):
    path = write_artifact(tmp_path, metadata=metadata)
    with pytest.raises(ModelError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")


def test_more_golden_images_than_any_export_has_are_not_generated(tmp_path):
    image = {"seed": 0, "sha256": "0" * 64, "png": ""}
    golden = {"images": [image] * 101, "tolerance": {"max_difference": 1, "differing_share": 0.0}}
    path = write_artifact(tmp_path, metadata={"golden": golden})
    with pytest.raises(ModelError, match=r"gan.golden.images: .*at most 100 .*101"):
        load(path)


def test_as_many_classes_as_there_may_be_are_served(tmp_path):
    names = tuple(f"class {number}, of many" for number in range(2**15))
    assert load(write_artifact(tmp_path, class_names=names)).spec.class_names == names


FORGED = "x\n2026-01-01 INFO ganserve: forged \x1b[31m\u2028\u202e"
HARMLESS = r"x\n2026-01-01 INFO ganserve: forged \x1b[31m\u2028\u202e"


@pytest.mark.parametrize(
    ("metadata", "quoted"),
    [
        pytest.param({"seed_contract": FORGED}, HARMLESS, id="a value"),
        pytest.param({"evaluation": {FORGED: "x"}}, HARMLESS, id="a key"),
        pytest.param({"seed_contract": "k" * 2**21}, "got kkk", id="a long value"),
        pytest.param({"evaluation": {"k" * 2**21: "bad"}}, "kkk", id="a long key"),
        pytest.param({"class_names": ["k" * 256]}, "at most 255 characters, got kkk", id="a class"),
    ],
)
def test_what_a_file_says_is_quoted_on_one_short_line_without_where_it_lies(
    tmp_path, metadata, quoted
):
    path = write_artifact(tmp_path, metadata=metadata)
    with pytest.raises(ModelError) as error:
        load(path)
    assert quoted in error.value.problem
    assert error.value.problem.isprintable()
    assert len(error.value.problem) < 1100
    assert str(error.value) == f"{path}: {error.value.problem}"
    assert str(tmp_path) not in error.value.problem


def test_names_that_callers_see_are_printable_and_otherwise_as_they_are(tmp_path):
    metadata = {"class_names": [FORGED, "Katze \u3000猫"], "evaluation": {FORGED: 1.0}}
    path = write_artifact(tmp_path, class_names=["a", "b"], metadata=metadata)
    spec = load(path).spec
    assert spec.class_names == (HARMLESS, "Katze \u3000猫")
    assert spec.evaluation == {HARMLESS: 1.0}


def test_onnx_runtime_writes_no_lines_of_its_own_about_a_file(tmp_path, capfd):
    model = onnx.load(write_artifact(tmp_path))
    (node,) = [node for node in model.graph.node if node.op_type == "Gather"]
    node.name = FORGED
    (picks,) = [tensor for tensor in model.graph.initializer if tensor.name == "picks"]
    picks.CopyFrom(onnx.numpy_helper.from_array(np.full(48, 99), "picks"))  # there are 4
    with pytest.raises(ModelError, match="forged") as error:
        load(publish(tmp_path, "tiny", 2, model.SerializeToString()))
    assert error.value.problem.isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "expected an ONNX file", id="empty"),
        pytest.param(b"not a model", "expected an ONNX file", id="text"),
        pytest.param(foreign_onnx(), "metadata: expected the key gan", id="another ONNX model"),
    ],
)
def test_a_file_that_is_no_artifact_is_refused(tmp_path, content, message):
    with pytest.raises(ModelError, match=message):
        load(publish(tmp_path, "tiny", 1, content))


def test_a_truncated_artifact_is_refused(tmp_path):
    path = write_artifact(tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match=str(path)):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"none.onnx: cannot be read: No such file"):
        load(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"channels": 2}, "images: expected 1 or 3 channels, got 2", id="channels"),
        pytest.param({"batch": 1}, "latents: expected .* a dynamic batch", id="fixed batch"),
    ],
)
def test_wrong_shapes_are_named(tmp_path, settings, message):
    with pytest.raises(ModelError, match=message):
        load(write_artifact(tmp_path, **settings))


class TestGoldenImages:
    def test_within_the_tolerance_they_pass(self, tmp_path):
        settings = {"max_difference": 2, "differing_share": 1.0}
        assert load(write_artifact(tmp_path, golden_shift=2, **settings))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            pytest.param({"max_difference": 1, "differing_share": 1.0}, "got 2 on", id="too far"),
            pytest.param({"max_difference": 2, "differing_share": 0.5}, "on 100", id="too many"),
        ],
    )
    def test_beyond_it_the_model_is_refused(self, tmp_path, settings, message):
        path = write_artifact(tmp_path, golden_shift=2, **settings)
        with pytest.raises(ModelError, match=f"golden image of seed 0: .*{message}"):
            load(path)

    def test_an_equal_hash_needs_no_look_at_the_png(self, tmp_path):
        golden = self.golden_of(tmp_path)
        golden["images"][0]["png"] = base64.b64encode(b"no PNG").decode()
        load(write_artifact(tmp_path, version=2, metadata={"golden": golden}))

    @pytest.mark.parametrize(
        ("png", "message"),
        [
            pytest.param(b"no PNG", "not a PNG", id="not a PNG"),
            pytest.param("2x2", "expected 4x4 with 3 channels, got 2x2", id="another size"),
            pytest.param("grey", "expected 4x4 with 3 channels, got 4x4 L", id="another mode"),
        ],
    )
    def test_a_png_that_does_not_fit_is_named(self, tmp_path, png, message):
        if isinstance(png, str):
            file = io.BytesIO()
            mode, size = ("L", (4, 4)) if png == "grey" else ("RGB", (2, 2))
            Image.new(mode, size).save(file, "PNG")
            png = file.getvalue()
        golden = self.golden_of(tmp_path)
        golden["images"][1] |= {"sha256": "0" * 64, "png": base64.b64encode(png).decode()}
        path = write_artifact(tmp_path, version=2, metadata={"golden": golden})
        with pytest.raises(ModelError, match=f"seed 1: {message}"):
            load(path)

    def test_conditional_ones_need_a_label_in_range(self, tmp_path):
        golden = self.golden_of(tmp_path, classes=2)
        golden["images"][0]["label"] = 2
        classes = ["a", "b"]
        path = write_artifact(tmp_path, version=2, class_names=classes, metadata={"golden": golden})
        with pytest.raises(ModelError, match="labels below 2"):
            load(path)

    @staticmethod
    def golden_of(tmp_path, classes=0):
        path = write_artifact(tmp_path, class_names=["a", "b"][:classes])
        tolerance = {"max_difference": 0, "differing_share": 0.0}
        return golden_section(onnx.load(path), 4, 0) | {"tolerance": tolerance}


class TestImagesThatDependOnTheirNeighbours:
    """They pass as golden images, where these are known for what they are in one batch."""

    @pytest.fixture
    def path(self, tmp_path):
        many = {"latent_dim": 64, "height": 8, "width": 8}  # not all are rounded away
        anything = {"max_difference": 255, "differing_share": 1.0}
        return write_artifact(tmp_path, network="dynamic", **many, **anything)

    @pytest.mark.parametrize("sizes", [(1,), (1, 16), (8,)], ids=str)
    def test_are_refused_whatever_sizes_are_called(self, path, sizes):
        with pytest.raises(ModelError, match=f"{path}: .*alone and in a batch.*DynamicQuantize"):
            load(path, warm_batch_sizes=lambda _: sizes)

    def test_are_served_where_nothing_is_promised(self, path):
        with ThreadPoolExecutor(1) as executor:
            model = load(path, gpu=GpuSettings(executor, reproducibility="fast"))
        together = model.run_batch(latents(8, 64))
        assert (together[:1] != model.run_batch(latents(1, 64))).any()


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from ganserve.models.loading import load_model
from ganserve.models.runtime import is_shortage
path = Path(sys.argv[1])
load_model(path, "cpu", threads=1)  # so that all that else takes memory is there
status = Path("/proc/self/status").read_text()
used = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, used + 2**25))
try:
    load_model(path, "cpu", threads=1, warm_batch_sizes=lambda _: (256,))  # 50 MB a tensor
except Exception as error:
    print(is_shortage(error), error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_a_shortage_of_memory_is_told_from_a_file_that_is_wrong(tmp_path):
    path = write_artifact(tmp_path, height=128, width=128)
    command = [sys.executable, "-c", SHORT_OF_MEMORY, path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.startswith(f"True {path}: cannot be run: "), ended
    with pytest.raises(ModelError) as wrong:
        load(publish(tmp_path, "tiny", 2, b"rubbish"))
    assert not is_shortage(wrong.value)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            "pthread_create failed, error code: 11 error msg: Resource temporarily unavailable",
            id="threads",
        ),
        pytest.param("CUDA failure 2: out of memory ; GPU=0", id="memory of a GPU"),
        pytest.param("std::bad_alloc", id="memory in C++"),
    ],
)
def test_a_shortage_is_known_by_what_onnx_runtime_says(words):
    error = ModelError("cannot be run")
    error.__cause__ = RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {words}")
    assert is_shortage(error)


def test_memory_that_is_short_is_named(tmp_path, monkeypatch):
    def read(*_):
        raise MemoryError

    path = write_artifact(tmp_path)
    monkeypatch.setattr("ganserve.models.loading.read_model_file", read)
    with pytest.raises(ModelError, match=r"cannot be run: MemoryError$") as error:
        load(path)
    assert is_shortage(error.value)


def test_two_runtimes_are_refused():
    with pytest.raises(StartupError, match="both installed and break each other"):
        check_runtime(["onnxruntime", "onnxruntime-gpu"])


def test_a_missing_runtime_is_explained(monkeypatch):
    monkeypatch.setattr(sys, "path", [])  # as where it is not installed
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(StartupError, match=r"pip install '\.\[cpu\]'"):
        check_runtime([])


def test_one_runtime_is_fine():
    check_runtime(["onnxruntime"])
    check_runtime()


def test_a_device_that_works_is_told_from_one_that_does_not():
    assert can_use("cpu")
    available = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert available or not can_use("cuda")


def test_auto_falls_back_to_the_cpu_where_the_build_knows_cuda_and_the_machine_has_none(
    tmp_path, monkeypatch, caplog
):
    path = write_artifact(tmp_path)
    monkeypatch.setattr("ganserve.models.loading.resolve_device", lambda _: "cuda")
    model = load(path, "auto")
    assert model.spec.provider == "CPUExecutionProvider"
    assert "device auto falls back to the CPU" in caplog.text
    with pytest.raises(ProviderUnavailable, match="device cuda: expected CUDAExecutionProvider"):
        load(path, "cuda")
