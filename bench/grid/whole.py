"""Upper bounds on the goodput of a cell from schedules of whole devices.

The duals of bounds.py add up the devices' time, as if a device could execute half of one batch now and the
rest later. Here a device executes one batch at a time, without a break, and every schedule of all devices is
searched for the one that serves the most requests, which are all known beforehand:

- One device and one model: a dynamic program, exact for any number of requests.
- Otherwise a search over the states in which a device can be when it is free. It is exact while at most
  STATES_MAX states wait, which holds where an SLO leaves room for few requests. From there on it counts
  requests as served that may not be, so it stays an upper bound, and soon an idle one. (csrc/sim/schedules.h
  has both, with their proofs.)

Assumptions are those of the clairvoyant bound: a batch starts when its last request has arrived, ends by the
first deadline in it, and holds consecutive requests of its model. With several devices the requests of a
model are taken in order of their deadlines, as by every policy of the grid. Memory is left out, which can
only raise the bound, and with several SLOs in a model each request is given the longest of them.

*A class alone.* At most GROUP_BAD_MAX of each class may be bad. A schedule for all requests is also one for
the requests of a class, with smaller batches where it had others beside them. So the rate at which a class
could not be served, were it alone, bounds the goodput. Where a model has several SLOs this is the sharper
bound: the class has its own SLO instead of the longest. It holds for the duals in the same way.

Models whose SLO leaves no room for a batch of two, with equal times and SLOs, are searched as one model:
their requests only ask for a device. It makes the search exact with many devices.
"""

from __future__ import annotations

import numpy as np

from bench.grid import bounds, moments, stints
from bench.grid.arrivals import Arrivals, TimedArrivals
from bench.grid.cells import Cell, profiles
from clockwork.sim._bounds import most_served, most_served_by_one

STATES_MAX = 1000
"""States that wait in a search before they are joined to one."""


def served_at_most(
    cell: Cell, offered: TimedArrivals, begin_s: float, end_s: float, group: int | None = None
) -> tuple[int, int]:
    """Return (the most requests that any schedule serves, their number), of those that arrive in a window.

    group: count only the requests of this class.
    """
    curves = [bounds.curve(profile) for profile in profiles(cell)]
    exec_ns = np.zeros((len(curves), max(len(times) for times in curves)), np.int64)
    exec_ns[:] = np.iinfo(np.int64).max // 4  # sizes that a model does not have never fit
    for row, times in zip(exec_ns, curves):
        row[: len(times)] = np.floor(times)
    slos = np.asarray(cell.slos_ns(), np.int64)
    room_ns = (slos.max(axis=1) if group is None else slos[:, group]) - bounds.NETWORK_NS
    counted = (offered.t_ns >= int(begin_s * 1e9)) & (offered.t_ns < int(end_s * 1e9))
    if group is not None:
        counted &= offered.group == group
    possible = counted & (exec_ns[:, 1] <= room_ns)[offered.model]
    alike: dict[tuple[int, ...], int] = {}
    searched_as = np.array(
        [
            alike.setdefault(
                (int(row[1]), int(room)) if row[2:3].min(initial=room + 1) > room else (model,), model
            )
            for model, (row, room) in enumerate(zip(exec_ns, room_ns))
        ]
    )
    arrived, models = offered.t_ns[possible], searched_as[offered.model[possible]]
    order = np.lexsort((arrived, models))
    arrived = np.ascontiguousarray(arrived[order])
    used, starts = np.unique(models[order], return_index=True)
    if cell.devices == 1 and len(used) == 1:
        most = most_served_by_one(arrived, np.ascontiguousarray(exec_ns[used[0]]), int(room_ns[used[0]]))
    else:
        most, _ = most_served(
            arrived,
            np.append(starts, len(arrived)).astype(np.int64),
            np.ascontiguousarray(exec_ns[used]),
            np.ascontiguousarray(room_ns[used]),
            cell.devices,
            STATES_MAX,
        )
    return most, int(counted.sum())


def rate_bound(cell: Cell, arrivals: Arrivals, requests: int, warmup_s: float, highest: float) -> float:
    """A rate (requests per second) at which whole devices cannot serve these arrivals; highest if none below
    it was found.
    """
    groups: list[int | None] = [] if len(cell.classes) == 1 else list(range(len(cell.classes)))
    if bounds.in_order(cell):
        groups.append(None)

    def possible(rate: float) -> bool:
        end_s = warmup_s + cell.window_s(rate, requests)
        offered = arrivals.at(rate, end_s)
        for group in groups:
            most, count = served_at_most(cell, offered, warmup_s, end_s, group)
            if most < (1 - (bounds.BAD_MAX if group is None else bounds.GROUP_BAD_MAX)) * count:
                return False
        return True

    return bounds.lowest_impossible(possible, highest)


def every_bound(cell: Cell, seed: int, requests: int, warmup_s: float) -> dict[str, float]:
    """Every bound on the cell's goodput in requests/s, each no higher than those that it sharpens."""
    arrivals = cell.draw(seed, bounds.needed_arrivals(cell, requests, warmup_s))
    fluid = bounds.rate_bound(cell, arrivals, requests, warmup_s, clairvoyant=False)
    loose = bounds.rate_bound(
        cell, arrivals, requests, warmup_s, clairvoyant=True, any_order=cell.devices > 1
    )
    known = loose
    if bounds.in_order(cell) and cell.devices > 1:
        known = bounds.rate_bound(cell, arrivals, requests, warmup_s, clairvoyant=True)
    clairvoyant = min(known, loose, fluid)
    of_class = bounds.class_bound(cell, arrivals, requests, warmup_s, clairvoyant)
    of_stints = stints.rate_bound(cell, arrivals, requests, warmup_s, of_class)
    of_whole = rate_bound(cell, arrivals, requests, warmup_s, of_stints)
    of_moments = of_whole
    if of_whole == of_stints:  # the search had too many states
        of_moments = moments.rate_bound(cell, arrivals, requests, warmup_s, of_stints)
    return {
        "fluid": fluid,
        "clairvoyant": clairvoyant,
        "clairvoyant, any order": min(loose, fluid),
        "class": of_class,
        "stints": of_stints,
        "whole": of_whole,
        "moments": of_moments,
    }
