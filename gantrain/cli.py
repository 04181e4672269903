"""Hides how the command line `gantrain` becomes function calls, output and exit codes.

What takes long to import, torch above all, is imported where it is used, so that `--help` answers
at once.
"""

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliApp, CliSettingsSource, SettingsError, get_subcommand

from gantrain.cli_options import (
    Check,
    Data,
    Evaluate,
    Export,
    Gantrain,
    HelpFormatter,
    Presets,
    Report,
    Sample,
    Train,
)
from gantrain.data.bad_data import DatasetError
from gantrain.errors import Interrupted, RunError, UsageError, first_line, say_mismatch
from gantrain.memory import lacks_memory
from gantrain.typos import describe, find_command

_INTERRUPTED = 130
# From a checkout, for no package index has this project: there the name would be a stranger's.
_EXTRAS = "in a checkout, pip install '.[train,cpu]' or '.[train,gpu]'"


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        code = 1  # it may have been a run's status line
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0 success, 1 the command failed (stderr says why in one line), 2 bad usage, 130 interrupted.
    """
    try:
        root = CliApp.run(Gantrain, list(arguments), _command_line())
    except ValidationError as error:
        return _usage(error)
    except SettingsError as error:
        _explain_usage(str(error), arguments)
        return 2
    if root.version:
        print(f"gantrain {installed_version('ganserve')}")
        return 0
    command: Any = get_subcommand(root, is_required=False)
    if isinstance(command, Data):
        command = get_subcommand(command, is_required=False)
        if command is None:
            print("gantrain data: expected `gantrain data check SOURCE`", file=sys.stderr)
            return 2
    if command is None:
        CliApp.print_help(Gantrain, _command_line(), file=sys.stderr)
        return 2
    name, execute = _COMMANDS[type(command)]
    try:
        with _log_lines():
            return execute(command)
    except ValidationError as error:
        return _usage(error, name)
    except UsageError as error:
        print(f"gantrain {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except (RunError, DatasetError, OSError) as error:
        print(f"gantrain {name}: {error}", file=sys.stderr)
        return 1
    except Interrupted as stopped:
        print(f"gantrain {name}: {stopped}", file=sys.stderr)
        return _INTERRUPTED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        print(
            f"gantrain {name}: out of memory ({first_line(error)}): ask for fewer or smaller "
            "images at once, or use a machine with more",
            file=sys.stderr,
        )
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "gantrain", *sys.stdlib_module_names):  # no extra brings these
            raise
        lack = f"{package} is not installed"
        if error.name != package and importlib.util.find_spec(package) is not None:
            lack = f"the installed version of {package} has no {error.name}, upgrade it"
        print(f"gantrain {name}: {lack}: {_EXTRAS}", file=sys.stderr)
        return 1


def _command_line() -> CliSettingsSource[Any]:
    return CliSettingsSource(Gantrain, formatter_class=HelpFormatter, cli_exit_on_error=False)


def _explain_usage(problem: str, arguments: Sequence[str]) -> None:
    """Print the usage of the command that was meant, what is wrong, and the nearest words."""
    parser = find_command(_command_line().root_parser, arguments)
    # Python 3.14 would colour it if stdout is a terminal, and this goes to stderr.
    parser.color = False  # type: ignore[attr-defined]
    print(f"{parser.format_usage()}{parser.prog}: {describe(problem, parser)}", file=sys.stderr)


def _usage(error: ValidationError, name: str = "") -> int:
    """Print one line for each wrong setting and return the exit code."""
    for details in error.errors():
        print(_describe_usage_error(details, name), file=sys.stderr)
    return 2


def _describe_usage_error(details: ErrorDetails, name: str) -> str:
    # Fields of a command lie below it: ("data", "check", "source"); a preset's settings do not.
    *command, field = [str(part).replace("_", "-") for part in details["loc"]]
    start = " ".join(["gantrain", *([name] if name else command)])
    if details["type"] == "missing":
        return f"{start}: --{field} is required"
    return f"{start}: --{field}: {say_mismatch(details)}"


@contextmanager
def _log_lines() -> Iterator[None]:
    """Show the package's log on stderr, above a progress bar where there is one."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    logger = logging.getLogger("gantrain")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.removeHandler(handler)


def _train(command: Train) -> int:
    from gantrain.presets import resolve

    explicit = command.model_dump(include=command.model_fields_set - {"dry_run"})
    config = resolve(explicit)
    if command.dry_run:
        print(config.model_dump_json(indent=2))
        return 0
    from gantrain.memory import keep_buffers
    from gantrain.ranks import read_ranks
    from gantrain.training.loop import train

    keep_buffers()
    state = train(config)
    if read_ranks().first:
        print(f"trained on {state.images_seen} images in {state.seconds:.0f} s: {config.run_dir}")
    return 0


def _presets(command: Presets) -> int:
    from gantrain.config import flag
    from gantrain.presets import describe_preset, list_presets

    if command.name is None:
        rows = list_presets()
        if command.json_:
            print(json.dumps(rows, indent=2))
        else:
            width = max(len(row["name"]) for row in rows)
            for row in rows:
                print(f"{row['name']:{width}}  {row['summary']}\n{'':{width}}  {row['source']}")
        return 0
    preset = describe_preset(command.name)
    if command.json_:
        print(json.dumps(preset, indent=2))
        return 0
    for key in ("name", "summary", "source"):
        print(f"{key:28} {preset[key]}")
    if preset["epoch_images"]:
        print(f"{'epoch of the source':28} {preset['epoch_images']:,} images")
    for key, value in preset["settings"].items():
        print(f"{flag(key):28} {value if value is not None else 'unset'}")
    size, channels, classes = preset["parameters_at"].values()
    at = f" at {size}x{size}x{channels}" if size else ""
    at += f" with {classes} classes" if classes else ""
    for network, counts in preset["parameters"].items():
        total, trainable = counts["total"], counts["trainable"]
        print(f"{network:28} {total:,} parameters{at}, {trainable:,} of them trainable")
    return 0


def _check(command: Check) -> int:
    from gantrain.config import TrainConfig
    from gantrain.data.data_check import check_source

    report = check_source(command.source, image_size=command.image_size, channels=command.channels)
    print(report.describe())
    if report.problem:
        raise RunError(report.problem)
    batch = TrainConfig.model_fields["batch_size"].default
    if report.count < batch:
        fewer = f"--batch-size {report.count} or less" if report.count > 1 else "more of them"
        print(f"too few    for the usual batch of {batch}: `gantrain train` needs {fewer}")
    return 0


def _sample(command: Sample) -> int:
    import numpy as np

    from gantrain.class_labels import choose_labels, labels_on_the_way
    from gantrain.latents import draw_latents, interpolate_latents
    from gantrain.pictures import save_animation, save_grid
    from gantrain.sampling import open_sampler

    wanted = ".gif" if command.interpolate else ".png"
    if command.out.suffix.lower() != wanted:
        raise UsageError(f"--out: expected a file ending in {wanted}, got {str(command.out)!r}")
    if command.interpolate and len(command.seeds) < 2:
        raise UsageError(f"--seeds: --interpolate needs at least 2, got {len(command.seeds)}")
    sampler = open_sampler(command.source)
    latents = draw_latents(np.array(command.seeds, np.uint64), sampler.latent_dim)
    try:
        labels = choose_labels(command.class_labels, sampler.class_names, len(latents))
    except ValueError as error:
        raise UsageError(f"--class-labels: {error}") from error
    if command.interpolate:
        latents = interpolate_latents(latents, command.frames_per_segment)
        if labels is not None:
            walk = labels if command.class_labels is not None else np.zeros_like(labels)
            labels = labels_on_the_way(walk, command.frames_per_segment)
    samples = sampler.generate(latents * np.float32(command.truncation), labels)
    _make_folder(command.out)
    if samples.ndim == 2:
        _draw_points(command, samples)
    elif command.interpolate:
        save_animation(command.out, samples)
    else:
        save_grid(command.out, samples)
    print(command.out)
    return 0


def _make_folder(out: Path) -> None:
    from gantrain.durable_files import writing

    with writing(out.parent):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            # From the root on, the first that is no folder is what stands in the way.
            file = next(path for path in reversed(out.parents) if not path.is_dir())
            told = f"--out: expected a folder above the picture, {file} is a file"
            raise RunError(told) from None


def _draw_points(command: Sample, points: Any) -> None:  # noqa: ANN401 - numpy is imported late
    from gantrain.data.point_sets import POINT_SETS
    from gantrain.pictures import save_scatter
    from gantrain.run_directory import run_of

    if command.interpolate:
        raise UsageError("--interpolate: this run makes points, which have no animation")
    config, _ = run_of(command.source).read()
    save_scatter(command.out, points, POINT_SETS[config.data]().points)


def _evaluate(command: Evaluate) -> int:
    import torch

    from gantrain.checkpoint import is_checkpoint
    from gantrain.cpus import usable_cpus
    from gantrain.evaluation.evaluate import evaluate
    from gantrain.evaluation.results import write_evaluation

    torch.set_num_threads(command.threads or usable_cpus())
    evaluation = evaluate(
        command.source,
        command.data,
        samples=command.samples,
        reference=command.reference,
        repeats=command.repeats,
        resize=command.resize,
        skip_bad_files=command.skip_bad_files,
        inception=command.inception,
        cache=command.cache_dir,
    )
    print(evaluation.to_json() if command.json_ else evaluation.describe(), flush=True)
    # Last, for a folder that takes no file must not cost the numbers.
    if command.source.is_dir() or is_checkpoint(command.source):
        write_evaluation(evaluation, command.source)
    return 0


def _report(command: Report) -> int:
    from gantrain.report import write_report

    print(write_report(command.run))
    return 0


def _export(command: Export) -> int:
    from gantrain.export.artifact import export_run

    path = export_run(
        command.run,
        command.repository,
        command.name,
        precision=command.precision,
        min_psnr=command.min_psnr,
        frechet_samples=command.frechet_samples,
    )
    print(path)
    return 0


_COMMANDS: dict[type, tuple[str, Callable[[Any], int]]] = {
    Train: ("train", _train),
    Presets: ("presets", _presets),
    Check: ("data check", _check),
    Sample: ("sample", _sample),
    Evaluate: ("evaluate", _evaluate),
    Export: ("export", _export),
    Report: ("report", _report),
}
