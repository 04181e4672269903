"""Hides how a mistyped command line is understood: which command was meant, and which word."""

import argparse
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final

_PREFIX: Final = "error parsing CLI: "  # pydantic's, before argparse's own words


def find_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the last command that the words name, or the one given."""
    commands = _commands(parser)
    for index, word in enumerate(words):
        if word in commands:
            return find_command(commands[word], words[index + 1 :])
    return parser


def describe(problem: str, parser: argparse.ArgumentParser) -> str:
    """What is wrong in argparse's words, and for each unknown word the nearest that there is."""
    problem = problem.removeprefix(_PREFIX)
    unknown = re.findall(r"(?:^|\s)(--[^\s=]+)", problem.partition("unrecognized arguments:")[2])
    meant = [suggest(word, [*parser._option_string_actions]) for word in unknown]  # noqa: SLF001
    if chosen := re.search(r"invalid choice: '([^']*)'", problem):
        meant.append(suggest(chosen[1], _commands(parser)))
    return problem + "".join(meant)


def suggest(word: str, known: Iterable[str]) -> str:
    """`; is NEAREST meant?`, or nothing where no known word is near."""
    nearest = get_close_matches(word, [*known], 1)
    return f"; is {nearest[0]} meant?" if nearest else ""


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: command
        for action in parser._actions  # noqa: SLF001 - argparse tells them nowhere else
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
        for name, command in action.choices.items()
    }
