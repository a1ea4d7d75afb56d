"""When `clockwork up` restarts a process that has ended."""

from __future__ import annotations

from clockwork.config.launch import RESTART_PAUSE_MAX_NS, RESTART_PAUSE_NS, RESTART_SETTLED_NS, RESTARTS_MAX
from clockwork.launch.restarts import AGAIN_STATUS, Restarts
from clockwork.system.clock import MS, SECOND
from clockwork.worker.process import EXIT_STUCK


def test_what_never_served_is_given_up_at_once() -> None:
    assert Restarts().next_ns(9 * SECOND, 0, False, 1) is None
    assert Restarts().next_ns(RESTART_SETTLED_NS, 0, False, AGAIN_STATUS) is None


def test_what_others_know_to_have_served_is_started_again() -> None:
    """A worker that was killed before its report was read was given up, although the cluster was ready."""
    restarts = Restarts()
    restarts.served()
    assert restarts.next_ns(9 * SECOND, 0, False, -9) == 9 * SECOND


def test_pauses_grow_to_a_bound_and_then_it_is_given_up() -> None:
    restarts, now, pauses = Restarts(), 0, []
    while (due := restarts.next_ns(now, now - 100 * MS, True, -9)) is not None:
        pauses.append(due - now)
        now = due + 100 * MS
    assert len(pauses) == RESTARTS_MAX
    assert pauses[:4] == [0, RESTART_PAUSE_NS, 2 * RESTART_PAUSE_NS, 4 * RESTART_PAUSE_NS]
    assert pauses == sorted(pauses)
    assert max(pauses) <= RESTART_PAUSE_MAX_NS
    assert 20 * SECOND < sum(pauses) < 60 * SECOND, "as long as a port may take to be free, not for ever"


def test_failures_at_the_start_count_once_it_has_served() -> None:
    restarts = Restarts()
    assert restarts.next_ns(0, -MS, True, -9) == 0
    for place in range(RESTARTS_MAX - 1):
        due = restarts.next_ns(0, -MS, False, 1)
        assert due == min(RESTART_PAUSE_NS << place, RESTART_PAUSE_MAX_NS)
    assert restarts.next_ns(0, -MS, False, 1) is None


def test_what_served_for_long_begins_anew() -> None:
    restarts = Restarts()
    for _ in range(3 * RESTARTS_MAX):
        assert restarts.next_ns(RESTART_SETTLED_NS, 0, True, -9) == RESTART_SETTLED_NS
    # A hang of that length at the start does not count as serving.
    assert restarts.next_ns(RESTART_SETTLED_NS, 0, False, 1) == RESTART_SETTLED_NS + RESTART_PAUSE_NS


def test_what_asks_to_be_started_again_is_with_the_same_short_pause() -> None:
    assert AGAIN_STATUS == EXIT_STUCK, "the worker's"
    restarts = Restarts()
    for _ in range(3 * RESTARTS_MAX):
        assert restarts.next_ns(SECOND, 0, True, AGAIN_STATUS) == SECOND + RESTART_PAUSE_NS
    assert restarts.next_ns(SECOND, 0, True, -9) == SECOND
