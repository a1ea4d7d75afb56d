"""One measured point: a cell, a policy with its setting, a rate and a seed, run through the simulator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.grid.arrivals import Arrivals, TimedArrivals
from bench.grid.bounds import BAD_MAX, GROUP_BAD_MAX
from bench.grid.cells import (
    EXEC_NOISE,
    LINK_JITTER_NS,
    LINK_NS,
    LOAD_NOISE,
    PAGE_BYTES,
    STORE_BANDWIDTH,
    Cell,
    profiles,
)
from bench.grid.policies import Setting
from clockwork.sim import Cluster, Open, Report, simulate

PROMPT_NS = 10_000_000
"""Time after an arrival within which a refusal leaves its client time to ask elsewhere."""

WARMUP_WINDOWS = 12
"""Number of successive windows that are compared to find where a run becomes stationary."""
WARMUP_WINDOW_REQUESTS = 2000
WARMUP_WINDOW_SLOS = 5
BAD_DRIFT = 0.01
LOADS_DRIFT = 0.15
"""Largest difference of loads between two windows that agree, as a part of them.

A difference that chance explains for counts of this size (3 sigma) is allowed, too. Bad parts may differ by
BAD_DRIFT.
"""


@dataclasses.dataclass(frozen=True)
class Point:
    """The result of a run, in its window."""

    rate: float  # offered requests per second
    offered: int
    bad: float  # bad requests' share of all requests
    worst_decile: float
    worst_class: float
    good_rate: float  # requests per second answered in time
    p50_ms: float
    p99_ms: float
    # 99th percentile of the time until a refusal, from the request's arrival; 0: nothing was refused
    refusal_p99_ms: float
    prompt: float  # share of the refusals that came within PROMPT_NS
    busy: float  # share of the devices' time
    devices_used: int  # number of devices that executed a request
    batch: float  # mean size of batches
    loads: int
    drift: float  # bad part of the window's second half less that of its first
    cpu_s: float

    @property
    def passes(self) -> bool:
        return (
            self.bad <= BAD_MAX and self.worst_decile <= GROUP_BAD_MAX and self.worst_class <= GROUP_BAD_MAX
        )

    def to_json(self) -> dict[str, Any]:
        return {name: _short(value) for name, value in dataclasses.asdict(self).items()}


def _short(value: float | int) -> float | int:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def cluster(cell: Cell) -> Cluster:
    return Cluster(
        devices=cell.devices,
        devices_per_worker=cell.executors,
        executors=cell.executors,
        page_bytes=PAGE_BYTES,
        page_count=cell.page_count,
        speeds=cell.speeds,
        exec_noise=EXEC_NOISE,
        load_noise=LOAD_NOISE,
        link_there_ns=LINK_NS,
        link_back_ns=LINK_NS,
        link_jitter_ns=LINK_JITTER_NS,
        store_bytes=cell.store_bytes,
        store_bandwidth=STORE_BANDWIDTH if cell.store_bytes else 0,
    )


def run(
    cell: Cell,
    setting: Setting,
    offered: TimedArrivals,
    *,
    seed: int,
    warmup_s: float,
    until_s: float,
    series_s: float = 0.0,
) -> Report:
    """The simulator's report on these requests."""
    return simulate(
        profiles(cell),
        cluster(cell),
        [Open(cell.requests(offered).chunks())],
        policy=setting.policy,
        memory=setting.memory,
        options=dict(setting.options),
        seed=seed,
        warmup_ns=round(warmup_s * 1e9),
        until_ns=round(until_s * 1e9),
        resident=not cell.cold,
        series_ns=round(series_s * 1e9),
    )


def bad_parts(offered: npt.ArrayLike, bad: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """bad / offered, 0 where nothing was offered."""
    count = np.asarray(offered, np.float64)
    return np.asarray(bad, np.float64) / np.maximum(count, 1.0)


def point(
    cell: Cell, setting: Setting, drawn: Arrivals, rate: float, *, seed: int, warmup_s: float, requests: int
) -> Point:
    """Run a cell at a rate, and count requests from the end of the warm-up on."""
    window_s = cell.window_s(rate, requests)
    until_s = warmup_s + window_s
    report = run(
        cell,
        setting,
        drawn.at(rate, until_s),
        seed=seed,
        warmup_s=warmup_s,
        until_s=until_s,
        series_s=window_s / SLICES,
    )
    return summary(cell, report, rate, warmup_s)


def summary(cell: Cell, report: Report, rate: float, warmup_s: float) -> Point:
    offered, bad = report.models.offered, report.models.bad
    deciles = np.array([cell.decile(model) for model in range(cell.models)])
    by_decile = [np.bincount(deciles, counts, minlength=cell.groups) for counts in (offered, bad)]
    total = int(offered.sum())
    executions = int(report.batches.sum())
    first, second = halves(report, warmup_s)
    return Point(
        rate=rate,
        offered=total,
        bad=float(bad.sum()) / max(total, 1),
        worst_decile=float(bad_parts(*by_decile).max()),
        worst_class=float(bad_parts(report.classes.offered, report.classes.bad).max(initial=0.0)),
        good_rate=report.goodput_rate,
        p50_ms=report.latency.percentile(50) / 1e6,
        p99_ms=report.latency.percentile(99) / 1e6,
        refusal_p99_ms=report.refusal.percentile(99) / 1e6 if report.refusal.total else 0.0,
        prompt=report.refusal.fraction_within(PROMPT_NS) if report.refusal.total else 1.0,
        busy=float(report.device_busy.mean()),
        devices_used=int(np.count_nonzero(report.device_busy)),
        batch=float(report.batches @ np.arange(len(report.batches))) / max(executions, 1),
        loads=report.loads,
        drift=second - first,
        cpu_s=report.cpu_s,
    )


SLICES = 20
"""Slices of a window, for the comparison of its halves."""


def halves(report: Report, warmup_s: float) -> tuple[float, float]:
    """The bad part of the first half of the counted time and of the second."""
    offered, bad = report.series["offered"], report.series["bad"]
    begin = round(warmup_s * 1e9 / report.series_ns)
    middle, end = begin + SLICES // 2, begin + SLICES
    return (
        float(bad[begin:middle].sum() / max(offered[begin:middle].sum(), 1)),
        float(bad[middle:end].sum() / max(offered[middle:end].sum(), 1)),
    )


def settled(offered: Sequence[int], bad: Sequence[int], loads: Sequence[int]) -> int:
    """The first of three consecutive windows that agree; the number of windows if none do."""

    def agree(former: int, latter: int) -> bool:
        count = max(min(offered[former], offered[latter]), 1)
        parts = [bad[index] / max(offered[index], 1) for index in (former, latter)]
        part = min(sum(parts) / 2, 1.0)
        chance = 3 * math.sqrt(2 * part * (1 - part) / count)
        most = max(loads[former], loads[latter])
        return abs(parts[0] - parts[1]) <= max(BAD_DRIFT, chance) and abs(
            loads[former] - loads[latter]
        ) <= max(LOADS_DRIFT * most, 3 * math.sqrt(2 * most))

    for first in range(len(bad) - 2):
        if agree(first, first + 1) and agree(first + 1, first + 2) and agree(first, first + 2):
            return first
    return len(bad)


def warmup_s(cell: Cell, settings: Sequence[Setting], drawn: Arrivals, rate: float, seed: int) -> float:
    """Time in seconds until every setting's run is stationary at a rate; 0 in a cold cell, by definition."""
    if cell.cold:
        return 0.0
    width_s = max(WARMUP_WINDOW_REQUESTS / rate, WARMUP_WINDOW_SLOS * cell.slo_max_ns / 1e9)
    until_s = WARMUP_WINDOWS * width_s
    offered = drawn.at(rate, until_s)
    found = 1  # the first window is always part of the warm-up
    for setting in settings:
        report = run(cell, setting, offered, seed=seed, warmup_s=0.0, until_s=until_s, series_s=width_s)
        columns = [report.series[name][:WARMUP_WINDOWS].tolist() for name in ("offered", "bad", "loads")]
        found = max(found, settled(*columns))
    return found * width_s
