"""The state of models' preparation on workers: counts by worker, readiness, and retries."""

from __future__ import annotations

import pytest

from clockwork.config.controller import PREPARE_AGAIN_NS
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.models.lifecycle import ModelState
from clockwork.controller.models.version import ModelVersion
from clockwork.controller.registration.preparation_book import PREPARING, READY, PreparationBook


def model(model_id: int = 1) -> ModelVersion:
    return ModelVersion(model_id, ModelRecord(f"m{model_id}", 1, "0" * 64, [], {}))


def test_a_model_is_served_while_a_worker_has_it_that_does_not_leave() -> None:
    found, one = PreparationBook(), model()
    one.state = ModelState.READY
    found.joined(1, "a")
    found.joined(2, "b")
    found.note(one, 1, PREPARING)
    assert not found.is_served(one)
    found.note(one, 1, READY)
    found.note(one, 2, "no memory")
    assert found.is_served(one)
    found.drains(1)
    assert not found.is_served(one)
    assert found.has_workers()
    found.note(one, 2, READY)
    assert found.is_served(one)
    found.drains(2)
    assert not found.has_workers()


def test_counts_follow_every_change() -> None:
    found, one, two = PreparationBook(), model(1), model(2)
    found.joined(1, "a")
    for each in (one, two):
        found.note(each, 1, PREPARING)
    assert found.count(1) == {"ready": 0, "preparing": 2, "failed": 0}
    found.note(one, 1, READY)
    found.note(two, 1, "it is broken")
    assert found.describe(1) == {
        "ready": 1,
        "preparing": 0,
        "failed": 1,
        "failures": [["m2@1", "it is broken"]],
    }
    found.note(two, 1, PREPARING)
    found.forget_model(one)
    assert found.count(1) == {"ready": 0, "preparing": 1, "failed": 0}
    assert one.workers == {}
    found.forget(two, 1)
    found.left(1)
    assert found.count(1) == {"ready": 0, "preparing": 0, "failed": 0}


def test_a_failure_is_tried_again_after_longer_and_longer_pauses_and_not_for_ever() -> None:
    found, one = PreparationBook(), model()
    found.joined(1, "a")
    now = 0
    for pause in PREPARE_AGAIN_NS:
        found.note(one, 1, "no memory")
        assert found.try_again(one, 1, now)
        assert found.due(now + pause - 1) == []
        now += pause
        assert found.due(now) == [(1, one)]
        assert found.due(now) == []
        found.note(one, 1, PREPARING)
    found.note(one, 1, "no memory")
    assert not found.try_again(one, 1, now)
    assert found.due(now + max(PREPARE_AGAIN_NS)) == []


@pytest.mark.parametrize("what", ["it came about", "it left", "it drains", "it is gone"])
def test_what_came_about_otherwise_is_not_tried_again(what: str) -> None:
    found, one = PreparationBook(), model()
    found.joined(1, "a")
    found.note(one, 1, "no memory")
    assert found.try_again(one, 1, 0)
    if what == "it came about":
        found.note(one, 1, READY)
    elif what == "it left":
        found.left(1)
    elif what == "it drains":
        found.drains(1)
    else:
        found.forget_model(one)
    assert found.due(PREPARE_AGAIN_NS[-1]) == []
