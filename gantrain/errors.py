"""How a command may end before its work is done; each text is the whole message, on one line."""

from collections.abc import Mapping
from typing import Any


class RunError(RuntimeError):
    """The command cannot go on: why, and what to do about it."""


class UsageError(ValueError):
    """The command was given settings that do not go together."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the name of its class where the text is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def say_mismatch(details: Mapping[str, Any]) -> str:
    """What was expected and what came, of one of pydantic's errors, in our own words."""
    message = str(details["msg"])
    if details["type"] == "value_error":  # ours, which says itself what came
        return message.removeprefix("Value error, ")
    for words, ours in (("greater", "a number greater"), ("less", "a number less"), ("", "")):
        message = message.replace(f"Input should be {words}", f"expected {ours}")
    return f"{message}, got {details['input']!r}"
