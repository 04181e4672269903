"""Hides how the code blocks of a Markdown page are run as one session, in order."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = {"sh", "bash"}
NOT_CODE = {"text", "json", "yaml"}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text and the line of the page it starts on."""

    language: str
    code: str
    line: int


@dataclass(frozen=True)
class Session:
    """How a session ended, and all it printed."""

    exit_code: int
    output: str


def extract_blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(match["language"], match["code"], page.count("\n", 0, match.start()) + 2)
        for match in FENCE.finditer(page)
    ]


def shell_lines(block: Block) -> Iterator[str]:
    """What a reader would type: all of `sh`; of `console` what follows the prompts `$` and `>`."""
    for line in block.code.splitlines():
        if block.language in SHELL:
            yield line
        elif line.startswith(("$ ", "> ")):
            yield line[2:]


def run_blocks(
    page: str, folder: Path, scripts: Path, *, timeout: float, elsewhere: Collection[str] = ()
) -> Session:
    """Run all blocks of a page by one `bash -e` in `folder`; what it left running is ended.

    Commands of this interpreter's environment come first on the PATH. Lines in `elsewhere` are
    left out. `scripts` takes the files that this needs. Blocks in `python` are one program each.
    """
    lines = [
        "set -euxo pipefail",
        # The exit code is kept; servers get the time they need to stop.
        "trap 'code=$?; kill $(jobs -p) 2>/dev/null || true; wait || true; exit $code' EXIT",
    ]
    for block in extract_blocks(page):
        lines.append(f": line {block.line}")
        if block.language == "python":
            program = scripts / f"line_{block.line}.py"
            program.write_text(block.code)
            lines.append(f"python {program}")
        elif block.language in {*SHELL, "console"}:
            lines += [line for line in shell_lines(block) if line not in elsewhere]
        elif block.language not in NOT_CODE:
            known = sorted({*SHELL, *NOT_CODE, "console", "python"})
            raise ValueError(f"line {block.line}: expected one of {known}, got {block.language!r}")
    script = scripts / "session.sh"
    script.write_text("\n".join(lines) + "\n")
    return _run(script, folder, scripts / "output.txt", timeout)


def _run(script: Path, folder: Path, output: Path, timeout: float) -> Session:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    # A file, for a pipe would stay open as long as anything in the background lives.
    with output.open("w") as file:
        process = subprocess.Popen(
            ["bash", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            exit_code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            exit_code = -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Session(exit_code, output.read_text())
