"""An upper bound on the requests that any policy could serve of known arrivals, for identical resident
models.

The relaxation is that of bench/grid/bounds.py: device time has a price, for each model a dynamic program
finds the best batches of consecutive requests at that price, and at every price

served <= value of the served requests - price * their device time + price * the available device time.
"""

from __future__ import annotations

import numpy as np

from bench.paper.common import EXEC_NOISE, LINK_NS, MS, input_ns
from clockwork.formats.profiles import ModelProfile
from clockwork.sim._bounds import best_batches
from clockwork.workloads import Arrivals

NOISE_SIGMAS = 4
"""Standard deviations of noise by which a device may be faster than its profile."""

STEPS = 40
"""Tolerance of the search for the best price: an inexact price leaves the bound valid, only less tight."""


def most_served(arrivals: Arrivals, models: int, profile: ModelProfile, devices: int, slo_ns: int) -> float:
    """An upper bound on the requests answered in time, for identical models that are resident everywhere."""
    if not len(arrivals):
        return 0.0
    order = np.argsort(arrivals.model, kind="stable")
    arrived = np.ascontiguousarray(arrivals.t_ns[order], np.int64)
    starts = np.searchsorted(arrivals.model[order], np.arange(models + 1)).astype(np.int64)
    batches = range(1, profile.largest_batch() + 1)
    curve = np.array([0, *(profile.execution_ns(batch) for batch in batches)]) * (
        1 - NOISE_SIGMAS * EXEC_NOISE
    )
    room = slo_ns - 2 * LINK_NS - input_ns(profile)
    spans = np.maximum(np.floor(room - curve), -1).astype(np.int64)
    spans[0] = -1
    exec_ns = np.tile(curve, (models, 1))
    span_ns = np.tile(spans, (models, 1))
    budget = devices * float(arrived.max() - arrived.min() + slo_ns)
    worth = np.ones(len(arrived))
    served = np.zeros(len(arrived), np.uint8)

    def value(price: float) -> float:
        total, _ = best_batches(arrived, worth, starts, exec_ns, span_ns, price, served)
        return total + price * budget

    # The bound is convex in the price. At 1 / MS of device time serving a request never pays.
    low, high, best = 0.0, 4.0 / MS, value(0.0)
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(STEPS):
        best = min(best, at_left, at_right)
        if best <= 0 or high - low < 1e-4 / MS:
            break
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = value(right)
    return min(best, float(len(arrived)))
