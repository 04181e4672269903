"""Hides which sizes of a batch give each of its images the same bits."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

# One call of the model with these rows of a known input, in this order.
RunRows = Callable[[NDArray[np.intp]], NDArray[np.uint8]]  # [n] -> [n, height, width, channels]


def find_agreeing_sizes(run_rows: RunRows, sizes: Sequence[int]) -> tuple[int, ...]:
    """Those of the sizes at which a row has the bits that it has at the largest size.

    The input must have as many rows as the largest size. Each size is called three times, with
    its rows at other positions and among others each time. The largest is compared with itself in
    the same way; where even that differs, no size agrees.
    """
    largest = max(sizes)
    rows = np.arange(largest)
    orders = rows, rows[::-1], np.roll(rows, largest // 2)
    expected = run_rows(rows)

    def agrees(size: int) -> bool:
        calls = (order[:size] for order in orders)
        return all(np.array_equal(run_rows(call), expected[call]) for call in calls)

    if not agrees(largest):
        return ()
    return tuple(size for size in sorted(set(sizes)) if size == largest or agrees(size))
