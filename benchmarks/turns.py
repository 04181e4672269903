"""Hides in which order kinds are measured: there and back, so that none is always first."""

from collections.abc import Iterable
from typing import TypeVar

Kind = TypeVar("Kind")


def in_order(kinds: Iterable[Kind], turn: int) -> list[Kind]:
    """The kinds of a turn, which are those of the turn before in reverse; neighbours stay."""
    return [*kinds] if turn % 2 == 0 else [*kinds][::-1]
