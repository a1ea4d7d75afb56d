"""The rules of policy `adaptive` as stories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from clockwork.scheduler.types import (
    AnswerFailed,
    AnswerOk,
    LinkMeasured,
    ModelReady,
    ModelSpec,
    SendInfer,
    SendLoad,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.wire.messages import Reason, Status
from tests.unit.stories import LINK, MS, Story, spec, told

BATCHING = spec(1, exec_ms=5, batch_max=32, row_ms=1)


def adaptive(
    *specs: ModelSpec, devices: int = 1, pages: int = 8, options: Mapping[str, float] | None = None
) -> Story:
    return Story("adaptive", *specs, devices=devices, pages=pages, options=options)


class Played:
    """Plays the devices of a story: sent actions end when their time is over, in sequence on each device."""

    def __init__(self, story: Story, *specs: ModelSpec) -> None:
        self.story = story
        self.specs = {one.model_id: one for one in specs}
        self.running: list[tuple[float, Any, float]] = []
        self.free: dict[int, float] = {}
        self.batches: list[int] = []
        self.answers: list[Any] = []
        self.turned_away: list[AnswerFailed] = []  # requests refused at arrival

    def take(self, commands: list[Any]) -> None:
        now = (self.story.now - 1000 * MS) / MS
        for one in commands:
            if isinstance(one, SendInfer | SendLoad):
                took = 4.0
                if isinstance(one, SendInfer):
                    points = self.specs[one.model_id].profile
                    rows = len(one.requests)
                    row_ms = (points[-1].exec_ns - points[0].exec_ns) / max(points[-1].batch - 1, 1) / MS
                    took = points[0].exec_ns / MS + row_ms * (rows - 1)
                    self.batches.append(rows)
                lane = one.device if isinstance(one, SendInfer) else -1 - one.device
                end = max(self.free.get(lane, 0), now + LINK / MS) + took
                self.free[lane] = end
                self.running.append((end + LINK / MS, one, took))
            elif isinstance(one, AnswerOk | AnswerFailed):
                self.answers.append(one)

    def until(self, ms: float) -> None:
        """Run timers and results until then."""
        while True:
            self.running.sort(key=lambda one: one[0])
            wake = (self.story.wake - 1000 * MS) / MS
            first = self.running[0][0] if self.running else float("inf")
            if min(first, wake) > ms:
                break
            if wake < first:
                self.take([one for _, one in self.story.until(wake)])
            else:
                end, sent, took = self.running.pop(0)
                self.take(self.story.at(end).done(sent, took))
        self.story.at(ms)

    def ask(self, ms: float, model: int = 1, slo_ms: float = 100, priority: int = 4) -> tuple[int, list[Any]]:
        self.until(ms)
        request, commands = self.story.request(model, slo_ms, priority)
        self.take(commands)
        self.turned_away += [
            one for one in commands if isinstance(one, AnswerFailed) and one.request_id == request
        ]
        return request, commands

    def stream(self, begin_ms: int, end_ms: int, per_ms: int = 1, slo_ms: float = 100) -> None:
        for ms in range(begin_ms, end_ms):
            for _ in range(per_ms):
                self.ask(ms, slo_ms=slo_ms)


def test_an_idle_cluster_answers_at_once() -> None:
    story = adaptive(BATCHING, devices=4)
    request, commands = story.request(1)
    assert told(commands) == [("infer", 1, (request,))]


def test_a_steady_stream_of_few_models_is_held_for_batches_that_are_cheap() -> None:
    sizes = {}
    for name, off in (("held", 0), ("at once", 1)):
        options = {"hold_need": 100, "off_hold": off}
        played = Played(adaptive(BATCHING, devices=4, options=options), BATCHING)
        played.stream(0, 600, per_ms=3)
        played.until(800)
        assert not played.turned_away
        assert all(isinstance(one, AnswerOk) for one in played.answers)
        late = played.batches[len(played.batches) // 2 :]
        sizes[name] = sum(late) / len(late)
    assert sizes["held"] > 1.5 * sizes["at once"]


def test_on_one_device_nothing_is_held() -> None:
    story = adaptive(BATCHING)
    played = Played(story, BATCHING)
    played.stream(0, 300)
    played.until(500)
    request, commands = played.ask(500)
    assert told(commands) == [("infer", 1, (request,))]


def test_after_a_flood_a_client_in_a_closed_loop_does_not_wait_for_it_to_come_back() -> None:
    played = Played(adaptive(BATCHING, devices=4), BATCHING)
    played.stream(0, 1000, per_ms=3)
    for ms in range(3000, 4000, 50):
        played.until(ms)
        request, commands = played.ask(ms, slo_ms=2000)
        assert told(commands) == [("infer", 1, (request,))]


def test_a_hold_ends_though_nobody_comes() -> None:
    """With an SLO of a minute, the last request of a stream does not wait for a good part of it."""
    played = Played(adaptive(BATCHING, devices=4, options={"hold_need": 100}), BATCHING)
    played.stream(0, 1200, slo_ms=60_000)
    assert len(played.answers) < 1200
    played.until(1200 + 1400 + 200)
    assert len(played.answers) == 1200
    assert all(isinstance(one, AnswerOk) for one in played.answers)


def test_few_are_given_up_for_many() -> None:
    busy, many = spec(1, exec_ms=20), spec(2, exec_ms=5, batch_max=16, row_ms=1)
    for off in (0, 1):
        story = adaptive(busy, many, options={"sacrifice_need": 1000, "off_sacrifice": off})
        _, [send] = story.request(1)
        [tight] = story.ask(2, slo_ms=26)
        loose = story.ask(*[2] * 10)
        orders = told(story.at(20.2).done(send, 20))[1:]
        if off:
            assert orders[0] == ("infer", 2, (tight,))
        else:
            assert orders == [("refused", tight), ("infer", 2, tuple(loose))]


def given_up(slo_ms: float) -> list[Any]:
    """Return the orders for one request with that SLO and twenty loose ones, when a device that was busy for
    20 ms is free."""
    busy, many = spec(1, exec_ms=20), spec(2, exec_ms=5, batch_max=16, row_ms=1)
    story = adaptive(busy, many, options={"sacrifice_need": 1000})
    _, [send] = story.request(1)
    story.ask(2, slo_ms=slo_ms)
    story.ask(*[2] * 20)
    return story.at(20.2).done(send, 20)[1:]


def test_who_is_given_up_while_it_waits_is_told_what_would_have_been_enough() -> None:
    refused = given_up(26)[0]
    assert refused.reason == Reason.DEADLINE
    assert "could be answered in" in refused.text
    enough = refused.feasible_slo_ns
    assert 20.2 + 20 < enough / MS < 20.2 + 21, "a batch of 16 takes 20 ms"
    assert 20 < refused.retry_after_ns / MS < 28, "and five more are behind it"
    [send] = given_up(enough / MS)
    assert send.requests[0] == refused.request_id
    assert len(send.requests) == 16


def test_who_waits_for_a_load_in_vain_is_told_when_it_should_have_been_there() -> None:
    story = Story("adaptive", spec(1, exec_ms=5), resident=False)
    request, [_] = story.request(1, slo_ms=20)
    [refused] = [one for _, one in story.until(30) if isinstance(one, AnswerFailed)]
    assert (refused.request_id, refused.status) == (request, Status.REFUSED)
    assert 20 < refused.feasible_slo_ns / MS < 25


def test_who_waits_for_a_load_that_has_not_begun_is_told_as_if_it_were_the_next() -> None:
    """The link is busy for 50 ms, then a load would take 4; 5 ms later the request would have been
    answered."""
    story = Story("adaptive", spec(2, load_ms=50), spec(1), resident=False, run_ahead=1)
    story.request(2, slo_ms=500)
    [request] = story.ask(1, slo_ms=30)
    [refused] = [one for _, one in story.until(30) if isinstance(one, AnswerFailed)]
    assert (refused.request_id, refused.status) == (request, Status.REFUSED)
    assert 59 < refused.feasible_slo_ns / MS < 62
    assert refused.feasible_slo_ns - 30 * MS < refused.retry_after_ns < refused.feasible_slo_ns


def test_nobody_is_given_up_where_little_arrives() -> None:
    busy, many = spec(1, exec_ms=20), spec(2, exec_ms=5, batch_max=16, row_ms=1)
    story = adaptive(busy, many)
    _, [send] = story.request(1)
    [tight] = story.ask(2, slo_ms=26)
    story.ask(*[2] * 10)
    assert told(story.at(20.2).done(send, 20))[1] == ("infer", 2, (tight,))


def crowded() -> Played:
    """Model 1 gets three times the requests that a device can do, for most of a second; model 2 does not."""
    other = spec(2, exec_ms=5, batch_max=32, row_ms=1)
    played = Played(adaptive(BATCHING, other), BATCHING, other)
    played.stream(0, 800, per_ms=3)
    return played


def test_who_asks_for_more_than_a_fair_share_is_turned_away_and_nobody_else() -> None:
    played = crowded()
    refused = played.turned_away
    assert refused
    assert {(one.status, one.reason) for one in refused} == {(Status.REFUSED, Reason.DEADLINE)}
    assert all(one.feasible_slo_ns > 100 * MS for one in refused)
    first = min(one.request_id for one in refused)
    assert first > BATCHING.batch_max  # a batch is admitted at any load
    _, commands = played.ask(800, model=2)
    assert not [one for one in commands if isinstance(one, AnswerFailed)]


def test_where_batches_save_nothing_whoever_would_wait_for_half_of_the_time_is_refused_at_once() -> None:
    """Once the overload has lasted: before, a burst may fill the whole SLO."""
    one, other = spec(1, exec_ms=5), spec(2, exec_ms=5)
    played = Played(adaptive(one, other), one, other)
    for ms in range(2, 3000, 2):
        played.ask(ms, model=1 + ms // 2 % 2)
    played.until(3200)
    refused = [one for one in played.answers if isinstance(one, AnswerFailed)]
    assert len(refused) > 850
    assert len(refused) - len(played.turned_away) <= 10, "who came before the overload was seen"
    assert all(one.feasible_slo_ns > 100 * MS for one in refused)
    # The admitted requests are those that the device can do, and those waiting at the end: half of what the
    # SLO has room for.
    assert len(played.answers) - len(refused) == pytest.approx((3000 + 45) / 5, abs=6)


def test_how_long_a_request_may_wait_is_the_users_to_choose() -> None:
    """By default a model whose batches save much has a batch wait; told to leave time, it refuses before."""

    def let_in(options: dict[str, float]) -> int:
        story = adaptive(BATCHING, options=options)
        story.request(1)
        count = 0
        while not any(isinstance(one, AnswerFailed) for one in story.request(1)[1]):
            count += 1
        return count

    assert let_in({"refuse_wait": 0.3}) < BATCHING.batch_max <= let_in({})


def test_turning_away_can_be_switched_off() -> None:
    played = Played(adaptive(BATCHING, options={"off_refuse": 1}), BATCHING)
    played.stream(0, 400, per_ms=3)
    assert not played.turned_away


def test_a_higher_level_is_not_turned_away_for_a_lower_one_that_waits() -> None:
    played = crowded()
    before = len(played.turned_away)
    for _ in range(100):
        played.ask(800, priority=4)
    assert len(played.turned_away) > before
    high, _ = played.ask(800, priority=1)
    played.until(950)
    [answer] = [one for one in played.answers if one.request_id == high]
    assert isinstance(answer, AnswerOk)


def test_a_higher_level_that_could_not_wait_goes_first() -> None:
    first, low, high = spec(1, exec_ms=30), spec(2, exec_ms=20), spec(3, exec_ms=5)
    story = adaptive(first, low, high)
    _, [send] = story.request(1)
    story.ask(2, slo_ms=52)
    [urgent] = story.ask(3, slo_ms=50, priority=1)
    commands = story.at(30.2).done(send, 30)
    assert told(commands)[1] == ("infer", 3, (urgent,))


def test_a_higher_level_that_can_wait_lets_the_earlier_deadline_go_first() -> None:
    first, low, high = spec(1, exec_ms=30), spec(2, exec_ms=20), spec(3, exec_ms=5)
    story = adaptive(first, low, high)
    _, [send] = story.request(1)
    [soon] = story.ask(2, slo_ms=55)
    [later] = story.ask(3, slo_ms=90, priority=1)
    commands = story.at(30.2).done(send, 30)
    assert told(commands)[1] == ("infer", 2, (soon,))
    assert ("infer", 3, (later,)) not in told(commands)[:2]


def test_nothing_late_is_a_success() -> None:
    story = adaptive(spec(1, exec_ms=5))
    request, [send] = story.request(1, slo_ms=8)
    at_ms, answer = story.until(20)[0]
    assert (at_ms, told([answer])) == (8, [("deadline_missed", request)])
    assert story.at(21).done(send, 20) == []


def test_an_slo_that_an_idle_device_cannot_keep_is_refused_with_one_that_it_can() -> None:
    story = adaptive(spec(1, exec_ms=5))
    request, [refusal] = story.request(1, slo_ms=3)
    assert told([refusal]) == [("refused", request)]
    assert refusal.reason == Reason.INFEASIBLE
    assert 5 * MS < refusal.feasible_slo_ns < 6 * MS
    _, [send] = story.request(1, slo_ms=refusal.feasible_slo_ns / MS)
    assert isinstance(send, SendInfer)


def test_what_only_the_way_and_the_reserve_exceed_may_be_tried_again() -> None:
    """Predictions of input times are learnt, and a disturbance may have lengthened them; more devices would
    not help."""
    story = adaptive(spec(1, exec_ms=5))
    _, [refusal] = story.request(1, slo_ms=5.001)
    assert refusal.reason == Reason.DEADLINE
    assert refusal.text.startswith("m1@1 takes 5.")
    assert 5 * MS < refusal.feasible_slo_ns < 6 * MS


def test_what_waited_too_long_for_the_controller_was_feasible_and_may_be_tried_again() -> None:
    story = adaptive(spec(1, exec_ms=5)).at(10)
    request, [refusal] = story.request(1, slo_ms=8, waited_ms=4)
    assert told([refusal]) == [("refused", request)]
    assert refusal.reason == Reason.DEADLINE
    assert 9 * MS < refusal.feasible_slo_ns < 10 * MS
    assert refusal.retry_after_ns == refusal.feasible_slo_ns - 8 * MS
    _, [send] = story.request(1, slo_ms=refusal.feasible_slo_ns / MS, waited_ms=4)
    assert isinstance(send, SendInfer)


def test_a_request_larger_than_a_batch_runs_alone_or_not_at_all() -> None:
    busy, small = spec(1, exec_ms=20), spec(2, exec_ms=5, batch_max=4, row_ms=5)
    story = adaptive(busy, small)
    _, [send] = story.request(1)
    large, _ = story.request(2, slo_ms=200, rows=12)  # a batch of 60 ms
    [other] = story.ask(2, slo_ms=200)
    commands = story.at(20.2).done(send, 20)
    assert told(commands)[1] == ("infer", 2, (large,))
    story = adaptive(busy, small)
    _, [send] = story.request(1)
    large, _ = story.request(2, slo_ms=70, rows=12)  # a request in time now, but not when the device is free
    commands = story.at(20.2).done(send, 20)
    assert told(commands)[1:] == []
    assert [told([one])[0] for _, one in story.until(80)] == [("refused", large)]
    assert other


def joins(story: Story, worker: int, kind: str, one: ModelSpec) -> list[Any]:
    commands = story(WorkerJoined(story.now, worker, ((kind, 1 << 20, 8, 2),)))
    commands += story(LinkMeasured(story.now, worker, LINK, LINK))
    return commands + story(ModelReady(story.now, worker, one))


def test_the_fastest_kind_of_device_says_what_can_be_in_time() -> None:
    """The slow device has the model: a request that only the fast device can serve has it loaded there."""
    story = adaptive(spec(1, exec_ms=50))
    joins(story, 2, "gpu", spec(1, exec_ms=2))
    request, [load] = story.request(1, slo_ms=20)
    assert isinstance(load, SendLoad)
    assert load.worker == 2
    orders = story.at(4.2).done(load, 4)
    assert told(orders) == [("infer", 1, (request,))]


@pytest.mark.parametrize("event", [WorkerLeft, WorkerDraining])
def test_a_kind_of_device_that_is_gone_says_nothing(event: Any) -> None:
    story = adaptive(spec(1, exec_ms=50))
    joins(story, 2, "gpu", spec(1, exec_ms=2))
    story(event(story.now, 1))
    request, commands = story.request(1, slo_ms=20)
    assert ("refused", request) not in told(commands)
