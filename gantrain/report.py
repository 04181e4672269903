"""Hides how a run's folder becomes one HTML page that needs nothing else: no network, no files."""

import base64
import fcntl
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from gantrain.checkpoint import CHECKPOINT_SUFFIX, checkpoint_paths
from gantrain.class_labels import spread_labels
from gantrain.config import TrainConfig, flag
from gantrain.curves import MEANINGS, plot_curves
from gantrain.data.bad_data import list_some
from gantrain.diagnosis.diagnostics import diagnose
from gantrain.durable_files import atomic_write
from gantrain.errors import RunError
from gantrain.evaluation.results import Evaluation, read_evaluation
from gantrain.latents import draw_latents, interpolate_latents
from gantrain.losses import create_loss
from gantrain.pictures import animate, image_strip
from gantrain.presets import count_weights
from gantrain.run_directory import DataFacts, RunDirectory
from gantrain.run_log import read_metrics
from gantrain.sampling import RunGenerator, generate, load_run_generator

_NAMES_SHOWN = 20  # of classes
_MAX_HISTORY = 40  # pictures behind the slider
_HISTORY_BYTES = 9_000_000  # of all of them; base64 adds a third, and a page stays below 20 MB
_SHEET_BYTES = 1_000_000
_WALKERS, _STATIONS, _FRAMES_PER_SEGMENT = 4, 4, 10  # of the interpolation


@dataclass(frozen=True)
class Picture:
    """An image inside the page."""

    source: str  # a data URI
    images_seen: int


@dataclass(frozen=True)
class Interpolation:
    """A walk between latents of the newest checkpoint."""

    moving: str  # data URIs
    still: str  # its first frame, for readers who prefer reduced motion
    images_seen: int


@dataclass(frozen=True)
class Setting:
    """A row of the table of settings."""

    flag: str
    value: str
    default: str
    help: str


def write_report(run_path: Path) -> Path:
    """Write `report.html` into a run's folder, be the run finished, under way or interrupted.

    Raises:
        RunError: the folder holds no run, a file of it cannot be used, or the page not be written.
    """
    run = RunDirectory(run_path)
    config, data = run.read()
    rows = read_metrics(run.metrics_file)
    samples = list_pictures(run.samples)
    sheets = list_pictures(run.sheets)
    newest, problem = load_newest(run)
    of_images = config.image_size is not None
    quality = read_evaluation(run_path)
    changed, unchanged = list_settings(config)
    page = render(
        title=run_path.resolve().name,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        state=describe_state(run, config, rows),
        rows=rows,
        points=not of_images,
        samples=[embed(path, _HISTORY_BYTES // len(samples)) for path in samples],
        sheet=embed(sheets[-1], _SHEET_BYTES) if sheets else None,
        relative_scores=create_loss(config.loss).threshold is None,
        interpolation=draw_interpolation(newest) if newest and of_images else None,
        interpolation_problem=problem if of_images else None,
        diagnosis=diagnose(rows, config) if rows else None,
        diagnoses=list_diagnoses(rows),
        curves={
            title: Markup(svg)  # noqa: S704 - drawn by matplotlib, which escapes texts
            for title, svg in plot_curves(rows, data.class_names).items()
        },
        meanings=MEANINGS,
        quality=quality,
        quality_problem=find_outdated(quality, newest),
        evaluations=list_evaluations(run),
        best=read_evaluation(run.best_checkpoint),
        networks={
            f"{name} ({getattr(config, name)})": counts
            for name, counts in count_weights(config, len(data.class_names)).items()
        },
        data=list_data_facts(config, data),
        changed=changed,
        unchanged=unchanged,
    )
    with atomic_write(run.report_file) as file:
        file.write(page.encode())
    return run.report_file


def render(**values: Any) -> str:  # noqa: ANN401
    """Fill the page's template; every text is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = mark_code
    source = files("gantrain").joinpath("report.html.j2").read_text()
    return environment.from_string(source).render(**values)


def mark_code(text: str) -> Markup:
    """Escape a text and show what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


def describe_state(run: RunDirectory, config: TrainConfig, rows: Sequence[dict[str, Any]]) -> str:
    """Where the run is, in words."""
    last = rows[-1] if rows else {}
    saved = next((int(path.stem) for path in checkpoint_paths(run.checkpoints)), 0)
    images_seen = last.get("images_seen", saved)  # the metrics may be lost
    seconds = round(last.get("seconds", 0))
    progress = f"{images_seen:,} of {config.total_images:,} images"
    share = f"{images_seen / config.total_images:.0%}".replace("%", " %")
    rollbacks = last.get("rollbacks", 0)
    back = f", {rollbacks} {'rollback' if rollbacks == 1 else 'rollbacks'}" if rollbacks else ""
    if images_seen >= config.total_images and "diverged" not in last:
        return f"Finished: {images_seen:,} images seen in {timedelta(seconds=seconds)}{back}"
    if is_training(run):
        return f"Training now: {progress} seen ({share}) in {timedelta(seconds=seconds)}{back}"
    if "diverged" in last:
        start = "last checkpoint" if checkpoint_paths(run.checkpoints) else "start"
        how = (
            f"; with `--on-divergence rollback` it goes back to the {start} and halves the "
            "learning rate"
        )
        return (
            f"Ended by divergence at {progress} ({share}{back}): {last['diverged']}; on a CPU the "
            "same `gantrain train` command ends like that again"
            f"{how if config.on_divergence == 'stop' else ''}, and the advice below says what "
            "steadies a run"
        )
    return f"Stopped at {progress} ({share}{back}); the same `gantrain train` command resumes it"


def is_training(run: RunDirectory) -> bool:
    """Whether a process holds the run's folder at this moment."""
    try:
        with run.lock_file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a run copied without its lock
        return False
    return False


def list_pictures(folder: Path) -> list[Path]:
    """Pictures named by images seen, oldest first: all, or as many as fit, evenly chosen."""
    paths = sorted(
        (path for path in folder.glob("*.png") if path.stem.isdigit()), key=lambda p: int(p.stem)
    )
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), _MAX_HISTORY)).round().astype(int)
    return [paths[index] for index in chosen]


def embed(path: Path, max_bytes: int) -> Picture:
    """A picture as a data URI, compressed and made smaller only if it would be too large.

    Raises:
        RunError: it cannot be read.
    """
    try:
        content, kind = path.read_bytes(), "png"
        with Image.open(io.BytesIO(content)) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise RunError(f"{path} cannot be used: {error.strerror or 'it is no picture'}") from error
    size = picture.size
    while len(content) > max_bytes:
        compressed = io.BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).save(compressed, "WEBP", quality=80)
        content, kind = compressed.getvalue(), "webp"
        size = (max(size[0] * 3 // 4, 1), max(size[1] * 3 // 4, 1))
    return Picture(data_uri(content, kind), int(path.stem))


def data_uri(content: bytes, kind: str) -> str:
    """The bytes of an image as a URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def load_newest(run: RunDirectory) -> tuple[RunGenerator | None, str | None]:
    """The generator of the newest checkpoint, or what is wrong with those that there are."""
    if not checkpoint_paths(run.checkpoints):
        return None, None
    try:
        return load_run_generator(run.path), None
    except RunError as error:
        return None, str(error)


def find_outdated(quality: Evaluation | None, newest: RunGenerator | None) -> str | None:
    """Why an evaluation is not of the newest checkpoint; None where it is, or none can be read."""
    if quality is None or newest is None or quality.generator.weights == newest.weights:
        return None
    return (
        f"These numbers are of other weights (after {quality.generator.images_seen:,} images) than "
        f"the newest checkpoint's (after {newest.images_seen:,} images): run `gantrain evaluate` "
        "again"
    )


def list_evaluations(run: RunDirectory) -> list[Evaluation]:
    """Those of single checkpoints, oldest first; the checkpoints may be gone."""
    paths = [path for path in run.checkpoints.glob("*.json") if path.stem.isdigit()]
    found = (read_evaluation(path.with_suffix(CHECKPOINT_SUFFIX)) for path in sorted(paths))
    return [evaluation for evaluation in found if evaluation is not None]


def draw_interpolation(newest: RunGenerator) -> Interpolation:
    """A closed walk through the newest checkpoint's latents."""
    walks = []
    for walker in range(_WALKERS):
        seeds = np.arange(_STATIONS, dtype=np.uint64) + np.uint64(walker * _STATIONS)
        stations = draw_latents(seeds, newest.config.latent_dim)
        closed = np.concatenate([stations, stations[:1]])
        latents = interpolate_latents(closed, _FRAMES_PER_SEGMENT)[:-1]  # the last is the first
        labels = None
        if newest.class_names:  # each walker stays within a class
            label = spread_labels(len(newest.class_names), _WALKERS)[walker]
            labels = np.full(len(latents), label)
        walks.append(generate(newest.generator, latents, labels))
    frames = [image_strip(np.stack(images)) for images in zip(*walks, strict=True)]
    still = io.BytesIO()
    frames[0].save(still, "PNG")
    moving, resting = data_uri(animate(frames), "gif"), data_uri(still.getvalue(), "png")
    return Interpolation(moving, resting, newest.images_seen)


def list_diagnoses(rows: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """At how many images seen the diagnosis became what."""
    changes: list[tuple[int, str]] = []
    for row in rows:
        state = row.get("diagnosis")
        if state is not None and (not changes or changes[-1][1] != state):
            changes.append((row["images_seen"], state))
    return changes


def list_settings(config: TrainConfig) -> tuple[list[Setting], list[Setting]]:
    """All settings: those that differ from their defaults, and the others."""
    changed: list[Setting] = []
    unchanged: list[Setting] = []
    for name, field in TrainConfig.model_fields.items():
        value = getattr(config, name)
        default = "required" if field.is_required() else show_value(field.default)
        setting = Setting(flag(name), show_value(value), default, field.description or "")
        (unchanged if value == field.default else changed).append(setting)
    return changed, unchanged


def list_data_facts(config: TrainConfig, data: DataFacts) -> dict[str, str]:
    """What is known of the data the run was trained on."""
    facts = {"source": config.data, "kind": data.kind}
    if config.image_size is not None:
        colours = "grey" if config.channels == 1 else "RGB"
        facts["images"] = f"{data.count:,} of {config.image_size}x{config.image_size}, {colours}"
    else:
        facts["points"] = f"{data.count:,}"
    if data.class_names:
        facts["classes"] = (
            f"{len(data.class_names)}: {list_some([*data.class_names], _NAMES_SHOWN)}"
        )
    return {**facts, "fingerprint": data.fingerprint}


def show_value(value: object) -> str:
    """A setting or a number as people write it."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
