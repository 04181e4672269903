"""Counters and histograms that one thread writes: no locks, at a fraction of the cost.

They look like those of `prometheus_client`, which lock at every step so that any thread may write.
Here the event loop alone writes, and a scrape in another thread reads what is there: every number
is whole, and a histogram's count is the sum of its buckets as they were read.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString


class CounterSeries:
    """One series of a counter."""

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Count one, or `amount`."""
        self.value += amount


class HistogramSeries:
    """One series of a histogram."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last for what exceeds all bounds
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}  # the last of each bucket that has one

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Count an observation in its bucket, whose bound is inclusive.

        `exemplar` says where more is told of this one, such as in a trace.
        """
        bucket = bisect_left(self.bounds, amount)
        self.counts[bucket] += 1
        self.total += amount
        if exemplar is not None:
            self.exemplars[bucket] = Exemplar(dict(exemplar), amount, time.time())


class SingleWriterCounter(Collector):
    """A counter with its series; one thread writes."""

    def __init__(
        self, name: str, what: str, labels: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        self._name = name.removesuffix("_total")
        self._what = what
        self._labelnames = tuple(labels)
        self._series: dict[tuple[str, ...], CounterSeries] = {}
        registry.register(self)

    def labels(self, *values: str) -> CounterSeries:
        """The series of these label values; keep it, for the look-up costs more than counting."""
        assert len(values) == len(self._labelnames), values
        return self._series.setdefault(values, CounterSeries())

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Show all series no more that have these values of these labels."""
        _remove_by_labels(self._series, self._labelnames, labels)

    def describe(self) -> Iterable[CounterMetricFamily]:
        """What it is, without values."""
        return [CounterMetricFamily(self._name, self._what, labels=self._labelnames)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """The values, as `prometheus_client` wants them."""
        family = CounterMetricFamily(self._name, self._what, labels=self._labelnames)
        for values, series in list(self._series.items()):
            family.add_metric(values, series.value)
        return [family]


class SingleWriterHistogram(Collector):
    """A histogram with its series; one thread writes."""

    def __init__(
        self,
        name: str,
        what: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._what = what
        self._labelnames = tuple(labels)
        self._bounds = tuple(buckets)
        self._series: dict[tuple[str, ...], HistogramSeries] = {}
        registry.register(self)

    def labels(self, *values: str) -> HistogramSeries:
        """The series of these label values; keep it, for the look-up costs more than observing."""
        assert len(values) == len(self._labelnames), values
        return self._series.setdefault(values, HistogramSeries(self._bounds))

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Show all series no more that have these values of these labels."""
        _remove_by_labels(self._series, self._labelnames, labels)

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """What it is, without values."""
        return [HistogramMetricFamily(self._name, self._what, labels=self._labelnames)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The values, as `prometheus_client` wants them."""
        family = HistogramMetricFamily(self._name, self._what, labels=self._labelnames)
        bounds = [_bound_label(bound) for bound in (*self._bounds, float("inf"))]
        for values, series in list(self._series.items()):
            total, counts = series.total, list(series.counts)
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = [
                *zip(bounds, accumulate(counts), strict=True)
            ]
            for index, exemplar in list(series.exemplars.items()):
                buckets[index] = (*buckets[index][:2], exemplar)
            family.add_metric(values, buckets, total)
        return [family]


def _remove_by_labels(
    series: dict[tuple[str, ...], Any], names: Sequence[str], labels: Mapping[str, str]
) -> None:
    places = {names.index(name): value for name, value in labels.items()}
    for values in list(series):
        if all(values[place] == value for place, value in places.items()):
            del series[values]


def _bound_label(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]  # published without types
