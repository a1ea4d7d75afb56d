"""Devices that differ in speed."""

from __future__ import annotations

import pytest

from clockwork.formats.profiles import linear
from clockwork.sim.world import Cluster, Open, Report, simulate
from clockwork.workloads import poisson

MS, SECOND = 1_000_000, 1_000_000_000
DURATION_NS = 40 * SECOND


def good_part(report: Report) -> float:
    return float(report.good.sum() / report.offered.sum())


@pytest.mark.parametrize("policy", ["deferred", "adaptive", "edf"])
@pytest.mark.parametrize("speeds", [(1.0, 0.5), (0.5, 1.0), (0.5, 0.7, 1.0)])
def test_a_slow_device_that_would_be_late_hides_no_fast_one(policy: str, speeds: tuple[float, ...]) -> None:
    """Requests take 10 ms on the fast devices, which are a quarter busy, and are late on the slow ones."""
    model = linear("m", 0, 10 * MS, 1, slo_ns=14 * MS)
    fast = 12 * speeds.count(1.0) // len(speeds)
    arrivals = poisson([25.0 * fast], DURATION_NS, seed=3)
    report = simulate(
        [model], Cluster(devices=12, speeds=speeds), [Open([arrivals.collect()])], policy=policy, seed=3, resident=True
    )  # fmt: skip
    assert good_part(report) > 0.99
