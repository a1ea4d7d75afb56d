"""Stories of workers of one kind whose measurements of a model differ: each worker is planned by its own
measurements."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from clockwork.scheduler._core import POLICIES
from clockwork.scheduler.types import (
    AnswerOk,
    LinkMeasured,
    ModelReady,
    ModelSpec,
    SendInfer,
    SendLoad,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.sim.random_world import random_world, varied
from tests.unit.stories import LINK, MS, Story, spec

WIDE = spec(1, exec_ms=5, batch_max=8, row_ms=0.5, runs=(2,), load_ms=4)
NARROW = dataclasses.replace(WIDE, batch_max=2, runs=(1, 1, 1), load_ns=2 * MS, profile=WIDE.profile[:1])


def two(policy: str, first: ModelSpec, second: ModelSpec) -> Story:
    """Workers 1 and 2 of one kind, each with its own preparation of the model; nothing is loaded."""
    story = Story(policy, first, workers=1, resident=False)
    story(WorkerJoined(story.now, 2, (("cpu", 1 << 20, 4, 2),)))
    story(LinkMeasured(story.now, 2, LINK, LINK))
    story(ModelReady(story.now, 2, second))
    return story


def play(story: Story, requests: int, slo_ms: float = 400) -> tuple[list[SendInfer], list[SendLoad], int]:
    """So many requests at once, and all further orders carried out in order: the batches, the loads, and the
    number of successes."""
    sent: list[Any] = []
    batches, loads, good = [], [], 0
    for _ in range(requests):
        sent += story.request(1, slo_ms)[1]
    for _ in range(20 * requests):
        good += sum(isinstance(one, AnswerOk) for one in sent)
        batches += [one for one in sent if isinstance(one, SendInfer)]
        loads += [one for one in sent if isinstance(one, SendLoad)]
        open_ = [one for one in sent if not isinstance(one, AnswerOk) and hasattr(one, "action_id")]
        if not open_:
            break
        story.now = max(story.now + MS, min(story.wake, story.now + 2 * MS))
        sent = open_[1:] + story.done(open_[0], open_[0].expected_ns / MS) + story.tick()
    return batches, loads, good


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("order", ["wide first", "narrow first"])
def test_no_worker_gets_a_batch_larger_than_it_measured_nor_the_pages_of_anothers_layout(
    policy: str, order: str
) -> None:
    story = two(policy, *((WIDE, NARROW) if order == "wide first" else (NARROW, WIDE)))
    caps = {1: 8, 2: 2} if order == "wide first" else {1: 2, 2: 8}
    runs = (
        {1: len(WIDE.runs), 2: len(NARROW.runs)}
        if order == "wide first"
        else {1: len(NARROW.runs), 2: len(WIDE.runs)}
    )
    largest: dict[int, int] = {}
    loaded = set()
    for _ in range(8):
        batches, loads, good = play(story, 40)
        assert good > 0
        for load in loads:
            assert len(load.run_starts) == runs[load.worker]
            loaded.add(load.worker)
        for batch in batches:
            largest[batch.worker] = max(largest.get(batch.worker, 0), len(batch.requests))
    for worker, size in largest.items():
        assert 1 < size <= caps[worker], (worker, size)
    assert loaded == set(largest)


@pytest.mark.parametrize("policy", POLICIES)
def test_when_one_of_them_goes_the_other_serves_by_its_own_measurement(policy: str) -> None:
    story = two(policy, WIDE, NARROW)
    play(story, 20)
    story(WorkerLeft(story.now, 1))
    batches, _, good = play(story, 12)
    assert good > 0
    assert {one.worker for one in batches} == {2}
    assert max(len(one.requests) for one in batches) == 2
    # Capacity that only the lost worker had is promised to no request.
    story(WorkerJoined(story.now, 3, (("cpu", 1 << 20, 4, 2),)))
    story(ModelReady(story.now, 3, dataclasses.replace(NARROW, batch_max=1)))
    story(WorkerLeft(story.now, 2))
    batches, loads, good = play(story, 12)
    assert good > 0
    assert {len(one.requests) for one in batches} == {1}
    assert {len(one.run_starts) for one in loads} == {3}


def replaced(first: ModelSpec, second: ModelSpec, took_ms: float, load_ms: float) -> Story:
    """Worker 1 has loaded and executed the model several times, each time as long as given; then worker 2
    takes its place."""
    story = Story("edf", first, resident=False)
    _, [load] = story.request(1, 400)
    story.now += round(load_ms * MS)
    [send] = story.done(load, load_ms)
    for _ in range(3):
        story.now += round(took_ms * MS)
        story.done(send, took_ms)
        _, [send] = story.request(1, 400)
    story.now += round(took_ms * MS)
    story.done(send, took_ms)
    story(WorkerJoined(story.now, 2, (("cpu", 1 << 20, 4, 2),)))
    story(LinkMeasured(story.now, 2, LINK, LINK))
    story(ModelReady(story.now, 2, second))
    story(WorkerLeft(story.now, 1))
    return story


@pytest.mark.parametrize(("first", "second"), [(WIDE, NARROW), (NARROW, WIDE)])
def test_what_one_of_them_executes_teaches_what_the_other_is_expected_to_take(
    first: ModelSpec, second: ModelSpec
) -> None:
    story = replaced(first, second, 10, 4)
    _, [load] = story.request(1, 400)
    story.now += 5 * MS
    [send] = story.done(load, 4)
    assert (send.worker, send.expected_ns) == (2, 10 * MS)


def test_loads_are_expected_by_layout() -> None:
    """Bound and packed are two ways to hold a model; the load time of one says nothing of the other."""
    _, [load] = replaced(WIDE, NARROW, 5, 40).request(1, 400)
    assert (load.worker, load.expected_ns) == (2, NARROW.load_ns)
    _, [load] = replaced(WIDE, dataclasses.replace(WIDE, batch_max=2, load_ns=7 * MS), 5, 4).request(1, 400)
    assert (load.worker, load.expected_ns) == (2, 4 * MS)  # the layout is the same


@pytest.mark.slow
def test_varied_worlds_are_what_they_are_called() -> None:
    """The checks of random worlds would prove nothing if the differences there had no effect."""
    differ = 0
    for seed in range(40):
        world = random_world(seed)
        same, other = world.run("edf"), varied(world).run("edf")
        differ += same.digest != other.digest and other.good.sum() > 0
    assert differ > 30
