"""Seeds as they are written on the command line: `0,7,12-15`."""

import re
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode
from typing_extensions import TypeAliasType

# More would only be a typing mistake, and would fill the memory before anyone noticed.
MAX_SEEDS = 1_000_000
_PART = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of `0,7,12-15` in the order written; ranges include both ends.

    Raises:
        ValueError: not of this form, a range that runs backwards, a seed above 2^64 - 1, or more
            than `MAX_SEEDS` of them.
    """
    ranges = [_parse_part(part.strip()) for part in text.split(",")]
    count = sum(part.stop - part.start for part in ranges)  # len() fails above 2^63
    if count > MAX_SEEDS:
        raise ValueError(f"expected at most {MAX_SEEDS} seeds, got {count}")
    return tuple(seed for part in ranges for seed in part)


def _parse_part(part: str) -> range:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"expected integers and ranges such as 0,7,12-15, got {part!r}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"expected the smaller end of a range first, got {part!r}")
    if last >= 2**64:
        raise ValueError(f"expected seeds below 2^64, got {last}")
    return range(first, last + 1)


# A named type, for help texts show the name; the text is not JSON, so it is not decoded first.
_Numbers = Annotated[tuple[int, ...], NoDecode, BeforeValidator(parse_seeds)]
SeedList = TypeAliasType("SeedList", _Numbers)
LabelList = TypeAliasType("LabelList", _Numbers)  # of classes, written alike
