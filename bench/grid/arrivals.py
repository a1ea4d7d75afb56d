"""Requests of a cell before the rate is known: one drawing for every rate and every policy.

Times are kept in units of the mean gap between two requests. At a rate they are that many gaps, so that two
rates see the same requests, closer or further apart, and the search for a rate compares like with like. What
happens inside a burst is in seconds and does not shrink.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PROCESS, CLASSES = 0, 1
"""Streams of randomness of one seed."""


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """Requests in the order of their times."""

    units: npt.NDArray[np.float64]  # in mean gaps, ascending
    offset_s: npt.NDArray[np.float64]  # added, in seconds
    model: npt.NDArray[np.int32]
    group: npt.NDArray[np.int32]  # index of the class

    def __len__(self) -> int:
        return len(self.units)

    def with_classes(self, seed: int, classes: int) -> Arrivals:
        """The same requests, each with a class drawn from `classes` equally likely ones."""
        drawn = np.random.default_rng([seed, CLASSES]).random(len(self))
        return dataclasses.replace(self, group=(drawn * classes).astype(np.int32))

    def at(self, rate: float, until_s: float) -> TimedArrivals:
        """The requests of the first `until_s` seconds at `rate` requests a second."""
        times = np.floor((self.units / rate + self.offset_s) * 1e9).astype(np.int64)
        if self.units[-1] / rate < until_s:
            raise ValueError(
                f"{len(self)} requests at {rate:g} a second are {self.units[-1] / rate:g} s, not {until_s:g} s"
            )
        # A time in seconds may let a later burst overtake: sort again, keeping the order of equals.
        order = np.argsort(times, kind="stable")
        order = order[times[order] < int(until_s * 1e9)]
        return TimedArrivals(times[order], self.model[order], self.group[order])


@dataclasses.dataclass(frozen=True)
class TimedArrivals:
    """Requests at a rate."""

    t_ns: npt.NDArray[np.int64]
    model: npt.NDArray[np.int32]
    group: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.t_ns)


def _untimed(units: npt.NDArray[np.float64], model: npt.NDArray[np.int32]) -> Arrivals:
    return Arrivals(units, np.zeros(len(units)), model, np.zeros(len(units), np.int32))


def poisson(seed: int, count: int, shares: Sequence[float]) -> Arrivals:
    """Poisson processes, one a model."""
    random = np.random.default_rng([seed, PROCESS])
    # Drawn in pairs, so that the first requests are the same however many are asked for.
    drawn = random.random((count, 2))
    units = np.cumsum(-np.log1p(-drawn[:, 0]))
    edges = np.cumsum(np.asarray(shares))[:-1]
    return _untimed(units, np.searchsorted(edges, drawn[:, 1], side="right").astype(np.int32))


def gamma(seed: int, count: int, shares: Sequence[float], cv: float) -> Arrivals:
    """Renewal processes with Gamma gaps, one a model, stationary from the start."""
    shape = 1 / cv**2
    times: list[npt.NDArray[np.float64]] = []
    for model, share in enumerate(shares):
        random = np.random.default_rng([seed, PROCESS, model])
        scale = 1 / (share * shape)
        # A stationary observer falls into a long gap more often: that gap's length is biased by itself
        # (shape + 1), and the observer's place in it is uniform.
        at = random.standard_gamma(shape + 1) * scale * random.random()
        parts: list[npt.NDArray[np.float64]] = []
        while at < count:
            expected = (count - at) * share
            gaps = random.standard_gamma(shape, int(expected + 4 * cv * expected**0.5) + 16) * scale
            part = at + np.concatenate(([0.0], np.cumsum(gaps)))
            parts.append(part[:-1])
            at = float(part[-1])
        found = np.concatenate(parts) if parts else np.empty(0)
        times.append(found[found < count])
    units = np.concatenate(times)
    model_of = np.repeat(np.arange(len(shares), dtype=np.int32), [len(one) for one in times])
    order = np.argsort(units, kind="stable")
    return _untimed(units[order], model_of[order])


def bursts(seed: int, count: int, shares: Sequence[float], size: int, gap_s: float) -> Arrivals:
    """Bursts of `size` requests for one model, `gap_s` apart in the mean; the bursts come as Poisson."""
    random = np.random.default_rng([seed, PROCESS])
    drawn = random.random((-(-count // size), size + 1))
    edges = np.cumsum(np.asarray(shares))[:-1]
    model = np.searchsorted(edges, drawn[:, 0], side="right").astype(np.int32)
    gaps = -np.log1p(-drawn[:, 1:])
    starts = np.cumsum(gaps[:, 0]) * size
    offsets = np.concatenate((np.zeros((len(drawn), 1)), np.cumsum(gaps[:, 1:] * gap_s, axis=1)), axis=1)
    count = len(drawn) * size
    return Arrivals(
        np.repeat(starts, size), offsets.reshape(count), np.repeat(model, size), np.zeros(count, np.int32)
    )
