"""A worker needs a device for itself, to prepare a model: when it gets the device, and the work around it."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.scheduler.types import (
    AnswerFailed,
    DeviceLost,
    Fault,
    ModelFault,
    SendInfer,
    SendLoad,
    SendReserve,
    SendUnload,
    TimeWanted,
    WorkerLeft,
)
from clockwork.wire.messages import Status
from tests.unit.stories import MS, Story, spec

POLICIES = ("adaptive", "edf", "fifo")
NEW = 9


def want(story: Story, ms: float, *runs: int, device: int = 0) -> list[Any]:
    return story(TimeWanted(story.now, 1, device, NEW, round(ms * MS), runs))


def reserves(orders: list[Any]) -> list[SendReserve]:
    return [one for one in orders if isinstance(one, SendReserve)]


def work(story: Story, from_ms: float, rounds: int, period_ms: float, exec_ms: float = 5) -> float:
    """Send requests one after the other, each executed at once; return when the last has ended."""
    for turn in range(rounds):
        story.at(from_ms + turn * period_ms)
        _, orders = story.request()
        (infer,) = (one for one in orders if isinstance(one, SendInfer))
        story.at(from_ms + turn * period_ms + exec_ms + 0.2)
        assert reserves(story.done(infer, exec_ms)) == []
    return from_ms + (rounds - 1) * period_ms + exec_ms + 0.2


@pytest.mark.parametrize("policy", POLICIES)
def test_an_idle_device_gives_its_time_and_executes_behind_it(policy: str) -> None:
    story = Story(policy, spec(1))
    story.at(100)
    [given] = want(story, 3)
    assert isinstance(given, SendReserve)
    assert (given.model_id, given.run_starts, given.expected_ns) == (NEW, (), 3 * MS)
    story.at(101)
    _, orders = story.request(slo_ms=100)  # the request may be sent when the device is nearly free
    story.at(103.2)
    [infer] = [*orders, *(order for _, order in story.until(103.2)), *story.done(given, 3)]
    assert isinstance(infer, SendInfer)
    story.at(108.5)
    assert story.done(infer, 5)[0].exec_ns == 5 * MS


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_who_cannot_wait_for_its_end_is_refused_and_not_sent(policy: str) -> None:
    story = Story(policy, spec(1))
    story.at(100)
    want(story, 30)
    _, orders = story.request(slo_ms=20)
    [refused] = [*orders, *(order for _, order in story.until(116))]
    assert isinstance(refused, AnswerFailed)
    assert refused.status is Status.REFUSED


@pytest.mark.parametrize("policy", POLICIES)
def test_it_is_given_at_the_beginning_of_a_gap_that_is_likely_to_hold_it(policy: str) -> None:
    story = Story(policy, spec(1))
    end = work(story, 100, 20, 15)
    story.at(end + 5)
    assert want(story, 6) == []  # the next request is likely to come within 5 ms
    story.at(400)
    _, [infer] = story.request()
    story.at(405.2)
    [_, given] = story.done(infer)
    assert isinstance(given, SendReserve)
    story.at(411)
    story.done(given, 5.8)
    assert want(story, 6) == []


def test_where_it_does_not_fit_it_begins_with_a_gap_and_not_in_the_middle_of_one() -> None:
    story = Story("adaptive", spec(1))
    end = work(story, 100, 20, 20)
    story.at(end + 5)
    assert want(story, 18) == []
    end = work(story, 500, 10, 20)
    assert story.until(end + 14) == []  # from 200 ms after the need on, the reservation may come
    story.at(end + 14.8)
    _, [infer] = story.request()
    story.at(end + 20)
    [given] = reserves(story.done(infer))
    story.at(end + 39)
    story.done(given, 18)


def test_of_gaps_that_come_by_chance_none_is_likely_to_hold_it() -> None:
    """One gap in fifty is too short."""
    story = Story("adaptive", spec(1))
    at = 100.0
    for turn in range(150):
        end = work(story, at, 1, 0)
        at = end + (1 if turn % 50 == 49 else 100)
    story.at(at)
    _, [infer] = story.request()
    want(story, 30)
    story.at(at + 5.2)
    assert reserves(story.done(infer)) == []


def test_an_idle_device_gives_all_of_its_time_whatever_came_in_a_burst_before() -> None:
    story = Story("adaptive", spec(1))
    end = work(story, 100, 4, 8)  # work with gaps of 3 ms
    end = work(story, end + 100, 4, 1000)
    assert want(story, 5) == []
    [(at, given)] = story.until(end + 200.5)
    assert at == pytest.approx(end + 200, abs=0.1)
    for _ in range(40):
        at += 6
        story.at(at)
        story.done(given, 5)
        [given] = reserves(want(story, 5))
    story.at(end + 992)  # the next request is about to come
    story.done(given, 5)
    assert want(story, 5) == []
    assert story.until(end + 998) == []


def test_one_that_is_longer_than_any_gap_comes_after_a_second_without_work() -> None:
    story = Story("adaptive", spec(1))
    end = work(story, 100, 4, 3000)
    assert want(story, 20_000) == []
    assert [ms for ms, _ in story.until(end + 2900)] == [pytest.approx(end + 1000, abs=20)]


def test_what_is_asked_for_again_has_waited_since_it_was_asked_for_first() -> None:
    story = Story("adaptive", spec(1))
    story.at(100)
    [infer] = story.request(slo_ms=5000)[1]
    given = reserves(want(story, 3))
    at = 100.0
    while not given and at < 3000:
        sent = story.request(slo_ms=5000)[1]
        at += 5
        story.at(at)
        sent += story.done(infer)
        if at % 50 == 0:
            sent += want(story, 3)
        given = reserves(sent)
        [infer] = (one for one in sent if isinstance(one, SendInfer))
    assert 1000 < at < 1300


def test_a_gap_has_to_hold_what_the_results_come_too_late_by() -> None:
    story = Story("adaptive", spec(1))
    work(story, 100, 20, 20)
    story.at(500)
    _, [infer] = story.request()
    story.at(505.2)
    want(story, 12)
    [given] = reserves(story.done(infer))
    story.at(505.2 + 15)
    story.done(given, 12)
    story.at(520.5)
    _, [infer] = story.request()
    want(story, 12)
    story.at(525.7)
    assert reserves(story.done(infer)) == []
    assert reserves(want(story, 10))


def test_a_gap_ends_when_work_comes_and_not_when_it_is_sent() -> None:
    """Otherwise the delay of a request delays the next one."""
    story = Story("adaptive", spec(1))
    end = work(story, 100, 20, 15.2)  # work with gaps of 10 ms
    for _ in range(70):
        [given] = reserves(want(story, 3))
        story.at(end + 10)
        story.request()
        end += 14
        story.at(end)
        [infer] = story.done(given, 14)
        end += 5.2
        story.at(end)
        story.done(infer)
    assert want(story, 6) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_a_device_that_has_become_quiet_gives_it(policy: str) -> None:
    story = Story(policy, spec(1))
    end = work(story, 100, 20, 15)
    story.at(end + 5)
    assert want(story, 30) == []
    [(ms, given)] = story.until(end + 100)
    assert isinstance(given, SendReserve)
    assert ms == pytest.approx(end + 20, abs=0.1)


@pytest.mark.parametrize("policy", POLICIES)
def test_where_no_gap_is_long_enough_a_bounded_share_of_the_time_is_taken(policy: str) -> None:
    story = Story(policy, spec(1))
    work(story, 100, 20, 8)
    given: list[tuple[float, SendReserve]] = []
    want(story, 10)
    at = 260.0
    while len(given) < 3:
        story.at(at)
        _, orders = story.request()
        (infer,) = (one for one in orders if isinstance(one, SendInfer))
        story.at(at + 5.2)
        for one in reserves(story.done(infer)):
            given.append((at, one))
            story.at(at + 16)
            story.done(one, 10)
            want(story, 10)
            at += 16
        at += 8
    # 200 ms after the need, and then 10 ms (with their margin) of each 500.
    first, second, third = (ms for ms, _ in given)
    assert first == pytest.approx(260 + 200, abs=10)
    assert second - first > 500
    assert third - second > 500


def test_a_device_that_always_has_work_gives_it_in_the_middle() -> None:
    story = Story("adaptive", spec(1))
    story.at(100)
    _, [infer] = story.request(slo_ms=5000)
    want(story, 3)
    given: list[SendReserve] = []
    at = 100.0
    while not given and at < 3000:
        _, more = story.request(slo_ms=5000)
        at += 5
        story.at(at)
        orders = story.done(infer)
        given = reserves(more + orders)
        (infer,) = (one for one in more + orders if isinstance(one, SendInfer))
    assert 1000 < at < 1300


def serve(story: Story, models: int, sent: list[Any], until_ms: float) -> float:
    """Each model always has work, of 5 ms; until a RESERVE is sent, or nothing more. Return the time."""
    at = (story.now - 1000 * MS) / MS
    while at < until_ms and not reserves(sent):
        for model in range(1, models + 1):
            sent += story.request(model, slo_ms=1000)[1]
        sent += [order for _, order in story.until(at)]
        sent[:] = [one for one in sent if hasattr(one, "worker")]
        if not sent or reserves(sent):
            break
        order = sent.pop(0)
        at += 0.1 if isinstance(order, SendUnload) else 5
        sent += [one for _, one in story.until(at)]
        sent += story.done(order, 0.1 if isinstance(order, SendUnload) else 5)
    return at


@pytest.mark.parametrize("policy", ["adaptive", "fifo"])
@pytest.mark.parametrize("models", [1, 2])
def test_models_that_always_have_work_make_way_for_its_pages_and_come_back(policy: str, models: int) -> None:
    """The worker needs all pages, and no model is ever idle."""
    story = Story(policy, *(spec(one) for one in range(1, models + 1)), pages=2 * models)
    story.at(100)
    sent = [*story.request(1, slo_ms=1000)[1], *want(story, 3, *(2,) * models)]
    assert 1100 <= serve(story, models, sent, 3000) < 1300
    [given] = reserves(sent)
    assert sorted(given.run_starts) == [2 * one for one in range(models)]
    story.at((story.now - 1000 * MS) / MS + 3.2)
    orders = [*story.done(given, 3), *want(story, 0), *story.request(1)[1]]
    orders += [order for _, order in story.until((story.now - 1000 * MS) / MS + 50)]
    assert any(isinstance(one, SendLoad) for one in orders), orders[-3:]


def test_a_model_that_was_to_make_way_serves_on_when_it_is_wanted_no_more() -> None:
    story = Story("adaptive", spec(1), pages=2)
    story.at(100)
    [infer] = story.request(1, slo_ms=1000)[1]
    want(story, 3, 2)
    for turn in range(1, 201):
        story.request(slo_ms=1000)
        orders = [one for _, one in story.until(100 + 5 * turn)] + story.done(infer)
        [infer] = (one for one in orders if isinstance(one, SendInfer))
    story.request(slo_ms=1000)
    assert story.until(1105) == []  # after a second of waiting the model is sent nothing more
    assert any(isinstance(one, SendInfer) for one in want(story, 0))


def test_what_takes_longer_than_expected_counts_as_long_as_it_took() -> None:
    story = Story("adaptive", spec(1))
    story.at(100)
    sent = [*story.request(1, slo_ms=1000)[1], *want(story, 2)]
    serve(story, 1, sent, 3000)
    at = (story.now - 1000 * MS) / MS
    given = reserves(sent).pop()
    sent.remove(given)
    # executions sent before the reservation
    for order in [one for one in sent if isinstance(one, SendInfer)]:
        at += 5
        story.at(at)
        story.done(order)
    story.at(at + 40)
    sent = [one for _ in range(4) for one in story.request(1, slo_ms=1000)[1]]
    sent += [*story.done(given, 40), *want(story, 2)]
    assert serve(story, 1, sent, 6000) - at > 1900


@pytest.mark.parametrize("expected_ns", [-1, -(1 << 62), 1 << 62])
def test_a_time_that_cannot_be_is_not_expected(expected_ns: int) -> None:
    story = Story("adaptive", spec(1))
    story.at(100)
    orders = story(TimeWanted(story.now, 1, 0, NEW, expected_ns, ()))
    assert [one.expected_ns for one in orders] == ([60_000 * MS] if expected_ns > 0 else [])


def test_one_that_does_not_end_is_noted_and_its_worker_is_sent_nothing_more() -> None:
    story = Story("adaptive", spec(1))
    story.at(100)
    [given] = want(story, 3)
    story.at(60_100)
    assert story.done(given, 60_000, Status.OVERRUN) == [ModelFault(NEW, 1, Fault.TRIAL_STUCK, False)]
    _, [refused] = story.request()
    assert isinstance(refused, AnswerFailed)
    assert want(story, 3) == []


def test_edf_gives_none_that_would_break_a_promise() -> None:
    story = Story("edf", spec(1))
    story.at(100)
    at = 100.0
    sent = [one for _ in range(4) for one in story.request(slo_ms=30)[1]]
    want(story, 30)
    for _ in range(300):
        at += 5
        story.at(at)
        orders = story.done(sent.pop(0)) + story.request(slo_ms=30)[1]
        assert reserves(orders) == []
        sent += [one for one in orders if isinstance(one, SendInfer)]
    assert at > 1000


def loading(policy: str, load_ms: float, slo_ms: float = 0) -> tuple[Story, int, SendLoad]:
    """At 100 ms, a load has begun on one of a worker's two devices; return the other's number."""
    story = Story(policy, spec(1, load_ms=load_ms), devices=2, resident=False)
    story.at(100)
    _, [load] = story.request(1, slo_ms=slo_ms)
    return story, 1 - load.device, load


@pytest.mark.parametrize(("slo_ms", "given"), [(1600, 0), (2600, 1)])
def test_edf_gives_none_that_would_break_a_promise_of_a_device_beside(slo_ms: float, given: int) -> None:
    """The reservation shares the link, and may copy only before the promised load must begin."""
    story, other, _ = loading("edf", 1200, slo_ms)
    want(story, 800, 1, device=other)
    assert len(story.until(1299)) == given


@pytest.mark.parametrize("policy", POLICIES)
def test_one_with_pages_waits_for_loads_onto_other_devices_of_its_worker(policy: str) -> None:
    """It may copy over the shared link, and would hold its own device until the end of the loads."""
    story, other, _ = loading(policy, 40)
    assert want(story, 3, 1, device=other) == []
    [(ms, given)] = story.until(300)
    assert isinstance(given, SendReserve)
    assert (given.device, given.run_starts) == (other, (0,))
    assert ms == pytest.approx(100 + 40, abs=1)
    story, other, _ = loading(policy, 40)
    [given] = want(story, 3, device=other)  # a reservation without pages copies nothing
    assert isinstance(given, SendReserve)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_link_is_one_reservations_until_it_ends_or_its_device_is_lost(policy: str) -> None:
    story, other, load = loading(policy, 40)
    want(story, 400, 1, device=other)
    [(_, given)] = story.until(145)
    [infer] = story.done(load, 40)
    story.at(151)
    story.done(infer)
    assert want(story, 300, 1, device=load.device) == []
    [(ms, second)] = story.until(600)
    assert ms == pytest.approx(141 + 400, abs=10)  # the time at which the first load is expected to end
    story.done(given, 460)
    assert want(story, 3, 1, device=other) == []
    [again] = reserves(story(DeviceLost(story.now, 1, second.device)))
    assert again.device == other
    story.at(610)
    story.done(again, 1)  # the load ends sooner than expected
    assert [one.device for one in want(story, 3, 1, device=other)] == [other]


def test_where_the_link_is_never_free_a_bounded_share_of_the_time_is_taken() -> None:
    story, other, _ = loading("adaptive", 20_000)
    want(story, 3, 1, device=other)
    [(first_ms, given)] = story.until(3000)
    assert first_ms == pytest.approx(100 + 1000, abs=1)
    story.at(first_ms + 40)  # the reservation has waited for another page
    story.done(given, 40)
    assert want(story, 3, 1, device=other) == []
    [(second_ms, given)] = story.until(5000)
    assert second_ms - first_ms == pytest.approx(50 * 40, rel=0.01)


@pytest.mark.parametrize("policy", POLICIES)
def test_pages_come_with_it_and_stay_until_others_are_wanted(policy: str) -> None:
    story = Story(policy, spec(1), spec(2), pages=4)  # both models are resident, so no page is free
    story.at(2000)
    [unload] = want(story, 3, 1, 1)
    assert isinstance(unload, SendUnload)
    [given] = story.done(unload, 0.1)
    assert sorted(given.run_starts) in ([0, 1], [2, 3])
    story.done(given, 3)
    [again] = want(story, 3, 1, 1)
    assert again.run_starts == given.run_starts
    story.done(again, 3)
    assert story.scheduler.devices()[0]["pages_free"] == 0
    want(story, 0)
    assert story.scheduler.devices()[0]["pages_free"] == 2


def test_one_that_came_too_late_is_given_again_and_one_that_is_taken_back_is_not() -> None:
    story = Story("adaptive", spec(1))
    story.at(100)
    [given] = want(story, 3)
    story.at(200)
    story.done(given, 0, Status.TOO_LATE)
    [(_, again)] = story.until(300)
    assert isinstance(again, SendReserve)
    story.done(again, 3)
    assert story.until(1000) == []
    story.at(1000)
    [given] = want(story, 3)
    want(story, 0)
    story.done(given, 0, Status.TOO_LATE)
    assert story.until(2000) == []
    want(story, 5, 9)  # the request is for more pages than there are
    assert story.until(3000) == []
    [given] = want(story, 3, 1)
    story(WorkerLeft(story.now, 1))
    assert story.done(given, 3) == []
