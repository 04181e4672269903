import logging
import re

import numpy as np
from PIL import Image

from gantrain.data.datasets import load_dataset
from gantrain.evaluation.classifier import train_classifier
from gantrain.progress import show_progress


def lines(caplog, what):
    told = (record.getMessage() for record in caplog.records)
    return [line for line in told if line.startswith(what)]


def test_items_pass_and_off_a_terminal_a_line_comes_now_and_then(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    items = [[1, 2], [3]]
    assert [*show_progress(items, 3, "counting", "number", len)] == items
    assert caplog.messages == []
    monkeypatch.setattr("gantrain.progress._LINE_SECONDS", 0.0)
    assert [*show_progress(items, 3, "counting", "number", len)] == items
    assert caplog.messages == ["counting: 2 of 3 in 0 s", "counting: 3 of 3 in 0 s"]


def test_decoding_and_a_classifier_tell_how_far_they_are(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("gantrain.progress._LINE_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    for index in range(3):
        Image.new("L", (16, 16), 80 * index).save(tmp_path / f"{index}.png")
    images = load_dataset(str(tmp_path)).images
    assert [line[:17] for line in lines(caplog, "decoding")] == [
        f"decoding: {count} of 3 " for count in (1, 2, 3)
    ]
    train_classifier(images, np.array([0, 1, 0]), 2)
    steps = lines(caplog, "classifier: ")
    assert re.fullmatch(rf"classifier: {len(steps)} of {len(steps)} in \d+ s", steps[-1])
