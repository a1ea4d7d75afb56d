"""The fifo scheduler, and the common behaviour of all policies with queues, as stories: these events, exactly
these orders."""

from __future__ import annotations

import pytest

from clockwork.errors import ConfigError
from clockwork.scheduler import known_options, make_scheduler
from clockwork.scheduler.types import (
    ModelGone,
    ModelReady,
    ModelRemoved,
    ModelSpec,
    RequestCancelled,
    SendInfer,
    SendLoad,
    SendProfile,
    SendRevoke,
    WorkerLeft,
)
from clockwork.wire.messages import Reason, Status
from tests.unit.stories import LINK, MS, Story, spec, told


def fifo(*specs: ModelSpec, **options: float) -> Story:
    """A story whose device is given work when it is free, not before."""
    return Story("fifo", *specs, options={"schedule_ahead_ms": 0} | options)


def busy(story: Story, model: int = 1) -> SendInfer:
    """Send an action that keeps the first device busy for 5 ms."""
    [send] = story.request(model)[1]
    return send  # type: ignore[no-any-return]


def test_options_are_known_by_name_and_bounded() -> None:
    with pytest.raises(ConfigError, match=r"no option 'speed' \(it has batch_cap, queue_delay_ms"):
        make_scheduler("fifo", options={"speed": 1})
    with pytest.raises(ConfigError, match="batch_cap"):
        make_scheduler("fifo", options={"batch_cap": -1})
    with pytest.raises(ConfigError, match=r"'greedy' \(there are paper, adaptive\)"):
        make_scheduler("fifo", memory="greedy")
    assert known_options("fifo") == (
        "batch_cap",
        "queue_delay_ms",
        "schedule_ahead_ms",
        "drop",
        "stored_copies",
    )


# ----- fifo ----------------------------------------------------------------------------------


def test_an_idle_device_gets_the_request_in_the_step_of_its_arrival() -> None:
    story = Story("fifo", spec(1))
    one, [send] = story.request(1, 100)
    assert told([send]) == [("infer", 1, (one,))]
    assert (send.earliest_ns, send.expected_ns) == (story.now, 5 * MS)
    assert send.latest_ns == story.now + 95 * MS - LINK
    assert told(story.at(5.2).done(send)) == [("ok", one)]


def test_the_oldest_goes_first_and_takes_along_as_many_as_a_batch_may_have() -> None:
    story = fifo(spec(1, batch_max=4), spec(2, batch_max=4), batch_cap=3)
    first = busy(story)
    waiting = story.ask(2, 1, 1, 2, 2, 2)
    [_, send] = story.at(5.1).done(first)
    assert told([send]) == [("infer", 2, (waiting[0], waiting[3], waiting[4]))]
    *_, send = story.at(12.3).done(send, 7)
    assert told([send]) == [("infer", 1, (waiting[1], waiting[2]))]


def test_a_delay_lets_a_batch_gather_until_it_is_full_or_the_oldest_has_waited() -> None:
    story = Story("fifo", spec(1, batch_max=3), options={"queue_delay_ms": 10})
    waiting = story.ask(1, 1)
    third, [send] = story.at(4).request(1)
    assert send.requests == (*waiting, third)
    story.at(12).done(send, 7)
    story.at(20)
    [late] = story.ask(1)
    assert [(ms, told([one])) for ms, one in story.until(40)] == [(30, [("infer", 1, (late,))])]


def test_what_cannot_be_in_time_is_answered_when_that_is_certain_and_a_batch_fits_its_tightest() -> None:
    story = fifo(spec(1, exec_ms=5, batch_max=8, row_ms=5))
    first = busy(story)
    tight = story.ask(1, slo_ms=8)
    medium = story.ask(1, 1, 1, slo_ms=17)
    assert [(ms, told([one])) for ms, one in story.until(5)] == [(2.9, [("deadline_missed", tight[0])])]
    [_, send] = story.at(5.1).done(first)
    assert send.requests == (medium[0], medium[1])
    assert [(ms, told([one])) for ms, one in story.until(14)] == [(11.9, [("deadline_missed", medium[2])])]


def test_without_dropping_only_what_has_expired_goes() -> None:
    story = fifo(spec(1, exec_ms=9), drop=0)
    busy(story)
    [tight] = story.ask(1, slo_ms=8)
    assert [(ms, told([one])) for ms, one in story.until(9)] == [(8, [("deadline_missed", tight)])]


# ----- queues --------------------------------------------------------------------------------


def test_a_higher_priority_goes_first_whatever_came_before() -> None:
    story = fifo(spec(1), spec(2))
    first = busy(story)
    [low] = story.ask(1, priority=9)
    [high] = story.ask(2, priority=1)
    [_, send] = story.at(5.1).done(first)
    assert told([send]) == [("infer", 2, (high,))]
    assert told(story.at(10.3).done(send))[1:] == [("infer", 1, (low,))]


def test_one_model_s_requests_go_by_deadline() -> None:
    story = fifo(spec(1))
    first = busy(story)
    [late] = story.ask(1, slo_ms=90)
    [soon] = story.ask(1, slo_ms=40)
    [_, send] = story.at(5.1).done(first)
    assert send.requests == (soon,)
    assert told(story.at(10.3).done(send))[1:] == [("infer", 1, (late,))]


def test_a_free_device_that_has_the_model_is_found_among_others() -> None:
    story = Story("fifo", spec(1, load_ms=4), devices=2, pages=2)
    _, [send] = story.request(1)
    assert send.device == 0
    story(ModelReady(story.now, 1, spec(2)))
    two, [load] = story.request(2)
    assert isinstance(load, SendLoad)
    assert load.device == 1
    assert told(story.at(4.3).done(load, 4)) == [("infer", 2, (two,))]


def test_a_batch_that_failed_runs_again_one_by_one() -> None:
    story = fifo(spec(1, batch_max=4))
    first = busy(story)
    waiting = story.ask(1, 1)
    [_, both] = story.at(5.1).done(first)
    assert both.requests == tuple(waiting)
    [alone] = story.at(9).done(both, 1, Status.EXECUTION_FAILED, "bad input")
    assert alone.requests == (waiting[0],)
    failed = story.at(14).done(alone, 5, Status.EXECUTION_FAILED, "bad input")
    assert told(failed) == [("execution_failed", waiting[0]), ("infer", 1, (waiting[1],))]


def test_requests_of_a_lost_worker_wait_for_another() -> None:
    story = Story("fifo", spec(1), workers=2)
    one, [send] = story.request(1, 100)
    assert send.worker == 1
    [load] = story(WorkerLeft(story.now, 1))
    assert (load.worker, told([load])) == (2, [("load", 1)])
    assert told(story.at(5).done(load, 4)) == [("infer", 1, (one,))]
    assert told(story(WorkerLeft(story.now, 2))) == [("unavailable", one)]


def test_whoever_waits_for_a_model_that_no_worker_can_serve_any_more_hears_of_it() -> None:
    story = Story("fifo", spec(1), resident=False)
    one, [_load] = story.request(1, 100)
    assert told(story(WorkerLeft(story.now, 1))) == [("unavailable", one)]


def test_a_cancelled_request_leaves_and_what_runs_for_nobody_is_revoked() -> None:
    story = fifo(spec(1))
    one, [send] = story.request(1)
    [waiting] = story.ask(1)
    assert told(story(RequestCancelled(story.now, waiting))) == [("cancelled", waiting)]
    [answer, revoke] = story(RequestCancelled(story.now, one))
    assert told([answer]) == [("cancelled", one)]
    assert isinstance(revoke, SendRevoke)
    assert revoke.action_id == send.action_id


def test_what_is_on_a_device_at_its_deadline_is_answered_then() -> None:
    story = Story("fifo", spec(1))
    one, [send] = story.request(1, 20)
    [(ms, answer), (_, revoke)] = story.until(30)
    assert (ms, told([answer])) == (20, [("deadline_missed", one)])
    assert isinstance(revoke, SendRevoke)
    assert story.at(31).done(send) == []


def test_a_removed_model_serves_what_waits_and_is_gone() -> None:
    story = fifo(spec(1))
    first = busy(story)
    [waiting] = story.ask(1)
    assert story(ModelRemoved(story.now, 1)) == []
    assert story.request(1)[1][0].reason == Reason.DRAINING
    [_, last] = story.at(5.1).done(first)
    assert last.requests == (waiting,)
    [answer, unload] = story.at(10.3).done(last)
    assert told([answer, unload]) == [("ok", waiting), ("unload", 1)]
    assert story.at(10.6).done(unload, 0.1) == [ModelGone(1)]


def test_background_runs_when_nothing_else_does() -> None:
    story = fifo(spec(1))
    first = busy(story)
    idle, commands = story.request(1, 0)
    assert commands == []
    [waiting] = story.ask(1)
    [_, send] = story.at(5.1).done(first)
    assert send.requests == (waiting,)
    [_, send] = story.at(10.3).done(send)
    assert send.requests == (idle,)


def test_background_that_waited_long_goes_before_what_came_since() -> None:
    story = fifo(spec(1))
    send = busy(story)
    idle, _ = story.request(1, 0)
    turn = 0
    while send.requests != (idle,):
        turn += 1
        story.at(5.1 * turn - 0.1).ask(1)
        [_, send] = story.at(5.1 * turn).done(send)
    assert 1000 < 5.1 * turn < 1010


def test_an_unseen_shape_is_refused_and_measured_by_an_idle_device() -> None:
    story = fifo(spec(1, batch_max=2))
    huge = ((3, 800, 800),)
    _, [answer, profile] = story.request(1, 100, shape=huge)
    assert (answer.status, answer.reason) == (Status.REFUSED, Reason.UNPROFILED)
    assert isinstance(profile, SendProfile)
    story.at(30).done(profile, 30)
    one, [send] = story.request(1, 100, shape=huge)
    assert (send.requests, send.expected_ns) == ((one,), 30 * MS)
