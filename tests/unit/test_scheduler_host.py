"""The host store of a worker, as stories: FETCH before LOAD, DROP to make room, both hops in every promise."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.scheduler import make_scheduler
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    Arrived,
    LinkMeasured,
    ModelGone,
    ModelReady,
    ModelRemoved,
    ModelSpec,
    ProfilePoint,
    Request,
    SendDrop,
    SendFetch,
    SendInfer,
    SendLoad,
    Wake,
    WorkerJoined,
)
from clockwork.system.clock import MS
from clockwork.wire.messages import NEVER_NS, Reason, Status

PAGE = 1 << 20
SHAPE = ((4,),)


class Story:
    def __init__(self, host_pages: int, count: int = 3, policy: str = "adaptive") -> None:
        self.scheduler = make_scheduler(policy)
        self.now = 1000 * MS
        self.ids = 0
        self(WorkerJoined(0, 1, (("gpu", PAGE, 8, 2),), host_pages * PAGE))
        self(LinkMeasured(0, 1, 0, 0))
        for model in range(1, count + 1):
            point = ProfilePoint(SHAPE, 1, 5 * MS)
            self(ModelReady(0, 1, ModelSpec(model, f"m{model}", 1, "p", False, 1, 0, (2,), 4 * MS, [point])))

    def __call__(self, event: Any) -> list[Any]:
        commands = self.scheduler.step(event)
        self.scheduler.check_invariants()
        return [one for one in commands if not isinstance(one, Wake)]

    def request(self, model: int = 1, slo_ms: float = 100) -> list[Any]:
        self.ids += 1
        deadline = self.now + round(slo_ms * MS) if slo_ms else NEVER_NS
        return self(Arrived(self.now, Request(self.ids, model, 1, SHAPE, 10, self.now, deadline, 4)))

    def done(self, sent: Any, took_ms: float, status: Status = Status.OK) -> list[Any]:
        begin = self.now
        self.now += round(took_ms * MS)
        return self(ActionDone(self.now, 1, sent.action_id, status, "", begin, self.now, self.now - begin))

    def serve(self, model: int) -> None:
        [fetch] = self.request(model)
        [load] = self.done(fetch, 1)
        [infer] = self.done(load, 4)
        self.done(infer, 5)

    def host(self) -> tuple[int, int]:
        [row] = self.scheduler.devices()
        return row["hosted"], row["host_used"] // PAGE


def test_a_model_is_fetched_then_loaded_then_run() -> None:
    story = Story(host_pages=4)
    [fetch] = story.request()
    assert isinstance(fetch, SendFetch)
    assert (fetch.worker, fetch.device, fetch.model_id) == (1, 0, 1)
    assert fetch.expected_ns == PAGE, "two pages at what is assumed of a disk"
    [load] = story.done(fetch, 2)
    assert isinstance(load, SendLoad)
    [infer] = story.done(load, 4)
    assert isinstance(infer, SendInfer)
    assert story.host() == (1, 2)


def test_the_next_fetch_is_expected_to_take_what_the_last_one_took_by_page() -> None:
    story = Story(host_pages=8)
    [fetch] = story.request(1)
    story.done(fetch, 6)
    [second] = [one for one in story.request(2) if isinstance(one, SendFetch)]
    assert second.expected_ns == 6 * MS


def test_the_least_recently_used_copy_makes_room() -> None:
    story = Story(host_pages=4)
    story.serve(1)
    story.serve(2)
    drop, fetch = story.request(3)
    assert isinstance(drop, SendDrop)
    assert drop.model_id == 1
    assert isinstance(fetch, SendFetch)
    assert story.host() == (1, 4)


def test_a_copy_that_is_being_loaded_from_stays() -> None:
    story = Story(host_pages=2)
    [fetch] = story.request(1)
    [load] = story.done(fetch, 1)
    assert story.request(2) == [], "the store is full of what is being loaded"
    [infer] = story.done(load, 4)
    assert isinstance(infer, SendInfer)
    drop, fetch = story.done(infer, 5)[1:]
    assert isinstance(drop, SendDrop)
    assert isinstance(fetch, SendFetch)
    assert fetch.model_id == 2


def test_both_hops_count_against_the_deadline() -> None:
    story = Story(host_pages=4)
    refused, fetch = story.request(1, slo_ms=9.5)
    assert isinstance(refused, AnswerFailed)
    assert (refused.status, refused.reason) == (Status.REFUSED, Reason.DEADLINE)
    assert 10 * MS < refused.feasible_slo_ns < 11 * MS, "1 + 4 + 5 and their margins"
    assert isinstance(fetch, SendFetch), "the next one shall find it nearer"
    story.done(fetch, 1)
    [load] = story.request(1, slo_ms=9.5)
    assert isinstance(load, SendLoad)


def test_a_fetch_that_fails_is_tried_again_and_then_given_up() -> None:
    story = Story(host_pages=4)
    [fetch] = story.request(1, slo_ms=1000)
    for _ in range(2):
        [fetch] = story.done(fetch, 1, Status.DEVICE_ERROR)
        assert isinstance(fetch, SendFetch)
    [answer] = story.done(fetch, 1, Status.DEVICE_ERROR)
    assert isinstance(answer, AnswerFailed)
    assert answer.status is Status.UNAVAILABLE
    assert story.host() == (0, 0)


def test_a_model_that_is_removed_leaves_the_host_store_before_it_is_gone() -> None:
    story = Story(host_pages=4)
    [fetch] = story.request(1)
    story.done(story.done(story.done(fetch, 1)[0], 4)[0], 5)
    [unload] = story(ModelRemoved(story.now, 1))
    [drop] = story.done(unload, 0)
    assert isinstance(drop, SendDrop)
    assert story.done(drop, 0) == [ModelGone(1)]
    assert story.host() == (0, 0)


def test_a_request_without_a_deadline_brings_its_model_too() -> None:
    story = Story(host_pages=4)
    [fetch] = story.request(1, slo_ms=0)
    assert isinstance(fetch, SendFetch)
    [load] = story.done(fetch, 1)
    assert isinstance(load, SendLoad)


def test_edf_does_not_plan_fetches() -> None:
    assert not make_scheduler("edf").plans_fetches
    assert make_scheduler("adaptive").plans_fetches
    with pytest.raises(RuntimeError, match="host store"):
        Story(host_pages=4, policy="edf")
