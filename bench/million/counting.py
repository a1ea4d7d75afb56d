"""Counts of rare events, and percentiles of histograms that were written down in parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

CONFIDENCE = 0.95

Buckets = Sequence[tuple[int, int]]


def upper(events: int) -> float:
    """The mean of a Poisson distribution above which so few events have a probability below 5 %."""

    def at_most(mean: float) -> float:
        term = total = math.exp(-mean)
        for count in range(1, events + 1):
            term *= mean / count
            total += term
        return total

    low, high = float(events), events + 10.0 + 5 * math.sqrt(events)
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 1 - CONFIDENCE else (low, middle)
    return high


def merged(parts: Iterable[Buckets]) -> list[tuple[int, int]]:
    """The sum of histograms given as (largest value, count) of their buckets."""
    sums: dict[int, int] = {}
    for part in parts:
        for bound, count in part:
            sums[bound] = sums.get(bound, 0) + count
    return sorted(sums.items())


def percentile(buckets: Buckets, percent: float) -> float | None:
    """The largest value of the bucket that a percentile falls into; None: nothing was counted."""
    total = sum(count for _, count in buckets)
    wanted, reached = percent / 100 * total, 0
    for bound, count in buckets:
        reached += count
        if reached >= wanted:
            return float(bound)
    return None


def summed(rows: Sequence[dict[str, Any]], names: Iterable[str]) -> dict[str, int]:
    return {name: sum(int(row[name]) for row in rows) for name in names}
