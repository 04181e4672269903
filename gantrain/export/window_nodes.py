"""Hides how products of windows are written as nodes, in floats or in integers."""

from collections.abc import Callable

from gantrain.export.graph_draft import Draft
from gantrain.export.window_products import Product, WindowProducts


def corners(product: Product) -> list[tuple[int, int]]:
    """Where in the padded map the first window has its taps: rows and columns, tap by tap."""
    (y, x), (height, width) = product.first, product.taps
    return [(y + dy, x + dx) for dy in range(height) for dx in range(width)]


def write_product_of_each(
    draft: Draft,
    source: str,  # [n, height, width, channels]
    products: WindowProducts,
    multiply: Callable[[str, int], str],
    zero: str = "",
) -> str:  # [n, rows, columns, channels], not cropped yet
    """Windows cut out of the map, a product for each phase, then rows and columns interleaved.

    Args:
        draft: takes the nodes.
        source: the map.
        products: one for each phase.
        multiply: writes the product of rows [n, taps * channels] with the matrix of a phase.
        zero: what the map is padded with, if it is not the number 0.
    """
    top, left, bottom, right = products.pads
    (rows, columns), (down, across) = products.positions, products.phases
    pads = draft.sizes(0, top, left, 0, 0, bottom, right, 0)
    padded = draft.add("Pad", [source, pads, *([zero] if zero else [])])
    axes, cut = draft.sizes(1, 2), {}
    for y, x in sorted({corner for product in products.products for corner in corners(product)}):
        ends = draft.sizes(y + rows, x + columns)
        cut[y, x] = draft.add("Slice", [padded, draft.sizes(y, x), ends, axes])
    made = []
    for phase, product in enumerate(products.products):
        windows = draft.add("Concat", [cut[corner] for corner in corners(product)], axis=3)
        flat = draft.add("Reshape", [windows, draft.sizes(-1, len(product.matrix))])
        made.append(multiply(flat, phase))
    lines = []
    for first in range(0, len(made), across):
        line = draft.add("Concat", made[first : first + across], axis=1)
        shape = draft.sizes(-1, rows, 1, columns * across * products.channels)
        lines.append(draft.add("Reshape", [line, shape]))
    stacked = draft.add("Concat", lines, axis=2)
    together = draft.sizes(-1, rows * down, columns * across, products.channels)
    return draft.add("Reshape", [stacked, together])


def crop(draft: Draft, name: str, products: WindowProducts) -> str:
    """Cut the interleaved map [n, rows, columns, channels] to the size of the output."""
    interleaved = tuple(
        count * phases for count, phases in zip(products.positions, products.phases, strict=True)
    )
    if interleaved == products.size:
        return name
    (y, x), (height, width) = products.crop, products.size
    ends = draft.sizes(y + height, x + width)
    return draft.add("Slice", [name, draft.sizes(y, x), ends, draft.sizes(1, 2)])
