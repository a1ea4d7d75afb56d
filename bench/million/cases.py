"""The paper's cluster, its models and noise, and the workloads that are offered to it at a part of its
capacity.

Times of executions are noisier than in the figures of bench.paper, so that the controller's mispredictions
are at least the published ones (Fig. 10: p99 of 144 us over and 55 us under), and as many executions as the
paper says were mispredicted take twice their time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.paper.common import MS, SECOND, v100s
from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile, paper_instances
from clockwork.sim import Cluster, Open, Report, simulate
from clockwork.workloads import Trace, Workload, gamma, poisson, rehearsed, replay, synthetic_trace, zipf
from clockwork.workloads.arrivals import Floats
from clockwork.workloads.generators import Segment

DEVICES = 12
SLO_NS = 100 * MS
EXEC_NOISE = 0.01
"""Sigma of an execution's time."""
OUTLIER = 58 / 208e6
"""Part of the actions that take twice their time: the paper's mispredicted requests, of all its requests."""

FUNCTIONS = 16_104
"""Functions of the synthetic trace: four for each model, as in bench.paper's Fig. 9."""
TRACE_SEED = 0
MINUTES = 1440
ZIPF = 0.9
CV = 4.0

WORKLOADS = {
    "trace": "the made-up Azure trace of bench.paper's Fig. 9 in original order: each minute's mix of functions,"
    " Poisson, at a constant total rate",
    "poisson": f"Poisson arrivals, models by Zipf {ZIPF:g} in random order",
    "bursty": f"the same models, each with gamma gaps of a coefficient of variation of {CV:g}",
}

WARMUP_NS = 5 * SECOND
"""Time before each part that repeats the part's beginning and is not counted: loads of hot models."""

CAPACITY_REQUESTS = 100_000
CAPACITY_BAD_MAX = 0.01
"""Largest part outside of the SLO at a rate that counts as within capacity."""
CAPACITY_STEP = 1.02
CAPACITY_FROM = 500.0
CAPACITY_UNTIL = 20_000.0
CAPACITY_PLACES = 8
"""Places of the day at which the trace's capacity is measured; their mean counts."""


class Level(replay):
    """A replay whose total rate is the same in every minute; each minute has its own mix of functions."""

    def __init__(self, trace: Trace, models: int, duration_ns: int, rate: float, **more: Any) -> None:
        super().__init__(trace, models, duration_ns, rate=rate, **more)
        self._rate = rate
        self._totals = trace.minutes()

    def segments(self) -> Iterator[Segment]:
        for minute, used_ns in self._minutes():
            mix = self._counts[self._order, minute] / max(1, int(self._totals[minute]))
            yield Segment(used_ns, np.asarray(mix * self._rate, np.float64))


@functools.cache
def models(with_inputs: bool = True) -> list[ModelProfile]:
    """The paper's 4,026 models with an SLO of 100 ms."""
    changed: dict[str, Any] = {"slo_ns": SLO_NS} | ({} if with_inputs else {"input_bytes": 0})
    return [dataclasses.replace(instance, **changed) for instance in paper_instances()]


@functools.cache
def trace() -> Trace:
    return synthetic_trace(FUNCTIONS, seed=TRACE_SEED)


@functools.cache
def popularity() -> Floats:
    """The part of the requests of each model under Zipf; which models are hot is drawn once."""
    shares = np.asarray(zipf(len(models()), ZIPF))
    return np.random.default_rng(TRACE_SEED).permutation(shares)


def cluster(with_inputs: bool = True) -> Cluster:
    """12 V100s, one to a worker; without inputs no time of theirs on links."""
    more = {} if with_inputs else {"input_bandwidth": 0, "copy_bandwidth": 0}
    return v100s(DEVICES, exec_noise=EXEC_NOISE, outlier=OUTLIER, **more)


def offered(workload: str, rate: float, seed: int, minute: int) -> Callable[[int], Workload]:
    """The first nanoseconds of a workload, as many as the function's argument says. minute: of the trace."""
    if workload == "trace":
        return lambda ns: Level(
            trace(), len(models()), ns, rate, begin_minute=minute % MINUTES, seed=seed, slo_ns=SLO_NS
        )
    if workload == "poisson":
        return lambda ns: poisson(popularity() * rate, ns, seed=seed, slo_ns=SLO_NS)
    if workload == "bursty":
        return lambda ns: gamma(popularity() * rate, CV, ns, seed=seed, slo_ns=SLO_NS)
    raise ConfigError(f"no workload {workload!r} (there is {', '.join(WORKLOADS)})")


def warmed(workload: str, rate: float, seed: int, minute: int, duration_ns: int) -> Workload:
    """A workload behind a warm-up of WARMUP_NS."""
    return rehearsed(offered(workload, rate, seed, minute), WARMUP_NS, duration_ns)


def run(
    policy: str, arrivals: Any, duration_ns: int, seed: int, with_inputs: bool = True, **more: Any
) -> Report:
    """Simulate arrivals that begin with a warm-up of WARMUP_NS."""
    return simulate(
        models(with_inputs),
        cluster(with_inputs),
        [Open(arrivals)],
        policy=policy,
        seed=seed,
        warmup_ns=WARMUP_NS,
        until_ns=WARMUP_NS + duration_ns,
        resident=True,
        **more,
    )


# ----- capacity --------------------------------------------------------------------------------


def places(workload: str, count: int = CAPACITY_PLACES) -> list[int]:
    """Minutes of the trace at which capacity is measured; other workloads are the same at every time."""
    return [MINUTES * place // count for place in range(count)] if workload == "trace" else [0]


def capacity(
    workload: str, policy: str, seed: int, minute: int, requests: int, with_inputs: bool = True
) -> float:
    """The highest rate, to CAPACITY_STEP, at which 99 % of the requests are in time."""

    def is_carried(rate: float) -> bool:
        duration_ns = int(requests / rate * SECOND)
        arrivals = warmed(workload, rate, seed, minute, duration_ns)
        return run(policy, arrivals, duration_ns, seed, with_inputs).bad_fraction <= CAPACITY_BAD_MAX

    low, high = CAPACITY_FROM, CAPACITY_UNTIL
    while high / low > CAPACITY_STEP:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if is_carried(middle) else (low, middle)
    return low
