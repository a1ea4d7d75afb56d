"""Whose model is prepared next: owners take turns, and slow jobs give way."""

from __future__ import annotations

import random

import pytest

from clockwork.config.worker import PREPARATION_SLOW_NS, PREPARATIONS_MAX
from clockwork.worker.turns import JobQueue, Turn

A, B, C = 11, 22, 33


class Story:
    def __init__(self) -> None:
        self.turns = JobQueue()
        self.now = -5 * PREPARATION_SLOW_NS  # a clock below 0, as after a boot

    def put(self, owner: int, *job_ids: int) -> None:
        for job_id in job_ids:
            self.turns.put(job_id, owner)

    def begins(self) -> list[int]:
        """Return the jobs that begin now."""
        begun = []
        while (turn := self.turns.take(self.now)) is not None:
            begun.append(turn.job_id)
        return begun

    def later(self) -> None:
        self.now += PREPARATION_SLOW_NS


@pytest.fixture
def story() -> Story:
    return Story()


def test_one_at_a_time_while_each_ends_soon(story: Story) -> None:
    story.put(A, 1, 2, 3)
    for job_id in (1, 2, 3):
        assert story.begins() == [job_id]
        story.now += PREPARATION_SLOW_NS - 1
        assert story.begins() == []
        assert story.turns.ended(job_id) is False
    assert story.begins() == []


def test_owners_take_turns(story: Story) -> None:
    story.put(A, 1, 2, 3)
    story.put(B, 4, 5)
    story.put(C, 6)
    order = []
    while begun := story.begins():
        order += begun
        story.turns.ended(*begun)
    assert order == [1, 4, 6, 2, 5, 3]


def test_an_owner_that_has_no_job_running_comes_first(story: Story) -> None:
    story.put(A, 1)
    assert story.begins() == [1]
    story.put(A, 2)
    story.put(B, 3)
    story.turns.found_slow(1)
    assert story.begins() == [3]


def test_slow_ones_are_passed_up_to_a_bound(story: Story) -> None:
    story.put(A, *range(1, PREPARATIONS_MAX + 2))
    for job_id in range(1, PREPARATIONS_MAX + 1):
        assert story.turns.take(story.now) == Turn(job_id, job_id - 1, False)
        assert story.begins() == []
        story.later()
    assert story.begins() == []


def test_a_long_execution_makes_a_job_slow_at_once(story: Story) -> None:
    story.put(A, 1, 2)
    assert story.begins() == [1]
    story.turns.found_slow(1)
    assert story.begins() == [2]
    story.turns.found_slow(77)  # a job that has ended


def endless(story: Story, owner: int, *job_ids: int) -> None:
    """Begin all jobs that may, and find them to be slow."""
    story.put(owner, *job_ids)
    for _ in job_ids:
        for job_id in story.begins():
            story.turns.found_slow(job_id)


def test_endless_ones_of_an_owner_hold_up_no_other(story: Story) -> None:
    endless(story, A, 1, 2, 3, 4)
    assert story.turns.stop(story.now) == 1, "one of its own waits for its first turn"
    assert story.turns.stop(story.now) == 0, "a stopped one is about to end"
    assert story.turns.ended(1) is True
    story.turns.put(1, A, is_anew=True)
    assert story.begins() == [4]
    story.turns.found_slow(4)
    assert story.turns.stop(story.now) == 0, "nobody waits for a first turn"
    story.put(B, 5)
    assert story.turns.stop(story.now) == 2
    assert story.turns.ended(2)
    story.turns.put(2, A, is_anew=True)
    assert story.turns.take(story.now) == Turn(5, 2, False)
    assert not story.turns.ended(5)
    assert story.turns.take(story.now) == Turn(1, 2, True)


def test_those_that_begin_anew_leave_a_place_and_are_not_stopped_again(story: Story) -> None:
    for job_id in (1, 2, 3):
        story.turns.put(job_id, A, is_anew=True)
    assert story.begins() == [1, 2]
    for job_id in (4, 5, 6):
        story.put(B, job_id)
        assert story.begins() == [job_id]
        story.turns.found_slow(job_id)
        story.put(C, 10 + job_id)
        assert story.turns.stop(story.now) == job_id
        story.turns.ended(job_id)
        assert story.begins() == [10 + job_id]
        story.turns.ended(10 + job_id)
    story.later()
    assert story.begins() == []
    story.turns.ended(1)
    assert story.begins() == [3]


def test_the_owner_with_the_most_places_gives_way(story: Story) -> None:
    endless(story, A, 1)
    endless(story, B, 2, 3)
    story.put(C, 4)
    assert story.turns.stop(story.now) == 2


def test_a_job_that_is_not_wanted_any_more_stops_no_other(story: Story) -> None:
    endless(story, A, 1, 2, 3)
    story.put(B, 4)
    story.turns.drop(4, B)
    assert story.turns.stop(story.now) == 0
    story.turns.drop(4, B)
    story.turns.put(5, B, is_anew=True)
    story.turns.drop(5, B)
    story.turns.ended(1)
    assert story.begins() == []


@pytest.mark.parametrize("seed", range(20))
def test_everything_ends_and_a_quick_job_waits_for_no_more_than_one_slow_one_of_each_owner(seed: int) -> None:
    """Random jobs of three owners, some of which never end until they are stopped for good."""
    rng = random.Random(seed)
    story = Story()
    waits: dict[int, int] = {}
    slow = {job_id for job_id in range(1, 60) if rng.random() < 0.4}
    owners = {job_id: rng.choice((A, B)) for job_id in range(1, 60)}
    for job_id, owner in owners.items():
        story.put(owner, job_id)
    story.put(C, 99)
    began = story.now
    left, running = {*owners, 99}, set()
    for _ in range(10_000):
        while (turn := story.turns.take(story.now)) is not None:
            running.add(turn.job_id)
            if turn.job_id == 99:
                waits[99] = story.now - began
            assert len(running) <= PREPARATIONS_MAX
        if stopped := story.turns.stop(story.now):
            running.remove(stopped)
            assert story.turns.ended(stopped)
            story.turns.put(stopped, owners[stopped], is_anew=True)
            continue
        for job_id in sorted(running):
            if job_id not in slow or rng.random() < 0.05:
                running.remove(job_id)
                left.remove(job_id)
                story.turns.ended(job_id)
        story.now += PREPARATION_SLOW_NS // 4
        if not left:
            break
    assert not left
    assert waits[99] <= 3 * PREPARATION_SLOW_NS
