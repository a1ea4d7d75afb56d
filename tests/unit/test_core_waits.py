"""Models that wait for a worker whose executions have more threads, and what a launcher is told of models."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.config.controller import CORE_LOADS_MAX, THREADS_TOLD_NS, THREADS_WAIT_NS
from clockwork.controller.models.version import Waiter
from clockwork.wire.messages import Prepared, Status, Unregister
from tests.unit.registry import Registry, summary

MS = 1_000_000
WHY = (
    "its SLO of 20 ms is below its execution time of 40 ms; with 4 threads it takes 12 ms: "
    "serve it by workers with --threads 4"
)


def begin(registry: Registry, name: str = "m", slo_ms: int = 20, content: bytes = b"one") -> Waiter:
    """Register a model, up to its preparation by the workers."""
    waiter = registry.register(name, content, slo_ns=slo_ms * MS)
    registry.store()
    registry.send_chunk(waiter)
    while registry.jobs:
        registry.store()
    return waiter


def answer(registry: Registry, ms: float, by_threads: list[list[int]] | None = None) -> None:
    """Have the worker that was asked first answer with these times."""
    worker, prepare = registry.asked.pop(0)
    point = {"shape": [[2]], "batch": 1, "exec_ns": round(ms * MS)}
    fields = summary(prepare.digest) | {"profile": [point], "by_threads": by_threads or []}
    answer = Prepared(prepare.model_id, Status.OK, "", fields)
    registry.registrar.prepared(worker, answer, registry.now_ns)
    registry.carry_out()


def beat(registry: Registry, after_ns: int) -> None:
    registry.now_ns += after_ns
    registry.registrar.beat(registry.now_ns, 0)
    registry.carry_out()


@pytest.fixture
def waiting() -> tuple[Registry, Waiter]:
    """A model that one thread executes in 40 ms and four in 12, for an SLO of 20 ms."""
    registry = Registry(threads_max=6)
    registry.join(1)
    waiter = begin(registry)
    answer(registry, 40, [[2, 24 * MS], [4, 12 * MS]])
    return registry, waiter


def test_a_registration_waits_for_a_worker_of_enough_threads(waiting: tuple[Registry, Waiter]) -> None:
    registry, waiter = waiting
    assert registry.states("m") == {1: "preparing"}
    assert registry.answered(waiter) == []
    assert registry.stages[-1] == "waits for an execution of 4 threads"
    model = registry.table.by_id[1]
    assert model.text == "waits for a worker whose executions have 4 threads"
    assert registry.registrar.versions.cores.waiting == [model]
    registry.join(2, threads=4)
    assert [worker for worker, _ in registry.asked] == [2]
    answer(registry, 12)
    assert registry.answered(waiter) == ["m@1 is ready"]
    assert model.workers == {1: WHY, 2: "ready"}
    assert (model.text, registry.registrar.versions.cores.waiting) == ("", [])


def test_a_client_is_told_while_its_model_waits_and_then_that_nobody_came(
    waiting: tuple[Registry, Waiter],
) -> None:
    registry, waiter = waiting
    told = len(registry.stages)
    for count in (1, 2):
        beat(registry, THREADS_TOLD_NS)
        assert len(registry.stages) == told + count
    beat(registry, THREADS_WAIT_NS)
    registry.settle()
    assert registry.answered(waiter) == [f"m@1 cannot be served: {WHY}; none has joined within 60 s"]
    assert not registry.records
    beat(registry, THREADS_TOLD_NS)
    assert len(registry.stages) == told + 3, "nobody waits any more"


def test_the_time_in_which_the_worker_prepares_the_model_does_not_count(
    waiting: tuple[Registry, Waiter],
) -> None:
    registry, waiter = waiting
    registry.join(2, threads=4)
    beat(registry, 2 * THREADS_WAIT_NS)
    assert registry.answered(waiter) == []
    answer(registry, 12)
    assert registry.answered(waiter) == ["m@1 is ready"]


def test_a_model_that_is_too_slow_on_the_awaited_worker_fails_at_once(
    waiting: tuple[Registry, Waiter],
) -> None:
    registry, waiter = waiting
    registry.join(2, threads=4)
    answer(registry, 25)
    registry.settle()
    assert registry.answered(waiter) == [f"m@1 cannot be served: {WHY}"]


def test_a_model_that_waits_is_prepared_first_by_the_worker_that_it_waits_for(
    waiting: tuple[Registry, Waiter],
) -> None:
    registry, _ = waiting
    begin(registry, "busy", 500, b"two")
    answer(registry, 40, [[4, 12 * MS]])
    assert registry.states("busy") == {1: "ready"}
    registry.join(2, {2: 1_000}, threads=4)
    assert [prepare.model_id for _, prepare in registry.asked] == [1, 2]


def test_a_model_that_waits_can_be_removed(waiting: tuple[Registry, Waiter]) -> None:
    registry, waiter = waiting
    registry.order(Unregister(0, "m"))
    registry.settle()
    assert registry.answered(waiter) == ["m@1 was unregistered before it was ready"]
    assert registry.registrar.versions.cores.waiting == []


@pytest.mark.parametrize(
    ("threads_max", "by_threads"),
    [
        (0, [[4, 12 * MS]]),  # nobody starts workers
        (3, [[4, 12 * MS]]),  # the machine has too few cores
        (6, [[4, 21 * MS]]),  # no number of threads meets the SLO
        (6, []),
    ],
)
def test_a_model_waits_for_nothing_that_will_not_come(threads_max: int, by_threads: list[list[int]]) -> None:
    registry = Registry(threads_max)
    registry.join(1)
    waiter = begin(registry)
    answer(registry, 40, by_threads)
    registry.settle()
    (said,) = registry.answered(waiter)
    assert said.startswith("m@1 cannot be served: its SLO of 20 ms is below its execution time of 40 ms")
    assert "none has joined" not in said


def loads(registry: Registry, requests: dict[int, int]) -> list[dict[str, Any]]:
    models = registry.table.by_id.values()
    return registry.registrar.versions.cores.loads(models, lambda model_id: requests.get(model_id, 0))


def test_a_launcher_is_told_the_loads_of_models_of_equal_times_together(
    waiting: tuple[Registry, Waiter],
) -> None:
    registry, _ = waiting
    for index in range(3):
        begin(registry, f"loose-{index}", 500, b"%d" % index)
        answer(registry, 40, [[2, 24 * MS], [4, 12 * MS]])
    rows = loads(registry, {2: 5, 3: 6, 4: 7})
    times = [[1, 1, 40 * MS], [2, 1, 24 * MS], [4, 1, 12 * MS]]
    assert rows == [
        {"name": "m@1", "slo_ns": 20 * MS, "requests": 0, "threads_needed": 4, "exec_ns": times},
        {"name": "loose-0@1", "slo_ns": 500 * MS, "requests": 18, "threads_needed": 1, "exec_ns": times},
    ]
    cores = registry.registrar.versions.cores
    assert cores.threads_wanted(registry.table.by_id.values()) == 4
    registry.order(Unregister(0, "m"))
    registry.settle()
    assert cores.threads_wanted(registry.table.by_id.values()) == 1


def test_the_rows_of_loads_are_bounded() -> None:
    registry = Registry()
    registry.join(1)
    for index in range(CORE_LOADS_MAX + 5):
        begin(registry, f"m-{index}", 1_000 + index, b"%d" % index)
        answer(registry, 40)
    rows = loads(registry, {index: index for index in range(200)})
    assert len(rows) == CORE_LOADS_MAX
    assert rows[0]["requests"] == CORE_LOADS_MAX + 5


def test_times_of_batches_gain_by_threads_as_those_of_a_row() -> None:
    registry = Registry()
    registry.join(2, threads=4)
    registry.join(1)
    begin(registry, slo_ms=500)
    answer(registry, 12)  # of the worker with four threads, which would be taken for one
    worker, prepare = registry.asked.pop(0)
    points = [{"shape": [[2]], "batch": batch, "exec_ns": ns * MS} for batch, ns in ((1, 40), (4, 100))]
    fields = summary(prepare.digest) | {"profile": points, "by_threads": [[2, 24 * MS]]}
    registry.registrar.prepared(worker, Prepared(prepare.model_id, Status.OK, "", fields), 0)
    assert registry.table.by_id[1].times == {1: {1: 40 * MS, 4: 100 * MS}, 2: {1: 24 * MS, 4: 60 * MS}}
