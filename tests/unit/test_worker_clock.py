"""The bounds of a worker's clock."""

from __future__ import annotations

import pytest

from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.messages import NEVER_NS
from clockwork.worker.clock import WorkerClock


@pytest.mark.parametrize("offset_ns", [0, 3600 * SECOND, -3600 * SECOND])
@pytest.mark.parametrize("drift_ppm", [0.0, 100.0, -100.0])
def test_there_and_back_is_the_same_time(offset_ns: int, drift_ppm: float) -> None:
    clock = WorkerClock(offset_ns, drift_ppm)
    start = now_ns()
    for elapsed in (0, 1, 999, SECOND, 86_400 * SECOND):
        assert abs(clock.to_machine(clock.to_worker(start + elapsed)) - (start + elapsed)) <= 2


def test_a_drift_of_100_ppm_is_100_us_in_a_second() -> None:
    clock = WorkerClock(0, 100.0)
    start = now_ns()
    gained = clock.to_worker(start + SECOND) - clock.to_worker(start) - SECOND
    assert abs(gained - 100_000) <= 1


def test_a_time_that_never_comes_stays_as_it_is() -> None:
    assert WorkerClock(3600 * SECOND).to_machine(NEVER_NS) == NEVER_NS


def test_a_phase_moves_with_the_clock_unless_it_did_not_happen() -> None:
    clock = WorkerClock(1000)
    assert clock.phase([10, 30, 20]) == [1010, 1030, 20]
    assert clock.phase([0, 0, 0]) == [0, 0, 0]
