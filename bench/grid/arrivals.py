"""Requests of a cell before the rate is known: one drawing for all rates and policies.

Requests are drawn once, at UNIT_RATE. At another rate their distances are scaled, so that two rates see the
same requests and the search for a rate compares like with like. Times within a burst are in seconds and do
not scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clockwork.workloads import Class, Recorded, Workload, chosen, gamma, mixed, poisson
from clockwork.workloads.arrivals import Arrivals as Timed

UNIT_RATE = 1000.0
"""Rate in requests per second at which requests are drawn."""

STREAM_GAPS = 1
"""The stream of random numbers for the gaps within bursts; the workloads' own stream is 0."""


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """Requests at UNIT_RATE, in order of time."""

    unit_ns: npt.NDArray[np.int64]
    offset_ns: npt.NDArray[np.int64]  # offsets that are not scaled by the rate
    model: npt.NDArray[np.int32]
    group: npt.NDArray[np.uint8]  # index of each arrival's class

    def __len__(self) -> int:
        return len(self.unit_ns)

    def at(self, rate: float, until_s: float) -> TimedArrivals:
        """The requests of the first `until_s` seconds at `rate` requests a second."""
        until_ns = int(until_s * 1e9)
        times = (self.unit_ns * (UNIT_RATE / rate)).astype(np.int64)
        if not len(times) or times[-1] < 0.95 * until_ns:
            raise ValueError(f"{len(self)} requests at {rate:g} a second do not fill {until_s:g} s")
        # A burst may overtake another: sort again, keeping the order of equals.
        times += self.offset_ns
        order = np.argsort(times, kind="stable")
        order = order[: int(np.searchsorted(times[order], until_ns))]
        return TimedArrivals(times[order], self.model[order], self.group[order])


@dataclasses.dataclass(frozen=True)
class TimedArrivals:
    """Requests at a rate."""

    t_ns: npt.NDArray[np.int64]
    model: npt.NDArray[np.int32]
    group: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.t_ns)


def drawn(workload: Workload, seed: int, classes: int) -> Arrivals:
    """The requests of a workload, each in one of `classes` equally likely classes."""
    found: Timed = mixed(workload, [Class()] * classes, seed).collect()
    return Arrivals(found.t_ns, np.zeros(len(found), np.int64), found.model, found.cls)


def poisson_arrivals(seed: int, count: int, shares: Sequence[float], classes: int) -> Arrivals:
    """About `count` requests of Poisson processes, one for each model."""
    rates = [UNIT_RATE * share for share in shares]
    return drawn(poisson(rates, _duration_ns(count), seed=seed), seed, classes)


def gamma_arrivals(seed: int, count: int, shares: Sequence[float], cv: float, classes: int) -> Arrivals:
    """About `count` requests of renewal processes with Gamma gaps, one for each model."""
    rates = [UNIT_RATE * share for share in shares]
    return drawn(gamma(rates, cv, _duration_ns(count), seed=seed), seed, classes)


def burst_arrivals(
    seed: int, count: int, shares: Sequence[float], size: int, gap_s: float, classes: int
) -> Arrivals:
    """Bursts of `size` requests for one model, `gap_s` apart on average; the bursts are a Poisson process."""
    starts = chosen(poisson([UNIT_RATE / size], _duration_ns(count), seed=seed), shares, seed).collect()
    long_enough_ns = int(2 * gap_s * (len(starts) * size + 1000) * 1e9)
    within = poisson([1 / gap_s], long_enough_ns, seed=seed, stream=STREAM_GAPS)
    gaps_ns = np.diff(_first(within, len(starts) * size + 1)).reshape(len(starts), size)
    gaps_ns[:, 0] = 0
    offsets = np.cumsum(gaps_ns, axis=1).reshape(-1)
    # Classes are drawn by time and model: give each request a time of its own.
    apart = Timed.of(np.arange(len(starts) * size), np.repeat(starts.model, size))
    groups = mixed(Recorded(apart), [Class()] * classes, seed).collect().cls
    return Arrivals(np.repeat(starts.t_ns, size), offsets, np.repeat(starts.model, size), groups)


def _first(workload: Workload, count: int) -> npt.NDArray[np.int64]:
    """The times of a workload's first arrivals."""
    parts: list[npt.NDArray[np.int64]] = []
    left = count
    for chunk in workload:
        parts.append(chunk.t_ns[:left])
        left -= len(parts[-1])
        if not left:
            return np.concatenate(parts)
    raise ValueError(f"the workload ends {left} short of {count} arrivals")


def _duration_ns(count: int) -> int:
    return int(count / UNIT_RATE * 1e9)
