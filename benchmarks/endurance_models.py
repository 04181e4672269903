"""Hides the models of the endurance runs: the tests' tiny ones, and what their pixels must be."""

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganserve.latents import draw_latents

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the tests' artifacts are the smallest
tiny: Any = importlib.import_module("tests.ganserve.tiny")

LATENT_DIM = 4
CHECKED_SEEDS = 64  # from 0 on; replies about these can be checked
_OFFSETS = 120  # as many versions in a row differ in every pixel that is not black or white


def offset_of(version: int) -> int:
    """What tells this version's pixels from others'."""
    return version % _OFFSETS - _OFFSETS // 2


def expected_pixels(versions: int) -> NDArray[np.uint8]:  # [versions + 1, seeds, bytes]
    """What each version must answer for each seed, computed without a server."""
    latents = draw_latents(np.arange(CHECKED_SEEDS, dtype=np.uint64), LATENT_DIM)
    return np.stack(
        [
            tiny.reveal_pixels(latents, offset=offset_of(version)).reshape(CHECKED_SEEDS, -1)
            for version in range(versions + 1)
        ]
    )


def prepare_versions(
    folder: Path, name: str, versions: int, first: int = 1
) -> Iterator[Callable[[Path], None]]:
    """Write versions of a model aside; each is then published in a model's folder by a rename."""
    for version in range(first, first + versions):
        tiny.write_artifact(folder, name, version, offset=offset_of(version))
    for version in range(first, first + versions):
        yield partial(_publish, folder / name / str(version))


def _publish(prepared: Path, model: Path) -> None:
    prepared.rename(model / prepared.name)
