"""The border between Python and the native scheduler: numbers with one meaning in both, and the release of
names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clockwork.scheduler import _core, make_scheduler
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    Arrived,
    LinkMeasured,
    ModelGone,
    ModelReady,
    ModelRemoved,
    ModelSpec,
    ProfilePoint,
    Request,
    RequestCancelled,
    SendInfer,
    SendLoad,
    SendUnload,
    Tick,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.wire.messages import NEVER_NS, Reason, Status
from tests.unit import stories

MS = 1_000_000
SHAPE = ((3, 8, 8),)


def spec(model_id: int, program: str = "p", version: int = 1) -> ModelSpec:
    points = [ProfilePoint(SHAPE, 1, 5 * MS)]
    return ModelSpec(model_id, f"m{model_id}", version, program, False, 1, 0, (1,), 4 * MS, points)


def request(number: int, model: int = 1, shape: Any = SHAPE, slo_ms: int = 100, size: int = 1) -> Arrived:
    return Arrived(0, Request(number, model, 1, shape, size, 0, slo_ms * MS if slo_ms else NEVER_NS, 4))


def test_every_answer_has_its_sentence() -> None:
    none, *texts = _core.TEXTS
    assert not none
    for text in texts:
        assert text.format(name="m", a=1, b=2, a_time="1 us", b_time="2 us", c_time="3 us", said="no")


def test_the_sentences_name_the_model_and_the_numbers() -> None:
    scheduler = make_scheduler("edf", queued_bytes_max=1000)
    scheduler.step(WorkerJoined(0, 1, (("cpu", 1 << 20, 4, 2),)))
    scheduler.step(ModelReady(0, 1, spec(1, version=3)))

    def text(event: Any) -> str:
        [answer] = [one for one in scheduler.step(event) if isinstance(one, AnswerFailed)]
        return answer.text

    assert text(request(1, 77)) == "no worker that can serve the model is connected"
    assert text(request(2, slo_ms=3)) == (
        "m1@3 takes 5.47 ms on an idle device (5.00 ms to execute, the rest on the way and in reserve), the SLO is 3.00 ms"
    )
    scheduler.step(request(3, size=600))
    assert text(request(4, size=600)) == "1 requests of 600 bytes are queued"
    assert text(RequestCancelled(0, 3)) == "the request was cancelled"
    scheduler.step(request(5))
    scheduler.step(ModelRemoved(0, 1))
    assert text(request(6)) == "m1@3 is being unregistered"
    assert text(WorkerLeft(0, 1)) == "the worker was lost"


@pytest.mark.parametrize(("said", "shown"), [("no such file", "no such file"), ("", "DEVICE_ERROR")])
def test_a_failed_load_says_what_the_worker_said(said: str, shown: str) -> None:
    scheduler = make_scheduler("edf")
    scheduler.step(WorkerJoined(0, 1, (("cpu", 1 << 20, 4, 2),)))
    scheduler.step(ModelReady(0, 1, spec(1)))
    commands = scheduler.step(request(1))
    while not isinstance(commands[0], AnswerFailed):
        action: Any = commands[0]
        commands = scheduler.step(ActionDone(0, 1, action.action_id, Status.DEVICE_ERROR, said, 0, 0, 0))
    assert commands[0].text == f"m1@1 could not be loaded: {shown}"


def test_names_programs_and_shapes_that_nothing_uses_are_forgotten() -> None:
    scheduler: Any = make_scheduler("edf")
    scheduler.step(WorkerJoined(0, 1, (("cpu", 1 << 20, 4, 2),)))
    for model in range(1, 4):
        scheduler.step(ModelReady(0, 1, spec(model, program=f"p{model % 2}")))
    for number in range(
        3 * _core.SHAPES_KNOWN_MAX
    ):  # each client sends a shape of its own, far too large to bound
        [answer] = [
            one for one in scheduler.step(request(number, shape=((number + 5000,),)))
            if isinstance(one, AnswerFailed)
        ]  # fmt: skip
        assert answer.reason == Reason.UNPROFILED
    shapes, programs, names = scheduler.known_counts
    assert shapes <= _core.SHAPES_KNOWN_MAX + 1
    assert (programs, names) == (2, 3)
    assert scheduler.step(ModelRemoved(0, 2)) == [ModelGone(2)]
    assert scheduler.known_counts[1:] == (1, 2)
    scheduler.step(ModelRemoved(0, 1))
    assert scheduler.known_counts[1:] == (1, 1), "model 3 is of the same program"
    scheduler.step(ModelRemoved(0, 3))
    assert scheduler.known_counts[1:] == (0, 0)


def test_a_forgotten_number_is_given_to_another_shape_without_harm() -> None:
    scheduler: Any = make_scheduler("edf")
    scheduler.step(WorkerJoined(0, 1, (("cpu", 1 << 20, 4, 2),)))
    scheduler.step(ModelReady(0, 1, spec(1)))
    for number in range(3 * _core.SHAPES_KNOWN_MAX):
        scheduler.step(request(number, shape=((number + 5000,),)))
    [load] = [
        one for one in scheduler.step(request(10**6, shape=((192,),))) if not isinstance(one, AnswerFailed)
    ][:1]
    assert load.expected_ns == 4 * MS, (
        "as many elements as the profiled shape has: it is bounded by it, and admitted"
    )


def expected_loads(program: str) -> list[int]:
    """The expected load times in ms of two models in turn, with room for one, and of a third: loads take
    twice the profiles' time, and one ten times as long. program: that of all models; "": each has its own.
    """
    specs = [stories.spec(model, load_ms=5, program=program) for model in (1, 2, 3)]
    story = stories.Story("fifo", *specs, pages=2, resident=False)
    estimates = _core.LoadEstimates()
    expected = []
    for model, took_ms in [*[(1, 10), (2, 10)] * 3, (1, 100), (2, 10), (1, 10), (3, 10)]:
        orders = story.request(model, slo_ms=1000)[1]
        if isinstance(orders[0], SendUnload):
            orders += story.done(orders[0])
        [load] = [one for one in orders if isinstance(one, SendLoad)]
        of = 0 if program else model
        assert load.expected_ns == estimates.load_ns(of, 5 * MS, 2)
        expected.append(load.expected_ns // MS)
        estimates.measure(of, 5 * MS, 2, took_ms * MS)
        [send] = story.done(load, took_ms)
        story.done(send)
    return expected


def test_an_order_to_load_expects_what_the_estimates_of_loads_say() -> None:
    assert expected_loads("") == [5, 5, 5, 5, 10, 10, 10, 10, 10, 10]


def test_fine_tunes_learn_from_each_others_loads() -> None:
    """Thousands of models are of a few programs, and most of them are loaded for the first time."""
    assert expected_loads("p") == [5, 5, 10, 10, 10, 10, 10, 10, 10, 10]


def test_an_event_that_is_none_is_a_mistake() -> None:
    with pytest.raises((TypeError, AttributeError)):
        make_scheduler("edf").step("tick")  # type: ignore[arg-type]


def test_the_predictions_of_actions_are_held_against_what_came_of_them() -> None:
    """Two INFERs of 5 ms one after the other: the first takes 7 ms, and so the second, which takes 5 ms
    itself, is late."""
    scheduler = make_scheduler("edf")
    scheduler.step(WorkerJoined(0, 1, (("cpu", 1 << 20, 4, 2),)))
    scheduler.step(LinkMeasured(0, 1, 0, 0))
    scheduler.step(ModelReady(0, 1, spec(1)))
    [load] = [one for one in scheduler.step(request(1)) if isinstance(one, SendLoad)]
    done = scheduler.step(ActionDone(3 * MS, 1, load.action_id, Status.OK, "", 0, 3 * MS, 3 * MS))
    again = [*scheduler.step(request(2)._replace(now_ns=3 * MS)), *scheduler.step(Tick(7 * MS))]
    first, second = (one.action_id for one in [*done, *again] if isinstance(one, SendInfer))
    scheduler.step(ActionDone(10 * MS, 1, first, Status.OK, "", 3 * MS, 10 * MS, 7 * MS))
    scheduler.step(ActionDone(15 * MS, 1, second, Status.OK, "", 10 * MS, 15 * MS, 5 * MS))
    found = scheduler.predictions()

    def most_ms(kind: str, way: str) -> tuple[int, float]:
        return found[kind][way]["total"], found[kind][way]["max_ns"] / MS

    assert most_ms("load_duration", "over") == (1, 1.0), "4 ms in the profile, 3 in fact"
    assert most_ms("load_completion", "over") == (1, 1.0)
    assert most_ms("infer_duration", "under") == (1, 2.0)
    assert most_ms("infer_duration", "over") == (1, 0.0)
    assert most_ms("infer_completion", "under") == (2, 2.0), "the second began when the first had ended"
    percentiles = found["infer_duration"]["under"]["percentiles_ns"]
    assert list(percentiles) == ["50", "90", "99", "99.9", "99.99"]
    assert percentiles["99.99"] == pytest.approx(2 * MS, rel=0.01)


def test_the_noise_of_executions_is_what_a_simulation_needs_to_have_it_again() -> None:
    """3 % of sigma, 2 % of outliers that take three times as long; and the profile is wrong by a quarter."""
    story = stories.Story("edf", stories.spec(1))
    before = story.scheduler.noise()["executions"]
    generator = np.random.default_rng(1)
    for _ in range(3000):
        factor = generator.lognormal(0, 0.03) * (3 if generator.random() < 0.02 else 1)
        _, sent = story.request(1, 1000)
        story.now += round(6.25 * factor * MS)
        story.done(sent[-1], 6.25 * factor)
    noise = story.scheduler.noise()
    assert noise["executions"] - before == 3000
    assert noise["pace"] == pytest.approx(1, abs=0.05), "what is expected has followed"
    assert noise["sigma"] == pytest.approx(0.03, abs=0.01)
    assert noise["outliers"] == pytest.approx(0.02, abs=0.01)
    assert noise["outlier_factor"] == pytest.approx(3, rel=0.1)
    profile = stories.spec(1).profile
    [now_ns] = story.scheduler.expected_ns(1, profile[:1])
    assert now_ns == pytest.approx(6.25 * MS, rel=0.05)
    assert story.scheduler.expected_ns(99, profile[:1]) == [profile[0].exec_ns], "nothing is known of it"
    for _ in range(9000):  # half of 4,096 are forgotten whenever that many are known
        _, sent = story.request(1, 1000)
        story.now += 6 * MS
        story.done(sent[-1], 6)
    late = story.scheduler.noise()
    assert late["executions"] < 4096
    assert late["sigma"] < 0.005
    assert late["outliers"] < 0.01, "what was long ago is nearly forgotten"
