from pathlib import Path

import pytest

from gantrain.durable_files import atomic_write
from gantrain.errors import RunError


def test_a_write_that_fails_leaves_the_old_file_and_no_trace(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_moved_away_is_to_be_put_back(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()

    def move_while_writing() -> None:
        with atomic_write(folder / "file"):
            folder.rename(tmp_path / "moved")

    with pytest.raises(RunError) as raised:
        move_while_writing()
    assert str(raised.value) == (
        f"{folder}/file could not be written: the folder {folder} is no longer there; put it back "
        "and give the same command again"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param("ro", "Read-only file system", id="read-only"),
        pytest.param("size=4k", "No space left on device", id="full"),
    ],
)
def test_a_disk_that_takes_no_file_is_told_by_the_name_that_was_asked_for(
    options: str, reason: str, mount
):
    path = mount(options) / "grid.png"

    def write() -> None:
        with atomic_write(path) as file:
            file.write(bytes(100_000))

    with pytest.raises(RunError, match=f"^{path} could not be written: {reason}; make room"):
        write()
    assert not list(path.parent.iterdir())
