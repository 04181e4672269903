"""The Dockerfiles agree with the code. Images are built and tried by `make images-offline`."""

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ganserve.config import ServerConfig
from ganserve.server import running
from tests.ganserve.tiny import write_artifact

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FINAL = [("serve", "cpu"), ("serve", "gpu"), ("train", "train"), ("model", "")]
PREFIX = "org.opencontainers.image."


@dataclass(frozen=True)
class Stage:
    """A stage with the instructions of all stages it is from, in the order they take effect."""

    base: str  # the argument with the image that all begins with
    instructions: tuple[tuple[str, str], ...]

    def all(self, word: str) -> list[str]:
        return [text for name, text in self.instructions if name == word]

    def last(self, word: str) -> str:
        return self.all(word)[-1]


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    text = (DEPLOY / f"{dockerfile}.Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


def read_stage(dockerfile: str, target: str) -> Stage:
    """The stage of that name; the last one for no name."""
    stages: dict[str, Stage] = {}
    name = ""
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            stages[name] = stages.get(parent) or Stage(base=parent, instructions=())
        elif name in stages:
            stage = stages[name]
            stages[name] = Stage(stage.base, (*stage.instructions, (word, rest)))
    return stages[target] if target else list(stages.values())[-1]


def environment(stage: Stage) -> dict[str, str]:
    return {
        key: value for text in stage.all("ENV") for key, value in re.findall(r"(\w+)=(\S+)", text)
    }


def run_hadolint(*files: Path) -> subprocess.CompletedProcess[str]:
    hadolint = Path(sys.executable).with_name("hadolint")
    return subprocess.run([hadolint, *files], capture_output=True, text=True, cwd="/")


def test_the_lint_finds_nothing():
    done = run_hadolint(*DOCKERFILES)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_lint_would_find_something(tmp_path):
    file = tmp_path / "bad.Dockerfile"
    file.write_text("FROM debian:latest\nRUN cd /tmp && sudo apt-get install gcc\n")
    assert run_hadolint(file).returncode == 1


def test_every_waiver_has_its_reason():
    for file in DOCKERFILES:
        for above, line in itertools.pairwise(file.read_text().splitlines()):
            assert "hadolint" not in line or re.match(r"# [A-Z].{10,}", above), (file.name, line)
            assert "checkov:" not in line or re.match(r"# checkov:skip=\w+:.{10,}", line)


@pytest.mark.parametrize(("dockerfile", "target"), FINAL)
def test_the_base_is_an_argument_with_a_tag_that_can_be_pinned(dockerfile, target):
    argument = re.fullmatch(r"\$\{(\w+)\}", read_stage(dockerfile, target).base)
    text = (DEPLOY / f"{dockerfile}.Dockerfile").read_text()
    default = re.search(rf"^ARG {argument[1]}=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"[a-z]+:\d+\.\d+[a-z0-9.-]*", default[1])


@pytest.mark.parametrize(("dockerfile", "target"), FINAL)
def test_the_user_is_a_number_and_not_root(dockerfile, target):
    assert read_stage(dockerfile, target).last("USER") == "65532:65532"


@pytest.mark.parametrize(("dockerfile", "target"), FINAL)
def test_nothing_is_run_in_what_is_shipped(dockerfile, target):
    # So what is needed only to build, and what the build was told in secret, stays out.
    stage = read_stage(dockerfile, target)
    assert stage.all("RUN") == stage.all("ADD") == []


@pytest.mark.parametrize(("dockerfile", "target"), FINAL)
def test_labels_say_what_it_is(dockerfile, target):
    stage = read_stage(dockerfile, target)
    labels = dict(re.findall(rf'{PREFIX}(\w+)="([^"]+)"', " ".join(stage.all("LABEL"))))
    assert {"title", "description", "version", "source", "licenses"} <= set(labels)
    arguments = {text.partition("=")[0] for text in stage.all("ARG")}
    used = {name for value in labels.values() for name in re.findall(r"\$\{(\w+)\}", value)}
    assert "VERSION" in used <= arguments


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_exposed_ports_are_the_defaults(target):
    fields = ServerConfig.model_fields
    ports = {fields["port"].default, fields["metrics_port"].default}
    assert set(map(int, read_stage("serve", target).last("EXPOSE").split())) == ports


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_every_variable_is_a_setting_and_its_value_is_accepted(target, monkeypatch):
    stage = read_stage("serve", target)
    named = set(re.findall(r"GANSERVE_\w+", " ".join(text for _, text in stage.instructions)))
    assert named <= {f"GANSERVE_{name.upper()}" for name in ServerConfig.model_fields}
    for name, value in environment(stage).items():
        monkeypatch.setenv(name, value)
    config = ServerConfig()
    assert (config.models, config.device) == (
        Path("/models"),
        {"cpu": "cpu", "gpu": "cuda"}[target],
    )


@pytest.mark.parametrize(
    ("dockerfile", "target", "command"),
    [
        ("serve", "cpu", ["ganserve", "serve"]),
        ("serve", "gpu", ["ganserve", "serve"]),
        ("train", "train", ["gantrain", "--help"]),
    ],
)
def test_it_runs_the_program_and_stops_at_sigterm(dockerfile, target, command):
    stage = read_stage(dockerfile, target)
    assert json.loads(stage.last("ENTRYPOINT")) + json.loads(stage.last("CMD")) == command
    assert command[0] in PROJECT["scripts"]
    assert stage.last("STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize(("dockerfile", "target"), FINAL[:3])
def test_byte_code_is_that_of_the_build_and_the_home_is_tmp(dockerfile, target):
    variables = environment(read_stage(dockerfile, target))
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"
    assert variables["HOME"] == "/tmp"
    assert f'BYTECODE = VENV / "{Path(variables["PYTHONPYCACHEPREFIX"]).name}"' in (
        (DEPLOY / "images_install.py").read_text()
    )


def test_serving_needs_no_torch_however_far_one_looks():
    optional = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *optional["cpu"], *optional["tracing"]]
    found, waiting = set(), [Requirement(line).name for line in lines]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            needs = map(Requirement, requires(name) or [])
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate()]
    assert "numpy" in found
    assert found & {"torch", "onnx", "onnxscript", "sympy", "pip", "setuptools"} == set()


@pytest.mark.parametrize("dockerfile", ["serve", "train"])
def test_what_is_installed_are_extras_and_programs_of_the_project(dockerfile):
    commands = " ".join(text for word, text in instructions(dockerfile) if word == "RUN")
    extras = re.findall(r"images_install.py dependencies ([a-z ]+)", commands)
    wanted = {"serve": ["cpu tracing", "gpu tracing"], "train": ["train cpu"]}
    assert [words.strip() for words in extras] == wanted[dockerfile]
    assert set(" ".join(extras).split()) <= set(PROJECT["optional-dependencies"])
    assert set(re.findall(r"images_install.py project (\w+)", commands)) <= set(PROJECT["scripts"])


def test_a_build_sees_what_it_copies_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    seen = {line[1:] for line in lines if line.startswith("!")}
    copied = set()
    for dockerfile in ("serve", "train"):
        for word, text in instructions(dockerfile):
            if word == "COPY" and not text.startswith("--from"):
                copied.update(text.split()[:-1])
    assert "*" in lines
    assert copied == seen
    assert all((ROOT / path).exists() for path in seen)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
async def test_the_health_check_tells_a_server_that_is_ready_from_one_that_is_not(target, tmp_path):
    words = read_stage("serve", target).last("HEALTHCHECK").partition(" CMD ")[2]
    _, *arguments = json.loads(words)

    async def probe(port: int) -> int:
        command = [sys.executable, *arguments]
        variables = os.environ | {"GANSERVE_METRICS_PORT": str(port)}
        variables["http_proxy"] = "http://127.0.0.1:9"  # docker's, which knows no server here
        done = await asyncio.create_subprocess_exec(
            *command, env=variables, stderr=subprocess.DEVNULL
        )
        return await done.wait()

    write_artifact(tmp_path)
    config = ServerConfig(
        models=tmp_path, host="127.0.0.1", port=0, metrics_port=0, device="cpu", threads=1
    )
    async with running(config) as server:
        await server.wait_until_ready()
        assert await probe(server.metrics_port) == 0
        await server.drain(0)
        assert await probe(server.metrics_port) == 1


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def copy_models(tmp_path):
    """Run what the image of models runs, with folders of this test's own."""
    repository, volume = tmp_path / "repository", tmp_path / "volume"
    shell, flags, script = json.loads(read_stage("model", "").last("ENTRYPOINT"))
    script = script.replace("/repository", str(repository)).replace("/models", str(volume))
    volume.mkdir()

    def copy(**variables: str) -> str:
        done = subprocess.run(
            [shell, flags, script],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | variables,
        )
        return done.stdout

    return repository, volume, copy


def test_the_image_of_models_copies_each_version_once(copy_models):
    repository, volume, copy = copy_models
    for version in ("faces/1", "faces/2", "two words/1"):
        (repository / version).mkdir(parents=True)
        (repository / version / "model.onnx").write_text(version)
    (volume / "faces/1").mkdir(parents=True)
    (volume / "faces/1/model.onnx").write_text("there already")
    assert copy().splitlines() == ["copied faces/2", "copied two words/1"]
    assert copy() == ""
    files = {str(file.relative_to(volume)): file.read_text() for file in volume.rglob("*.onnx")}
    assert files == {
        "faces/1/model.onnx": "there already",
        "faces/2/model.onnx": "faces/2",
        "two words/1/model.onnx": "two words/1",
    }


def test_a_copy_that_breaks_off_leaves_nothing_that_serves_and_is_made_good(copy_models, tmp_path):
    repository, volume, copy = copy_models
    (repository / "faces/1").mkdir(parents=True)
    (repository / "faces/1/model.onnx").write_text("whole")
    program(tmp_path, "cp", f'echo half > "$3/model.onnx"; ls -A {volume}/faces >&2; exit 1')
    with pytest.raises(subprocess.CalledProcessError) as broken:
        copy(PATH=f"{tmp_path}:{os.environ['PATH']}")
    # While it was copied it had a name that no server takes for a version.
    assert re.fullmatch(r"\.copy\.\w+\n", broken.value.stderr)
    assert list((volume / "faces").iterdir()) == []
    assert copy() == "copied faces/1\n"
    assert (volume / "faces/1/model.onnx").read_text() == "whole"


def run_images(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, DEPLOY / "images.py", *arguments]
    variables = os.environ | {"PATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def test_a_docker_without_its_daemon_is_no_builder(tmp_path):
    program(tmp_path, "docker", "exit 1")
    program(tmp_path, "podman", f'echo "$@" >> {tmp_path}/log')
    done = run_images(tmp_path, "cpu", "train", "--", "--build-arg=SOURCE=here")
    assert done.returncode == 0, done.stderr
    info, *builds = (tmp_path / "log").read_text().splitlines()
    assert info == "info"
    for build, name in zip(builds, ["ganserve:cpu", "gantrain:latest"], strict=True):
        assert f"--tag={name} --build-arg=VERSION={PROJECT['version']}" in build
        assert build.startswith("build --format=docker ")
        assert build.endswith(f"--build-arg=SOURCE=here {ROOT}")


def test_a_build_that_fails_ends_the_program(tmp_path):
    program(tmp_path, "docker", '[ "$1" = info ]')
    done = run_images(tmp_path, "cpu")
    assert (done.returncode, done.stderr) == (1, "ganserve:cpu: not built\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no builder of images works here"),
        (["tpu"], "expected some of cpu, gpu, train, got tpu"),
    ],
)
def test_what_cannot_be_built_is_said(arguments, message, tmp_path):
    done = run_images(tmp_path, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
