"""Hides how the commands of `gantrain` are declared: flags, types, defaults, checks and help."""

import argparse
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSubCommand,
    CliToggleFlag,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from gantrain.config import Channels, Settings, TrainConfig, refuse_impossible_size
from gantrain.evaluation.reference import ReferenceChoice
from gantrain.export.precision import FRECHET_SAMPLES, MIN_PSNR, Precision
from gantrain.seed_ranges import SeedList

# What stands for a value in the help, by the name of its type.
_METAVARS = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH", "SeedList": "SEEDS"}
# The first flag of each section of a command's help.
_SECTIONS = {
    "gantrain train": {
        "--image-size": "data",
        "--generator": "networks",
        "--batch-size": "losses and steps",
        "--optimizer": "optimizers and averaging",
        "--device": "machine",
        "--log-every": "records and checkpoints",
    }
}

Source = Annotated[
    Path,
    Field(description="A run's folder, a checkpoint in it, or an artifact (model.onnx)."),
]


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as people read it: what a command needs in a line, then its settings by subject."""

    def add_text(self, text: str | None) -> None:
        """Add a docstring as it reads; before Python 3.13 all but its first line are indented."""
        super().add_text(text if text is None else inspect.cleandoc(text))

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """Name what must be given alone; pydantic checks that, so argparse takes all for optional.

        Without this the usage of a command is a page of every flag there is, in brackets.
        """
        actions = list(actions)
        flags = [action for action in actions if str(action.help).endswith("(required)")]
        if usage is None and flags:
            words = [str(action.metavar) for action in actions if not action.option_strings]
            words += [
                f"{action.option_strings[0]} {_METAVARS[str(action.metavar)]}" for action in flags
            ]
            usage = f"%(prog)s {' '.join(words)} [options]"
        super().add_usage(usage, actions, groups, prefix)

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        """Begin a section at each flag that is the first of one."""
        sections = _SECTIONS.get(self._prog, {})
        for action in actions:
            if title := sections.get(action.option_strings[-1] if action.option_strings else ""):
                self.end_section()
                self.start_section(title)
            self.add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """A default in words, and none where it is nothing, for the help says so itself: unset."""
        text, is_given, default = (action.help or "").rpartition(" (default: ")
        if not is_given:
            return action.help
        words = {"None": "", "()": "", "True": " (default: on)", "False": " (default: off)"}
        return text + words.get(default[:-1], f"{is_given}{default}")

    def _metavar_formatter(
        self, action: argparse.Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        if isinstance(action.metavar, str) and action.metavar in _METAVARS:
            return lambda count: (_METAVARS[str(action.metavar)],) * count
        return super()._metavar_formatter(action, default_metavar)


def _refuse_no_name(given: object) -> object:
    if given == "":  # from a shell's unset variable; it would mean the current folder
        raise ValueError("expected a folder, got an empty name")
    return given


class Train(TrainConfig):
    """Train a generator; the same command again resumes."""

    dry_run: CliToggleFlag[bool] = Field(
        default=False, description="Print the resolved settings as JSON and stop."
    )

    _named = field_validator("run_dir", mode="before")(_refuse_no_name)


class Presets(BaseModel):
    """List the presets, or show one whole."""

    name: CliPositionalArg[str | None] = Field(default=None, description="The preset to show.")
    json_: CliToggleFlag[bool] = Field(default=False, alias="json", description="Print JSON.")


class Check(Settings):
    """Say what a source is, and name each bad file in it."""

    source: CliPositionalArg[str] = Field(
        description="What to look at, named as for `gantrain train --data`."
    )
    image_size: int | None = Field(
        default=None,
        description="Check for this size in pixels, a multiple of 4 from 8 to 128.",
    )
    channels: Channels | None = Field(default=None, description="Check for grey or RGB.")

    _possible_size = field_validator("image_size")(refuse_impossible_size)


class Data(BaseModel):
    """Look at training data."""

    check: CliSubCommand[Check]


class Sample(Settings):
    """Draw images from a run or an artifact."""

    source: CliPositionalArg[Source]
    seeds: SeedList = Field(description="One image a seed, such as 0,7,12-15.")
    out: Path = Field(description="The picture to write: .png, or .gif with --interpolate.")
    class_labels: str | None = Field(
        default=None,
        description="Classes by name or index, one for all or one a seed, such as cat,dog or 0-9; "
        "unset: all in turn, with --interpolate the first. For conditional generators.",
    )
    interpolate: CliToggleFlag[bool] = Field(
        default=False, description="Write an animation that walks from seed to seed."
    )
    frames_per_segment: int = Field(
        default=15, ge=1, le=1000, description="Frames from one seed to the next."
    )
    truncation: float = Field(
        default=1.0, gt=0, le=1, description="Smaller: more typical, less varied images."
    )


class Evaluate(Settings):
    """Measure a run or an artifact against data, and real images beside it."""

    source: CliPositionalArg[Source]
    data: str = Field(
        description="The data to hold it against, named as for `gantrain train --data`."
    )
    samples: int | None = Field(
        default=None,
        ge=20,
        description="Samples of each repeat; unset: 10000 images, 26000 of Stacked-MNIST, 2500 "
        "points, or as many as the data allow.",
    )
    reference: ReferenceChoice | None = Field(
        default=None,
        description="Compare with all images of a split, or of both splits, whatever the number "
        "of samples; unset: compare with as many training images as samples.",
    )
    repeats: int = Field(
        default=3, ge=1, le=100, description="Disjoint sets of samples, for mean and spread."
    )
    resize: CliToggleFlag[bool] = Field(
        default=False,
        description="Resize data that the generator was not trained on to its size and channels.",
    )
    skip_bad_files: CliToggleFlag[bool] = Field(
        default=False,
        description="Leave out files that cannot be used instead of refusing the data; for a "
        "generator that was trained so, it is done unasked.",
    )
    inception: str | None = Field(
        default=None,
        description="Weights of the Inception network, for FID, KID and IS as well: a file, or "
        "`download`. Needs the extra `fid`.",
    )
    cache_dir: Path | None = Field(
        default=None,
        description="Where classifiers are kept; unset: GANTRAIN_CACHE_DIR, or ~/.cache/gantrain.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads; unset: the CPUs this process may use.",
    )
    json_: CliToggleFlag[bool] = Field(default=False, alias="json", description="Print JSON.")


class Export(Settings):
    """Publish a run's generator as the next version of a model; print its path last."""

    run: CliPositionalArg[Path] = Field(description="The run's folder, or a checkpoint in it.")
    repository: Path = Field(description="The folder that `ganserve serve --models` watches.")
    name: str = Field(description="The model's name.")
    precision: Precision = Field(
        default="fp32",
        description="Of weights and arithmetic: fp16 for GPUs, int8 for CPUs, each an artifact of "
        "its own.",
    )
    min_psnr: float = Field(
        default=MIN_PSNR,
        gt=0,
        lt=100,
        description="Refuse fp16 and int8 that are further from the trained generator, in dB.",
    )
    frechet_samples: int = Field(
        default=FRECHET_SAMPLES,
        ge=0,
        description="Samples of each of three sets of seeds, to measure what fp16 or int8 does to "
        "the Frechet distance, where the run's data can be loaded; 0 leaves it out.",
    )

    _named = field_validator("repository", mode="before")(_refuse_no_name)


class Report(BaseModel):
    """Write one self-contained HTML page about a run; print its path."""

    run: CliPositionalArg[Path] = Field(description="The run's folder.")


class Gantrain(BaseSettings):
    """Train image generators on your own pictures and export them for ganserve."""

    model_config = SettingsConfigDict(
        cli_prog_name="gantrain",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_use_class_docs_for_groups=True,
    )

    version: CliToggleFlag[bool] = Field(default=False, description="Print the version and stop.")
    train: CliSubCommand[Train]
    presets: CliSubCommand[Presets]
    data: CliSubCommand[Data]
    sample: CliSubCommand[Sample]
    evaluate: CliSubCommand[Evaluate]
    export: CliSubCommand[Export]
    report: CliSubCommand[Report]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - given, not needed
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the command line alone: a variable DATA in the environment is none of ours."""
        return (init_settings,)
