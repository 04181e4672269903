import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from ganserve.single_writer_metrics import SingleWriterCounter, SingleWriterHistogram

BOUNDS = (0.5, 1.0, 10.0)


@pytest.fixture
def registry():
    return CollectorRegistry()


def without_created(registry):
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_a_counter_is_shown_as_that_of_the_client_library(registry):
    theirs = CollectorRegistry()
    ours = SingleWriterCounter("calls_total", "Calls.", ("a", "b"), registry=registry)
    other = Counter("calls_total", "Calls.", ("a", "b"), registry=theirs)
    for counter in (ours, other):
        counter.labels("x", 'quo"te').inc()
        counter.labels("x", 'quo"te').inc(2)
        counter.labels("y", "z")
    assert without_created(registry) == without_created(theirs)


@pytest.mark.parametrize("labels", [(), ("a",)], ids=["plain", "labelled"])
def test_a_histogram_is_shown_as_that_of_the_client_library(registry, labels):
    theirs = CollectorRegistry()
    ours = SingleWriterHistogram("seconds", "Time.", labels, buckets=BOUNDS, registry=registry)
    other = Histogram("seconds", "Time.", labels, buckets=BOUNDS, registry=theirs)
    series = [ours.labels(*labels), other.labels(*labels) if labels else other]
    for histogram in series:
        for amount in (0.1, 0.5, 0.75, 1.0, 10.0, 10.5, 99.0):
            histogram.observe(amount)
    assert without_created(registry) == without_created(theirs)


def test_exemplars_are_shown_as_by_the_client_library_and_in_openmetrics_alone(registry):
    theirs = CollectorRegistry()
    ours = SingleWriterHistogram("seconds", "Time.", (), buckets=BOUNDS, registry=registry)
    other = Histogram("seconds", "Time.", buckets=BOUNDS, registry=theirs)
    for histogram in (ours.labels(), other):
        for amount, trace in ((0.1, "a"), (0.2, "b"), (99.0, "c")):
            histogram.observe(amount, {"trace_id": trace})
        histogram.observe(0.3)  # leaves its bucket's exemplar
    pages = [without_times(openmetrics.generate_latest(r).decode()) for r in (registry, theirs)]
    assert pages[0] == pages[1]
    assert 'seconds_bucket{le="0.5"} 3.0 # {trace_id="b"} 0.2' in pages[0]
    assert "trace_id" not in generate_latest(registry).decode()


def without_times(page):
    """The lines, less those of creation and the times of exemplars."""
    lines = [line for line in page.splitlines() if "_created" not in line]
    return [re.sub(r"(# \{.*\} \S+) \S+$", r"\1", line) for line in lines]


def test_a_series_is_one_however_often_it_is_looked_up(registry):
    counter = SingleWriterCounter("calls", "Calls.", ("a",), registry=registry)
    assert counter.labels("x") is counter.labels("x")
    assert counter.labels("x") is not counter.labels("y")


def test_series_are_forgotten(registry):
    counter = SingleWriterCounter("images", "Images.", ("model", "version"), registry=registry)
    for labels in (("a", "1"), ("a", "2"), ("b", "1")):
        counter.labels(*labels).inc()
    for _ in range(2):  # one that is not there is no error
        counter.remove_by_labels({"model": "a", "version": "1"})
    counter.remove_by_labels({"model": "b"})
    shown = [line for line in without_created(registry) if not line.startswith("#")]
    assert shown == ['images_total{model="a",version="2"} 1.0']
