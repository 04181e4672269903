"""Proof that an artifact makes the generator's images, and the same ones in every batch."""

from typing import Any

import numpy as np

from gantrain.class_labels import Labels
from gantrain.errors import RunError
from gantrain.export.precision_distance import MEASURED, Inputs, measure_distance, refuse_below
from gantrain.pictures import Pixels
from gantrain.sampling import (
    Latents,
    PixelGenerator,
    generate,
    open_session,
    run_session,
    sample_session,
)

PROOF_BATCHES = (1, 2, 7, 64)
# PyTorch and ONNX Runtime sum in different orders, so a value on the edge between two grey levels
# may fall to either side: measured on a few pixels in a million.
# One is always allowed: of the 64 values of an 8x8 image it is more than any sensible share.
_PROOF_DIFFERENCE, _PROOF_SHARE = 1, 1e-3


def prove(
    artifact: bytes,
    generator: PixelGenerator,
    inputs: Inputs,
    min_psnr: float | None = None,
) -> None:
    """Compare the artifact with the PyTorch generator, and its batches with each other.

    Batches of a conditional generator are of mixed classes. `min_psnr` is of an artifact of lower
    precision: so near must it be on the whole, in dB, where others may differ by rounding alone.

    Raises:
        RunError: images differ by more, or depend on the batch they are made in or their place in
            it.
    """
    session = open_session(artifact)
    seeds = np.arange(max(PROOF_BATCHES), dtype=np.uint64)
    latents, labels = inputs.draw(seeds)
    pixels = run_session(session, latents, labels)
    expected = generate(generator, latents, labels)
    if pixels.shape != expected.shape:
        raise RunError(
            f"the artifact makes {pixels.shape}, the generator {expected.shape}; nothing was "
            "published"
        )
    if min_psnr is None:
        for batch in PROOF_BATCHES:
            compare(pixels[:batch], expected[:batch], batch)
    else:
        prove_distance(session, generator, inputs, min_psnr)
    prove_reproducible(session, latents, labels, pixels)


def compare(pixels: Pixels, expected: Pixels, batch: int) -> None:
    """Raise RunError where two sets of images differ by more than rounding explains."""
    difference = np.abs(pixels.astype(np.int16) - expected)
    share = float(np.mean(difference > 0))
    if difference.max() > _PROOF_DIFFERENCE or share > max(_PROOF_SHARE, 1 / difference.size):
        raise RunError(
            f"the artifact's images differ from the generator's in a batch of {batch}: by up to "
            f"{difference.max()} grey levels (at most {_PROOF_DIFFERENCE} allowed), on {share:.2%} "
            f"of values (at most {_PROOF_SHARE:.2%}); nothing was published"
        )


def prove_distance(
    session: Any,  # noqa: ANN401 - untyped library
    generator: PixelGenerator,
    inputs: Inputs,
    min_psnr: float,
) -> None:
    """Raise RunError where an artifact's images are not within `min_psnr` of the generator's."""
    latents, labels = inputs.draw(MEASURED)
    pixels = sample_session(session, latents, labels)
    distance = measure_distance(pixels, generate(generator, latents, labels))
    refuse_below(distance, min_psnr, "the artifact, held against the generator,")


def prove_reproducible(
    session: Any,  # noqa: ANN401
    latents: Latents,
    labels: Labels | None,
    pixels: Pixels,  # what the session makes of all of them at once
) -> None:
    """Raise RunError where an image depends on the size of its batch or its place in it."""
    order = np.arange(len(latents))
    for batch in PROOF_BATCHES:
        # The first rows in their order, and the last in the other, so that each changes its place.
        for rows in (order[:batch], order[::-1][:batch]):
            made = run_session(session, latents[rows], None if labels is None else labels[rows])
            if not np.array_equal(made, pixels[rows]):
                raise RunError(
                    f"the artifact's images in a batch of {batch} differ from those in a batch of "
                    f"{len(latents)}; nothing was published"
                )
