"""The types of settings: how their values are written, and which of them mean something."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode
from typing_extensions import TypeAliasType

PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveSeconds = PositiveFloat
Device = Literal["auto", "cpu", "cuda", "tensorrt"]
Reproducibility = Literal["strict", "fast"]
CudaGraphs = Literal["auto", "on", "off"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
VersionPolicy = Literal["latest", "all", "specific"]
_ENDPOINT = re.compile(r"https?://[^\s/@?#]+:[0-9]{1,5}/?")
_VERSION = re.compile(r"(.+):([1-9][0-9]{0,18})")


def refuse_service_link(value: object) -> object:
    """Return the value, which may be a port.

    Raises:
        ValueError: it is what Kubernetes sets for a Service.
    """
    if isinstance(value, str) and value.startswith(("tcp://", "udp://")):
        raise ValueError(
            f"expected a number, got {value!r}, which Kubernetes sets for a Service of this name: "
            "set enableServiceLinks: false in the pod's spec"
        )
    return value


def parse_versions(text: object) -> object:
    """The versions of `faces:3,faces:5,digits:1`, in the order written; no text is left as it is.

    Raises:
        ValueError: not of this form.
    """
    if not isinstance(text, str):
        return text
    found = [_VERSION.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise ValueError(f"expected NAME:VERSION,... such as faces:3,faces:5, got {text!r}")
    return tuple((match[1], int(match[2])) for match in found if match)


def parse_sizes(text: object) -> object:
    """The numbers of `1,4,16`; no text is left as it is.

    Raises:
        ValueError: not of this form.
    """
    if not isinstance(text, str):
        return text
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ValueError(f"expected numbers such as 1,4,16, got {text!r}")
    return tuple(map(int, parts))


def check_endpoint(endpoint: str) -> str:
    """Return the address of a collector.

    Raises:
        ValueError: it is none.
    """
    if not _ENDPOINT.fullmatch(endpoint):
        raise ValueError(f"expected http://HOST:PORT or https://HOST:PORT, got {endpoint!r}")
    return endpoint


def refuse_no_path(value: object) -> object:
    """Let through what may be a path; no text at all would stand for the current folder.

    Raises:
        ValueError: it is empty, as where a script's variable is not set.
    """
    if value == "":
        raise ValueError("expected a path, got ''")
    return value


Port = Annotated[int, Field(ge=0, le=65535), BeforeValidator(refuse_service_link)]
# A named type, for help texts show the name; the text is not JSON, so it is not decoded first.
VersionList = TypeAliasType(
    "VersionList", Annotated[tuple[tuple[str, int], ...], NoDecode, BeforeValidator(parse_versions)]
)
BatchSizes = TypeAliasType(
    "BatchSizes", Annotated[tuple[PositiveInt, ...], NoDecode, BeforeValidator(parse_sizes)]
)
FileOrFolder = Annotated[Path, BeforeValidator(refuse_no_path)]
Endpoint = Annotated[str, AfterValidator(check_endpoint)]
