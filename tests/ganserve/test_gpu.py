"""What only a GPU can show; each test skips itself where there is none."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ganserve.errors import ModelError, ProviderUnavailable
from ganserve.latents import draw_latents
from ganserve.models.gpu_sessions import GpuSettings
from ganserve.models.loading import load_model
from tests.ganserve.conftest import connected
from tests.ganserve.test_reproducibility import images, seeds
from tests.ganserve.tiny import write_artifact

pytestmark = pytest.mark.gpu

SIZES = (1, 2, 4, 8, 16)


@pytest.fixture
def load(tmp_path):
    """Load the convolutional network on a GPU."""
    tolerance = {"max_difference": 1, "differing_share": 1.0}
    path = write_artifact(tmp_path, network="convolutional", height=16, width=16, **tolerance)
    with ThreadPoolExecutor(1, "gpu") as executor:

        def load_it(device="cuda", **settings):
            settings = GpuSettings(executor, **settings)
            try:
                return load_model(
                    path, device, threads=1, warm_batch_sizes=lambda _: SIZES, gpu=settings
                )
            except ProviderUnavailable as error:
                pytest.skip(f"needs a GPU: {error}")

        yield load_it


def latents(count):
    return draw_latents(np.arange(count, dtype=np.uint64), 4)


def test_every_size_makes_the_same_bits(load):
    model = load()
    expected = model.run_batch(latents(16))
    for rows in range(1, 17):
        assert np.array_equal(model.run_batch(latents(rows)), expected[:rows]), rows


def test_graphs_make_the_same_bits(load):
    try:
        with_graphs = load(cuda_graphs="on")
    except ModelError as error:
        pytest.fail(f"this network can be captured: {error}")
    without = load(cuda_graphs="off")
    for rows in (*SIZES, 3, 40):
        made = with_graphs.run_batch(latents(rows))
        assert np.array_equal(made, without.run_batch(latents(rows))), rows


@pytest.mark.parametrize("reproducibility", ["strict", "fast"])
def test_images_are_those_of_the_cpu_within_the_tolerance(load, tmp_path, reproducibility):
    made = load(reproducibility=reproducibility).run_batch(latents(16)).astype(int)
    plain = load_model(tmp_path / "tiny/1/model.onnx", "cpu", threads=1)
    assert np.abs(made - plain.run_batch(latents(16))).max() <= 1


def test_several_callers_at_once_get_their_own_images(load):
    model = load()
    expected = model.run_batch(latents(16))
    with ThreadPoolExecutor(4) as callers:
        for made in callers.map(model.run_batch, [latents(16)] * 100):
            assert np.array_equal(made, expected)


def test_tensorrt_makes_the_same_bits_at_every_size(load, tmp_path):
    model = load("tensorrt", tensorrt_cache=tmp_path / "engines")
    expected = model.run_batch(latents(16))
    for rows in range(1, 17):
        assert np.array_equal(model.run_batch(latents(rows)), expected[:rows]), rows
    assert [*(tmp_path / "engines").rglob("*.engine")]


async def test_a_server_keeps_the_promise_on_cuda(load, tmp_path, running_server):
    load()  # or skip
    settings = {"device": "cuda", "instances": None, "threads": None}
    async with running_server(tmp_path, **settings) as server, connected(server) as stub:
        batch = await images(stub, seeds(*range(40)))
        for seed in range(40):
            assert await images(stub, seeds(seed)) == [batch[seed]]
