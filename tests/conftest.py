"""What the tests of both programs use."""

import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from tests.machines import Machine, two_machines

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process waits for another's at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
    for folder in filter(Path.is_mount, mounted):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two hosts with a cable between them."""
    with two_machines() as pair:
        yield pair


def load_script(path: Path) -> ModuleType:
    """Import a script by its path, for it is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
