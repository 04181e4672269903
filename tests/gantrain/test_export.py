import base64
import hashlib
import io
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from gantrain.errors import RunError, UsageError
from gantrain.export.artifact import export_run, png_bytes
from gantrain.export.precision_distance import Inputs
from gantrain.export.proof import PROOF_BATCHES, compare, prove
from gantrain.latents import draw_latents
from gantrain.presets import resolve
from gantrain.sampling import (
    generate,
    load_run_generator,
    open_sampler,
    open_session,
    run_session,
)
from gantrain.training.loop import train
from tests.gantrain.conftest import SMALL


@pytest.fixture(scope="module")
def artifact(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(small_run, tmp_path_factory.mktemp("repository"), "digits")


@pytest.fixture(scope="module")
def model(artifact: Path) -> onnx.ModelProto:
    return onnx.load(artifact)


def metadata_of(model: onnx.ModelProto) -> dict:
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties.keys() == {"gan"}
    return json.loads(properties["gan"])


def test_versions_count_up_and_hold_one_file(artifact: Path, small_run: Path):
    repository = artifact.parents[2]
    assert artifact == repository / "digits" / "1" / "model.onnx"
    assert export_run(small_run, repository, "digits").parent.name == "2"
    assert [path.name for path in artifact.parent.iterdir()] == ["model.onnx"]
    found = sorted(path.name for path in (repository / "digits").iterdir())
    assert found == [".versions", "1", "2"]


def test_of_a_preset_in_a_file_the_name_alone_is_told(tmp_path: Path):
    preset = tmp_path / "mine.json"
    preset.write_text(json.dumps({"settings": {"filters": 4}}))
    run_dir = tmp_path / "run"
    train(resolve({**SMALL, "preset": str(preset), "run_dir": run_dir, "total_images": 32}))
    path = export_run(run_dir, tmp_path / "models", "digits")
    assert metadata_of(onnx.load(path))["training"]["preset"] == "mine.json"
    assert str(tmp_path).encode() not in path.read_bytes()


def test_the_graph_has_the_shapes_of_the_definition(model: onnx.ModelProto):
    onnx.checker.check_model(model, full_check=True)
    (latents,), (images,) = model.graph.input, model.graph.output
    assert latents.name == "latents"
    assert latents.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_value or d.dim_param for d in latents.type.tensor_type.shape.dim][1:] == [8]
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = [d.dim_value or d.dim_param for d in images.type.tensor_type.shape.dim]
    assert isinstance(dims[0], str)
    assert dims[1:] == [8, 8, 1]


def test_the_metadata_tell_what_the_definition_asks(model: onnx.ModelProto):
    metadata = metadata_of(model)
    assert metadata["schema"] == 1
    assert metadata["name"] == "digits"
    assert metadata["seed_contract"] == "philox4x32-10/box-muller/1"
    assert metadata["class_names"] == []
    assert metadata["training"]["images_seen"] == 1024
    assert metadata["training"]["preset"] == "dcgan"
    assert metadata["data"]["count"] == 1797
    assert metadata["data"]["fingerprint"].startswith("sha256:")
    assert metadata["writer"].startswith("gantrain ")
    assert metadata["precision"] == {"kind": "fp32"}


def test_golden_images_are_those_of_the_graph(artifact: Path, model: onnx.ModelProto):
    golden = metadata_of(model)["golden"]
    session = open_session(artifact.read_bytes())
    for entry in golden["images"]:
        latents = draw_latents(np.array([entry["seed"]], np.uint64), 8)
        pixels = run_session(session, latents)[0]
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == entry["sha256"]
        with Image.open(io.BytesIO(base64.b64decode(entry["png"]))) as image:
            assert np.array_equal(np.asarray(image), pixels[:, :, 0])
    assert {entry["seed"] for entry in golden["images"]} == {0, 1, 2**32, 2**64 - 1}


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_a_golden_image_comes_back_from_its_png(channels: int):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, channels), np.uint8)
    with Image.open(io.BytesIO(png_bytes(image))) as picture:
        assert np.array_equal(np.asarray(picture).reshape(image.shape), image)


def test_nothing_tells_of_the_machine_that_exported(artifact: Path, small_run: Path):
    content = artifact.read_bytes()
    for word in (str(Path.home()), str(small_run), str(Path.cwd()), ".py", "site-packages"):
        assert word.encode() not in content, word


@pytest.mark.parametrize("batch", PROOF_BATCHES)
def test_the_artifact_agrees_with_the_trained_generator(
    batch: int, artifact: Path, small_run: Path
):
    run = load_run_generator(small_run)
    latents = draw_latents(np.arange(1000, 1000 + batch, dtype=np.uint64), 8)
    expected = generate(run.generator, latents).astype(int)
    sampler = open_sampler(artifact)
    assert (sampler.latent_dim, sampler.class_names) == (8, ())
    assert np.abs(sampler.generate(latents, None) - expected).max() <= 1


@pytest.fixture(scope="module")
def conditional_artifact(conditional_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(conditional_run, tmp_path_factory.mktemp("repository"), "animals")


def test_the_graph_of_a_conditional_generator_takes_labels(conditional_artifact: Path):
    model = onnx.load(conditional_artifact)
    onnx.checker.check_model(model, full_check=True)
    latents, labels = model.graph.input
    assert [latents.name, labels.name] == ["latents", "labels"]
    assert labels.type.tensor_type.elem_type == onnx.TensorProto.INT64
    (batch,) = labels.type.tensor_type.shape.dim
    assert batch.dim_param == latents.type.tensor_type.shape.dim[0].dim_param != ""
    metadata = metadata_of(model)
    assert metadata["class_names"] == ["cat", "dog", "owl"]
    assert metadata["training"]["conditional"] is True


def test_golden_images_of_a_conditional_generator_have_labels(conditional_artifact: Path):
    golden = metadata_of(onnx.load(conditional_artifact))["golden"]["images"]
    session = open_session(conditional_artifact.read_bytes())
    assert [entry["label"] for entry in golden] == [0, 1, 2, 0]
    for entry in golden:
        latents = draw_latents(np.array([entry["seed"]], np.uint64), 8)
        pixels = run_session(session, latents, np.array([entry["label"]]))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("batch", PROOF_BATCHES)
def test_a_conditional_artifact_agrees_whatever_the_classes_of_the_batch(
    batch: int, conditional_artifact: Path, conditional_run: Path
):
    run = load_run_generator(conditional_run)
    latents = draw_latents(np.arange(1000, 1000 + batch, dtype=np.uint64), 8)
    labels = np.random.default_rng(batch).integers(0, 3, batch)
    expected = generate(run.generator, latents, labels).astype(int)
    sampler = open_sampler(conditional_artifact)
    assert sampler.class_names == ("cat", "dog", "owl")
    assert np.abs(sampler.generate(latents, labels) - expected).max() <= 1
    alone = [sampler.generate(latents[at : at + 1], labels[at : at + 1])[0] for at in range(batch)]
    assert np.array_equal(np.stack(alone), sampler.generate(latents, labels))


def test_a_graph_that_mixes_up_its_classes_is_found(
    conditional_artifact: Path, conditional_run: Path
):
    other = load_run_generator(conditional_run)
    embed = other.generator.generator.embed
    with torch.no_grad():
        embed.weight.copy_(embed.weight[[0, 2, 1]])
    with pytest.raises(RunError, match="differ from the generator's in a batch of 2"):
        prove(conditional_artifact.read_bytes(), other.generator, Inputs(8, 3))


@pytest.mark.parametrize(
    ("changed", "by", "agrees"),
    [
        pytest.param(1, 1, True, id="one value rounds to the other side"),
        pytest.param(2, 1, False, id="two of 64"),
        pytest.param(1, 2, False, id="by two grey levels"),
    ],
)
def test_even_the_smallest_image_may_round_one_value_differently(
    changed: int, by: int, agrees: bool
):
    expected = np.full((1, 8, 8, 1), 100, np.uint8)
    pixels = expected.copy()
    pixels.flat[:changed] += by
    with nullcontext() if agrees else pytest.raises(RunError, match="in a batch of 1"):
        compare(pixels, expected, 1)


def test_the_golden_tolerance_leaves_small_images_four_values(model: onnx.ModelProto):
    tolerance = metadata_of(model)["golden"]["tolerance"]
    assert tolerance == {"max_difference": 2, "differing_share": 4 / 64}


def test_exporting_twice_gives_the_same_bytes(artifact: Path, small_run: Path, tmp_path: Path):
    again = export_run(small_run, tmp_path, "digits")
    assert again.read_bytes() == artifact.read_bytes()


def test_a_failed_proof_publishes_nothing(
    small_run: Path, tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
):
    other = load_run_generator(small_run)
    with torch.no_grad():
        other.generator.generator.project.weight += 0.5
    with pytest.raises(RunError, match=r"differ from the generator's in a batch of 1: by up to"):
        prove(artifact.read_bytes(), other.generator, Inputs(8))
    # The same through the whole command: an exporter whose graph is not the generator's.
    monkeypatch.setattr("gantrain.export.artifact.to_onnx", lambda *_: onnx.load(artifact))
    monkeypatch.setattr("gantrain.export.artifact.load_run_generator", lambda _: other)
    with pytest.raises(RunError, match="nothing was published"):
        export_run(small_run, tmp_path / "repository", "digits")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 64, "spaced name"])
def test_names_that_are_no_folder_names_are_refused(name: str, small_run: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="--name"):
        export_run(small_run, tmp_path, name)


def test_a_folder_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(RunError, match=r"holds no run: there is no config\.json in it"):
        export_run(tmp_path, tmp_path / "repository", "digits")
