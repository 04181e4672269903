"""The promise: same seed, same bytes, whatever happens around it."""

import asyncio

import numpy as np
import pytest

from ganserve.latents import draw_latents
from ganserve.v1 import image_generation_pb2 as pb
from tests.ganserve.conftest import connected, eventually
from tests.ganserve.tiny import write_artifact

SEED = 12345
LATENT_DIM = 4


@pytest.fixture(params=["reveal", "convolutional"])
def models(request, tmp_path):
    write_artifact(tmp_path, network=request.param, latent_dim=LATENT_DIM)
    return tmp_path


def seeds(*values):
    return pb.GenerateImagesRequest(seeds=pb.Seeds(values=values), format=pb.IMAGE_FORMAT_RAW)


async def images(stub, request):
    """Each image's bytes."""
    reply = await stub.GenerateImages(request)
    size = len(reply.pixels) // reply.count
    return [reply.pixels[start : start + size] for start in range(0, len(reply.pixels), size)]


async def test_alone_and_at_every_position_of_a_batch(models, running_server):
    async with running_server(models, max_batch_size=64) as server, connected(server) as stub:
        (alone,) = await images(stub, seeds(SEED))
        for position in (0, 1, 31, 63):
            others = list(range(63))
            batch = await images(stub, seeds(*others[:position], SEED, *others[position:]))
            assert len(batch) == 64
            assert batch[position] == alone


async def test_under_concurrent_load_of_all_sizes(models, running_server):
    random = np.random.default_rng(1)
    sizes = random.integers(1, 40, size=60).tolist()
    async with running_server(models) as server, connected(server) as stub:
        reference = {seed: (await images(stub, seeds(seed)))[0] for seed in range(100)}
        wanted = [random.integers(0, 100, size=size).tolist() for size in sizes]
        answers = await asyncio.gather(*(images(stub, seeds(*values)) for values in wanted))
    for values, answer in zip(wanted, answers, strict=True):
        assert answer == [reference[seed] for seed in values]


async def test_after_a_restart_and_with_other_settings(models, running_server):
    async with running_server(models) as server, connected(server) as stub:
        before = await images(stub, seeds(*range(40)))
    settings = {"max_batch_size": 7, "instances": 3, "threads": 2}
    async with running_server(models, **settings) as server, connected(server) as stub:
        assert await images(stub, seeds(*range(40))) == before


async def test_from_seeds_a_range_latents_and_a_stream(models, running_server):
    raw = {"format": pb.IMAGE_FORMAT_RAW}
    latents = draw_latents(np.arange(5, 25, dtype=np.uint64), LATENT_DIM)
    async with running_server(models, chunk_bytes=3000) as server, connected(server) as stub:
        by_seeds = await images(stub, seeds(*range(5, 25)))
        by_range = await images(
            stub, pb.GenerateImagesRequest(seed_range=pb.SeedRange(start=5, count=20), **raw)
        )
        by_latents = await images(
            stub, pb.GenerateImagesRequest(latents=pb.Latents(values=latents.ravel()), **raw)
        )
        stream = [reply.pixels async for reply in stub.StreamImages(seeds(*range(5, 25)))]
    assert by_seeds == by_range == by_latents
    assert b"".join(stream) == b"".join(by_seeds)


async def test_after_another_version_with_the_same_weights_took_over(models, running_server):
    async with running_server(models) as server, connected(server) as stub:
        before = await images(stub, seeds(*range(20)))
        content = (models / "tiny/1/model.onnx").read_bytes()
        (models / "next").mkdir()
        (models / "next/model.onnx").write_bytes(content)
        (models / "next").rename(models / "tiny" / "2")
        await eventually(lambda: server.repository.index.versions[0].number == 2)
        assert await images(stub, seeds(*range(20))) == before


async def test_files_are_the_same_bytes_too(models, running_server):
    request = seeds(*range(12))
    async with running_server(models) as server, connected(server) as stub:
        for number in (pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_WEBP):
            request.format = number
            first, second = await asyncio.gather(*(stub.GenerateImages(request) for _ in range(2)))
            alone = seeds(7)
            alone.format = number
            assert list(first.images) == list(second.images)
            assert (await stub.GenerateImages(alone)).images[0] == first.images[7]
