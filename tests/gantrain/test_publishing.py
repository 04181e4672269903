import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gantrain.errors import RunError
from gantrain.publishing import MARK_FILE, publish


def versions(folder: Path) -> dict[str, bytes]:
    """Version -> content of its file; hidden names are no versions."""
    return {
        path.name: (path / "model.onnx").read_bytes()
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def test_two_exporters_never_take_the_same_version(tmp_path: Path):
    contents = [str(number).encode() for number in range(16)]
    threads = [
        threading.Thread(target=publish, args=(content, tmp_path, "name")) for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = versions(tmp_path / "name")
    assert sorted(found, key=int) == [str(number) for number in range(1, 17)]
    assert sorted(found.values()) == sorted(contents)


def test_two_processes_never_take_the_same_version(tmp_path: Path):
    program = """
import sys
from pathlib import Path
from gantrain.publishing import publish
sys.stdin.readline()
for number in range(10):
    publish(f"{sys.argv[2]} {number}".encode(), Path(sys.argv[1]), "name")
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), name], stdin=subprocess.PIPE, text=True
        )
        for name in ("one", "other")
    ]
    for process in started:  # both have imported what they need, or nearly
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    found = versions(tmp_path / "name")
    assert sorted(found, key=int) == [str(number) for number in range(1, 21)]
    expected = {f"{name} {number}".encode() for name in ("one", "other") for number in range(10)}
    assert set(found.values()) == expected
    for version in found:
        shutil.rmtree(tmp_path / "name" / version)
    assert publish(b"next", tmp_path, "name").parent.name == "21"


def test_the_number_of_a_removed_version_is_not_given_again(tmp_path: Path):
    for expected in ("1", "2", "3"):
        assert publish(b"old", tmp_path, "name").parent.name == expected
    for withdrawn in ("3", "2", "1"):
        shutil.rmtree(tmp_path / "name" / withdrawn)
    assert publish(b"new", tmp_path, "name").parent.name == "4"
    assert versions(tmp_path / "name") == {"4": b"new"}


def test_versions_put_there_by_hand_are_counted(tmp_path: Path):
    publish(b"ours", tmp_path, "name")
    (tmp_path / "name" / "7").mkdir()
    assert publish(b"ours", tmp_path, "name").parent.name == "8"


def test_a_version_that_is_the_one_before_again_is_said_to_be(tmp_path: Path, caplog):
    publish(b"one", tmp_path, "name")
    publish(b"two", tmp_path, "name")
    assert not caplog.records
    publish(b"two", tmp_path, "name")
    assert "version 3 of name is the same as version 2" in caplog.text
    assert versions(tmp_path / "name") == {"1": b"one", "2": b"two", "3": b"two"}


def test_a_folder_that_older_exporters_filled_goes_on_from_its_newest(tmp_path: Path):
    for number in ("1", "5"):
        (tmp_path / "name" / number).mkdir(parents=True)
    assert publish(b"ours", tmp_path, "name").parent.name == "6"


def test_a_crash_before_the_rename_skips_a_number(tmp_path: Path):
    publish(b"first", tmp_path, "name")
    program = """
import os, signal, sys
from pathlib import Path
from gantrain.publishing import publish
Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
publish(b"lost", Path(sys.argv[1]), "name")
"""
    crashed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert crashed.returncode == -signal.SIGKILL
    assert versions(tmp_path / "name") == {"1": b"first"}
    assert publish(b"next", tmp_path, "name").parent.name == "3"


def test_what_a_killed_exporter_left_is_removed_by_the_next(tmp_path: Path):
    program = """
import os, signal, sys
from pathlib import Path
from gantrain import publishing
publishing.claim_version = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
publishing.publish(b"killed", Path(sys.argv[1]), "name")
"""
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "name").glob(".staging-*")
    assert (left / "model.onnx").read_bytes() == b"killed"
    publish(b"content", tmp_path, "name")
    assert versions(tmp_path / "name") == {"1": b"content"}
    assert {path.name for path in (tmp_path / "name").iterdir()} == {"1", MARK_FILE}


def test_a_mark_that_is_no_number_is_named(tmp_path: Path):
    publish(b"first", tmp_path, "name")
    mark = tmp_path / "name" / MARK_FILE
    mark.write_text("seven\n")
    with pytest.raises(RunError, match=r"\.versions: expected the highest version .* got b'seven'"):
        publish(b"next", tmp_path, "name")
    mark.write_text("7\n")  # as the message asks
    assert publish(b"next", tmp_path, "name").parent.name == "8"
    assert not list((tmp_path / "name").glob(".staging*"))


def test_versions_end_where_no_server_would_find_them(tmp_path: Path):
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / MARK_FILE).write_text(str(2**63 - 2))
    assert publish(b"last", tmp_path, "name").parent.name == str(2**63 - 1)
    with pytest.raises(RunError, match=r"expected versions below 2\^63, got .*807 as the newest"):
        publish(b"next", tmp_path, "name")
    assert list(versions(tmp_path / "name")) == [str(2**63 - 1)]


def test_a_full_disk_publishes_nothing(mount):
    disk = mount("size=64k")
    with pytest.raises(RunError, match="No space left on device; nothing was published"):
        publish(bytes(100_000), disk, "name")
    assert not versions(disk / "name")
