"""Simulated workers of different shapes: their own numbers of devices, and their own times of each model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile
from clockwork.sim import Cluster, Open, Report, WorkerShape, simulate
from clockwork.workloads import Arrivals

MS, SECOND = 1_000_000, 1_000_000_000
TIGHT = ModelProfile("tight", {1: 40 * MS}, 1 << 20, MS, slo_ns=30 * MS)
LOOSE = ModelProfile("loose", {1: 10 * MS, 2: 16 * MS}, 1 << 20, MS, slo_ns=200 * MS)
FOUR_CORES = (
    dataclasses.replace(TIGHT, exec_ns={1: 13 * MS}),
    dataclasses.replace(LOOSE, exec_ns={1: 4 * MS, 2: 7 * MS}),
)


def run(*shapes: WorkerShape, of: int = -1, seed: int = 1) -> Report:
    """Simulate five seconds of requests, every 20 ms one; of: only of that model (-1: of both in turn)."""
    t_ns = np.arange(0, 5 * SECOND, 20 * MS)
    model = np.arange(len(t_ns)) % 2 if of < 0 else of
    return simulate(
        [TIGHT, LOOSE], Cluster(workers=shapes), [Open(Arrivals.of(t_ns, model).chunks())], seed=seed, resident=True, check=True
    )  # fmt: skip


def test_a_model_is_executed_where_its_own_times_meet_its_slo() -> None:
    narrow = WorkerShape(3, 3, (None, LOOSE))
    report = run(narrow, WorkerShape(1, 1, FOUR_CORES), of=0)
    assert report.good[0] == report.offered[0] == 250
    assert len(report.device_busy) == 4
    assert report.device_busy[:3].tolist() == [0, 0, 0]
    assert report.device_busy[3] == pytest.approx(250 * 0.013 / 5, rel=0.02)


def test_a_worker_with_slow_times_refuses_what_another_answers() -> None:
    slow = WorkerShape(4, 4)  # with the models' own times, of which one exceeds its SLO
    assert run(slow).good.tolist() == [0, 125]
    assert run(slow, WorkerShape(1, 1, FOUR_CORES)).good.tolist() == [125, 125]


def test_workers_that_are_alike_may_be_listed() -> None:
    listed = run(WorkerShape(2, 2), WorkerShape(2, 2))
    t_ns = np.arange(0, 5 * SECOND, 20 * MS)
    arrivals = Arrivals.of(t_ns, np.arange(len(t_ns)) % 2)
    alike = simulate(
        [TIGHT, LOOSE], Cluster(devices=4, devices_per_worker=2, executors=2), [Open(arrivals.chunks())], seed=1, resident=True
    )  # fmt: skip
    assert listed.digest == alike.digest
    assert Cluster(workers=(WorkerShape(3, 2), WorkerShape(2, 1))).arenas == 2 + 2


def test_equal_seeds_give_equal_reports() -> None:
    shapes = WorkerShape(3, 3), WorkerShape(2, 1, FOUR_CORES)
    assert run(*shapes).digest == run(*shapes).digest


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (WorkerShape(1, 1, (TIGHT,)), "profiles of 1 models of 2"),
        (WorkerShape(0), "a worker without devices"),
        (WorkerShape(1, 0), "a worker without devices"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(shape: WorkerShape, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        run(shape)
