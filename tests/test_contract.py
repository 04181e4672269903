"""What joins the two programs: gantrain exports, ganserve serves, pixels agree."""

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

import ganserve.latents  # noqa: E402
import gantrain.latents  # noqa: E402
from ganserve.client import Client  # noqa: E402
from ganserve.grid import make_grid  # noqa: E402
from ganserve.models.loading import load_model  # noqa: E402
from ganserve.server import running  # noqa: E402
from gantrain.evaluation.evaluate import evaluate  # noqa: E402
from gantrain.evaluation.results import write_evaluation  # noqa: E402
from gantrain.export.artifact import export_run  # noqa: E402
from gantrain.networks import GENERATORS  # noqa: E402
from gantrain.pictures import image_grid  # noqa: E402
from gantrain.presets import PRESETS, resolve  # noqa: E402
from gantrain.sampling import generate, load_run_generator  # noqa: E402
from gantrain.training.loop import train  # noqa: E402
from tests.ganserve.conftest import server_config  # noqa: E402

SEEDS = np.array([0, 1, 2, 63, 2**32, 2**63, 2**64 - 1], np.uint64)


def test_both_programs_draw_the_same_latents_for_a_seed():
    one, other = (
        ganserve.latents.draw_latents(SEEDS, 101),
        gantrain.latents.draw_latents(SEEDS, 101),
    )
    assert one.tobytes() == other.tobytes()


def test_both_programs_walk_the_same_way_between_seeds():
    stations = gantrain.latents.draw_latents(SEEDS, 16)
    one = gantrain.latents.interpolate_latents(stations, 7)
    other = ganserve.latents.interpolate_latents(SEEDS, 7, 16)
    assert one.tobytes() == other.tobytes()


def test_both_programs_lay_out_the_same_grid():
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 3), np.uint8)
    assert np.array_equal(np.asarray(image_grid(images)), make_grid(images))


# Every preset that makes images, as small as it can be made.
ROADS = {
    "28x28 grey": {"image_size": 28, "channels": 1, "filters": 8},
    "32x32 RGB": {"image_size": 32, "channels": 3, "filters": 8},
    "dcgan-2015": {"preset": "dcgan-2015", "image_size": 28, "filters": 4},
    "keras-mlp": {"preset": "keras-mlp"},
    "keras-mlp-conv-critic": {"preset": "keras-mlp-conv-critic"},
    "keras-conv64": {"preset": "keras-conv64", "filters": 4},
    "selu-dense": {"preset": "selu-dense"},
    "torch-mlp": {"preset": "torch-mlp"},
    "faces-rmsprop": {"preset": "faces-rmsprop", "image_size": 32, "filters": 8},
}


def test_every_preset_of_images_takes_the_road():
    taken = {settings.get("preset", "dcgan") for settings in ROADS.values()}
    assert taken == {
        name
        for name, preset in PRESETS.items()
        if not GENERATORS[preset.settings.get("generator", "dcgan")].points
    }


@pytest.fixture(scope="module", params=ROADS.values(), ids=ROADS.keys())
def run_and_repository(request, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("road")
    settings = {"data": "digits", "run_dir": folder / "run", "threads": 1, "batch_size": 16}
    train(resolve({**settings, "total_images": 128, "tensorboard": False, **request.param}))
    export_run(folder / "run", folder / "models", "digits")
    return folder / "run", folder / "models"


async def test_a_conditional_generator_is_served_class_by_class(tmp_path):
    settings = {"data": "digits", "run_dir": tmp_path / "run", "threads": 1, "batch_size": 16}
    more = {"filters": 8, "total_images": 128, "conditional": True, "tensorboard": False}
    train(resolve({**settings, **more}))
    path = export_run(tmp_path / "run", tmp_path / "models", "digits")
    model = load_model(path, "cpu", threads=1)  # checks the golden images too
    assert model.spec.class_names == tuple("0123456789")
    run = load_run_generator(tmp_path / "run")
    latents = gantrain.latents.draw_latents(SEEDS, run.config.latent_dim)
    labels = np.array([9, 0, 3, 3, 7, 1, 9])
    expected = generate(run.generator, latents, labels)
    difference = np.abs(model.run_batch(latents, labels).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).sum() <= max(1, 1e-3 * difference.size)

    def ask(address: str) -> np.ndarray:
        with Client(address) as client:
            seeds = [int(seed) for seed in SEEDS]
            return client.generate(seeds=seeds, class_labels=labels.tolist())

    async with running(server_config(tmp_path / "models")) as server:
        await server.wait_until_ready()
        served = await asyncio.to_thread(ask, server.address)
    assert np.array_equal(served, model.run_batch(latents, labels))


async def test_what_was_measured_is_served_with_the_model(tmp_path):
    settings = {"data": "digits", "run_dir": tmp_path / "run", "threads": 1, "batch_size": 16}
    train(resolve({**settings, "filters": 4, "total_images": 128, "tensorboard": False}))
    torch.set_num_threads(1)
    found = evaluate(tmp_path / "run", "digits", samples=50, cache=tmp_path / "cache")
    write_evaluation(found, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "models", "digits")

    def ask(address: str) -> dict[str, float]:
        with Client(address) as client:
            (model,) = client.models()
            return {result.name: result.value for result in model.evaluation}

    async with running(server_config(tmp_path / "models")) as server:
        await server.wait_until_ready()
        served = await asyncio.to_thread(ask, server.address)
    assert served == found.numbers()
    assert served["classifier_accuracy"] >= 0.97
    assert served["frechet_distance_floor"] < served["frechet_distance"]


async def test_served_pixels_are_those_of_the_trained_generator(run_and_repository):
    run_dir, repository = run_and_repository
    run = load_run_generator(run_dir)
    latents = gantrain.latents.draw_latents(SEEDS, run.config.latent_dim)
    expected = generate(run.generator, latents)

    def ask(address: str) -> tuple[np.ndarray, np.ndarray]:
        with Client(address) as client:
            seeds = [int(seed) for seed in SEEDS]
            return client.generate(seeds=seeds), client.generate(latents=latents)

    async with running(server_config(repository)) as server:
        await server.wait_until_ready()
        from_seeds, from_latents = await asyncio.to_thread(ask, server.address)
    assert hashlib.sha256(from_seeds).digest() == hashlib.sha256(from_latents).digest()
    difference = np.abs(from_seeds.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3
