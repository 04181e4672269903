import logging
import zipfile
from pathlib import Path

import pytest
import torch

from gantrain.checkpoint import (
    TrainState,
    checkpoint_paths,
    load_checkpoint,
    newest_good_checkpoint,
    save_checkpoint,
)
from gantrain.errors import RunError


def state_at(images_seen: int) -> TrainState:
    network = torch.nn.Linear(40, 40)
    optimizers = (torch.optim.Adam(network.parameters()) for _ in range(2))
    return TrainState(network, network, network, *optimizers, images_seen=images_seen)


def test_a_saved_state_comes_back(tmp_path: Path):
    state, other = state_at(64), state_at(0)
    state.seconds, state.rollbacks, state.rolled_back_to = 1.5, 2, 32
    path = save_checkpoint(state, tmp_path, keep=1)
    other.load_state_dict(load_checkpoint(path))
    assert (other.images_seen, other.seconds) == (64, 1.5)
    assert (other.rollbacks, other.rolled_back_to) == (2, 32)
    assert torch.equal(other.generator.weight, state.generator.weight)


def test_the_oldest_go_and_the_newest_stay(tmp_path: Path):
    (tmp_path / "mine.pt").write_bytes(b"")
    for images_seen in (64, 128, 192):
        save_checkpoint(state_at(images_seen), tmp_path, keep=2)
    assert [path.stem.lstrip("0") for path in checkpoint_paths(tmp_path)] == ["192", "128"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_one_further_on_never_costs_the_one_just_saved(tmp_path: Path):
    damaged = save_checkpoint(state_at(192), tmp_path, keep=1)
    empty(damaged)  # passed over, so the run goes on from before it
    for images_seen in (64, 128):
        path = save_checkpoint(state_at(images_seen), tmp_path, keep=1)
        assert checkpoint_paths(tmp_path) == [damaged, path]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_weight_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_text(path: Path) -> None:
    path.write_text("not a checkpoint")


def write_another_format(path: Path) -> None:
    torch.save({"format": 99}, path)


def write_no_dict(path: Path) -> None:
    torch.save(torch.zeros(3), path)


def garble_a_packing_method(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] ^= 8  # of the last file: deflated, not stored
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        *(truncate, flip_a_weight_bit, empty, replace_by_text, write_another_format),
        *(write_no_dict, garble_a_packing_method),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    damage, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save_checkpoint(state_at(64), tmp_path, keep=2)
    damage(save_checkpoint(state_at(128), tmp_path, keep=2))
    with caplog.at_level(logging.WARNING):
        values = newest_good_checkpoint(tmp_path)
    assert values is not None
    assert values["images_seen"] == 64
    assert "000000000128.pt is not usable and is passed over" in caplog.text


def test_a_packed_checkpoint_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"format": 1, "weights": torch.zeros(2**20)}, plain)
    assert load_checkpoint(plain)["weights"].shape == (2**20,)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("was unpacked"))
    size = packed.stat().st_size
    assert size < 2**16
    with pytest.raises(ValueError, match=rf"its {size} bytes would unpack to 4\d{{6}}, but"):
        load_checkpoint(packed)


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path: Path):
    assert newest_good_checkpoint(tmp_path / "missing") is None


def test_where_all_are_damaged_nothing_is_begun_anew(tmp_path: Path):
    for images_seen in (64, 128):
        truncate(save_checkpoint(state_at(images_seen), tmp_path, keep=2))
    with pytest.raises(RunError, match=f"no checkpoint in {tmp_path} is usable; put a good one"):
        newest_good_checkpoint(tmp_path)


def test_one_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path):
    save_checkpoint(state_at(64), tmp_path, keep=2)
    newest = save_checkpoint(state_at(128), tmp_path, keep=2)
    newest.unlink()
    newest.symlink_to(newest)  # whose modes bind root, too
    with pytest.raises(RunError, match=f"checkpoint {newest} cannot be read: Too many levels"):
        newest_good_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "allocate",
    [
        pytest.param(lambda: torch.empty(2**58), id="of-pytorch"),
        pytest.param(lambda: bytearray(2**62), id="of-python"),
    ],
)
def test_a_lack_of_memory_is_not_taken_for_damage(
    allocate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for images_seen in (64, 128):
        save_checkpoint(state_at(images_seen), tmp_path, keep=2)
    monkeypatch.setattr(torch, "load", lambda *_, **__: allocate())
    with pytest.raises(MemoryError):
        newest_good_checkpoint(tmp_path)


def test_a_run_that_goes_on_meanwhile_has_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(state_at(64), tmp_path, keep=1)
    read = Path.read_bytes

    def save_another_first(path: Path) -> bytes:
        if path.stem == "000000000064":
            save_checkpoint(state_at(128), tmp_path, keep=1)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", save_another_first)
    values = newest_good_checkpoint(tmp_path)
    assert values is not None
    assert values["images_seen"] == 128


def test_a_full_disk_names_the_last_good_checkpoint(mount):
    disk = mount("size=64k")
    save_checkpoint(state_at(64), disk, keep=9)

    def fill() -> None:
        for images_seen in range(128, 1280, 64):
            save_checkpoint(state_at(images_seen), disk, keep=9)

    with pytest.raises(RunError, match=r"No space left on device.*last good one is .*\d\.pt"):
        fill()
    assert newest_good_checkpoint(disk) is not None
    assert not list(disk.glob(".*"))
