from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from gantrain.errors import RunError
from gantrain.pictures import (
    image_grid,
    save_animation,
    save_grid,
    save_scatter,
    save_sheet,
    score_sheet,
)


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def ring(count: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_in_reading_order(channels: int):
    images = np.zeros((5, 4, 4, channels), np.uint8)
    images[:] = np.arange(5, dtype=np.uint8)[:, None, None, None] * 40
    grid = np.asarray(image_grid(images))
    tile = grid.shape[1] // 3
    centres = [
        grid[row * tile + tile // 2, column * tile + tile // 2].flat[0]
        for row in range(2)
        for column in range(3)
    ]
    assert centres == [0, 40, 80, 120, 160, 255]  # the sixth place is the ground


def test_large_images_are_not_enlarged():
    assert image_grid(np.zeros((25, 128, 128, 3), np.uint8)).width == 5 * 136 + 8


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_shows_each_image_as_a_grid_does(channels: int, tmp_path: Path):
    images = random_images(3, 8, 8, channels)  # 64 pixels and the ground: no colour is lost
    save_animation(tmp_path / "walk.gif", images)
    with Image.open(tmp_path / "walk.gif") as animation:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == 3
    for frame, image in zip(frames, images, strict=True):
        assert np.array_equal(frame, image_grid(image[None]).convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 64, 128])
def test_a_sheet_shows_all_pixels_of_fakes_above_reals(side: int, channels: int):
    images = random_images(16, side, side, channels)
    sheet = np.asarray(score_sheet(images[:8], [0.5] * 8, images[8:], [0.5] * 8))
    scale = -(-96 // side)
    tile, margin, title = side * scale, 8, 22
    assert tile >= 96  # a title of four digits fits above
    for index, image in enumerate(images):
        row, column = divmod(index, 8)
        right = sheet.shape[1] - (7 - column) * (tile + margin) - margin
        top = row * (title + tile + margin) + title
        shown = sheet[top : top + tile : scale, right - tile : right : scale]
        assert (shown == image).all()


def test_a_sheet_writes_each_score_above_its_tile():
    images = np.zeros((2, 96, 96, 1), np.uint8)

    def titles(fake_scores: list[float], real_scores: list[float]) -> list[bytes]:
        sheet = np.asarray(score_sheet(images, fake_scores, images, real_scores))
        middle = sheet.shape[1] - 104
        return [
            sheet[top : top + 22, half].tobytes()
            for top in (0, 126)
            for half in (slice(50, middle), slice(middle, None))
        ]

    before, after = titles([0.12, 0.34], [0.56, 0.78]), titles([0.12, 0.34], [0.99, 0.78])
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    assert len(set(before)) == 4


def test_pictures_are_compressed_at_little_cost_of_time(tmp_path: Path):
    images = random_images(8, 8, 8, 3)
    save_grid(tmp_path / "grid.png", images)
    save_sheet(tmp_path / "sheet.png", images, [0.5] * 8, images, [0.5] * 8)
    for path in tmp_path.iterdir():
        _, _, compressed = path.read_bytes().partition(b"IDAT")
        assert compressed[1] >> 6 == 1, "zlib's own mark of a fast compression (RFC 1950)"


def test_a_scatter_plot_is_small_and_the_same_bytes_each_time(tmp_path: Path):
    paths = tmp_path / "a.png", tmp_path / "b.png"
    for path in paths:
        save_scatter(path, ring(500) * 0.9, ring(3000))
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert len(first) < 100_000


def test_a_scatter_plot_keeps_the_frame_of_the_data_whatever_the_samples_do(tmp_path: Path):
    far, gone = ring(500) * 1e6, np.full((500, 2), np.nan, np.float32)
    for name, samples in {"far": far, "gone": gone}.items():
        save_scatter(tmp_path / f"{name}.png", samples, ring(8))
    assert (tmp_path / "far.png").read_bytes() == (tmp_path / "gone.png").read_bytes()


def test_a_scatter_plot_shows_samples_in_colour_over_grey_data(tmp_path: Path):
    path = tmp_path / "plot.png"
    counts = []
    for samples in (ring(8)[:1], ring(8)):
        save_scatter(path, samples, ring(400))
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert (np.ptp(pixels, axis=2) == 0).mean() > 0.9
        counts.append((np.ptp(pixels, axis=2) > 60).sum())
    assert counts[0] < counts[1]


def save_ring_scatter(path: Path, images: np.ndarray) -> None:
    save_scatter(path, ring(len(images)), ring(8))


def save_equal_sheet(path: Path, images: np.ndarray) -> None:
    save_sheet(path, images, [0.5] * len(images), images, [0.5] * len(images))


@pytest.mark.parametrize(
    ("save", "name"),
    [
        pytest.param(save_grid, "grid.png", id="grid"),
        pytest.param(save_equal_sheet, "sheet.png", id="sheet"),
        pytest.param(save_ring_scatter, "scatter.png", id="scatter"),
        pytest.param(save_animation, "walk.gif", id="animation"),
    ],
)
def test_pictures_for_a_full_disk_are_refused_with_the_reason(save, name: str, mount):
    path = mount("size=4k") / name
    with pytest.raises(RunError, match=f"{name} could not be written: No space left on device"):
        save(path, random_images(4, 64, 64, 3))
    assert not list(path.parent.iterdir())
