"""Which images and which noise a step sees: functions of the seed and the position alone."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def load_batch(
    examples: Tensor,
    indices: Tensor,
    flip: bool,
    noise: torch.Generator,
    lowest: float,
    share: slice,
) -> Tensor:
    """Examples at indices [batch] as a network's input, of them a `share`.

    With `flip` an image is mirrored by chance, which does not depend on the share.
    """
    batch = examples[indices[share]]
    if flip:
        mirrored = torch.rand(len(indices), generator=noise, device=batch.device)[share] < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
    return as_input(batch, lowest)


def as_input(examples: Tensor, lowest: float) -> Tensor:
    """Examples as the float32 that discriminators take.

    Images, uint8 [n, channels, size, size], come in [lowest, 1] with the channels innermost in
    memory; points, float32 [n, 2], come as they are.
    """
    if examples.is_floating_point():
        return examples
    images = examples.to(torch.float32, memory_format=torch.channels_last)
    return images / (255 / (1 - lowest)) + lowest


def random_latents(count: int, latent_dim: int, noise: torch.Generator) -> Tensor:
    """Standard normal latents [count, latent_dim]."""
    return torch.randn(count, latent_dim, generator=noise, device=noise.device)


def stream_seed(seed: int, images_seen: int) -> int:
    """Seed of all noise of one step: a function of the run's seed and its position alone."""
    digest = hashlib.sha256(f"{seed}/{images_seen}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes 63 bits


class DataOrder:
    """Which images a step sees: a new permutation each epoch, a function of seed and position."""

    def __init__(
        self, count: int, images_per_step: int, seed: int, device: torch.device | None = None
    ) -> None:
        self.seed = seed
        self._count, self._images_per_step = count, images_per_step
        # Of a whole epoch at once: a step that sent its own would wait for the device.
        self._device = device
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, images_seen: int) -> Tensor:
        """Indices [images_per_step], int64 on the device, of the step that starts at a position."""
        parts, position, missing = [], images_seen, self._images_per_step
        while missing:
            epoch, offset = divmod(position, self._count)
            part = self._epoch_order(epoch)[offset : offset + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return torch.cat(parts)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            order = torch.from_numpy(random.permutation(self._count))
            self._epoch, self._permutation = epoch, order.to(self._device)
        return self._permutation
