import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from gantrain import cli
from gantrain.errors import RunError
from gantrain.export.artifact import export_run
from gantrain.export.frechet_change import frechet_change
from gantrain.export.integer_graph import Layer, find_layers, to_integers
from gantrain.export.onnx_graph import to_onnx
from gantrain.export.precision_distance import (
    CALIBRATION,
    MEASURED,
    Inputs,
    measure_distance,
    measured_images,
)
from gantrain.export.proof import prove
from gantrain.export.quantization import calibrate, quantize_graph
from gantrain.latents import draw_latents
from gantrain.networks import Shape, create_networks
from gantrain.presets import resolve
from gantrain.sampling import (
    PixelGenerator,
    finished_generator,
    generate,
    load_run_generator,
    open_sampler,
    open_session,
)
from gantrain.training.loop import train

SMALL = {"data": "digits", "batch_size": 16, "latent_dim": 8, "threads": 1, "tensorboard": False}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of 16x16 pixels, 8 filters: two layers with an integer form, and one without."""
    folder = tmp_path_factory.mktemp("precision") / "run"
    train(
        resolve({**SMALL, "run_dir": folder, "image_size": 16, "filters": 8, "total_images": 512})
    )
    return folder


@pytest.fixture(scope="module")
def graph(run_dir: Path) -> onnx.ModelProto:
    run = load_run_generator(run_dir)
    assert isinstance(run.generator, PixelGenerator)
    return to_onnx(run.generator, run.config.latent_dim)


@pytest.fixture(scope="module", params=["int8", "fp16"])
def reduced(
    request: pytest.FixtureRequest, run_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, export_run(
        run_dir, folder, "digits", precision=request.param, min_psnr=40, frechet_samples=0
    )


def metadata_of(path: Path) -> dict[str, Any]:
    (entry,) = onnx.load(path).metadata_props
    metadata: dict[str, Any] = json.loads(entry.value)
    return metadata


def test_the_artifact_tells_its_precision_and_its_distance(
    reduced: tuple[str, Path], run_dir: Path
):
    kind, path = reduced
    precision = metadata_of(path)["precision"]
    assert precision["kind"] == kind
    assert "frechet_distance" not in precision
    distance = precision["distance"]
    assert (distance["first_seed"], distance["images"]) == (2**62 + 2**32, 256)
    # What it says is so, whoever measures it: here against the generator in PyTorch.
    latents = draw_latents(MEASURED, 8)
    expected = generate(load_run_generator(run_dir).generator, latents)
    made = open_sampler(path).generate(latents, None)
    error = float(((made.astype(float) - expected) ** 2).mean())
    assert distance["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.1)
    off = np.abs(made.astype(int) - expected) > 2
    assert distance["share_off_by_more_than_2"] == pytest.approx(off.mean(), abs=1e-3)
    assert distance["psnr"] > {"int8": 40, "fp16": 55}[kind]


def test_the_graph_is_in_that_precision(reduced: tuple[str, Path]):
    kind, path = reduced
    model = onnx.load(path)
    onnx.checker.check_model(model)
    operators = {node.op_type for node in model.graph.node}
    weights = sum(np.prod(entry.dims) for entry in model.graph.initializer)
    element = {"int8": onnx.TensorProto.INT8, "fp16": onnx.TensorProto.FLOAT16}[kind]
    small = sum(np.prod(e.dims) for e in model.graph.initializer if e.data_type == element)
    assert small > 0.5 * weights
    assert not operators & {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
    (latents,), (images,) = model.graph.input, model.graph.output
    assert latents.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_its_images_depend_on_no_batch_and_no_neighbour(reduced: tuple[str, Path]):
    sampler = open_sampler(reduced[1])
    latents = draw_latents(np.arange(64, dtype=np.uint64), 8)
    together = sampler.generate(latents, None)
    order = np.random.default_rng(0).permutation(64)
    assert np.array_equal(sampler.generate(latents[order], None), together[order])
    for row in (0, 7, 63):
        assert np.array_equal(sampler.generate(latents[[row]], None)[0], together[row])


def test_exporting_twice_gives_the_same_bytes(
    reduced: tuple[str, Path], run_dir: Path, tmp_path: Path
):
    kind, path = reduced
    again = export_run(run_dir, tmp_path, "digits", precision=kind, min_psnr=40, frechet_samples=0)
    assert again.read_bytes() == path.read_bytes()


def test_ranges_and_means_are_of_all_calibration_images(graph: onnx.ModelProto):
    ranges = calibrate(graph, find_layers(graph), Inputs(8))
    observed = onnx.ModelProto()
    observed.CopyFrom(graph)
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ranges)
    latents, _ = Inputs(8).draw(CALIBRATION)
    found = open_session(observed.SerializeToString()).run([*ranges], {"latents": latents})
    for of, values in zip(ranges.values(), found, strict=True):
        assert of.lowest == pytest.approx(values.min(), abs=1e-4)
        assert of.highest == pytest.approx(values.max(), abs=1e-4)
        assert of.means == pytest.approx(values.mean(0), abs=1e-4)


def test_layers_go_back_to_float_until_the_images_are_near_enough(graph: onnx.ModelProto):
    whole = quantize_graph(graph, Inputs(8), min_psnr=20)
    assert set(whole.layers.values()) == {"int8"}
    assert whole.work_share == 1
    wanted = whole.distance.psnr + 0.5
    part = quantize_graph(graph, Inputs(8), min_psnr=wanted)
    assert sorted(part.layers.values()) == ["fp32", "int8"]
    assert part.distance.psnr >= wanted
    assert 0 < part.work_share < 1
    kept = [name for name, kind in part.layers.items() if kind == "fp32"]
    floats = {node.input[1] for node in part.model.graph.node if node.op_type == "ConvTranspose"}
    assert {f"generator.{name}.weight" for name in kept} <= floats
    ranges = calibrate(graph, find_layers(graph), Inputs(8)).values()
    for seen in ranges:
        assert seen.lowest <= seen.means.min() < seen.means.max() <= seen.highest
    assert whole.facts()["calibration"] == {"first_seed": 2**62, "images": 256}


@pytest.mark.parametrize(
    ("kind", "size", "classes"),
    [
        # Than images that tell it: those are of other classes than the first so many.
        pytest.param("dcgan", 16, 100, id="more-classes"),
        # The layer with the largest error has four times the work of the one that goes back.
        pytest.param("torch-mlp", 28, 0, id="layers-of-unequal-work"),
    ],
)
def test_the_layer_that_costs_most_for_its_work_goes_back(kind: str, size: int, classes: int):
    shape = Shape(size, 1, latent_dim=8, filters=8, kernel_size=5, classes=classes)
    generator, _ = create_networks(kind, kind, shape, seed=2)
    config = resolve({**SMALL, "run_dir": "", "conditional": classes > 0})
    finished = finished_generator(generator, config, (1,) * classes)
    assert isinstance(finished, PixelGenerator)
    graph, inputs = to_onnx(finished, 8, classes), Inputs(8, classes)
    layers = find_layers(graph)
    ranges = calibrate(graph, layers, inputs)
    expected = measured_images(graph, inputs).astype(float)

    def error(chosen: list[Layer]) -> float:
        pixels = measured_images(to_integers(graph, chosen, ranges), inputs)
        return float(((pixels - expected) ** 2).mean())

    costs = {
        layer.name: (error(layers) - error([other for other in layers if other is not layer]))
        / layer.work(ranges)
        for layer in layers
    }
    whole = quantize_graph(graph, inputs, min_psnr=20)
    part = quantize_graph(graph, inputs, min_psnr=whole.distance.psnr + 0.1)
    assert [name for name, kind in part.layers.items() if kind == "fp32"] == [
        max(costs, key=lambda name: costs[name])
    ]


def test_what_is_too_far_off_is_refused_with_the_distance(run_dir: Path, tmp_path: Path, capsys):
    flags = ["--repository", str(tmp_path / "models"), "--name=digits", "--frechet-samples=0"]
    command = ["export", str(run_dir), *flags, "--precision=int8", "--min-psnr=90"]
    assert cli.run(command) == 1
    refusal = capsys.readouterr().err.strip().splitlines()[-1]
    assert "dB from fp32" in refusal
    assert refusal.endswith("dB below the 90 dB of --min-psnr; nothing was published")
    assert not (tmp_path / "models").exists()


def test_the_proof_holds_the_artifact_against_the_generator_by_its_own_rule(
    reduced: tuple[str, Path], run_dir: Path
):
    run = load_run_generator(run_dir)
    artifact = reduced[1].read_bytes()
    prove(artifact, run.generator, Inputs(8), min_psnr=40)
    with pytest.raises(RunError, match="differ from the generator's in a batch of"):
        prove(artifact, run.generator, Inputs(8))  # it is no float32 artifact
    with torch.no_grad():
        run.generator.generator.project.weight += 0.5
    with pytest.raises(RunError, match=r"held against the generator, is .* dB below the 40 dB"):
        prove(artifact, run.generator, Inputs(8), min_psnr=40)


def test_a_graph_whose_images_depend_on_the_batch_is_refused(run_dir: Path, graph: onnx.ModelProto):
    # What dynamic quantization would do: the scale of an activation is that of its batch.
    dependent = onnx.ModelProto()
    dependent.CopyFrom(graph)
    nodes = dependent.graph.node
    at, layer = next((i, n) for i, n in enumerate(nodes) if n.op_type == "ConvTranspose")
    source = layer.input[0]
    layer.input[0] = "rounded"
    nodes.insert(at, onnx.helper.make_node("DequantizeLinear", ["u", "s", "z"], ["rounded"]))
    nodes.insert(at, onnx.helper.make_node("DynamicQuantizeLinear", [source], ["u", "s", "z"]))
    run = load_run_generator(run_dir)
    with pytest.raises(RunError, match=r"in a batch of \d+ differ from those in a batch of 64"):
        prove(dependent.SerializeToString(), run.generator, Inputs(8), min_psnr=20)


def test_a_graph_whose_images_depend_on_their_place_is_refused(
    run_dir: Path, graph: onnx.ModelProto
):
    dependent = onnx.ModelProto()
    dependent.CopyFrom(graph)
    nodes, helper = dependent.graph.node, onnx.helper
    for node in nodes:
        node.input[:] = ["moved" if name == "latents" else name for name in node.input]
    numbers = {"zero": 0, "one": 1}
    kind = onnx.TensorProto.INT64
    dependent.graph.initializer.extend(
        helper.make_tensor(name, kind, [], [value]) for name, value in numbers.items()
    )
    dependent.graph.initializer.append(helper.make_tensor("column", kind, [2], [-1, 1]))
    for node in reversed(
        [
            helper.make_node("Shape", ["latents"], ["shape"]),
            helper.make_node("Gather", ["shape", "zero"], ["batch"]),
            helper.make_node("Range", ["zero", "batch", "one"], ["places"]),
            helper.make_node("Reshape", ["places", "column"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["by"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Add", ["latents", "by"], ["moved"]),
        ]
    ):
        nodes.insert(0, node)
    run = load_run_generator(run_dir)
    with pytest.raises(RunError, match=r"in a batch of \d+ differ from those in a batch of 64"):
        prove(dependent.SerializeToString(), run.generator, Inputs(8), min_psnr=0)


def test_the_change_of_the_frechet_distance_is_measured_where_the_data_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    random, data = np.random.default_rng(0), tmp_path / "data"
    data.mkdir()
    for index in range(80):  # without classes, so no classifier is trained
        pixels = random.normal(128, 40, (8, 8)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(data / f"{index}.png")
    settings = {**SMALL, "data": str(data), "filters": 8, "total_images": 64}
    train(resolve({**settings, "run_dir": tmp_path / "run"}))

    def change(version: str) -> dict[str, Any] | None:
        path = export_run(tmp_path / "run", tmp_path, version, precision="int8", min_psnr=30)
        found: dict[str, Any] | None = metadata_of(path)["precision"].get("frechet_distance")
        return found

    measured = change("measured")
    assert measured is not None
    assert (measured["samples"], measured["repeats"]) == (40, 3)  # half of the data
    assert measured["change"] == pytest.approx(measured["exported"] - measured["fp32"])
    assert 0 < abs(measured["change"]) < 0.2 * measured["fp32"]
    assert measured["seed_spread"] > 0

    def go_on(*given: Any) -> Any:
        train(resolve({**settings, "run_dir": tmp_path / "run", "total_images": 128}))
        return frechet_change(*given)

    with monkeypatch.context() as patch:
        patch.setattr("gantrain.export.artifact.frechet_change", go_on)
        assert change("meanwhile") == measured, "of the weights in the artifact, not of newer ones"
    assert load_run_generator(tmp_path / "run").images_seen == 128
    data.rename(tmp_path / "gone")
    with caplog.at_level(logging.WARNING, logger="gantrain"):
        assert change("unmeasured") is None
    assert "the change of the Frechet distance is left out" in caplog.text


def test_a_conditional_generator_is_rounded_for_all_of_its_classes(
    conditional_run: Path, tmp_path: Path
):
    run = load_run_generator(conditional_run)
    path = export_run(
        conditional_run, tmp_path, "shades", precision="int8", min_psnr=35, frechet_samples=0
    )
    latents, labels = draw_latents(np.arange(30, dtype=np.uint64), 8), np.arange(30) % 3
    made = open_sampler(path).generate(latents, labels)
    for label in range(3):
        distance = measure_distance(
            made[labels == label], generate(run.generator, latents, labels)[labels == label]
        )
        assert distance.psnr > 33


def test_a_generator_with_nothing_to_gain_is_refused(graph: onnx.ModelProto):
    images = onnx.ModelProto()
    images.CopyFrom(graph)
    for node in images.graph.node:
        if node.op_type == "ConvTranspose":
            node.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    with pytest.raises(RunError, match="no layer that would gain by it; export it as fp32"):
        quantize_graph(images, Inputs(8), min_psnr=45)


def test_distance_is_what_its_names_say():
    expected = np.full((2, 4, 4, 1), 100, np.uint8)
    pixels = expected.copy()
    pixels.flat[:3] = 103, 98, 101
    distance = measure_distance(pixels, expected)
    assert distance.psnr == pytest.approx(10 * np.log10(255**2 / ((9 + 4 + 1) / 32)))
    assert distance.share_off_by_more_than_2 == 1 / 32
    assert distance.share_different == 3 / 32
    assert distance.max_difference == 3


def test_no_images_are_nearer_than_equal_ones():
    expected = np.zeros((1, 400, 400, 1), np.uint8)
    pixels = expected.copy()
    pixels.flat[0] = 1
    assert measure_distance(expected, expected).psnr == 100
    assert measure_distance(pixels, expected).psnr == 100  # more, were there no limit
