"""Any number of times in little memory: counts of them in log-linear buckets.

The idea of HdrHistogram (Tene, http://hdrhistogram.org): buckets of equal width within each power
of two, so that every time is kept to the same three significant digits, however long it is, and
the histograms of several processes add up without a further error.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

# Buckets in a power of two are 2^10, so a bucket is at most 1/1024 of its smallest time wide.
_BITS = 10
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


@dataclass
class LatencyHistogram:
    """Times in nanoseconds, each known to 0.1 %; the longest and the sum are exact.

    Attributes:
        counts: Bucket to the number of times in it; buckets without any are absent.
        total: How many times were recorded.
        sum: All of them together, in nanoseconds.
        longest: In nanoseconds; 0 if there are none.
    """

    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    sum: int = 0
    longest: int = 0

    def record(self, seconds: float) -> None:
        """Add a time; less than none counts as none."""
        nanoseconds = max(0, round(seconds * 1e9))
        bucket = _bucket(nanoseconds)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += 1
        self.sum += nanoseconds
        self.longest = max(self.longest, nanoseconds)

    def percentile(self, percent: float) -> float:
        """The time in seconds that so many percent of the times do not exceed.

        That of the inverse of the empirical distribution function, rounded up to its bucket's end:
        never less, and less than 0.1 % more. There must be a time, and `percent` be in (0, 100].
        """
        # Rounded: 99.9 % of 1000 times are 999 of them, not 999.0000000000001.
        rank = math.ceil(round(self.total * percent / 100, 6))
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank <= 0:
                return min(_last_of(bucket), self.longest) / 1e9
        raise AssertionError("a percentile of no times")

    def summary(self) -> dict[str, float]:
        """Name of each of `PERCENTILES` to seconds; empty if no time was recorded."""
        if not self.total:
            return {}
        return {name: self.percentile(percent) for name, percent in PERCENTILES.items()}

    @property
    def mean(self) -> float:
        """In seconds, exact; there must be a time."""
        return self.sum / self.total / 1e9

    @classmethod
    def merged(cls, histograms: Iterable[Self]) -> Self:
        """All times of all of them."""
        merged = cls()
        for histogram in histograms:
            for bucket, count in histogram.counts.items():
                merged.counts[bucket] = merged.counts.get(bucket, 0) + count
            merged.total += histogram.total
            merged.sum += histogram.sum
            merged.longest = max(merged.longest, histogram.longest)
        return merged


def _bucket(nanoseconds: int) -> int:
    shift = max(0, nanoseconds.bit_length() - _BITS - 1)
    return (shift << _BITS) + (nanoseconds >> shift)


def _last_of(bucket: int) -> int:
    """The longest time of a bucket."""
    shift = max(0, (bucket >> _BITS) - 1)
    return ((bucket - (shift << _BITS) + 1) << shift) - 1
