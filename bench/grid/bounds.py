"""Upper bounds on the goodput of a cell, which no policy can exceed.

Both bounds are the Lagrangian dual of one relaxation, computed on the very requests that the policies got. A
schedule uses three scarce resources over a window of T seconds: device time, link time (loads) and memory
(pages times time). Each has a price >= 0. For every schedule,

    served <= sum over served requests of (1 - its cost at these prices) + prices . budgets

because a schedule cannot use more than the budgets. The right side, maximised for each model by itself, is
therefore an upper bound at *every* price, and the prices that make it smallest only make it sharper: an
inexact search for them loses tightness, never validity.

Budgets, of D devices that execute from A arenas with P pages each, for the requests that arrive within the
window [W, W + T]:
  device time  D (T + S), S the longest SLO: their batches run between W and W + T + S.
  link time    A (T + S), each arena loading one model at a time.
  memory       A P T.

Cost of executing. A batch of b costs exec(b).
  *fluid*: a request of model m costs at least min exec(b) / b over the b that its SLO leaves room for,
  exec(b) + network <= SLO. With several SLOs in a model, a batch that mixes them is limited by the tightest
  of its members, so charging each request the minimum over the b of its own SLO charges no batch more than it
  costs.
  *clairvoyant*: per model, a dynamic program over the known arrivals finds the best batches. A batch starts
  when its last request has arrived and ends by the earliest deadline in it, so its arrivals span at most SLO
  - network - exec(b). An exchange argument shows that batches may be taken to be of *consecutive* requests
  (equal SLOs; exec never falls with b, which is enforced by lowering it where it does):
    - A request left out inside a batch's span can take the place of the batch's first: the span shrinks.
    - Two batches whose spans cross without one lying inside the other: sort their requests, give the first a
      to the one that began first. Neither's last arrival gets later nor its first earlier.
    - One span inside the other, the inner batch not larger: every span allowed to the outer is allowed to the
      inner, so any cut of the sorted requests will do.
    - One span inside the other and the inner batch *larger*: needs a small batch that starts during the large
      one's execution and ends before it, on another device. Impossible on one device; nor does it happen
      under any policy that takes a model's requests in order of their deadlines, as all here do. For those
      that do not, any_order=True relaxes: number the batches by start and give the served requests out in
      order. Every last arrival is then in time, and the earliest deadline of a batch is at least the earliest
      end of those that start no earlier, at least its own start + exec(1): spans of SLO - network - exec(1).
  With several SLOs in a model, each request is given the longest of them, a relaxation after which this
  holds; the fluid bound, which does not do so, may then be the sharper one. Order of deadlines, or of
  priorities, is then not that of arrivals, so with several devices any_order is needed.

Cost of residency (cells whose models do not all fit). A *stint* is the time that a model is on a device
without a break, its load included; a batch runs inside one. Take a served request i of model m, j the one of
m that arrived just before it. In i's stint, either
    - some earlier request of the window was served: the last such, j' <= j, was done by its deadline, so the
      model was held from arrival(j') + S to arrival(i): at least the gap between j and i less S; or
    - i is the first, and the stint began before W: the model was held from W to arrival(i); or
    - i is the first, and its stint began within the window: one whole load is i's alone.
The times charged in this way lie between neighbours of one stint, so they are disjoint and their sum is no
more than the memory. So i pays at least min(price of a load, price of its pages x (arrival(i) - max(W,
arrival(j) + S))). This minimum couples loads with memory; nothing is assumed about placement or eviction. In
a cold cell nothing is on a device at W, and a model's first request pays a load.

The bound on goodput is the lowest rate found at which not even 99 % of the requests could be served. The
limit of 2 % for each group is left out, which can only raise it. Durations are taken NOISE_SIGMAS below their
mean.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench.grid.arrivals import Arrivals, TimedArrivals
from bench.grid.cells import (
    EXEC_NOISE,
    LINK_NS,
    LOAD_NOISE,
    PAGE_BYTES,
    Cell,
    profiles,
)
from clockwork.formats.profiles import ModelProfile
from clockwork.sim import fluid
from clockwork.sim._bounds import best_batches

BAD_MAX = 0.01
"""Largest bad part of all requests."""
GROUP_BAD_MAX = 0.02
"""Largest bad part of the requests of each popularity decile, and of each class."""
NOISE_SIGMAS = 4
NETWORK_NS = 2 * LINK_NS  # fixed delay, to which jitter is added

RATE_STEP = 1.002
"""Width of the bracket at which the bisection of the rate ends."""

GAP = 1e-4
"""Part of the requests by which a sharper bound could still differ when the search for prices ends."""
STEPS_MAX = 120

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


def curve(profile: ModelProfile) -> Floats:
    """Execution time of every batch size in ns, which never falls with the size; entry 0 is unused."""
    return fluid.curve(profile, NOISE_SIGMAS * EXEC_NOISE)


def batch_limit(times: Floats, slo_ns: int) -> int:
    """The largest batch that fits into an SLO; 0 if none does."""
    return fluid.batch_limit(times, slo_ns - NETWORK_NS)


def cheapest(times: Floats, slo_ns: int) -> float:
    """The least device time that a request can cost, ns; infinite where no batch fits its SLO."""
    return fluid.cheapest(times, slo_ns - NETWORK_NS)


def fluid_rate(cell: Cell) -> float:
    """Requests per second that devices with every model can execute, without the most expensive 1 %."""
    classes = len(cell.classes)
    costs = []
    for profile, share, slos in zip(profiles(cell), cell.shares(), cell.slos_ns()):
        times = curve(profile)
        costs += [(cheapest(times, slo), share / classes) for slo in slos]
    return fluid.fluid_rate(costs, cell.devices, BAD_MAX)


@dataclasses.dataclass(frozen=True)
class Hold:
    """The cost of residency of each request, by price; absent where every device holds every model."""

    load_ns: Floats  # for each request, the load time of its model
    # for each request, pages x time held since the request before; infinite where a load is certain
    pages_ns: Floats


class Relaxation:
    """The dual function of one cell's requests at one rate."""

    def __init__(
        self,
        cell: Cell,
        offered: TimedArrivals,
        begin_s: float,
        end_s: float,
        *,
        clairvoyant: bool,
        any_order: bool = False,
        group: int | None = None,
    ) -> None:
        """group: the requests of this class alone."""
        served = profiles(cell)
        slos = np.asarray(cell.slos_ns(), np.int64)
        if group is not None:
            own = offered.group == group
            offered = TimedArrivals(offered.t_ns[own], offered.model[own], np.zeros_like(offered.group[own]))
            slos = slos[:, group : group + 1]
        begin, end = int(begin_s * 1e9), int(end_s * 1e9)
        # By model, each model's in order of time.
        order = np.argsort(offered.model, kind="stable")
        times, models, groups = offered.t_ns[order], offered.model[order], offered.group[order]
        within = (times >= begin) & (times < end)
        longest = slos.max(axis=1)
        span = end - begin
        pages = np.array([profile.pages(PAGE_BYTES) for profile in served])
        loads = np.array([profile.load_ns for profile in served]) * (1 - NOISE_SIGMAS * LOAD_NOISE)
        self.hold: Hold | None = None
        if not cell.resident:
            before = np.full(len(times), begin, np.int64)
            same = models[1:] == models[:-1]
            before[1:][same] = np.maximum(begin, times[:-1][same] + longest[models[1:][same]])
            held = np.maximum(times - before, 0).astype(np.float64) * pages[models]
            if cell.cold:
                held[np.concatenate(([True], ~same))] = math.inf
            self.hold = Hold(loads[models][within], held[within])
        self.arrived = np.ascontiguousarray(times[within])
        self.models, self.groups = models[within], groups[within]
        self.count = len(self.arrived)
        self.starts = np.searchsorted(self.models, np.arange(cell.models + 1)).astype(np.int64)
        slo_max = int(longest.max())
        device_ns = float(cell.devices * (span + slo_max))
        link_ns = float(cell.arenas * (span + slo_max))
        self.budgets = np.array([device_ns, link_ns, float(cell.arenas * cell.page_count) * span])
        curves = [curve(profile) for profile in served]
        costs = np.array([[cheapest(times, int(slo)) for slo in row] for times, row in zip(curves, slos)])
        self.cost = costs[self.models, self.groups]  # for each request, its cost in the fluid bound
        self.clairvoyant = clairvoyant
        width = max(len(exec_ns) for exec_ns in curves)
        self.exec_ns = np.zeros((cell.models, width))
        self.span_ns = np.full((cell.models, width), -1, np.int64)
        for model, exec_ns in enumerate(curves):
            room = int(longest[model]) - NETWORK_NS
            self.exec_ns[model, : len(exec_ns)] = exec_ns
            spans = np.floor(room - exec_ns[1:])
            self.span_ns[model, 1 : len(exec_ns)] = (
                np.where(spans >= 0, math.floor(room - exec_ns[1]), -1)
                if any_order
                else np.maximum(spans, -1)
            )
        if clairvoyant:
            # Requests that no batch can serve within their SLO are excluded.
            self.possible = np.isfinite(self.cost)

    @property
    def prices_max(self) -> Floats:
        """Prices (of a ns of device, of link, of a page-ns) at which serving a request never pays."""
        finite = self.cost[np.isfinite(self.cost)]
        device = 1 / finite.min() if len(finite) else 0.0
        if self.hold is None or not self.count:
            return np.array([device, 0.0, 0.0])
        held = self.hold.pages_ns[np.isfinite(self.hold.pages_ns) & (self.hold.pages_ns > 0)]
        return np.array(
            [device, 1 / self.hold.load_ns.min(), 1 / float(np.median(held)) if len(held) else 0.0]
        )

    def value(self, prices: Floats) -> tuple[float, Floats]:
        """(the bound on the requests served, at these prices; its slope by each price)."""
        worth = np.ones(self.count)
        loaded = held = None
        if self.hold is not None:
            by_load = prices[1] * self.hold.load_ns
            with np.errstate(invalid="ignore"):
                by_hold = np.where(np.isinf(self.hold.pages_ns), math.inf, prices[2] * self.hold.pages_ns)
            loaded = by_load <= by_hold
            held = np.where(loaded, 0.0, self.hold.pages_ns)
            worth -= np.minimum(by_load, by_hold)
        used = np.zeros(3)
        if self.clairvoyant:
            worth[~self.possible] = -1.0
            served = np.zeros(self.count, np.uint8)
            total, used[0] = best_batches(
                self.arrived, worth, self.starts, self.exec_ns, self.span_ns, float(prices[0]), served
            )
            chosen = served.astype(bool)
        else:
            with np.errstate(invalid="ignore"):
                gain = np.where(np.isfinite(self.cost), worth - prices[0] * self.cost, -1.0)
            chosen = gain > 0
            total = float(gain[chosen].sum())
            used[0] = float(self.cost[chosen].sum())
        if self.hold is not None and loaded is not None and held is not None:
            used[1] = float(self.hold.load_ns[chosen & loaded].sum())
            used[2] = float(held[chosen].sum())
        return total + float(prices @ self.budgets), self.budgets - used

    def enough(self, needed: float) -> bool:
        """Whether the sharpest bound that the search finds still allows `needed` requests to be served."""
        return minimum(self.value, self.prices_max, needed, GAP * self.count) >= needed


def minimum(
    value: Callable[[Floats], tuple[float, Floats]], prices_max: Floats, needed: float, gap: float
) -> float:
    """The least value of a convex function of prices >= 0, or some value below `needed` if the search finds
    one.

    The method is that of ellipsoids, in prices scaled by prices_max; along a line it is bisection.
    """
    scale = prices_max[prices_max > 0]
    free = np.flatnonzero(prices_max > 0)
    size = len(free)
    best = math.inf
    if not size:
        return value(np.zeros(3))[0]

    def at(point: Floats) -> tuple[float, Floats]:
        prices = np.zeros(3)
        prices[free] = point * scale
        found, slope = value(prices)
        return found, slope[free] * scale

    centre = np.full(size, 0.5)
    shape = np.eye(size) * (size * 0.25 if size == 1 else size)  # holds the box from 0 to 1, and more
    for _ in range(STEPS_MAX):
        if centre.min() < 0:
            slope = np.where(np.arange(size) == int(centre.argmin()), -1.0, 0.0)
        else:
            found, slope = at(centre)
            best = min(best, found)
            reach = math.sqrt(max(float(slope @ shape @ slope), 0.0))
            if best < needed or found - reach >= needed or reach <= gap:
                return best
        along = shape @ slope
        length = math.sqrt(max(float(slope @ along), 1e-300))
        step = along / length
        centre = centre - step / (size + 1)
        if size == 1:
            shape = shape / 4
        else:
            shape = size**2 / (size**2 - 1) * (shape - 2 / (size + 1) * np.outer(step, step))
    return best


class Dual(Protocol):
    """A relaxation of what a cell can serve of the arrivals in a window, by the prices of its resources."""

    count: int  # requests

    def enough(self, needed: float) -> bool:
        """Whether so many requests can be served as far as the relaxation knows."""
        ...


def leaves_room(
    dual: Callable[[Cell, TimedArrivals, float, float], Dual],
    cell: Cell,
    arrivals: Arrivals,
    requests: int,
    warmup_s: float,
) -> Callable[[float], bool]:
    """Whether a kind of dual leaves room for a good rate, for a search by rate."""

    def possible(rate: float) -> bool:
        end_s = warmup_s + cell.window_s(rate, requests)
        relaxed = dual(cell, arrivals.at(rate, end_s), warmup_s, end_s)
        return relaxed.enough((1 - BAD_MAX) * relaxed.count)

    return possible


def rate_bound(
    cell: Cell,
    arrivals: Arrivals,
    requests: int,
    warmup_s: float,
    *,
    clairvoyant: bool,
    any_order: bool = False,
) -> float:
    """A rate (requests per second) at which these arrivals cannot be served: above every policy's goodput."""
    dual = functools.partial(Relaxation, clairvoyant=clairvoyant, any_order=any_order)
    possible = leaves_room(dual, cell, arrivals, requests, warmup_s)
    high = fluid_rate(cell)
    if high == 0:
        return 0.0
    while possible(high):  # chance, and the ends of the window, may leave room
        high *= 1.02
    return lowest_impossible(possible, high)


def class_bound(cell: Cell, arrivals: Arrivals, requests: int, warmup_s: float, highest: float) -> float:
    """A rate at which the requests of some class could not be served, were they alone; highest if none below
    it was found.
    """

    def possible(rate: float) -> bool:
        end_s = warmup_s + cell.window_s(rate, requests)
        offered = arrivals.at(rate, end_s)
        for group in range(len(cell.classes)):
            relaxed = Relaxation(cell, offered, warmup_s, end_s, clairvoyant=True, group=group)
            if not relaxed.enough((1 - GROUP_BAD_MAX) * relaxed.count):
                return False
        return True

    return lowest_impossible(possible, highest) if len(cell.classes) > 1 else highest


def lowest_impossible(possible: Callable[[float], bool], high: float) -> float:
    """The lowest rate up to `high` that a bisection finds impossible; high if it is possible."""
    if high == 0 or possible(high):
        return high
    lowest = high / 1e6
    low = high / 1.1
    while not possible(low):
        high, low = low, low / 1.5
        if low < lowest:
            raise ValueError(f"nothing can be served at {low:g} requests a second")
    while high / low > RATE_STEP:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if possible(middle) else (low, middle)
    return high


def in_order(cell: Cell) -> bool:
    """Whether a model's requests are taken in order of arrival by every policy that goes by deadlines.

    True also where the order makes no difference to the bound: on one device.
    """
    return cell.devices == 1 or len(cell.classes) == 1


def needed_arrivals(cell: Cell, requests: int, warmup_s: float, overload: float = 1.0) -> int:
    """Arrivals to draw so that every rate up to the fluid bound times `overload` has a whole window.

    Chance may leave room for more than the fluid bound, most of all in a window of few bursts.
    """
    rate = fluid_rate(cell) * (2 if cell.cold else 1.3) * overload
    return math.ceil(1.1 * rate * (warmup_s + cell.window_s(rate, requests))) + requests // 5 + 1000
