"""Stories of devices that are lost one by one, and of clocks that fall: the same under every policy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from clockwork.scheduler._core import POLICIES
from clockwork.scheduler.types import (
    AnswerFailed,
    AnswerOk,
    DeviceClock,
    DeviceLost,
    ModelReady,
    ModelRemoved,
    RequestCancelled,
    SendInfer,
    SendLoad,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.wire.messages import Status
from tests.unit.stories import MS, Story, spec

FULL_MHZ = 1980
SLOW_MHZ = 1386  # a clock 30 % lower


def infers(commands: list[Any]) -> list[SendInfer]:
    return [one for one in commands if isinstance(one, SendInfer)]


def loads(commands: list[Any]) -> list[SendLoad]:
    return [one for one in commands if isinstance(one, SendLoad)]


def devices_of(story: Story) -> list[tuple[int, int]]:
    return [(row["worker"], row["device"]) for row in story.scheduler.devices()]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_requests_of_a_lost_device_go_to_the_other_one_of_its_worker(policy: str) -> None:
    story = Story(policy, spec(1), devices=2)
    one, sent = story.request(1, 500)
    (infer,) = infers(sent)
    assert infer.device == 0
    commands = story(DeviceLost(story.now, 1, 0))
    (load,) = loads(commands)
    assert (load.worker, load.device) == (1, 1)
    assert devices_of(story) == [(1, 1)]
    story.now += 5 * MS
    again = infers(story.done(load, 4))
    assert [request for order in again for request in order.requests] == [one]
    assert {order.device for order in again} == {1}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_lost_device_still_says_is_ignored(policy: str) -> None:
    story = Story(policy, spec(1), devices=2)
    _, sent = story.request(1, 500)
    (infer,) = infers(sent)
    story(DeviceLost(story.now, 1, 0))
    assert story.done(infer, 5, Status.DEVICE_ERROR) == []
    assert story(DeviceLost(story.now, 1, 0)) == []
    assert story(DeviceLost(story.now, 1, 7)) == []
    assert story(DeviceLost(story.now, 9, 0)) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_with_the_last_device_everything_is_answered(policy: str) -> None:
    story = Story(policy, spec(1), devices=2)
    ids = [story.request(1, 500)[0], story.request(1, 500)[0], story.request(1, 0)[0]]
    commands = story(DeviceLost(story.now, 1, 0)) + story(DeviceLost(story.now, 1, 1))
    failed = [one for one in commands if isinstance(one, AnswerFailed)]
    assert sorted(one.request_id for one in failed) == ids
    assert {one.status for one in failed} == {Status.UNAVAILABLE}
    assert devices_of(story) == []
    _, (refused,) = story.request(1, 500)
    assert isinstance(refused, AnswerFailed)
    assert story(WorkerLeft(story.now, 1)) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_a_load_under_way_on_a_lost_device_delays_nobody(policy: str) -> None:
    """The devices of a worker share its link: a load of 400 ms on the lost device no longer blocks the
    others."""
    story = Story(policy, spec(1, load_ms=400), spec(2), devices=2, resident=False)
    one, sent = story.request(1, 5000)
    (load,) = loads(sent)
    story(RequestCancelled(story.now, one))
    story(DeviceLost(story.now, 1, load.device))
    (other,) = {0, 1} - {load.device}
    assert devices_of(story) == [(1, other)]
    story.now += 1 * MS
    _, sent = story.request(2, 60)
    refused = [one for one in sent if isinstance(one, AnswerFailed) and one.request_id == story.ids]
    assert refused == [], "its own load of 4 ms is soon over"


def test_a_model_removed_while_its_device_goes_is_gone() -> None:
    story = Story("edf", spec(1), devices=2)
    story.request(1, 500)
    story(ModelRemoved(story.now, 1))
    commands = story(DeviceLost(story.now, 1, 0))
    commands += story(DeviceLost(story.now, 1, 1))
    assert type(commands[-1]).__name__ == "ModelGone"


def test_a_kind_of_device_that_was_lost_says_nothing_of_what_is_feasible() -> None:
    story = Story("adaptive", spec(1, exec_ms=50))
    story(WorkerJoined(story.now, 2, (("gpu", 1 << 20, 4, 2), ("cpu", 1 << 20, 4, 2))))
    story(ModelReady(story.now, 2, spec(1, exec_ms=2)))
    story(DeviceLost(story.now, 2, 0))
    _, commands = story.request(1, slo_ms=20)
    assert [one.status for one in commands if isinstance(one, AnswerFailed)] == [Status.REFUSED]


# ----- clocks --------------------------------------------------------------------------------


def expected_ns(story: Story, model: int = 1) -> int:
    """Run the next INFER of a model for exactly its predicted time; return that time."""
    _, sent = story.request(model, 900)
    (infer,) = infers(sent)
    story.now += 50 * MS
    story.done(infer, infer.expected_ns / MS)
    return int(infer.expected_ns)


@pytest.mark.parametrize("policy", POLICIES)
def test_predictions_follow_a_clock_at_once(policy: str) -> None:
    """Without normalisation two of ten samples would have to be seen first, and all of them to notice that it
    is over."""
    story = Story(policy, spec(1))
    story(DeviceClock(story.now, 1, 0, FULL_MHZ))
    assert expected_ns(story) == 5 * MS
    story(DeviceClock(story.now, 1, 0, SLOW_MHZ))
    slow = round(5 * MS * FULL_MHZ / SLOW_MHZ)
    for _ in range(12):
        assert expected_ns(story) == pytest.approx(slow, rel=1e-3)
    story(DeviceClock(story.now, 1, 0, FULL_MHZ))
    assert expected_ns(story) == pytest.approx(5 * MS, rel=1e-3)


def test_without_a_clock_predictions_lag() -> None:
    """The result of the test above if nothing were normalised."""
    story = Story("adaptive", spec(1))
    slow = 5 * FULL_MHZ / SLOW_MHZ
    seen = []
    for _ in range(3):
        _, sent = story.request(1, 900)
        (infer,) = infers(sent)
        story.now += 50 * MS
        story.done(infer, slow)
        seen.append(infer.expected_ns / MS)
    assert seen[:2] == [5, 5]
    assert seen[2] == pytest.approx(slow)


@pytest.mark.parametrize("policy", POLICIES)
def test_of_two_devices_the_slower_is_planned_for_and_the_faster_expected_to_take_less(policy: str) -> None:
    """Two models of one program, each alone on a device, so that both update the same estimates."""
    story = Story(policy, spec(1), dataclasses.replace(spec(2), program="p1"), devices=2, pages=2)
    (_, fast, _), (_, slow, _) = story.scheduler.whereabouts(1) + story.scheduler.whereabouts(2)
    assert {fast, slow} == {0, 1}
    for index in (fast, slow):
        story(DeviceClock(story.now, 1, index, FULL_MHZ))
    story(DeviceClock(story.now, 1, slow, SLOW_MHZ))
    assert expected_ns(story, 1) == pytest.approx(5 * MS, rel=1e-3)
    assert expected_ns(story, 2) == pytest.approx(5 * MS * FULL_MHZ / SLOW_MHZ, rel=1e-3)
    assert expected_ns(story, 1) == pytest.approx(5 * MS, rel=1e-3)
    story(DeviceLost(story.now, 1, slow))
    (row,) = story.scheduler.devices()
    assert row["clock_mhz"] == FULL_MHZ
    assert expected_ns(story, 1) == pytest.approx(5 * MS, rel=1e-3)


@pytest.mark.parametrize(("workers", "devices"), [(1, 2), (2, 1)])
def test_what_a_device_has_failed_goes_to_another_one(workers: int, devices: int) -> None:
    """The device is free again at once, and would be the first choice for every request that it has failed,
    until none is tried again."""
    story = Story("edf", spec(1), workers=workers, devices=devices)
    one, sent = story.request(1, 500)
    (infer,) = infers(sent)
    (load,) = loads(story.done(infer, 0, Status.DEVICE_ERROR, "out of order"))
    assert (load.worker, load.device) != (infer.worker, infer.device)
    story.now += 5 * MS
    (again,) = infers(story.done(load, 4))
    assert again.requests == (one,)
    assert (again.worker, again.device) == (load.worker, load.device)
    # If the other device fails as well, the first is tried once more: a failure does not exclude it for ever.
    (last,) = infers(story.done(again, 0, Status.DEVICE_ERROR, "out of order"))
    assert (last.worker, last.device) == (infer.worker, infer.device)
    story.now += 5 * MS
    assert [type(command) for command in story.done(last)] == [AnswerOk]
