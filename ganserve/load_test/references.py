"""Verified answers: what each seed's image must be, and whether a reply holds it.

The images are asked for one at a time before there is load. Under load the same seeds come back in
many overlapping groups, so that an image that depended on its batch, its place in it or its
neighbours would show.
"""

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable

import grpc

from ganserve.client.patience import Patience
from ganserve.load_test.plan import LoadPlan, LoadTally, References
from ganserve.v1 import image_generation_pb2 as pb

# Different requests; more of them repeat each more rarely and take longer to fetch.
VERIFIED_REQUESTS = 64
_WRONG_REQUESTS_NAMED = 10

Generate = Callable[[bytes], Awaitable[bytes]]  # serialized request to serialized response


def build_message(plan: LoadPlan, first_seed: int, count: int) -> bytes:
    """Serialize a request for `count` seeds from `first_seed` on."""
    labels = [] if plan.class_label is None else [plan.class_label]
    return pb.GenerateImagesRequest(
        model_name=plan.model,
        seed_range=pb.SeedRange(start=first_seed, count=count),
        class_labels=labels,
        format=pb.ImageFormat.Value(f"IMAGE_FORMAT_{plan.image_format.upper()}"),
    ).SerializeToString()


async def fetch_references(plan: LoadPlan, generate: Generate) -> References:
    """Ask for the image of every seed that the load will ask for, one after the other.

    Raises:
        ValueError: a call fails, its reply is not one image, or the model changes meanwhile.
    """
    digests: set[str] = set()
    images: list[str] = []
    for seed in range(VERIFIED_REQUESTS + plan.images_per_request - 1):
        reply = await _fetch_reference(plan, generate, seed)
        response = pb.GenerateImagesResponse.FromString(reply)
        hashes = _hash_images(response)
        if len(hashes) != 1:
            raise ValueError(f"reference image of seed {seed}: expected 1 image, got {len(hashes)}")
        digests.add(response.model.digest)
        images += hashes
    if len(digests) != 1:
        raise ValueError("reference images: the model changed while they were fetched; try again")
    return References(digests.pop(), tuple(images))


async def _fetch_reference(plan: LoadPlan, generate: Generate, seed: int) -> bytes:
    """The reply with the image of a seed, also by a server that is busy meanwhile."""
    patience = Patience(plan.timeout_seconds, math.inf)
    while True:
        try:
            return await generate(build_message(plan, seed, 1))
        except grpc.aio.AioRpcError as error:
            try:
                await asyncio.sleep(patience.pause_after(error))
            except grpc.aio.AioRpcError:  # the same: it does not help to wait, or for too long
                message = f"reference image of seed {seed}: {error.code().name}: {error.details()}"
                raise ValueError(message) from None


def verify(tally: LoadTally, references: References, reply: bytes, seed: int, count: int) -> None:
    """Compare the images of a reply with those that `count` seeds from `seed` on must give."""
    response = pb.GenerateImagesResponse.FromString(reply)
    tally.verified += 1
    if response.model.digest != references.model_digest:
        tally.other_version += 1
    elif _hash_images(response) != list(references.images[seed : seed + count]):
        tally.wrong += 1
        if len(tally.wrong_requests) < _WRONG_REQUESTS_NAMED:
            tally.wrong_requests.append(seed)


def _hash_images(response: pb.GenerateImagesResponse) -> list[str]:
    """SHA-256 of each image, in hexadecimal; of none where the pixels do not fit their number."""
    images: list[bytes | memoryview] = list(response.images)
    if response.pixels and response.count:
        pixels = memoryview(response.pixels)
        size, rest = divmod(len(pixels), response.count)
        if rest == 0:
            images += [pixels[start : start + size] for start in range(0, len(pixels), size)]
    return [hashlib.sha256(image).hexdigest() for image in images]
