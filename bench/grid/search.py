"""The search for a goodput: the highest passing rate below which every tried rate passes, too."""

from __future__ import annotations

import math
from collections.abc import Callable

RUNGS = (0.05, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0)
"""Parts of the bound, tried in rising order until one fails, to detect a policy that fails at low rates."""

STEP = 1.1
"""Factor by which the bracket grows beyond the last rung, and around a guess."""
NARROW = 1.03
"""Initial factor between a guess and each end of its bracket."""

NOTHING = 1e-3
"""Part of the bound at which a failing policy gets a goodput of 0."""


def goodput(passes: Callable[[float], bool], bound: float, guess: float, tolerance: float) -> float:
    """The highest passing rate, within a factor of `tolerance`; 0 if none passes.

    guess: an estimate of that rate; 0: unknown, and the rungs are climbed from below. `passes` is called once
    for each rate.
    """
    if bound <= 0:
        return 0.0
    low, high = _around(passes, guess, bound * NOTHING) if guess > 0 else _climb(passes, bound)
    if low == 0:
        return 0.0
    while high / low > tolerance:
        middle = math.sqrt(low * high)
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def _climb(passes: Callable[[float], bool], bound: float) -> tuple[float, float]:
    low = 0.0
    for rung in RUNGS:
        if not passes(rung * bound):
            return (low, rung * bound) if low else _descend(passes, rung * bound, bound * NOTHING)
        low = rung * bound
    while passes(low * STEP):
        low *= STEP
    return low, low * STEP


def _descend(passes: Callable[[float], bool], high: float, floor: float) -> tuple[float, float]:
    low = high / 2
    while not passes(low):
        high, low = low, low / 2
        if low < floor:
            return 0.0, high
    return low, high


def _around(passes: Callable[[float], bool], guess: float, floor: float) -> tuple[float, float]:
    low, high = guess / NARROW, guess * NARROW
    if not passes(low):
        step = STEP
        while True:
            high, low = low, low / step
            if low < floor:
                return 0.0, high
            if passes(low):
                return low, high
            step *= STEP
    while passes(high):
        low, high = high, high * STEP
    return low, high
