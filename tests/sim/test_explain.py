"""The explanation of a request's delay: sentences that can be checked against the events, and a picture."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from clockwork.errors import InvalidInput
from clockwork.observe.explain import (
    Explanation,
    LaneTimeline,
    Moment,
    Timeline,
    explain,
    find_request,
    find_slowest,
)
from clockwork.observe.timeline import draw_svg, draw_text
from clockwork.scheduler.types import Arrived, WorkerLeft
from tests.sim.harness import MS, SECOND, World, spec
from tests.sim.test_history import history_of, one_device
from tests.sim.test_scheduler_random import random_world


def two_models() -> World:
    """A device with both models, the first of which takes 50 ms."""
    world = World(policy="adaptive")
    world.now = SECOND
    world.join(1)
    world.ready(spec(1, exec_ms=50, load_ms=10), spec(2, exec_ms=5, load_ms=10))
    world.request(1, slo_ms=500)
    world.request(2, slo_ms=500)
    world.settle()
    return world


def explained(world: World, request_id: int) -> Explanation:
    return explain(history_of(world), request_id)


def test_a_request_below_what_its_execution_takes() -> None:
    world = one_device()
    refused = world.request(1, slo_ms=2)
    found = explained(world, refused)
    assert (found.model, found.outcome) == ("m1@1", "refused")
    assert list(found.sentences) == [
        "Request 1 for m1@1 (1 row, priority 4) arrived 0.0 us before the end of this history, with an SLO of 2.00 ms.",
        "0 other requests waited in the controller then, 0 of them for its model.",
        "It was refused at its arrival (infeasible): even an idle device that has the model would have been too slow for its SLO.",
        (
            "The refusal said: m1@1 takes 5.27 ms on an idle device (5.00 ms to execute, the rest on the way and in reserve), the SLO "
            "is 2.00 ms."
        ),
        "It would have needed an SLO of 5.27 ms, by the estimates of that moment.",
        "1 of 1 device could have served it: 0 had the model, and 0 were executing when it arrived.",
        "No other batch of its model was ordered after it came.",
    ]
    assert list(found.devices) == [
        (
            "device 1/0 did not have the model, and a load takes 10.0 ms, executed nothing at that moment, executed for 0% of the "
            "2.00 ms until its deadline."
        )
    ]


def test_a_request_that_came_while_its_device_was_executing() -> None:
    world = two_models()
    first = world.request(1, slo_ms=500)
    began = world.now
    world.run(until=began + 10 * MS)
    refused = world.request(2, slo_ms=20)
    world.settle()
    found = explained(world, refused)
    assert found.outcome == "refused"
    history = history_of(world)
    batch = history.requests[first].action
    assert batch is not None
    left_ms = (batch.end_ns - history.requests[refused].arrived_ns) / MS
    assert found.devices[0].startswith(
        f"device 1/0 had the model, executed m1@1 until {left_ms:.1f} ms after its arrival, "
    )
    assert "executed for 100% of the 20.0 ms until its deadline" in found.devices[0]
    assert any("would have needed an SLO of 4" in one for one in found.sentences)
    assert (
        "1 of 1 device could have served it: 1 had the model, and 1 was executing when it arrived."
        in found.sentences
    )
    (execute, load) = found.timeline.lanes
    assert (execute.name, load.name) == ("1/0 execute", "1/0 load")
    assert [span.label for span in execute.spans] == ["m1@1"]
    assert found.timeline.moments[0][1:] == ("A", "arrival")


def test_while_the_batch_has_not_ended_its_prediction_is_told() -> None:
    world = two_models()
    world.request(1, slo_ms=500)
    world.run(until=world.now + 10 * MS)
    refused = world.request(2, slo_ms=20)
    found = explained(world, refused)
    assert "executed m1@1 until 4" in found.devices[0]
    (span,) = found.timeline.lanes[0].spans
    assert span.is_predicted


def test_a_request_that_waited_for_a_load_and_for_others() -> None:
    world = World()
    world.now = SECOND
    world.join(1, [("cpu", 2, 1.0)])
    world.ready(spec(1, exec_ms=20, load_ms=30), spec(2, exec_ms=5, load_ms=10))
    world.request(1, slo_ms=500)
    waits = world.request(2, slo_ms=500)
    world.settle()
    found = explained(world, waits)
    history = history_of(world)
    request = history.requests[waits]
    told = "\n".join(found.sentences)
    assert f"waiting for a load and {request.exec_ns / MS:.2f} ms on the device." in told
    assert "to 1/0, in a batch of 1 request with 1 row." in told
    assert "The model had to be loaded there first" in told
    assert "; predicted were 10.0 ms, measured 10.0 ms." in told
    assert "predicted were 5.00 ms, measured 5.00 ms." in told
    own = [span for lane in found.timeline.lanes for span in lane.spans if span.is_own]
    assert [span.text.split(",")[0] for span in own] == ["infer m2@1", "load m2@1"]


def test_its_own_batch_is_none_that_was_sent_before() -> None:
    world = two_models()
    alone = world.request(1, slo_ms=100)
    world.settle()
    found = explained(world, alone)
    assert "0.0 us after its arrival it was sent to 1/0, in a batch of 1 request" in "\n".join(
        found.sentences
    )
    assert found.devices[0].startswith(
        "device 1/0 had the model, executed nothing at that moment, executed for "
    )


def test_a_deadline_that_an_execution_missed() -> None:
    """An execution takes ten times as long as predicted."""
    world = two_models()
    world.specs[2] = spec(2, exec_ms=50, load_ms=10)
    missed = world.request(2, slo_ms=20)
    world.settle()
    found = explained(world, missed)
    assert found.outcome == "missed"
    told = "\n".join(found.sentences)
    assert "It missed its deadline, and was told so after 20.0 ms" in told
    assert "predicted were 5.00 ms, measured 50.0 ms; it ended 30." in told
    assert "after the deadline." in told


def test_a_model_that_no_worker_has_left() -> None:
    world = two_models()
    world.leave(1)
    refused = world.request(2, slo_ms=20)
    found = explained(world, refused)
    assert "None of 0 devices could have served it" in "\n".join(found.sentences)
    assert isinstance(world.trace[-2][0], WorkerLeft)
    assert found.devices == []


def test_the_batch_that_a_request_could_have_joined_is_named() -> None:
    world = two_models()
    world.request(1, slo_ms=500)
    refused = world.request(2, slo_ms=20)
    world.run(until=world.now + MS)
    other = world.request(2, slo_ms=500)
    world.settle()
    told = "\n".join(explained(world, refused).sentences)
    batch = history_of(world).requests[other].action
    assert batch is not None
    assert "The next other batch of its model was ordered" in told


def test_requests_are_found_by_what_became_of_them() -> None:
    world = two_models()
    refused = world.request(2, slo_ms=1)
    world.settle()
    history = history_of(world)
    assert find_request(history, "refused") == find_request(history, "refused", "m2") == refused
    assert find_request(history, "answered", "m2@1") == 2
    assert find_slowest(history) == 2
    with pytest.raises(InvalidInput, match=r"no request of m1 was refused in the .* that are kept"):
        find_request(history, "refused", "m1")
    with pytest.raises(InvalidInput, match="no request was missed"):
        find_request(history, "missed")
    with pytest.raises(InvalidInput, match=r"no request 99 in the .* that are kept: those are 1 to 3"):
        explain(history, 99)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_request_can_be_explained_and_drawn(seed: int) -> None:
    world = random_world(seed, calm=False, policy="adaptive" if seed % 2 else "edf")
    world.settle()
    half = world.trace[: len(world.trace) // 2]
    for trace in (world.trace, half):
        world.trace = trace
        history = history_of(world)
        for event, _ in trace:
            if not isinstance(event, Arrived):
                continue
            found = explain(history, event.request.id)
            assert found.outcome == history.requests[event.request.id].outcome
            lines = [line.plain for line in draw_text(found.timeline, 100)]
            assert all(len(line) <= 100 for line in lines[:-2])
            assert len(lines) == len(found.timeline.lanes) + 4
            picture = ElementTree.fromstring(draw_svg(found.timeline))
            titles = picture.findall(".//{http://www.w3.org/2000/svg}title")
            assert len(titles) == sum(len(lane.spans) for lane in found.timeline.lanes)


def test_a_timeline_shows_when_what_was_done() -> None:
    world = two_models()
    first = world.request(1, slo_ms=60)
    world.settle()
    found = explained(world, first)
    marks, execute, *_ = [line.plain for line in draw_text(found.timeline, 106)]
    assert marks.index("A") < marks.index("E") < marks.index("D")
    assert " m1@1 " in execute
    own = execute.count("●") + len(" m1@1 ")
    columns = 106 - len("1/0 execute ")
    span_ns = found.timeline.until_ns - found.timeline.from_ns
    assert abs(own - 50 * MS / span_ns * columns) <= 2


def test_a_lane_has_its_workers_name_whatever_is_in_it() -> None:
    name = "w\x1b[2J\n\x9b<b>/0"
    timeline = Timeline("of\x1b", 0, 10, 0, [Moment(0, "A", "arrival")], [LaneTimeline(name, "execute", [])])
    lines = [line.plain for line in draw_text(timeline, 100)]
    assert all(line.isprintable() for line in lines)
    assert any(line.startswith(r"w\x1b[2J\n\x9b<b>/0 ") for line in lines)
    picture = draw_svg(timeline)
    ElementTree.fromstring(picture)  # control characters are invalid in XML
    assert r"w\x1b[2J\n\x9b&lt;b&gt;/0" in picture
