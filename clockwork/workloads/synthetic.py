"""A synthetic trace that resembles a real trace, for users without a copy of the latter.

Its constants are statistics of a 1,000-function sample of one day of the Azure Functions trace of 2019
(Microsoft's AzurePublicDataset, CC-BY; Shahrad et al., "Serverless in the Wild", USENIX ATC 2020; the sample
is data/traces/10-1000-10 of github.com/vhive-serverless/invitro). The sample has 11.6 million calls. The ten
hottest functions make 46 % of them, the median function 84 a day. Functions called once a minute or more, on
average, are 27 % and make 99 % of the calls. The totals of the minutes have a CV of 0.52. A fifth of the
functions are periodic, most of them with few calls (in the paper, 16 % have a timer, which makes 2 % of
calls).

With more than a thousand functions, neighbours in rank share their shape in time, as functions of an
application do. Without that, the law of large numbers would make the sum smooth, unlike the real sum.
"""

from __future__ import annotations

import numpy as np

from clockwork.config.workloads import MINUTES_MAX, SOURCES_MAX
from clockwork.errors import ConfigError
from clockwork.workloads.arrivals import Floats, Int64s
from clockwork.workloads.traces import DAY_MINUTES, Trace

SAMPLE_FUNCTIONS = 1000

SAMPLE_CALLS = {
    1: 1_209_537, 2: 768_723, 3: 681_763, 5: 481_773, 7: 307_183, 10: 258_753, 15: 205_251, 20: 120_363,
    30: 92_353, 50: 37_861, 70: 20_200, 100: 13_052, 150: 5_094, 200: 4_016, 250: 2_016, 300: 1_069, 350: 551,
    400: 336, 500: 84, 600: 31, 700: 14, 800: 7, 900: 2, 1000: 1,
}  # fmt: skip
"""Calls a day by rank of the function."""

HOTTEST_CV = (0.0, 4.5, 0.9, 3.5, 0.0, 0.35, 0.32, 1.7, 0.9, 1.3)
"""CVs over minutes of the ten hottest functions, which make most of the CV of the sum."""

SPIKE_RANK, SPIKE_CV = 22, 18.0
"""A further function that is visible in the sum: a hundredth of the day's calls, all within a few minutes."""

BUSY_RANKS = 100  # Functions up to this rank are active in nearly every minute
STEADY_SHARE = 0.27  # Part of the busy functions that have the same number of calls in every minute
BUSY_BURST_SHARE = 0.3  # Part of the other busy functions that have bursts
TIMER_RANKS = 500  # Timers are among the functions up to this rank. Colder functions have irregular calls.
TIMER_SHARE = 0.24
TIMER_PERIODS = {1: 20, 2: 4, 3: 15, 5: 20, 10: 7, 15: 7, 30: 8, 60: 25, 120: 2, 180: 3}
"""Minutes between calls of timers, with their frequency. Periods that divide an hour are aligned to the full
hour."""

DIURNAL = 0.25
"""Amplitude of the diurnal pattern around its mean, and the hour of its peak (afternoon and evening)."""
DIURNAL_PEAK_HOUR = 16

HOUR_PULL, FIVE_PULL = 5.0, 2.0
"""Factors by which bursts are more likely to begin at a full hour, or at a multiple of five minutes."""


def synthetic_trace(functions: int, days: int = 1, seed: int = 0) -> Trace:
    """Return a trace of any number of functions, hottest first, by the statistics above. Each has at least
    one call.

    With 1,000 functions the ten hottest make 46 % of the calls; with more functions, the hottest hundredth
    does.
    """
    if not 1 <= functions <= SOURCES_MAX:
        raise ConfigError(f"{functions} functions: there must be 1 to {SOURCES_MAX}")
    if not 1 <= days <= MINUTES_MAX // DAY_MINUTES:
        raise ConfigError(f"{days} days: there must be 1 to {MINUTES_MAX // DAY_MINUTES}")
    counts = np.zeros((functions, days * DAY_MINUTES), np.int32)
    calls = daily_calls(functions)
    for day in range(days):
        begin = day * DAY_MINUTES
        shape_of, weights, even = -1, np.ones(DAY_MINUTES), True
        for index in range(functions):
            shape = (2 * index + 1) * SAMPLE_FUNCTIONS // (2 * functions)
            if shape != shape_of:
                weights, even = _shape(shape, int(calls[index]), _generator(seed, day, 0, shape))
                shape_of = shape
            row = counts[index, begin : begin + DAY_MINUTES]
            if even:
                reached = np.floor(np.cumsum(weights) * calls[index] + 0.5)
                row[:] = np.diff(reached, prepend=0.0)
            else:
                row[:] = _spread(int(calls[index]), weights, _generator(seed, day, 1, index))
    return Trace(counts, tuple(f"function-{index}" for index in range(functions)))


def daily_calls(functions: int) -> Int64s:
    """Return the calls a day of each function, in falling order."""
    ranks = np.array(list(SAMPLE_CALLS), np.float64)
    calls = np.array(list(SAMPLE_CALLS.values()), np.float64)
    wanted = (np.arange(functions) + 0.5) * SAMPLE_FUNCTIONS / functions + 0.5
    logs = np.interp(np.log(wanted), np.log(ranks), np.log(calls))
    return np.maximum(1, np.round(np.exp(logs))).astype(np.int64)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key[0], spawn_key=key[1:])))


def _shape(rank: int, calls: int, rng: np.random.Generator) -> tuple[Floats, bool]:
    """Return the part of the day's calls in each minute, for a rank from 0, and whether the parts are exact
    or means."""
    if rank < len(HOTTEST_CV):
        cv = HOTTEST_CV[rank]
        if cv == 0:
            return _normal(np.ones(DAY_MINUTES)), True
        return (_restless(cv, rng) if cv < 1 else _bursts(1 / (1 + cv * cv), 40.0, 0.2, rng)), False
    if rank == SPIKE_RANK - 1:
        return _bursts(1 / (1 + SPIKE_CV * SPIKE_CV), 2.0, 0.2, rng), False
    if rank < BUSY_RANKS:
        if rng.random() < STEADY_SHARE:
            return _normal(np.ones(DAY_MINUTES)), True
        if rng.random() < BUSY_BURST_SHARE:
            cv = 1.5 * float(np.exp(0.7 * abs(rng.standard_normal())))
            return _bursts(1 / (1 + cv * cv), 5.0, 0.5, rng), False
        return _restless(0.45 * float(np.exp(0.5 * rng.standard_normal())), rng), False
    if rank < TIMER_RANKS and rng.random() < TIMER_SHARE:
        periods = [period for period in TIMER_PERIODS if 2 * calls * period >= DAY_MINUTES]
        if periods:
            chances = _normal(np.array([TIMER_PERIODS[period] for period in periods], np.float64))
            period = int(periods[int(rng.choice(len(periods), p=chances))])
            return _normal((np.arange(DAY_MINUTES) % period == 0).astype(np.float64)), True
    # Measured: a function's 13,000 calls are spread over 460 minutes, 150 calls over 41, 7 calls over 2.
    minutes = min(DAY_MINUTES, calls / 3.5, 3.3 * calls**0.52) * float(np.exp(0.4 * rng.standard_normal()))
    return _bursts(minutes / DAY_MINUTES, max(1.0, minutes / 30), 0.6, rng), False


def _diurnal() -> Floats:
    minutes = np.arange(DAY_MINUTES)
    return np.asarray(1 + DIURNAL * np.cos(2 * np.pi * (minutes / 60 - DIURNAL_PEAK_HOUR) / 24), np.float64)


def _restless(cv: float, rng: np.random.Generator) -> Floats:
    """Return weights of minutes that are always active, with a level that varies within about ten minutes."""
    sigma = float(np.sqrt(np.log1p(cv * cv)))
    noise = np.empty(DAY_MINUTES)
    level = rng.standard_normal()
    keep = 0.9
    for minute, step in enumerate(rng.standard_normal(DAY_MINUTES)):
        level = keep * level + np.sqrt(1 - keep * keep) * step
        noise[minute] = level
    return _normal(_diurnal() * np.exp(sigma * noise))


def _bursts(active: float, length: float, sigma: float, rng: np.random.Generator) -> Floats:
    """Return weights of minutes that are active in runs of a mean length, each run with a level of
    its own."""
    wanted = int(np.clip(round(active * DAY_MINUTES), 1, DAY_MINUTES))
    minutes = np.arange(DAY_MINUTES)
    pull = np.where(minutes % 60 == 0, HOUR_PULL, np.where(minutes % 5 == 0, FIVE_PULL, 1.0))
    chances = np.cumsum(_normal(_diurnal() * pull))
    weights = np.zeros(DAY_MINUTES)
    while (left := wanted - int(np.count_nonzero(weights))) > 0:
        begin = int(chances.searchsorted(rng.random() * chances[-1]))
        run = min(left, int(rng.geometric(1 / length)), DAY_MINUTES - begin)
        weights[begin : begin + run] = np.exp(sigma * rng.standard_normal())
    return _normal(weights)


def _normal(weights: Floats) -> Floats:
    return np.asarray(weights / weights.sum(), np.float64)


def _spread(calls: int, weights: Floats, rng: np.random.Generator) -> Int64s:
    """Return the number of calls in each minute, for ``calls`` calls at random minutes."""
    if calls > DAY_MINUTES:
        return rng.multinomial(calls, weights)
    edges = np.cumsum(weights)
    minutes = edges.searchsorted(rng.random(calls) * edges[-1], "right")
    return np.bincount(np.minimum(minutes, DAY_MINUTES - 1), minlength=DAY_MINUTES)
