"""Disk stores of workers, as stories: models that are brought from another worker, and copies that are kept,
made and dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from clockwork.errors import ConfigError
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.types import (
    AnswerFailed,
    CopyLost,
    LinkMeasured,
    ModelGone,
    ModelReady,
    ModelRemoved,
    RoomWanted,
    SendDrop,
    SendFetch,
    SendInfer,
    SendLoad,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.system.clock import MS, SECOND
from clockwork.wire.messages import Reason, Status
from tests.unit.stories import PAGE_BYTES, Story, spec

FETCH_MS = 2 * PAGE_BYTES * 10 / MS
"""Two pages at what is assumed of the way from another worker."""


GRACE_NS = 10 * SECOND  # RESTART_GRACE_NS of csrc/scheduler/keepers.h


class StoreStory(Story):
    """Workers of a device each, whose disks have room for `room` models of two pages. has: the models on each
    worker's disk; every worker could be brought all `count` models."""

    def __init__(
        self,
        has: Mapping[int, Sequence[int]],
        count: int,
        room: int = 4,
        policy: str = "adaptive",
        pages: int = 8,
        copies: int = 2,
    ) -> None:
        super().__init__(policy, workers=0, resident=False, options={"stored_copies": copies})
        self.count, self.pages = count, pages
        self.sent: list[Any] = []
        for worker in has:
            self.join(worker, has[worker], room)

    def __call__(self, event: Any) -> list[Any]:
        commands = super().__call__(event)
        self.sent += commands
        return commands

    def join(self, worker: int, has: Sequence[int], room: int = 4) -> list[Any]:
        orders = self(
            WorkerJoined(self.now, worker, (("cpu", PAGE_BYTES, self.pages, 2),), 0, 2 * room * PAGE_BYTES)
        )
        orders += self(LinkMeasured(self.now, worker, 0, 0))
        for model in range(1, self.count + 1):
            orders += self(ModelReady(self.now, worker, spec(model, program="p"), model in has))
        return orders

    def end(self, sent: Any, took_ms: float, status: Status = Status.OK) -> list[Any]:
        """Let time pass until the action has ended."""
        self.now += round(took_ms * MS)
        return self.done(sent, took_ms, status)

    def rest(self) -> None:
        """End every action, successfully, until nothing is under way."""
        while self.sent:
            one = self.sent.pop(0)
            if isinstance(one, SendFetch | SendDrop | SendLoad | SendInfer):
                self.end(one, 5)

    def pass_grace(self) -> None:
        """Let the time pass for which the copies of a worker that left are awaited."""
        self.now += GRACE_NS
        self(Tick(self.now))
        self.rest()

    def counts(self) -> dict[str, int]:
        status = self.scheduler.store_status()
        return {name: status[name] for name in ("scarce", "lost", "copying")}

    def row(self, worker: int) -> dict[str, Any]:
        [row] = [row for row in self.scheduler.devices() if row["worker"] == worker]
        return row

    def kept(self, *models: int) -> list[list[int]]:
        return [sorted(self.scheduler.keepers(model)) for model in models]


def kinds(orders: Sequence[Any]) -> list[tuple[str, int, int]]:
    return [(type(one).__name__, one.worker, one.model_id) for one in orders if hasattr(one, "action_id")]


# ----- serving --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["adaptive", "edf", "fifo", "deferred", "paper"])
def test_a_model_is_loaded_by_a_worker_that_has_it(policy: str) -> None:
    story = StoreStory({1: [], 2: [], 3: [1]}, count=1, policy=policy, copies=1)
    _, orders = story.request(1)
    assert kinds(orders) == [("SendLoad", 3, 1)]
    [infer] = story.end(orders[0], 4)
    assert isinstance(infer, SendInfer)


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_both_hops_count_where_only_a_worker_that_leaves_has_the_model(policy: str) -> None:
    story = StoreStory({1: [1], 2: []}, count=1, policy=policy, copies=1)
    [fetch] = story(WorkerDraining(story.now, 1))
    assert kinds([fetch]) == [("SendFetch", 2, 1)]
    assert fetch.expected_ns == round(FETCH_MS * MS)
    [refused] = story.request(1, 25)[1]
    assert isinstance(refused, AnswerFailed)
    assert (refused.status, refused.reason) == (Status.REFUSED, Reason.DEADLINE)
    assert 30 * MS <= refused.feasible_slo_ns < 35 * MS, "21 + 4 + 5 and their margins"
    story.end(fetch, FETCH_MS)
    assert kinds(story.request(1, 25)[1]) == [("SendLoad", 2, 1)]


def test_adaptive_waits_for_both_hops_where_they_are_in_time() -> None:
    story = StoreStory({1: [1], 2: []}, count=1, copies=1)
    [fetch] = story(WorkerDraining(story.now, 1))
    assert story.request(1, 100)[1] == []
    [load] = story.end(fetch, FETCH_MS)
    assert kinds([load]) == [("SendLoad", 2, 1)]


def test_a_model_that_no_worker_has_is_refused_and_served_once_it_is_prepared_again() -> None:
    story = StoreStory({1: [1], 2: []}, count=1, copies=1)
    story(WorkerLeft(story.now, 1))
    story.sent.clear()
    [refused] = story.request(1)[1]
    assert (refused.status, refused.reason) == (Status.REFUSED, Reason.NO_WORKER)
    assert refused.text == "no worker has m1@1 any more; it has to be prepared again"
    assert story.counts() == {"scarce": 0, "lost": 1, "copying": 0}
    story(ModelReady(story.now, 2, spec(1, program="p")))
    assert kinds(story.request(1)[1]) == [("SendLoad", 2, 1)]
    assert story.scheduler.store_status()["lost"] == 0


def test_a_model_larger_than_every_store_is_refused() -> None:
    story = StoreStory({1: [], 2: []}, count=0, room=1)
    story(WorkerJoined(story.now, 3, (("cpu", PAGE_BYTES, 2, 2),)))  # has it, and no memory for it
    for worker in (1, 2, 3):
        story(ModelReady(story.now, worker, spec(1, runs=(3,)), worker == 3))
    [refused] = story.request(1)[1]
    assert (refused.status, refused.reason) == (Status.REFUSED, Reason.MEMORY)
    assert story.sent == [refused], "nothing was fetched"


def test_edf_keeps_what_a_plan_needs() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2]}, count=3, room=2, policy="edf", copies=1, pages=2)
    [load] = story.request(1)[1]
    worker = load.worker
    story(ModelReady(story.now, worker, spec(3, program="p")))  # its disk is over its budget
    assert [one.model_id for one in story.sent if isinstance(one, SendDrop)] == [2]


# ----- how long a FETCH takes -----------------------------------------------------------------


class FetchStory(StoreStory):
    """Models of any size come to worker 1, and are copied to worker 2 at once."""

    def __init__(self) -> None:
        super().__init__({1: [], 2: []}, count=0, room=200, pages=64)

    def fetch(self, pages: int) -> Any:
        """The FETCH of a new model of so many pages, of a program of its own."""
        self.count += 1
        told = spec(self.count, runs=(pages,))
        orders = self(ModelReady(self.now, 2, told, False))
        orders += self(ModelReady(self.now, 1, told, True))
        [fetch] = [order for order in orders if isinstance(order, SendFetch)]
        return fetch


def test_a_fetch_is_predicted_by_a_fixed_time_and_a_time_for_each_page() -> None:
    story = FetchStory()
    for pages in (1, 2, 1, 4, 3):
        story.end(story.fetch(pages), 20 + 3 * pages)
    for pages in (1, 2, 8, 40):
        fetch = story.fetch(pages)
        assert fetch.expected_ns == pytest.approx((20 + 3 * pages) * MS, rel=1e-3)
        story.end(fetch, 20 + 3 * pages)


def test_fetches_of_one_size_say_nothing_of_a_fixed_time() -> None:
    story = FetchStory()
    for _ in range(3):
        story.end(story.fetch(2), 12)
    assert story.fetch(4).expected_ns == 24 * MS


def test_a_few_fetches_that_stalled_do_not_count() -> None:
    story = FetchStory()
    for count in range(16):
        pages = 1 + count % 4
        story.end(story.fetch(pages), 20 + 3 * pages + (500 if count % 5 == 2 else 0))
    assert story.fetch(10).expected_ns == pytest.approx(50 * MS, rel=0.05)


def test_a_link_that_was_slow_is_not_thought_so_for_ever() -> None:
    story = FetchStory()
    for pages in (1, 2, 3, 4):
        story.end(story.fetch(pages), 20 + 3 * pages)
    for pages in (1, 2, 3, 4, 5, 6, 7, 8):
        story.end(story.fetch(pages), 10 * (20 + 3 * pages))
    slow = story.fetch(10)
    assert slow.expected_ns > 300 * MS
    story.end(slow, 500)
    story.now += 4 * SECOND  # in which nothing is fetched
    story.request(1, 500)
    assert story.fetch(10).expected_ns == pytest.approx(50 * MS, rel=1e-3)


def test_only_the_last_fetches_count() -> None:
    story = FetchStory()
    for pages in (1, 2, 3, 4):
        story.end(story.fetch(pages), 100 * pages)
    for count in range(16):
        pages = 1 + count % 4
        story.end(story.fetch(pages), 20 + 3 * pages)
    assert story.fetch(10).expected_ns == pytest.approx(50 * MS, rel=1e-3)


# ----- copies ---------------------------------------------------------------------------------


def test_each_model_is_kept_by_two_workers() -> None:
    story = StoreStory({1: [1, 2], 2: [], 3: []}, count=2)
    assert story.scheduler.store_status()["scarce"] > 0 or story.sent
    story.rest()
    assert [len(workers) for workers in story.kept(1, 2)] == [2, 2]
    assert story.counts() == {"scarce": 0, "lost": 0, "copying": 0}


def test_a_single_worker_is_enough_where_there_is_no_other() -> None:
    story = StoreStory({1: [1, 2]}, count=2)
    assert story.sent == []
    assert story.scheduler.store_status()["scarce"] == 0


def test_the_copies_of_a_lost_worker_are_made_again() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2], 3: []}, count=2)
    assert story.sent == []
    story(WorkerLeft(story.now, 1))
    story.rest()
    assert story.kept(1, 2) == [[2], [2]], "it may be restarted"
    assert story.scheduler.store_status()["awaited"] == 2
    story.pass_grace()
    assert story.kept(1, 2) == [[2, 3], [2, 3]]
    assert story.scheduler.store_status()["awaited"] == 0


def test_a_worker_that_is_restarted_finds_its_copies_still_wanted() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2], 3: []}, count=2)
    story(WorkerDraining(story.now, 1))
    story.now += GRACE_NS - MS
    assert story.wake > story.now
    story(WorkerLeft(story.now, 1))
    story.now += GRACE_NS - MS
    story(Tick(story.now))
    story.join(4, [1, 2])
    story.now += 2 * GRACE_NS
    story(Tick(story.now))
    assert story.sent == [], "nothing was copied, nor dropped"
    assert story.kept(1, 2) == [[2, 4], [2, 4]]


def test_the_grace_lasts_while_a_worker_that_has_joined_may_be_looking_for_its_copies() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2], 3: []}, count=2)
    story(WorkerLeft(story.now, 1))
    story(WorkerJoined(story.now, 4, (("cpu", PAGE_BYTES, 8, 2),), 0, 8 * PAGE_BYTES))
    story(ModelReady(story.now, 4, spec(1, program="p"), False))
    story.now += GRACE_NS
    story(Tick(story.now))
    assert [one.model_id for one in story.sent] == [1], "it has said that it lacks the first"
    story(ModelReady(story.now, 4, spec(2, program="p"), True))
    story.rest()
    assert story.kept(2) == [[2, 4]]
    story(WorkerLeft(story.now, 4))
    story(WorkerJoined(story.now, 5, (("cpu", PAGE_BYTES, 8, 2),), 0, 8 * PAGE_BYTES))
    for _ in range(7):
        story.now += GRACE_NS
        story(Tick(story.now))
        story.rest()
    assert story.kept(1, 2) == [[2, 3], [2, 3]], "it is not awaited forever"


def test_what_only_workers_that_leave_have_is_not_awaited() -> None:
    story = StoreStory({1: [1], 2: [1], 3: []}, count=1)
    story(WorkerDraining(story.now, 1))
    assert story.sent == []
    [fetch] = story(WorkerDraining(story.now, 2))
    assert kinds([fetch]) == [("SendFetch", 3, 1)]


def test_a_copy_that_is_lost_for_another_reason_is_made_at_once() -> None:
    story = StoreStory({1: [1], 2: [1], 3: [], 4: [1]}, count=1, copies=3)
    story(CopyLost(story.now, 4, 1))
    [fetch] = [one for one in story.sent if isinstance(one, SendFetch)]
    story(WorkerLeft(story.now, fetch.worker))
    assert len([one for one in story.sent if isinstance(one, SendFetch)]) == 2


def test_nothing_is_dropped_below_two_copies() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2], 3: [3, 4], 4: [3, 4]}, count=4, room=2)
    story.rest()
    assert story.kept(1, 2, 3, 4) == [[1, 2], [1, 2], [3, 4], [3, 4]], "all stores are full"
    story(WorkerLeft(story.now, 4))
    story.rest()
    assert story.kept(3, 4) == [[3], [3]], "there is no room, and everything else has two copies"
    assert story.scheduler.store_status()["scarce"] == 2
    story.join(5, [], room=1)
    story.pass_grace()
    assert sorted(map(len, story.kept(3, 4))) == [1, 2]


def test_a_third_copy_makes_room_for_the_second_of_another_model() -> None:
    story = StoreStory({1: [1], 2: [1], 3: [1], 4: [2]}, count=2, room=1)
    story.rest()
    assert sorted(map(len, story.kept(1, 2))) == [2, 2]


def test_a_new_model_has_others_dropped_where_its_worker_is_full() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2], 3: [1]}, count=3, room=2)
    story.rest()
    story(ModelReady(story.now, 1, spec(3, program="p")))
    story.rest()
    assert story.row(1)["store_used"] <= story.row(1)["store_bytes"]
    assert all(len(workers) == 2 for workers in story.kept(1, 2, 3)), story.kept(1, 2, 3)


@pytest.mark.parametrize("policy", ["adaptive", "edf", "paper", "deferred", "fifo"])
def test_the_first_that_is_heard_of_a_model_may_be_that_it_exceeds_its_store(policy: str) -> None:
    story = StoreStory({1: []}, count=0, room=1, policy=policy)
    assert story(ModelReady(story.now, 1, spec(1, runs=(3,)))) == []
    assert story.kept(1) == [[1]]
    story.scheduler.check_invariants()


def test_a_model_that_was_prepared_again_is_loaded_as_it_is_now() -> None:
    """Its only worker is lost, and the preparation of another has other runs."""
    story = StoreStory({1: [1], 2: [], 3: []}, count=1, copies=1)
    story(WorkerLeft(story.now, 1))
    story.sent.clear()
    again = spec(1, program="p", runs=(1, 1))
    story(ModelReady(story.now, 2, again))
    story(ModelReady(story.now, 3, again, False))
    [load] = story.request(1)[1]
    assert isinstance(load, SendLoad)
    assert (load.worker, len(load.run_starts)) == (2, 2)
    story.end(load, 4)
    story.scheduler.check_invariants()
    story(WorkerDraining(story.now, 2))
    [fetch] = [one for one in story.sent if isinstance(one, SendFetch)]
    story.end(fetch, 5)
    [load] = [one for one in story(WorkerLeft(story.now, 2)) if isinstance(one, SendLoad)]
    assert (load.worker, len(load.run_starts)) == (3, 2)


def test_a_model_that_is_being_brought_is_not_told_anew() -> None:
    story = StoreStory({1: [1], 2: []}, count=1)
    [fetch] = [one for one in story.sent if isinstance(one, SendFetch)]
    assert story(ModelReady(story.now, 2, spec(1, program="p", runs=(1, 1)))) == []
    story.end(fetch, 5)
    story.scheduler.check_invariants()
    assert story.kept(1) == [[1, 2]]


@pytest.mark.parametrize("is_told_before", [False, True])
def test_a_fetch_that_fails_since_the_model_was_prepared_otherwise_is_ordered_again(
    is_told_before: bool,
) -> None:
    story = StoreStory({1: [1], 2: [], 3: []}, count=1)
    [fetch] = [one for one in story.sent if isinstance(one, SendFetch)]
    first, other = fetch.worker, 5 - fetch.worker
    story(WorkerLeft(story.now, 1))  # from which it is being fetched
    again = spec(1, program="p", runs=(1, 2))
    story(ModelReady(story.now, other, again))
    if is_told_before:
        story(ModelReady(story.now, first, again, False))
        story.scheduler.check_invariants()
        assert story.row(first)["store_used"] == 3 * PAGE_BYTES, "as much as the new one takes"
    story.sent.clear()
    story.end(fetch, 1, Status.DEVICE_ERROR)
    begin = (story.now - SECOND) / MS
    [(_, fetch)] = [one for one in story.until(begin + 5000) if isinstance(one[1], SendFetch)]
    assert fetch.worker == first
    story(ModelReady(story.now, first, again))  # the worker's word comes before the result
    story.end(fetch, 1)
    story.scheduler.check_invariants()
    assert story.kept(1) == [[2, 3]]
    assert story.row(first)["store_used"] == 3 * PAGE_BYTES
    story(WorkerLeft(story.now, other))
    [load] = story.request(1)[1]
    assert isinstance(load, SendLoad)
    assert (load.worker, len(load.run_starts)) == (first, 2)


def test_a_worker_that_leaves_has_its_sole_copies_saved_first() -> None:
    story = StoreStory({1: [1, 2, 3], 2: [1], 3: []}, count=3, copies=1)
    assert story.scheduler.sole_copies(1) == 0, "it does not leave"
    story(WorkerDraining(story.now, 1))
    assert story.scheduler.sole_copies(1) == 2
    assert story.scheduler.sole_copies(2) == 0
    story.rest()
    assert story.scheduler.sole_copies(1) == 0
    story(WorkerLeft(story.now, 1))
    assert all(story.kept(1, 2, 3))


def test_copies_that_cannot_be_saved_for_want_of_room_are_counted() -> None:
    story = StoreStory({1: [1, 2], 2: [3]}, count=3, room=2, copies=1)
    story(WorkerDraining(story.now, 1))
    story.rest()
    assert story.scheduler.sole_copies(1) == 1
    assert story.scheduler.sole_copies(7) == 0, "no such worker"


def test_a_fetch_that_fails_is_tried_at_another_worker_and_not_at_once_at_the_same() -> None:
    story = StoreStory({1: [1], 2: [], 3: []}, count=1)
    [first] = [one for one in story.sent if isinstance(one, SendFetch)]
    story.sent.clear()
    [second] = story.end(first, 1, Status.DEVICE_ERROR)
    assert isinstance(second, SendFetch)
    assert second.worker != first.worker
    assert story.end(second, 1, Status.DEVICE_ERROR) == []
    begin = (story.now - SECOND) / MS
    times = [at - begin for at, one in story.until(begin + 5000) if isinstance(one, SendFetch)]
    assert times, "it is tried again"
    assert 999 <= times[0] <= 2000, "after a pause"


def test_a_worker_that_leaves_amid_a_fetch_is_replaced() -> None:
    story = StoreStory({1: [1], 2: [], 3: []}, count=1)
    [fetch] = [one for one in story.sent if isinstance(one, SendFetch)]
    [again] = story(WorkerLeft(story.now, fetch.worker))
    assert isinstance(again, SendFetch)
    assert again.worker not in (1, fetch.worker)


def test_a_model_that_is_removed_amid_a_fetch_is_gone_after_it() -> None:
    story = StoreStory({1: [1], 2: []}, count=1)
    [fetch] = [one for one in story.sent if isinstance(one, SendFetch)]
    assert story(ModelRemoved(story.now, 1)) == []
    assert story.end(fetch, 5) == [ModelGone(1)]
    assert [story.row(worker)["store_used"] for worker in (1, 2)] == [0, 0]


def test_a_drop_that_is_refused_for_good_leaves_the_copy_in_the_books() -> None:
    story = StoreStory({1: [1], 2: [1], 3: [1], 4: [2]}, count=2, room=1)
    [drop, fetch] = [one for one in story.sent if isinstance(one, SendDrop | SendFetch)]
    for _ in range(2):
        [drop] = [one for one in story.end(drop, 0, Status.IN_USE) if isinstance(one, SendDrop)]
    story.end(drop, 0, Status.IN_USE)
    assert len(story.scheduler.keepers(1)) == 3
    assert story.row(drop.worker)["stored"] == 1
    assert story.row(drop.worker)["store_used"] == 4 * PAGE_BYTES, "more than it may have, for a while"
    story.sent.clear()
    story.end(fetch, 5)
    story.now += 70 * SECOND
    story(Tick(story.now))
    story.rest()
    assert [len(workers) for workers in story.kept(1, 2)] == [2, 2]


# ----- what a disk loses, and what it is told ---------------------------------------------------


def test_a_damaged_copy_is_fetched_again() -> None:
    story = StoreStory({1: [1], 2: [1]}, count=1)
    [fetch] = story(CopyLost(story.now, 2, 1))
    assert kinds([fetch]) == [("SendFetch", 2, 1)]
    assert story.row(2)["store_used"] == 2 * PAGE_BYTES, "its room is reserved"
    assert story(CopyLost(story.now, 2, 1)) == [], "it does not have the model"
    assert story(CopyLost(story.now, 9, 1)) == []
    assert story(CopyLost(story.now, 2, 9)) == []
    story.end(fetch, 5)
    assert story.kept(1) == [[1, 2]]


def test_the_loss_of_the_last_copy_answers_who_waits() -> None:
    story = StoreStory({1: [1]}, count=1, pages=2)
    number, [load] = story.request(1)
    story(CopyLost(story.now, 1, 1))
    answers = story.end(load, 1, Status.DEVICE_ERROR)
    assert [(one.request_id, one.status) for one in answers if isinstance(one, AnswerFailed)] == [
        (number, Status.UNAVAILABLE)
    ]


def test_a_worker_that_has_prepared_a_model_while_it_was_brought_it_has_it_once() -> None:
    story = StoreStory({1: [1], 2: []}, count=1)
    [fetch] = [one for one in story.sent if isinstance(one, SendFetch)]
    story(ModelReady(story.now, 2, spec(1, program="p")))
    assert story.row(2)["store_used"] == 2 * PAGE_BYTES
    story.end(fetch, 1, Status.DEVICE_ERROR)
    assert story.kept(1) == [[1, 2]]
    assert story.row(2)["store_used"] == 2 * PAGE_BYTES


def test_workers_without_a_store_keep_everything() -> None:
    story = StoreStory({1: []}, count=2)
    story(WorkerJoined(story.now, 2, (("cpu", PAGE_BYTES, 8, 2),)))
    for model in (1, 2):
        story(ModelReady(story.now, 2, spec(model, program="p")))
    story.rest()
    assert story.kept(1, 2) == [[1, 2], [1, 2]]
    assert (story.row(2)["store_bytes"], story.row(2)["host_bytes"]) == (0, 0)


def test_another_kind_of_worker_is_no_source() -> None:
    story = StoreStory({1: []}, count=1)
    story(WorkerJoined(story.now, 2, (("gpu", PAGE_BYTES, 8, 2),)))
    story(ModelReady(story.now, 2, spec(1, program="p")))
    story.rest()
    assert story.kept(1) == [[2]]


def test_room_is_filled_with_what_is_asked_for() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2], 3: []}, count=2)
    assert story.sent == []
    story.request(2)
    story.rest()
    story.now += 20 * MS
    story(Tick(story.now))
    story.rest()
    assert story.kept(1, 2) == [[1, 2], [1, 2, 3]]


# ----- room for models that are being prepared -------------------------------------------------


def drops(story: StoreStory) -> list[tuple[int, int]]:
    return [(one.worker, one.model_id) for one in story.sent if isinstance(one, SendDrop)]


def test_second_copies_are_given_up_for_a_new_model_and_last_ones_are_not() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2]}, count=2, room=2)
    assert story.sent == []
    assert [story.scheduler.store_room(worker) for worker in (1, 2, 9)] == [4 * PAGE_BYTES] * 2 + [0]
    story(RoomWanted(story.now, 1, 2 * PAGE_BYTES))
    assert drops(story) == [(1, 1)]
    story.rest()
    assert story.kept(1, 2) == [[2], [1, 2]]
    assert story.scheduler.store_status()["scarce"] == 1
    assert story.scheduler.store_status()["cramped"] == 1, "the room is promised"
    assert story.scheduler.store_room(1) == story.scheduler.store_room(2) == 2 * PAGE_BYTES
    story(RoomWanted(story.now, 1, 4 * PAGE_BYTES))
    assert drops(story) == [(1, 2)]
    story.rest()
    assert story.scheduler.store_room(2) == 0
    story(RoomWanted(story.now, 2, 2 * PAGE_BYTES))
    assert drops(story) == []
    assert story.kept(1, 2) == [[2], [2]]


def test_a_model_that_takes_more_than_it_was_promised_has_second_copies_given_up() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2]}, count=2, room=3)
    story(RoomWanted(story.now, 1, 2 * PAGE_BYTES))
    assert drops(story) == []
    story(ModelReady(story.now, 1, spec(3, runs=(4,))))
    assert drops(story) == [(1, 1)]
    story(RoomWanted(story.now, 1, 0))
    story.rest()
    assert story.row(1)["store_used"] == 6 * PAGE_BYTES
    assert story.kept(1, 2) == [[2], [1, 2]]


def test_no_copy_is_given_up_where_that_is_not_enough() -> None:
    story = StoreStory({1: [1, 2], 2: [1], 3: []}, count=2, room=2, copies=1)
    story(RoomWanted(story.now, 1, 6 * PAGE_BYTES))
    assert drops(story) == []
    story(RoomWanted(story.now, 1, 0))
    assert drops(story) == []


def test_copies_of_no_use_go_before_second_ones() -> None:
    story = StoreStory({1: [1, 2], 2: [1, 2], 3: [2]}, count=2, room=2)
    assert story.sent == []
    story(RoomWanted(story.now, 1, 2 * PAGE_BYTES))
    assert drops(story) == [(1, 2)]
    assert story.scheduler.store_status()["scarce"] == 0


def test_what_is_promised_is_not_filled_with_copies_and_is_free_again_after_it() -> None:
    story = StoreStory({1: [], 2: []}, count=0, room=1)
    story(RoomWanted(story.now, 2, PAGE_BYTES))
    for worker in (1, 2):
        story(ModelReady(story.now, worker, spec(1, program="p"), worker == 1))
    story.rest()
    assert story.kept(1) == [[1]]
    story(RoomWanted(story.now, 2, 0))
    story.rest()
    assert story.kept(1) == [[1, 2]]


def test_room_on_a_worker_without_such_a_store_is_nobodys_business() -> None:
    story = StoreStory({1: []}, count=1)
    story(WorkerJoined(story.now, 2, (("cpu", PAGE_BYTES, 8, 2),)))
    assert story(RoomWanted(story.now, 2, PAGE_BYTES)) == []
    assert story(RoomWanted(story.now, 7, PAGE_BYTES)) == []
    assert story.scheduler.store_room(2) == 0


def test_the_room_of_all_stores_is_told() -> None:
    story = StoreStory({1: [1], 2: [1], 3: []}, count=1, room=2)
    status = story.scheduler.store_status()
    assert (status["bytes"], status["used"], status["room"]) == tuple(
        pages * PAGE_BYTES for pages in (12, 4, 4)
    )
    story(WorkerDraining(story.now, 3))
    assert story.scheduler.store_status()["bytes"] == 8 * PAGE_BYTES


def test_a_model_that_lies_nowhere_is_lost_unless_a_worker_may_still_find_it() -> None:
    story = StoreStory({1: [1]}, count=1)
    story(WorkerJoined(story.now, 2, (("cpu", PAGE_BYTES, 8, 2),), 0, 8 * PAGE_BYTES))
    story(WorkerLeft(story.now, 1))
    assert story.counts()["lost"] == 0
    story.now += 60 * SECOND
    story(Tick(story.now))
    assert story.counts()["lost"] == 1


def test_a_worker_has_one_store() -> None:
    scheduler = make_scheduler("adaptive")
    with pytest.raises(RuntimeError, match="a host store or a disk store, not both"):
        scheduler.step(WorkerJoined(0, 1, (("cpu", PAGE_BYTES, 8, 2),), PAGE_BYTES, PAGE_BYTES))


@pytest.mark.parametrize("copies", [0, 1.5, 1001])
def test_the_number_of_copies_is_whole_and_bounded(copies: float) -> None:
    with pytest.raises(ConfigError, match="stored_copies is not a whole number from 1 to 1000"):
        make_scheduler("edf", options={"stored_copies": copies})
