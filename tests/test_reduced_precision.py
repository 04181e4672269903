"""Artifacts of lower precision in both programs: exported, loaded, served to the bit."""

import asyncio
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from ganserve.client.async_client import AsyncClient  # noqa: E402
from ganserve.errors import ModelError  # noqa: E402
from ganserve.models.loading import load_model  # noqa: E402
from ganserve.server import running  # noqa: E402
from gantrain.export.artifact import export_run  # noqa: E402
from gantrain.export.precision_distance import MEASURED, measure_distance  # noqa: E402
from gantrain.latents import draw_latents  # noqa: E402
from gantrain.presets import resolve  # noqa: E402
from gantrain.sampling import generate, load_run_generator  # noqa: E402
from gantrain.training.loop import train  # noqa: E402
from tests.ganserve.conftest import server_config  # noqa: E402

LATENT_DIM = 8
MIN_PSNR = 40.0


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"data": "digits", "threads": 1, "batch_size": 16, "tensorboard": False}
    more = {"image_size": 16, "filters": 8, "latent_dim": LATENT_DIM, "total_images": 256}
    folder = tmp_path_factory.mktemp("precision") / "run"
    train(resolve({**settings, **more, "run_dir": folder}))
    return folder


@pytest.mark.parametrize("precision", ["int8", "fp16"])
async def test_what_is_exported_is_served_to_the_bit_under_any_load(
    precision, run_dir, tmp_path, caplog
):
    path = export_run(
        run_dir,
        tmp_path / "models",
        "digits",
        precision=precision,
        min_psnr=MIN_PSNR,
        frechet_samples=0,
    )
    model = load_model(path, "cpu", threads=1)  # checks the golden images too
    assert model.spec.precision == precision
    latents = draw_latents(MEASURED, LATENT_DIM)
    expected = generate(load_run_generator(run_dir).generator, latents)
    assert measure_distance(model.run_batch(latents), expected).psnr >= MIN_PSNR

    random = np.random.default_rng(0)
    wanted = [random.integers(0, 50, size).tolist() for size in random.integers(1, 40, 30)]
    with caplog.at_level(logging.INFO, logger="ganserve"):
        async with running(server_config(tmp_path / "models", max_batch_size=16)) as server:
            await server.wait_until_ready()
            async with AsyncClient(server.address) as client:
                alone = {seed: (await client.generate(seeds=[seed]))[0] for seed in range(50)}
                calls = (client.generate(seeds=seeds) for seeds in wanted)
                answers = await asyncio.gather(*calls)
    for seeds, answer in zip(wanted, answers, strict=True):
        assert np.array_equal(answer, np.stack([alone[seed] for seed in seeds]))
    assert f"model digits version 1 serves in {precision} on CPUExecutionProvider" in caplog.text


def nudge(path: Path, factor: float) -> Path:
    """The artifact with the weights of its first layer, which is in float32, multiplied."""
    model = onnx.load(path)
    for entry in model.graph.initializer:
        if entry.name == "generator.project.weight":
            values = numpy_helper.to_array(entry) * np.float32(factor)
            entry.CopyFrom(numpy_helper.from_array(values, entry.name))
    changed = path.with_name(f"times_{factor}.onnx")
    onnx.save(model, changed)
    return changed


def test_golden_images_pass_with_other_last_bits_and_not_with_other_weights(run_dir, tmp_path):
    settings = {"precision": "int8", "min_psnr": MIN_PSNR, "frechet_samples": 0}
    path = export_run(run_dir, tmp_path, "digits", **settings)
    # Another processor sums in another order, which changes the last bits of what is rounded.
    load_model(nudge(path, 1 + 1e-5), "cpu", threads=1)
    with pytest.raises(ModelError, match="golden image of seed 0: expected at most 24 grey levels"):
        load_model(nudge(path, 1.5), "cpu", threads=1)
