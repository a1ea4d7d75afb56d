"""The worker's action queue: these events, exactly these commands."""

from __future__ import annotations

import random

import pytest

from clockwork.config import ACTIONS_QUEUED_MAX
from clockwork.wire.messages import NEVER_NS, HostDrop, HostFetch, Infer, Load, Profile, Status, Unload
from tests.native._tested import START_LEAD_NS, ActionQueue
from tests.native.queue_events import Due, Ended, Received, Reject, Revoked, RevokeStarted, Start

MS = 1_000_000


def infer(action_id: int, earliest: int = 0, latest: int = NEVER_NS) -> Infer:
    return Infer(action_id, 0, 7, 1, earliest, latest, MS, [])


def load(action_id: int, earliest: int = 0, latest: int = NEVER_NS) -> Load:
    return Load(action_id, 0, 7, 1, [0], earliest, latest, MS)


def unload(action_id: int, earliest: int = 0) -> Unload:
    return Unload(action_id, 0, 7, 1, earliest, NEVER_NS, MS)


def started(commands: list) -> list[int]:
    return [one.action.action_id for one in commands if isinstance(one, Start)]


def test_an_open_window_starts_at_once() -> None:
    queue = ActionQueue(2)
    action = infer(1)
    assert queue.step(Received(100, action)) == [Start(action)]
    assert queue.next_wake_ns == NEVER_NS
    assert queue.step(Ended(200, 1)) == []
    assert queue.started_count == 0


def test_a_lane_holds_run_ahead_and_the_lanes_are_apart() -> None:
    queue = ActionQueue(2)
    assert started([c for i in (1, 2, 3) for c in queue.step(Received(0, infer(i)))]) == [1, 2]
    assert started(queue.step(Received(0, load(10)))) == [10]
    assert started(queue.step(Received(0, Profile(4, 0, 7, 1, 0, NEVER_NS, 1, [])))) == []
    assert started(queue.step(Ended(5, 1))) == [3]
    assert started(queue.step(Ended(6, 2))) == [4]


def test_a_window_that_opens_later_waits_and_says_until_when() -> None:
    queue = ActionQueue(1)
    assert queue.step(Received(0, infer(1, earliest=5 * MS))) == []
    assert queue.next_wake_ns == 5 * MS - START_LEAD_NS
    assert queue.step(Due(MS)) == []
    assert started(queue.step(Due(5 * MS - START_LEAD_NS))) == [1]


def test_the_earlier_window_goes_first_and_then_who_came_first() -> None:
    queue = ActionQueue(1)
    queue.step(Received(0, infer(1)))
    for action in (infer(2, 300), infer(3, 200), infer(4, 200)):
        assert queue.step(Received(0, action)) == []
    order = []
    for ended in (1, 3, 4):
        order += started(queue.step(Ended(400, ended)))
    assert order == [3, 4, 2]


def test_too_late_is_answered_by_the_queue_at_its_time() -> None:
    queue = ActionQueue(1)
    queue.step(Received(0, infer(1)))
    queue.step(Received(0, infer(2, latest=3 * MS)))
    late = infer(3, latest=2 * MS)
    queue.step(Received(0, late))
    assert queue.next_wake_ns == 2 * MS + 1
    assert queue.step(Due(2 * MS)) == [], "its window is still open"
    [command] = queue.step(Due(2 * MS + 1))
    assert isinstance(command, Reject)
    assert (command.action, command.status) == (late, Status.TOO_LATE)
    assert queue.next_wake_ns == 3 * MS + 1
    [command] = queue.step(Ended(4 * MS, 1))
    assert isinstance(command, Reject)
    assert command.action.action_id == 2
    assert queue.queued_count == queue.started_count == 0


def test_an_action_that_arrives_too_late_is_not_started() -> None:
    [command] = ActionQueue(2).step(Received(5 * MS, infer(1, latest=4 * MS)))
    assert isinstance(command, Reject)
    assert command.status is Status.TOO_LATE
    assert "1.000 ms" in command.text


def test_an_unload_passes_nothing_and_nothing_passes_it() -> None:
    queue = ActionQueue(1)
    queue.step(Received(0, load(1)))
    queue.step(Received(0, load(2, earliest=500)))
    queue.step(Received(0, unload(3, earliest=0)))
    queue.step(Received(0, load(4, earliest=0)))
    order = []
    for ended in (1, 2, 3):
        order += started(queue.step(Ended(1000, ended)))
    assert order == [2, 3, 4]


def test_revoking_what_is_queued_what_is_started_and_what_is_gone() -> None:
    queue = ActionQueue(1)
    queue.step(Received(0, infer(1)))
    queue.step(Received(0, infer(2)))
    [command] = queue.step(Revoked(1, 2))
    assert isinstance(command, Reject)
    assert command.status is Status.ACTION_CANCELLED
    assert queue.step(Revoked(2, 1)) == [RevokeStarted(1)]
    queue.step(Ended(3, 1))
    assert queue.step(Revoked(4, 1)) == []
    assert queue.step(Revoked(4, 99)) == []


def test_a_full_queue_and_a_repeated_id_are_answered() -> None:
    queue = ActionQueue(1)
    for action_id in range(ACTIONS_QUEUED_MAX + 1):
        assert not [c for c in queue.step(Received(0, infer(action_id))) if isinstance(c, Reject)]
    [command] = queue.step(Received(0, infer(999_999)))
    assert isinstance(command, Reject)
    assert command.status is Status.DEVICE_ERROR
    assert str(ACTIONS_QUEUED_MAX) in command.text
    [command] = queue.step(Received(0, infer(3)))
    assert isinstance(command, Reject)
    assert "twice" in command.text


def test_many_late_ones_behind_one_that_runs_are_answered_as_their_windows_close() -> None:
    queue = ActionQueue(1)
    queue.step(Received(0, infer(0)))
    closing = random.Random(1).sample(range(1, 1001), 1000)
    for action_id, latest in enumerate(closing, 1):
        queue.step(Received(0, infer(action_id, latest=latest)))
    for now in range(1, 1001):
        [command] = queue.step(Due(now + 1))
        assert isinstance(command, Reject)
        assert command.action.latest_ns == now
        queue.check_invariants()
    assert queue.queued_count == 0


def test_ids_of_any_sign_are_ids_and_the_end_of_what_waits_is_no_end() -> None:
    queue = ActionQueue(1)
    queue.step(Received(0, infer(-1)))
    queue.step(Received(0, infer(-2)))
    assert queue.step(Ended(1, -2)) == [], "it has not begun"
    assert started(queue.step(Ended(2, -1))) == [-2]
    assert queue.step(Revoked(3, -2)) == [RevokeStarted(-2)]
    queue.check_invariants()


def test_reset_forgets_everything() -> None:
    queue = ActionQueue(1)
    for action_id in (1, 2, 3):
        queue.step(Received(0, infer(action_id)))
    assert [action.action_id for action in queue.reset()] == [2, 3]
    assert queue.queued_count == queue.started_count == 0
    assert queue.step(Ended(1, 1)) == [], "a completion from before the reset"
    assert started(queue.step(Received(1, infer(1)))) == [1]


@pytest.mark.parametrize("seed", range(30))
def test_every_action_is_started_or_rejected_exactly_once(seed: int) -> None:
    rng = random.Random(seed)
    queue = ActionQueue(rng.randint(1, 3))
    now, ended, running = 0, 0, []
    outcome: dict[int, str] = {}
    sent = 0

    def take(commands: list) -> None:
        for command in commands:
            if isinstance(command, Start):
                assert command.action.latest_ns >= now, "started outside its window"
                assert command.action.earliest_ns <= now + START_LEAD_NS
                running.append(command.action.action_id)
            if isinstance(command, Start | Reject):
                assert command.action.action_id not in outcome, "twice"
                outcome[command.action.action_id] = type(command).__name__

    for _ in range(300):
        now += rng.randrange(2 * MS)
        choice = rng.random()
        if choice < 0.5:
            sent += 1
            earliest = now + rng.randrange(3 * MS)
            kind = rng.choice([infer, load])
            take(queue.step(Received(now, kind(sent, earliest, earliest + rng.randrange(4 * MS)))))
        elif choice < 0.8 and running:
            ended += 1
            take(queue.step(Ended(now, running.pop(rng.randrange(len(running))))))
        elif choice < 0.9:
            take(queue.step(Revoked(now, rng.randint(1, sent + 1))))
        else:
            take(queue.step(Due(now)))
        queue.check_invariants()
    while queue.queued_count or running:
        now += MS
        take(queue.step(Ended(now, running.pop()) if running else Due(now)))
    assert len(outcome) == sent


def test_the_host_store_has_a_lane_of_its_own_in_which_a_drop_is_passed_by_nothing() -> None:
    queue = ActionQueue(1)
    assert started(queue.step(Received(0, load(1)))) == [1]
    assert started(queue.step(Received(0, HostFetch(2, 0, 7, 1, 0, NEVER_NS, MS)))) == [2]
    assert started(queue.step(Received(0, HostDrop(3, 0, 7, 1, 50, NEVER_NS, MS)))) == []
    assert started(queue.step(Received(0, HostFetch(4, 0, 8, 1, 0, NEVER_NS, MS)))) == []
    assert started(queue.step(Ended(60, 2))) == [3]
    assert started(queue.step(Ended(70, 3))) == [4]
    queue.check_invariants()
