"""How both programs begin, before their command lines are there."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("program", ["gantrain", "ganserve"])
def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback(program: str, tmp_path: Path):
    stand_in = "import signal; signal.raise_signal(signal.SIGINT)"
    (tmp_path / "pydantic.py").write_text(stand_in)  # which the command line imports
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"][program].partition(":")
    script = f"import sys; from {module} import {function}; sys.exit({function}())"
    for started in (["-c", script], ["-m", program]):
        done = subprocess.run(
            [sys.executable, *started, "--version"],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (130, "")
