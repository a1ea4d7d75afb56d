"""The worker's clock and its measure of lateness."""

from __future__ import annotations

import pytest

from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.messages import NEVER_NS, Load
from clockwork.worker.clock import Jitter, WorkerClock


def load(earliest_ns: int, latest_ns: int) -> Load:
    return Load(1, 0, 1, 1, [0], earliest_ns, latest_ns, 5_000)


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


def test_a_window_is_converted_but_not_its_duration_nor_its_end_if_it_has_none() -> None:
    clock = WorkerClock(3600 * SECOND)
    start = now_ns()
    action = clock.window(load(start + 3600 * SECOND, NEVER_NS))
    assert (action.earliest_ns, action.latest_ns, action.expected_ns) == (start, NEVER_NS, 5_000)


def test_the_machines_own_clock_leaves_actions_as_they_are() -> None:
    action = load(1, 2)
    assert WorkerClock().window(action) is action


def test_a_phase_moves_with_the_clock_unless_it_did_not_happen() -> None:
    clock = WorkerClock(1000)
    assert clock.phase([10, 30, 20]) == [1010, 1030, 20]
    assert clock.phase([0, 0, 0]) == [0, 0, 0]


def test_jitter_is_the_99th_percentile_of_the_last_samples() -> None:
    jitter = Jitter(200)
    assert jitter.p99_ns() == 0
    for _ in range(200):
        jitter.add(1_000_000)
    for late in range(200):
        jitter.add(late)
    assert jitter.p99_ns() == 198
