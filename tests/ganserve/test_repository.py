import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from ganserve.batching.batcher import Batcher
from ganserve.errors import (
    InvalidRequest,
    Loading,
    ModelError,
    ProviderUnavailable,
    ShuttingDown,
    StartupError,
    UnknownModel,
)
from ganserve.metrics import Metrics
from ganserve.models.loading import load_model
from ganserve.models.model_files import Candidate, check_root, has_content, scan
from ganserve.repository.repository import Repository
from ganserve.repository.versions import ModelState, Version
from tests.ganserve.conftest import eventually, settle
from tests.ganserve.tiny import publish, write_artifact

LOAD = partial(load_model, device="cpu", threads=1)


class GatedLoad:
    """Loads when the gate is open, or those before `held_from`; counts."""

    def __init__(self, *, held_from=1, fails=False):
        self.loads = 0
        self._held_from, self._fails = held_from, fails
        self._started, self._gate = threading.Event(), threading.Event()

    def __call__(self, path):
        self.loads += 1
        self._started.set()
        assert self.loads < self._held_from or self._gate.wait(20)
        if self._fails:
            raise ProviderUnavailable("there is no such device")
        return LOAD(path)

    async def has_started(self):
        assert await asyncio.to_thread(self._started.wait, 20)

    def release(self):
        self._gate.set()


@contextlib.asynccontextmanager
async def opened(root, load=LOAD, **settings):
    metrics = Metrics(CollectorRegistry())

    def start_batcher(name, model):
        sizes = {"latent_dim": 4, "max_batch_size": 16, "queue_size": 64}
        return Batcher(model.run_batch, (4, 4, 3), metrics, model_name=name, **sizes)

    repository = Repository(root, load, start_batcher, metrics, **settings)
    repository.metrics = metrics
    try:
        yield repository
    finally:
        await repository.close()


def states(repository):
    return [(v.name, v.number, v.state.name) for v in repository.index.versions]


def sample(repository, name, **labels):
    return repository.metrics.registry.get_sample_value(name, labels)


def serving(repository, name="tiny"):
    with repository.index.use(name, None) as (version, _):
        return version.number


def describe_in_use(repository):
    """A way to ask for a version as a call for images does."""

    def use(name, number):
        with repository.index.use(name, number) as (version, _):
            return version

    return use


async def pixels_of(served, latents=(0, 0, 0, 0)):
    rows = np.array([latents], np.float32)
    return (await served.batcher.submit(rows, deadline=time.monotonic() + 20)).pixels


def move(link, target):
    """Have a link point elsewhere, in one step."""
    new = link.with_name("new-link")
    new.symlink_to(target)
    new.rename(link)


def remove(path):
    path.unlink()
    path.parent.rmdir()


@contextlib.contextmanager
def leased(path):
    """Keep everybody from opening a file, even root; it stays the same."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent to us when somebody tries
    try:
        with path.open("r+b") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            yield
    finally:
        signal.signal(signal.SIGIO, before)


def loop(path):
    """Put a link there that is an error for whoever follows it, even for root."""
    path.symlink_to(path.name)


def test_a_scan_finds_versions_newest_first_and_passes_over_the_rest(tmp_path):
    for version in (2, 10, 9):
        publish(tmp_path, "a", version, b"x")
    publish(tmp_path, "b", 1, b"x")
    for name in ("0", "01", "-1", "1.5", "latest", ".staging-1", "9" * 30):
        publish(tmp_path, "a", name, b"x")
    (tmp_path / "a" / "11").mkdir()  # still without its file
    (tmp_path / "a" / "12").write_text("no folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / ".hidden" / "1" / "model.onnx").write_text("")
    (tmp_path / "README").write_text("no model")
    publish(tmp_path, os.fsdecode(b"not \xff UTF-8"), 1, b"x")
    found, unreadable = scan(tmp_path)
    assert {name: [c.version for c in versions] for name, versions in found.items()} == {
        "a": [10, 9, 2],
        "b": [1],
    }
    assert unreadable == {}


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_root_that_is_no_folder_is_refused(tmp_path, kind):
    root = tmp_path / "models"
    if kind == "a file":
        root.write_text("")
    with pytest.raises(StartupError, match=f"models: expected a folder .*{root}"):
        check_root(root)


def test_the_folder_of_a_model_is_refused_as_a_root(tmp_path):
    write_artifact(tmp_path / "models", version=3)
    check_root(tmp_path / "models")
    with pytest.raises(StartupError, match=r"got .*/tiny, .* give the folder above it"):
        check_root(tmp_path / "models" / "tiny")


async def test_the_newest_version_serves(tmp_path):
    for version in (1, 2, 10):
        write_artifact(tmp_path, version=version, offset=version)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with repository.index.use("tiny", None) as (version, served):
            assert version.number == 10
            assert (await pixels_of(served) == 138).all()
        assert states(repository) == [("tiny", 10, "READY")]
        assert sample(repository, "ganserve_model_ready", model="tiny") == 1
        loads = {"model": "tiny", "outcome": "success"}
        assert sample(repository, "ganserve_model_loads_total", **loads) == 1
        assert sample(repository, "ganserve_model_load_seconds_count", model="tiny") == 1


async def test_a_new_version_replaces_the_old_without_a_restart(tmp_path):
    write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        write_artifact(tmp_path, version=2, offset=50)
        await repository.refresh()
        assert serving(repository) == 2
        with pytest.raises(UnknownModel, match="version 1: expected 2"):
            repository.index.use("tiny", 1).__enter__()


async def test_a_version_that_cannot_be_loaded_leaves_the_one_before_serving(tmp_path, caplog):
    write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        path = publish(tmp_path, "tiny", 2, b"rubbish")
        await repository.refresh()
        assert serving(repository) == 1
        assert states(repository) == [("tiny", 2, "FAILED"), ("tiny", 1, "READY")]
        assert "expected an ONNX file" in repository.index.describe("tiny", 2).error
        assert str(path) in caplog.text
        assert str(tmp_path) not in repository.index.describe("tiny", 2).error  # callers see it
        loads = {"model": "tiny", "outcome": "failure"}
        assert sample(repository, "ganserve_model_loads_total", **loads) == 1
        assert sample(repository, "ganserve_model_ready", model="tiny") == 1
        assert sample(repository, "ganserve_model_failed_versions", model="tiny") == 1
        shutil.rmtree(path.parent)
        await repository.refresh()
        assert sample(repository, "ganserve_model_failed_versions", model="tiny") == 0


async def test_at_start_the_newest_loadable_version_serves(tmp_path):
    write_artifact(tmp_path)
    publish(tmp_path, "tiny", 2, b"rubbish")
    async with opened(tmp_path) as repository:
        await repository.refresh()
        assert serving(repository) == 1


async def test_a_failed_version_is_tried_again_only_when_its_file_changes(tmp_path):
    path = publish(tmp_path, "tiny", 1, b"rubbish")
    load = GatedLoad()
    load.release()
    async with opened(tmp_path, load) as repository:
        await repository.refresh()
        await repository.refresh()
        assert load.loads == 1
        assert repository.index.versions[0].retry_at == float("inf")
        content = write_artifact(tmp_path / "elsewhere").read_bytes()
        remove(path)
        publish(tmp_path, "tiny", 1, content)
        await repository.refresh()
        assert load.loads == 2
        assert states(repository) == [("tiny", 1, "READY")]


class ShortOfMemory:
    """Loads, but for the first attempt; counts."""

    def __init__(self, seconds=0.0):
        self.loads, self._seconds = 0, seconds

    def __call__(self, path):
        self.loads += 1
        if self.loads == 1:
            time.sleep(self._seconds)
            raise ModelError("cannot be run: MemoryError", path) from MemoryError()
        return LOAD(path)


async def test_what_memory_was_short_for_is_tried_again_after_a_pause(tmp_path, caplog):
    write_artifact(tmp_path)
    load = ShortOfMemory()
    async with opened(tmp_path, load) as repository:
        for _ in range(3):
            await repository.refresh()
        assert load.loads == 1
        assert states(repository) == [("tiny", 1, "FAILED")]
        assert "until memory and threads suffice, tried again in 60 s: " in caplog.text
        assert 0 < repository.index.versions[0].retry_at - time.monotonic() <= 60
        repository.index.versions[0].retry_at = time.monotonic()
        await repository.refresh()
        assert load.loads == 2
        assert states(repository) == [("tiny", 1, "READY")]
        assert sample(repository, "ganserve_model_failed_versions", model="tiny") == 0


async def test_the_pause_is_longer_where_loading_takes_long(tmp_path, monkeypatch):
    monkeypatch.setattr("ganserve.repository.repository._RETRY_SECONDS", 0.0)
    write_artifact(tmp_path)
    async with opened(tmp_path, ShortOfMemory(seconds=0.2)) as repository:
        began = time.monotonic()
        await repository.refresh()
        assert began + 2 <= repository.index.versions[0].retry_at < float("inf")


async def test_a_file_replaced_by_one_that_cannot_be_loaded_serves_on(tmp_path):
    write_artifact(tmp_path, version=1, offset=9)
    path = write_artifact(tmp_path, version=2)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        good = path.read_bytes()
        path.write_bytes(b"half of a copy")
        await repository.refresh()
        assert states(repository) == [("tiny", 2, "READY"), ("tiny", 2, "FAILED")]
        with repository.index.use("tiny", None) as (_, served):
            assert (await pixels_of(served) == 128).all()
        path.write_bytes(good)
        await repository.refresh()
        await settle()
        assert serving(repository) == 2
        assert ("tiny", 2, "FAILED") not in states(repository)


async def test_a_file_of_the_same_size_and_time_as_the_one_before_is_another(tmp_path):
    path = write_artifact(tmp_path)
    other = write_artifact(tmp_path / "other", offset=9)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        before = path.stat()
        path.write_bytes(other.read_bytes())  # in place, as an archive is unpacked
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = path.stat()
        assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
        await repository.refresh()
        with repository.index.use("tiny", None) as (_, served):
            assert (await pixels_of(served) == 137).all()


async def test_a_file_of_another_file_system_is_another(tmp_path, mount):
    disks = mount("size=1m"), mount("size=1m")
    for disk, offset in zip(disks, (0, 9), strict=True):
        os.utime(write_artifact(disk, offset=offset), (0, 0))
    stamps = [(disk / "tiny" / "1" / "model.onnx").stat() for disk in disks]
    assert stamps[0].st_ino == stamps[1].st_ino
    root = tmp_path / "models"
    root.symlink_to(disks[0])
    async with opened(root) as repository:
        await repository.refresh()
        move(root, disks[1])
        await repository.refresh()
        with repository.index.use("tiny", None) as (_, served):
            assert (await pixels_of(served) == 137).all()


def test_a_copy_is_told_without_memory_for_it(tmp_path):
    """With none left beside the model that served, the comparison ended the server."""
    content = bytes(range(256)) * 2**15
    path, digest = tmp_path / "model.onnx", hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert has_content(path, len(content), digest)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < len(content) // 8
    assert not has_content(path, len(content) - 1, digest)
    assert not has_content(path, len(content) + 1, digest)
    assert not has_content(path, len(content), digest[::-1])


async def test_the_same_file_again_is_not_loaded_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for version in (1, 2):
        write_artifact(first, version=version, offset=version)
    shutil.copytree(first, second)
    write_artifact(second, "new")
    root = tmp_path / "models"
    root.symlink_to(first)
    load = GatedLoad(held_from=9)
    async with opened(root, load, version_policy="all") as repository:
        await repository.refresh()
        before = repository.index.versions
        move(root, second)
        await repository.refresh()
        assert load.loads == 3  # two before, and the new model
        assert repository.index.versions_of("tiny") == before
        # So that no later scan reads the files again.
        assert [version.candidate for version in before] == scan(root)[0]["tiny"]
        for version in (1, 2):
            remove(second / "tiny" / str(version) / "model.onnx")
        publish(second, "tiny", 1, b"rubbish")  # in the place of the one that was not loaded
        await repository.refresh()
        await eventually(lambda: len(repository.index.versions) == 3)  # without version 2
        assert states(repository)[1:] == [("tiny", 1, "READY"), ("tiny", 1, "FAILED")]


async def test_files_that_went_since_the_scan_take_out_nothing(tmp_path, caplog):
    """As where a link moves between two copies, and back."""
    first, second = tmp_path / "first", tmp_path / "second"
    write_artifact(first, version=2)
    write_artifact(second, version=3)
    root = tmp_path / "models"
    root.symlink_to(first)

    def load_after_a_move(path):
        move(root, first)
        return LOAD(path)

    async with opened(root) as repository:
        await repository.refresh()
        repository._load = load_after_a_move
        move(root, second)
        await repository.refresh()
        assert serving(repository) == 2
        await repository.refresh()
        assert states(repository) == [("tiny", 2, "READY")]
        assert "version 3 cannot be served until its file can be read" in caplog.text


async def test_a_file_that_went_since_the_first_scan_holds_up_no_other(tmp_path):
    write_artifact(tmp_path)
    newest = write_artifact(tmp_path, version=2)

    def load_after_a_removal(path):
        if path == newest:
            remove(path)
        return LOAD(path)

    async with opened(tmp_path, load_after_a_removal) as repository:
        await repository.refresh()
        assert serving(repository) == 1


@pytest.mark.parametrize("inner", [False, True], ids=["root", "model"])
async def test_folders_that_are_replaced_during_a_scan_take_out_nothing(
    tmp_path, inner, monkeypatch, caplog
):
    first, second = tmp_path / "first", tmp_path / "second"
    write_artifact(first, version=2)
    write_artifact(second, version=3)
    root = tmp_path / "models"
    link = root / "tiny" if inner else root
    link.parent.mkdir(exist_ok=True)
    targets = [folder / "tiny" if inner else folder for folder in (first, second)]
    link.symlink_to(targets[0])
    iterdir = Path.iterdir

    def iterdir_and_move(path):
        found = list(iterdir(path))
        if path == root / "tiny":
            move(link, targets[1])
        return found

    async with opened(root) as repository:
        await repository.refresh()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", iterdir_and_move)
            await repository.refresh()
        assert serving(repository) == 2
        assert "while it was looked through" in caplog.text
        await repository.refresh()
        assert serving(repository) == 3


async def test_when_the_newest_is_removed_the_one_before_serves_again(tmp_path):
    write_artifact(tmp_path)
    newest = write_artifact(tmp_path, version=2)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        remove(newest)
        await repository.refresh()
        assert serving(repository) == 1


async def test_a_removed_model_is_unknown_and_leaves_the_metrics(tmp_path):
    path = write_artifact(tmp_path)
    write_artifact(tmp_path, "other")
    async with opened(tmp_path) as repository:
        await repository.refresh()
        remove(path)
        await repository.refresh()
        with pytest.raises(UnknownModel, match="'tiny': expected one of other"):
            repository.index.use("tiny", None).__enter__()
        await eventually(lambda: list(repository.index._versions) == ["other"])
        assert sample(repository, "ganserve_model_ready", model="tiny") is None
        assert sample(repository, "ganserve_model_failed_versions", model="tiny") is None
        info = [
            s.labels["model"]
            for family in repository.metrics.model_info.collect()
            for s in family.samples
        ]
        assert info == ["other"]


async def test_a_model_of_which_only_a_failed_version_is_left_is_shown_as_not_ready(tmp_path):
    path = write_artifact(tmp_path)
    publish(tmp_path, "tiny", 2, b"rubbish")
    async with opened(tmp_path) as repository:
        await repository.refresh()
        assert sample(repository, "ganserve_model_ready", model="tiny") == 1
        remove(path)
        await repository.refresh()
        assert sample(repository, "ganserve_model_ready", model="tiny") == 0


async def test_an_old_version_answers_its_last_calls_before_it_goes(tmp_path):
    write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with repository.index.use("tiny", None) as (version, served):
            write_artifact(tmp_path, version=2, offset=50)
            await repository.refresh()
            assert states(repository) == [("tiny", 2, "READY"), ("tiny", 1, "RETIRING")]
            assert (await pixels_of(served) == 128).all()
        assert version.state is ModelState.RETIRING
        await repository.close()
        with pytest.raises(ShuttingDown):
            await pixels_of(served)
        assert states(repository) == []


async def test_an_old_version_stays_until_the_last_of_its_calls_ends(tmp_path):
    write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with repository.index.use("tiny", None):
            pass  # the last of its calls for now
        with repository.index.use("tiny", None) as (version, served):
            with repository.index.use("tiny", None):
                write_artifact(tmp_path, version=2, offset=50)
                await repository.refresh()
            await settle()
            assert version.state is ModelState.RETIRING
            assert (await pixels_of(served) == 128).all()


async def test_where_a_file_was_replaced_the_one_that_serves_is_described(tmp_path):
    path = write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with repository.index.use("tiny", 1):
            remove(path)
            write_artifact(tmp_path, offset=50)
            await repository.refresh()
            assert states(repository) == [("tiny", 1, "RETIRING"), ("tiny", 1, "READY")]
            for number in (None, 1):
                assert repository.index.describe("tiny", number).state is ModelState.READY


async def test_a_removed_model_shows_no_state_though_a_call_goes_on(tmp_path):
    path = write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with repository.index.use("tiny", 1):
            remove(path)
            await repository.refresh()
            assert states(repository) == [("tiny", 1, "RETIRING")]
            for name in ("ganserve_model_ready", "ganserve_model_failed_versions"):
                assert sample(repository, name, model="tiny") is None


async def test_a_version_that_comes_back_while_its_last_call_goes_on_serves_again(tmp_path):
    root, aside = tmp_path / "models", tmp_path / "aside"
    write_artifact(root)
    async with opened(root) as repository:
        await repository.refresh()
        with repository.index.use("tiny", 1):
            (root / "tiny").rename(aside)
            await repository.refresh()
            assert states(repository) == [("tiny", 1, "RETIRING")]
            aside.rename(root / "tiny")  # the same file as before
            await repository.refresh()
            assert states(repository) == [("tiny", 1, "RETIRING"), ("tiny", 1, "READY")]


async def test_where_none_serves_the_file_on_disk_is_described(tmp_path):
    path = write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with repository.index.use("tiny", 1):
            remove(path)
            await repository.refresh()
            publish(tmp_path, "tiny", 1, b"rubbish")
            await repository.refresh()
            assert states(repository) == [("tiny", 1, "RETIRING"), ("tiny", 1, "FAILED")]
            for number in (None, 1):
                assert repository.index.describe("tiny", number).state is ModelState.FAILED


async def test_a_version_that_is_not_there_is_unknown_also_where_none_serves(tmp_path):
    for version in (1, 2):
        publish(tmp_path, "tiny", version, b"rubbish")
    load = GatedLoad(held_from=2)
    async with opened(tmp_path, load) as repository:
        refreshing = asyncio.ensure_future(repository.refresh())
        await eventually(lambda: load.loads == 2)
        for find in (repository.index.describe, describe_in_use(repository)):
            with pytest.raises(Loading, match="'tiny': is being loaded"):  # who knows what comes
                find("tiny", 99)
        load.release()
        await refreshing
        for find in (repository.index.describe, describe_in_use(repository)):
            with pytest.raises(UnknownModel, match="'tiny' version 99: expected one of 2, 1"):
                find("tiny", 99)
        with pytest.raises(Loading, match=r"'tiny' version 1: expected an ONNX file"):
            describe_in_use(repository)("tiny", 1)
        write_artifact(tmp_path, version=3)
        load = repository._load = GatedLoad()
        refreshing = asyncio.ensure_future(repository.refresh())
        await load.has_started()
        with pytest.raises(Loading, match="'tiny': is being loaded"):
            repository.index.describe("tiny", 99)
        load.release()
        await refreshing


async def test_while_the_first_version_loads_callers_are_told_so(tmp_path):
    write_artifact(tmp_path)
    load = GatedLoad()
    async with opened(tmp_path, load) as repository:
        with pytest.raises(Loading, match="no model has been loaded yet"):
            repository.index.use("", None).__enter__()
        refreshing = asyncio.ensure_future(repository.refresh())
        await load.has_started()
        assert states(repository) == [("tiny", 1, "LOADING")]
        assert sample(repository, "ganserve_model_ready", model="tiny") == 0
        with pytest.raises(Loading, match="'tiny': is being loaded"):
            repository.index.use("tiny", None).__enter__()
        with pytest.raises(Loading, match="no model has been loaded yet"):
            repository.index.use("other", None).__enter__()
        load.release()
        await refreshing
        assert serving(repository) == 1


async def test_a_version_that_is_asked_for_while_it_loads_is_not_unknown(tmp_path):
    for version in (1, 2, 3):
        write_artifact(tmp_path, version=version)
    load = GatedLoad(held_from=2)
    async with opened(tmp_path, load, version_policy="all") as repository:
        refreshing = asyncio.ensure_future(repository.refresh())
        await eventually(lambda: load.loads == 2)
        assert serving(repository) == 3
        early = asyncio.ensure_future(repository.index.wait_for_first_scan("tiny", 1))
        for number in (2, 1):  # is loaded, waits for its turn
            with pytest.raises(Loading, match="'tiny': is being loaded"):
                describe_in_use(repository)("tiny", number)
        assert not early.done()
        load.release()
        await refreshing
        await early
        assert describe_in_use(repository)("tiny", 1).number == 1
        load = repository._load = GatedLoad()
        write_artifact(tmp_path, version=4)
        refreshing = asyncio.ensure_future(repository.refresh())
        await load.has_started()
        with pytest.raises(Loading, match="'tiny': is being loaded"):
            describe_in_use(repository)("tiny", 4)
        assert refused(repository, 9) == "model 'tiny' version 9: expected one of 3, 2, 1"
        load.release()
        await refreshing


async def test_while_a_new_version_loads_the_old_one_answers(tmp_path):
    write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        load = repository._load = GatedLoad()
        write_artifact(tmp_path, version=2, offset=50)
        refreshing = asyncio.ensure_future(repository.refresh())
        await load.has_started()
        with repository.index.use("tiny", None) as (version, served):
            assert version.number == 1
            assert (await pixels_of(served) == 128).all()
        load.release()
        await refreshing
        assert serving(repository) == 2


async def test_a_call_that_came_early_waits_for_the_first_models(tmp_path):
    write_artifact(tmp_path, "a")
    write_artifact(tmp_path, "b")
    load = GatedLoad(held_from=2)
    async with opened(tmp_path, load, default_model="a") as repository:
        early = asyncio.ensure_future(repository.index.wait_for_first_scan("b", None))
        refreshing = asyncio.ensure_future(repository.refresh())
        await eventually(lambda: load.loads == 2)
        assert serving(repository, "a") == 1
        for name in ("a", ""):  # serves, and is the default
            await asyncio.wait_for(repository.index.wait_for_first_scan(name, None), 1)
        assert not early.done()
        load.release()
        await refreshing
        await early
        assert serving(repository, "b") == 1
        await asyncio.wait_for(repository.index.wait_for_first_scan("c", None), 1)  # never again


async def test_a_call_that_came_early_goes_on_when_it_has_waited_long_enough(tmp_path, monkeypatch):
    monkeypatch.setattr("ganserve.repository.model_index._FIRST_SCAN_SECONDS", 0.02)
    async with opened(tmp_path) as repository:
        await asyncio.wait_for(repository.index.wait_for_first_scan("tiny", None), 10)
        assert not repository.index.first_scan_over.is_set()


async def test_a_caller_that_leaves_in_the_moment_the_first_scan_ends_has_left(tmp_path):
    async with opened(tmp_path) as repository:
        early = asyncio.ensure_future(repository.index.wait_for_first_scan("tiny", None))
        await settle()
        repository.index.first_scan_over.set()
        early.cancel()
        with pytest.raises(asyncio.CancelledError):
            await early


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_after_a_first_scan_that_came_to_nothing_nobody_waits(end, tmp_path):
    write_artifact(tmp_path)
    load = GatedLoad(fails=end == "failed")
    async with opened(tmp_path, load) as repository:
        early = asyncio.ensure_future(repository.index.wait_for_first_scan("", None))
        refreshing = asyncio.ensure_future(repository.refresh())
        await load.has_started()
        assert not early.done()
        if end == "failed":
            load.release()
        else:
            refreshing.cancel()
        await asyncio.wait([refreshing])
        await asyncio.wait_for(early, 1)
        with pytest.raises(Loading):
            repository.index.use("", None).__enter__()
        assert refreshing.cancelled() or isinstance(refreshing.exception(), StartupError)
        load.release()  # the model of a cancelled scan loads on, and might have served before


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
async def test_models_that_a_scan_did_not_wait_for_settle_without_another(tmp_path):
    write_artifact(tmp_path)
    write_artifact(tmp_path, "other")
    load, changes = GatedLoad(), []
    async with opened(tmp_path, load, on_change=lambda: changes.append(1)) as repository:
        await repository.refresh(0.01)
        assert not repository.index.settled
        load.release()
        await eventually(lambda: repository.index.settled)
        assert repository.index.serving_names == ["other", "tiny"]
        changes.clear()
        await repository.refresh()
        assert len(changes) == 1


async def test_loading_lets_the_event_loop_go_first(tmp_path):
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    priorities = []

    def load(path):
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return LOAD(path)

    write_artifact(tmp_path)
    async with opened(tmp_path, load) as repository:
        await repository.refresh()
    assert priorities == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


async def test_without_a_name_the_only_model_is_meant(tmp_path):
    write_artifact(tmp_path)
    async with opened(tmp_path) as repository:
        await repository.refresh()
        assert serving(repository, "") == 1


async def test_without_a_name_one_of_several_must_be_named(tmp_path):
    write_artifact(tmp_path, "a")
    write_artifact(tmp_path, "b")
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with pytest.raises(InvalidRequest, match="model_name: expected one of a, b"):
            repository.index.use("", None).__enter__()


async def test_without_a_name_the_default_is_meant(tmp_path):
    write_artifact(tmp_path, "a")
    write_artifact(tmp_path, "b", version=7)
    async with opened(tmp_path, default_model="b") as repository:
        await repository.refresh()
        assert serving(repository, "") == 7


async def test_a_misspelt_default_is_told_in_the_log(tmp_path, caplog):
    write_artifact(tmp_path)
    async with opened(tmp_path, default_model="tinny") as repository:
        for _ in range(2):
            await repository.refresh()
        with pytest.raises(UnknownModel, match="model 'tinny': expected one of tiny"):
            repository.index.use("", None).__enter__()
    assert caplog.text.count("default_model tinny is not there") == 1
    assert "there are tiny" in caplog.text


async def test_a_model_without_a_loadable_version_says_why(tmp_path):
    publish(tmp_path, "tiny", 1, b"rubbish")
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with pytest.raises(Loading, match=r"'tiny' version 1: expected an ONNX file"):
            repository.index.use("tiny", None).__enter__()
        assert repository.index.describe("", None).state is ModelState.FAILED


async def test_an_empty_repository_waits_for_its_first_model(tmp_path):
    async with opened(tmp_path) as repository:
        await repository.refresh()
        with pytest.raises(Loading):
            repository.index.use("", None).__enter__()
        write_artifact(tmp_path)
        await repository.refresh()
        assert serving(repository) == 1


@pytest.mark.parametrize("beside", ["models", "versions"])
async def test_a_look_that_finds_nothing_new_takes_no_more_than_twice_as_long_for_twice_as_much(
    beside, tmp_path, monkeypatch
):
    looks = 0

    def look(version, attribute):
        nonlocal looks
        looks += 1
        return object.__getattribute__(version, attribute)

    async def count(root, versions):
        nonlocal looks
        for number in range(1, versions + 1):
            name, version = (f"m{number}", 1) if beside == "models" else ("m", number)
            publish(root, name, version, b"of no use")
        async with opened(root, version_policy="all") as repository:
            await repository.refresh()
            assert len(states(repository)) == versions
            looks = 0
            await repository.refresh()
            return looks

    monkeypatch.setattr(Version, "__getattribute__", look)
    monkeypatch.setattr(Candidate, "__getattribute__", look)
    few, many = [await count(tmp_path / str(versions), versions) for versions in (20, 40)]
    assert many <= 2 * few


async def test_a_repository_that_vanishes_leaves_the_models_serving(tmp_path, caplog):
    root = tmp_path / "models"
    write_artifact(root)
    async with opened(root) as repository:
        await repository.refresh()
        root.rename(tmp_path / "away")
        await repository.refresh()
        await repository.refresh()
        assert serving(repository) == 1
        assert caplog.text.count("cannot be read") == 1


async def test_a_repository_that_is_no_longer_mounted_leaves_the_models_serving(mount, caplog):
    root = mount("size=1m")
    write_artifact(root)
    async with opened(root) as repository:
        await repository.refresh()
        await asyncio.to_thread(subprocess.run, ["umount", str(root)], check=True)
        await repository.refresh()
        await repository.refresh()
        assert serving(repository) == 1
        assert caplog.text.count("on another file system than before; is it still mounted?") == 1
        write_artifact(root, version=2)  # not mounted again, but put there
        await repository.refresh()
        assert serving(repository) == 2


async def test_a_repository_unmounted_while_it_is_looked_through_leaves_the_models_serving(
    mount, monkeypatch, caplog
):
    root = mount("size=1m")
    write_artifact(root)

    def look_and_unmount(root):
        found, unreadable = scan(root)
        subprocess.run(["umount", str(root)], check=True)
        return {**found, "tiny": found["tiny"][:0]}, unreadable  # as if it came in the middle

    async with opened(root) as repository:
        await repository.refresh()
        with monkeypatch.context() as patch:
            patch.setattr("ganserve.repository.repository_folder.scan", look_and_unmount)
            await repository.refresh()
        assert serving(repository) == 1
        assert "mounted or unmounted while it was looked through" in caplog.text
        await repository.refresh()
        assert serving(repository) == 1


async def test_a_model_that_cannot_be_read_holds_up_no_other(tmp_path, caplog):
    write_artifact(tmp_path, "a")
    loop(tmp_path / "lost+found")
    async with opened(tmp_path) as repository:
        await repository.refresh()
        assert repository.index.settled
        assert repository.index.names == ["a"]
        (tmp_path / "a").rename(tmp_path / ".away")
        loop(tmp_path / "a")
        for _ in range(2):
            await repository.refresh()
        assert states(repository) == [("a", 1, "READY")]  # nothing is known of its versions
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert [error.split(": ")[0] for error in errors] == [
            "cannot be read, what serves goes on"
        ] * 2
        assert f"{tmp_path}/lost+found: " in caplog.text
        assert f"{tmp_path}/a: " in caplog.text


class TestAVersionThatCannotBeRead:
    @pytest.mark.parametrize("number", [1, 3], ids=["older", "newer"])
    async def test_takes_no_other_out(self, number, tmp_path, caplog):
        write_artifact(tmp_path, version=2)
        loop(tmp_path / "tiny" / str(number))
        async with opened(tmp_path, version_policy="all") as repository:
            for _ in range(2):
                await repository.refresh()
            assert serving(repository) == 2
            assert repository.index.describe("tiny", number).state is ModelState.FAILED
            assert "cannot be read: " in repository.index.describe("tiny", number).error
            assert caplog.text.count(f"model tiny version {number} cannot be served") == 1
            loads = {"model": "tiny", "outcome": "failure"}
            assert sample(repository, "ganserve_model_loads_total", **loads) == 1
            assert sample(repository, "ganserve_model_failed_versions", model="tiny") == 1

    async def test_holds_up_no_later_one_and_is_loaded_when_it_can_be_read(self, tmp_path):
        write_artifact(tmp_path)
        async with opened(tmp_path) as repository:
            await repository.refresh()
            loop(tmp_path / "tiny" / "3")
            await repository.refresh()
            assert serving(repository) == 1
            write_artifact(tmp_path, version=2)
            await repository.refresh()
            assert serving(repository) == 2
            (tmp_path / "tiny" / "3").unlink()
            write_artifact(tmp_path, version=3)
            await repository.refresh()
            assert serving(repository) == 3

    @pytest.mark.skipif(sys.platform != "linux", reason="files have leases on Linux")
    async def test_holds_up_none_that_came_with_it(self, tmp_path):
        write_artifact(tmp_path)
        async with opened(tmp_path) as repository:
            await repository.refresh()
            write_artifact(tmp_path, version=2)
            with leased(write_artifact(tmp_path, version=3)):
                await repository.refresh()
            assert serving(repository) == 2

    @pytest.mark.skipif(sys.platform != "linux", reason="files have leases on Linux")
    async def test_whose_file_can_be_read_again_is_loaded_though_it_is_the_same(
        self, tmp_path, caplog
    ):
        path = write_artifact(tmp_path)
        async with opened(tmp_path) as repository:
            with leased(path):
                for _ in range(2):
                    await repository.refresh()
                assert states(repository) == [("tiny", 1, "FAILED")]
                assert caplog.text.count("cannot be served until its file can be read: ") == 1
            await repository.refresh()
            assert states(repository) == [("tiny", 1, "READY")]
            assert sample(repository, "ganserve_model_failed_versions", model="tiny") == 0

    async def test_alone_is_listed_as_failed(self, tmp_path):
        (tmp_path / "tiny").mkdir()
        loop(tmp_path / "tiny" / "1")
        async with opened(tmp_path) as repository:
            await repository.refresh()
            assert states(repository) == [("tiny", 1, "FAILED")]
            with pytest.raises(Loading, match=r"'tiny' version 1: cannot be read"):
                repository.index.use("tiny", None).__enter__()

    @pytest.mark.parametrize("policy", ["latest", "all", "specific"])
    async def test_serves_on_where_it_served(self, policy, tmp_path):
        """It may be there still, only out of reach for a while: so it is not retired."""
        write_artifact(tmp_path, version=1)
        path = write_artifact(tmp_path, version=2)
        settings = {"version_policy": policy}
        if policy == "specific":
            settings["versions"] = (("tiny", 2),)
        load = GatedLoad()
        load.release()
        async with opened(tmp_path, load, **settings) as repository:
            await repository.refresh()
            loads = load.loads
            path.parent.rename(tmp_path / ".away")
            loop(path.parent)
            for _ in range(2):
                await repository.refresh()
            with repository.index.use("tiny", 2) as (version, served):
                assert version.state is ModelState.READY
                assert (await pixels_of(served) == 128).all()
            assert ("tiny", 2, "FAILED") in states(repository)
            path.parent.unlink()
            (tmp_path / ".away").rename(path.parent)
            await repository.refresh()
            assert ("tiny", 2, "FAILED") not in states(repository)
            assert serving(repository) == 2
            assert load.loads == loads + 1  # in vain; what served was never loaded anew


async def test_a_swap_has_no_gap_that_a_probe_in_another_thread_could_see(tmp_path):
    write_artifact(tmp_path)
    seen = []

    def look(loop, coroutine, **options):  # in the midst of the swap, when the old one's end begins
        ready = sample(repository, "ganserve_model_ready", model="tiny")
        seen.append((repository.index.is_serving("tiny"), ready))
        return asyncio.Task(coroutine, loop=loop, **options)

    async with opened(tmp_path) as repository:
        await repository.refresh()
        write_artifact(tmp_path, version=2)
        asyncio.get_running_loop().set_task_factory(look)
        await repository.refresh()
        asyncio.get_running_loop().set_task_factory(None)
    assert seen
    assert set(seen) == {(True, 1)}


async def test_the_wrong_provider_at_start_is_an_error_of_the_start(tmp_path):
    write_artifact(tmp_path)

    def load(path):
        raise ProviderUnavailable(f"{path}: expected CUDAExecutionProvider")

    async with opened(tmp_path, load) as repository:
        with pytest.raises(StartupError, match="expected CUDAExecutionProvider"):
            await repository.refresh()


async def test_a_provider_that_is_lost_later_fails_the_versions_that_come(tmp_path):
    write_artifact(tmp_path)

    def load(path):
        raise ProviderUnavailable("expected CUDAExecutionProvider", path)

    async with opened(tmp_path) as repository:
        await repository.refresh()
        repository._load = load
        write_artifact(tmp_path, version=2)
        await repository.refresh()
        assert states(repository) == [("tiny", 2, "FAILED"), ("tiny", 1, "READY")]


async def test_every_change_is_announced(tmp_path):
    write_artifact(tmp_path)
    seen = []
    async with opened(tmp_path, on_change=lambda: seen.append(states(repository))) as repository:
        await repository.refresh()
        assert seen[0] == [("tiny", 1, "LOADING")]
        assert seen[-1] == [("tiny", 1, "READY")]
        write_artifact(tmp_path, version=2)
        await repository.refresh(timeout_seconds=0)  # also where no scan waits for it
        await eventually(lambda: seen[-1] == [("tiny", 2, "READY")])
    assert [("tiny", 2, "READY"), ("tiny", 1, "RETIRING")] in seen
    assert seen[-1] == []


def refused(repository, number, name="tiny"):
    with pytest.raises(UnknownModel) as error, repository.index.use(name, number):
        pass
    return str(error.value)


class TestVersionPolicies:
    async def test_latest_serves_the_newest_alone(self, tmp_path):
        for version in (1, 2, 3):
            write_artifact(tmp_path, version=version)
        async with opened(tmp_path) as repository:
            await repository.refresh()
            assert states(repository) == [("tiny", 3, "READY")]
            assert refused(repository, 2) == "model 'tiny' version 2: expected 3"

    async def test_all_serves_every_version_that_can_be_loaded(self, tmp_path):
        for version in (1, 2, 4):
            write_artifact(tmp_path, version=version, offset=version)
        publish(tmp_path, "tiny", 3, b"rubbish")
        async with opened(tmp_path, version_policy="all") as repository:
            await repository.refresh()
            assert states(repository) == [
                ("tiny", 4, "READY"),
                ("tiny", 3, "FAILED"),
                ("tiny", 2, "READY"),
                ("tiny", 1, "READY"),
            ]
            assert serving(repository) == repository.index.describe("tiny", None).number == 4
            for version in (1, 2, 4):  # each by its number, with pixels of its own
                with repository.index.use("tiny", version) as (used, served):
                    assert used.number == version
                    assert (await pixels_of(served) == 128 + version).all()
            assert refused(repository, 3) == "model 'tiny' version 3: expected one of 4, 2, 1"

    async def test_all_takes_versions_in_and_lets_them_go_one_by_one(self, tmp_path):
        paths = {version: write_artifact(tmp_path, version=version) for version in (1, 2)}
        async with opened(tmp_path, version_policy="all") as repository:
            await repository.refresh()
            write_artifact(tmp_path, version=3)
            remove(paths[1])
            await repository.refresh()
            await eventually(lambda: [number for _, number, _ in states(repository)] == [3, 2])
            assert serving(repository) == 3
            remove(tmp_path / "tiny" / "3" / "model.onnx")
            await repository.refresh()
            assert serving(repository) == 2
            assert sample(repository, "ganserve_model_ready", model="tiny") == 1

    async def test_all_replaces_a_version_whose_file_changed(self, tmp_path):
        path = write_artifact(tmp_path)
        write_artifact(tmp_path, version=2)
        async with opened(tmp_path, version_policy="all") as repository:
            await repository.refresh()
            remove(path)
            write_artifact(tmp_path, offset=9)
            await repository.refresh()
            with repository.index.use("tiny", 1) as (_, served):
                assert (await pixels_of(served) == 137).all()
            await eventually(lambda: len(repository.index.versions) == 2)

    async def test_specific_serves_what_is_named_and_nothing_else(self, tmp_path, caplog):
        for version in (1, 2, 3):
            write_artifact(tmp_path, version=version)
        write_artifact(tmp_path, "other")
        wanted = (("tiny", 1), ("tiny", 2), ("absent", 7))
        settings = {"version_policy": "specific", "versions": wanted}
        async with opened(tmp_path, **settings) as repository:
            await repository.refresh()
            await repository.refresh()
            assert repository.index.names == ["tiny"]
            assert states(repository) == [("tiny", 2, "READY"), ("tiny", 1, "READY")]
            assert refused(repository, 3) == "model 'tiny' version 3: expected one of 2, 1"
            assert refused(repository, 1, "other") == "model 'other': expected one of tiny"
            assert caplog.text.count("model absent version 7 is to serve, but is not there") == 1


def models_with_series(repository):
    return {
        one.labels["model"]
        for family in repository.metrics.registry.collect()
        for one in family.samples
        if "model" in one.labels
    }


class TestSeriesOfVersions:
    async def test_images_of_retired_versions_stay_counted_but_not_for_ever(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("ganserve.repository.model_series._COUNTED_VERSIONS", 2)
        async with opened(tmp_path) as repository:
            for number in range(1, 6):
                path = write_artifact(tmp_path, version=number)
                await repository.refresh()
                with repository.index.use("tiny", None) as (_, served):
                    served.count_images(number)
                await eventually(lambda: len(repository.index.versions) == 1)
            counts = [
                sample(repository, "ganserve_images_total", model="tiny", version=str(number))
                for number in range(1, 6)
            ]
            assert counts == [None, None, 3, 4, 5]
            # One that comes back counts on from where it was shown, and is shown.
            remove(path)
            await repository.refresh()
            with repository.index.use("tiny", None) as (version, served):
                assert version.number == 4
                served.count_images(1)
            labels = {"model": "tiny", "version": "4"}
            assert sample(repository, "ganserve_images_total", **labels) == 5

    async def test_images_of_a_number_that_serves_stay_counted_whatever_was_retired_under_it(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("ganserve.repository.model_series._COUNTED_VERSIONS", 1)
        path = write_artifact(tmp_path)
        async with opened(tmp_path, version_policy="all") as repository:
            await repository.refresh()
            remove(path)
            write_artifact(tmp_path, offset=9)  # another file in its place
            await repository.refresh()
            with repository.index.use("tiny", 1) as (_, served):
                served.count_images(3)
            for number in (2, 3):
                path = write_artifact(tmp_path, version=number)
                await repository.refresh()
                remove(path)
                await repository.refresh()
                await eventually(lambda: len(repository.index.versions) == 1)
            labels = {"model": "tiny", "version": "1"}
            assert sample(repository, "ganserve_images_total", **labels) == 3
            await eventually(lambda: not repository._retirements)

    async def test_a_model_that_went_leaves_no_series(self, tmp_path):
        path = write_artifact(tmp_path)
        write_artifact(tmp_path, "other")
        async with opened(tmp_path) as repository:
            await repository.refresh()
            with repository.index.use("tiny", None) as (_, served):
                await pixels_of(served)
                served.count_images(1)

            assert models_with_series(repository) == {"tiny", "other"}
            remove(path)
            path.parent.parent.rmdir()
            await repository.refresh()
            await eventually(lambda: models_with_series(repository) == {"other"})

    async def test_nor_does_one_that_never_served(self, tmp_path):
        for version in (1, 2):
            publish(tmp_path, "tiny", version, b"rubbish")
        write_artifact(tmp_path, "other")
        async with opened(tmp_path) as repository:
            await repository.refresh()
            shutil.rmtree(tmp_path / "tiny" / "2")
            await repository.refresh()
            assert models_with_series(repository) == {"tiny", "other"}
            shutil.rmtree(tmp_path / "tiny")
            await repository.refresh()
            assert models_with_series(repository) == {"other"}


class TestWhileOneModelLoadsForLong:
    """Such as one whose engine is built: the other models are still looked after."""

    @contextlib.asynccontextmanager
    async def held(self, root, **settings):
        """`tiny` version 1 and `other` versions 1 and 2 serve, and `tiny` version 2 loads."""
        write_artifact(root)
        for version in (1, 2):
            write_artifact(root, "other", version=version)
        async with opened(root, version_policy="all", **settings) as repository:
            await repository.refresh()
            load = repository._load = GatedLoad()
            write_artifact(root, version=2, offset=50)
            await repository.refresh(0.01)
            await load.has_started()
            assert repository.is_loading
            yield repository, load
            load.release()

    async def test_versions_and_models_that_are_gone_are_retired(self, tmp_path):
        async with self.held(tmp_path) as (repository, _):
            remove(tmp_path / "other" / "2" / "model.onnx")
            await repository.refresh(0.01)
            assert serving(repository, "other") == 1
            shutil.rmtree(tmp_path / "other")
            await repository.refresh(0.01)
            with pytest.raises(UnknownModel, match="expected one of tiny"):
                serving(repository, "other")
            await eventually(lambda: models_with_series(repository) == {"tiny"})
            assert serving(repository) == 1

    async def test_what_is_new_is_loaded_next(self, tmp_path):
        async with self.held(tmp_path) as (repository, load):
            write_artifact(tmp_path, "other", version=3)
            write_artifact(tmp_path, "another")
            for _ in range(3):
                await repository.refresh(0.01)
            assert serving(repository, "other") == 2
            with pytest.raises(Loading, match="'another': is being loaded"):
                serving(repository, "another")
            load.release()
            await repository.refresh()
            assert not repository.is_loading
            names = ("tiny", "other", "another")
            assert [serving(repository, name) for name in names] == [2, 3, 1]
            assert load.loads == 3, "each version once"
            assert len({(name, number) for name, number, _ in states(repository)}) == 6

    async def test_a_version_that_went_before_its_turn_is_not_loaded(self, tmp_path, caplog):
        async with self.held(tmp_path) as (repository, load):
            path = write_artifact(tmp_path, "other", version=3)
            write_artifact(tmp_path, "another")
            await repository.refresh(0.01)
            remove(path)
            shutil.rmtree(tmp_path / "another")
            await repository.refresh(0.01)
            load.release()
            await repository.refresh()
            assert load.loads == 1
            assert states(repository) == [
                *(("other", 2, "READY"), ("other", 1, "READY")),
                *(("tiny", 2, "READY"), ("tiny", 1, "READY")),
            ]
            assert "cannot be" not in caplog.text

    async def test_its_file_that_is_replaced_meanwhile_serves_next(self, tmp_path):
        async with self.held(tmp_path) as (repository, load):
            remove(tmp_path / "tiny" / "2" / "model.onnx")
            write_artifact(tmp_path, version=2, offset=9)
            await repository.refresh(0.01)
            assert load.loads == 1
            load.release()
            await repository.refresh()
            assert load.loads == 2
            with repository.index.use("tiny", 2) as (_, served):
                assert (await pixels_of(served) == 137).all()
            await eventually(lambda: ("tiny", 2, "RETIRING") not in states(repository))
            assert ("tiny", 2, "READY") in states(repository)

    async def test_it_serves_without_another_look(self, tmp_path):
        async with self.held(tmp_path) as (repository, load):
            load.release()
            await eventually(lambda: serving(repository) == 2)
            remove(tmp_path / "tiny" / "2" / "model.onnx")
            await repository.refresh()
            assert serving(repository) == 1

    async def test_closing_waits_for_no_load(self, tmp_path):
        async with self.held(tmp_path) as (repository, load):
            write_artifact(tmp_path, "other", version=3)
            await repository.refresh(0.01)
            async with asyncio.timeout(10):
                await repository.close()
            load.release()
            await settle()
            assert not repository.is_loading
            assert load.loads == 1
            assert [state for _, _, state in states(repository)] == ["LOADING"]

    async def test_a_mistake_of_ours_is_raised_by_the_next_look(self, tmp_path):
        async with self.held(tmp_path) as (repository, load):
            repository._start_batcher = None
            load.release()
            await eventually(lambda: not repository.is_loading)
            with pytest.raises(TypeError):
                await repository.refresh()
