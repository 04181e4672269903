"""Runs small enough to train in a test."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gantrain.checkpoint import checkpoint_paths
from gantrain.presets import resolve
from gantrain.training.loop import train

# Networks of a few thousand weights on 8x8 digits: a step takes milliseconds.
SMALL = {"data": "digits", "filters": 4, "latent_dim": 8, "batch_size": 16, "threads": 1}


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 64 steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "small"
    train(resolve({**SMALL, "run_dir": run_dir, "total_images": 1024}))
    return run_dir


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One classifier of the digits for all tests."""
    return tmp_path_factory.mktemp("cache")


def wait_for_checkpoint(process: subprocess.Popen[str], run_dir: Path) -> None:
    """Wait until a run that goes on has saved one."""
    wait_for(lambda: bool(checkpoint_paths(run_dir / "checkpoints")), process)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something holds, while a process goes on."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


# Classes of unequal size that differ in brightness alone, in the order of their labels.
SHADES = {"cat": 40, "dog": 128, "owl": 215}
IMAGES = {"cat": 24, "dog": 16, "owl": 8}


def tile_shades(grid: Image.Image, side: int) -> list[float]:
    """Mean grey levels of the 8x8 tiles of a grid, side by side and row by row."""
    scale = grid.width // (9 * side + 1)  # a margin of one pixel parts the tiles
    pixels = np.asarray(grid.convert("L"))[scale // 2 :: scale, scale // 2 :: scale]
    corners = range(1, 9 * side, 9)
    return [float(pixels[y : y + 8, x : x + 8].mean()) for y in corners for x in corners]


def nearest_class(shade: float) -> int:
    """The label of the class whose shade is nearest."""
    return int(np.abs(np.array(list(SHADES.values())) - shade).argmin())


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey noise of 8x8 pixels in a folder for each class."""
    folder = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for name, shade in SHADES.items():
        (folder / name).mkdir()
        for index in range(IMAGES[name]):
            pixels = random.normal(shade, 20, (8, 8)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def conditional_run(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 256 steps that has learned the shades of the classes."""
    run_dir = tmp_path_factory.mktemp("runs") / "conditional"
    settings = {**SMALL, "data": str(class_folders), "run_dir": run_dir, "conditional": True}
    more = {
        "filters": 8,
        "total_images": 4096,
        "log_every": 1024,
        "sample_every": 2048,
        "tensorboard": False,
    }
    train(resolve({**settings, **more}))
    return run_dir
