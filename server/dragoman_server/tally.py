"""Counters and histograms that cost next to nothing to count with, for what is counted at every step.

Those of prometheus_client take a lock for each number and look through all buckets, which adds up to some per cent of a
step of a small model. Here each thread counts for itself, and the sums are made when the page is asked for.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class HistogramTally:
    """A histogram that one thread writes and any thread may read.

    Args:
        bounds: the largest value of each bucket, rising; one more bucket takes what is larger than all.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @classmethod
    def add_to(
        cls,
        family: HistogramMetricFamily,
        labels: Sequence[str],
        bounds: Sequence[float],
        tallies: "Iterable[HistogramTally]",
    ) -> None:
        """Adds what tallies of the same bounds have counted together to a family, as one series."""
        counts, total = [0] * (len(bounds) + 1), 0.0
        for tally in tallies:
            counts = [mine + its for mine, its in zip(counts, tally._counts, strict=True)]
            total += tally._sum
        les = [*map(floatToGoString, bounds), "+Inf"]
        family.add_metric(labels, [*zip(les, map(float, accumulate(counts)), strict=True)], total)
