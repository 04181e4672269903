"""Builds and tries the images on a machine that reaches no registry for images.

    python deploy/images_offline.py [--record]

As root on Debian or Ubuntu, with debootstrap, buildah, podman and runc, and the project installed
for this Python. A Debian made by debootstrap stands in for the published Python image. What pip is
set to on this machine holds while the images are built, and is not in them. Then `images_checks`
goes the whole road in containers. Ends with code 1 where a check fails.
"""

import argparse
import datetime as dt
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from images import BUILDERS, IMAGES, ROOT, build, revision
from images_checks import Findings, inspect_serving_image, run, serve_and_check, train_and_publish

PYTHON_BASE, COPIER_BASE = "localhost/stand-in/python:3.11", "localhost/stand-in/busybox:1"
TOOLS = ("debootstrap", "buildah", "podman", "runc")
# Of pip's settings those that say where packages come from.
PACKAGE_SOURCES = {"cert", "extra-index-url", "find-links", "index-url", "proxy", "trusted-host"}


def main() -> None:
    """Build, run, check, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    arguments = parser.parse_args()
    missing = [tool for tool in TOOLS if not find_program(tool)]
    if missing or os.geteuid():
        sys.exit(f"images-offline: needs root, got user {os.geteuid()}; missing: {missing}")
    findings, start = Findings(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="images-") as name:
        folder = Path(name)
        make_stand_ins(folder)
        source = build_options(folder)
        for image in ("cpu", "train"):
            build(BUILDERS["buildah"], IMAGES[image], source)
        inspect_serving_image(IMAGES["cpu"].name, PYTHON_BASE, findings)
        models = train_and_publish(IMAGES["train"].name, COPIER_BASE, folder, findings)
        serve_and_check(IMAGES["cpu"].name, models, folder, findings)
    report = render(findings, time.monotonic() - start)
    if arguments.record:
        file = f"images_{slug(processor())}_{dt.date.today()}.md"
        (ROOT / "benchmarks" / "results" / file).write_text(report)
    if failed := [what for what, _, holds in findings.checked if not holds]:
        sys.exit(f"images-offline: failed: {'; '.join(failed)}")


def find_program(name: str) -> str | None:
    """Where a program is; those of administrators may be outside the path."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def make_stand_ins(folder: Path) -> None:
    """Make the base images, unless an earlier run left them in the storage."""
    missing = [name for name in (PYTHON_BASE, COPIER_BASE) if not exists(name)]
    if not missing:
        return
    print("making the bases with debootstrap", flush=True)
    root, small = folder / "root", folder / "small"
    packages = "--include=python3,python3-venv,busybox-static"
    run(find_program("debootstrap"), "--variant=minbase", packages, "bookworm", root)
    (small / "bin").mkdir(parents=True)
    shutil.move(root / "bin/busybox", small / "bin")
    for applet in ("sh", "chmod", "cp", "mkdir", "mktemp", "mv", "rm"):
        (small / "bin" / applet).symlink_to("busybox")
    for unused in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / unused)
    for name in missing:  # one that is there stays: what was built on it need not be built anew
        source = root if name == PYTHON_BASE else small
        archive = source.with_suffix(".tar")
        # Without devices, which a container gets from its runtime.
        run("tar", "--exclude=./dev/*", "--exclude=./proc/*", "-C", source, "-cf", archive, ".")
        run("podman", "import", archive, name)
        archive.unlink()


def exists(image: str) -> bool:
    """Whether the storage has an image of this name."""
    return not subprocess.run(["podman", "image", "exists", image]).returncode


def build_options(folder: Path) -> list[str]:
    """Options of a build from the stand-in, with pip's settings as they are on this machine."""
    settings = pip_settings()
    configuration = folder / "pip.conf"
    lines = ["[global]", *(f"{key} = {value}" for key, value in settings.items()), ""]
    configuration.write_text("\n".join(lines))
    mounts = [f"--volume={path}:{path}:ro" for path in local_paths(settings)]
    return [
        *("--isolation=chroot", "--pull-never", f"--build-arg=PYTHON_IMAGE={PYTHON_BASE}"),
        *(f"--secret=id=pip_conf,src={configuration}", *mounts),
    ]


def pip_settings() -> dict[str, str]:
    """Where pip on this machine takes packages from; variables win over files."""
    text = run(sys.executable, "-m", "pip", "config", "list")
    found = re.findall(r"^(global|install|:env:)\.([\w-]+)='(.*)'$", text, re.MULTILINE)
    found.sort(key=lambda setting: setting[0] == ":env:")
    return {key: value.replace("\\n", " ") for _, key, value in found if key in PACKAGE_SOURCES}


def local_paths(settings: dict[str, str]) -> list[Path]:
    """The files and folders that the settings name."""
    words = " ".join(settings.values()).split()
    paths = {Path(word.removeprefix("file://")) for word in words}
    # The pages of an index point to files beside it.
    roots = {path.parent if path.name == "simple" else path for path in paths}
    return sorted(path for path in roots if path.is_absolute() and path.exists())


def render(findings: Findings, seconds: float) -> str:
    """The findings as a page for benchmarks/results."""
    python = f"Python {platform.python_version()}"
    podman, buildah = (run(program, "--version") for program in ("podman", "buildah"))
    lines = [
        f"# Images: size, start, and what holds in a container, {dt.date.today()}",
        "",
        f"- command: `python deploy/images_offline.py {' '.join(sys.argv[1:])}`, {seconds:.0f} s",
        f"- commit {revision()[:7]}{'-dirty' if revision().endswith('dirty') else ''}, {python}",
        f"- {processor()}, {os.cpu_count()} CPUs, shared with other jobs; {podman}, {buildah}",
        "- base: Debian 12 made by debootstrap with Python 3.11, in place of the published image",
        f"- load at the end: {os.getloadavg()[0]:.1f} runnable threads over the last minute",
        *("", "| measured | value |", "|---|---|"),
        *(f"| {what} | {value} |" for what, value in findings.measured),
        *("", "| check | found | holds |", "|---|---|---|"),
        *(f"| {what} | {came} | {'yes' if ok else 'no'} |" for what, came, ok in findings.checked),
        *("", "What serving holds, its largest parts in MB:", ""),
        *("| part | MB |", "|---|---|"),
        *(f"| {part} | {size:.1f} |" for part, size in findings.contents),
    ]
    return "\n".join([*lines, ""])


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return match[1].strip() if match else platform.machine()


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    main()
