"""A trace is well-formed by the rules of its format, and shows what happened."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from clockwork.observe.history import History
from clockwork.observe.perfetto import CLUSTER, REQUESTS, WORKERS, Drawn, write_trace
from clockwork.scheduler.recording import Step
from clockwork.scheduler.types import AnswerOk, Status
from tests.sim.harness import MS, World, spec
from tests.sim.test_history import history_of, one_device
from tests.sim.test_scheduler_random import random_world


def traced(history: History) -> tuple[dict[str, Any], Drawn]:
    file = io.StringIO()
    drawn = write_trace(file, history, {"policy": "edf"})
    body = json.loads(file.getvalue())
    check_format(body)
    return body, drawn


def check_format(body: dict[str, Any]) -> None:
    """The rules of the Trace Event format for the phases that are used: X, i, C, s, t, f and M."""
    assert body["displayTimeUnit"] in ("ms", "ns")
    events = body["traceEvents"]
    named = {(one["pid"], one["tid"]) for one in events if one["name"] == "thread_name"}
    processes = {one["pid"] for one in events if one["name"] == "process_name"}
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    flows: dict[int, list[dict[str, Any]]] = {}
    for one in events:
        assert {"ph", "name", "pid", "tid"} <= set(one), one
        assert one["pid"] in processes
        track = one["pid"], one["tid"]
        if one["ph"] != "M":
            assert one["ts"] >= 0, one
        if one["ph"] == "X":
            assert one["dur"] >= 0, one
            assert track in named
            slices.setdefault(track, []).append((one["ts"], one["ts"] + one["dur"]))
        elif one["ph"] == "i":
            assert one["s"] in "tpg", one
        elif one["ph"] == "C":
            assert one["args"], one
            assert all(isinstance(value, int | float) and value >= 0 for value in one["args"].values()), one
        elif one["ph"] in "stf":
            flows.setdefault(one["id"], []).append(one)
        else:
            assert one["ph"] == "M", one
            assert one["name"] in ("process_name", "thread_name", "process_sort_index", "thread_sort_index")
    for track, spans in slices.items():
        assert spans == sorted(spans, key=lambda span: span[0]), "slices in the order of their beginnings"
        around: list[float] = []  # ends of the slices that may enclose the next
        for begin, end in spans:
            while around and around[-1] <= begin + 1e-6:
                around.pop()
            assert not around or end <= around[-1] + 1e-6, f"slices of track {track} overlap"
            around.append(end)
    for flow in flows.values():
        assert [one["ph"] for one in flow] in (["s", "t"], ["s", "t", "f"])
        assert [one["ts"] for one in flow] == sorted(one["ts"] for one in flow)
        for one in flow:
            spans = [span for span in slices[one["pid"], one["tid"]] if span[0] <= one["ts"] <= span[1]]
            assert spans, f"a flow's {one['ph']} is in no slice"


def of_kind(body: dict[str, Any], phase: str, **fields: Any) -> list[dict[str, Any]]:
    return [
        one
        for one in body["traceEvents"]
        if one["ph"] == phase and all(one.get(name) == value for name, value in fields.items())
    ]


def test_a_request_leads_to_its_batch_and_to_its_answer() -> None:
    world = one_device()
    first = world.request(1, slo_ms=100)
    refused = world.request(1, slo_ms=2)
    world.settle()
    body, drawn = traced(history_of(world))
    assert (drawn.requests, drawn.left_out, drawn.loads, drawn.under_way) == (2, 0, 1, 0)
    (batch,) = of_kind(body, "X", cat="infer")
    assert (batch["pid"], batch["name"], batch["dur"]) == (WORKERS + 1, "m1@1", 5000)
    assert batch["args"]["ids"] == [first]
    assert batch["args"]["predicted_ms"] == batch["args"]["measured_ms"] == 5
    assert batch["args"]["longer_than_predicted_%"] == 0
    (load,) = of_kind(body, "X", cat="load")
    assert load["dur"] == 10_000
    assert load["tid"] != batch["tid"]
    answered, turned_away = of_kind(body, "X", cat="request")
    assert (answered["name"], answered["cname"]) == ("m1@1", "good")
    assert answered["args"]["latency_ms"] == world.latency_ns(first) / MS
    assert answered["args"]["batch"] == batch["args"]["action"]
    assert (turned_away["name"], turned_away["args"]["reason"], turned_away["dur"]) == (
        "m1@1 refused", "infeasible", 0,
    )  # fmt: skip
    assert turned_away["args"]["request"] == refused
    assert [(one["id"], one["pid"]) for phase in "stf" for one in of_kind(body, phase)] == [
        (first, REQUESTS),
        (first, WORKERS + 1),
        (first, REQUESTS),
    ]
    (answer,) = of_kind(body, "X", cat="answer")
    assert (answer["ts"], answer["tid"]) == (batch["ts"] + batch["dur"], answered["tid"])
    assert answer["ts"] + answer["dur"] == pytest.approx(answered["ts"] + answered["dur"])
    pages = of_kind(body, "C", name="device 0 resident")
    assert [one["args"]["pages"] for one in pages] == [3]
    refusals = of_kind(body, "C", name="refusals per second")
    assert [one["args"] for one in refusals if one["args"]["infeasible"]] == [{"infeasible": 10}]
    assert body["otherData"]["policy"] == "edf"


def test_an_idle_device_with_work_waiting_is_shown() -> None:
    """Under a policy that holds a queue so that its batch grows."""
    world = World(policy="deferred")
    world.now = 1000 * MS
    world.join(1)
    world.ready(spec(1, exec_ms=5, batch_max=4, row_ms=1, load_ms=10))
    world.request(1)
    world.settle()
    lone = world.request(1)
    world.settle()
    history = history_of(world)
    request = history.requests[lone]
    assert request.sent_ns > request.arrived_ns + 50 * MS
    body, _ = traced(history)
    last = of_kind(body, "X", name="idle with work")[-1]
    assert last["ts"] == (request.arrived_ns - history.begun_ns) / 1000
    assert last["dur"] == (request.sent_ns - request.arrived_ns) / 1000


@pytest.mark.parametrize("seed", range(6))
def test_any_world_can_be_traced(seed: int) -> None:
    world = random_world(seed, calm=False, policy="adaptive" if seed % 2 else "edf")
    world.settle()
    body, drawn = traced(history_of(world))
    assert drawn.requests + drawn.left_out == len(world.requests)
    good = [one for one in of_kind(body, "X", cat="request") if one["args"]["outcome"] == "answered"]
    assert len(good) == sum(isinstance(answer, AnswerOk) for answer in world.answers.values())
    flows = {one["id"] for one in of_kind(body, "f")}
    assert flows >= {one["args"]["request"] for one in good}
    history = history_of(world)
    done = [
        one
        for one in history.actions.values()
        if one.status is Status.OK and one.kind in ("infer", "profile")
    ]
    shown = of_kind(body, "X", cat="infer") + of_kind(body, "X", cat="profile")
    assert {one.id for one in done} <= {one["args"]["action"] for one in shown}
    waiting = of_kind(body, "C", name="waiting", pid=CLUSTER)
    assert waiting[-1]["args"]["requests"] == 0


def test_a_trace_says_what_it_leaves_out() -> None:
    world = one_device()
    for _ in range(300):
        world.request(1, slo_ms=0)
    world.settle()
    body, drawn = traced(history_of(world))
    assert (drawn.requests, drawn.left_out) == (200, 100)
    assert len(of_kind(body, "X", cat="request")) == 200
    history = History()
    for place, (event, commands) in enumerate(world.trace):
        if place == 250:
            history.skip()
        elif not 250 < place < 300:
            history.apply(Step([event], commands))
    body, _ = traced(history)
    (note,) = of_kind(body, "i", s="g")
    assert note["name"] == f"{history.skipped_ns / 1e9:.3f} s were left out"
