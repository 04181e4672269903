"""The documents tell the truth: every setting, metric, link, version and README command."""

import asyncio
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

import ganserve.client
from ganserve.api.inference_request import INPUTS
from ganserve.client import ChannelSecurity, Client, ImageRequest, ModelInfo
from ganserve.client.channel import make_channel_options
from ganserve.config import ServerConfig
from ganserve.metrics import Metrics
from ganserve.server import running
from gantrain.config import TrainConfig
from tests.conftest import load_script
from tests.ganserve.certificates import Authority
from tests.ganserve.conftest import free_port, server_config
from tests.ganserve.tiny import write_artifact
from tests.markdown_blocks import extract_blocks, run_blocks, shell_lines

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {".venv", ".git", "node_modules"}
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not NOT_OURS & set(path.relative_to(ROOT).parts)
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")

# Lines of the README that run elsewhere; each must stand there exactly so.
RUN_ELSEWHERE = {
    "make demo": "the check of a fresh clone",
    "make test": "this test is part of it",
    "pip install '.[train,cpu]'": "the Makefile's own line, less the extra dev",
}


def read(path: str) -> str:
    return (ROOT / path).read_text()


def test_the_settings_page_is_up_to_date():
    generator = load_script(ROOT / "docs/generate_settings.py")
    assert read("docs/settings.md") == generator.render_page(), "run docs/generate_settings.py"


@pytest.mark.parametrize("config", [ServerConfig, TrainConfig], ids=lambda config: config.__name__)
def test_every_setting_is_documented(config):
    page = read("docs/settings.md")
    flags = {f"| `--{name.replace('_', '-')}` |" for name in config.model_fields}
    assert {flag for flag in flags if flag not in page} == set()
    assert all(field.description for field in config.model_fields.values())


def registered_metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name to type and labels, as a scrape shows them."""
    registry = CollectorRegistry()
    Metrics(registry)
    metrics = {}
    for collector in registry._collector_to_names:
        (family,) = collector.describe()
        suffix = "_total" if family.type == "counter" else ""
        metrics[family.name + suffix] = (family.type, tuple(collector._labelnames))
    return metrics


def test_every_setting_of_several_values_shows_how_they_are_written():
    rows = [line for line in read("docs/settings.md").splitlines() if "| list |" in line]
    assert len(rows) == 2
    for row in rows:
        assert re.search(r"such as \S+,\S+", row), row


def test_every_extra_is_in_the_readme():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    rows = [line.split("|")[1] for line in read("README.md").splitlines() if line.startswith("| ")]
    extras = {extra for row in rows for extra in re.findall(r"`([a-z-]+)`", row)}
    assert project["optional-dependencies"].keys() <= extras


def test_every_metric_is_documented_with_its_type_and_labels():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", read("docs/monitoring.md"), re.MULTILINE)
    documented = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in rows
        if name.startswith(("ganserve_", "grpc_"))
    }
    assert documented == registered_metrics()


def test_the_version_is_that_of_the_newest_changelog_entry():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", read("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"]


def test_every_benchmark_and_its_parts_are_listed():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts <= set(re.findall(r"`(\w+)`", read("benchmarks/README.md")))


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        pytest.param("docs/operations.md", r"ganserve-(\d+\.\d+\.\d+)", id="install"),
        pytest.param("docs/artifact.md", r'"writer": "gantrain (\d+\.\d+\.\d+)"', id="artifact"),
    ],
)
def test_examples_show_the_version_that_is_there(page, shown):
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert set(re.findall(shown, read(page))) == {project["version"]}


def anchors(page: Path) -> set[str]:
    """The fragments that the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    for target, fragment in LINK.findall(page.read_text()):
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        if fragment:
            assert fragment[1:] in anchors(linked), f"{target}{fragment}"


def test_blocks_run_in_order_in_one_session(tmp_path):
    page = """
```sh
answer=40
cat > counted.txt <<< "$((answer + 1))"
```
Prose, and what is only shown:
```text
not a command
```
```python
from pathlib import Path
Path("counted.txt").write_text(str(int(Path("counted.txt").read_text()) + 1))
```
```console
$ echo "$(cat counted.txt) \\
> and $answer"
42 and 40
$ false && skipped-elsewhere
```
"""
    session = run_blocks(
        page, tmp_path, tmp_path, timeout=60, elsewhere={"false && skipped-elsewhere"}
    )
    assert session.exit_code == 0, session.output
    assert "\n42 and 40\n" in session.output


@pytest.mark.parametrize(
    "page",
    [
        pytest.param("```sh\nfalse\necho reached\n```", id="command"),
        pytest.param("```sh\nfalse | cat\necho reached\n```", id="pipe"),
        pytest.param("```python\nraise SystemExit(3)\n```\n```sh\necho reached\n```", id="python"),
    ],
)
def test_the_first_failure_ends_the_session(page, tmp_path):
    session = run_blocks(page, tmp_path, tmp_path, timeout=60)
    assert session.exit_code != 0
    assert "\nreached" not in session.output


@pytest.mark.parametrize("ending", ["true", "false"])
def test_what_was_left_running_is_ended_and_the_exit_code_kept(tmp_path, ending):
    page = f"```sh\nsleep 300 &\necho $! > pid\n```\n```sh\n{ending}\n```"
    session = run_blocks(page, tmp_path, tmp_path, timeout=60)
    assert (session.exit_code == 0) == (ending == "true")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_session_that_takes_too_long_is_killed(tmp_path):
    started = time.monotonic()
    assert run_blocks("```sh\nsleep 300\n```", tmp_path, tmp_path, timeout=0.5).exit_code != 0
    assert time.monotonic() - started < 60


def test_a_block_in_an_unknown_language_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 2: expected one of"):
        run_blocks("```\nmystery\n```", tmp_path, tmp_path, timeout=60)


def test_the_lines_that_run_elsewhere_stand_in_the_readme():
    lines = [line for block in extract_blocks(read("README.md")) for line in shell_lines(block)]
    assert set(RUN_ELSEWHERE) <= set(lines)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_readme_works(tmp_path, monkeypatch):
    port, metrics_port = free_port(), free_port()
    monkeypatch.setenv("GANSERVE_PORT", str(port))
    monkeypatch.setenv("GANSERVE_METRICS_PORT", str(metrics_port))
    page = read("README.md").replace("localhost:50051", f"localhost:{port}")
    page = page.replace("localhost:9090", f"localhost:{metrics_port}")
    copy, scripts = tmp_path / "copy", tmp_path / "scripts"
    scripts.mkdir()
    shutil.copytree(ROOT, copy, ignore=what_is_not_in_a_clone)
    write_photos(copy / "photos")
    session = run_blocks(page, copy, scripts, timeout=800, elsewhere=RUN_ELSEWHERE.keys())
    assert session.exit_code == 0, session.output[-4000:]


async def test_every_example_of_the_client_page_works(tmp_path):
    write_artifact(tmp_path / "models", "faces")
    write_artifact(tmp_path / "models", "pets", class_names=("cat", "dog"))
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue()
    authority.ca.rename(tmp_path / "authority.crt")
    (tmp_path / "token").write_text("a-token-of-the-server\n")
    plain = server_config(tmp_path / "models", default_model="faces")
    files = {"tls_certificate": certificate, "tls_key": key, "token_file": tmp_path / "token"}
    protected = server_config(tmp_path / "models", default_model="faces", **files)
    async with running(plain) as server, running(protected) as with_tls:
        await server.wait_until_ready()
        await with_tls.wait_until_ready()
        page = read("docs/client.md").replace("localhost:50051", server.address)
        page = page.replace("faces.example:50051", with_tls.address)
        session = await asyncio.to_thread(run_blocks, page, tmp_path, tmp_path, timeout=200)
    assert session.exit_code == 0, session.output[-4000:]
    assert "NOT_FOUND: model 'faecs': expected one of faces, pets" in session.output


def test_the_client_page_names_every_argument_and_field():
    page = read("docs/client.md")
    arguments = {*inspect.signature(Client).parameters, *ImageRequest.__annotations__}
    fields = {
        *(field.name for field in dataclasses.fields(ModelInfo)),
        *(field.name for field in dataclasses.fields(ChannelSecurity)),
    }
    exported = {*ganserve.client.__all__}
    methods = {name for name in vars(Client) if not name.startswith("_")}
    named = set(re.findall(r"`(\w+)", page))
    assert arguments | fields | exported | methods <= named


async def test_the_examples_for_other_languages_work(tmp_path):
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if importlib.util.find_spec("tritonclient") is None or buf is None:
        pytest.skip("needs tritonclient[grpc] and buf-bin (the extra `dev`)")
    write_artifact(tmp_path / "models", "photos")
    async with running(server_config(tmp_path / "models")) as server:
        await server.wait_until_ready()
        page = read("docs/other-clients.md").replace("localhost:50051", server.address)
        session = await asyncio.to_thread(run_blocks, page, tmp_path, tmp_path, timeout=100)
    assert session.exit_code == 0, session.output[-4000:]
    assert '"seeds": [' in session.output  # of the reply as JSON
    assert "(3, " in session.output


def test_the_page_for_other_languages_has_the_tensors_and_the_retries_of_our_own_client():
    page = read("docs/other-clients.md")
    for name, tensor in INPUTS.items():
        assert f"| input `{name}` | {tensor.datatype} |" in page
    (block,) = (block for block in extract_blocks(page) if block.language == "json")
    options = dict(make_channel_options(retries=True, round_robin=False))
    assert json.loads(block.code) == json.loads(options["grpc.service_config"])


def what_is_not_in_a_clone(folder: str, names: list[str]) -> set[str]:
    made = {"runs", "models"} if Path(folder) == ROOT else set()  # ganserve/models is a package
    return {name for name in names if name.startswith(".") or name in {"__pycache__", *made}}


def write_photos(folder: Path) -> None:
    """What stands for the reader's own images: colours in two class folders, of mixed sizes."""
    random = np.random.default_rng(0)
    for index in range(64):
        path = folder / ("cats", "dogs")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (40 + index % 3, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
