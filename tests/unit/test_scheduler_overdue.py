"""Executions that take far longer than predicted (csrc/scheduler/executions.h, shares.h, estimates.h), as
stories."""

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


class Device:
    """A device at 1.4 of its capacity: models 1 and 2 of 10 ms, each every 14 ms, one execution after
    another."""

    EXEC_MS, EVERY_MS = 10, 14

    def __init__(self, policy: str) -> None:
        self.story = Story(policy, *(spec(model, exec_ms=self.EXEC_MS) for model in (1, 2)))
        self.lane: list[SendInfer] = []
        self.now_ms = 0
        self.executing: SendInfer | None = None
        self.takes_ms = self.ends_ms = 0

    def serve(self, count: int, stall_ms: int = 0) -> None:
        """Run until so many executions of model 1 have begun and ended; the first takes so much longer."""
        before = self.executing
        while count > 0:
            self.now_ms += 1
            orders = [one for _, one in self.story.until(self.now_ms)]
            for model in (1, 2):
                if self.now_ms % self.EVERY_MS == model:
                    orders += self.story.request(model)[1]
            if self.executing and self.now_ms >= self.ends_ms:
                ended, self.executing = self.executing, None
                count -= ended.model_id == 1 and ended is not before
                orders += self.story.done(ended, self.takes_ms)
            while orders:
                match orders.pop(0):
                    case SendInfer() as send:
                        self.lane.append(send)
                    case SendRevoke(_, action_id):
                        for revoked in [one for one in self.lane if one.action_id == action_id]:
                            self.lane.remove(revoked)
                            orders += self.story.done(revoked, 0, Status.ACTION_CANCELLED)
            if self.lane and not self.executing:
                self.executing = self.lane.pop(0)
                self.takes_ms = self.EXEC_MS
                if self.executing.model_id == 1:
                    self.takes_ms, stall_ms = self.takes_ms + stall_ms, 0
                self.ends_ms = self.now_ms + self.takes_ms

    def asked(self) -> float:
        """Return the part of the device that counts as model 1's demand."""
        [row] = self.story.scheduler.devices()
        [asked] = [one["asked"] for one in row["shares"] if one["model"] == 1]
        return float(asked)


@pytest.mark.parametrize("policy", POLICIES)
def test_after_a_stall_of_the_machine_shares_are_as_they_were(policy: str) -> None:
    device = Device(policy)
    device.serve(200)
    usual = device.asked()
    assert 0.6 < usual < 0.8
    device.serve(1, stall_ms=600)
    assert device.asked() > 1.3 * usual, "others go first when it has ended"
    device.serve(1)
    assert device.asked() == pytest.approx(usual, rel=0.05), "the next one ended in time"
    device.serve(50)
    assert device.asked() == pytest.approx(usual, rel=0.05)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_excused_counts_when_it_happens_again(policy: str) -> None:
    device = Device(policy)
    device.serve(200)
    for _ in range(2):
        device.serve(50, stall_ms=600)
    assert device.asked() == 2, "two within 10 s: as more than there is, until 10 s after the second"


def curve(usual_ms: float = 1) -> Curve:
    made = Curve()
    made.seed(1, round(usual_ms * MS))
    made.exec_ns(1)
    return made


def took(made: Curve, *samples_ms: float, at_s: float, every_s: float = 0.06) -> float:
    """Run executions of these durations, one after the other; return the prediction then."""
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
