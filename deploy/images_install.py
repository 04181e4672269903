"""Hides what an image holds of Python: the packages of some extras, the project, their bytecode.

The Dockerfiles run it in the stages that build:

    images_install.py dependencies EXTRA...   everything but the project, into /opt/venv
    images_install.py project PROGRAM         the project, into /opt/venv and, alone, /opt/project

Two steps, because a new version of the project should not cost a pull of its dependencies too.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

VENV, PROJECT, INSTALLER = Path("/opt/venv"), Path("/opt/project"), Path("/opt/installer")
# One place for all bytecode: the root file system is read-only, and the published Python images
# hold none for the standard library, which would be compiled anew at each start.
BYTECODE = VENV / "bytecode"
UNUSED_STANDARD_LIBRARY = (
    r"/(site-packages|dist-packages|test|tests|idlelib|lib2to3|ensurepip|turtledemo|tkinter)/"
)
PROGRAMS = {"ganserve", "gantrain"}
# Copies of the runtime for programs in C; Python's own module has it built in. Told by extra,
# because the GPU's providers are libraries of their own that nobody has looked at here.
UNUSED_FILES = {"cpu": ["onnxruntime/capi/libonnxruntime.so*"]}


def main() -> None:
    """Do the step that the first argument names."""
    match sys.argv[1:]:
        case ["dependencies", *extras] if extras:
            install_dependencies(extras)
        case ["project", program] if program in PROGRAMS:
            install_project(program)
        case _:
            sys.exit("usage: images_install.py dependencies EXTRA... | project ganserve|gantrain")


def install_dependencies(extras: list[str]) -> None:
    """Make /opt/venv, without pip, and install what the project needs with these extras."""
    venv.create(INSTALLER, with_pip=True)
    venv.create(VENV, symlinks=True)
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    # Wheels only: there is no compiler, and a clear refusal beats a failed build.
    install("--only-binary=:all:", "--constraint=constraints.txt", *wanted)
    for tests in [path for path in site_packages().rglob("tests") if path.is_dir()]:
        shutil.rmtree(tests)
    for extra in extras:
        for pattern in UNUSED_FILES.get(extra, []):
            for path in site_packages().glob(pattern):
                path.unlink()
    # A base may be replaced under the same path: then the sources win.
    compile_bytecode(Path(sysconfig.get_path("stdlib")), "checked-hash", UNUSED_STANDARD_LIBRARY)
    compile_bytecode(site_packages(), "unchecked-hash")


def install_project(program: str) -> None:
    """Install the project with one of its programs, and copy what that added to /opt/project."""
    before = set(VENV.rglob("*"))
    install("--no-deps", ".")
    for other in PROGRAMS - {program}:  # it could not run here
        shutil.rmtree(site_packages() / other)
        (VENV / "bin" / other).unlink()
    compile_bytecode(site_packages() / program, "unchecked-hash")
    for path in sorted(set(VENV.rglob("*")) - before):
        copy = PROJECT / path.relative_to(VENV)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)


def install(*arguments: str) -> None:
    """Install into /opt/venv."""
    pip = [f"{INSTALLER}/bin/python", "-m", "pip", f"--python={VENV}/bin/python", "install"]
    flags = ["--no-cache-dir", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, *flags, *arguments], check=True)


def site_packages() -> Path:
    """Where packages lie in /opt/venv."""
    return next(VENV.glob("lib/python3*/site-packages"))


def compile_bytecode(folder: Path, invalidation: str, exclude: str | None = None) -> None:
    """Write the bytecode of all modules below a folder; a file that is no Python 3 is left out."""
    command = [f"{VENV}/bin/python", "-m", "compileall", "-qq", "-j", "0"]
    command += ["--invalidation-mode", invalidation, *(["-x", exclude] if exclude else [])]
    command += [str(folder)]
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(BYTECODE)}
    subprocess.run(command, env=environment, check=False)


if __name__ == "__main__":
    main()
