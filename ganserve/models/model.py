"""A model that serves: its session, what is known of it, and the checks of what it makes."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganserve.errors import ModelError
from ganserve.latents import draw_latents
from ganserve.models.artifact import Golden, check_golden_image
from ganserve.models.batch_sizes import are_rows_independent
from ganserve.models.bound_session import BoundSession
from ganserve.models.model_spec import ModelSpec, make_feeds, runner_of_rows
from ganserve.models.runtime import Session


@dataclass(frozen=True)
class Model:
    """A session that was checked. Safe to call from several threads at once."""

    spec: ModelSpec
    session: Session | BoundSession
    # The only ones it is called with, on GPUs; empty on CPUs, where every size makes the same bits.
    batch_sizes: tuple[int, ...] = ()
    lone_session: Session | None = None  # if batches that come alone are faster with it

    def run_batch(
        self,
        latents: NDArray[np.float32],  # [n, latent_dim]
        labels: NDArray[np.int64] | None = None,  # [n], conditional models only
    ) -> NDArray[np.uint8]:  # [n, height, width, channels]
        """Generate one image for each row. The GIL is released meanwhile."""
        return _run(self.session, latents, labels)

    def run_lone_batch(
        self, latents: NDArray[np.float32], labels: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """As `run_batch`, with all CPUs; the same bytes."""
        return _run(self.lone_session, latents, labels)


def _run(
    session: Session | BoundSession,
    latents: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
) -> NDArray[np.uint8]:
    feeds: dict[str, NDArray[Any]] = {"latents": latents}
    if labels is not None:
        feeds["labels"] = labels
    images: NDArray[np.uint8] = session.run(["images"], feeds)[0]
    return images


def check_golden(model: Model, golden: Golden) -> None:
    """Generate the golden images and compare them with the known ones.

    Raises:
        ModelError: the model makes others, or the labels of the known ones are none of its own.
    """
    seeds = np.array([image.seed for image in golden.images], np.uint64)
    labels = None
    if model.spec.class_names:
        classes = len(model.spec.class_names)
        labels = np.array([image.label or 0 for image in golden.images], np.int64)
        if any(image.label is None for image in golden.images) or labels.max() >= classes:
            raise ModelError(f"golden images: expected labels below {classes} for each")
    made = model.run_batch(draw_latents(seeds, model.spec.latent_dim), labels)
    spec = model.spec
    if made.shape != (len(seeds), spec.height, spec.width, spec.channels):
        raise ModelError(f"images: expected the declared shape, got {made.shape}")
    for image, pixels in zip(golden.images, made, strict=True):
        check_golden_image(image, pixels, golden.tolerance)


def check_independence(model: Model, batch_size: int) -> None:
    """Make sure that an image is the same bytes alone and in a batch; both sizes are warm then.

    The CPU's kernels make the same bits at every size, so all that is looked for is a graph that
    does not. That takes one full batch, which had to be warmed up anyway, and a few single rows.

    Raises:
        ModelError: it is not.
    """
    if not are_rows_independent(runner_of_rows(model.session, model.spec, batch_size), batch_size):
        raise ModelError(
            "reproducibility strict: expected the same bytes of an image alone and in a batch, got "
            "others: something in the graph looks at the whole batch, such as dynamic quantization "
            "(DynamicQuantizeLinear), where static quantization would not; --reproducibility fast "
            "serves without that promise"
        )


def warm_up(model: Model, batch_sizes: Collection[int], *, strict: bool) -> None:
    """Run a batch of each size, so that no caller pays for first-time work.

    Raises:
        ModelError: if `strict`, an image depends on its batch.
    """
    sizes = {*batch_sizes}
    if strict:
        largest = max(2, *sizes)  # a batch of one could not tell
        check_independence(model, largest)
        sizes -= {1, largest}
    for size in sorted(sizes):
        model.session.run(["images"], make_feeds(model.spec, size))
