"""Upper bound on the goodput of a cell with one device, which executes one batch at every moment.

The clairvoyant dual of bounds.py gives all device time one price, so a burst may use the time of the hour
before it. Here every slot of time has a price of its own. A batch pays for the slots in which it is executed,
at the start that is cheapest for it, and for every schedule

    served <= sum over models of (its served requests - prices of its batches) + devices x sum of prices,

because in no slot more than `devices` batches are executed at once. The right side is maximised for each
model by itself, by a dynamic program over batches of consecutive requests (csrc/sim/moments.h). It is a bound
at all prices. Batches keep their starts in the argument of bounds.py for consecutive requests, so it holds
here.

Requests are cut into segments in order of arrival, each of which gets the device for itself, from its first
arrival to its last deadline. The numbers that segments can serve add up to at least the number that all can
serve together. A segment serves a whole number of requests, so its bound is rounded down, and each segment
keeps the best prices that were found for it.

A search with several models is exact where an SLO leaves room for few requests (whole.py); this bound is for
the loose SLOs beyond it, and sharper than the dual in bursts.
"""

from __future__ import annotations

import math

import numpy as np

from bench.grid import bounds
from bench.grid.arrivals import Arrivals, TimedArrivals
from bench.grid.cells import Cell, profiles
from clockwork.sim._bounds import best_by_moment

SEGMENT_REQUESTS = 200
"""Requests of a segment; it ends at the longest gap within this number, half of it either way."""
SLOTS_OF_EXECUTION = 4
"""Slots in the shortest execution of one request."""
SLOTS_OF_SLACK = 8
"""Slots in the least time by which an execution of one request can be put off."""

LEVELS = 10
LEVEL_STEP = 0.6
"""Uniform prices from which each segment chooses its first prices: the highest, at which a request is worth
its least device time, and how far the next one is below."""

STEPS = 300
STEPS_JUDGED = 50
"""Steps after which the search ends if at this pace the rest of its steps would not decide."""
FIRST_STEP = 0.1
STEP_HALVED_AFTER = 20
"""The first step, as a part of the price at which an execution of one request costs a request, and when it
has become half of that."""
MOMENTUM = 0.8
SQUARES = 0.95
"""The parts of the mean slope and of the mean squared slope that remain with each step."""


class MomentDual:
    """The dual function of one cell's requests at one rate, by segment."""

    def __init__(self, cell: Cell, offered: TimedArrivals, begin_s: float, end_s: float) -> None:
        curves = [bounds.curve(profile) for profile in profiles(cell)]
        room_ns = np.asarray(cell.slos_ns(), np.float64).max(axis=1) - bounds.NETWORK_NS
        exec_ns = np.full((cell.models, max(len(times) for times in curves)), math.inf)
        for row, times in zip(exec_ns, curves):
            row[: len(times)] = times
        counted = (offered.t_ns >= int(begin_s * 1e9)) & (offered.t_ns < int(end_s * 1e9))
        times_ns, models = offered.t_ns[counted].astype(np.float64), offered.model[counted]
        slack_ns = (room_ns - exec_ns[:, 1])[room_ns > exec_ns[:, 1]]
        slot_ns = min(
            exec_ns[:, 1].min() / SLOTS_OF_EXECUTION, slack_ns.min(initial=math.inf) / SLOTS_OF_SLACK
        )
        self.devices = cell.devices
        self.count = len(times_ns)
        first = segments(times_ns)
        last = np.append(first[1:], self.count) - 1
        self.segment_count = len(first)
        length = np.ceil((times_ns[last] - times_ns[first] + room_ns.max()) / slot_ns).astype(np.int64) + 1
        self.first_slots = np.concatenate(([0], np.cumsum(length)[:-1]))
        self.segment_of_slot = np.repeat(np.arange(self.segment_count), length)
        segment = np.repeat(np.arange(self.segment_count), last - first + 1)
        group = segment * cell.models + models
        order = np.argsort(group, kind="stable")
        arrived = (times_ns - times_ns[first][segment]) / slot_ns + self.first_slots[segment]
        self.arrived = np.ascontiguousarray(arrived[order])
        used, starts = np.unique(group[order], return_index=True)
        self.starts = np.append(starts, self.count).astype(np.int64)
        self.segment_of_group = used // cell.models
        self.exec = np.ascontiguousarray(exec_ns[used % cell.models] / slot_ns)
        self.room = np.ascontiguousarray(room_ns[used % cell.models] / slot_ns)
        self.exec_of_one = float(exec_ns[:, 1].min() / slot_ns)
        shares = exec_ns[:, 1:] / np.arange(1, exec_ns.shape[1])
        self.price_max = float(slot_ns / shares.min())

    def value(self, prices: bounds.Floats) -> tuple[bounds.Floats, bounds.Floats]:
        """(the bound on the requests that each segment serves, its slope by the price of each slot)."""
        values, used = np.zeros(len(self.room)), np.zeros(len(prices))
        up_to = np.concatenate(([0.0], np.cumsum(prices)))
        best_by_moment(self.arrived, self.starts, self.exec, self.room, up_to, values, used)
        worth = np.bincount(self.segment_of_group, values, self.segment_count)
        return worth + self.devices * np.add.reduceat(prices, self.first_slots), self.devices - used

    def enough(self, needed: float) -> bool:
        """Whether the sharpest bound that the search finds still allows `needed` requests to be served."""
        return self.least(needed) >= needed

    def least(self, needed: float) -> float:
        """The least bound on the requests served that a search finds, or some bound below `needed`."""
        best = np.full(self.segment_count, math.inf)
        prices = np.zeros(len(self.segment_of_slot))

        def found() -> float:
            return float(np.floor(best + 1e-6).sum())

        for level in (0.0, *(self.price_max * LEVEL_STEP**index for index in range(LEVELS))):
            value, _ = self.value(np.full(len(prices), level))
            prices[(value < best)[self.segment_of_slot]] = level
            best = np.minimum(best, value)
        mean, squares = np.zeros(len(prices)), np.zeros(len(prices))
        before = best.sum()
        for step in range(STEPS):
            if found() < needed:
                break
            if step and step % STEPS_JUDGED == 0:
                now = best.sum()
                if (before - now) * (STEPS - step) / STEPS_JUDGED < now - needed:
                    break
                before = now
            value, slope = self.value(prices)
            best = np.minimum(best, value)
            mean = MOMENTUM * mean + (1 - MOMENTUM) * slope
            squares = SQUARES * squares + (1 - SQUARES) * slope * slope
            size = FIRST_STEP / self.exec_of_one / (1 + step / STEP_HALVED_AFTER)
            prices = np.maximum(0.0, prices - size * mean / np.sqrt(squares + 1 - SQUARES))
        return found()


def segments(times: bounds.Floats) -> bounds.Int64s:
    """The first request of each segment."""
    gaps, found, half = np.diff(times), [0], SEGMENT_REQUESTS // 2
    while len(times) - found[-1] > 2 * SEGMENT_REQUESTS:
        begin = found[-1] + half
        found.append(begin + 1 + int(np.argmax(gaps[begin : begin + SEGMENT_REQUESTS])))
    return np.array(found, np.int64)


def rate_bound(cell: Cell, arrivals: Arrivals, requests: int, warmup_s: float, highest: float) -> float:
    """A rate (requests per second) at which one device cannot serve these arrivals; highest if none below it
    was found, or with several devices, where the search takes long and gains little.
    """
    if cell.devices > 1:
        return highest
    possible = bounds.leaves_room(MomentDual, cell, arrivals, requests, warmup_s)
    return bounds.lowest_impossible(possible, highest)
