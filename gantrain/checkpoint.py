"""The state of a run and its files: saved atomically, the newest good one restored."""

import io
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gantrain.durable_files import atomic_write
from gantrain.errors import RunError, first_line
from gantrain.memory import lacks_memory

CHECKPOINT_FORMAT = 1
CHECKPOINT_SUFFIX = ".pt"
ASTRAY_SUFFIX = ".astray"  # after the other, so that it counts as a checkpoint no more
_DAMAGED_SUFFIX = ".damaged"  # likewise

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Everything that a step changes. Data order and noise follow from `images_seen`."""

    generator: nn.Module
    discriminator: nn.Module
    generator_ema: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    images_seen: int = 0
    seconds: float = 0.0  # spent training, however often the run was resumed
    rollbacks: int = 0  # how often the run went back after its numbers had left all bounds
    rolled_back_to: int | None = None  # where to, until the next checkpoint

    _OPTIMIZERS = ("generator_optimizer", "discriminator_optimizer")
    _PARTS = ("generator", "discriminator", "generator_ema", *_OPTIMIZERS)

    def state_dict(self) -> dict[str, Any]:
        """All parts as tensors and plain values."""
        parts = {name: getattr(self, name).state_dict() for name in self._PARTS}
        for name in self._OPTIMIZERS:  # what a recorded step keeps on a GPU is of no use elsewhere
            for group in parts[name]["param_groups"]:
                group |= {"lr": float(group["lr"]), "capturable": False}
        return {
            "format": CHECKPOINT_FORMAT,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "rolled_back_to": self.rolled_back_to,
            **parts,
        }

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name in self._PARTS:
            getattr(self, name).load_state_dict(values[name])
        self.images_seen = values["images_seen"]
        self.seconds = values["seconds"]
        self.rollbacks = values.get("rollbacks", 0)  # 0.1.0 knew none
        self.rolled_back_to = values.get("rolled_back_to")  # nor did 0.15.0 this


def is_checkpoint(path: Path) -> bool:
    """Whether a path is that of a checkpoint, be there one or not."""
    return path.suffix == CHECKPOINT_SUFFIX and not path.is_dir()


def checkpoint_path(folder: Path, images_seen: int) -> Path:
    """Where in a folder the checkpoint after so many images is."""
    return folder / f"{images_seen:012d}{CHECKPOINT_SUFFIX}"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first."""
    paths = [path for path in folder.glob(f"*{CHECKPOINT_SUFFIX}") if path.stem.isdigit()]
    return sorted(paths, key=lambda path: int(path.stem), reverse=True)


def save_checkpoint(state: TrainState, folder: Path, keep: int) -> Path:
    """Write the state so that a reader sees all of it or none; then drop the oldest.

    Raises:
        RunError: it could not be written; earlier checkpoints are untouched.
    """
    path = checkpoint_path(folder, state.images_seen)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(state.state_dict(), file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        newest = next(iter(checkpoint_paths(folder)), None)
        kept = f"the last good one is {newest}" if newest else "there is no earlier one"
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise RunError(
            f"checkpoint {path} could not be written ({reason}); {kept}. "
            "Make room or fix the folder and give the same command again to resume"
        ) from error
    paths = checkpoint_paths(folder)
    # Counted from this one on: those numbered higher were passed over and do not stand in for it.
    for old in paths[paths.index(path) + keep :]:
        old.unlink()
    return path


def set_aside(folder: Path, images_seen: int, keep: int) -> Path | None:
    """Pass over the checkpoint of a position from now on: its new name, None where there is none.

    Of those set aside before so many of the furthest are kept.
    """
    path = checkpoint_path(folder, images_seen)
    if not path.exists():
        return None
    aside = path.rename(f"{path}{ASTRAY_SUFFIX}")
    for old in [path for path in paths_astray(folder) if path != aside][keep:]:
        old.unlink()
    return aside


def set_damaged_aside(folder: Path, images_seen: int) -> None:
    """Rename what was passed over as damaged for the checkpoint of a position.

    Else it would be kept in the place of a good one.
    """
    for path in checkpoint_paths(folder):
        if int(path.stem) > images_seen:
            path.rename(f"{path}{_DAMAGED_SUFFIX}")


def paths_astray(folder: Path) -> list[Path]:
    """Checkpoints that were set aside, the furthest first."""
    return sorted(folder.glob(f"*{CHECKPOINT_SUFFIX}{ASTRAY_SUFFIX}"), reverse=True)


def how_to_take_back(folder: Path) -> str:
    """A clause that says how to restore the furthest checkpoint set aside; empty if none is needed.

    Its samples may be good, whatever came after it. None is needed where one as far is in use.
    """
    aside = next(iter(paths_astray(folder)), None)
    newest = next(iter(checkpoint_paths(folder)), None)
    if aside is None or (newest is not None and newest.name >= aside.stem):
        return ""
    return (
        f"; to sample or export the furthest checkpoint set aside, rename {aside} to {aside.stem}"
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify one checkpoint.

    Raises:
        ValueError: it is torn, damaged, packed or of another format.
        OSError: it cannot be read, so it may be good.
        MemoryError: there is too little for it, so it may be good.
    """
    content = io.BytesIO(path.read_bytes())  # then what fails below is about what it holds
    try:
        with zipfile.ZipFile(content) as archive:
            refuse_packed(archive, content.getbuffer().nbytes)
            damaged = archive.testzip()  # torch.load does not compare the checksums
        if damaged:
            raise ValueError(f"{damaged} is damaged")
        content.seek(0)
        values: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes zipfile and torch raise many kinds
        if lacks_memory(error):
            raise MemoryError(first_line(error)) from error
        raise ValueError(first_line(error)) from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != CHECKPOINT_FORMAT:
        raise ValueError(f"expected format {CHECKPOINT_FORMAT}, got {found}")
    return values


def refuse_packed(archive: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError where a file of so many bytes would fill more of them in memory.

    PyTorch stores its values unpacked; a megabyte that was packed on purpose may hold gigabytes.
    """
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > size:
        raise ValueError(
            f"its {size} bytes would unpack to {unpacked}, but checkpoints are never packed"
        )


def newest_good_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, passing over damaged ones with a warning.

    None where there are no checkpoints.

    Raises:
        RunError: there are, but none is good; or one cannot be read, and it may be.
    """
    paths = checkpoint_paths(folder)
    for path in paths:
        try:
            return load_checkpoint(path)
        except ValueError as error:
            logger.warning("checkpoint %s is not usable and is passed over: %s", path, error)
        except OSError as error:
            if checkpoint_paths(folder) != paths:  # a run that goes on has saved a newer one
                return newest_good_checkpoint(folder)
            raise RunError(
                f"checkpoint {path} cannot be read: {error.strerror or error}; mend the disk, or "
                "remove the file to take the one before"
            ) from error
    if paths:
        raise RunError(
            f"no checkpoint in {folder} is usable; put a good one back, or start over in another "
            "--run-dir"
        )
    return None


def chosen_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint of that path and no other.

    Raises:
        RunError: there is none, or it is not usable.
    """
    try:
        return load_checkpoint(path)
    except FileNotFoundError:
        there = ", ".join(other.name for other in checkpoint_paths(path.parent)) or "none"
        raise RunError(f"{path}: no such checkpoint; in that folder: {there}") from None
    except (ValueError, OSError) as error:
        raise RunError(
            f"checkpoint {path} is not usable: {error}; name another, or the run's folder for its "
            "newest good one"
        ) from error
