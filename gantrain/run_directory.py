"""A run's folder: its layout, what the run was started with, one process at a time."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from gantrain.checkpoint import CHECKPOINT_SUFFIX, checkpoint_paths, is_checkpoint
from gantrain.config import TrainConfig, flag, may_change, spell
from gantrain.config_rules import choose_lr, unused_settings
from gantrain.durable_files import PARTIAL_SUFFIX, atomic_write
from gantrain.errors import RunError, first_line, say_mismatch

# Settings that shape the weights and once had other defaults: until which version.
_EARLIER_DEFAULTS = {
    ("lr", 0.002): "0.7.0",
    ("ema_half_life_images", 32_000): "0.8.0",
    ("lr_decay", 0.0): "0.9.0",
}


@dataclass(frozen=True)
class DataFacts:
    """What a run must remember of its data, so that it can be used without them."""

    fingerprint: str
    count: int
    kind: str
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...] = ()  # images of each class; old runs did not count


@dataclass(frozen=True)
class RunDirectory:
    """The layout of a run's folder."""

    path: Path
    lock: tuple[int, int] | None = None  # device and inode of the lock that this process holds

    @property
    def config_file(self) -> Path:
        """Settings and facts of the data, as JSON."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a status line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, named by images seen."""
        return self.path / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """Another name of the checkpoint that `--evaluate-every` has found the best so far."""
        return self.checkpoints / f"best{CHECKPOINT_SUFFIX}"

    @property
    def samples(self) -> Path:
        """Folder of sample grids, named by images seen."""
        return self.path / "samples"

    @property
    def sheets(self) -> Path:
        """Folder of fakes and reals with the discriminator's scores, named by images seen."""
        return self.path / "sheets"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def report_file(self) -> Path:
        """The report, as HTML."""
        return self.path / "report.html"

    @property
    def lock_file(self) -> Path:
        """Locked by the process that trains in the folder, for as long as it does."""
        return self.path / ".lock"

    def check_held(self) -> None:
        """Make sure, if this process has locked the folder, that the path still leads to it.

        Raises:
            RunError: it was moved or removed, and another process may train in its place.
        """
        if self.lock is None:
            return
        try:
            status = self.lock_file.stat()
        except FileNotFoundError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != self.lock:
            raise RunError(
                f"{self.path} was removed, moved or replaced while this process trained in it: "
                "put the folder back and give the same command again to resume, or start over in "
                "another --run-dir"
            )

    def read(self) -> tuple[TrainConfig, DataFacts]:
        """The settings the run was started with, all resolved, and the facts of its data.

        Raises:
            RunError: the folder holds no run, or its config.json cannot be read.
        """
        try:
            values = json.loads(self.config_file.read_text())
            data = {**values["data"]}
            for name in ("class_names", "class_counts"):
                data[name] = tuple(data.get(name, ()))
            # 0.1.0 had one pair of networks and did not name it.
            config = {"generator": "dcgan", "discriminator": "dcgan", **values["config"]}
            return TrainConfig(**config), DataFacts(**data)
        except FileNotFoundError:
            raise RunError(
                f"{self.path} holds no run: there is no {self.config_file.name} in it"
            ) from None
        except NotADirectoryError:  # such as an artifact, which others of the commands take
            raise RunError(
                f"{self.path} holds no run: it is no folder; give the one that --run-dir named"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise RunError(
                f"{self.config_file} cannot be used: {_describe(error)}; put back the file that "
                "the run was begun with, or use the version of gantrain that wrote it"
            ) from error

    def write(self, config: TrainConfig, data: DataFacts) -> None:
        """Record the settings and the facts of the data."""
        values = {"config": config.model_dump(mode="json"), "data": asdict(data)}
        with atomic_write(self.config_file) as file:
            file.write(json.dumps(values, indent=2).encode() + b"\n")


def run_of(path: Path) -> RunDirectory:
    """The run whose folder, or one of whose checkpoints, that is."""
    return RunDirectory(path.parent.parent if is_checkpoint(path) else path)


def _describe(error: Exception) -> str:
    """What is wrong with a config.json, on one line that names the setting."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            return f"{name} is no setting that this version knows"
        return f"{name}: {say_mismatch(first)}"
    if isinstance(error, KeyError | TypeError):
        return f'expected "config" and "data" as `gantrain train` writes them ({error})'
    return first_line(error)


@contextmanager
def open_run(path: Path) -> Iterator[RunDirectory]:
    """Make the folder where it is missing and hold it for this process alone.

    Raises:
        RunError: it cannot be written, or another process trains in it.
    """
    run = RunDirectory(path)
    try:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.samples.mkdir(exist_ok=True)
        run.sheets.mkdir(exist_ok=True)
        lock = run.lock_file.open("w")
    except OSError as error:
        reason = error.strerror
        if path.is_symlink() and not path.exists():
            reason = f"it is a link to {path.readlink()}, which is not there"
        raise RunError(
            f"run directory {path} cannot be written: {reason}; mend the folder or choose "
            "another --run-dir"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process is training in {path}: wait for it or choose another --run-dir"
            ) from None
        remove_partial_files(run)
        status = os.fstat(lock.fileno())
        yield RunDirectory(path, (status.st_dev, status.st_ino))


def remove_partial_files(run: RunDirectory) -> None:
    """Remove what a process that was killed had not finished writing."""
    for folder in (run.path, run.checkpoints, run.samples, run.sheets):
        for path in folder.glob(f".*{PARTIAL_SUFFIX}"):
            path.unlink()


def check_same_run(run: RunDirectory, config: TrainConfig, data: DataFacts) -> None:
    """Compare with what the folder's run was started with, where there is one.

    Raises:
        RunError: a setting that shapes the weights, or the data, differ; or there are checkpoints
            and nothing that says of what run.
    """
    if not run.config_file.exists():
        if checkpoint_paths(run.checkpoints):
            raise RunError(
                f"{run.path} holds checkpoints but no {run.config_file.name}, which says of what "
                "run they are: put it back to resume that run, or choose another --run-dir"
            )
        return
    old_config, old_data = run.read()
    unused = unused_settings(old_config).keys() & unused_settings(config).keys()
    changed = [
        name
        for name, new in config
        if new != getattr(old_config, name) and not may_change(name) and name not in unused
    ]
    told = "; ".join(_tell_change(name, old_config, config) for name in changed)
    other_data = data.fingerprint != old_data.fingerprint
    if other_data and (config.data != old_config.data or not changed):
        # First, for other settings may follow from the data, such as the size of the images.
        raise RunError(
            f"{run.path} holds a run on other data, --data {old_config.data} ({old_data.count} "
            f"images, {old_data.fingerprint[:19]}...); asked for is {config.data} ({data.count}, "
            f"{data.fingerprint[:19]}...){f'; it is a run {told}' if told else ''}: restore "
            f"the data{' and the settings' if told else ''} to resume it or choose another "
            "--run-dir"
        )
    if changed and old_config.preset != config.preset:  # most of the others follow from it
        raise RunError(
            f"{run.path} holds a run of --preset {old_config.preset}, asked for is "
            f"{config.preset}: give --preset {old_config.preset}, with the settings that it was "
            "begun with, to resume it or choose another --run-dir"
        )
    if changed:
        raise RunError(
            f"{run.path} holds a run {told}: {_tell_how_to_resume(changed, old_config)} to resume "
            "it or choose another --run-dir"
        )


def _tell_change(name: str, old_config: TrainConfig, config: TrainConfig) -> str:
    """What the run has of a setting, and what is asked for."""
    old, new = getattr(old_config, name), getattr(config, name)
    default = choose_lr(config) if name == "lr" else TrainConfig.model_fields[name].default
    # Who asks for today's default has hardly chosen it, and may wonder what has changed.
    before = _EARLIER_DEFAULTS.get((name, old)) if new == default else None
    if before and name == "lr" and old == choose_lr(old_config):
        before = None  # it is today's for the run's other settings: it differs because they do
    origin = f" (the default before {before})" if before else ""
    has = f"no {flag(name)}" if old is None else spell(name, old)
    asked = "none" if new is None else spell(name, new) if isinstance(new, bool) else new
    return f"with {has}{origin}, asked for is {asked}"


def _tell_how_to_resume(names: list[str], old_config: TrainConfig) -> str:
    """What to give, and what to leave out, for the settings that the run has."""
    had = {name: getattr(old_config, name) for name in names}
    given = " ".join(spell(name, old) for name, old in had.items() if old is not None)
    unset = " and ".join(flag(name) for name, old in had.items() if old is None)
    parts = [f"give {given}" if given else "", f"leave {unset} out" if unset else ""]
    return " and ".join(part for part in parts if part)
