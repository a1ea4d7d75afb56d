"""Symphony's scheduler as stories: these events, exactly these orders."""

from __future__ import annotations

from typing import Any

from clockwork.scheduler.types import ModelSpec, SendInfer
from tests.unit.stories import LINK, MS, Story, spec, told

JITTER = 0.1


def deferred(*specs: ModelSpec, devices: int = 1, pages: int = 4) -> Story:
    return Story("deferred", *specs, devices=devices, pages=pages)


def margin(ms: float) -> float:
    """A duration as planned, in ms."""
    return ms + max(0.1, 0.02 * ms)


def orders(story: Story, until_ms: float) -> list[tuple[float, list[Any]]]:
    return [(round(ms, 3), told([one])) for ms, one in story.until(until_ms)]


def test_a_queue_waits_until_one_more_could_no_longer_join() -> None:
    story = deferred(spec(1, exec_ms=5, batch_max=8, row_ms=2))
    waiting = story.ask(1, 1, slo_ms=50)
    frontrun = 50 - LINK / MS - JITTER - margin(9)  # a batch of three would take 9 ms
    assert orders(story, 60)[:1] == [(round(frontrun - LINK / MS, 3), [("infer", 1, tuple(waiting))])]


def test_a_batch_that_cannot_grow_goes_at_once() -> None:
    story = deferred(spec(1, exec_ms=5, batch_max=2, row_ms=1))
    [one] = story.ask(1)
    two, [send] = story.request(1)
    assert told([send]) == [("infer", 1, (one, two))]


def test_more_requests_bring_the_start_forward() -> None:
    story = deferred(spec(1, exec_ms=5, batch_max=8, row_ms=2))
    first = story.ask(1, slo_ms=50)
    second = story.at(30).ask(1, 1, slo_ms=50)
    frontrun = 50 - LINK / MS - JITTER - margin(11)
    assert orders(story, 60)[:1] == [(round(frontrun - LINK / MS, 3), [("infer", 1, (*first, *second))])]


def test_a_device_that_becomes_free_takes_the_parked_queue_that_is_invalid_first() -> None:
    story = deferred(spec(1, exec_ms=30), spec(2, exec_ms=5), spec(3, exec_ms=5), pages=8)
    _, [send] = story.request(1)  # batches hold a single request: waiting gains nothing
    late, soon = story.ask(2, slo_ms=80), story.ask(3, slo_ms=60)
    commands = story.at(30.2).done(send, 30)
    assert told(commands)[1:] == [("infer", 3, tuple(soon))]
    assert late


def test_who_does_not_fit_into_the_batch_that_the_others_need_is_dropped() -> None:
    story = deferred(spec(1, exec_ms=30), spec(2, exec_ms=6, batch_max=4, row_ms=6))
    _, [send] = story.request(1)
    tight = story.ask(2, slo_ms=41)
    loose = story.ask(2, 2, 2, 2, slo_ms=64)
    commands = story.at(30.2).done(send, 30)
    assert told(commands)[1:] == [("deadline_missed", tight[0]), ("infer", 2, tuple(loose))]


def test_the_device_of_the_lowest_number_is_taken_while_it_is_free() -> None:
    story = Story("deferred", spec(1), devices=3)
    placed = []
    for turn in range(3):
        _, [send] = story.at(100 * turn).request(1)
        assert isinstance(send, SendInfer)
        placed.append(send.device)
        story.at(100 * turn + 5.2).done(send)
    assert placed == [0, 0, 0]


def test_the_hopeless_are_answered_when_that_is_certain() -> None:
    story = deferred(spec(1, exec_ms=60), spec(2, exec_ms=5))
    story.request(1)
    [late] = story.ask(2, slo_ms=40)
    assert orders(story, 50) == [(40 - margin(5), [("deadline_missed", late)])]
