"""When an execution has taken too long."""

from __future__ import annotations

import pytest

from clockwork.config import EXECUTION_GRACE_NS
from clockwork.config.worker import (
    EXECUTION_LIMIT_FACTOR,
    EXECUTION_LIMIT_NS,
    LOAD_LIMIT_FACTOR,
    WATCH_GAP_MAX_NS,
)
from clockwork.system.clock import MS, SECOND
from tests.native import _tested
from tests.native._tested import RunWatch

STEP_NS = 50 * MS


def execution_limit_ns(expected_ns: int) -> int:
    return _tested.run_limits(
        EXECUTION_LIMIT_NS, EXECUTION_LIMIT_FACTOR, SECOND, LOAD_LIMIT_FACTOR, expected_ns
    )[0]


def load_limit_ns(expected_ns: int, least_ns: int) -> int:
    return _tested.run_limits(
        EXECUTION_LIMIT_NS, EXECUTION_LIMIT_FACTOR, least_ns, LOAD_LIMIT_FACTOR, expected_ns
    )[1]


def watch_until(watch: RunWatch, begin_ns: int, end_ns: int, action_id: int, limit_ns: int) -> str:
    verdict: str = "fine"
    for now in range(begin_ns, end_ns + 1, STEP_NS):
        verdict = watch.look(now, action_id, limit_ns)
    return verdict


@pytest.mark.parametrize("expected_ns", [0, MS, 100 * MS, 5 * SECOND])
def test_an_execution_is_ended_at_its_limit_and_given_up_after_its_grace(expected_ns: int) -> None:
    limit_ns = execution_limit_ns(expected_ns)
    assert limit_ns == max(EXECUTION_LIMIT_NS, EXECUTION_LIMIT_FACTOR * expected_ns)
    for begin_ns in (0, -3600 * SECOND, 10**15):
        watch = RunWatch(WATCH_GAP_MAX_NS, EXECUTION_GRACE_NS)
        assert watch_until(watch, begin_ns, begin_ns + limit_ns, 7, limit_ns) == "fine"
        end_ns = begin_ns + limit_ns + STEP_NS
        assert watch.look(end_ns, 7, limit_ns) == "end"
        assert watch_until(watch, end_ns, end_ns + EXECUTION_GRACE_NS - STEP_NS, 7, limit_ns) == "end"
        assert watch.look(end_ns + EXECUTION_GRACE_NS, 7, limit_ns) == "stuck"


@pytest.mark.parametrize("expected_ns", [0, MS, 5 * SECOND])
def test_a_load_cannot_be_ended_and_is_given_up_at_its_limit(expected_ns: int) -> None:
    limit_ns = load_limit_ns(expected_ns, 3 * SECOND)
    assert limit_ns == max(3 * SECOND, LOAD_LIMIT_FACTOR * expected_ns)
    watch = RunWatch(WATCH_GAP_MAX_NS)
    assert watch_until(watch, 0, limit_ns, 7, limit_ns) == "fine"
    assert watch.look(limit_ns + STEP_NS, 7, limit_ns) == "stuck"


def test_each_action_has_its_own_time() -> None:
    watch = RunWatch(WATCH_GAP_MAX_NS)
    for action_id in range(1, 20):
        begin_ns = action_id * SECOND
        assert (
            watch_until(watch, begin_ns, begin_ns + SECOND - STEP_NS, action_id, EXECUTION_LIMIT_NS) == "fine"
        )
    assert watch.is_busy
    assert watch.look(100 * SECOND, 0, EXECUTION_LIMIT_NS) == "fine"
    assert not watch.is_busy


def test_time_in_which_the_process_stood_still_is_held_against_nobody() -> None:
    watch = RunWatch(WATCH_GAP_MAX_NS)
    watch.look(0, 7, EXECUTION_LIMIT_NS)
    for pause in range(1, 9):
        assert watch.look(pause * 3600 * SECOND, 7, EXECUTION_LIMIT_NS) == "fine"
    assert watch.look(10 * 3600 * SECOND, 7, EXECUTION_LIMIT_NS) == "fine"
    assert 9 * WATCH_GAP_MAX_NS < EXECUTION_LIMIT_NS
