from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from ganserve.metrics import Metrics
from ganserve.models.model_files import Candidate
from ganserve.repository.model_series import ModelSeries
from ganserve.repository.versions import Version


def version_of(name, number):
    return Version(Candidate(name, number, Path(name), None))


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


def counted(metrics, number):
    labels = {"model": "tiny", "version": str(number)}
    return metrics.registry.get_sample_value("ganserve_images_total", labels)


@pytest.mark.parametrize(
    ("others", "names", "left"),
    [
        pytest.param([], [], None, id="gone"),
        pytest.param([2], [], 1, id="another version answers its last calls"),
        pytest.param([], ["tiny"], 1, id="another version waits to be loaded"),
    ],
)
def test_series_of_a_model_go_with_its_last_version(metrics, others, names, left):
    series = ModelSeries(metrics)
    series.image_counter(version_of("tiny", 1))(1)
    series.forget(version_of("tiny", 1), [version_of("tiny", number) for number in others], names)
    assert counted(metrics, 1) == left


def test_a_number_that_retires_again_is_among_the_last_that_did(metrics, monkeypatch):
    monkeypatch.setattr("ganserve.repository.model_series._COUNTED_VERSIONS", 2)
    series = ModelSeries(metrics)
    for number in (1, 1, 2):
        series.image_counter(version_of("tiny", number))(1)
        series.forget(version_of("tiny", number), [], ["tiny"])
    assert (counted(metrics, 1), counted(metrics, 2)) == (2, 1)
    series.forget(version_of("tiny", 3), [], ["tiny"])
    assert (counted(metrics, 1), counted(metrics, 2)) == (None, 1)
