"""Priority levels as stories: a higher level goes first, as far as promises to lower levels allow."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.scheduler.types import AnswerFailed, ModelSpec, SendInfer
from clockwork.wire.messages import Reason
from tests.unit.stories import LINK, MS, Story, spec

POLICIES = ("adaptive", "edf")


class Device:
    """Plays the first device of a story and records the order of requests' executions."""

    def __init__(self, story: Story, *specs: ModelSpec) -> None:
        self.story = story
        self.points = {one.model_id: one.profile for one in specs}
        self.sent: list[SendInfer] = []
        self.batches: list[tuple[int, ...]] = []
        self.refused: list[AnswerFailed] = []

    def take(self, commands: list[Any]) -> None:
        self.sent += [one for one in commands if isinstance(one, SendInfer)]
        self.refused += [one for one in commands if isinstance(one, AnswerFailed)]

    def ask(self, count: int, priority: int, slo_ms: float = 1000, model: int = 1) -> list[int]:
        asked = []
        for _ in range(count):
            request, commands = self.story.request(model, slo_ms, priority)
            self.take(commands)
            asked.append(request)
        return asked

    def run(self) -> list[int]:
        """Return the order in which requests are executed from now on, until nothing is left."""
        begin = len(self.batches)
        while self.sent:
            one = self.sent.pop(0)
            points = self.points[one.model_id]
            step = (points[-1].exec_ns - points[0].exec_ns) // max(points[-1].batch - 1, 1)
            took = points[0].exec_ns + step * (len(one.requests) - 1)
            self.batches.append(one.requests)
            end = (self.story.now - 1000 * MS + took + 2 * LINK) / MS
            for _, command in self.story.until(end):
                self.take([command])
            self.take(self.story.done(one, took / MS))
        return [request for batch in self.batches[begin:] for request in batch]


def device(policy: str, *specs: ModelSpec) -> Device:
    return Device(Story(policy, *specs, pages=8), *specs)


@pytest.mark.parametrize("slo_ms", [1000, 0], ids=["a second", "no deadline"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_higher_level_goes_before_what_waits_already(policy: str, slo_ms: float) -> None:
    played = device(policy, spec(1))
    low = played.ask(20, priority=5, slo_ms=slo_ms)
    on_device = [request for one in played.sent for request in one.requests]
    high = played.ask(5, priority=1, slo_ms=slo_ms)
    assert on_device == low[: len(on_device)]
    assert played.run() == on_device + high + low[len(on_device) :]


@pytest.mark.parametrize("slo_ms", [1000, 0], ids=["a second", "no deadline"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_takes_the_highest_level_and_is_filled_up_with_lower_ones(policy: str, slo_ms: float) -> None:
    played = device(policy, spec(1, batch_max=8, row_ms=0.2))
    low = played.ask(20, priority=5, slo_ms=slo_ms)
    before = len(played.sent)
    high = played.ask(5, priority=1, slo_ms=slo_ms)
    order = played.run()
    next_batch = set(played.batches[before])
    assert set(high) < next_batch
    assert len(next_batch) == 8
    assert next_batch - set(high) < set(low)
    assert sorted(order) == sorted(low + high), "everybody is served"


@pytest.mark.parametrize("policy", POLICIES)
def test_levels_go_in_their_order_whatever_the_order_of_arrival(policy: str) -> None:
    played = device(policy, spec(1))
    played.ask(3, priority=4)
    level_of = {played.ask(1, level)[0]: level for level in (7, 2, 9, 1, 7, 3)}
    levels = [level_of[request] for request in played.run() if request in level_of]
    assert levels == [1, 2, 3, 7, 7, 9]


def test_edf_keeps_what_it_promised_lower_levels() -> None:
    played = device("edf", spec(1, exec_ms=10))
    low = played.ask(4, priority=5, slo_ms=43)
    high = played.ask(2, priority=1, slo_ms=200)
    order = played.run()
    assert not played.refused
    assert order == low + high


def test_adaptive_has_a_higher_level_inherit_the_deadline_of_what_waits_behind_it() -> None:
    played = device("adaptive", spec(1, exec_ms=10), spec(2, exec_ms=10))
    on_device = played.ask(2, priority=5, slo_ms=60)
    [soon] = played.ask(1, priority=5, slo_ms=70)
    [other] = played.ask(1, priority=1, slo_ms=90, model=2)
    [high] = played.ask(1, priority=1, slo_ms=500)
    order = played.run()
    assert not played.refused
    assert order.index(high) < order.index(soon)
    assert set(order) == {*on_device, soon, other, high}


@pytest.mark.parametrize("policy", POLICIES)
def test_between_models_a_higher_level_passes_what_is_still_in_time_behind_it(policy: str) -> None:
    played = device(policy, spec(1, exec_ms=10), spec(2, exec_ms=10))
    low = played.ask(4, priority=5, slo_ms=200)
    on_device = [request for one in played.sent for request in one.requests]
    [high] = played.ask(1, priority=1, slo_ms=400, model=2)
    assert played.run() == [*on_device, high, *low[len(on_device) :]]


def test_a_refusal_counts_the_higher_levels_that_go_before() -> None:
    def feasible_ms(high: int) -> float:
        story = Story("adaptive", spec(1, exec_ms=10))
        played = Device(story, spec(1, exec_ms=10))
        played.ask(2, priority=5, slo_ms=500)
        played.ask(high, priority=1, slo_ms=500)
        _, commands = story.request(1, slo_ms=45, priority=5)
        refusals = [one for one in commands if isinstance(one, AnswerFailed)]
        if not refusals:
            return 45
        [refusal] = refusals
        assert refusal.reason == Reason.DEADLINE
        return float(refusal.feasible_slo_ns / MS)

    assert feasible_ms(0) == 45, "it is let in"
    assert 80 < feasible_ms(6) < feasible_ms(12)
