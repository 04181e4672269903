"""Hides which program builds the images: docker, podman or buildah, whichever works here.

    python deploy/images.py [cpu] [gpu] [train] [-- ARGUMENT...]

What follows `--` goes to the builder, such as `--build-arg SOURCE=https://...`. The images are
called ganserve:cpu, ganserve:gpu and gantrain.
"""

import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Image:
    """What is built: a Dockerfile's target, and the name it gets."""

    dockerfile: str
    target: str
    name: str


IMAGES = {
    "cpu": Image("serve.Dockerfile", "cpu", "ganserve:cpu"),
    "gpu": Image("serve.Dockerfile", "gpu", "ganserve:gpu"),
    "train": Image("train.Dockerfile", "train", "gantrain:latest"),
}
# The OCI format has no health check, so those that know several are told which.
BUILDERS = {
    "docker": ("docker", "build"),
    "podman": ("podman", "build", "--format=docker", "--layers"),
    "buildah": ("buildah", "build", "--format=docker", "--layers"),
}


def main() -> None:
    """Build the images named, all of them if none is."""
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    names, extra = arguments[:cut] or list(IMAGES), arguments[cut + 1 :]
    if unknown := set(names) - set(IMAGES):
        sys.exit(f"images: expected some of {', '.join(IMAGES)}, got {', '.join(sorted(unknown))}")
    builder = find_builder()
    for name in names:
        build(BUILDERS[builder], IMAGES[name], extra)


def find_builder() -> str:
    """The first builder that works here; a docker without its daemon does not."""
    for name in BUILDERS:
        if (
            shutil.which(name)
            and not subprocess.run([name, "info"], capture_output=True).returncode
        ):
            return name
    sys.exit(f"no builder of images works here: install and start one of {', '.join(BUILDERS)}")


def build(builder: Sequence[str], image: Image, extra: Sequence[str] = ()) -> None:
    """Build one image from the working tree; its failure ends the program."""
    command = [*builder, f"--file={ROOT / 'deploy' / image.dockerfile}", f"--target={image.target}"]
    repository, _, tag = image.name.partition(":")
    if tag == "latest":  # what manifests name
        command += [f"--tag={repository}:{version()}"]
    command += [f"--tag={image.name}", f"--build-arg=VERSION={version()}"]
    command += [f"--build-arg=REVISION={revision()}"]
    # Again as labels: a builder may take the step that sets them from its cache, arguments or not.
    prefix = "org.opencontainers.image"
    command += [f"--label={prefix}.version={version()}", f"--label={prefix}.revision={revision()}"]
    command += [*extra, str(ROOT)]
    print(f"$ {shlex.join(command)}", flush=True)
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(f"{image.name}: not built")


def version() -> str:
    """The project's version."""
    text = (ROOT / "pyproject.toml").read_text()
    return str(tomllib.loads(text)["project"]["version"])


def revision() -> str:
    """The commit, marked where the tree differs from it; `unknown` outside a repository."""
    if shutil.which("git") is None:
        return "unknown"
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(describe, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
