"""Error messages about settings, in the names of the flags that people typed."""

import argparse
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic_core import ErrorDetails

# A word of a message that may be the name of a setting; a flag is spelled out already.
_NAME = re.compile(r"(?<![\w-])\w+")

# The fields of requests, and arguments of the client, in which messages of server and client
# speak, and the flags that set them.
_COMMON_FLAGS = {
    "model_name": "--model",
    "tls_ca": "--tls-ca",
    "tls_certificate": "--tls-certificate",
    "token_file": "--token-file",
}
_REQUEST_FLAGS = {
    "generate": _COMMON_FLAGS
    | {"model_version": "--version", "seeds": "--seeds", "class_labels": "--class-labels"}
    | {"truncation": "--truncation"},
    "models": _COMMON_FLAGS,
    "load-test": _COMMON_FLAGS
    | {"seed_range": "--images-per-request", "class_labels": "--class-label"},
}
# What a message is about, such as `seed_range.count: `.
_SUBJECT = re.compile(r"(?<![\w.-])([a-z_]+)(\.\w+)*(?=: )")


def parse_arguments(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    namespace: argparse.Namespace | None = None,
) -> argparse.Namespace:
    """Parse a command line as argparse does, but say of which command what it does not know is.

    It exits with 2 where there is such a thing, after the command's usage and the nearest flags.
    """
    parsed, unknown = parser.parse_known_args(arguments, namespace)
    if unknown:
        for action in parser._actions:  # noqa: SLF001 - there is no public way to its commands
            if isinstance(action.choices, dict):  # of commands, to their parsers
                parser = action.choices.get(getattr(parsed, action.dest, None), parser)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_flags_meant(parser, unknown)}")
    return parsed


def _flags_meant(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """A question for the flags that are nearest to unknown ones, where any are near."""
    flags = parser._option_string_actions  # noqa: SLF001 - nor to these
    known = {flag.strip("-"): flag for flag in flags}
    typed = [word.partition("=")[0].strip("-") for word in words if word.startswith("--")]
    near = [known[name] for word in typed for name in difflib.get_close_matches(word, known, n=1)]
    return f"; {'is' if len(near) == 1 else 'are'} {', '.join(near)} meant?" if near else ""


def describe_error(details: ErrorDetails, fields: Mapping[str, Collection[str]]) -> str:
    """One line about what is wrong on a command line; `fields` are the settings by command."""
    command, *field = [str(part) for part in details["loc"]]
    command = command.replace("_", "-")
    message = _say_mismatch(details)
    if not field:  # a check of several fields together, whose message names them
        return f"ganserve {command}: {spell_flags(command, message, fields[command])}"
    flag = _spell_flag(command, field[0])
    if details["type"] == "missing":
        return f"ganserve {command}: {flag} is required"
    return f"ganserve {command}: {flag}: {message}"


def _say_mismatch(details: ErrorDetails) -> str:
    """What was expected and what came, in our own words."""
    message = details["msg"]
    if details["type"] == "value_error":  # ours, which says itself what came
        return message.removeprefix("Value error, ")
    for words, ours in (("greater", "a number greater"), ("less", "a number less"), ("", "")):
        message = message.replace(f"Input should be {words}", f"expected {ours}")
    message = message.replace("String should have", "expected")
    return f"{message}, got {details['input']!r}"


def spell_flags(command: str, message: str, fields: Collection[str]) -> str:
    """Name the flags where a message about several settings names their fields."""

    def spell_named(match: re.Match[str]) -> str:
        return _spell_flag(command, match[0]) if match[0] in fields else match[0]

    def spell_other(match: re.Match[str]) -> str:
        # Such as `device` and `versions` are words of the language, too.
        is_field = "_" in match[0] and match[0] in fields
        return f"--{match[0].replace('_', '-')}" if is_field else match[0]

    subject, colon, rest = message.partition(": ")
    return _NAME.sub(spell_named, subject) + colon + _NAME.sub(spell_other, rest)


def spell_subject(command: str, message: str, fields: Collection[str]) -> str:
    """Name the flags where a message is about settings; about a file or a package it stays."""
    subject, is_about, _ = message.partition(": ")
    if is_about and set(subject.split(", ")) <= {*fields}:
        return spell_flags(command, message, fields)
    return message


def spell_request(command: str, message: str) -> str:
    """Name the flag where a message of the server or the client is about a field of a request."""
    flags = _REQUEST_FLAGS.get(command, {})
    return _SUBJECT.sub(lambda match: flags.get(match[1], match[0]), message)


def spell_file(error: Exception, settings: Mapping[str, object]) -> str:
    """Name the flags that a file was given with which the system refuses, where one was."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    given = {name: value for name, value in settings.items() if isinstance(value, str | Path)}
    file = Path(error.filename)
    flags = [f"--{name.replace('_', '-')}" for name in given if Path(given[name]) == file]
    return f"{', '.join(flags)}: {file}: {error.strerror}" if flags else f"{file}: {error.strerror}"


def _spell_flag(command: str, field: str) -> str:
    flag = f"--{field.replace('_', '-')}"
    return f"{flag} (or GANSERVE_{field.upper()})" if command == "serve" else flag
