"""Hides how long work tells how far it is: by a bar on a terminal, by lines elsewhere."""

import logging
import time
from collections.abc import Callable, Generator, Iterable
from typing import Final, TypeVar

from tqdm import tqdm

_LINE_SECONDS: Final = 30.0  # between lines

Item = TypeVar("Item")
logger = logging.getLogger(__name__)


def show_progress(
    items: Iterable[Item],
    total: int,
    what: str,
    unit: str,
    count: Callable[[Item], int] = lambda _: 1,
) -> Generator[Item, None, None]:
    """Pass items on and tell how far they are, each time that the caller is done with one.

    A caller that may fail on the way closes it, or its error would stand beside the bar.

    Args:
        items: as they are made or read.
        total: of all units.
        what: is done, for the start of the line.
        unit: what is counted, in the singular.
        count: how many units an item is.
    """
    started = told = time.monotonic()
    done = 0
    with tqdm(total=total, desc=what, unit=unit, disable=None) as bar:
        for item in items:
            yield item
            done += count(item)
            bar.update(count(item))
            now = time.monotonic()
            if bar.disable and now - told >= _LINE_SECONDS:
                logger.info("%s: %d of %d in %.0f s", what, done, total, now - started)
                told = now
