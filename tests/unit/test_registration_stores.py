"""Workers whose stores have a bound: which of them prepares a model, and who could be brought it."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from clockwork.config.controller import RESTART_GRACE_NS, ROOM_RETRY_NS, STORES_SETTLE_NS
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.effects import Effect, Refuse, ScheduleLoss, ScheduleReady, ScheduleRoom, SendWorker
from clockwork.controller.models.lifecycle import ModelState, VersionEvent
from clockwork.controller.models.version import ABSENT, FETCHABLE, SOUGHT, ModelVersion, Waiter
from clockwork.controller.registration.preparation_book import PREPARING, READY
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.registration.versions import StoreBound, Versions
from clockwork.formats.package import PackageFile, rows_of
from clockwork.wire.messages import Announce, BundleRefused, NotStored, Prepare, Prepared, Status
from tests.unit.registry import summary
from tests.unit.test_bundles import bundle

DIGEST = "ab" * 32
BYTES = 300


class Cluster:
    """Workers with bounded stores of the kind "k", and one model."""

    def __init__(self, was_ready: bool = False) -> None:
        self.effects: deque[Effect] = deque()
        self.table = ModelTable(self.effects)
        self.rooms: dict[int, int] = {}  # by worker, as the scheduler says; of others there is enough
        self.versions = Versions(self.effects, self.table, lambda worker: self.rooms.get(worker, 800))
        files = [PackageFile("model.onnx", BYTES, "cd" * 32)]
        self.model: ModelVersion = self.table.add(ModelRecord("m", 1, DIGEST, files, {}, is_read=True))
        self.now_ns = 0
        self.was_ready = was_ready
        self.requests = 0  # that the model has had

    def join(self, *workers: int, bounded: bool = True, size: int = 1000) -> None:
        for worker in workers:
            self.versions.bundles.joined(worker, f"w{worker}", "k")
            store = StoreBound("k", size) if bounded else None
            self.versions.worker_joined(worker, f"w{worker}", lambda model_id: self.requests, store)

    def register(self) -> None:
        event = VersionEvent.FOUND if self.was_ready else VersionEvent.REGISTERED
        self.versions.happen(self.model, event)

    def take(self, kind: type) -> list[Any]:
        """The messages of this kind, or effects, since the last call: workers of messages, or the effects."""
        found: list[Any] = []
        for effect in list(self.effects):
            if isinstance(effect, kind):
                found.append(effect)
            elif isinstance(effect, SendWorker) and isinstance(effect.message, kind):
                found.append(effect.worker)
            else:
                continue
            self.effects.remove(effect)
        return found

    def told(self) -> list[tuple[int, bool]]:
        """The workers that the scheduler was told of, and whether they have the model."""
        return [(ready.worker, ready.is_stored) for ready in self.take(ScheduleReady)]

    def lacks(self, *workers: int, text: str = "") -> None:
        for worker in workers:
            self.versions.not_stored(worker, NotStored(self.model.model_id, text))

    def prepared(self, worker: int, **changes: bytes) -> None:
        told = summary(DIGEST) | {"bundle": rows_of(bundle(**changes))}
        self.versions.prepared(worker, Prepared(self.model.model_id, Status.OK, "", told), self.now_ns)

    def fails(self, worker: int, status: Status = Status.INTERNAL) -> None:
        self.versions.prepared(worker, Prepared(self.model.model_id, status, "no room", {}), self.now_ns)

    def state(self) -> ModelState:
        return self.model.state

    def leave(self, worker: int) -> None:
        self.versions.worker_left(worker)
        self.versions.bundles.left(worker)

    def beat(self, after_ns: int = 0) -> list[int]:
        """Let time pass. Returns the workers that are to prepare the model."""
        self.now_ns += after_ns
        self.versions.prepare_again(self.now_ns)
        return self.take(Prepare)


@pytest.fixture
def spread() -> Cluster:
    """Three workers, of which the first has prepared the model."""
    cluster = Cluster()
    cluster.join(1, 2, 3)
    cluster.register()
    cluster.lacks(1, 2, 3)
    cluster.take(Announce)
    assert cluster.take(Prepare) == [1]
    cluster.prepared(1)
    assert cluster.told() == [(1, True), (2, False), (3, False)]
    cluster.beat()
    cluster.beat(STORES_SETTLE_NS)
    return cluster


def test_a_new_model_is_looked_for_and_then_prepared_by_one() -> None:
    cluster = Cluster()
    cluster.join(1, 2, 3)
    cluster.register()
    assert cluster.take(Announce) == [1, 2, 3]
    cluster.lacks(2, 1)
    assert cluster.take(Prepare) == []  # the third may have it
    cluster.lacks(3)
    assert cluster.take(Prepare) == [2]
    assert cluster.model.workers == {1: ABSENT, 2: PREPARING, 3: ABSENT}
    assert cluster.told() == []
    cluster.prepared(2)
    assert cluster.model.state is ModelState.READY
    assert cluster.told() == [(2, True), (1, False), (3, False)]
    assert cluster.model.workers == {1: FETCHABLE, 2: READY, 3: FETCHABLE}
    assert cluster.beat(STORES_SETTLE_NS) == []


def test_a_model_that_lies_in_a_store_is_prepared_by_nobody() -> None:
    cluster = Cluster()
    cluster.join(1, 2)
    cluster.register()
    cluster.lacks(1)
    cluster.prepared(2)
    assert cluster.take(Prepare) == []
    assert cluster.told() == [(2, True), (1, False)]
    cluster.join(3)
    cluster.lacks(3)
    assert cluster.told() == [(3, False)]
    assert cluster.beat(2 * STORES_SETTLE_NS) == []


def test_the_emptiest_store_is_given_a_new_model() -> None:
    cluster = Cluster()
    cluster.join(1, size=1000)
    cluster.join(2, size=5000)
    cluster.versions.preparations._workers[1].ready = 2
    cluster.versions.preparations._workers[2].ready = 9
    cluster.register()
    cluster.lacks(1, 2)
    assert cluster.take(Prepare) == [2]


def test_a_worker_without_a_bound_prepares_each_model_and_others_are_brought_it() -> None:
    cluster = Cluster()
    cluster.join(1)
    cluster.join(2, bounded=False)
    cluster.register()
    assert cluster.take(Announce) == [1]
    assert cluster.take(Prepare) == [2]
    cluster.lacks(1)
    assert cluster.take(Prepare) == []
    cluster.prepared(2)
    assert cluster.told() == [(2, True), (1, False)]
    cluster.lacks(2, text="lost")  # it has every model
    assert cluster.model.workers == {1: FETCHABLE, 2: READY}


def test_where_one_has_no_room_the_next_is_asked_and_all_of_them_at_most_once() -> None:
    cluster = Cluster()
    cluster.join(1, 2)
    cluster.register()
    cluster.versions.wait(cluster.model, Waiter(b"client", 1))
    cluster.lacks(1, 2)
    assert cluster.take(Prepare) == [1]
    cluster.fails(1)
    assert cluster.take(Prepare) == [2]
    assert cluster.state() is ModelState.PREPARING
    cluster.fails(2)
    assert cluster.take(Prepare) == []
    assert cluster.state() is ModelState.FAILED


def test_a_new_model_is_prepared_where_there_is_room_or_can_be() -> None:
    cluster = Cluster()
    cluster.join(1, 2, 3)
    cluster.rooms = {1: BYTES - 1, 2: 0, 3: BYTES}
    cluster.register()
    cluster.lacks(1, 2, 3)
    assert cluster.take(Prepare) == [3]
    assert cluster.take(ScheduleRoom) == [ScheduleRoom(3, BYTES)]
    cluster.prepared(3)
    ended: list[Any] = [one for one in cluster.effects if isinstance(one, ScheduleRoom | ScheduleReady)]
    assert isinstance(ended[0], ScheduleReady)
    assert ended[1] == ScheduleRoom(3, 0), "the room is given back when the model has taken it"
    assert len(ended) == 4


@pytest.mark.parametrize("end", ["fails", "leaves", "is removed"])
def test_the_room_for_a_model_that_does_not_come_is_given_back(end: str) -> None:
    cluster = Cluster()
    cluster.join(1)
    cluster.register()
    cluster.lacks(1)
    assert cluster.take(ScheduleRoom) == [ScheduleRoom(1, BYTES)]
    if end == "fails":
        cluster.fails(1)
    elif end == "leaves":
        cluster.leave(1)
    else:
        cluster.versions.happen(cluster.model, VersionEvent.ERASED)
        for version in [model for model in [cluster.model] if model.workers]:
            cluster.versions.drained(version.model_id)
    assert cluster.take(ScheduleRoom) == ([] if end == "leaves" else [ScheduleRoom(1, 0)])


def test_where_the_planned_part_of_all_stores_is_full_the_rest_is_tried() -> None:
    cluster = Cluster()
    cluster.join(1, size=8 * (BYTES - 1))  # an eighth of it is not planned
    cluster.join(2, size=8 * BYTES)
    cluster.rooms = {1: 0, 2: 0}
    cluster.register()
    cluster.lacks(1, 2)
    assert cluster.take(Prepare) == [2]


def test_a_new_model_for_which_no_store_has_room_is_refused_with_the_bytes() -> None:
    cluster = Cluster()
    cluster.join(1, 2)
    cluster.rooms = {1: 100, 2: 40}
    cluster.register()
    cluster.versions.wait(cluster.model, Waiter(b"client", 1))
    cluster.lacks(1, 2)
    assert cluster.beat() == []
    assert cluster.state() is ModelState.FAILED
    cluster.versions.refuse(cluster.model)
    [refused] = cluster.take(Refuse)
    assert str(refused.error) == (
        "no worker could prepare m@1 now: it takes 300 bytes, and no store (--store-bytes) has room for it: at most "
        "100 bytes of one are free, or taken by copies that other workers have as well; try again"
    )
    cluster.rooms = {}
    cluster.versions.ask_again(cluster.model)
    assert cluster.take(Prepare) == [1]


def test_a_worker_that_joins_before_the_refusal_takes_the_model() -> None:
    cluster = Cluster()
    cluster.join(1)
    cluster.rooms = {1: 100}
    cluster.register()
    cluster.lacks(1)
    cluster.join(2)
    cluster.lacks(2)
    assert cluster.beat() == [2]
    assert cluster.state() is ModelState.PREPARING


def test_a_lost_model_for_which_there_is_no_room_is_tried_again(spread: Cluster) -> None:
    spread.rooms = {2: 0, 3: 0}
    spread.lacks(1, text="damaged")
    spread.rooms[1] = 0
    assert spread.beat() == spread.beat(1) == []
    assert spread.state() is ModelState.READY
    spread.rooms[3] = BYTES
    assert spread.beat(ROOM_RETRY_NS) == [3]


def test_a_model_that_is_no_model_is_not_tried_by_the_others() -> None:
    cluster = Cluster()
    cluster.join(1, 2, 3)
    cluster.register()
    cluster.lacks(1, 2, 3)
    cluster.take(Prepare)
    cluster.fails(1, Status.INVALID_MODEL)
    assert cluster.beat(STORES_SETTLE_NS) == []
    assert cluster.model.state is ModelState.FAILED
    cluster.versions.refuse(cluster.model)
    assert cluster.take(Refuse) == []


def test_after_a_start_of_the_controller_the_stores_of_all_are_looked_up_first() -> None:
    cluster = Cluster(was_ready=True)
    cluster.register()
    cluster.join(1)
    cluster.lacks(1)
    assert cluster.beat() == []
    cluster.join(2)
    assert cluster.beat(STORES_SETTLE_NS - 1) == []
    assert cluster.beat(STORES_SETTLE_NS - 1) == []  # the second has joined since
    cluster.prepared(2)
    assert cluster.beat(1) == []
    assert cluster.told() == [(2, True), (1, False)]


def test_a_model_that_lies_nowhere_is_prepared_when_the_stores_have_been_looked_up() -> None:
    cluster = Cluster(was_ready=True)
    cluster.register()
    cluster.join(1, 2)
    cluster.lacks(1)
    cluster.beat()
    assert cluster.beat(STORES_SETTLE_NS) == []
    cluster.lacks(2)
    assert cluster.beat() == [1]


def test_a_fetched_model_has_another_holder(spread: Cluster) -> None:
    spread.prepared(2)
    assert spread.model.workers == {1: READY, 2: READY, 3: FETCHABLE}
    assert spread.told() == [(2, True)]
    spread.leave(1)
    assert spread.beat() == []  # the second can give it
    assert spread.model.bundles["k"].holders == [2]


def test_a_dropped_model_could_be_brought_again(spread: Cluster) -> None:
    spread.prepared(2)
    spread.told()
    spread.lacks(1)
    assert spread.model.workers[1] == FETCHABLE
    assert spread.take(ScheduleLoss) == spread.told() == []  # the scheduler has ordered it
    assert spread.model.bundles["k"].holders == [2]
    assert spread.beat() == []


def test_the_last_copy_is_lost_and_the_model_prepared_again(spread: Cluster) -> None:
    spread.lacks(1, text="weights.bin is damaged")
    assert spread.take(ScheduleLoss) == [ScheduleLoss(1, spread.model.model_id)]
    assert not spread.versions.preparations.is_served(spread.model)
    assert spread.beat() == [2]
    spread.prepared(2)
    assert spread.told() == [(2, True)]
    assert spread.versions.preparations.is_served(spread.model)


def test_a_worker_that_is_lost_with_the_last_copy(spread: Cluster) -> None:
    spread.leave(1)
    assert spread.model.state is ModelState.READY
    assert spread.beat() == []  # it may be restarted
    assert spread.beat(RESTART_GRACE_NS - 1) == []
    assert spread.beat(1) == [2]
    spread.fails(2)
    assert spread.take(Prepare) == [3]
    spread.prepared(3)
    assert spread.told() == [(3, True)]


def test_a_worker_that_is_restarted_brings_the_last_copy_back(spread: Cluster) -> None:
    spread.leave(1)
    spread.beat(RESTART_GRACE_NS - 1)
    spread.join(4)
    assert spread.beat(1) == []  # its store is looked up
    assert spread.beat(STORES_SETTLE_NS) == []
    spread.prepared(4)
    assert spread.told() == [(4, True)]
    assert spread.beat(RESTART_GRACE_NS) == []


def test_a_last_copy_that_is_asked_for_is_not_awaited(spread: Cluster) -> None:
    spread.requests = 7
    spread.leave(1)
    assert spread.beat() == []
    spread.requests += 1
    assert spread.beat() == [2]
    spread.prepared(2)
    assert spread.beat(RESTART_GRACE_NS) == []


def test_a_new_model_does_not_wait_for_the_worker_that_left_while_it_prepared_it() -> None:
    cluster = Cluster()
    cluster.join(1, 2)
    cluster.register()
    cluster.lacks(1, 2)
    assert cluster.take(Prepare) == [1]
    cluster.beat()
    cluster.beat(STORES_SETTLE_NS)
    cluster.leave(1)
    assert cluster.beat() == [2]


def test_a_holder_whose_bundle_is_refused_gives_none_and_another_prepares_the_model(spread: Cluster) -> None:
    spread.versions.bundles.wanted(2, spread.model.model_id)
    spread.versions.bundle_refused(2, BundleRefused(spread.model.model_id, "it is damaged"))
    assert spread.beat() == [2]
    spread.prepared(2, weights=b"other")
    assert spread.told() == [(2, True), (3, False)]  # what could be brought is another bundle now
    assert spread.model.bundles["k"].holders == [2]


def test_a_model_is_served_while_a_worker_that_stays_could_be_brought_it(spread: Cluster) -> None:
    preparations = spread.versions.preparations
    preparations.drains(1)
    assert preparations.is_served(spread.model)
    assert spread.versions.has_elsewhere(1)
    for worker in (2, 3):
        preparations.drains(worker)
    assert not preparations.is_served(spread.model)
    assert not spread.versions.has_elsewhere(1)


def test_what_is_not_awaited_changes_nothing(spread: Cluster) -> None:
    spread.lacks(2, 3, text="lost")
    spread.fails(2)
    spread.versions.not_stored(2, NotStored(77, ""))
    assert spread.model.workers == {1: READY, 2: FETCHABLE, 3: FETCHABLE}
    assert spread.take(ScheduleLoss) == spread.told() == []


def test_a_worker_is_told_of_a_model_that_comes_while_it_is_there_and_forgets_it(spread: Cluster) -> None:
    assert SOUGHT not in spread.model.workers.values()
    spread.join(4)
    assert spread.take(Announce) == [4]
    spread.versions.happen(spread.model, VersionEvent.ERASED)
    spread.lacks(4)
    assert spread.told() == []  # nobody is to fetch what leaves
    spread.versions.drained(spread.model.model_id)
    assert spread.model.workers == {}
