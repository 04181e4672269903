import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from gantrain.checkpoint import checkpoint_paths
from gantrain.errors import RunError
from gantrain.latents import draw_latents
from gantrain.networks import Shape, create_networks
from gantrain.presets import resolve
from gantrain.sampling import (
    PixelGenerator,
    finished_generator,
    generate,
    open_sampler,
    run_session,
)
from gantrain.training.batches import as_input


def test_pixels_round_half_to_even_clamp_and_put_channels_last():
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])  # 0 is exactly 127.5
    generator = PixelGenerator(lambda _: levels.reshape(1, 1, 1, 5).expand(1, 3, 1, 5))
    pixels = generator(torch.zeros(1, 1))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1, 1, 5, 3)
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("lowest", [-1.0, 0.0])
def test_every_grey_level_comes_back_from_training_as_it_was(lowest: float):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    batch = as_input(levels, lowest)
    assert (batch.min(), batch.max()) == (lowest, 1)
    pixels = PixelGenerator(lambda _: batch, lowest)(torch.zeros(1, 1))
    assert torch.equal(pixels.flatten(), levels.flatten())


def test_a_generator_that_makes_0_to_1_is_scaled_to_the_same_bytes():
    levels = torch.tensor([-0.5, 0.0, 0.5, 1.0, 2.0])  # 0.5 is exactly 127.5
    generator = PixelGenerator(lambda _: levels.reshape(1, 1, 1, 5), lowest=0.0)
    assert generator(torch.zeros(1, 1))[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def small_generator() -> torch.nn.Module:
    shape = Shape(image_size=8, channels=1, latent_dim=4, filters=4, kernel_size=5)
    return create_networks("dcgan", "dcgan", shape, seed=0)[0]


def settings(**more: object):
    return resolve({"data": "digits", "run_dir": "", "latent_dim": 4, "filters": 4, **more})


def test_without_averaging_the_statistics_of_training_stand():
    generator = small_generator()
    torch.nn.init.constant_(generator.layers[0].running_mean, 100.0)
    finished = finished_generator(generator, settings(ema_half_life_images=0), class_counts=())
    assert (finished.generator.layers[0].running_mean == 100).all()
    assert not finished.training


def test_statistics_of_the_averaged_generator_are_those_of_its_own_maps():
    generator = small_generator()
    torch.nn.init.constant_(generator.layers[0].running_mean, 100.0)  # statistics of another net
    averaged = finished_generator(generator, settings(), class_counts=())
    assert generator.layers[0].running_mean[0] == 100, "the original is left alone"
    latents = torch.from_numpy(draw_latents(np.arange(4096, dtype=np.uint64), 4))
    with torch.no_grad():
        maps = generator.project(latents).unflatten(1, generator.smallest)
    measured = averaged.generator.layers[0]
    torch.testing.assert_close(measured.running_mean, maps.mean((0, 2, 3)), atol=0.1, rtol=0)
    torch.testing.assert_close(measured.running_var, maps.var((0, 2, 3)), atol=0.1, rtol=0.1)


def test_statistics_of_an_averaged_generator_weigh_all_batches_alike_and_forget_training():
    """Against PyTorch's own way to measure them anew, with the same latents."""
    shape = Shape(image_size=8, channels=1, latent_dim=4, filters=4, kernel_size=5)
    generator, _ = create_networks("keras-mlp", "keras-mlp", shape, seed=0)
    latents = torch.from_numpy(draw_latents(np.arange(2**63, 2**63 + 2048, dtype=np.uint64), 4))
    with torch.no_grad():
        for _ in range(300):  # of other weights, as far as the average is concerned
            generator(5 + torch.randn(8, 4))
    found = finished_generator(generator, settings(), class_counts=()).generator
    torch.optim.swa_utils.update_bn(latents.split(64), generator)
    for name, expected in generator.named_buffers():
        if "running" in name:
            torch.testing.assert_close(found.get_buffer(name), expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_a_conditional_generator_are_those_of_the_datas_classes():
    shape = Shape(8, 1, latent_dim=4, filters=4, kernel_size=5, classes=3)
    generator, _ = create_networks("dcgan", "dcgan", shape, seed=0)
    counts = (30, 10, 0)
    finished = finished_generator(generator, settings(conditional=True), counts)
    latents = torch.from_numpy(draw_latents(np.arange(4096, dtype=np.uint64), 4))
    with torch.no_grad():
        maps = [
            (generator.project(latents) + generator.embed.weight[label]).unflatten(
                1, generator.smallest
            )
            for label in (0, 0, 0, 1)
        ]
    measured = finished.generator.layers[0].running_mean
    torch.testing.assert_close(measured, torch.cat(maps).mean((0, 2, 3)), atol=0.1, rtol=0)
    even = torch.cat([maps[0], maps[3]]).mean((0, 2, 3))
    assert (measured - even).abs().max() > 0.2, "evenly drawn labels would show"


def test_the_averaged_generator_is_always_the_same():
    generator = small_generator()
    latents = draw_latents(np.arange(100, dtype=np.uint64), 4)
    one, other = (
        generate(finished_generator(generator, settings(), class_counts=()), latents)
        for _ in range(2)
    )
    assert np.array_equal(one, other)


EXPECTED = r"expected a run's folder or an artifact \(model\.onnx\)"
NO_ONNX = "ONNX Runtime cannot load it: the file ends early or is no ONNX file: copy it again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "no such run folder or artifact", id="missing"),
        pytest.param(b"", f"{NO_ONNX}; {EXPECTED}$", id="empty"),
        pytest.param(b"not a model", f"{NO_ONNX}; {EXPECTED}$", id="text"),
        pytest.param(b"\x08\x08", f"ONNX Runtime cannot load it: .*[^.]; {EXPECTED}$", id="other"),
    ],
)
def test_what_is_neither_run_nor_artifact_is_refused(content, message: str, tmp_path: Path):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=message):
        open_sampler(path)


def test_a_checkpoint_is_sampled_as_it_is_however_far_the_run_has_come(
    small_run: Path, tmp_path: Path
):
    newest, earlier = checkpoint_paths(small_run / "checkpoints")
    latents = draw_latents(np.arange(4, dtype=np.uint64), 8)
    of_run = open_sampler(small_run)
    assert np.array_equal(
        open_sampler(newest).generate(latents, None), of_run.generate(latents, None)
    )
    sampler = open_sampler(earlier)
    assert sampler.settings["images_seen"] == int(earlier.stem) < of_run.settings["images_seen"]
    pixels = sampler.generate(latents, None)
    assert not np.array_equal(pixels, of_run.generate(latents, None))
    # The same as of a run that has come no further.
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / "checkpoints" / newest.name).unlink()
    assert np.array_equal(pixels, open_sampler(run).generate(latents, None))


def test_a_checkpoint_that_cannot_be_used_is_not_replaced_by_another(
    small_run: Path, tmp_path: Path
):
    run = shutil.copytree(small_run, tmp_path / "run")
    newest, earlier = checkpoint_paths(run / "checkpoints")
    with pytest.raises(
        RunError, match=rf"no such checkpoint; in .*: {newest.name}, {earlier.name}"
    ):
        open_sampler(newest.with_name("7.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.raises(RunError, match=rf"checkpoint .*{newest.name} is not usable: "):
        open_sampler(newest)
    moved = newest.rename(tmp_path / "lost.pt")
    with pytest.raises(RunError, match=r"holds no run: there is no config\.json in it"):
        open_sampler(moved)


def test_for_the_folder_of_a_model_its_newest_artifact_is_named(tmp_path: Path):
    for version in ("2", "10", "11"):
        (tmp_path / version).mkdir()
        if version != "11":
            (tmp_path / version / "model.onnx").touch()
    newest = tmp_path / "10" / "model.onnx"
    for folder in (tmp_path, newest.parent):
        with pytest.raises(RunError) as caught:
            open_sampler(folder)
        assert str(caught.value) == f"{folder} holds no run, but an artifact: give {newest}"


def test_a_folder_that_holds_neither_is_no_run(tmp_path: Path):
    (tmp_path / "1").mkdir()
    with pytest.raises(RunError, match=r"holds no run: there is no config\.json in it"):
        open_sampler(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        pytest.param({}, "not an artifact of gantrain", id="none"),
        pytest.param({"gan": "{}"}, "not an artifact of gantrain", id="empty"),
        pytest.param({"gan": "[1]"}, "not an artifact of gantrain", id="list"),
        pytest.param(
            {"gan": '{"schema": 2, "seed_contract": "philox4x32-10/box-muller/1"}'},
            "expected schema 1 with seeds philox4x32-10/box-muller/1, got 2 with",
            id="schema",
        ),
        pytest.param(
            {"gan": '{"schema": 1, "seed_contract": "other/1"}'}, "got 1 with other/1", id="seeds"
        ),
    ],
)
def test_a_foreign_onnx_file_is_refused(metadata, message: str, tmp_path: Path):
    import onnx

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "foreign", [value], [out]
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(RunError, match=message):
        open_sampler(tmp_path / "m.onnx")


def test_onnx_runtimes_lack_of_memory_is_one_of_pythons():
    count = 2**45
    latents = helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["n", 2])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", None, 2])
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["latents", "axis"], ["rows"]),
            helper.make_node("Expand", ["rows", "shape"], ["images"]),
        ],
        *("huge", [latents], [images]),
        [
            helper.make_tensor("shape", TensorProto.INT64, [3], [1, count, 2]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with pytest.raises(MemoryError, match="Failed to allocate memory for requested buffer of size"):
        run_session(session, np.zeros((1, 2), np.float32))


def test_a_lack_of_memory_that_says_nothing_more_is_told_as_one():
    class FullSession:
        def run(self, *_: object) -> None:
            raise MemoryError

    with pytest.raises(MemoryError, match=r"^MemoryError$"):
        run_session(FullSession(), np.zeros((1, 2), np.float32))
