"""A history agrees with the scheduler's own records after every step, wherever it begins."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.observe.history import ENDED, RESIDENT, UNLOADING, WAITING, History, SeenDevice
from clockwork.observe.history import history_of as fold
from clockwork.observe.live import ClusterDescription, introduce
from clockwork.scheduler.recording import Step
from clockwork.scheduler.types import NEVER_NS, AnswerOk, SendLoad, Status, Tick
from tests.sim.harness import MS, SECOND, World, spec
from tests.sim.test_scheduler_random import random_world


def history_of(world: World, **bounds: int) -> History:
    return fold((Step([event], commands) for event, commands in world.trace), **bounds)


class FollowedWorld(World):
    """A world whose history is compared with its scheduler's records after every step."""

    history: History

    def step(self, event: Any) -> list[Any]:
        commands = super().step(event)
        self.history.apply(Step([event], commands))
        self.compare()
        return commands

    def compare(self) -> None:
        history, snapshot = self.history, self.scheduler.snapshot()
        flights = {one["action_id"]: one for one in snapshot["flights"]}
        sent = [request for one in flights.values() for request in one["requests"]]
        unanswered = [request for request in self.requests if request not in self.answers]
        assert list(history.under_way) == sorted(flights), "actions under way"
        assert sorted(history.live) == unanswered, "requests that are not answered"
        waiting = [one.id for one in history.live.values() if one.state == WAITING]
        assert sorted(waiting) == [one for one in unanswered if one not in sent], "requests that wait"
        assert (
            history.counts.waiting
            == len(waiting)
            == sum(model.counts.waiting for model in history.models.values())
        )
        for row in snapshot["devices"]:
            device = history.devices[row["worker"], row["device"]]
            there = {m: one for m, one in row["resident"].items() if one["state"] != "pending"}
            held = {one.model_id: one for one in device.resident.values() if one.state != UNLOADING}
            assert {
                m: (one.load_id, list(one.run_starts), one.pages, one.state) for m, one in held.items()
            } == {
                m: (one["load_id"], one["run_starts"], one["pages"], one["state"]) for m, one in there.items()
            }
            assert device.pages_used == row["pages"] - row["pages_free"]


def followed(world: World) -> FollowedWorld:
    """The history of the same world, from its beginning or from now on."""
    world.__class__ = FollowedWorld
    assert isinstance(world, FollowedWorld)
    world.history = history_of(world)
    return world


def one_device(pages: int = 8) -> World:
    world = World()
    world.now = SECOND  # a controller's clock does not begin at 0
    world.join(1, [("cpu", pages, 1.0)])
    world.ready(spec(1, exec_ms=5, batch_max=4, row_ms=1, load_ms=10, runs=(2, 1)))
    return world


def test_a_request_is_followed_from_arrival_to_answer() -> None:
    world = one_device()
    first = world.request(1, slo_ms=100)
    world.settle()
    history = history_of(world)
    request = history.requests[first]
    assert (request.state, request.status, request.outcome, request.slo_ns) == (
        ENDED, Status.OK, "answered", 100 * MS,
    )  # fmt: skip
    assert request.latency_ns == world.latency_ns(first)
    answer = world.answers[first]
    assert isinstance(answer, AnswerOk)
    assert (request.queue_ns, request.load_ns, request.exec_ns) == answer[3:]
    batch = request.action
    assert batch is not None
    assert (batch.kind, batch.requests, batch.rows, batch.status) == ("infer", (first,), 1, Status.OK)
    assert request.arrived_ns < request.sent_ns == batch.ordered_ns <= batch.begin_ns
    assert batch.begin_ns + batch.duration_ns == batch.end_ns < request.answered_ns == batch.done_ns
    assert batch.expected_ns == batch.duration_ns == 5 * MS
    load = next(iter(history.actions.values()))
    assert (load.kind, load.status, load.duration_ns) == ("load", Status.OK, 10 * MS)
    (device,) = history.lanes()
    (residency,) = device.resident.values()
    assert (residency.model_id, residency.state, residency.pages, residency.ready_ns) == (
        1, RESIDENT, 3, load.end_ns,
    )  # fmt: skip
    assert (device.label, device.kind, device.pages_used, device.executing_ns) == ("1/0", "cpu", 3, 5 * MS)
    assert history.models[1].label == "m1@1"
    assert (history.counts.arrived, history.counts.answered, history.counts.waiting) == (1, 1, 0)
    assert not history.live
    assert not history.under_way


def test_a_refusal_says_why() -> None:
    world = one_device()
    refused = world.request(1, slo_ms=2)
    history = history_of(world)
    request = history.requests[refused]
    assert (request.outcome, request.reason) == ("refused", "infeasible")
    assert "the SLO is 2" in request.text, request
    assert 5 * MS < request.feasible_slo_ns < 6 * MS
    assert history.counts.refusals == history.models[1].counts.refusals == {"infeasible": 1}
    assert history.counts.waiting == 0


def test_what_must_go_is_seen_to_go() -> None:
    world = one_device(pages=4)
    world.ready(spec(2, exec_ms=5, load_ms=10, runs=(2,)))
    world.request(1)
    world.settle()
    second = world.request(2)
    world.settle()
    history = history_of(world)
    assert history.requests[second].outcome == "answered"
    (device,) = history.lanes()
    (old,), (new,) = device.gone, device.resident.values()
    assert (old.model_id, new.model_id, device.pages_used) == (1, 2, 2)
    assert old.ready_ns < old.until_ns <= new.ready_ns
    assert [action.kind for action in device.loads] == ["load", "unload", "load"]
    assert device.residency_of(1, old.ready_ns) is old
    assert device.residency_of(1, old.until_ns) is None


@pytest.mark.parametrize("policy", ["edf", "adaptive", "paper"])
@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_the_scheduler_after_every_step(seed: int, policy: str) -> None:
    world = followed(random_world(seed, calm=False, policy=policy))
    world.settle()
    history = world.history
    assert len(history.requests) == len(world.requests)
    for request_id, answer in world.answers.items():
        request = history.requests[request_id]
        assert request.status == (Status.OK if isinstance(answer, AnswerOk) else answer.status)
        assert request.answered_ns == world.answered_at[request_id]
        assert request.sent_count == world.sent.get(request_id, 0)
    assert history.counts.ended == history.counts.arrived == len(world.requests)
    last = history.marks[-1]
    assert last.arrived <= history.counts.arrived


@pytest.mark.parametrize("seed", range(4))
def test_it_may_begin_in_the_middle(seed: int) -> None:
    world = random_world(seed, calm=False)
    world.settle()
    whole = history_of(world)
    middle = len(world.trace) // 2
    late = History()
    for event, commands in world.trace[middle:]:
        late.apply(Step([event], commands))
    begun = [request for request in late.requests.values() if request.arrived_ns]
    assert len(begun) > 5
    for request in begun:
        known = whole.requests[request.id]
        assert (request.status, request.answered_ns, request.sent_count) == (
            known.status, known.answered_ns, known.sent_count,
        )  # fmt: skip
    assert not late.live
    assert late.counts.waiting == 0


def test_what_was_there_before_may_be_told() -> None:
    world = one_device()
    world.request(1)
    world.settle()
    begun = len(world.trace)
    late = world.request(1)
    world.settle()
    history = History()
    status = {"workers": [{"id": 1, "name": "host-7", "devices": [{"kind": "cpu", "page_count": 8}]}]}
    model = {"id": 1, "name": "m1", "version": 1, "runs": [2, 1], "batch_max": 4}
    place = {"worker": "host-7", "device": 0, "state": "resident"}
    introduce(
        history,
        ClusterDescription(status, [{**model, "devices": [place]}, {"name": "of another version"}]),
        world.now,
    )
    (device,) = history.lanes()
    assert (device.pages_used, device.page_count) == (3, 8)
    assert history.device_label(1, 0) == "host-7/0"
    for event, commands in world.trace[begun:]:
        history.apply(Step([event], commands))
    assert history.label(history.requests[late].model_id) == "m1@1"
    (residency,) = device.resident.values()
    action = history.requests[late].action
    assert action is not None
    assert (residency.load_id, residency.state, device.pages_used) == (action.load_id, RESIDENT, 3)
    introduce(history, ClusterDescription(status, [{**model, "devices": [place]}]), world.now)
    assert list(device.resident.values()) == [residency], "it is told twice"


def test_a_load_that_is_seen_after_it_was_told_of_is_one_residency() -> None:
    world = one_device()
    world.request(1)
    world.settle()
    history = History()
    for number, (event, commands) in enumerate(world.trace):
        if number == 3:  # worker, link and model are known
            history.hold(1, 0, 1)
        history.apply(Step([event], commands))
    (device,) = history.lanes()
    (residency,) = device.resident.values()
    assert (residency.state, residency.run_starts, device.pages_used) == (RESIDENT, (0, 2), 3)


def paged_device(*models: int) -> tuple[History, SeenDevice]:
    """A device of six pages on which these models of three pages each are resident, loaded before the history
    begins."""
    world = World()
    world.now = SECOND
    world.join(1, [("cpu", 6, 1.0)])
    world.ready(*(spec(model, runs=(2, 1)) for model in range(1, 5)))
    world.settle()
    history = history_of(world)
    for model in models:
        history.hold(1, 0, model)
    return history, history.devices[1, 0]


def load(load_id: int, model: int, *starts: int) -> Step:
    return Step([Tick(2 * SECOND)], [SendLoad(1, 0, 100 + load_id, model, load_id, starts, 0, NEVER_NS, MS)])


def resident(device: SeenDevice) -> list[int]:
    return [one.model_id for one in device.resident.values()]


def test_what_does_not_fit_beside_what_is_seen_is_not_there_yet() -> None:
    _, device = paged_device(1, 2, 3)
    assert (resident(device), device.pages_used) == ([1, 2], 6)


def test_a_load_shows_that_what_filled_the_device_has_gone_unseen() -> None:
    history, device = paged_device(1, 2)
    history.apply(load(7, 3, 0, 2))
    assert (resident(device), device.pages_used) == ([2, 3], 6)
    history.apply(load(8, 4, 0, 2))
    assert resident(device) == [3, 4], "a load under way is certain, and 2 was known for no load"


def test_a_load_shows_that_what_lies_on_its_pages_has_gone_unseen() -> None:
    history, device = paged_device()
    history.apply(load(7, 1, 0, 2))
    history.apply(load(8, 2, 3, 5))
    history.skip()
    history.apply(load(9, 3, 3, 5))
    assert (resident(device), device.pages_used) == ([1, 3], 6)


def test_after_a_gap_another_load_of_a_model_is_the_only_one() -> None:
    history, device = paged_device()
    history.apply(load(7, 1, 0, 2))
    history.skip()
    history.apply(load(9, 1, 3, 5))
    assert ([*device.resident], device.pages_used) == ([9], 3)


def test_what_a_controller_does_not_name_is_there_no_more() -> None:
    history, device = paged_device(1, 2)
    history.settle(1, 0, [2, 3])
    assert (resident(device), device.pages_used) == ([2], 3)


@pytest.mark.parametrize("seed", range(4))
def test_steps_may_be_left_out(seed: int) -> None:
    world = random_world(seed, calm=False)
    world.settle()
    whole = history_of(world)
    sampled = History()
    for place, (event, commands) in enumerate(world.trace):
        if place % 20 < 10:
            sampled.apply(Step([event], commands))
        elif place % 20 == 10:
            sampled.skip()
    assert sampled.counts.waiting == len([one for one in sampled.live.values() if one.state == WAITING])
    assert 0 < sampled.skipped_ns < sampled.now_ns - sampled.begun_ns
    for request in sampled.requests.values():
        if request.state == ENDED:
            assert request.status == whole.requests[request.id].status


def test_it_forgets_in_order_what_is_over() -> None:
    world = one_device()
    requests = []
    for number in range(200):
        world.at(number * 10 * MS + world.now, lambda: requests.append(world.request(1, slo_ms=50)))
    world.settle()
    by_time = history_of(world, keep_ns=500 * MS)
    assert 40 < len(by_time.requests) < 70
    assert list(by_time.requests) == requests[-len(by_time.requests) :]
    assert by_time.forgotten == 200 - len(by_time.requests)
    assert len(by_time.actions) <= len(by_time.requests)
    assert list(next(by_time.lanes()).executions) == list(by_time.actions.values())
    assert by_time.marks[0].at_ns >= by_time.now_ns - 600 * MS
    assert by_time.counts.answered == 200
    by_number = history_of(world, requests_max=10, actions_max=5)
    assert list(by_number.requests) == requests[-10:]
    assert len(by_number.actions) == 5


def test_what_waits_is_forgotten_only_where_too_much_waits() -> None:
    world = World()
    world.join(1)
    world.ready(spec(1, exec_ms=1000))
    for _ in range(20):
        world.request(1, slo_ms=0)
    history = history_of(world, keep_ns=1)
    assert len(history.live) == 20
    bounded = history_of(world, requests_max=5)
    assert len(bounded.requests) == len(bounded.live) == 5
    assert bounded.counts.waiting == len(
        [one for one in bounded.live.values() if one.state == WAITING and one.deadline_ns == NEVER_NS]
    )
