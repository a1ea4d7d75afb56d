"""The fluid bound on throughput: requests are divisible, every batch is full, every model is resident.

A request costs at least its share of the most efficient batch that its SLO leaves room for, which bounds the
number of requests that devices can execute. The bound is cheap to compute, and above the throughput of any
policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from clockwork.formats.profiles import ModelProfile

Floats = npt.NDArray[np.float64]


def curve(profile: ModelProfile, faster: float = 0.0) -> Floats:
    """Return the execution time of every batch size in ns; entry 0 is unused, and times never fall with the
    size.

    faster: largest part by which noise shortens an execution.
    """
    sizes = range(1, profile.largest_batch() + 1)
    times = np.array([0, *(profile.execution_ns(size) for size in sizes)], np.float64)
    times = np.minimum.accumulate(times[::-1])[::-1]
    return times * (1 - faster)


def batch_limit(times: Floats, room_ns: float) -> int:
    """Return the largest batch that fits into ``room_ns``; 0: none does."""
    return int(np.searchsorted(times[1:], room_ns, side="right"))


def cheapest(times: Floats, room_ns: float) -> float:
    """Return the least device time that a request can cost, in ns; infinite if no batch fits."""
    limit = batch_limit(times, room_ns)
    return float(np.min(times[1 : limit + 1] / np.arange(1, limit + 1))) if limit else math.inf


def fluid_rate(costs: Iterable[tuple[float, float]], devices: int, bad_max: float) -> float:
    """Return the requests per second that devices with every model can execute, without the most expensive
    requests.

    costs: (device time of a request in ns, its share of all requests). bad_max: the part of requests that is
    left out.
    """
    left_out, total = bad_max, 0.0
    for cost, share in sorted(costs, reverse=True):
        dropped = min(share, left_out)
        left_out -= dropped
        if share > dropped:
            total += cost * (share - dropped)
    if total == math.inf:
        return 0.0
    return devices * 1e9 / total if total else math.inf
