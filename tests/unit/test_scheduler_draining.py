"""A worker that leaves in order, under every policy: no request fails because of it."""

from __future__ import annotations

import pytest

from clockwork.scheduler.types import SendLoad, WorkerDraining
from clockwork.wire.messages import Reason
from tests.unit.stories import Story, spec, told

pytestmark = [
    pytest.mark.parametrize("slo_ms", [100, 0]),
    pytest.mark.parametrize("policy", ["adaptive", "edf", "deferred", "fifo", "paper"]),
]


def test_what_nobody_else_could_serve_is_refused(policy: str, slo_ms: int) -> None:
    """It finishes the actions it was sent; waiting and new requests are refused at once."""
    story = Story(policy, spec(1, 10))
    first, [send] = story.request(1, slo_ms)
    waiting = story.ask(1, 1, 1, slo_ms=slo_ms)
    assert told(story(WorkerDraining(story.now, 1))) == [("refused", request) for request in waiting]
    late, [answer] = story.request(1, slo_ms)
    assert told([answer]) == [("refused", late)]
    assert answer.reason == Reason.NO_WORKER
    assert told(story.at(10).done(send, 10)) == [("ok", first)]


def test_a_model_that_is_waited_for_is_loaded_elsewhere_at_once(policy: str, slo_ms: int) -> None:
    story = Story(policy, spec(1, 10), workers=2)
    first, [send] = story.request(1, slo_ms)
    waiting = story.ask(1, 1, 1, slo_ms=slo_ms)
    [load] = story(WorkerDraining(story.now, send.worker))
    assert isinstance(load, SendLoad)
    assert load.worker != send.worker
    assert told(story.at(4).done(load, 4))[0] == ("infer", 1, (waiting[0],))
    assert ("ok", first) in told(story.at(10).done(send, 10))


def test_so_is_one_that_is_asked_for_while_its_worker_drains(policy: str, slo_ms: int) -> None:
    story = Story(policy, spec(1, 10), workers=2)
    assert story(WorkerDraining(story.now, 1)) == []
    request, [load] = story.request(1, slo_ms)
    assert isinstance(load, SendLoad)
    assert load.worker == 2
    assert told(story.at(4).done(load, 4)) == [("infer", 1, (request,))]
