import io
import json
import logging
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gantrain.errors import RunError
from gantrain.run_log import (
    EventFile,
    StatusLine,
    Stopwatch,
    append_metrics,
    read_metrics,
    truncate_metrics,
)

ROW = {"images_seen": 500, "seconds": 50.0, "images_per_second": 10.0}
LOSSES = {"discriminator_loss": 0.69, "generator_loss": 0.7}
ACCURACIES = {"discriminator_accuracy_real": 0.66, "discriminator_accuracy_fake": 0.6}


def load_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def test_rows_after_a_position_and_other_lines_are_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    truncate_metrics(path, 0)  # nothing there yet
    for images_seen in (64, 128, 192):
        append_metrics(path, {"images_seen": images_seen})
    with path.open("ab") as file:
        file.write(b'12\n{"a": 1}\n[]\n{"images_se\xff\x00')
    assert [row["images_seen"] for row in read_metrics(path)] == [64, 128, 192]
    truncate_metrics(path, 128)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["images_seen"] for row in rows] == [64, 128]


def test_a_run_without_metrics_has_no_rows(tmp_path: Path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(LOSSES, "D 0.690 G 0.700", id="losses"),
        pytest.param(LOSSES | ACCURACIES, "D 0.690 acc 63 % G 0.700", id="accuracy"),
        pytest.param(
            LOSSES | {"r1_penalty": 0.5, "r2_penalty": 0.25},
            "D 0.690 G 0.700, R1 0.500, R2 0.250",
            id="penalties",
        ),
        pytest.param(
            LOSSES | {"gradient_penalty": 0.5},
            "D 0.690 G 0.700, gradient penalty 0.500",
            id="gradient-penalty",
        ),
        pytest.param({"diagnosis": "healthy"}, "", id="no-losses"),
    ],
)
def test_the_status_line_tells_what_the_row_has(
    values: dict, expected: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO), StatusLine(0, 1000) as status:
        status.report(ROW | values)
    assert caplog.messages == [f"500/1000 images, 10 images/s, 00:50 left, {expected}"]


def test_the_rate_and_the_time_left_are_of_several_rows(caplog: pytest.LogCaptureFixture):
    def row(images: int, seconds: float, rate: float) -> dict[str, float]:
        return {"images_seen": images, "seconds": seconds, "images_per_second": rate}

    with caplog.at_level(logging.INFO), StatusLine(0, 1000) as status:
        status.report(row(100, 10, 10))
        status.report(row(200, 50, 2.5))  # pictures were drawn
        status.report(row(300, 60, 10))
        status.report(row(150, 70, 10))  # rolled back
    told = [message.split(", ")[1:3] for message in caplog.messages]
    assert told == [
        ["10 images/s", "01:30 left"],
        ["2 images/s", "05:20 left"],
        ["4 images/s", "02:55 left"],
        ["10 images/s", "01:25 left"],
    ]


def test_a_first_line_tells_the_rate_long_before_the_first_row(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO), StatusLine(0, 10**6, patience_seconds=0) as status:
        for _ in range(5):
            status.advance(10)  # the first step warms up and gives no rate
        early = caplog.messages
        assert re.fullmatch(r"20/1000000 images, \d+ images/s, [\d:]+ left", *early)
        status.report(ROW | LOSSES)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("shown", [True, False])
def test_no_first_line_comes_after_a_row_or_of_what_is_not_shown(
    shown: bool, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        status = StatusLine(0, 1000, shown=shown, patience_seconds=0)
        status.advance(10)
        status.report(ROW | LOSSES)
        status.advance(10)
        status.advance(-10)  # rolled back
        status.advance(10)
        StatusLine(0, 1000).advance(10)
    assert len(caplog.messages) == shown


def test_a_run_that_was_halted_for_a_night_still_tells_its_status(
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.INFO), StatusLine(0, 1000) as status:
        status.report({"images_seen": 64, "seconds": 9e4, "images_per_second": 0.0, **LOSSES})
    assert "64/1000 images, 0 images/s" in caplog.text


def test_time_goes_on_from_where_the_run_was_cut():
    watch = Stopwatch(images_seen=100, seconds_before=50.0)
    row = watch.row(200, {"loss": 1.0})
    assert 50 <= row["seconds"] < 60
    assert row["images_per_second"] > 10
    assert row["loss"] == 1.0


def test_tensorboard_reads_every_scalar_and_picture_of_a_row(tmp_path: Path):
    events = EventFile(tmp_path / "tensorboard", 0)
    events.add_row({**ROW, **LOSSES, "class_shares": [0.5, 0.5], "diagnosis": "healthy"})
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    events.add_samples(500, png(pixels))
    read = load_events(tmp_path / "tensorboard")
    tags = read.Tags()
    assert tags["scalars"] == ["seconds", "images_per_second", *LOSSES]
    assert [(e.step, e.value) for e in read.Scalars("generator_loss")] == [
        (500, pytest.approx(0.7))
    ]
    (picture,) = read.Images("samples")
    assert picture.step == 500
    assert (picture.width, picture.height) == (4, 4)
    assert picture.encoded_image_string == png(pixels), "compressed once, for its file"
    shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert (shown == pixels).all()


def test_tensorboard_shows_no_row_twice_after_a_resume(tmp_path: Path):
    events = EventFile(tmp_path, 0)
    for images_seen in (100, 200, 300):
        events.add_row({"images_seen": images_seen, "generator_loss": 1.0})
    resumed = EventFile(tmp_path, 100)
    for images_seen in (200, 400):
        resumed.add_row({"images_seen": images_seen, "generator_loss": 2.0})
    shown = load_events(tmp_path).Scalars("generator_loss")
    assert [(e.step, e.value) for e in shown] == [(100, 1.0), (200, 2.0), (400, 2.0)]


def test_events_for_a_full_disk_are_refused_and_what_was_written_stays_readable(mount):
    folder = mount("size=64k") / "tensorboard"
    events = EventFile(folder, 0)
    noise = np.random.default_rng(0).integers(0, 256, (512, 512)).astype(np.uint8)
    threads = threading.active_count()
    events.add_row({"images_seen": 100, "generator_loss": 1.0})
    with pytest.raises(RunError, match="could not be written: No space left on device"):
        events.add_samples(100, png(noise))
    assert threading.active_count() == threads
    assert [e.step for e in load_events(folder).Scalars("generator_loss")] == [100]


def test_a_folder_that_takes_no_events_is_refused_with_the_reason(mount):
    with pytest.raises(RunError, match="tensorboard could not be written: Read-only file system"):
        EventFile(mount("ro") / "tensorboard", 0)
