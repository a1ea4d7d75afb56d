"""The host store of a worker, as stories: FETCH before LOAD, DROP to make room, both hops in every
promise."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.scheduler import make_scheduler
from clockwork.scheduler.types import (
    AnswerFailed,
    ModelGone,
    ModelRemoved,
    SendDrop,
    SendFetch,
    SendInfer,
    SendLoad,
)
from clockwork.system.clock import MS
from clockwork.wire.messages import Reason, Status
from tests.unit.stories import PAGE_BYTES, Story, spec


class HostStory(Story):
    """A device of eight pages before a host store, to which the link takes no time."""

    def __init__(self, host_pages: int, count: int = 3, policy: str = "adaptive") -> None:
        specs = [spec(model, program="p") for model in range(1, count + 1)]
        super().__init__(policy, *specs, pages=8, resident=False, host_pages=host_pages, link_ns=0)

    def ask_for(self, model: int = 1, slo_ms: float = 100) -> list[Any]:
        return self.request(model, slo_ms)[1]

    def end(self, sent: Any, took_ms: float, status: Status = Status.OK) -> list[Any]:
        """Begin the action now, and let time pass until it has ended."""
        self.now += round(took_ms * MS)
        return self.done(sent, took_ms, status)

    def serve(self, model: int) -> None:
        [fetch] = self.ask_for(model)
        [load] = self.end(fetch, 1)
        [infer] = self.end(load, 4)
        self.end(infer, 5)

    def host(self) -> tuple[int, int]:
        [row] = self.scheduler.devices()
        return row["hosted"], row["host_used"] // PAGE_BYTES


def test_a_model_is_fetched_then_loaded_then_run() -> None:
    story = HostStory(host_pages=4)
    [fetch] = story.ask_for()
    assert isinstance(fetch, SendFetch)
    assert (fetch.worker, fetch.device, fetch.model_id) == (1, 0, 1)
    assert fetch.expected_ns == PAGE_BYTES, "two pages at what is assumed of a disk"
    [load] = story.end(fetch, 2)
    assert isinstance(load, SendLoad)
    [infer] = story.end(load, 4)
    assert isinstance(infer, SendInfer)
    assert story.host() == (1, 2)


def test_the_next_fetch_is_expected_to_take_what_the_last_one_took_by_page() -> None:
    story = HostStory(host_pages=8)
    [fetch] = story.ask_for(1)
    story.end(fetch, 6)
    [second] = [one for one in story.ask_for(2) if isinstance(one, SendFetch)]
    assert second.expected_ns == 6 * MS


def test_the_least_recently_used_copy_makes_room() -> None:
    story = HostStory(host_pages=4)
    story.serve(1)
    story.serve(2)
    drop, fetch = story.ask_for(3)
    assert isinstance(drop, SendDrop)
    assert drop.model_id == 1
    assert isinstance(fetch, SendFetch)
    assert story.host() == (1, 4)


def test_a_copy_that_is_being_loaded_from_stays() -> None:
    story = HostStory(host_pages=2)
    [fetch] = story.ask_for(1)
    [load] = story.end(fetch, 1)
    assert story.ask_for(2) == [], "the store is full of what is being loaded"
    [infer] = story.end(load, 4)
    assert isinstance(infer, SendInfer)
    drop, fetch = story.end(infer, 5)[1:]
    assert isinstance(drop, SendDrop)
    assert isinstance(fetch, SendFetch)
    assert fetch.model_id == 2


def test_both_hops_count_against_the_deadline() -> None:
    story = HostStory(host_pages=4)
    refused, fetch = story.ask_for(1, slo_ms=9.5)
    assert isinstance(refused, AnswerFailed)
    assert (refused.status, refused.reason) == (Status.REFUSED, Reason.DEADLINE)
    assert 10 * MS < refused.feasible_slo_ns < 11 * MS, "1 + 4 + 5 and their margins"
    assert isinstance(fetch, SendFetch), "the next one shall find it nearer"
    story.end(fetch, 1)
    [load] = story.ask_for(1, slo_ms=9.5)
    assert isinstance(load, SendLoad)


def test_a_fetch_that_fails_is_tried_again_and_then_given_up() -> None:
    story = HostStory(host_pages=4)
    [fetch] = story.ask_for(1, slo_ms=1000)
    for _ in range(2):
        [fetch] = story.end(fetch, 1, Status.DEVICE_ERROR)
        assert isinstance(fetch, SendFetch)
    [answer] = story.end(fetch, 1, Status.DEVICE_ERROR)
    assert isinstance(answer, AnswerFailed)
    assert answer.status is Status.UNAVAILABLE
    assert story.host() == (0, 0)


def test_a_model_that_is_removed_leaves_the_host_store_before_it_is_gone() -> None:
    story = HostStory(host_pages=4)
    [fetch] = story.ask_for(1)
    story.end(story.end(story.end(fetch, 1)[0], 4)[0], 5)
    [unload] = story(ModelRemoved(story.now, 1))
    [drop] = story.end(unload, 0)
    assert isinstance(drop, SendDrop)
    assert story.end(drop, 0) == [ModelGone(1)]
    assert story.host() == (0, 0)


def test_a_request_without_a_deadline_brings_its_model_too() -> None:
    story = HostStory(host_pages=4)
    [fetch] = story.ask_for(1, slo_ms=0)
    assert isinstance(fetch, SendFetch)
    [load] = story.end(fetch, 1)
    assert isinstance(load, SendLoad)


def test_edf_does_not_plan_fetches() -> None:
    assert not make_scheduler("edf").plans_fetches
    assert make_scheduler("adaptive").plans_fetches
    with pytest.raises(RuntimeError, match="host store"):
        HostStory(host_pages=4, policy="edf")
