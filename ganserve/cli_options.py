"""The commands of `ganserve` as declarations: flags, types, defaults, checks and help."""

import argparse
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSubCommand,
    CliToggleFlag,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ganserve.addresses import check_address
from ganserve.config import ServerConfig
from ganserve.load_test.sweep import MOST_LOAD, parse_sweep
from ganserve.seed_ranges import LabelList, SeedList
from ganserve.setting_values import FileOrFolder, PositiveFloat, PositiveInt

# What stands for a value in the help, by the name of its type.
_METAVARS = {
    "int": "N",
    "float": "X",
    "str": "TEXT",
    "Path": "PATH",
    "SeedList": "SEEDS",
    "LabelList": "LABELS",
    "VersionList": "VERSIONS",
    "BatchSizes": "SIZES",
}
# The first flag of each section of a command's help.
_SECTIONS = {
    "ganserve serve": {
        "--models": "models",
        "--host": "ports",
        "--device": "device and threads",
        "--max-batch-size": "batches and requests",
        "--tls-certificate": "who may call",
        "--rate-limit-images-per-second": "limits on callers and connections",
        "--deadline-seconds": "deadlines and draining",
        "--log-level": "log and traces",
    }
}


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


def is_folder(out: str) -> bool:
    """Whether `--out` asks for one file an image: it ends in a slash or is a folder already."""
    if out.endswith("/"):
        return True
    try:
        return out != "" and Path(out).is_dir()
    except OSError:  # such as of a folder that may not be entered: the writing will tell
        return False


def _check_sweep(text: str | None) -> str | None:
    if text is not None:
        parse_sweep(text)
    return text


def _check_plot(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"expected FILE.png, got {str(path)!r}")
    return path


def _check_out(out: str) -> str:
    if not is_folder(out) and Path(out).suffix.lower() != ".png":
        raise ValueError(f"expected FILE.png or a folder such as images/, got {out!r}")
    return out


Address = Annotated[str, AfterValidator(check_address), Field(description="The server, HOST:PORT.")]
ModelName = Annotated[
    str | None,
    Field(default=None, description="The model's name. Unset: the server's default."),
]
_MOST_32_BITS = 2**32 - 1  # what the messages hold
TimeoutSeconds = Annotated[
    PositiveFloat, Field(description="How long one call may take, further attempts included.")
]
LoadTestTimeoutSeconds = Annotated[
    PositiveFloat,
    Field(description="How long a call may take; one that fails is counted, not repeated."),
]
TlsCa = Annotated[
    FileOrFolder | None,
    Field(description="PEM file of the authorities that vouch for the server. Unset: no TLS."),
]
TlsCertificate = Annotated[
    FileOrFolder | None, Field(description="PEM file of this client's certificate, if it has one.")
]
TlsKey = Annotated[
    FileOrFolder | None, Field(description="PEM file of the certificate's private key.")
]
TokenFile = Annotated[
    FileOrFolder | None, Field(description="File with the token to show to the server.")
]

PrintJson = Annotated[
    CliToggleFlag[bool], Field(alias="json", description="Print JSON instead of a table.")
]


class Generate(BaseModel):
    """Ask a running server for images and write them to disk."""

    address: Address
    model: ModelName
    version: str | None = Field(default=None, description="The model's version. Unset: the newest.")
    seeds: SeedList = Field(description="One image a seed, such as 0,7,12-15.")
    class_labels: LabelList = Field(
        default=(),
        description="Classes for a conditional model, such as 0-9: one for all or one a seed. 0 is "
        "the first of class_names in `ganserve models --json`.",
    )
    truncation: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Smaller gives more typical and less varied images. Unset: 1.",
    )
    out: Annotated[str, AfterValidator(_check_out)] = Field(
        description="FILE.png: one picture of all images; FOLDER/: one file an image, SEED.png, "
        "and SEED-2.png and so on where a seed is asked for again.",
    )
    timeout_seconds: TimeoutSeconds = 30.0
    tls_ca: TlsCa = None
    tls_certificate: TlsCertificate = None
    tls_key: TlsKey = None
    token_file: TokenFile = None

    @model_validator(mode="after")
    def _labels_match_seeds(self) -> Self:
        if len(self.class_labels) not in (0, 1, len(self.seeds)):
            raise ValueError(
                f"--class-labels: expected 1 or {len(self.seeds)}, one a seed, "
                f"got {len(self.class_labels)}"
            )
        return self


class Models(BaseModel):
    """List the models of a running server."""

    address: Address
    timeout_seconds: TimeoutSeconds = 30.0
    tls_ca: TlsCa = None
    tls_certificate: TlsCertificate = None
    tls_key: TlsKey = None
    token_file: TokenFile = None
    json_: PrintJson = False


class LoadTest(BaseModel):
    """Offer load to a running server and measure how it answers."""

    address: Address
    model: ModelName
    rate: PositiveFloat | None = Field(
        default=None,
        le=MOST_LOAD,
        description="Open loop: calls a second, at random times, however the server keeps up.",
    )
    concurrency: PositiveInt | None = Field(
        default=None,
        le=MOST_LOAD,
        description="Closed loop: calls under way at any time. Unset: 8.",
    )
    images_per_request: PositiveInt = Field(
        default=1, le=_MOST_32_BITS, description="Images in one call."
    )
    format: Literal["raw", "png", "jpeg", "webp"] = Field(
        default="raw", description="How the images travel."
    )
    seconds: PositiveFloat = Field(default=10.0, description="How long to measure.")
    warm_up_seconds: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="Load before the measurement starts."
    )
    connections: PositiveInt = Field(
        default=1, description="Connections of each process, which its calls are spread over."
    )
    processes: PositiveInt = Field(
        default=1,
        description="Processes that share the load; each can keep one core busy.",
    )
    max_calls_under_way: PositiveInt = Field(
        default=4096,
        description="Open loop: calls beyond these are not sent, but counted in the report.",
    )
    class_label: int | None = Field(
        default=None,
        ge=0,
        le=_MOST_32_BITS,
        description="Class of all images, for a conditional model.",
    )
    verify: CliToggleFlag[bool] = Field(
        default=False,
        description="Ask for the same seeds again and again and fail where images differ.",
    )
    sweep: Annotated[str | None, AfterValidator(_check_sweep)] = Field(
        default=None,
        description="Test one load after the other: concurrency or rate, doubled until throughput "
        "no longer rises, or values such as concurrency=1,2,4 or rate=50,100.",
    )
    plot: Annotated[FileOrFolder | None, AfterValidator(_check_plot)] = Field(
        default=None, description="FILE.png: the sweep's latency over its throughput."
    )
    timeout_seconds: LoadTestTimeoutSeconds = 30.0
    tls_ca: TlsCa = None
    tls_certificate: TlsCertificate = None
    tls_key: TlsKey = None
    token_file: TokenFile = None
    json_: PrintJson = False

    @model_validator(mode="after")
    def _flags_fit_together(self) -> Self:
        if self.rate is not None and self.concurrency is not None:
            raise ValueError("--rate, --concurrency: expected at most one of the two, got both")
        if self.sweep is not None and (self.rate or self.concurrency):
            raise ValueError("--sweep: expected neither --rate nor --concurrency with it, got one")
        if self.plot is not None and self.sweep is None:
            raise ValueError("--plot: expected --sweep with it, got none")
        return self


class Ganserve(BaseSettings):
    """Serve image generators over gRPC, and ask a server for images."""

    model_config = SettingsConfigDict(
        cli_prog_name="ganserve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_use_class_docs_for_groups=True,
    )

    version: CliToggleFlag[bool] = Field(default=False, description="Print the version and stop.")
    serve: CliSubCommand[ServerConfig]
    generate: CliSubCommand[Generate]
    models: CliSubCommand[Models]
    load_test: CliSubCommand[LoadTest]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - given, not needed
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the command line alone: a variable MODELS in the environment is none of ours."""
        return (init_settings,)
