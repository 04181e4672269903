import subprocess
import sys
from pathlib import Path

import pytest

from gantrain.errors import RunError
from gantrain.runtime import import_runtime

# Telemetry begins with the import, so what counts is the variable in that moment.
EXPORT = """
import os
import sys
from pathlib import Path
from gantrain.export.artifact import export_run

class Watcher:
    def find_spec(name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

assert "onnxruntime" not in sys.modules
sys.meta_path.insert(0, Watcher)
run, repository = map(Path, sys.argv[1:])
export_run(run, repository, "small", precision="fp16", min_psnr=1, frechet_samples=0)
"""


@pytest.mark.parametrize(
    ("given", "used"), [pytest.param(None, "1", id="unset"), pytest.param("0", "0", id="asked-for")]
)
def test_the_runtime_reports_to_nobody_unless_asked(given, used, small_run, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", given)
    command = [sys.executable, "-c", EXPORT, str(small_run), str(tmp_path / "models")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == used, "others may have asked whether it is there"
    if used == "1":
        assert [*home.rglob("*onnx*")] == []  # telemetry would keep an id and a database there


def test_only_one_module_lets_the_runtime_in():
    package = Path(import_runtime.__code__.co_filename).parent
    importing = [
        path.name
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in ("import onnxruntime", "from onnxruntime"))
    ]
    assert importing == []


def test_a_missing_runtime_says_what_to_install():
    with pytest.raises(RunError, match="not installed: install the extra `cpu` or `gpu` beside"):
        import_runtime("onnxruntime.no_such_module")
