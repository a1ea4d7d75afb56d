"""Upper bound on the goodput of a cell with memory for a part of its models, where copies of models are
whole.

The duals of bounds.py charge memory only for the time between two requests of a model that exceeds the SLO,
each time anew, as if a request could be executed at its arrival and at its deadline, and as if loads and
executions needed no memory. Here memory is charged by *stints*. A stint is the time from the beginning of a
copy's load into an arena to the end of its last batch there. All pages of the model are there for the
whole stint, its weights cross the link once, and its first batch starts after the load.

A stint whose first batch holds a request that arrived at a, and whose last batch of b requests holds one that
arrived at z, occupies its pages for at least

    load + exec(b) + max(0, z - (a + room - exec(1))),     room = SLO - network,

because its first batch starts by a + room - exec(1), and its last one not before z. A stint that began before
the window W is charged from W to z + exec(b), and no load. In a cold cell there is none.

As in bounds.py, device time, link time and memory have prices, and for every schedule

    served <= sum over models of (its served requests - cost of its batches and stints) + prices . budgets.

The right side is maximised over batches and stints for each model by itself (csrc/sim/stints.h), at prices
that an inexact search finds, which can only make it loose. Batches may be taken to be of consecutive requests
(bounds.py), and stints to be of consecutive batches, in the order of their starts. For let the stints of a
model on several devices be taken by the index of their first and last batch:
  - If one lies within another, its batches are charged to the other, and it is left out.
  - If two cross, the batches in both ranges are charged to the first. The second then begins with a later
    request, and is charged no more.
Batches keep their device time. The order of a model's requests is that of their deadlines, as under every
policy of the grid; with one device it makes no difference. With several SLOs in a model, each request is
given the longest of them.

Budgets, of D devices that execute from A arenas with P pages each, for the requests that arrive within
[W, W + T], S the longest SLO: D (T + S) of device time, A (T + S) of link time, and of time for each page.
Copies are whole, so P is lowered to a multiple of the largest number that divides every model's pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bench.grid import bounds
from bench.grid.arrivals import Arrivals, TimedArrivals
from bench.grid.cells import LOAD_NOISE, PAGE_BYTES, Cell, profiles
from clockwork.sim._bounds import best_stints

STARTS = ((0.9, 0.05, 0.05), (0.1, 0.5, 0.4))
"""Prices from which the search begins: the parts of the requests that all device time, all link time and all
memory are worth."""

FACTORS = (4.0, 4.0, 4.0, 2.8, 2.2, 1.8, 1.55, 1.4, 1.28, 1.2, 1.15, 1.11, 1.08)
"""Factors by which the search changes a price, in turn."""

Value = Callable[[bounds.Floats], tuple[float, bounds.Floats]]


class StintDual:
    """The dual function of one cell's requests at one rate."""

    def __init__(self, cell: Cell, offered: TimedArrivals, begin_s: float, end_s: float) -> None:
        served = profiles(cell)
        begin, end = int(begin_s * 1e9), int(end_s * 1e9)
        order = np.argsort(offered.model, kind="stable")
        order = order[(offered.t_ns[order] >= begin) & (offered.t_ns[order] < end)]
        self.models = offered.model[order]
        self.arrived_ns = (offered.t_ns[order] - begin).astype(np.float64)
        self.count = len(order)
        self.starts = np.searchsorted(self.models, np.arange(cell.models + 1)).astype(np.int64)
        curves = [bounds.curve(profile) for profile in served]
        self.exec_ns = np.full((cell.models, max(len(times) for times in curves)), math.inf)
        for row, times in zip(self.exec_ns, curves):
            row[: len(times)] = times
        slos = np.asarray(cell.slos_ns(), np.float64).max(axis=1)
        self.room_ns = slos - bounds.NETWORK_NS
        self.load_ns = np.array([profile.load_ns for profile in served]) * (
            1 - bounds.NOISE_SIGMAS * LOAD_NOISE
        )
        pages = [profile.pages(PAGE_BYTES) for profile in served]
        self.pages = np.array(pages, np.float64)
        self.held = not cell.cold
        usable = cell.page_count - cell.page_count % math.gcd(*pages)
        each_ns = float(end - begin + slos.max())
        self.budgets = np.array(
            [cell.devices * each_ns, cell.arenas * each_ns, cell.arenas * each_ns * usable]
        )

    def value(self, prices: bounds.Floats) -> tuple[float, bounds.Floats]:
        """(the bound on the requests served, at these prices; its slope by each price)."""
        device, link, page = (float(price) for price in prices)
        found, used = best_stints(
            self.arrived_ns,
            self.starts,
            self.exec_ns,
            self.room_ns,
            self.load_ns,
            self.pages,
            self.held,
            device,
            link,
            page,
        )
        return found + float(prices @ self.budgets), self.budgets - np.array(used)

    def enough(self, needed: float) -> bool:
        """Whether the sharpest bound that the search finds still allows `needed` requests to be served."""
        gap = bounds.GAP * self.count
        return all(
            least(self.value, np.array(shares) * self.count / self.budgets, needed, gap) >= needed
            for shares in STARTS
        )


def least(value: Value, start: bounds.Floats, needed: float, gap: float) -> float:
    """The least value that a search finds of a convex function of prices > 0, or some value below `needed`.

    The prices' scales are unknown, and the best ones often near 0, so each in turn is multiplied and divided
    by factors that shrink. Where no budget is exceeded, what the prices' requests use is worth slope . prices
    less than the budgets, and no price has a value below value - slope . prices. The search ends there if
    that is not below `needed`, or within `gap` of the value.
    """
    prices = start
    best, slope = value(prices)
    for factor in FACTORS:
        for place in range(len(prices)):
            for multiple in (factor, 1 / factor):
                unused = float(slope @ prices)
                if best < needed or (slope.min() >= 0 and (best - unused >= needed or unused <= gap)):
                    return best
                tried = prices.copy()
                tried[place] *= multiple
                found, slope_there = value(tried)
                if found < best:
                    best, slope, prices = found, slope_there, tried
                    break
    return best


def rate_bound(cell: Cell, arrivals: Arrivals, requests: int, warmup_s: float, highest: float) -> float:
    """A rate (requests per second) at which memory, links and devices cannot serve these arrivals; highest if
    none below it was found, or if the bound does not hold in this cell.
    """
    if cell.resident or not bounds.in_order(cell):
        return highest
    possible = bounds.leaves_room(StintDual, cell, arrivals, requests, warmup_s)
    return bounds.lowest_impossible(possible, highest)
