"""The example in another language gets the same bytes as the Python client."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from ganserve.client import Client
from tests.ganserve.tiny import write_artifact

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 7, 2**53 + 1, 2**64 - 1)  # the third is no JavaScript number
# What npm says where the registry cannot be reached; all else is the example's fault.
UNREACHABLE = (
    *("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH"),
    *("ERR_SOCKET_TIMEOUT", "EHOSTUNREACH"),
)


async def run(*command, cwd, timeout_seconds=120):
    """Exit code, output and errors of a program."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return process.returncode, output.decode(), errors.decode()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder of an installed copy of the example, with the protos where it looks for them."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    root = tmp_path_factory.mktemp("repository")
    folder = root / "examples/node"
    ignore = shutil.ignore_patterns("node_modules")
    shutil.copytree(ROOT / "examples/node", folder, ignore=ignore)
    shutil.copytree(ROOT / "protos", root / "protos")
    flags = ("--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--json")
    code, output, errors = asyncio.run(run("npm", "install", *flags, cwd=folder))
    if code != 0 and any(word in output + errors for word in UNREACHABLE):
        pytest.skip("needs a registry of npm packages that can be reached")
    assert code == 0, output + errors
    assert not (folder / "package-lock.json").exists()
    return folder


async def call_example(example, server, out, *flags, seeds=SEEDS):
    listed = ",".join(map(str, seeds))
    command = ("node", "client.js", "--address", server.address, "--seeds", listed, "--out", out)
    return await run(*command, *flags, cwd=example)


@pytest.mark.parametrize("flags", [(), ("--stream",)], ids=["one reply", "stream"])
async def test_its_files_are_those_of_the_python_client(tmp_path, example, running_server, flags):
    write_artifact(tmp_path / "models", network="convolutional")
    settings = {"chunk_bytes": 2 * 16 * 16 * 3}  # two images
    async with running_server(tmp_path / "models", **settings) as server:
        code, output, errors = await call_example(example, server, tmp_path / "out", *flags)
        assert code == 0, errors
        with Client(server.address) as client:
            expected = await asyncio.to_thread(client.generate_files, seeds=SEEDS)
    paths = [tmp_path / "out" / f"{seed}.png" for seed in SEEDS]
    assert output.splitlines() == list(map(str, paths))
    assert [path.read_bytes() for path in paths] == expected


@pytest.mark.parametrize("flags", [(), ("--stream",)], ids=["one reply", "stream"])
async def test_it_shows_what_the_server_refuses(
    tmp_path, example, repository, running_server, flags
):
    async with running_server(repository) as server:
        flags = (*flags, "--model", "dogs")
        code, output, errors = await call_example(example, server, tmp_path / "out", *flags)
    assert (code, output) == (1, "")
    assert errors == "NOT_FOUND: model 'dogs': expected one of tiny\n"


def test_the_example_names_exact_versions():
    package = json.loads((ROOT / "examples/node/package.json").read_text())
    assert all(version[0].isdigit() for version in package["dependencies"].values())
