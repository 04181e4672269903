"""The search for batch sizes at which each image has the same bits."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

# One call of the model with these rows of a known input, in this order.
RunRows = Callable[[NDArray[np.intp]], NDArray[np.uint8]]  # [n] -> [n, height, width, channels]


def find_agreeing_sizes(run_rows: RunRows, sizes: Sequence[int]) -> tuple[int, ...]:
    """Those of the sizes at which a row has the bits that it has at the largest size.

    The input must have as many rows as the largest size. Each size is called three times, with
    its rows at other positions and among others each time. The largest is compared with itself in
    the same way; where even that differs, no size agrees. Where no other size agrees with it, its
    rows may depend on each other instead of on the size, so they are called among others too.
    """
    largest = max(sizes)
    rows = np.arange(largest)
    orders = rows, rows[::-1], np.roll(rows, largest // 2)
    halves = rows[: (largest + 1) // 2], rows[largest // 2 :]
    expected = run_rows(rows)

    def are_as_expected(calls: Iterable[NDArray[np.intp]]) -> bool:
        return all(np.array_equal(run_rows(call), expected[call]) for call in calls)

    def agrees(size: int) -> bool:
        return are_as_expected(order[:size] for order in orders)

    if not agrees(largest):
        return ()
    others = tuple(size for size in sorted(set(sizes) - {largest}) if agrees(size))
    if not others and not are_as_expected(np.resize(half, largest) for half in halves):
        return ()
    return (*others, largest)


def are_rows_independent(run_rows: RunRows, count: int) -> bool:
    """Whether rows have the bits alone that they have in one call of so many.

    This sees what a graph makes of its whole batch, such as a scale taken from all rows, with one
    call of that size and at most three of one row. What a kernel does at some sizes or positions it
    may miss; `find_agreeing_sizes` does not, for several times the work.
    """
    together = run_rows(np.arange(count))
    some = sorted({0, count // 2, count - 1})
    return all(np.array_equal(run_rows(np.array([row]))[0], together[row]) for row in some)
