"""Writes docs/settings.md from the declarations: `python docs/generate_settings.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ganserve.config import ServerConfig
from gantrain.config import TrainConfig

TARGET = Path(__file__).with_name("settings.md")
INTRODUCTION = """\
# Settings

Written by `python docs/generate_settings.py` from the declarations in `ganserve/config.py` and
`gantrain/config.py`; a test compares.

## `ganserve serve`

Every setting is a flag and an environment variable. The flag wins over the variable, the variable
over the default.
"""
TRAINING = """
## `gantrain train`

Every setting is a flag. A flag wins over the preset, the preset over the default. A whole number
may also be written `1_000_000` or `1e6`.
"""


def main() -> None:
    """Write the page."""
    TARGET.write_text(render_page(), encoding="utf-8")
    print(TARGET)


def render_page() -> str:
    """The whole page as Markdown."""
    serving = render_table(ServerConfig, variable_prefix="GANSERVE_")
    training = render_table(TrainConfig, variable_prefix=None)
    return "\n".join([INTRODUCTION, serving, TRAINING, training, ""])


def render_table(config: type[BaseModel], variable_prefix: str | None) -> str:
    """One row a setting, in the order of the declaration."""
    columns = ["flag", *(["variable"] if variable_prefix else []), "values", "default", "meaning"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    schema = config.model_json_schema()
    for name, setting in schema["properties"].items():
        cells = [f"`--{name.replace('_', '-')}`"]
        if variable_prefix:
            cells.append(f"`{variable_prefix}{name.upper()}`")
        cells += [describe_values(setting, schema), describe_default(setting)]
        cells.append(setting["description"])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def describe_values(setting: dict[str, Any], schema: dict[str, Any]) -> str:
    """Which values a setting takes: its choices, or its type and bounds."""
    variants = [resolve(variant, schema) for variant in setting.get("anyOf", [setting])]
    variant = next(variant for variant in variants if variant.get("type") != "null")
    if "enum" in variant:
        return ", ".join(f"`{choice}`" for choice in variant["enum"])
    words = {"string": variant.get("format", "text"), "boolean": "on or off", "array": "list"}
    kind = words.get(variant["type"], variant["type"])
    return ", ".join([kind, *describe_bounds(variant)])


def describe_bounds(variant: dict[str, Any]) -> Iterator[str]:
    """The bounds of a number in words."""
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    return (f"{word} {variant[bound]}" for bound, word in words.items() if bound in variant)


def describe_default(setting: dict[str, Any]) -> str:
    """The default as it would be written after the flag."""
    if "default" not in setting:
        return "required"
    default = setting["default"]
    if isinstance(default, bool):
        return "on" if default else "off"
    return "unset" if default is None or default == [] else f"`{default}`"


def resolve(variant: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema itself, or the definition it refers to."""
    name = variant.get("$ref", "").rpartition("/")[2]
    return schema["$defs"][name] if name else variant


if __name__ == "__main__":
    main()
