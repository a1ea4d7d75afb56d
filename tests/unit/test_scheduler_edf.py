"""The edf scheduler as stories: these events, exactly these commands."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork import config
from clockwork.errors import ConfigError
from clockwork.scheduler import make_scheduler
from clockwork.scheduler._core import ATTEMPTS_MAX, PROFILE_ATTEMPTS_MAX, PROFILE_IDLE_NS, SCHEDULE_AHEAD_NS
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    ModelGone,
    ModelReady,
    ModelRemoved,
    ModelSpec,
    ProfilePoint,
    Request,
    RequestCancelled,
    SendInfer,
    SendLoad,
    SendProfile,
    SendRevoke,
    SendUnload,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.wire.messages import NEVER_NS, Reason, Status
from tests.unit import stories
from tests.unit.stories import LINK, MS, SHAPE, spec, told


class Story(stories.Story):
    """A story of edf, whose plans can be examined. If nothing is resident it begins at 0."""

    def __init__(self, *specs: ModelSpec, resident: bool = True, **settings: Any) -> None:
        super().__init__("edf", *specs, resident=resident, **settings)
        if not resident:
            self.now = 0

    def plan(self) -> list[dict[str, Any]]:
        """Return the batches that are planned on the first device."""
        return self.scheduler.snapshot()["devices"][0]["plan"]  # type: ignore[no-any-return]

    def flying(self, kind: str = "infer") -> list[int]:
        """Return the actions of a kind that were sent and not answered, oldest first."""
        return [one["action_id"] for one in self.scheduler.snapshot()["flights"] if one["kind"] == kind]


def kinds(commands: list[Any]) -> list[str]:
    return [type(command).__name__ for command in commands]


def test_policies_are_chosen_by_name() -> None:
    with pytest.raises(ConfigError, match=r"fastest.*there is .*edf"):
        make_scheduler("fastest")
    with pytest.raises(ConfigError, match="wings"):
        make_scheduler("edf", options={"wings": 2})


# ----- sending -------------------------------------------------------------------------------


def test_an_idle_cluster_sends_in_the_step_of_the_arrival() -> None:
    story = Story(spec(1))
    one, commands = story.request(1, 100)
    [send] = commands
    assert isinstance(send, SendInfer)
    assert send.requests == (one,)
    assert send.earliest_ns == story.now
    assert send.latest_ns == story.now + 100 * MS - 5 * MS - LINK
    assert send.expected_ns == 5 * MS
    story.at(5.3)
    [answer] = story.done(send)
    assert answer == AnswerOk(one, send.action_id, 0, answer.queue_ns, 0, 5 * MS)


def test_the_first_request_loads_the_model_and_waits_for_it() -> None:
    story = Story(spec(1, runs=(1, 2)), resident=False)
    one, [load] = story.request(1, 100)
    assert isinstance(load, SendLoad)
    assert load.run_starts == (2, 0)
    assert load.expected_ns == 4 * MS
    two, commands = story.request(1, 100)
    assert commands == []
    story.now = 5 * MS
    [send] = story.done(load, 4)
    assert (send.requests, send.load_id) == ((one,), load.load_id)
    story.now = story.wake
    [second] = story.tick()
    assert (second.requests, second.load_id) == ((two,), load.load_id)
    story.now = 10 * MS
    [answer] = story.done(send)
    assert answer.load_ns == 4 * MS


def test_the_next_batch_is_bound_when_the_device_is_about_to_be_free() -> None:
    story = Story(spec(1, 20, batch_max=8, row_ms=1))
    one, [first] = story.request(1, 200)
    two, commands = story.request(1, 200)
    assert commands == [], "the device is busy for 20 ms: the batch stays open"
    assert story.wake == pytest.approx(story.now + 20.5 * MS - SCHEDULE_AHEAD_NS, abs=MS)
    story.at(10)
    three, commands = story.request(1, 200)
    assert commands == []
    story.now = story.wake
    [second] = story.tick()
    assert second.requests == (two, three)
    assert second.expected_ns == 21 * MS
    assert first.requests == (one,)


def test_run_ahead_bounds_what_is_sent() -> None:
    story = Story(spec(1, 1))
    sends = [command for _ in range(5) for command in story.request(1, 100)[1]]
    assert len(sends) == 2
    story.at(1)
    assert kinds(story.done(sends[0], 1)) == ["AnswerOk", "SendInfer"]


def test_earlier_deadlines_go_first() -> None:
    story = Story(spec(1), spec(2))
    story.request(1, 100)
    story.request(1, 100)
    late, _ = story.request(1, 90)
    early, _ = story.request(2, 40)
    story.at(5)
    order = []
    for _ in range(2):
        action = story.flying()[0]
        commands = story(
            ActionDone(story.now, 1, action, Status.OK, "", story.now - 5 * MS, story.now, 5 * MS)
        )
        order += [command.requests[0] for command in commands if isinstance(command, SendInfer)]
        story.at(10)
    assert order == [early, late]


def test_a_batch_takes_only_what_makes_it_faster() -> None:
    story = Story(spec(1, 5, batch_max=8, row_ms=5))  # a batch of two takes as long as two executions
    story.request(1, 100)
    story.request(1, 100)
    story.request(1, 100)
    story.request(1, 100)
    assert [batch["size"] for batch in story.plan()] == [1, 1, 1]


def test_shapes_are_not_mixed_and_batch_max_holds() -> None:
    wide = ((3, 8, 16),)
    model = spec(1, 20, batch_max=3)
    model.profile.append(ProfilePoint(wide, 1, 20 * MS))
    story = Story(model)
    story.request(1, 900)
    for shape in (SHAPE, wide, SHAPE, SHAPE, SHAPE):
        story.request(1, 900, shape=shape)
    assert sorted((batch["shape"], batch["size"]) for batch in story.plan()) == [
        (SHAPE, 1),
        (SHAPE, 3),
        (wide, 1),
    ]


# ----- refusing ------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_at_once_and_told_what_would() -> None:
    story = Story(spec(1, 10))
    admitted = 0
    while True:
        one, commands = story.request(1, 100)
        if commands and isinstance(commands[-1], AnswerFailed):
            break
        admitted += 1
    assert admitted == 9
    [refusal] = commands
    assert (refusal.request_id, refusal.status, refusal.reason) == (one, Status.REFUSED, Reason.DEADLINE)
    assert 100 * MS < refusal.feasible_slo_ns < 115 * MS
    _again, commands = story.request(1, refusal.feasible_slo_ns / MS)
    assert commands == [], "the SLO that was named is admitted"
    assert refusal.retry_after_ns == refusal.feasible_slo_ns - 100 * MS


def test_retry_after_tells_when_the_same_request_fits() -> None:
    story = Story(spec(1, 10))
    sends = []
    refusal: Any = None
    while refusal is None:
        for command in story.request(1, 50)[1]:
            if isinstance(command, AnswerFailed):
                refusal = command
            else:
                sends.append(command)
    story.at(refusal.retry_after_ns / MS)
    assert not any(isinstance(command, AnswerFailed) for command in story.request(1, 50)[1])


def test_a_promise_is_not_broken_by_an_earlier_deadline() -> None:
    story = Story(spec(1, 10))
    story.request(1, 1000)
    story.request(1, 1000)
    story.request(1, 30)
    one, commands = story.request(1, 29)
    assert commands == [AnswerFailed(one, Status.REFUSED, Reason.DEADLINE, commands[0].text, commands[0].feasible_slo_ns, commands[0].retry_after_ns)]  # fmt: skip


def test_an_slo_below_the_execution_time_is_infeasible() -> None:
    story = Story(spec(1, 10))
    _, [refusal] = story.request(1, 9)
    assert refusal.reason == Reason.INFEASIBLE
    assert refusal.feasible_slo_ns >= 10 * MS
    _, [send] = story.request(1, refusal.feasible_slo_ns / MS)
    assert isinstance(send, SendInfer)


def test_reasons_no_worker_memory_draining_overloaded() -> None:
    story = Story(spec(1), spec(2, runs=(5,)), pages=4, resident=False)
    assert story.request(77)[1][0].reason == Reason.NO_WORKER
    assert story.request(2)[1][0].reason == Reason.MEMORY
    story.request(1, 500)
    story(ModelRemoved(story.now, 1))
    assert story.request(1)[1][0].reason == Reason.DRAINING
    assert config.QUEUED_BYTES_MAX < 5 << 30
    story = Story(spec(1))
    assert story.request(1, 100, size=5 << 30)[1][0].reason == Reason.OVERLOADED
    story = Story(spec(1), queued_requests_max=2)
    story.request(1, 0)
    story.request(1, 0)
    assert story.request(1, 0)[1][0].reason == Reason.OVERLOADED


# ----- deadlines -----------------------------------------------------------------------------


def test_what_can_no_longer_make_it_is_answered_at_once() -> None:
    story = Story(spec(1, 10))
    story.request(1, 1000)
    one, _ = story.request(1, 30)
    two, _ = story.request(1, 45)
    missed: dict[int, int] = {}
    while len(missed) < 2:  # the first hangs, and the second was sent behind it
        story.now = story.wake
        for command in story.tick():
            if isinstance(command, AnswerFailed):
                assert command.status == Status.DEADLINE_MISSED
                missed[command.request_id] = story.now - 1000 * MS
    assert missed[one] == 30 * MS, "sent: at its deadline"
    assert missed[two] == pytest.approx((45 - 10 - 0.2) * MS, abs=MS // 10), (
        "not sent: as soon as it is certain"
    )


def test_a_running_request_is_answered_at_its_deadline_and_its_result_dropped() -> None:
    story = Story(spec(1, 10))
    one, [send] = story.request(1, 30)
    story.now = story.wake
    while story.now < 1000 * MS + 30 * MS:
        assert [c for c in story.tick() if isinstance(c, AnswerFailed)] == []
        story.now = story.wake
    assert story.now == 1030 * MS
    failed, revoke = story.tick()
    assert (failed.request_id, failed.status) == (one, Status.DEADLINE_MISSED)
    assert revoke == SendRevoke(1, send.action_id)
    story.at(31)
    assert story.done(send, 31) == []


def test_a_result_at_the_deadline_is_a_success_and_after_it_is_none() -> None:
    story = Story(spec(1, 10))
    _, [send] = story.request(1, 30)
    story.at(30)
    assert kinds(story.done(send, 30)) == ["AnswerOk"]
    story.at(100)
    two, [send] = story.request(1, 30)
    story.now += 30 * MS + 1
    [answer] = story.done(send, 30)
    assert (answer.request_id, answer.status) == (two, Status.DEADLINE_MISSED)


# ----- without a deadline ----------------------------------------------------------------------


def test_no_deadline_is_always_admitted_and_never_delays_a_promise() -> None:
    story = Story(spec(1, 10))
    _, [first] = story.request(1, 0)
    assert first.latest_ns == NEVER_NS
    for _ in range(50):
        story.request(1, 0)
    urgent = [story.request(1, 100)[0] for _ in range(3)]
    sent = []
    last = first
    for step in range(1, 6):
        story.at(10 * step)
        commands = story.done(last, 10)
        sends = [command for command in commands if isinstance(command, SendInfer)]
        sent += [request for send in sends for request in send.requests]
        last = SendInfer(1, 0, story.flying()[0], 1, 0, (), 0, 0, 0)
    assert [request for request in sent if request in urgent] == urgent
    assert sent.index(urgent[0]) <= 1


# ----- priorities ----------------------------------------------------------------------------


def test_a_higher_priority_displaces_the_lowest_and_latest_that_was_not_sent() -> None:
    story = Story(spec(1, 10))
    low, lower = [], []
    for _ in range(4):
        low.append(story.request(1, 100, priority=4)[0])
        lower.append(story.request(1, 100, priority=9)[0])
    _one, commands = story.request(1, 100, priority=4)
    assert commands == [], "the ninth just fits"
    _urgent, commands = story.request(1, 100, priority=1)
    [displaced] = commands
    assert (displaced.request_id, displaced.status, displaced.reason) == (
        lower[-1],
        Status.REFUSED,
        Reason.DISPLACED,
    )


def test_equals_displace_nobody() -> None:
    story = Story(spec(1, 10))
    for _ in range(9):
        story.request(1, 100, priority=4)
    assert story.request(1, 100, priority=4)[1][0].reason == Reason.DEADLINE
    assert story.request(1, 100, priority=5)[1][0].reason == Reason.DEADLINE


def test_only_those_are_displaced_whose_going_helps() -> None:
    story = Story(spec(1, 10))
    story.request(1, 900, priority=4)
    story.request(1, 900, priority=4)
    early = story.request(1, 25, priority=9)[0]
    story.request(1, 800, priority=9)
    _urgent, commands = story.request(1, 28, priority=1)
    assert [command.request_id for command in commands] == [early]


# ----- loads and evictions -------------------------------------------------------------------


def test_the_least_recently_used_idle_model_makes_room() -> None:
    story = Story(spec(1), spec(2), spec(3), pages=4, resident=False)
    for model in (1, 2):
        _, [load] = story.request(model, 500)
        [send] = story.done(load, 4)
        story.done(send, 5)
    _, [send] = story.request(1, 500)
    story.done(send)
    _one, commands = story.request(3, 500)
    unload, load = commands
    assert isinstance(unload, SendUnload)
    assert (unload.model_id, unload.latest_ns) == (2, NEVER_NS)
    assert isinstance(load, SendLoad)
    assert load.run_starts == (2,)
    assert load.load_id > unload.load_id


@pytest.mark.parametrize("slo_ms", [500, 0])
def test_nothing_is_evicted_while_another_device_has_room(slo_ms: float) -> None:
    story = Story(*(spec(model) for model in range(1, 6)), pages=4, workers=2, resident=False)
    loaded = []
    for model in range(1, 5):
        _, [load] = story.request(model, slo_ms)
        assert isinstance(load, SendLoad)
        loaded.append((load.worker, load.run_starts))
        [send] = story.done(load, 4)
        story.done(send, 5)
    assert loaded == [(1, (0,)), (2, (0,)), (1, (2,)), (2, (2,))]
    _, commands = story.request(5, slo_ms)
    assert [type(command) for command in commands] == [SendUnload, SendLoad]


def test_only_as_much_is_evicted_as_the_load_needs() -> None:
    story = Story(spec(1, runs=(1,)), spec(2, runs=(3,)), spec(3, runs=(3,)), pages=4, resident=False)
    for model in (1, 2):
        _, [load] = story.request(model, 500)
        [send] = story.done(load, 4)
        story.done(send, 5)
    _, commands = story.request(3, 500)
    assert [(type(c).__name__, c.model_id) for c in commands] == [("SendUnload", 2), ("SendLoad", 3)]


def slow_loads() -> Story:
    """Two models on a device that holds one of them. Their last loads took 18 ms instead of 10."""
    story = Story(
        *(spec(model, exec_ms=20, load_ms=10, program="p") for model in (1, 2)), pages=2, resident=False
    )
    for turn in range(6):
        _, [*_, load] = story.at(100 * turn).request(1 + turn % 2, 90)
        [send] = story.at(100 * turn + 18.2).done(load, 18)
        story.at(100 * turn + 38.4).done(send, 20)
    return story


def test_an_idle_device_tries_a_load_that_was_slow_a_while_ago() -> None:
    """Otherwise every request with an SLO of 35 ms would be refused for ever, because nothing is loaded."""
    story = slow_loads()
    one, commands = story.at(1000).request(1, 35)
    assert told(commands) == [("refused", one)]
    one, [unload, load] = story.at(3000).request(1, 35)
    assert told([unload, load]) == [("unload", 2), ("load", 1)]
    [send] = story.at(3010.2).done(load, 10)
    assert told(story.at(3030.4).done(send, 20)) == [("ok", one)]


def test_it_tries_once_a_second_while_loads_stay_slow() -> None:
    story = slow_loads()
    one, [_, load] = story.at(3000).request(1, 35)
    late = story.at(3018.2).done(load, 18)
    assert ("deadline_missed", one) in told(late + [order for _, order in story.until(3035)])
    two, commands = story.at(3500).request(2, 35)
    assert told(commands) == [("refused", two)]
    _, [_, load] = story.at(5000).request(2, 35)
    assert isinstance(load, SendLoad)


def busy_with_another_to_load(slo_ms: float) -> tuple[Story, Any]:
    """Model 1 executes until 10 ms, and another request of it until 20 ms; then its pages are for model 2."""
    story = Story(spec(1, 10), spec(2, 10), pages=2, resident=False)
    _, [load] = story.request(1, 500)
    [send] = story.done(load, 4)
    _, commands = story.request(1, 500)
    assert kinds(commands) == ["SendInfer"] or commands == []
    _two, commands = story.request(2, slo_ms)
    assert [c for c in commands if isinstance(c, SendUnload)] == []
    story.now = 10 * MS
    [last] = [c for c in story.done(send, 10) if isinstance(c, SendInfer)]
    return story, last


def test_a_model_in_use_is_not_evicted_but_makes_room_when_it_is_done() -> None:
    story, last = busy_with_another_to_load(500)
    story.now = 20 * MS
    assert kinds(story.done(last, 10)) == ["AnswerOk", "SendUnload", "SendLoad"]


def test_a_model_on_its_way_out_serves_what_the_load_can_wait_for() -> None:
    """All requests that came for the model meanwhile were refused, on a device that had the model and nothing
    else to do."""
    story, last = busy_with_another_to_load(500)
    more, commands = story.request(1, 60)
    assert commands == []
    story.now = 20 * MS
    _, send = story.done(last, 10)
    assert (send.model_id, send.requests) == (1, (more,))
    story.now = 30 * MS
    assert kinds(story.done(send, 10)) == ["AnswerOk", "SendUnload", "SendLoad"]


def test_a_model_on_its_way_out_serves_nobody_to_the_cost_of_the_load() -> None:
    story, last = busy_with_another_to_load(42)
    _refused, [answer] = story.request(1, 60)
    assert answer.status == Status.REFUSED
    story.now = 20 * MS
    assert kinds(story.done(last, 10)) == ["AnswerOk", "SendUnload", "SendLoad"]


def test_requests_of_one_moment_for_more_models_than_fit_are_all_promised() -> None:
    """The first load chose the model whose pages it takes; a request for that model was refused, though
    nothing was sent yet."""
    story = Story(spec(1), spec(2), spec(3), pages=4, resident=False)
    for model in (1, 2):
        _, [load] = story.request(model, 500)
        [send] = story.done(load, 4)
        story.done(send, 5)
    commands = story.scheduler.step_many(
        [Arrived(story.now, Request(100 + model, model, 1, SHAPE, 10, story.now, story.now + 250 * MS, 4))
         for model in (3, 1, 2)]
    )  # fmt: skip
    assert [one for one in commands if isinstance(one, AnswerFailed)] == []


def test_a_batch_whose_model_is_loading_does_not_hold_up_the_others() -> None:
    story = Story(spec(1), spec(2, load_ms=50), pages=4, resident=False)
    _, [load] = story.request(1, 500)
    [send] = story.done(load, 4)
    story.done(send)
    _, [load] = story.request(2, 100)
    assert isinstance(load, SendLoad)
    _one, [send] = story.request(1, 500)
    assert isinstance(send, SendInfer), "its deadline is later, but the other waits for its load anyway"


def test_a_failed_load_is_retried_and_then_answered() -> None:
    story = Story(spec(1), resident=False)
    one, [load] = story.request(1, 500)
    for _ in range(2):
        story.now += MS
        [load] = story.done(load, 1, Status.DEVICE_ERROR, "no such file")
        assert isinstance(load, SendLoad)
    story.now += MS
    [answer] = story.done(load, 1, Status.DEVICE_ERROR, "no such file")
    assert (answer.request_id, answer.status) == (one, Status.UNAVAILABLE)
    assert "no such file" in answer.text
    assert story.scheduler.snapshot()["devices"][0]["pages_free"] == 4


def test_a_slow_load_refuses_the_first_request_but_serves_the_next() -> None:
    story = Story(spec(1, load_ms=80), resident=False)
    _one, commands = story.request(1, 50)
    refusal, load = commands
    assert (refusal.status, refusal.reason) == (Status.REFUSED, Reason.DEADLINE)
    assert refusal.feasible_slo_ns > 85 * MS
    assert isinstance(load, SendLoad)
    story.now = 81 * MS
    assert story.done(load, 80) == []
    _, [send] = story.request(1, 50)
    assert isinstance(send, SendInfer)


# ----- several devices -----------------------------------------------------------------------


def test_the_device_that_finishes_first_is_chosen() -> None:
    story = Story(spec(1, 10), workers=2, resident=False)
    _, [load] = story.request(1, 500)
    [send] = story.done(load, 4)
    _, commands = story.request(1, 18)
    assert isinstance(commands[0], SendLoad), "not in time here: the other device loads it too"
    assert commands[0].worker == 2
    story.now = 5 * MS
    [send] = story.done(commands[0], 4)
    assert send.worker == 2
    assert story.request(1, 100)[1] == []
    planned = {row["worker"]: row["planned_requests"] for row in story.scheduler.snapshot()["devices"]}
    assert planned == {1: 1, 2: 0}, "it is free 5 ms before the other"


def test_an_idle_device_takes_over_what_another_has_planned() -> None:
    story = Story(spec(1, 10), workers=2, resident=False)
    _, [load] = story.request(1, 900)
    story.done(load, 4)
    waiting = [story.request(1, 900)[0] for _ in range(6)]
    urgent, [load] = story.request(1, 18)
    assert load.worker == 2
    story.now += 4 * MS
    [send] = story.done(load, 4)
    assert send.requests == (urgent,)
    story.now += 10 * MS
    answer, taken, own = story.done(send, 10)
    assert answer.request_id == urgent
    assert (taken.worker, taken.requests) == (2, (waiting[0],))
    assert (own.worker, own.requests) == (1, (waiting[1],))


def test_of_many_devices_each_idle_one_is_found() -> None:
    count = 40  # more batches than a request compares
    story = Story(spec(1, 10), workers=count, resident=False)
    loads = [story.request(1, 18)[1][0] for _ in range(count)]
    assert sorted(load.worker for load in loads) == list(range(1, count + 1))
    story.now += 4 * MS
    sends = [command for load in loads for command in story.done(load, 4)]
    story.now += 10 * MS
    assert {kind for send in sends for kind in kinds(story.done(send, 10))} == {"AnswerOk"}
    story.at(0)
    sends = [story.request(1, 12)[1][0] for _ in range(count)]
    assert sorted(send.worker for send in sends) == list(range(1, count + 1)), "only an idle one can take it"
    assert story.request(1, 12)[1][0].reason == Reason.DEADLINE


# ----- failures ------------------------------------------------------------------------------


def test_a_stale_action_is_ignored() -> None:
    story = Story(spec(1))
    _, [send] = story.request(1)
    assert story(ActionDone(story.now, 1, 12345, Status.OK, "", 0, 0, 0)) == []
    assert story(ActionDone(story.now, 9, send.action_id, Status.OK, "", 0, 0, 0)) == []
    assert kinds(story.done(send)) == ["AnswerOk"]
    assert story.done(send) == []


@pytest.mark.parametrize("status", [Status.TOO_LATE, Status.DEVICE_ERROR, Status.ACTION_CANCELLED])
def test_an_action_that_came_to_nothing_is_planned_again_while_there_is_time(status: Status) -> None:
    story = Story(spec(1))
    one, [send] = story.request(1, 500)
    for _ in range(ATTEMPTS_MAX - 1):
        story.now += MS
        [again] = story.done(send, 0, status, "why")
        assert again.requests == (one,)
        assert again.action_id > send.action_id
        send = again
    [answer] = story.done(send, 0, status, "why")
    final = Status.UNAVAILABLE if status is Status.DEVICE_ERROR else Status.DEADLINE_MISSED
    assert (answer.request_id, answer.status) == (one, final)


def test_without_time_a_lost_action_is_answered() -> None:
    story = Story(spec(1, 10))
    one, [send] = story.request(1, 20)
    story.at(15)
    [answer] = story.done(send, 0, Status.TOO_LATE)
    assert (answer.request_id, answer.status) == (one, Status.DEADLINE_MISSED)


def test_a_poisonous_request_harms_no_mate() -> None:
    story = Story(spec(1, 20, batch_max=8))
    _, [first] = story.request(1, 500)
    ids = [story.request(1, 500)[0] for _ in range(3)]
    story.now = story.wake
    [batch] = story.tick()
    assert batch.requests == tuple(ids)
    story.at(20)
    story.done(first, 20)
    story.at(42)
    sends = story.done(batch, 22, Status.EXECUTION_FAILED, "index out of range")
    done: dict[int, Status] = {}
    while sends:
        send = sends.pop(0)
        assert len(send.requests) == 1
        bad = send.requests[0] == ids[1]
        story.now += 20 * MS
        for command in story.done(
            send, 20, Status.EXECUTION_FAILED if bad else Status.OK, "index out of range" if bad else ""
        ):
            if isinstance(command, SendInfer):
                sends.append(command)
            else:
                done[command.request_id] = getattr(command, "status", Status.OK)
        if not sends:
            story.now = min(story.wake, story.now + 100 * MS)
            sends = [c for c in story.tick() if isinstance(c, SendInfer)]
    assert done == {ids[0]: Status.OK, ids[1]: Status.EXECUTION_FAILED, ids[2]: Status.OK}


def test_not_resident_corrects_the_picture() -> None:
    story = Story(spec(1))
    one, [send] = story.request(1, 500)
    commands = story.done(send, 0, Status.NOT_RESIDENT)
    assert kinds(commands) == ["SendUnload", "SendLoad"]
    story.done(commands[0], 0, Status.NOT_RESIDENT)
    [send] = story.done(commands[1], 4)
    assert send.requests == (one,)


def test_cancelling_what_is_planned_sent_and_done() -> None:
    story = Story(spec(1, 20, batch_max=4))
    one, [send] = story.request(1, 900)
    two, _ = story.request(1, 900)
    [answer] = story(RequestCancelled(story.now, two))
    assert (answer.request_id, answer.status) == (two, Status.CANCELLED)
    assert story.scheduler.snapshot()["devices"][0]["planned_batches"] == 0
    answer, revoke = story(RequestCancelled(story.now, one))
    assert (answer.request_id, answer.status) == (one, Status.CANCELLED)
    assert revoke == SendRevoke(1, send.action_id)
    assert story(RequestCancelled(story.now, one)) == []
    assert story.done(send, 0, Status.ACTION_CANCELLED) == []
    assert story(RequestCancelled(story.now, 999)) == []


def test_cancelling_one_of_a_batch_leaves_its_mates() -> None:
    story = Story(spec(1, 20, batch_max=4))
    story.request(1, 900)
    ids = [story.request(1, 900)[0] for _ in range(2)]
    story.now = story.wake
    [batch] = story.tick()
    assert kinds(story(RequestCancelled(story.now, ids[0]))) == ["AnswerFailed"]
    story.at(40)
    answers = [c for c in story.done(batch, 21) if isinstance(c, AnswerOk)]
    assert [(answer.request_id, answer.part) for answer in answers] == [(ids[1], 1)]


# ----- membership ----------------------------------------------------------------------------


def test_a_lost_worker_s_requests_go_to_another() -> None:
    story = Story(spec(1), workers=2, resident=False)
    one, [load] = story.request(1, 500)
    [send] = story.done(load, 4)
    commands = story(WorkerLeft(story.now, send.worker))
    [load] = commands
    assert isinstance(load, SendLoad)
    assert load.worker != send.worker
    story.now += 4 * MS
    [again] = story.done(load, 4)
    assert again.requests == (one,)


def test_the_last_worker_leaves_and_everything_is_answered() -> None:
    story = Story(spec(1, 10))
    ids = [story.request(1, 500)[0], story.request(1, 0)[0], story.request(1, 500)[0]]
    commands = story(WorkerLeft(story.now, 1))
    assert sorted(command.request_id for command in commands) == ids
    assert {command.status for command in commands} == {Status.UNAVAILABLE}
    assert story.request(1)[1][0].reason == Reason.NO_WORKER


def test_a_worker_that_joins_again_starts_empty() -> None:
    story = Story(spec(1))
    story(WorkerJoined(story.now, 1, (("cpu", 1 << 20, 4, 2),)))
    assert story.request(1)[1][0].reason == Reason.NO_WORKER
    story(ModelReady(story.now, 1, spec(1)))
    assert kinds(story.request(1)[1]) == ["SendLoad"]


def test_a_draining_worker_finishes_what_runs_and_gets_nothing_new() -> None:
    story = Story(spec(1, 10), workers=2, resident=False)
    _one, [load] = story.request(1, 900)
    [send] = story.done(load, 4)
    story.request(1, 900)
    _two, _ = story.request(1, 900)
    commands = story(WorkerDraining(story.now, send.worker))
    assert [type(c) for c in commands] == [SendLoad]
    assert commands[0].worker != send.worker
    story.now += 10 * MS
    assert kinds(story.done(send, 10)) == ["AnswerOk"]


def test_removal_drains_then_unloads_then_is_gone() -> None:
    story = Story(spec(1))
    _one, [send] = story.request(1)
    assert story(ModelRemoved(story.now, 1)) == []
    assert story.request(1)[1][0].reason == Reason.DRAINING
    story.at(5)
    answer, unload = story.done(send)
    assert isinstance(answer, AnswerOk)
    assert isinstance(unload, SendUnload)
    assert story.done(unload, 0.1) == [ModelGone(1)]
    assert story.request(1)[1][0].reason == Reason.NO_WORKER
    assert story(ModelRemoved(story.now, 5)) == [ModelGone(5)]


def test_a_model_removed_while_it_loads_is_gone_after_the_load() -> None:
    story = Story(spec(1), resident=False)
    one, [load] = story.request(1)
    story(ModelRemoved(story.now, 1))
    story(RequestCancelled(story.now, one))
    [unload] = story.done(load)
    assert isinstance(unload, SendUnload)
    assert story.done(unload) == [ModelGone(1)]


# ----- shapes never seen -----------------------------------------------------------------------


def test_an_unseen_shape_runs_on_its_bound_and_is_known_afterwards() -> None:
    story = Story(spec(1))
    wide = ((3, 8, 16),)
    _one, [send] = story.request(1, 100, shape=wide)
    assert send.expected_ns > 20 * MS, "twice the elements: four times the time"
    story.at(9)
    story.done(send, 9)
    _, [send] = story.request(1, 100, shape=wide)
    assert send.expected_ns == 9 * MS


def test_an_unseen_shape_whose_bound_is_too_high_is_refused_and_measured_when_idle() -> None:
    story = Story(spec(1))
    wide = ((3, 8, 16),)
    _, [refusal, profile] = story.request(1, 18, shape=wide)
    assert (refusal.status, refusal.reason) == (Status.REFUSED, Reason.UNPROFILED)
    assert isinstance(profile, SendProfile)
    assert (profile.rows, profile.shape) == (1, wide)
    story.now += 9 * MS
    assert story.done(profile, 9) == []
    _, [send] = story.request(1, 18, shape=wide)
    assert send.expected_ns == 9 * MS


def test_what_cannot_be_measured_is_given_up() -> None:
    story = Story(spec(1))
    wide = ((3, 8, 16),)
    _, [_, profile] = story.request(1, 18, shape=wide)
    for _ in range(PROFILE_ATTEMPTS_MAX - 1):
        assert story.done(profile, 0, Status.EXECUTION_FAILED, "bad shape") == []
        story.now += PROFILE_IDLE_NS
        assert story.wake == story.now
        [profile] = story.tick()
        assert isinstance(profile, SendProfile)
    story.done(profile, 0, Status.EXECUTION_FAILED, "bad shape")
    story.now += 50 * MS
    assert story.tick() == []


@pytest.mark.parametrize("policy", ["edf", "adaptive"])
def test_a_refusal_says_that_measuring_failed_until_it_succeeds(policy: str) -> None:
    story = stories.Story(policy, spec(1))
    huge = ((3, 800, 800),)  # a shape too large for a bound
    _, [refusal, profile] = story.request(1, 100, shape=huge)
    assert "it will be when a device is idle" in refusal.text
    for _ in range(PROFILE_ATTEMPTS_MAX - 1):
        story.done(profile, 0, Status.INVALID_INPUT, "too large")
        story.now += PROFILE_IDLE_NS
        [profile] = story.tick()
    story.done(profile, 0, Status.INVALID_INPUT, "too large")
    story.now += 50 * MS
    story.tick()
    _, [refusal, profile] = story.request(1, 100, shape=huge)
    assert (refusal.status, refusal.reason) == (Status.REFUSED, Reason.UNPROFILED)
    assert (
        "could not be executed with inputs of this shape or size when an idle device tried it" in refusal.text
    )
    story.now += 30 * MS
    story.done(profile, 30)
    _, [send] = story.request(1, 100, shape=huge)
    assert send.expected_ns == 30 * MS


# ----- many at once ----------------------------------------------------------------------------


def test_many_events_are_planned_once() -> None:
    story = Story(spec(1, 5, batch_max=8))
    requests = [Request(100 + i, 1, 1, SHAPE, 10, story.now, story.now + 100 * MS, 4) for i in range(4)]
    commands = story.scheduler.step_many([Arrived(story.now, request) for request in requests])
    [send] = [command for command in commands if isinstance(command, SendInfer)]
    assert send.requests == (100, 101, 102, 103), "one batch, not one and then three"


def test_time_does_not_run_backwards() -> None:
    story = Story(spec(1))
    story(Tick(story.now + 50 * MS))
    _, [send] = story.request(1, 500)
    assert send.earliest_ns == story.now + 50 * MS
