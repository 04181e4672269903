import asyncio
import errno
import os
import threading

import pytest

from ganserve.models.model_files import Candidate, scan
from ganserve.repository.repository_folder import RepositoryFolder
from tests.ganserve.conftest import settle
from tests.ganserve.tiny import publish


async def found(folder):
    seen = await folder.scan()
    assert seen is not None
    versions, unreadable = seen
    numbers = {name: [one.version for one in candidates] for name, candidates in versions.items()}
    return numbers, set(unreadable)


@pytest.fixture
def root(tmp_path):
    for name, version in (("a", 1), ("a", 2), ("b", 1)):
        publish(tmp_path, name, version, b"not looked into")
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(None, {"a": [2, 1], "b": [1]}, id="all"),
        pytest.param(frozenset({("a", 1)}), {"a": [1]}, id="named"),
        pytest.param(frozenset(), {}, id="none"),
    ],
)
async def test_what_may_serve(root, wanted, expected):
    assert await found(RepositoryFolder(root, wanted)) == (expected, set())


async def test_a_model_that_cannot_be_read_is_told_once_and_its_versions_are_not_missed(
    root, caplog
):
    (root / "c").symlink_to("c")  # an error for whoever follows it, even for root
    folder = RepositoryFolder(root, frozenset({("a", 1), ("c", 1)}))
    for _ in range(2):
        assert await found(folder) == ({"a": [1]}, {"c"})
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot be read, what serves goes on: {root / 'c'}: {os.strerror(errno.ELOOP)}"
    ]


async def test_files_in_the_wrong_place_are_named_once_where_there_is_no_version(tmp_path, caplog):
    for path in ("flat/model.onnx", "faces/v1/model.onnx", "stray.onnx", ".new/1/model.onnx"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c" / "d" / "deep.onnx").touch()
    folder = RepositoryFolder(tmp_path, None)
    for _ in range(2):
        await folder.scan()
    told = (
        "passed over, for models lie at NAME/VERSION/model.onnx, VERSION a positive integer: "
        "stray.onnx, faces/v1/model.onnx, flat/model.onnx"
    )
    assert [record.getMessage() for record in caplog.records] == [told]
    path = publish(tmp_path, "a", 1, b"not looked into")
    await folder.scan()
    path.unlink()
    await folder.scan()
    assert caplog.text.count(told) == 2


async def test_files_in_the_wrong_place_are_no_matter_beside_versions(root, caplog):
    (root / "stray.onnx").touch()
    assert await found(RepositoryFolder(root, None)) == ({"a": [2, 1], "b": [1]}, set())
    assert not caplog.records


async def test_what_is_missing_is_told_again_once_it_was_there(root, caplog):
    folder = RepositoryFolder(root, frozenset({("d", 1)}))
    for _ in range(2):
        await folder.scan()
    path = publish(root, "d", 1, b"not looked into")
    await folder.scan()
    path.unlink()
    await folder.scan()
    assert caplog.text.count("model d version 1 is to serve, but is not there") == 2


@pytest.mark.parametrize(
    ("wanted", "there_are"),
    [
        pytest.param(None, "a, b", id="all"),
        pytest.param(frozenset({("a", 1), ("d", 1)}), "a", id="named"),
        pytest.param(frozenset({("d", 1)}), "none yet", id="none"),
    ],
)
async def test_a_default_that_is_not_there_is_told_again_once_it_was(
    wanted, there_are, root, caplog
):
    folder = RepositoryFolder(root, wanted, "d")
    told = f"default_model d is not there: calls that name no model fail; there are {there_are}"
    for _ in range(2):
        await folder.scan()
    assert caplog.text.count(told) == 1
    path = publish(root, "d", 1, b"not looked into")
    await folder.scan()
    path.unlink()
    for _ in range(2):
        await folder.scan()
    assert caplog.text.count(told) == 2


@pytest.mark.parametrize("default", [None, "a", "c"], ids=["none", "there", "unreadable"])
async def test_no_other_default_is_told(default, root, caplog):
    (root / "c").symlink_to("c")  # an error for whoever follows it, even for root
    await RepositoryFolder(root, None, default).scan()
    assert "default_model" not in caplog.text


async def test_only_what_is_not_there_is_gone(root):
    folder = RepositoryFolder(root, None)
    (root / "loop").symlink_to("loop")  # an error for whoever follows it, even for root
    file = root / "a" / "1" / "model.onnx"
    assert not await folder.is_gone(Candidate("a", 1, file, None))
    assert not await folder.is_gone(Candidate("a", 1, root / "loop" / "model.onnx", None))
    assert await folder.is_gone(Candidate("a", 1, file.with_name("other"), None))
    assert await folder.is_gone(Candidate("a", 1, file / "below", None))


async def test_a_folder_that_takes_long_is_told_again_once_it_did_not(root, monkeypatch, caplog):
    may_end = threading.Event()

    def look(root):
        assert may_end.wait(20)
        return scan(root)

    monkeypatch.setattr("ganserve.repository.repository_folder.scan", look)
    folder = RepositoryFolder(root, None)
    for long_seconds, times in ((60, 0), (0, 1), (0, 1), (60, 1), (0, 2)):
        monkeypatch.setattr("ganserve.file_reads._LONG_SECONDS", long_seconds)
        may_end.clear()
        looking = asyncio.ensure_future(found(folder))
        await settle()
        may_end.set()
        assert (await looking)[0] == {"a": [2, 1], "b": [1]}
        assert caplog.text.count(f"the models in {root}: not read after 0 s") == times


async def test_a_folder_that_cannot_be_read_tells_nothing_of_its_models(root, caplog):
    folder = RepositoryFolder(root, None)
    root.rename(root.with_name("away"))
    for _ in range(2):
        assert await folder.scan() is None
    root.with_name("away").rename(root)
    assert (await folder.scan())[0].keys() == {"a", "b"}
    assert caplog.text.count("cannot be read, what serves goes on") == 1
