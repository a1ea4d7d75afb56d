"""Policy edf where requests must share batches: its plans leave time for batches to grow."""

from __future__ import annotations

import random

import pytest

from clockwork.formats.profiles import linear
from clockwork.sim.world import Closed, Cluster, Open, Report, simulate
from clockwork.workloads import Arrivals
from tests.sim.harness import MS, SECOND

MODELS = 100
DEVICES = 8
EIGHT_NS = 1.333 * MS * 8 + 2.667 * MS
"""The time of a batch of eight; a single request takes 4 ms."""


def served(load: float, executors: int) -> Report:
    """Popular and rare models on every device, at a part of what these serve in batches of eight."""
    rng = random.Random(1)
    rate = load * DEVICES * 8 / EIGHT_NS * SECOND
    weights = [1 / (number + 1) ** 0.9 for number in range(MODELS)]
    at, times = 0.0, []
    while at < 2 * SECOND:
        at += rng.expovariate(rate) * SECOND
        times.append(int(at))
    arrivals = Arrivals.of(times, rng.choices(range(MODELS), weights, k=len(times)))
    models = [
        linear(f"m{number}", round(1.333 * MS), round(2.667 * MS), 16, slo_ns=50 * MS)
        for number in range(MODELS)
    ]
    cluster = Cluster(devices=DEVICES, devices_per_worker=DEVICES, executors=executors, page_count=2 * MODELS)
    return simulate(models, cluster, [Open([arrivals])], policy="edf", warmup_ns=SECOND // 2, resident=True)


def part(report: Report) -> float:
    return float(report.good.sum() / report.offered.sum())


def broken(report: Report) -> int:
    return int(report.missed.sum() + report.late.sum() + report.failed.sum())


@pytest.mark.parametrize("executors", [1, DEVICES])
def test_a_plan_is_not_filled_with_single_requests_that_are_just_in_time(executors: int) -> None:
    """One by one, the devices would serve 2,000 requests a second, 0.42 of what they serve in batches."""
    near, beyond = served(0.9, executors), served(1.2, executors)
    assert part(near) > 0.8
    assert beyond.goodput_rate >= 0.97 * near.goodput_rate
    assert broken(near) == broken(beyond) == 0


def test_what_devices_serve_one_by_one_is_served_whole() -> None:
    assert part(served(0.38, executors=1)) == 1


def test_requests_for_models_that_must_be_loaded_leave_room_for_batches_too() -> None:
    """Clients that come again at once, for twice as many models as a device holds."""
    models = [linear(f"m{number}", 2 * MS, 4 * MS, 8, load_ns=2 * MS, slo_ns=250 * MS) for number in range(4)]
    clients = [Closed(number, concurrency=512, round_trip_ns=50 * MS) for number in range(4)]
    report = simulate(
        models, Cluster(devices=4, page_count=2), clients, policy="edf", warmup_ns=SECOND, until_ns=3 * SECOND,
        resident=True,
    )  # fmt: skip
    at_best = 4 * 8 / (20 * MS) * SECOND
    assert report.goodput_rate > 0.9 * at_best
    assert broken(report) == 0
