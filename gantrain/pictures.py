"""Hides how samples become pictures: grids, sheets with scores, scatter plots, animations."""

import io
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gantrain.durable_files import atomic_write

Pixels = NDArray[np.uint8]  # [n, height, width, channels]

_FRAME_MILLISECONDS = 60
_GRID_PIXELS = 512  # smaller pictures are enlarged
_TILE_PIXELS = 96  # of a sheet; smaller ones are enlarged, so that a score fits above each
_TITLE_PIXELS = 22
_FONT_PIXELS = 16
_SCATTER_INCHES, _DOTS_PER_INCH = 5.2, 100
_DATA_SHOWN = 2000  # points of the data in a scatter plot
# Of PNGs. The best compression takes 4 to 20 times as long and saves 1 to 9 %, or 13 % where all
# samples are alike: of a short run it took most of the time.
_COMPRESSION = 4


def image_grid(images: Pixels) -> Image.Image:
    """Tile [n, height, width, channels] in reading order on a near-square white picture.

    Every pixel is repeated a whole number of times, so that small images stay sharp; a margin of a
    sixteenth of an image parts the tiles. `ganserve generate` lays its pictures out alike.
    """
    canvas = _tile(images)
    return _enlarge(canvas, _grid_scale(canvas))


def save_grid(path: Path, images: Pixels) -> None:
    """Write a grid of [n, height, width, channels] as PNG, whole or not at all.

    Raises:
        RunError: it could not be written.
    """
    _save_png(path, image_grid(images))


def image_strip(images: Pixels) -> Image.Image:
    """A row of [n, height, width, channels], small ones enlarged, with white between them."""
    count, height, width, channels = images.shape
    scale, margin = math.ceil(_TILE_PIXELS / max(height, width)), 8
    size = (count * (width * scale + margin) - margin, height * scale)
    strip = Image.new("L" if channels == 1 else "RGB", size, "white")
    for index, image in enumerate(images):
        strip.paste(_enlarge(image, scale), (index * (width * scale + margin), 0))
    return strip


def score_sheet(
    fakes: Pixels, fake_scores: Iterable[float], reals: Pixels, real_scores: Iterable[float]
) -> Image.Image:
    """Draw a row of fakes above a row of reals, each tile below its score.

    Images are [n, height, width, channels]; a score is the discriminator's belief, 0 to 1, that the
    image is real, or of a loss that only compares, that it is more real than the usual real one.
    """
    side = max(fakes.shape[1:3])
    scale = math.ceil(_TILE_PIXELS / side)
    tile, margin = side * scale, 8
    font = ImageFont.load_default(_FONT_PIXELS)
    label_width = 2 * margin + math.ceil(max(font.getlength(name) for name in ("fake", "real")))
    columns, row_height = max(len(fakes), len(reals)), _TITLE_PIXELS + tile + margin
    size = (label_width + columns * (tile + margin), 2 * row_height)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    rows = (("fake", fakes, fake_scores), ("real", reals, real_scores))
    for row, (name, images, scores) in enumerate(rows):
        top = row * row_height + _TITLE_PIXELS
        draw.text((margin, top + tile // 2), name, "black", font, anchor="lm")
        for column, (image, score) in enumerate(zip(images, scores, strict=True)):
            left = label_width + column * (tile + margin)
            middle = (left + tile // 2, top - _TITLE_PIXELS // 2)
            draw.text(middle, f"{score:.2f}", "black", font, anchor="mm")
            sheet.paste(_enlarge(image, scale), (left, top))
    return sheet


def save_sheet(
    path: Path,
    fakes: Pixels,
    fake_scores: Iterable[float],
    reals: Pixels,
    real_scores: Iterable[float],
) -> None:
    """Write fakes above reals with their scores, 0 to 1, as PNG, whole or not at all.

    Raises:
        RunError: it could not be written.
    """
    _save_png(path, score_sheet(fakes, fake_scores, reals, real_scores))


def save_scatter(path: Path, samples: NDArray[np.float32], data: NDArray[np.float32]) -> None:
    """Write samples [n, 2] over the data [m, 2] as a scatter plot in PNG, whole or not at all.

    The frame follows the data alone, so that the plots of a run can be compared; the title counts
    the samples that it leaves out.

    Raises:
        RunError: it could not be written.
    """
    lowest, highest = data.min(axis=0), data.max(axis=0)
    margin = 0.15 * max(float((highest - lowest).max()), 1e-6)
    lowest, highest = lowest - margin, highest + margin
    inside = ((samples >= lowest) & (samples <= highest)).all(axis=1)  # False where not finite
    figure = new_figure(_SCATTER_INCHES, _SCATTER_INCHES)
    axes = figure.add_subplot()
    shown = data[:: math.ceil(len(data) / _DATA_SHOWN)]
    axes.scatter(*shown.T, s=6, color="#b0b0b0", linewidths=0, label="data")
    axes.scatter(*samples[inside].T, s=5, color="#d5450b", alpha=0.6, linewidths=0, label="samples")
    axes.set_aspect("equal")
    axes.set_xlim(lowest[0], highest[0])
    axes.set_ylim(lowest[1], highest[1])
    outside = len(samples) - int(inside.sum())
    left_out = f", {outside} of them outside the frame" if outside else ""
    axes.set_title(f"{len(samples)} samples{left_out}", fontsize=10)
    axes.legend(loc="upper right", fontsize=8, markerscale=2.5)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    with atomic_write(path) as file:
        file.write(content.getbuffer())


def animate(frames: Iterable[Image.Image]) -> bytes:
    """An endless GIF of pictures of one size, at least one, asked for one by one."""
    content = io.BytesIO()  # writing to a file, Pillow would not tell why a disk refuses
    frames = iter(frames)
    next(frames).save(
        content,
        format="GIF",
        save_all=True,
        append_images=frames,
        duration=_FRAME_MILLISECONDS,
        loop=0,
    )
    return content.getvalue()


def save_animation(path: Path, images: Pixels) -> None:
    """Write [n, height, width, channels] as an endless GIF, whole or not at all.

    Raises:
        RunError: it could not be written.
    """
    content = animate(_frame(image) for image in images)
    with atomic_write(path) as file:
        file.write(content)


def new_figure(width: float, height: float) -> Any:  # noqa: ANN401 - imported when it is needed
    """An empty matplotlib figure of a size in inches that belongs to nobody but the caller."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it talks about its font cache
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _frame(image: NDArray[np.uint8]) -> Image.Image:
    """A grid of one image in the 256 colours of a GIF, which are chosen before it is enlarged."""
    canvas = _tile(image[None])
    scale, picture = _grid_scale(canvas), _enlarge(canvas, 1)
    if picture.mode == "RGB":
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _tile(images: Pixels) -> NDArray[np.uint8]:
    """The grid before it is enlarged."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    margin = max(1, min(height, width) // 16)
    shape = (rows * (height + margin) + margin, columns * (width + margin) + margin, channels)
    canvas = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = margin + row * (height + margin), margin + column * (width + margin)
        canvas[top : top + height, left : left + width] = image
    return canvas


def _grid_scale(canvas: NDArray[np.uint8]) -> int:
    scale: int = math.ceil(_GRID_PIXELS / max(canvas.shape[:2]))
    return scale


def _enlarge(image: NDArray[np.uint8], scale: int) -> Image.Image:
    pixels = image.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _save_png(path: Path, picture: Image.Image) -> None:
    content = io.BytesIO()
    picture.save(content, format="PNG", compress_level=_COMPRESSION)
    with atomic_write(path) as file:
        file.write(content.getbuffer())
