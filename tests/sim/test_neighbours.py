"""Executors of an arena that slow each other, simulated: predictions, refusals and learning."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile
from clockwork.sim.world import Cluster, Histogram, Open, Report, simulate
from clockwork.workloads import Arrivals
from tests.unit.stories import MS

SECOND = 1000 * MS
EXEC_MS = 5.0
BATCH = 8


def models(count: int) -> list[ModelProfile]:
    times = {1: round(EXEC_MS * MS), BATCH: round(EXEC_MS * MS) + (BATCH - 1) * MS}
    return [
        ModelProfile(f"m{number}", times, 1 << 24, 8 * MS, program=f"p{number}", slo_ns=60 * MS)
        for number in range(count)
    ]


def run(rate: float, slo_ms: float = 60, policy: str = "adaptive", count: int = 4, **cluster: Any) -> Report:
    """Poisson arrivals at a worker of one arena."""
    rng = random.Random(5)
    at, rows = 0.0, []
    while at < 6 * SECOND:
        at += rng.expovariate(rate) * SECOND
        rows.append((int(at), rng.randrange(count)))
    arrivals = Open(
        [Arrivals.of([row[0] for row in rows], [row[1] for row in rows], [round(slo_ms * MS)] * len(rows))]
    )
    executors = cluster.pop("executors", 2)
    place = Cluster(
        devices=executors, devices_per_worker=executors, executors=executors, page_count=64, **cluster
    )
    return simulate(
        models(count), place, [arrivals], policy=policy, seed=3, check=True, resident=True, warmup_ns=2 * SECOND
    )  # fmt: skip


def error_ms(report: Report, percent: float = 99) -> float:
    """A percentile of the error of a predicted duration, in either direction."""
    error = report.errors["infer_duration"]
    counts = error.over.counts + error.under.counts
    return Histogram(counts, max(error.over.largest_ns, error.under.largest_ns)).percentile(percent) / MS


BUSY = 1600.0
"""More requests a second than two executors can serve, in full batches: 1333, without a slowdown."""


@pytest.mark.parametrize("policy", ["adaptive", "edf", "fifo", "paper"])
@pytest.mark.parametrize("told", [0.0, 1.0, 2.0])
def test_executions_with_neighbours_are_predicted_as_well_as_others(policy: str, told: float) -> None:
    """Errors grow with batches: one executor gets as many requests for the time that it has."""
    alone = run(1.5 * BUSY / 2, policy=policy, executors=1, exec_noise=0.02)
    beside = run(BUSY, policy=policy, exec_noise=0.02, slowdown=1.5, slowdown_told=told)
    print(
        f"{policy}, told {told}: p99 of the error {error_ms(alone):.3f} ms alone, {error_ms(beside):.3f} beside"
    )
    assert error_ms(beside) <= 2 * error_ms(alone)


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
@pytest.mark.parametrize("told", [0.0, 1.0, 2.0])
def test_what_was_told_of_neighbours_does_not_cost_requests(policy: str, told: float) -> None:
    """Load at which half of the executions have a neighbour, with little time to spare."""
    rate, slo_ms = 150.0, 16.0
    best = run(rate, slo_ms, policy, slowdown=1.5, exec_noise=0.02)
    found = run(rate, slo_ms, policy, slowdown=1.5, slowdown_told=told, exec_noise=0.02)
    assert found.bad_fraction <= best.bad_fraction + 0.01


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_a_slowdown_that_is_told_and_is_none_refuses_nothing_for_long(policy: str) -> None:
    rate, slo_ms = 150.0, 16.0
    plain = run(rate, slo_ms, policy)
    assert plain.bad_fraction < 0.01
    places = {name: run(rate, slo_ms, policy, **options) for name, options in WRONG.items()}
    for name, report in places.items():
        assert report.bad_fraction <= plain.bad_fraction + 0.01, name


WRONG: dict[str, dict[str, Any]] = {
    "slow, and nobody says so": {"slowdown": 1.2, "slowdown_told": 0.0},
    "twice as slow as it is": {"slowdown": 1.1, "slowdown_told": 5.0},
}


@pytest.mark.parametrize("policy", ["adaptive", "edf", "fifo", "paper", "deferred"])
@pytest.mark.parametrize("slowdown", [1.0, 3.0])
def test_arenas_of_a_device_each_have_no_neighbours(policy: str, slowdown: float) -> None:
    """Their decisions are the same to the last bit, whatever the slowdown."""
    digests = {
        run(700, policy=policy, executors=1, exec_noise=0.05, slowdown=each).digest
        for each in (1.0, slowdown)
    }
    assert len(digests) == 1


def test_executors_that_slow_each_other_fully_do_the_work_of_one() -> None:
    one = run(BUSY, executors=1)
    two = run(BUSY, slowdown=2.0)
    assert two.good.sum() == pytest.approx(one.good.sum(), rel=0.1)
    assert np.sum(two.device_busy) > 1.9


def test_a_slowdown_out_of_its_range_is_refused() -> None:
    for slowdown in (0.5, 65.0, float("nan")):
        with pytest.raises(ValueError, match="slowdown"):
            run(10, slowdown=slowdown)
