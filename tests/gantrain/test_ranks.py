"""Several processes under a real `torchrun` train one run and end together."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gantrain import ranks
from gantrain.checkpoint import checkpoint_paths, load_checkpoint
from gantrain.errors import RunError
from gantrain.presets import PRESETS, resolve
from gantrain.ranks import Ranks, read_ranks
from gantrain.training.loop import train
from tests.gantrain.conftest import SMALL, wait_for_checkpoint
from tests.gantrain.exact_steps import CASES

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def settings_of(run_dir: Path, **more: object) -> dict[str, object]:
    """A run of 20 steps with nothing due before its end."""
    total = STEPS * 16
    values: dict[str, object] = {
        **SMALL,
        "run_dir": run_dir,
        "total_images": total,
        "tensorboard": False,
    }
    values["log_every"] = 80
    values |= dict.fromkeys(("sample_every", "diagnose_every", "checkpoint_every"), total)
    return values | more


def flags_of(settings: dict[str, object]) -> list[str]:
    named = {name: value for name, value in settings.items() if value is not False}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
    return [*flags, *(f"--no-{name}" for name, value in settings.items() if value is False)]


def start_ranks(count: int, settings: dict[str, object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, f"--nproc-per-node={count}", "-m", "gantrain", "train", *flags_of(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train_ranks(count: int, settings: dict[str, object]) -> tuple[str, str]:
    process = start_ranks(count, settings)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    return output, errors


def largest_difference(one: Path, other: Path, part: str) -> float:
    weights = [
        load_checkpoint(checkpoint_paths(run / "checkpoints")[0])[part] for run in (one, other)
    ]
    assert weights[0].keys() == weights[1].keys()
    return max(
        float((weights[0][name].double() - weights[1][name].double()).abs().max())
        for name in weights[0]
    )


def workers_of(process: subprocess.Popen[str]) -> Iterator[tuple[int, int]]:
    """Rank and process of each worker that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(value[5:]) for value in variables if value.startswith(b"RANK=")]
        if ranks:
            yield ranks[0], int(child)


def rows_of(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="the-flagship"),
        pytest.param({"preset": "dcgan-2015", "flip": "on", "image_size": 16}, id="dcgan-2015"),
        pytest.param(
            # So wide that gradients are sent during the backward pass; what is small at first
            # grows with the steps.
            {
                "preset": "dcgan-2015",
                "image_size": 16,
                "filters": 32,
                "total_images": 48,
                "log_every": 16,
            },
            id="wide",
        ),
    ],
)
def test_two_ranks_with_half_the_batch_each_are_one_with_the_whole(
    settings: dict[str, object], tmp_path: Path
):
    """Adam moves a weight by the sign of its gradient where that is but rounding.

    Unless it is below epsilon: then a processor that sums in another order changes nothing.
    """
    settings = {**settings, "optimizer_eps": 1e-4}
    train(resolve(settings_of(tmp_path / "one", **settings)))
    output, errors = train_ranks(2, settings_of(tmp_path / "two", **settings))
    for part in ("generator", "generator_ema", "discriminator"):
        assert largest_difference(tmp_path / "one", tmp_path / "two", part) < 1e-5, part
    ours, theirs = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    for name in (
        "images_seen",
        "discriminator_loss",
        "generator_loss",
        "discriminator_accuracy_fake",
    ):
        assert [row[name] for row in theirs] == pytest.approx([row[name] for row in ours], abs=1e-4)
    assert output.count("trained on") == 1
    images = f"{rows_of(tmp_path / 'one')[-1]['images_seen']}"
    assert errors.count(f"{images}/{images} images") == 1


@pytest.fixture(scope="module")
def exact_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with the weights that one rank and two reach in float64."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    program = ["-m", "tests.gantrain.exact_steps"]
    commands = [
        [sys.executable, *program, str(alone)],
        [*TORCHRUN, "--nproc-per-node=2", *program, str(together)],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in commands:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr
    return alone, together


@pytest.mark.parametrize("case", CASES)
def test_in_float64_two_ranks_do_exactly_what_one_does(case: str, exact_weights: tuple[Path, Path]):
    """In float32 Adam and the kinks of activations amplify rounding beyond telling it apart."""
    one, two = (torch.load(folder / f"{case}.pt") for folder in exact_weights)
    assert one.keys() == two.keys()
    assert {values.dtype for values in one.values()} <= {torch.float64, torch.int64}
    for name in one:
        assert (one[name] - two[name]).abs().max() < 1e-8, name


def test_every_preset_is_held_to_it():
    assert {"dcgan", *CASES} >= PRESETS.keys()


# The ranks are forked once PyTorch is imported, for nine imports take long.
SUMS = """
import multiprocessing, os, socket, sys, torch
from gantrain.ranks import add_up, join_ranks

def sums(rank):
    os.environ["RANK"] = str(rank)
    with join_ranks(torch.device("cpu")) as ranks:
        tensors = torch.tensor(ranks.rank), torch.full((20_000,), 0.1 * ranks.rank)
        for values in tensors:
            add_up(values)
    return [f"{values.dtype} {values.flatten()[-1].item()!r}" for values in tensors]

with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
count = sys.argv[1]
os.environ |= {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
with multiprocessing.get_context("fork").Pool(int(count)) as pool:
    for lines in pool.map(sums, range(int(count)), chunksize=1):
        print(*lines, sep="\\n")
"""


@pytest.mark.parametrize("count", [3, 9])  # few ranks exchange few values in another way than many
def test_sums_are_the_same_on_all_ranks(count: int):
    command = [sys.executable, "-c", SUMS, str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    total = sum(range(count))
    assert sorted(lines)[count:] == [f"torch.int64 {total}"] * count
    assert len(set(lines)) == 2
    assert float(min(lines).split()[1]) == pytest.approx(0.1 * total)


def test_a_killed_rank_ends_the_run_and_another_number_resumes_it(tmp_path: Path):
    endless = settings_of(tmp_path / "run", total_images=10**8, checkpoint_every=64)
    process = start_ranks(2, endless)
    wait_for_checkpoint(process, tmp_path / "run")
    os.kill(dict(workers_of(process))[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.search("^gantrain train: another rank has ended", errors, re.MULTILINE), errors
    cut_at = int(checkpoint_paths(tmp_path / "run" / "checkpoints")[0].stem)
    state = train(resolve({**endless, "total_images": cut_at + 64}))
    assert state.images_seen == cut_at + 64
    positions = [row["images_seen"] for row in rows_of(tmp_path / "run")]
    assert positions == sorted(set(positions))


LOSES_THE_OTHERS = """
import os, signal
from gantrain import ranks
from gantrain.errors import RunError
from gantrain.training.stop_requests import stop_requests
try:
    with stop_requests(), ranks._reaching_others():
        raise RuntimeError("Connection closed by peer")
except RunError as error:
    os.kill(os.getpid(), signal.SIGTERM)
    print(error)
"""


def test_that_torchrun_ends_the_other_ranks_does_not_hide_why():
    done = subprocess.run(
        [sys.executable, "-c", LOSES_THE_OTHERS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done
    assert "another rank has ended or cannot be reached" in done.stdout


def test_a_lack_of_memory_in_an_exchange_is_not_said_to_be_another_ranks():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(torch.OutOfMemoryError), ranks._reaching_others():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_lost_connection_is_told_by_whichever_thread_finds_it():
    """Hooks of a backward pass on a GPU run in a thread of PyTorch's, which may set no signals."""

    def lose_the_others() -> None:
        with ranks._reaching_others():
            raise RuntimeError("Connection closed by peer")

    with ThreadPoolExecutor() as threads, pytest.raises(RunError, match="another rank has ended"):
        threads.submit(lose_the_others).result()


def test_a_stop_is_a_stop_of_all_ranks_after_a_checkpoint(tmp_path: Path):
    endless = settings_of(tmp_path / "run", total_images=10**8, checkpoint_every=160)
    process = start_ranks(2, endless)
    wait_for_checkpoint(process, tmp_path / "run")
    os.kill(dict(workers_of(process))[1], signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    found = re.search(r"interrupted after (\d+) images; a checkpoint was saved", errors)
    assert found, errors
    assert int(checkpoint_paths(tmp_path / "run" / "checkpoints")[0].stem) == int(found[1])


def tell_where_the_first_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")


def test_a_batch_that_cannot_be_shared_is_refused_with_what_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    tell_where_the_first_is(monkeypatch)
    with pytest.raises(RunError, match=r"--batch-size 16: .* multiple of the 3 ranks.* 15 or 18"):
        train(resolve(settings_of(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_shares_are_the_whole_batch_in_order():
    batch = torch.arange(12)
    shares = [batch[Ranks(rank, 3).share(12)] for rank in range(3)]
    assert torch.equal(torch.cat(shares), batch)


def test_a_rank_is_what_torchrun_says_and_nothing_without_it(monkeypatch: pytest.MonkeyPatch):
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tell_where_the_first_is(monkeypatch)
    assert read_ranks() == Ranks(rank=5, count=8, local_rank=1, local_count=4)
    monkeypatch.delenv("WORLD_SIZE")  # other programs set RANK, too
    assert read_ranks() == Ranks(rank=0, count=1, local_rank=0, local_count=1)


def test_a_program_that_sets_no_more_than_a_number_of_ranks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RunError, match=r"WORLD_SIZE is 2, but MASTER_ADDR not set: .*torchrun"):
        read_ranks()


def test_variables_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(RunError, match="WORLD_SIZE: expected the numbers that torchrun sets"):
        read_ranks()
