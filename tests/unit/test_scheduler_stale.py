"""Estimates learnt during a slow spell do not outlive it (csrc/scheduler/link.h, learning.h), as stories."""

from __future__ import annotations

import pytest

from clockwork.scheduler.types import (
    AnswerFailed,
    Arrived,
    LinkMeasured,
    Request,
    SendInfer,
    SendLoad,
    SendProfile,
)
from clockwork.wire.messages import Reason, Status
from tests.unit.stories import LINK, MS, SHAPE, Story, spec, told

POLICIES = ("edf", "adaptive")
pytestmark = pytest.mark.parametrize("policy", POLICIES)


def is_served(story: Story, at_ms: float, slo_ms: float = 50, took_ms: float = 5) -> bool:
    """A request comes; if it is sent, it is executed, and answered."""
    _, commands = story.at(at_ms).request(slo_ms=slo_ms)
    sends = [one for one in commands if isinstance(one, SendInfer)]
    for send in sends:
        story.at(at_ms + took_ms + 2 * LINK / MS).done(send, took_ms)
    return bool(sends)


def ping(story: Story, at_ms: float, there_ms: float) -> None:
    story.at(at_ms)(LinkMeasured(story.now, 1, round(there_ms * MS), LINK))


def test_one_ping_that_took_long_is_no_rule(policy: str) -> None:
    story = Story(policy, spec(1))
    for place in range(64):
        ping(story, place * 250, 0.1)
    ping(story, 16_000, 900)
    assert is_served(story, 16_001)


def test_pings_that_took_long_are_forgotten_after_six_that_did_not(policy: str) -> None:
    """As many results as a worker sends at once that stood still for two seconds.

    Recovery used to take a minute's worth of executions.
    """
    story = Story(policy, spec(1))
    for place in range(8):
        ping(story, place, 2000 - 250 * place)
    assert not is_served(story, 9)
    for place in range(6):
        ping(story, 250 + 250 * place, 0.1)
    assert is_served(story, 1600)
    assert story.scheduler.devices()[0]["there_ns"] == LINK


def test_executions_that_took_long_are_forgotten_in_a_second_and_as_long_as_another_takes(
    policy: str,
) -> None:
    story = Story(policy, spec(1))
    for place in range(10):
        is_served(story, place * 1000, slo_ms=2000, took_ms=900)
    assert not is_served(story, 10_000), "it is thought to take 900 ms"
    assert not is_served(story, 11_700)
    assert is_served(story, 11_900)


def test_what_two_stalls_have_taught_refuses_nobody_on_an_idle_device(policy: str) -> None:
    """The profile allows the request, and the device is idle. It used to be infeasible for a second."""
    story = Story(policy, spec(1))
    for place in range(2):
        is_served(story, place * 1000, slo_ms=2000, took_ms=900)
    for place in range(2, 10):
        assert is_served(story, place * 1000, took_ms=900)
    _, [answer, *_] = story.at(10_000).request(slo_ms=50)
    assert (answer.status, answer.reason) == (Status.REFUSED, Reason.INFEASIBLE)


def test_nine_stalls_in_a_row_refuse_nobody_on_an_idle_device(policy: str) -> None:
    """Where every tenth execution is stalled, five in a row come every few minutes; all requests were
    infeasible then."""
    story = Story(policy, spec(1))
    is_served(story, 0)
    for place in range(1, 10):
        assert is_served(story, place * 1000, took_ms=900)
    assert is_served(story, 10_000, slo_ms=20)


def test_an_idle_device_tries_a_request_behind_another_that_is_too_late(policy: str) -> None:
    """Adaptive looked only at the first waiting request, and sent a later one to no device: it was refused in
    the end."""
    story = Story(policy, spec(1, batch_max=8, row_ms=5))
    for place in range(3):
        is_served(story, place * 2000, slo_ms=2000, took_ms=900)
        is_served(story, place * 2000 + 950)
    _, [send] = story.at(6000).request(slo_ms=2000)
    story.at(6001).request(slo_ms=920, rows=8)
    story.at(6900).done(send, 899)
    behind, commands = story.at(6901).request(slo_ms=100)
    assert [one.requests for one in commands if isinstance(one, SendInfer)] == [(behind,)]


def test_what_is_tried_and_quick_is_believed(policy: str) -> None:
    story = Story(policy, spec(1))
    for place in range(2):
        is_served(story, place * 1000, slo_ms=2000, took_ms=900)
    for place in range(5):
        assert is_served(story, 2000 + 100 * place, slo_ms=8)


def test_what_only_an_idle_device_may_try_is_refused_by_a_busy_one_and_may_come_again(policy: str) -> None:
    story = Story(policy, spec(1), spec(2))
    for place in range(2):
        is_served(story, place * 1000, slo_ms=2000, took_ms=900)
    assert [type(one) for one in story.at(2000).request(2)[1]] == [SendInfer]
    _, commands = story.request(1, slo_ms=50)
    commands += [one for _, one in story.until(2060)]  # adaptive waits until there is no hope left
    [answer] = [one for one in commands if isinstance(one, AnswerFailed)][:1]
    assert (answer.status, answer.reason) == (Status.REFUSED, Reason.DEADLINE)


def test_executions_that_still_take_long_are_known_to_by_two(policy: str) -> None:
    story = Story(policy, spec(1))
    for at_ms in (0, 1000, 2000, *range(4000, 11_000, 1000)):
        assert is_served(story, at_ms, slo_ms=2000, took_ms=900)
    assert not is_served(story, 11_000)


def test_executions_that_take_a_little_longer_than_the_profile_says_stay_known(policy: str) -> None:
    story = Story(policy, spec(1))
    for place in range(10):
        is_served(story, place * 100, took_ms=8)
    assert not is_served(story, 60_000, slo_ms=7)


def test_a_batch_size_that_is_seldom_run_is_known_by_others_that_are(policy: str) -> None:
    """Everything takes ten times the profile's time; for three seconds only batches of two come."""
    story = Story(policy, spec(1, batch_max=2))
    for place in range(10):
        assert is_served(story, place * 100, slo_ms=200, took_ms=50)
    for place in range(30):
        story.at(1000 + place * 100)
        requests = [
            Request(1000 + 2 * place + one, 1, 1, SHAPE, 10, story.now, story.now + 200 * MS, 4)
            for one in (0, 1)
        ]
        [send] = [
            one for one in story.scheduler.step_many([Arrived(story.now, one) for one in requests])
            if isinstance(one, SendInfer)
        ]  # fmt: skip
        assert len(send.requests) == 2
        story.at(1062 + place * 100).done(send, 60)
    assert not is_served(story, 4100, slo_ms=30)


def test_three_short_executions_end_what_long_ones_have_taught(policy: str) -> None:
    story = Story(policy, spec(1))
    for place in range(10):
        is_served(story, place * 1000, slo_ms=2000, took_ms=900)
    for place in range(3):
        is_served(story, 10_000 + place * 100, slo_ms=2000)
    assert is_served(story, 10_400, slo_ms=7)


def test_a_load_that_took_long_is_forgotten_in_a_second(policy: str) -> None:
    """Two models in turn with room for one; loads took 900 ms for a while."""
    story = Story(policy, spec(1), spec(2), pages=2, resident=False)

    def is_loaded(at_ms: float, model: int, took_ms: float, slo_ms: float) -> bool:
        _, commands = story.at(at_ms).request(model, slo_ms=slo_ms)
        if ("load", model) not in told(commands) and any(
            name == "unload" for name, *_ in map(tuple, told(commands))
        ):
            [unload] = [one for one in commands if type(one).__name__ == "SendUnload"]
            commands = story.done(unload, 0.1)
        loads = [one for one in commands if isinstance(one, SendLoad)]
        for load in loads:
            for send in story.at(at_ms + took_ms).done(load, took_ms):
                if isinstance(send, SendInfer):
                    story.at(at_ms + took_ms + 6).done(send, 5)
        return bool(loads)

    for turn in range(4):
        assert is_loaded(turn * 3000, 1 + turn % 2, 900, 2000)
    assert is_loaded(12_500, 1, 4, 60)


def test_a_profile_ten_times_too_long_is_found_out_when_the_device_is_idle(policy: str) -> None:
    """Other programs kept the machine busy when the model was registered: no request with a shorter SLO would
    ever be served."""
    story = Story(policy, spec(1), spec(2, exec_ms=50))
    _, [answer, order] = story.at(500).request(2, slo_ms=20)
    assert told([answer])[0][0] == "refused"
    for left in (2, 1, 0):
        assert isinstance(order, SendProfile)
        story.now += 6 * MS
        story.done(order, 5)
        orders = story.until((story.now - 1000 * MS) / MS + 100)
        assert len(orders) == (left > 0)
        order = orders[0][1] if orders else None
    _, commands = story.request(2, slo_ms=20)
    assert [type(one) for one in commands] == [SendInfer]


def test_nothing_is_measured_for_a_request_that_asks_for_the_impossible(policy: str) -> None:
    """The estimate comes from recent executions."""
    story = Story(policy, spec(1))
    is_served(story, 0)
    story.at(10).request(slo_ms=1)
    assert story.until(500) == []
