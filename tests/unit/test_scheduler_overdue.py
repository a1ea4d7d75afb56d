"""Executions that go on for far longer than predicted (csrc/scheduler/executions.h, shares.h, estimates.h), as stories."""

from __future__ import annotations

import pytest

from clockwork.scheduler._core import Curve
from clockwork.scheduler.types import AnswerOk, SendInfer, SendRevoke
from clockwork.wire.messages import Status
from tests.unit.stories import MS, Story, spec

POLICIES = ("edf", "adaptive")
OVERDUE_MS = 50
SECOND = 1000 * MS


def sent(commands: list[object]) -> list[SendInfer]:
    return [one for one in commands if isinstance(one, SendInfer)]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_waits_behind_an_overdue_execution_is_taken_back_and_others_go_first(policy: str) -> None:
    story = Story(policy, spec(1, exec_ms=0.1), spec(2, exec_ms=0.1))
    _, commands = story.at(0).request(1, slo_ms=5_000)
    [first] = sent(commands)
    behind = [send for _ in range(4) for send in sent(story.request(1, slo_ms=5_000)[1])]
    orders = [one for _, one in story.until(OVERDUE_MS - 1)]
    behind += sent(orders)
    assert behind
    assert not any(isinstance(one, SendRevoke) for one in orders)
    orders = [one for _, one in story.until(OVERDUE_MS + 1)]
    assert [one.action_id for one in orders if isinstance(one, SendRevoke)] == [
        one.action_id for one in behind
    ]
    for one in behind:
        assert story.at(OVERDUE_MS + 2).done(one, 0, Status.ACTION_CANCELLED) == [], (
            "nothing is sent meanwhile"
        )
    other, commands = story.at(600).request(2, slo_ms=20_000)
    assert commands == []
    commands = story.at(1200).done(first, 1200)
    assert isinstance(commands[0], AnswerOk)
    assert sent(commands)[0].requests == (other,), "whose deadline is 15 s later"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_result_that_is_late_by_little_takes_nothing_back(policy: str) -> None:
    story = Story(policy, spec(1, exec_ms=10))
    _, [first] = story.at(0).request(1, slo_ms=5_000)
    story.request(1, slo_ms=5_000)
    orders = [one for _, one in story.until(95)]
    assert len(sent(orders)) == 1
    assert not any(isinstance(one, SendRevoke) for one in orders), (
        "it has gone on for less than ten times 10 ms"
    )
    assert isinstance(story.at(96).done(first, 96)[0], AnswerOk)


def curve(usual_ms: float = 1) -> Curve:
    made = Curve()
    made.seed(1, round(usual_ms * MS))
    made.exec_ns(1)
    return made


def took(made: Curve, *samples_ms: float, at_s: float, every_s: float = 0.06) -> float:
    """Executions that took so long, one after the other; what is expected then."""
    for place, sample_ms in enumerate(samples_ms):
        made.measure(1, round(sample_ms * MS), round((at_s + place * every_s) * SECOND))
    return made.exec_ns(1) / MS


def test_a_stall_of_the_machine_moves_no_estimate() -> None:
    made = curve()
    took(made, *[1] * 10, at_s=100)
    assert took(made, 500, *[1] * 9, at_s=101) == 1
    assert took(made, 500, *[1] * 40, at_s=102) == 1, "a second one, with 9 between them"
    assert took(made, 500, *[1] * 9, at_s=105) == 1, "40 have behaved: it counts as the first"


def test_a_model_that_takes_long_again_and_again_is_predicted_by_its_worst() -> None:
    made = curve()
    usual = [1] * 9
    assert took(made, *usual, 400, *usual, 500, *usual, at_s=100) == 1
    assert took(made, 300, *usual, at_s=102) == 500, "three of thirty"
    assert made.exec_ns(8) >= 500 * MS, "of whatever size"
    assert took(made, *usual, 200, *usual, *usual, *usual, at_s=103) == 500, "one more, and 27 that were not"
    assert took(made, *[1] * 5, at_s=106) == 1, "32 have behaved"


def test_what_is_predicted_by_the_worst_is_let_go_of_in_time() -> None:
    made = curve()
    took(made, *([400] + [1] * 9) * 3, at_s=100)
    assert made.exec_ns(1) == 400 * MS
    assert not made.forget_stale(round(102.5 * SECOND))
    assert made.forget_stale(round(102.7 * SECOND)), "a second, and as long as one of them"
    assert made.exec_ns(1) == MS


def test_devices_that_stand_still_together_are_nobodys_doing() -> None:
    made = curve()
    took(made, *[1] * 10, at_s=100)
    for device in range(8):
        made.measure(1, 900 * MS, 102 * SECOND + device)
    took(made, *[1] * 10, at_s=102.1)
    assert made.exec_ns(1) == MS


def test_overdue_executions_far_apart_are_no_habit() -> None:
    made = curve()
    for place in range(5):
        assert took(made, 400, *[1] * 20, at_s=100 + 11 * place) == 1


def test_times_that_are_ten_times_as_long_and_still_short_are_noise() -> None:
    made = curve(0.02)
    assert took(made, *([40] + [0.02] * 9) * 5, at_s=100) == 0.02
