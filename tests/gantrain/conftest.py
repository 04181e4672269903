"""Runs small enough to train in a test, and disks small enough to fill."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gantrain.presets import resolve
from gantrain.training import train

# Networks of a few thousand weights on 8x8 digits: a step takes milliseconds.
SMALL = {"data": "digits", "filters": 4, "latent_dim": 8, "batch_size": 16, "threads": 1}


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 64 steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "small"
    train(resolve({**SMALL, "run_dir": run_dir, "total_images": 1024}))
    return run_dir


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a disk in memory with options such as `size=1m` or `ro`."""
    mounted = []

    def mount_tmpfs(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no `mount` here")
        if done.returncode:
            pytest.skip(f"needs the right to mount a disk: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount_tmpfs
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
