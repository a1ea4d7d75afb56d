"""Two runs compared: the first decision that differs is named, and its consequences are counted."""

from __future__ import annotations

from clockwork.observe.compare import compare
from clockwork.scheduler.types import AnswerOk, SendInfer
from tests.sim.harness import MS, SECOND, World, spec
from tests.sim.test_history import history_of


def run(policy: str, slo_ms: float = 40, count: int = 60, exec_ms: float = 10) -> World:
    world = World(policy=policy)
    world.now = SECOND
    world.join(1, [("cpu", 8, 1.0)] * 2)
    world.ready(spec(1, exec_ms=exec_ms, batch_max=4, row_ms=2, load_ms=10), spec(2, exec_ms=5, load_ms=5))
    for number in range(count):
        world.at(world.now + number * 4 * MS, lambda n=number: world.request(1 + n % 2, slo_ms))
    world.settle()
    return world


def test_a_run_is_the_same_as_itself() -> None:
    found = compare(history_of(run("edf")), history_of(run("edf")))
    assert found.part is None
    assert found.workload_parts_at == 0
    assert (found.only_first, found.only_second) == (0, 0)
    assert found.total[0] == found.total[1]
    assert found.models["m1@1"][0] == found.models["m1@1"][1]


def test_two_policies_part_at_a_decision() -> None:
    worlds = run("edf", slo_ms=24), run("adaptive", slo_ms=24)
    first, second = (history_of(world) for world in worlds)
    found = compare(first, second)
    assert found.workload_parts_at == 0
    part = found.part
    assert part is not None
    assert part.first is not None
    assert part.second is not None
    assert not part.first.is_same(part.second)
    for world, summary in zip(worlds, found.total, strict=True):
        tally = world.tally()
        assert (summary.answered, summary.refused, summary.missed) == (
            tally.get("ok", 0), tally.get("refused", 0), tally.get("deadline_missed", 0),
        )  # fmt: skip
        assert summary.arrived == 60
        assert sum(summary.refusals.values()) == summary.refused
    ok = [{one for one, answer in world.answers.items() if isinstance(answer, AnswerOk)} for world in worlds]
    assert (found.only_first, found.only_second) == (len(ok[0] - ok[1]), len(ok[1] - ok[0]))
    for place in range(2):
        assert sum(pair[place].answered for pair in found.models.values()) == found.total[place].answered
        assert sum(pair[place].executions for pair in found.devices.values()) == found.total[place].executions
        assert sum(pair[place].loads for pair in found.devices.values()) == found.total[place].loads
        infers = [one for _, orders in worlds[place].trace for one in orders if isinstance(one, SendInfer)]
        assert found.total[place].executions == len(infers)
        assert found.total[place].executed == sum(len(one.requests) for one in infers)


def test_where_they_part_is_said() -> None:
    whole = run("edf")
    history = history_of(whole)
    whole.trace = whole.trace[:-30]
    found = compare(history, history_of(whole))
    part = found.part
    assert part is not None
    assert part.second is None
    assert " on 1/" in str(part.first) or " of m" in str(part.first)
    changed = run("edf", exec_ms=10)
    refused = run("edf", slo_ms=8)
    part = compare(history_of(changed), history_of(refused)).part
    assert part is not None
    assert (part.number, str(part.second)) == (0, "0.000000 s: request 1 of m1@1 refused (infeasible)")
    assert str(part.first).startswith("0.000000 s: load m1@1 on 1/0")


def test_other_requests_are_told_apart_from_other_decisions() -> None:
    found = compare(history_of(run("edf", count=60)), history_of(run("edf", count=50)))
    assert found.workload_parts_at == 51
    found = compare(history_of(run("edf", slo_ms=40)), history_of(run("edf", slo_ms=41)))
    assert found.workload_parts_at == 1


def test_latency_and_time_are_of_each_run() -> None:
    world = run("edf", slo_ms=200)
    found = compare(history_of(world), history_of(world))
    latencies = sorted(world.latency_ns(one) for one in world.answers if world.ok(one))
    assert found.total[0].p50_ns == latencies[(len(latencies) - 1) // 2]
    assert found.total[0].p99_ns == latencies[(len(latencies) - 1) * 99 // 100]
    history = history_of(world)
    for name, (summary, _) in found.devices.items():
        (device,) = [one for one in history.lanes() if one.label == name]
        assert abs(summary.executing * found.span_ns[0] - device.executing_ns) < 10
