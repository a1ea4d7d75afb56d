"""Models that a worker has from an earlier controller: the scheduler counts on them, or does without."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.scheduler import POLICIES
from clockwork.scheduler.types import (
    LinkMeasured,
    ModelKept,
    ModelReady,
    ModelRemoved,
    SendInfer,
    SendLoad,
    WorkerDraining,
    WorkerJoined,
)
from tests.unit.stories import LINK, PAGE_BYTES, Story, spec, told

WIDE = spec(3, runs=(3,), program="wide")


@pytest.fixture(params=POLICIES)
def story(request: pytest.FixtureRequest) -> Story:
    """A worker with an arena of eight pages has joined, and has prepared models 1 and 2 (two pages) and 3."""
    found = Story(request.param, workers=0, resident=False)
    found(WorkerJoined(found.now, 1, (("cpu", PAGE_BYTES, 8, 2),)))
    found(LinkMeasured(found.now, 1, LINK, LINK))
    for model in (spec(1), spec(2), WIDE):
        found(ModelReady(found.now, 1, model))
    return found


def kept(
    story: Story, model: int, *starts: int, load_id: int = 7, worker: int = 1, device: int = 0
) -> list[Any]:
    return story(ModelKept(story.now, worker, device, model, load_id, starts))


def test_a_request_for_a_kept_model_is_executed_at_once(story: Story) -> None:
    kept(story, 1, 4)
    _, commands = story.request(1)
    [infer] = commands
    assert isinstance(infer, SendInfer)
    assert infer.load_id == 7
    story.now += 5_000_000
    assert ("ok", 1) in told(story.done(infer))


def test_pages_and_load_ids_of_kept_models_are_given_to_no_other(story: Story) -> None:
    kept(story, 1, 0, load_id=41)
    kept(story, 2, 4, load_id=17)
    _, commands = story.request(3)
    assert told(commands)[0][0] == "unload", (
        "three pages in a row are nowhere free: one is evicted as any other"
    )
    story.now += 1_000_000
    commands += story.done(commands[0], 0.1)
    [load] = (order for order in commands if isinstance(order, SendLoad))
    assert load.load_id > 41


def test_a_kept_model_whose_pages_were_given_away_is_loaded_as_any_other(story: Story) -> None:
    _, [load] = story.request(1)
    assert load.run_starts == (0,)
    kept(story, 2, 1)
    kept(story, 1, 4)  # its own load is under way
    story.now += 4_000_000
    story.done(load, 4)
    _, commands = story.request(2)
    other = next(order for order in commands if isinstance(order, SendLoad))
    assert other.run_starts == (2,), "behind what is loaded: nothing else is taken"


def test_a_kept_model_can_be_removed(story: Story) -> None:
    kept(story, 1, 0)
    [unload] = story(ModelRemoved(story.now, 1))
    assert told([unload]) == [("unload", 1)]
    assert unload.load_id == 7


@pytest.mark.parametrize("starts", [(), (0, 2), (7,), (8,), (2**32 - 1,)])
def test_pages_that_cannot_be_are_passed_over(story: Story, starts: tuple[int, ...]) -> None:
    assert kept(story, 1, *starts) == []
    _, [load] = story.request(1)
    assert isinstance(load, SendLoad)
    assert load.run_starts == (0,)


def test_a_worker_cannot_use_the_load_ids_of_others_up(story: Story) -> None:
    assert kept(story, 1, 0, load_id=(1 << 62) + 1) == kept(story, 1, 0, load_id=(1 << 63) - 1) == []
    kept(story, 2, 0, load_id=1 << 62)
    _, commands = story.request(1)
    (load,) = (order for order in commands if isinstance(order, SendLoad))
    assert load.load_id == (1 << 62) + 1


def test_strangers_are_passed_over(story: Story) -> None:
    assert kept(story, 9, 0) == kept(story, 1, 0, worker=2) == kept(story, 1, 0, device=1) == []
    assert kept(story, 1, 0, device=-1) == kept(story, 1, 0, load_id=0) == []
    kept(story, 2, 0)
    assert kept(story, 2, 4) == [], "it has the model already"
    story(WorkerDraining(story.now, 1))
    assert kept(story, 1, 4) == [], "nothing is planned on it any more"
