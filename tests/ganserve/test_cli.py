"""The command line as people and scripts use it: output, files and exit codes."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from ganserve.cli import _COMMANDS, run
from ganserve.cli_options import _SECTIONS
from ganserve.grid import make_grid
from ganserve.latents import draw_latents
from ganserve.v1 import image_generation_pb2 as pb
from ganserve.v1 import image_generation_pb2_grpc
from tests.ganserve.conftest import eventually, free_port
from tests.ganserve.slow_service import running
from tests.ganserve.tiny import publish, reveal_pixels, write_artifact

COMMANDS = ["serve", "generate", "models", "load-test"]


async def run_beside(*arguments: str) -> int:
    """Run a command line in another thread than the server's."""
    return await asyncio.to_thread(run, arguments)


def expected_pixels(*seeds: int, **shape) -> np.ndarray:
    return reveal_pixels(draw_latents(np.array(seeds, np.uint64), 4), **shape)


@contextlib.contextmanager
def process(*arguments: str, warnings: str = "error", **environment: str):
    """`python -m ganserve` as a process of its own."""
    command = [sys.executable, "-W", warnings, "-m", "ganserve", *arguments]
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


async def test_many_seeds_become_one_picture(repository, running_server, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    async with running_server(repository) as server:
        code = await run_beside(
            "generate", "--address", server.address, "--seeds", "0-99", "--out", str(out)
        )
    assert (code, capsys.readouterr()) == (0, (f"{out}\n", ""))
    assert (np.asarray(Image.open(out)) == make_grid(expected_pixels(*range(100)))).all()


@pytest.mark.parametrize("there_already", [True, False], ids=["there", "new"])
async def test_a_folder_gets_one_file_a_seed(there_already, repository, running_server, tmp_path):
    out = tmp_path / "images"
    if there_already:
        out.mkdir()
    argument = str(out) if there_already else f"{out}/"
    async with running_server(repository) as server:
        code = await run_beside(
            "generate", "--address", server.address, "--seeds", "7,0-2", "--out", argument
        )
    assert code == 0
    assert {path.name for path in out.iterdir()} == {"7.png", "0.png", "1.png", "2.png"}
    assert (np.asarray(Image.open(out / "7.png")) == expected_pixels(7)[0]).all()


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
async def test_a_list_that_cannot_be_written_is_an_error_of_one_line(
    form, repository, running_server
):
    async with running_server(repository) as server:
        process = await asyncio.create_subprocess_shell(
            f"{sys.executable} -m ganserve models --address {server.address} {' '.join(form)}"
            " > /dev/full",
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode() == "ganserve models: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        pytest.param(["--tls-ca", "nope"], "--tls-ca: nope", id="authorities"),
        pytest.param(["--token-file", "nope"], "--token-file: nope", id="token"),
        pytest.param(
            ["--tls-ca", __file__, "--tls-certificate", "nope", "--tls-key", "nope"],
            "--tls-certificate, --tls-key: nope",
            id="one-file-for-both",
        ),
    ],
)
@pytest.mark.parametrize("command", ["generate", "models", "load-test"])
def test_a_file_that_cannot_be_read_is_named_with_its_flag(command, flags, told, tmp_path, capsys):
    asked = ["--seeds", "0", "--out", str(tmp_path / "a.png")] if command == "generate" else []
    assert run([command, "--address", "localhost:1", *asked, *flags]) == 1
    assert capsys.readouterr().err == f"ganserve {command}: {told}: No such file or directory\n"


async def test_a_picture_that_cannot_be_written_is_named_with_its_flag(
    repository, running_server, capsys
):
    async with running_server(repository) as server:
        flags = ["--seeds", "0", "--out", "/proc/grid.png"]
        assert await run_beside("generate", "--address", server.address, *flags) == 1
    told = "ganserve generate: --out: /proc/grid.png: No such file or directory\n"
    assert capsys.readouterr().err == told


class Changing(image_generation_pb2_grpc.ImageGenerationServiceServicer):
    """A server whose newest version, or whose file of one version, is another after one call."""

    def __init__(self, *, keeps_the_old: bool = True, same_version: bool = False) -> None:
        self._keeps_the_old = keeps_the_old
        self._same_version = same_version
        self.asked: list[tuple[str, str]] = []

    async def GenerateImages(self, request, context):  # noqa: N802 - gRPC's name
        self.asked.append((request.model_name, request.model_version))
        call = str(len(self.asked))
        version = request.model_version or ("1" if self._same_version else call)
        if version == "1" and len(self.asked) > 1 and not self._keeps_the_old:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is version 2")
        seeds = request.seeds.values
        shape = {"count": len(seeds), "height": 1, "width": 1, "channels": 1}
        digest = f"sha256:{call if self._same_version else version}"
        return pb.GenerateImagesResponse(
            **shape,
            pixels=bytes([int(version)] * len(seeds)),
            images=[b"a picture"] * len(seeds),
            seeds=seeds,
            model=pb.ModelIdentity(name="faces", version=version, digest=digest),
        )


@pytest.mark.parametrize("out", ["images/", "grid.png"])
async def test_one_version_makes_all_images_of_a_command(out, tmp_path):
    service = Changing()
    async with running(service) as address:
        flags = ["--seeds", "0-9,200-299", "--out", f"{tmp_path}/{out}"]
        assert await run_beside("generate", "--address", address, *flags) == 0
    assert service.asked == [("", ""), ("faces", "1")]


@pytest.mark.parametrize("out", ["images/", "grid.png"])
@pytest.mark.parametrize(
    ("service", "said"),
    [
        pytest.param(
            {"keeps_the_old": False},
            "NOT_FOUND: there is version 2 (a new version came",
            id="version",
        ),
        pytest.param(
            {"same_version": True},
            "ABORTED: another file serves as faces version 1 now",
            id="file",
        ),
    ],
)
async def test_a_version_that_ends_meanwhile_ends_the_command_and_says_so(
    service, said, out, tmp_path, capsys
):
    async with running(Changing(**service)) as address:
        flags = ["--seeds", "0-99", "--out", f"{tmp_path}/{out}"]
        assert await run_beside("generate", "--address", address, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ganserve generate: {said}")
    assert not (tmp_path / "grid.png").exists()


async def test_options_of_generate_reach_the_server(tmp_path, running_server):
    write_artifact(tmp_path / "models", "pets", class_names=("cat", "dog"))
    write_artifact(tmp_path / "models", "other")
    flags = ["--model", "pets", "--version", "1", "--truncation", "0.5", "--class-labels", "1,0"]
    async with running_server(tmp_path / "models") as server:
        code = await run_beside(
            "generate",
            *("--address", server.address, "--seeds", "4,5", "--out", f"{tmp_path}/images/"),
            *flags,
        )
    assert code == 0
    latents = draw_latents(np.array([4, 5], np.uint64), 4) * np.float32(0.5)
    expected = reveal_pixels(latents, np.array([1, 0]))
    for seed, pixels in zip((4, 5), expected, strict=True):
        assert (np.asarray(Image.open(tmp_path / "images" / f"{seed}.png")) == pixels).all()


@pytest.mark.parametrize("labels", ["1", "0,1," * 49 + "0,1"], ids=["one-for-all", "one-each"])
async def test_labels_stay_with_their_seeds_over_many_calls(labels, tmp_path, running_server):
    write_artifact(tmp_path / "models", class_names=("cat", "dog"))
    out = tmp_path / "images"
    async with running_server(tmp_path / "models", max_images_per_request=64) as server:
        code = await run_beside(
            "generate",
            *("--address", server.address, "--seeds", "0-99", "--out", f"{out}/"),
            *("--class-labels", labels),
        )
    assert code == 0
    seeds = np.arange(100, dtype=np.uint64)
    numbers = np.array([int(label) for label in labels.split(",")])
    expected = reveal_pixels(draw_latents(seeds, 4), np.broadcast_to(numbers, 100))
    made = np.stack([np.asarray(Image.open(out / f"{seed}.png")) for seed in seeds])
    assert (made == expected).all()


async def test_one_seed_in_several_classes_is_one_file_each(tmp_path, running_server):
    write_artifact(tmp_path / "models", class_names=("cat", "dog"))
    out = tmp_path / "images"
    async with running_server(tmp_path / "models") as server:
        code = await run_beside(
            "generate",
            *("--address", server.address, "--seeds", "7,7,8,7", "--out", f"{out}/"),
            *("--class-labels", "0,1,0,0"),
        )
    assert code == 0
    assert {path.name for path in out.iterdir()} == {"7.png", "7-2.png", "8.png", "7-3.png"}
    latents = draw_latents(np.array([7, 7, 7], np.uint64), 4)
    expected = reveal_pixels(latents, np.array([0, 1, 0]))
    for name, pixels in zip(("7", "7-2", "7-3"), expected, strict=True):
        assert (np.asarray(Image.open(out / f"{name}.png")) == pixels).all()


async def test_models_are_listed_as_a_table(tmp_path, running_server, capsys):
    write_artifact(tmp_path / "models", "pets", 3, class_names=("cat", "dog"), channels=1)
    broken = tmp_path / "models" / "zoo" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    async with running_server(tmp_path / "models", until_ready=False) as server:
        await server.wait_until_ready()
        assert await run_beside("models", "--address", server.address) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["NAME", "VERSION", "STATE", "IMAGE"]
    assert rows[0].split()[:7] == ["pets", "3", "ready", "4x4x1", "4", "2", "CPUExecutionProvider"]
    assert [row.split()[:3] for row in rows[1:]] == [["zoo", "1", "failed"]]


async def test_models_are_listed_as_json(tmp_path, running_server, capsys):
    evaluation = {"frechet_distance": 1.5}
    write_artifact(tmp_path / "models", "pets", 3, channels=1, metadata={"evaluation": evaluation})
    publish(tmp_path / "models", "zoo", 1, b"not a model")
    async with running_server(tmp_path / "models") as server:
        assert await run_beside("models", "--address", server.address, "--json") == 0
    pets, zoo = json.loads(capsys.readouterr().out)
    assert (pets["name"], pets["version"], pets["state"]) == ("pets", "3", "ready")
    assert (pets["height"], pets["channels"], pets["class_names"]) == (4, 1, [])
    assert pets["evaluation"] == evaluation
    assert len(pets["digest"]) == 64
    assert (zoo["state"], zoo["latent_dim"]) == ("failed", 0)
    assert "expected an ONNX file" in zoo["error"]


async def test_no_models_are_an_empty_list(tmp_path, running_server, capsys):
    async with running_server(tmp_path, until_ready=False) as server:
        assert await run_beside("models", "--address", server.address, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


async def test_a_load_test_prints_a_table_or_json(repository, running_server, capsys):
    short = ["--seconds", "0.3", "--warm-up-seconds", "0", "--images-per-request", "2"]
    async with running_server(repository) as server:
        assert await run_beside("load-test", "--address", server.address, *short) == 0
        table = capsys.readouterr().out
        assert await run_beside("load-test", "--address", server.address, *short, "--json") == 0
        report = json.loads(capsys.readouterr().out)
    assert {"calls/s", "images/s", "latency"} <= {line.split()[0] for line in table.splitlines()}
    assert set(report["latency_seconds"]) == {"p50", "p90", "p99", "p99.9", "max"}
    assert report["images_per_second"] == pytest.approx(2 * report["calls_per_second"])
    assert report["errors"] == {}


async def test_a_load_test_in_which_all_calls_fail_fails(
    repository, running_server, capsys, tmp_path
):
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    async with running_server(repository, token_file=tmp_path / "tokens") as server:
        flags = ["--seconds", "0.2", "--warm-up-seconds", "0"]
        assert await run_beside("load-test", "--address", server.address, *flags) == 1
    printed = capsys.readouterr()
    (reason,) = {line for line in printed.out.splitlines() if "UNAUTHENTICATED: " in line}
    reason = reason[reason.index("UNAUTHENTICATED: ") :]
    assert printed.err == f"ganserve load-test: no call succeeded: {reason}\n"


async def test_a_load_test_of_a_model_that_is_not_there_ends_before_the_load(
    repository, running_server, capsys
):
    async with running_server(repository) as server:
        flags = ["--model", "other", "--seconds", "600"]
        assert await run_beside("load-test", "--address", server.address, *flags) == 1
    printed = capsys.readouterr()
    reason = "NOT_FOUND: model 'other': expected one of tiny"
    assert (printed.out, printed.err) == ("", f"ganserve load-test: {reason}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("generate --seeds 5-3", "--seeds: expected the smaller end", id="backwards"),
        pytest.param("generate --seeds x", "--seeds: expected integers", id="word"),
        pytest.param("generate --address here", "--address: expected HOST:PORT", id="address"),
        pytest.param("models --address http://h:1", "--address: expected HOST:PORT", id="http"),
        pytest.param("load-test --address https://h:1", "--address: expected HOST", id="https"),
        pytest.param("generate --out x", "--out: expected FILE.png or a folder", id="out"),
        pytest.param("generate --out x.jpg", "--out: expected FILE.png", id="suffix"),
        pytest.param(
            "generate --truncation 0", "--truncation: expected a number greater", id="truncation"
        ),
        pytest.param("generate --class-labels 1,2", "--class-labels: expected 1 or 4", id="labels"),
        pytest.param("models --address :1", "--address: expected HOST:PORT", id="no-host"),
        pytest.param(
            "models --timeout-seconds 0",
            "--timeout-seconds: expected a number greater",
            id="no-time",
        ),
        pytest.param("load-test --rate 1e7", "--rate: expected a number less", id="endless"),
        pytest.param("load-test --rate 1 --concurrency 1", "--rate, --concurrency", id="both"),
        pytest.param(
            "load-test --seconds inf", "--seconds: expected a finite number", id="for-ever"
        ),
        pytest.param(
            "serve --port 99999", "--port (or GANSERVE_PORT): expected a number less", id="port"
        ),
        pytest.param(
            "generate --tls-certificate c --tls-key k",
            "--tls-certificate: expected --tls-ca too, got none",
            id="generate-no-authority",
        ),
        pytest.param(
            "models --tls-certificate c --tls-key k",
            "--tls-certificate: expected --tls-ca too, got none",
            id="models-no-authority",
        ),
        pytest.param(
            "load-test --tls-certificate c --tls-key k",
            "--tls-certificate: expected --tls-ca too, got none",
            id="load-test-no-authority",
        ),
        pytest.param(
            "models --tls-key k",
            "--tls-certificate, --tls-key: expected both or none, got one",
            id="no-certificate",
        ),
        pytest.param(
            "serve --batch-sizes 1,4 --max-batch-size 8",
            "--batch-sizes (or GANSERVE_BATCH_SIZES): expected --max-batch-size (8) as the largest,"
            " got 4",
            id="batch-sizes",
        ),
        pytest.param(
            "serve --tls-key k",
            "--tls-certificate (or GANSERVE_TLS_CERTIFICATE), --tls-key (or GANSERVE_TLS_KEY): "
            "expected both or none, got one",
            id="tls",
        ),
        pytest.param(
            "serve --versions faces:1",
            "--versions (or GANSERVE_VERSIONS): expected NAME:VERSION,... with the "
            "--version-policy specific and only there, got latest with 1 versions",
            id="versions",
        ),
        pytest.param(
            "serve --cuda-graphs on --device cpu",
            "--cuda-graphs (or GANSERVE_CUDA_GRAPHS): expected auto or off with the device cpu",
            id="graphs",
        ),
    ],
)
def test_bad_usage_is_one_line_that_names_the_flag(arguments, message, capsys):
    command, *flags = arguments.split()
    complete = {
        "serve": {"--models": "models"},
        "generate": {"--address": "localhost:1", "--seeds": "0-3", "--out": "grid.png"},
    }.get(command, {"--address": "localhost:1"})
    given = complete | dict(zip(flags[::2], flags[1::2], strict=True))
    assert run([command, *(word for flag in given.items() for word in flag)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ganserve {command}: {message}")


@pytest.mark.parametrize("address", ["dns:///localhost:1", "ipv4:127.0.0.1:1,127.0.0.1:2"])
def test_the_schemes_that_grpc_knows_are_addresses(address, capsys):
    assert run(["models", "--address", address, "--timeout-seconds", "0.2"]) == 1
    assert f"no result from {address}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "flag", "message"),
    [
        pytest.param("generate", "--out", "FILE.png or a folder such as images/", id="out"),
        pytest.param("generate", "--tls-ca", "a path", id="authority"),
        pytest.param("models", "--tls-certificate", "a path", id="certificate"),
        pytest.param("models", "--token-file", "a path", id="token"),
        pytest.param("load-test", "--tls-key", "a path", id="key"),
        pytest.param("load-test", "--plot", "a path", id="plot"),
    ],
)
def test_no_path_is_not_the_current_folder(command, flag, message, capsys):
    """As of a variable in a script that is not set."""
    flags = ["--seeds", "0", "--out", "grid.png"] if command == "generate" else []
    assert run([command, "--address", "localhost:1", *flags, flag, ""]) == 2
    error = capsys.readouterr().err
    assert error == f"ganserve {command}: {flag}: expected {message}, got ''\n"


def test_what_came_is_named(capsys):
    assert run(["serve", "--models", "models", "--port", "99999"]) == 2
    assert capsys.readouterr().err.endswith(", got '99999'\n")
    assert run(["serve", "--models", "models", "--host", ""]) == 2
    assert capsys.readouterr().err.endswith(": expected at least 1 character, got ''\n")


def test_required_flags_are_named_with_their_variable(capsys, monkeypatch):
    monkeypatch.delenv("GANSERVE_MODELS", raising=False)
    assert run(["serve"]) == 2
    assert capsys.readouterr().err == "ganserve serve: --models (or GANSERVE_MODELS) is required\n"


def test_variables_of_others_mean_nothing(capsys, monkeypatch):
    for name in ("MODELS", "SERVE", "VERSION", "GENERATE"):
        monkeypatch.setenv(name, "17")
    assert run(["models"]) == 2
    assert capsys.readouterr().err == "ganserve models: --address is required\n"


def test_without_a_command_the_help_is_shown(capsys):
    assert run([]) == 2
    printed = capsys.readouterr().err
    assert all(command in printed for command in COMMANDS)


@pytest.mark.parametrize("command", _COMMANDS, ids=lambda kind: _COMMANDS[kind][0])
def test_help_tells_what_every_flag_is_for(command, capsys):
    name, _ = _COMMANDS[command]
    with pytest.raises(SystemExit) as raised:
        run([name, "--help"])
    assert raised.value.code == 0
    printed = "".join(capsys.readouterr().out.split())  # lines may end anywhere
    assert printed.startswith(f"usage:ganserve{name}--")
    for field, setting in command.model_fields.items():
        flag = (setting.alias or field).replace("_", "-")
        meaning = re.escape("".join(setting.description.split()))
        assert re.search(rf"--{flag}({{[^}}]*}}|[A-Z]*){meaning}", printed), flag


def test_help_names_labels_as_such(capsys):
    with pytest.raises(SystemExit):
        run(["generate", "--help"])
    assert "--class-labels LABELS" in capsys.readouterr().out


def test_help_goes_by_subject_and_names_no_default_where_there_is_none(capsys):
    with pytest.raises(SystemExit):
        run(["serve", "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ganserve serve --models PATH [options]\n")
    titles = re.findall(r"^(\w.*):\n  -", printed, re.MULTILINE)
    assert titles == ["options", *_SECTIONS["ganserve serve"].values()]
    assert "default: None" not in printed
    assert "\nEach setting is a flag" in printed  # not indented, as in the source


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["paint"], ["models", "--nonsense"]], ids=str
)
def test_unknown_words_are_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        run(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage", "error"),
    [
        pytest.param(
            "serve --prot 1",
            "ganserve serve --models PATH [options]",
            "ganserve serve: error: unrecognized arguments: --prot 1; is --port meant?",
            id="serve",
        ),
        pytest.param(
            "generate --modle=x --seed 3",
            "ganserve generate --address TEXT --seeds SEEDS --out TEXT [options]",
            "ganserve generate: error: unrecognized arguments: --modle=x --seed 3; "
            "are --model, --seeds meant?",
            id="two",
        ),
        pytest.param(
            "load-test --qqq x",
            "ganserve load-test --address TEXT [options]",
            "ganserve load-test: error: unrecognized arguments: --qqq x",
            id="nothing near",
        ),
        pytest.param(
            "--versoin",
            "ganserve [-h] [--version] {serve,generate,models,load-test} ...",
            "ganserve: error: unrecognized arguments: --versoin; is --version meant?",
            id="no command",
        ),
    ],
)
def test_a_mistyped_flag_is_told_with_the_usage_and_the_nearest(arguments, usage, error, capsys):
    with pytest.raises(SystemExit) as raised:
        run(arguments.split())
    assert raised.value.code == 2
    assert capsys.readouterr().err == f"usage: {usage}\n{error}\n"


def test_the_version_is_printed(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ganserve 0.")


def test_help_needs_neither_grpc_nor_onnxruntime():
    program = """
import sys
from ganserve.cli import run
try:
    run(["generate", "--help"])
finally:
    loaded = {"grpc", "onnxruntime", "numpy", "PIL"} & set(sys.modules)
    assert not loaded, loaded
"""
    command = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", ["generate", "models"])
def test_a_server_that_is_not_there_is_one_line(command, tmp_path, capsys):
    address = f"127.0.0.1:{free_port()}"
    flags = ["--seeds", "0", "--out", f"{tmp_path}/grid.png"] if command == "generate" else []
    assert run([command, "--address", address, "--timeout-seconds", "0.3", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ganserve {command}: DEADLINE_EXCEEDED: no result from {address}")
    assert not list(tmp_path.iterdir())


def test_a_label_that_no_request_can_carry_is_one_line(tmp_path, capsys):
    flags = ["--seeds", "0", "--class-labels", str(2**32), "--out", f"{tmp_path}/grid.png"]
    assert run(["generate", "--address", "localhost:1", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ganserve generate: --class-labels: expected integers from 0")


async def test_a_refused_request_is_one_line(repository, running_server, tmp_path, capsys):
    async with running_server(repository) as server:
        flags = ["--model", "other", "--seeds", "0", "--out", f"{tmp_path}/grid.png"]
        assert await run_beside("generate", "--address", server.address, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ganserve generate: NOT_FOUND: model 'other': expected")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        pytest.param([], "--model: expected one of pets, tiny, got none", id="model"),
        pytest.param(["--model", "pets"], "--class-labels: expected 1 label", id="labels"),
        pytest.param(
            ["--model", "tiny", "--version", "x"], "--version: expected a positive", id="version"
        ),
        pytest.param(["--model", "tiny"], "--seeds: expected 1 to 4 seeds, got 5", id="seeds"),
    ],
)
async def test_a_refused_field_is_named_by_its_flag(
    flags, problem, repository, running_server, tmp_path, capsys
):
    write_artifact(repository, "pets", class_names=("cat", "dog"))
    seeds = "0-4" if "--seeds" in problem else "0"
    async with running_server(repository, max_images_per_request=4) as server:
        where = ["--seeds", seeds, "--out", f"{tmp_path}/grid.png"]
        assert await run_beside("generate", "--address", server.address, *where, *flags) == 1
    assert capsys.readouterr().err.startswith(f"ganserve generate: INVALID_ARGUMENT: {problem}")


async def test_a_load_test_that_could_but_fail_names_the_flag(repository, running_server, capsys):
    write_artifact(repository, "pets", class_names=("cat", "dog"))
    load_test = ["load-test", "--seconds", "60", "--address"]
    async with running_server(repository) as server:
        assert await run_beside(*load_test, server.address) == 1
        assert await run_beside(*load_test, server.address, "--model", "pets") == 1
    first, second = capsys.readouterr().err.splitlines()
    start = "ganserve load-test: INVALID_ARGUMENT: "
    assert first == f"{start}--model: expected one of pets, tiny, got none"
    assert second.startswith(f"{start}--class-label: expected 1 label")


@pytest.mark.parametrize("out", ["file/grid.png", "file/"])
async def test_a_file_where_a_folder_must_be_is_named(
    out, repository, running_server, tmp_path, capsys
):
    (tmp_path / "file").touch()
    async with running_server(repository) as server:
        flags = ["--seeds", "0", "--out", f"{tmp_path}/{out}"]
        assert await run_beside("generate", "--address", server.address, *flags) == 1
    error = capsys.readouterr().err
    assert error == f"ganserve generate: --out {tmp_path}/file: is a file, expected a folder\n"


@pytest.mark.parametrize(
    ("out", "named"),
    [
        pytest.param("file/more/grid.png", "file", id="a file on the way"),
        pytest.param("full.png", "full.png", id="full"),
        pytest.param("full/", "full/5.png", id="full, one of several"),
        pytest.param(f"{'n' * 300}.png", f"{'n' * 300}.png", id="too long"),
        pytest.param(f"{'n' * 300}/grid.png", "n" * 300, id="too long, a folder"),
    ],
)
async def test_a_place_that_cannot_be_written_is_one_line(
    out, named, repository, running_server, tmp_path, capsys
):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    for file in ("full.png", "full/5.png"):
        (tmp_path / file).symlink_to("/dev/full")
    async with running_server(repository) as server:
        flags = ["--seeds", "4,5", "--out", f"{tmp_path}/{out}"]
        assert await run_beside("generate", "--address", server.address, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ganserve generate: ")
    assert f"{tmp_path}/{named}" in line


def test_ctrl_c_ends_a_command_with_130(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, never answers
        silent.settimeout(60)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        flags = ["--address", address, "--seeds", "0", "--out", str(tmp_path / "grid.png")]
        with process("generate", *flags) as generate:
            connection, _ = silent.accept()
            generate.send_signal(signal.SIGINT)
            _, errors = generate.communicate(timeout=60)
            connection.close()
    assert (generate.returncode, errors) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_server_serves_until_a_signal_and_exits_with_0(number, repository, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    flags = ["--port", address.partition(":")[2], "--metrics-port", "0", "--drain-seconds", "0"]
    variables = {"GANSERVE_MODELS": str(repository), "GANSERVE_HOST": "127.0.0.1"}
    with process("serve", "--device", "cpu", *flags, **variables) as serve:
        out = tmp_path / "grid.png"
        assert run(["generate", "--address", address, "--seeds", "5", "--out", str(out)]) == 0
        serve.send_signal(number)
        _, errors = serve.communicate(timeout=60)
    assert serve.returncode == 0, errors
    assert (np.asarray(Image.open(out)) == make_grid(expected_pixels(5))).all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
async def test_a_server_that_is_starting_is_deaf_to_a_reload_and_stops_at_a_signal(
    number, repository, tmp_path
):
    tokens = tmp_path / "tokens"
    os.mkfifo(tokens)  # the start waits for who writes into it, and nobody does
    flags = ["--models", str(repository), "--port", str(free_port()), "--metrics-port", "0"]
    flags += ["--token-file", str(tokens)]
    # As people run it: of the file that an import reads in that moment Python would say with
    # `error` that nobody closed it.
    with process("serve", *flags, warnings="default::UserWarning") as serve:
        await eventually(lambda: catches(serve.pid, signal.SIGTERM))
        serve.send_signal(signal.SIGHUP)
        serve.send_signal(number)
        _, errors = serve.communicate(timeout=60)
    assert (serve.returncode, errors) == (0, "")


def catches(process_id: int, number: int) -> bool:
    status = Path(f"/proc/{process_id}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def test_a_server_that_cannot_start_says_why_in_one_line_and_exits_with_1(tmp_path, capsys):
    assert run(["serve", "--models", str(tmp_path / "missing"), "--port", "0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ganserve serve: --models (or GANSERVE_MODELS): expected a folder")


def test_a_port_in_use_is_one_line(repository, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--host", "127.0.0.1", "--port", port, "--metrics-port", "0", "--device", "cpu"]
        assert run(["serve", "--models", str(repository), *flags]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("ganserve serve: ")
    assert port in lines[-1]


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_process_ends_though_a_thread_works_on(seconds):
    program = (
        "import sys, threading, time\n"
        "from ganserve import cli\n"
        f"threading.Thread(target=time.sleep, args=[{seconds}]).start()\n"
        "cli.run = lambda arguments: print('said') or 7\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said\n", "")


def test_whoever_reads_may_have_enough():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ganserve", "--version"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    "command",
    [
        ["load-test", "--seconds", "0.3", "--warm-up-seconds", "0"],
        ["models"],
        ["generate", "--seeds", "1", "--out", "image.png"],
    ],
    ids=lambda command: command[0],
)
async def test_whoever_reads_of_a_server_may_have_enough_too(
    command, tmp_path, repository, running_server
):
    reader, writer = os.pipe()
    os.close(reader)
    async with running_server(repository) as server:
        words = [sys.executable, "-m", "ganserve", *command, "--address", server.address]
        pipes = {"stdout": writer, "stderr": subprocess.PIPE}
        done = await asyncio.to_thread(subprocess.run, words, **pipes, cwd=tmp_path, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
