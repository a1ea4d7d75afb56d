"""Upper bound on the goodput of a cell, whose devices execute one batch each at every moment.

The clairvoyant dual of bounds.py gives all device time one price, so a burst may use the time of the hour
before it. Here every slot of time has a price of its own. A batch pays for the slots in which it is executed,
at the start that is cheapest for it, and for every schedule

    served <= sum over models of (its served requests - prices of its batches) + devices x sum of prices,

because in no slot more than `devices` batches are executed at once. The right side is maximised for each
model by itself, by a dynamic program over batches of consecutive requests (csrc/sim/moments.h). It is a bound
at all prices. Batches keep their starts in the argument of bounds.py for consecutive requests, so it holds
here. Memory is left out, which can only raise the bound.

*Riders.* With several SLOs, requests with the shortest are the *base*, and all others ride. A batch of m
requests of the base and n riders takes exec(m + n) >= exec(m) + n x step, where step is the least by which
one request more lengthens a batch, or exec(1) if that is less. The base gets the first part of the batch, of
exec(m), and each rider a piece of `step` behind it. Then the base's batch starts and ends within its SLO, and
each piece within its rider's. So the base is priced as if it were alone, and each rider as a batch of one
request that takes `step`. A rider is worth RIDER times its step as a part of exec(1), so that riders are not
served in the base's place at prices at which the base still pays. BAD_MAX of all requests may be bad, and
GROUP_BAD_MAX of the base; a good rate serves at least what is left where the base, which is worth more, has
as many of the bad requests as it may.

With several devices, a base of several priorities may be served in another order than that of arrivals. Then
its batches may start as late as in the relaxation for any order (bounds.py).

Requests are cut into segments in order of arrival, each of which gets the devices for itself, from its first
arrival to its last deadline. The numbers that segments can serve add up to at least the number that all can
serve together. Without riders a segment serves a whole number of requests, so its bound is rounded down. Each
segment keeps the best prices that were found for it.

The search of whole.py is exact where an SLO leaves room for few requests. This bound is for all other cells,
and sharper than the dual where the load of a few SLOs differs from the mean: in bursts, and with short SLOs.
"""

from __future__ import annotations

import math

import numpy as np

from bench.grid import bounds
from bench.grid.arrivals import Arrivals, TimedArrivals
from bench.grid.cells import Cell, profiles
from clockwork.sim import fluid
from clockwork.sim._bounds import best_by_moment

SEGMENT_REQUESTS = 400
"""Requests of a segment for each device; it ends at the longest gap within this number, half of it either
way."""
SLOTS_OF_EXECUTION = 4
"""Slots in the shortest execution of one request."""
SLOTS_OF_SLACK = 8
"""Slots in the least time by which an execution of one request can be put off."""

RIDER = 2.0
"""The worth of a rider, as a multiple of its step by exec(1), both added up over the models; at most 1."""

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
        classes, base = len(cell.classes), base_of(cell)
        curves = [bounds.curve(profile) for profile in profiles(cell)]
        exec_ns = np.full((cell.models, max(len(times) for times in curves)), math.inf)
        for row, times in zip(exec_ns, curves):
            row[: len(times)] = times
        rooms_ns = np.asarray(cell.slos_ns(), np.float64) - bounds.NETWORK_NS
        # A row for each model's base, and behind these one for each class of riders of each model.
        room_ns = rooms_ns[:, list(base)].max(axis=1)
        any_order = cell.devices > 1 and len(base) > 1
        slack_ns = room_ns[:, None] - (exec_ns[:, 1:2] if any_order else exec_ns)
        slack_ns = np.where(exec_ns <= room_ns[:, None], slack_ns, -math.inf)
        step_ns = np.array([least_step(times, room) for times, room in zip(curves, rooms_ns.max(axis=1))])
        rider_ns = np.full((classes * cell.models, exec_ns.shape[1]), math.inf)
        rider_ns[:, 1] = np.tile(step_ns, classes)
        rider_slack_ns = rooms_ns.T.reshape(-1, 1) - rider_ns
        takes_ns = np.concatenate((exec_ns, rider_ns))
        waits_ns = np.concatenate((slack_ns, rider_slack_ns))
        self.rider_worth = min(1.0, RIDER * float(step_ns.sum() / exec_ns[:, 1].sum()))

        counted = (offered.t_ns >= int(begin_s * 1e9)) & (offered.t_ns < int(end_s * 1e9))
        times_ns, models = offered.t_ns[counted].astype(np.float64), offered.model[counted]
        classed = offered.group[counted].astype(np.int64)
        rides = ~np.isin(classed, base)
        self.count = len(times_ns)
        self.riders = int(rides.sum())
        first = segments(times_ns, SEGMENT_REQUESTS * cell.devices)
        last = np.append(first[1:], self.count) - 1
        self.segment_count = len(first)
        least_slack_ns = (slack_ns[:, 1])[slack_ns[:, 1] > 0].min(initial=math.inf)
        slot_ns = min(exec_ns[:, 1].min() / SLOTS_OF_EXECUTION, least_slack_ns / SLOTS_OF_SLACK)
        fits = waits_ns >= 0
        reach_ns = (takes_ns[fits] + waits_ns[fits]).max(initial=0.0)
        length = np.ceil((times_ns[last] - times_ns[first] + reach_ns) / slot_ns).astype(np.int64) + 1
        self.devices = cell.devices
        self.first_slots = np.concatenate(([0], np.cumsum(length)[:-1]))
        self.segment_of_slot = np.repeat(np.arange(self.segment_count), length)
        segment = np.repeat(np.arange(self.segment_count), last - first + 1)
        kind = models + np.where(rides, (1 + classed) * cell.models, 0)
        group = segment * len(takes_ns) + kind
        order = np.argsort(group, kind="stable")
        arrived = (times_ns - times_ns[first][segment]) / slot_ns + self.first_slots[segment]
        self.arrived = np.ascontiguousarray(arrived[order])
        used, starts = np.unique(group[order], return_index=True)
        self.starts = np.append(starts, self.count).astype(np.int64)
        self.segment_of_group = used // len(takes_ns)
        kind_of_group = used % len(takes_ns)
        self.exec = np.ascontiguousarray(takes_ns[kind_of_group] / slot_ns)
        self.slack = np.ascontiguousarray(waits_ns[kind_of_group] / slot_ns)
        self.worth = np.where(kind_of_group < cell.models, 1.0, self.rider_worth)
        self.exec_of_one = float(exec_ns[:, 1].min() / slot_ns)
        shares = exec_ns[:, 1:] / np.arange(1, exec_ns.shape[1])
        self.price_max = float(slot_ns / shares.min())

    @property
    def needed(self) -> float:
        """The least that the served requests of a good rate are worth."""
        own = self.count - self.riders
        bad_max = bounds.BAD_MAX * self.count
        bad_own = min(bad_max, bounds.GROUP_BAD_MAX * own) if self.riders else bad_max
        return own - bad_own + self.rider_worth * (self.riders - (bad_max - bad_own))

    def value(self, prices: bounds.Floats) -> tuple[bounds.Floats, bounds.Floats]:
        """(the bound on what each segment serves, in worth; its slope by the price of each slot)."""
        values, used = np.zeros(len(self.worth)), np.zeros(len(prices))
        up_to = np.concatenate(([0.0], np.cumsum(prices)))
        best_by_moment(self.arrived, self.starts, self.exec, self.slack, self.worth, up_to, values, used)
        worth = np.bincount(self.segment_of_group, values, self.segment_count)
        return worth + self.devices * np.add.reduceat(prices, self.first_slots), self.devices - used

    def enough(self, needed: float) -> bool:
        """Whether the sharpest bound that the search finds still allows requests worth `needed` to be
        served."""
        return self.least(needed) >= needed

    def least(self, needed: float) -> float:
        """The least bound on the worth of the served that a search finds, or some bound below `needed`."""
        best = np.full(self.segment_count, math.inf)
        prices = np.zeros(len(self.segment_of_slot))

        def found() -> float:
            return float((best if self.riders else np.floor(best + 1e-6)).sum())

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
            mean = MOMENTUM * mean + (1 - MOMENTUM) * slope / self.devices
            squares = SQUARES * squares + (1 - SQUARES) * (slope / self.devices) ** 2
            size = FIRST_STEP / self.exec_of_one / (1 + step / STEP_HALVED_AFTER)
            prices = np.maximum(0.0, prices - size * mean / np.sqrt(squares + 1 - SQUARES))
        return found()


def least_step(times: bounds.Floats, room_ns: float) -> float:
    """The least time in ns by which one request more lengthens a batch that ends within room_ns, or that it
    takes alone."""
    limit = fluid.batch_limit(times, room_ns)
    return float(np.diff(times[: limit + 1]).min()) if limit else 0.0


def segments(times: bounds.Floats, length: int) -> bounds.Int64s:
    """The first request of each segment of about `length` requests."""
    gaps, found, half = np.diff(times), [0], length // 2
    while len(times) - found[-1] > 2 * length:
        begin = found[-1] + half
        found.append(begin + 1 + int(np.argmax(gaps[begin : begin + length])))
    return np.array(found, np.int64)


def base_of(cell: Cell) -> tuple[int, ...]:
    """The classes with the cell's shortest SLO: all classes if they have the same."""
    slos = np.asarray(cell.slos_ns(), np.int64).max(axis=0)
    return tuple(np.flatnonzero(slos == slos.min()).tolist())


def rate_bound(cell: Cell, arrivals: Arrivals, requests: int, warmup_s: float, highest: float) -> float:
    """A rate (requests per second) at which the devices cannot serve these arrivals; highest if none below it
    was found.
    """

    def possible(rate: float) -> bool:
        end_s = warmup_s + cell.window_s(rate, requests)
        offered = arrivals.at(rate, end_s)
        dual = MomentDual(cell, offered, warmup_s, end_s)
        return dual.enough(dual.needed)

    return bounds.lowest_impossible(possible, highest)
