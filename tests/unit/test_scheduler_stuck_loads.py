"""A LOAD that does not end: nothing is promised on it, other devices take its requests, and its model is not
blamed at once."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.config.controller import EVIDENCE_MAX
from clockwork.scheduler.types import AnswerFailed, AnswerOk, Fault, ModelFault, SendLoad, WorkerDraining
from clockwork.wire.messages import Status
from tests.unit.stories import Story, spec
from tests.unit.test_scheduler_suspects import POLICIES, Play


def play(policy: str, workers: int) -> Play:
    return Play(Story(policy, spec(1), spec(2), workers=workers, resident=False))


def stick(game: Play, model: int = 1) -> SendLoad:
    """The LOAD of a model that is under way, and from now on does not end."""
    (load,) = [one for _, one in game.due if isinstance(one, SendLoad) and one.model_id == model]
    game.due = [due for due in game.due if due[1] is not load]
    return load


def serve(game: Play, ms: int) -> None:
    """Let time pass, with every execution ending well."""
    for _ in range(ms // 10):
        game.pass_time(10)
        for one in list(game.infers):
            game.end(one)


def loads_of(game: Play, model: int) -> list[Any]:
    return [one for _, one in game.due if isinstance(one, SendLoad) and one.model_id == model]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_waits_for_a_load_that_does_not_end_is_served_elsewhere(policy: str) -> None:
    game = play(policy, workers=2)
    waits = game.ask(1, slo_ms=20_000)
    game.pass_time(1)
    stick(game)
    serve(game, 900)
    later = [game.ask(1, slo_ms=2000) for _ in range(3)]
    serve(game, 2000)
    assert all(isinstance(game.answers.get(one), AnswerOk) for one in (waits, *later)), game.answers
    assert game.faults == []


@pytest.mark.parametrize("policy", ["edf", "adaptive"])
def test_a_request_without_a_deadline_goes_elsewhere_too(policy: str) -> None:
    game = play(policy, workers=2)
    waits = game.ask(1, slo_ms=0)
    game.pass_time(1)
    stick(game)
    serve(game, 3000)
    assert isinstance(game.answers.get(waits), AnswerOk), game.answers


def test_where_nobody_else_is_what_cannot_be_in_time_is_refused_at_once() -> None:
    game = play("edf", workers=1)
    waits = game.ask(1, slo_ms=20_000)
    game.pass_time(1)
    load = stick(game)
    game.pass_time(3000)
    hopeless = [game.ask(model, slo_ms=100) for model in (1, 2)]
    assert all(isinstance(game.answers.get(one), AnswerFailed) for one in hopeless), (
        "no load would be in time"
    )
    assert waits not in game.answers, "it may still come"
    game.take(game.story.done(load, 3000))
    serve(game, 500)
    assert isinstance(game.answers[waits], AnswerOk)
    fine = [game.ask(model, slo_ms=100) for model in (1, 2)]
    serve(game, 500)
    assert all(isinstance(game.answers[one], AnswerOk) for one in fine), (
        "what was held against the link is over"
    )


def begin_anew(game: Play, load: SendLoad) -> None:
    """The behaviour of a worker whose load does not end: it says Goodbye, then why, and leaves."""
    game.take(game.story(WorkerDraining(game.story.now, load.worker)))
    game.take(game.story.done(load, 4, Status.OVERRUN, "the load took longer than it may"))
    game.kill(load.worker)
    game.due = [due for due in game.due if due[1].worker != load.worker]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_whose_loads_do_not_end_is_set_aside_after_some_in_a_row(policy: str) -> None:
    game = play(policy, workers=EVIDENCE_MAX + 1)
    for number in range(1, EVIDENCE_MAX + 1):
        if not loads_of(game, 1):
            game.ask(1, slo_ms=100_000)
            game.pass_time(1)
        load = stick(game)
        begin_anew(game, load)
        assert game.faults[-1] == ModelFault(1, load.worker, Fault.STUCK, number == EVIDENCE_MAX)
    game.finish()
    assert game.gone == [1]
    fine = game.ask(2)
    game.finish()
    assert isinstance(game.answers[fine], AnswerOk)
