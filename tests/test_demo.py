"""The main job, end to end, as `make demo` does it: its pictures must be digits."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra `train`")

from benchmarks.digits_quality import judge
from gantrain.presets import resolve
from gantrain.run_directory import DataFacts, RunDirectory

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("a clone") / "demo"
    folder.mkdir()
    shutil.copy(ROOT / "demo" / "demo.py", folder)
    return folder, run(folder)


def run(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, folder / "demo.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_makes_digits_of_all_ten_kinds_and_no_two_alike(demo: tuple[Path, str]):
    folder, output = demo
    judgement = judge(folder / "run")
    assert judgement.accuracy > 0.95, "the judge itself must know digits"
    assert judgement.passes, judgement
    assert judgement.nearest_twins > 2
    with Image.open(folder / "grid.png") as grid:
        assert min(grid.size) >= 512
        assert np.asarray(grid).std() > 50
    for stage in ("waiting for a batch", "in the model", "encoding", "the whole call"):
        assert stage in output
    assert "exit code 0" in output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_running_it_again_neither_trains_nor_exports(demo: tuple[Path, str]):
    folder, _ = demo
    grid = (folder / "grid.png").read_bytes()
    artifacts = list((folder / "models").rglob("*.onnx"))
    (folder / "grid.png").unlink()
    output = run(folder)
    assert "images/s" not in output
    assert list((folder / "models").rglob("*.onnx")) == artifacts
    assert (folder / "grid.png").read_bytes() == grid, "the same seeds, the same bytes"


def test_a_run_of_other_settings_is_not_gone_on_with_but_how_to_start_over_is_told(tmp_path: Path):
    folder = tmp_path / "demo"
    (folder / "run").mkdir(parents=True)
    shutil.copy(ROOT / "demo" / "demo.py", folder)
    config = resolve({"data": "digits", "run_dir": "run", "lr_decay": 0.0})
    RunDirectory(folder / "run").write(config, DataFacts("sha256:0", 1797, "digits", ()))
    done = subprocess.run(
        [sys.executable, "demo/demo.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "holds a run with no --image-size, asked for is 16" in done.stderr
    assert done.stdout.splitlines()[-1] == (
        "To start the demo over, remove its earlier run: rm -r demo/run"
    )
