"""Hides the classifier that quality is measured with: one network, one recipe, no luck."""

import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gantrain.progress import show_progress

Images = NDArray[np.uint8]  # [n, channels, size, size]

RECIPE: Final = 2  # counts up with every change of what training makes of the same images
FEATURES: Final = 128  # width of the layer below the logits
_WIDTHS: Final = (32, 64, 64, 96, 96)
_SMALLEST_MAP: Final = 4  # pixels; maps are halved while they are larger
_LARGE: Final = 32  # pixels; the first convolution of larger images skips every other one
_BATCH: Final = 128
_EPOCHS: Final = 4
_FEWEST_IMAGES, _MOST_IMAGES = 60_000, 240_000  # seen in training, whatever the data's size,
_MOST_EPOCHS: Final = 100  # but few images are not seen for ever
_MAX_LR: Final = 4e-3
_SHIFT: Final = 14  # images are shifted by up to a 14th of their size
_SEED: Final = 0
_CHUNK: Final = 512  # images worked on at once when none are learned from

logger = logging.getLogger(__name__)


class Classifier(nn.Module):
    """images [n, channels, size, size] in [-1, 1] -> features [n, 128] -> logits [n, classes]."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.shape = (channels, size, classes)
        stages: list[nn.Module] = []
        for width in _WIDTHS:
            if size <= _SMALLEST_MAP:
                break
            stride = 2 if size > _LARGE else 1
            stages += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels, size = width, size // stride // 2
        self.features = nn.Sequential(
            *stages, nn.Flatten(), nn.Linear(channels * size**2, FEATURES), nn.ReLU()
        )
        self.logits = nn.Sequential(nn.Dropout(0.25), nn.Linear(FEATURES, classes))
        # As `as_tensor` lays out images, for it is quicker. Here, so that a classifier that is read
        # from the cache has the layout too, adds up in the same order and finds the same features.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes]."""
        logits: Tensor = self.logits(self.features(images))
        return logits


@dataclass(frozen=True)
class Recognition:
    """What a classifier makes of images."""

    features: Tensor  # float32 [n, 128], of the layer below the logits
    labels: NDArray[np.int64]  # [n], the likeliest class of each image


def train_classifier(images: Images, labels: NDArray[np.int64], classes: int) -> Classifier:
    """Learn the classes of images; the same images and labels give the same classifier.

    Cross entropy, Adam with a one-cycle schedule, small random shifts. Nothing is held out here and
    nothing chosen by a score: how well it does is for others to measure.

    Args:
        images: `[n, channels, size, size]`.
        labels: `[n]`, 0 to `classes - 1`.
        classes: their number, at least 2.
    """
    count, channels, size, _ = images.shape
    fewest = min(_FEWEST_IMAGES, _MOST_EPOCHS * count)
    steps = max(min(max(_EPOCHS * count, fewest), _MOST_IMAGES) // _BATCH, 1)
    logger.info("training a classifier of %d classes on %d images", classes, count)
    targets = torch.from_numpy(labels)
    order = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng(devices=[]):  # weights and dropout
        torch.manual_seed(_SEED)
        network = Classifier(channels, size, classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=_MAX_LR, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _MAX_LR, total_steps=steps)
        waiting = torch.empty(0, dtype=torch.int64)
        for _ in show_progress(range(steps), steps, "classifier", "step"):
            while len(waiting) < _BATCH:
                waiting = torch.cat([waiting, torch.randperm(count, generator=order)])
            rows, waiting = waiting[:_BATCH], waiting[_BATCH:]
            batch = _shift(as_tensor(images[rows.numpy()]), size // _SHIFT, order)
            loss = nn.functional.cross_entropy(network(batch), targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


def recognise(network: Classifier, images: Images) -> Recognition:
    """Features and classes of images [n, channels, size, size]."""
    features, labels = [], []
    with torch.no_grad():
        for start in range(0, len(images), _CHUNK):
            some = network.features(as_tensor(images[start : start + _CHUNK]))
            features.append(some)
            labels.append(network.logits(some).argmax(1))
    return Recognition(torch.cat(features), torch.cat(labels).numpy())


def as_tensor(images: Images) -> Tensor:
    """Scale images to [-1, 1], laid out as convolutions on a CPU like it."""
    values = torch.from_numpy(np.ascontiguousarray(images)).float().div_(127.5).sub_(1)
    return values.contiguous(memory_format=torch.channels_last)


def _shift(images: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Shift each batch by up to so many pixels up or down and left or right."""
    if not most:
        return images
    down, right = torch.randint(2 * most + 1, (2,), generator=random).tolist()
    size = images.shape[-1]
    padded = nn.functional.pad(images, (most, most, most, most), value=-1.0)
    return padded[:, :, down : down + size, right : right + size]
