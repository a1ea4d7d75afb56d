"""Executions on an arena slow each other: what is predicted with neighbours and without (neighbours.h)."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.scheduler.types import SendInfer
from tests.unit.stories import LINK, MS, Story, spec

ALONE_MS, BESIDE_MS = 10.0, 13.0


class Pair:
    """A worker whose devices share an arena, with a model of 10 ms."""

    def __init__(self, policy: str = "adaptive", told: float = 1, executors: int = 2, slo_ms: float = 100):
        model = spec(1, exec_ms=ALONE_MS)
        self.story = Story(policy, model, devices=executors, executors=executors, slowdown=told)
        self.slo_ms = slo_ms

    def run(self, count: int, took_ms: float) -> list[float]:
        """Execute so many requests at the same time. Returns what the last was expected to take, in ms."""
        story = self.story
        sent = [command for _ in range(count) for command in story.request(1, self.slo_ms)[1]]
        infers = [command for command in sent if isinstance(command, SendInfer)]
        story.now += 2 * LINK + round(took_ms * MS)
        for command in sent:
            story.done(command, took_ms if isinstance(command, SendInfer) else 4)
        story.now += 5 * MS
        story.tick()
        return [infer.expected_ns / MS for infer in infers]

    def alone(self, took_ms: float = ALONE_MS) -> float:
        (expected,) = self.run(1, took_ms)
        return expected

    def beside(self, took_ms: float = BESIDE_MS) -> float:
        """The second of two executions; while the first was sent, nothing was known of the second."""
        _, expected = self.run(2, took_ms)
        return expected


def near(value: float, part: float = 0.02) -> Any:
    return pytest.approx(value, rel=part)


@pytest.mark.parametrize("policy", ["adaptive", "edf", "fifo", "paper"])
def test_a_measured_slowdown_is_predicted_from_the_first_execution_on(policy: str) -> None:
    pair = Pair(policy, told=1.3)
    assert pair.alone() == near(ALONE_MS)
    assert pair.beside() == near(BESIDE_MS)


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_executions_with_neighbours_leave_the_prediction_of_one_without_as_it_was(policy: str) -> None:
    pair = Pair(policy, told=1.3)
    for _ in range(20):
        pair.beside()
    assert pair.alone() == near(ALONE_MS)
    for _ in range(20):
        pair.alone()
    assert pair.beside() == near(BESIDE_MS)


@pytest.mark.parametrize("told", [1, 2])
def test_a_wrong_measurement_is_corrected_by_executions_with_and_without(told: float) -> None:
    pair = Pair(told=told)
    for _ in range(40):
        pair.alone(), pair.beside()
    assert pair.alone() == near(ALONE_MS, 0.05)
    assert pair.beside() == near(BESIDE_MS, 0.05)


def test_executions_that_all_have_neighbours_are_predicted_though_they_teach_nothing() -> None:
    pair = Pair(told=1)
    for _ in range(40):
        pair.beside()
    assert pair.beside() == near(BESIDE_MS)


def test_what_was_learnt_fades_to_the_measurement_and_predictions_stay() -> None:
    pair = Pair(told=1)
    for _ in range(40):
        pair.alone(), pair.beside()
    for _ in range(100):
        pair.story.now += 1000 * MS
        assert pair.beside() == near(BESIDE_MS, 0.05)
    assert pair.alone() == near(BESIDE_MS, 0.05), "a machine that slows nothing was measured"


def test_a_stall_does_not_count_as_the_neighbours_work() -> None:
    pair = Pair(told=1.3)
    for _ in range(10):
        pair.alone(), pair.beside()
    pair.beside(200)
    assert pair.alone() == near(ALONE_MS, 0.05)
    assert pair.beside() == near(BESIDE_MS, 0.08)


def test_no_slowdown_is_above_its_bound() -> None:
    pair = Pair(told=50)
    pair.alone()
    assert pair.beside(20) == near(20), "two executors are as slow as one after the other"


def test_a_device_with_an_arena_of_its_own_has_no_neighbours() -> None:
    pair = Pair(told=1.3, executors=1)
    assert pair.alone() == near(ALONE_MS)
    for _ in range(20):
        pair.alone(BESIDE_MS)
    assert pair.alone() == near(BESIDE_MS)


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_an_idle_arena_serves_what_it_could_not_serve_when_busy(policy: str) -> None:
    pair = Pair(policy, told=1.5, slo_ms=ALONE_MS + 3)
    assert pair.alone() == near(ALONE_MS)


def test_an_execution_that_began_beside_one_that_ends_soon_is_predicted_to_speed_up() -> None:
    pair = Pair(told=1.5)
    story = pair.story
    _, (first,) = story.request(1, 100)
    story.now += LINK + 9 * MS  # of the 10 ms that are expected, and 15 that are planned
    _, (second,) = story.request(1, 100)
    assert ALONE_MS * 1.02 < second.expected_ns / MS < 1.5 * ALONE_MS
    story.now += LINK + 1 * MS
    story.done(first, 10)
