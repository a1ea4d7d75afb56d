"""Executors of one arena: they execute at the same time, and share models, pages and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.attacks.operators import operator_model
from clockwork.config.device import execution_workspace_bytes
from clockwork.device import cpu
from clockwork.device.cpu import CpuArena
from clockwork.device.machine import ArenaPlace
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.messages import Status
from tests.device import wild
from tests.device.rig import (
    PAGE_BYTES,
    Case,
    CpuRig,
    Driver,
    affine,
    array_of,
    case,
    expected_affine,
)
from tests.device.test_cpu import convolution, starts_of
from tests.patience import PATIENCE_NS, PATIENCE_S, eventually

X = np.arange(8, dtype=np.float32).reshape(2, 4)
ENDLESS = 2**62


def number(value: int) -> np.ndarray:
    return np.array([value], np.int64)


class Arena:
    """An arena, and a driver for each of its executors; the first one loads."""

    def __init__(
        self,
        store: Path,
        pages: int = 64,
        executors: int = 2,
        place: ArenaPlace | None = None,
        **options: Any,
    ) -> None:
        self.rig = CpuRig(store)
        self.arena = CpuArena(pages * PAGE_BYTES, PAGE_BYTES, place=place or ArenaPlace(executors), **options)
        self.rig.fingerprint = self.arena.info.fingerprint
        self.drivers = [Driver(device, self.rig) for device in self.arena.devices]
        for index, driver in enumerate(self.drivers):
            driver.last_id = index * 1_000_000  # ids of actions are unique in a worker
        self.first, self.second = self.drivers[:2]

    def serve(self, one: Case, load_id: int = 1, page: int = 0, holding: str = "bound") -> int:
        """Make a model known, and load it. Returns its id."""
        model = self.first.prepare(one, holding)
        directory = sorted((self.rig.store / "prepared").iterdir())[-1]
        done = self.first.end(self.first.load(model, load_id, starts_of(None, str(directory), page)))
        assert done.status == Status.OK, done.text
        return model

    def run_endless(self, driver: Driver, model: int, load_id: int = 1) -> int:
        """Begin an execution that ends when it is ended, and wait until it runs."""
        action_id = driver.infer(model, load_id, [number(ENDLESS)])
        eventually(lambda: driver.device.running() == action_id, "it runs")
        return action_id

    def end_endless(self, driver: Driver, action_id: int) -> None:
        limit_ns = now_ns() + PATIENCE_NS
        while driver.device.running() == action_id and now_ns() < limit_ns:
            driver.device.end_run(action_id)
        assert driver.end(action_id).status == Status.OVERRUN


@pytest.fixture
def make_arena(tmp_path: Path) -> Iterator[Any]:
    made: list[Arena] = []

    def one(**options: Any) -> Arena:
        made.append(Arena(tmp_path, **options))
        return made[-1]

    yield one
    for arena in made:
        for device in arena.arena.devices:
            device.close()


@pytest.fixture
def arena(make_arena: Any) -> Arena:
    return make_arena()  # type: ignore[no-any-return]


def test_two_executions_of_one_model_run_at_once_and_an_overrun_ends_one(arena: Arena) -> None:
    model = arena.serve(wild.spin())
    for endless, other in ((arena.first, arena.second), (arena.second, arena.first)):
        action_id = arena.run_endless(endless, model)
        for count in (5, 7, 11):
            done = other.end(other.infer(model, 1, [number(count)]))
            assert (done.status, done.text) == (Status.OK, "")
            assert array_of(done.parts[0][0]) == count
        assert other.device.running() == 0
        other.device.end_run(action_id)  # it is not that executor's
        assert endless.device.running() == action_id
        arena.end_endless(endless, action_id)
        done = endless.end(endless.infer(model, 1, [number(3)]))
        assert (done.status, array_of(done.parts[0][0])) == (Status.OK, 3)


def test_the_owner_of_an_arena_tells_its_slowdown(make_arena: Any) -> None:
    arena = make_arena(executors=2, slowdown=1.25).arena
    assert [device.info.slowdown_thousandths for device in arena.devices] == [1250, 1000]


def test_both_may_run_endlessly_and_each_is_ended_by_its_own_id(arena: Arena) -> None:
    model = arena.serve(wild.spin())
    first, second = arena.run_endless(arena.first, model), arena.run_endless(arena.second, model)
    arena.end_endless(arena.second, second)
    assert arena.first.device.running() == first
    again = arena.run_endless(arena.second, model)
    arena.end_endless(arena.first, first)
    assert arena.second.device.running() == again
    arena.end_endless(arena.second, again)


def test_an_unload_looks_at_the_executions_of_all(arena: Arena) -> None:
    model = arena.serve(wild.spin())
    running = arena.run_endless(arena.second, model)
    assert arena.first.end(arena.first.unload(model, 1)).status == Status.IN_USE
    arena.end_endless(arena.second, running)
    queued = arena.second.infer(model, 1, [number(1)], earliest_ns=now_ns() + 3600 * SECOND)
    assert arena.first.end(arena.first.unload(model, 1)).status == Status.IN_USE
    arena.first.device.revoke(queued)  # it is not that executor's
    assert arena.first.end(arena.first.unload(model, 1)).status == Status.IN_USE
    arena.second.device.revoke(queued)
    assert arena.second.end(queued).status == Status.ACTION_CANCELLED
    assert arena.first.end(arena.first.unload(model, 1)).status == Status.OK
    for driver in arena.drivers:
        assert driver.end(driver.infer(model, 1, [number(1)])).status == Status.NOT_RESIDENT


def test_only_the_owner_loads(arena: Arena) -> None:
    owner, other = arena.arena.devices
    assert (owner.owner, other.owner) == (None, owner)
    assert owner.group is other.group is arena.arena
    model = arena.serve(affine())
    for action_id in (
        arena.second.unload(model, 1),
        arena.second.load(model, 2, [1]),
        arena.second.fetch(model),
        arena.second.drop(model),
    ):
        done = arena.second.end(action_id)
        assert done.status == Status.DEVICE_ERROR
        assert (
            done.text
            == "this device executes from another device's arena: a LOAD or UNLOAD names that device"
        )
    for driver in arena.drivers:
        done = driver.end(driver.infer(model, 1, [X]))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(affine(), X), rtol=1e-5)
    assert owner.memory()["resident_bytes"] == PAGE_BYTES
    assert other.memory() == {}


def test_each_executor_takes_its_own_number_of_actions(arena: Arena) -> None:
    model = arena.serve(affine())
    earliest_ns = now_ns() + 3600 * SECOND
    ahead = arena.arena.info.run_ahead
    held = [
        (driver, driver.infer(model, 1, [X], [X], earliest_ns=earliest_ns))
        for driver in arena.drivers
        for _ in range(ahead)
    ]
    for driver in arena.drivers:
        assert driver.end(driver.infer(model, 1, [X], [X])).status == Status.DEVICE_ERROR
    for driver, action_id in held:
        driver.device.revoke(action_id)
        assert driver.end(action_id).status == Status.ACTION_CANCELLED


def test_completions_are_found_by_the_group(arena: Arena) -> None:
    group = arena.arena
    model = arena.serve(affine())
    assert group.ended() == []
    action_id = arena.second.infer(model, 1, [X])
    eventually(lambda: group.ended() == [arena.second.device], "the second has completions")
    assert arena.first.device.poll() == []
    assert [done.action_id for done in arena.second.device.poll()] == [action_id]
    assert group.ended() == []


def test_the_memory_of_an_execution_is_its_executors_own(
    make_arena: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = 8 << 20
    monkeypatch.setattr("clockwork.config.device.execution_workspace_bytes", lambda measured: budget)
    arena = make_arena()
    spin, big = arena.serve(wild.spin()), arena.serve(wild.constant_of_shape())
    running = arena.run_endless(arena.first, spin)
    for size, status in ((1 << 20, Status.OK), (1 << 24, Status.EXECUTION_FAILED), (1 << 18, Status.OK)):
        done = arena.second.end(arena.second.infer(big, 1, [number(size)]))
        assert done.status == status, done.text
    assert 1 << 20 <= arena.second.device.workspace_peak_bytes < (1 << 20) + (1 << 16)
    assert arena.first.device.workspace_peak_bytes < 1 << 20
    assert arena.first.device.running() == running
    arena.end_endless(arena.first, running)
    assert execution_workspace_bytes(1) > budget  # the bound that was replaced


def many_inputs(count: int) -> Case:
    """The sum of its inputs and of as many weights, and each input."""
    names = [f"x{index}" for index in range(count)]
    weights = {f"w{index}": np.full((1,), index, np.float32) for index in range(count)}
    return case(
        [
            helper.make_node("Sum", [*names, *weights], ["y"]),
            *(helper.make_node("Identity", [name], [f"same_{name}"]) for name in names),
        ],
        {name: (TensorProto.FLOAT, ["n"]) for name in names},
        {"y": (TensorProto.FLOAT, ["n"]), **{f"same_{name}": (TensorProto.FLOAT, ["n"]) for name in names}},
        weights,
    )


def test_a_model_with_more_arguments_is_opened_while_executions_run(arena: Arena) -> None:
    spin = arena.serve(wild.spin())
    running = arena.run_endless(arena.first, spin)
    for count in (3, 40, 11):
        model = arena.serve(many_inputs(count), load_id=count, page=count)
        inputs = [np.full((2,), 10 + index, np.float32) for index in range(count)]
        done = arena.second.end(arena.second.infer(model, count, inputs, inputs))
        assert done.status == Status.OK, done.text
        for part in done.parts:
            assert array_of(part[0]).tolist() == [sum(10 + 2 * index for index in range(count))] * 2
            assert [array_of(one).tolist() for one in part[1:]] == [one.tolist() for one in inputs]
    arena.end_endless(arena.first, running)
    done = arena.first.end(arena.first.infer(model, 11, inputs))
    assert array_of(done.parts[0][0]).tolist() == [sum(10 + 2 * index for index in range(11))] * 2


def test_an_input_that_is_refused_after_a_run_with_more_weights_releases_nothing_twice(arena: Arena) -> None:
    """Places of inputs may have been places of weights in the run before."""
    strings = arena.serve(
        case(
            [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("s", "t")],
            {"s": (8, ["n"]), "t": (8, ["n"])}, {"s_out": (8, ["n"]), "t_out": (8, ["n"])},
        )
    )  # fmt: skip
    weights = arena.serve(affine(), load_id=2)
    from clockwork.device.base import TensorView

    for driver in arena.drivers:
        for _ in range(3):
            assert driver.end(driver.infer(weights, 2, [X])).status == Status.OK
            wrong = TensorView(8, (2,), b"\x01\0\0\0a\xff\xff\xff\xff")
            done = driver.end(driver.infer(strings, 1, [wrong, wrong]))
            assert done.status == Status.INVALID_INPUT
            done = driver.end(driver.infer(weights, 2, [X]))
            np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(affine(), X), rtol=1e-5)


@pytest.mark.parametrize("holding", ["bound", "packed"])
def test_answers_are_those_of_one_executor_alone(arena: Arena, holding: str) -> None:
    model = arena.serve(convolution(), holding=holding)
    random = np.random.default_rng(0)
    batches = [random.standard_normal((rows, 3, 16, 16)).astype(np.float32) for rows in (1, 2, 3, 5)]
    alone = [array_of(arena.first.end(arena.first.infer(model, 1, [x])).parts[0][0]) for x in batches]
    for round_ in range(40):
        asked = []
        for place, driver in enumerate(arena.drivers):
            for index in (round_ + place, round_ + place + 1):
                x = batches[index % 4]
                # whole, and in parts that are joined in a slot
                parts = [[x]] if round_ % 2 else [[x[:1]], [x[1:]]]
                asked.append((driver, driver.infer(model, 1, *parts), alone[index % 4]))
        for driver, action_id, expected in asked:
            done = driver.end(action_id)
            assert done.status == Status.OK, done.text
            found = np.concatenate([array_of(part[0]) for part in done.parts])
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_strings_are_read_at_once(arena: Arena) -> None:
    model = arena.serve(Case(operator_model("BytePairs", tokens_max=1 << 20), batches=True))
    texts = [np.array([" ".join(["ab", "hi", "c"][: index + 1]) * 50] * 3, object) for index in range(3)]

    def ids(done: Any) -> list[Any]:
        assert done.status == Status.OK, done.text
        return [array_of(one).tolist() for part in done.parts for one in part]

    alone = [ids(arena.first.end(arena.first.infer(model, 1, [text]))) for text in texts]
    for round_ in range(60):
        asked = [
            (driver, driver.infer(model, 1, [texts[(round_ + place) % 3]]), alone[(round_ + place) % 3])
            for place, driver in enumerate(arena.drivers)
        ]
        for driver, action_id, expected in asked:
            assert ids(driver.end(action_id)) == expected


@pytest.mark.parametrize("executors", [2, 5])
def test_more_models_than_memory(make_arena: Any, executors: int) -> None:
    """Random loads, unloads and inferences on all executors: every answer is its model's own."""
    arena = make_arena(pages=8, executors=executors)
    random = np.random.default_rng(executors)
    cases = [affine(seed) for seed in range(24)]
    models = [arena.first.prepare(one) for one in cases]
    resident: dict[int, tuple[int, int]] = {}
    under_way: dict[int, tuple[int, int, np.ndarray]] = {}  # of each executor: action, case, input

    def finish(executor: int) -> None:
        action_id, index, x = under_way.pop(executor)
        done = arena.drivers[executor].end(action_id)
        assert done.status == Status.OK, done.text
        np.testing.assert_allclose(
            array_of(done.parts[0][0]), expected_affine(cases[index], x), rtol=1e-4, atol=1e-5
        )

    for load_id in range(1, 800):
        index = int(random.integers(len(cases)))
        if index not in resident:
            free = set(range(8)) - {page for _, page in resident.values()}
            if free:
                page = min(free)
            else:
                victim = list(resident)[int(random.integers(8))]
                old_id, page = resident[victim]
                done = arena.first.end(arena.first.unload(models[victim], old_id))
                used = [executor for executor, (_, used, _) in under_way.items() if used == victim]
                if done.status == Status.IN_USE:
                    assert used
                    for executor in used:
                        finish(executor)
                    done = arena.first.end(arena.first.unload(models[victim], old_id))
                assert done.status == Status.OK
                del resident[victim]
            assert arena.first.end(arena.first.load(models[index], load_id, [page])).status == Status.OK
            resident[index] = (load_id, page)
        executor = int(random.integers(executors))
        if executor in under_way:
            finish(executor)
        x = random.standard_normal((int(random.integers(1, 4)), 4)).astype(np.float32)
        driver = arena.drivers[executor]
        under_way[executor] = (driver.infer(models[index], resident[index][0], [x]), index, x)
    for executor in list(under_way):
        finish(executor)


def test_a_reset_of_any_device_resets_all(arena: Arena) -> None:
    spin = arena.serve(wild.spin())
    for which in arena.drivers:
        for driver in arena.drivers:
            arena.run_endless(driver, spin)
        which.device.reset()
        assert [driver.device.running() for driver in arena.drivers] == [0, 0]
        assert [driver.device.poll() for driver in arena.drivers] == [[], []]
        assert arena.first.device.memory()["resident_bytes"] == 0
        for driver in arena.drivers:
            assert driver.end(driver.infer(spin, 1, [number(1)])).status == Status.NOT_RESIDENT
        assert arena.first.end(arena.first.load(spin, 1, [])).status == Status.OK


def test_an_arena_closes_with_the_last_of_its_devices(arena: Arena) -> None:
    spin = arena.serve(wild.spin())
    arena.first.device.close()
    arena.first.device.close()
    assert arena.second.end(arena.second.infer(spin, 1, [number(3)])).status == Status.OK
    for driver in arena.drivers:
        arena.run_endless(driver, spin)
    began_ns = now_ns()
    arena.second.device.close()
    assert now_ns() - began_ns < PATIENCE_NS


def threads_of_lanes() -> dict[str, int]:
    return {
        (one / "comm").read_text().strip(): int(one.name)
        for one in Path("/proc/self/task").iterdir()
        if (one / "comm").read_text().startswith("cw-")
    }


def test_executors_run_on_the_processors_that_were_chosen(make_arena: Any) -> None:
    usable = sorted(os.sched_getaffinity(0))
    arena = make_arena(place=ArenaPlace(3, pins=(usable[0], usable[-1], usable[0])))
    arena.serve(affine())
    found = threads_of_lanes()
    lanes = ["cw-execute", "cw-execute-1", "cw-execute-2"]
    assert [os.sched_getaffinity(found[lane]) for lane in lanes] == [{usable[0]}, {usable[-1]}, {usable[0]}]
    assert os.sched_getaffinity(found["cw-load"]) == set(usable)


def test_the_threads_of_an_arena_run_on_the_processors_of_its_node(make_arena: Any) -> None:
    before = os.sched_getaffinity(0)
    near = max(before)
    arena = make_arena(place=ArenaPlace(2, 0, frozenset({near})))
    arena.serve(affine())
    own = {"cw-execute", "cw-execute-1", "cw-load", "cw-memory"}
    found = [thread.native_id for thread in threading.enumerate() if thread.name in own]
    assert [os.sched_getaffinity(thread or 0) for thread in found] == [{near}] * 4
    assert os.sched_getaffinity(0) == before


def test_a_model_is_opened_while_the_thread_prefers_the_memory_of_the_node(
    make_arena: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def near(node: int) -> Iterator[None]:
        yield
        taken.append((node, arena.arena.memory()["touched_bytes"]))

    monkeypatch.setattr(cpu, "near", near)
    arena = make_arena(place=ArenaPlace(2, 7))
    arena.serve(affine(width=40))
    ((node, touched),) = taken
    assert node == 7
    assert touched > 0


def test_a_slot_takes_what_the_inputs_take_and_no_executor_has_two(make_arena: Any) -> None:
    arena = make_arena(executors=8)
    small = arena.serve(affine())
    x = np.arange(4, dtype=np.float32).reshape(1, 4)

    def joined(rows: int) -> None:
        """Run a batch of two parts on every executor."""
        for driver in arena.drivers:
            done = driver.end(driver.infer(small, 1, [np.tile(x, (rows, 1))], [x]))
            assert done.status == Status.OK, done.text

    joined(1)
    assert arena.arena.memory()["io_bytes"] == 8 * 4096
    joined(1000)  # more than was profiled
    assert arena.arena.memory()["io_bytes"] == 8 * 4 * 4096  # 1001 rows of 16 bytes
    joined(1)
    assert arena.arena.memory()["io_bytes"] == 8 * 4 * 4096


CRASH = """
import ctypes, json, os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from clockwork.device import _crash
from clockwork.device.base import TensorView
from clockwork.device.cpu import CpuArena
from clockwork.device.machine import ArenaPlace
from clockwork.wire.messages import NEVER_NS, Infer, Load

directory, pages, page_bytes, lane = json.loads(sys.argv[1])
arena = CpuArena(pages * page_bytes, page_bytes, place=ArenaPlace(3))
arena.open(1, directory)
arena.devices[0].start(Load(1, 0, 1, 1, [], 0, NEVER_NS, 0))
arena.devices[0].wait([1], 60)
n = TensorView(7, (1,), np.array([2**62], np.int64).tobytes())
for number, device in enumerate(arena.devices):
    device.start(Infer(11 * (number + 1), number, 1, 1, 0, NEVER_NS, 0, []), [[n]])
while not all(device.running() for device in arena.devices):
    time.sleep(0.001)
time.sleep(0.05)
reading, writing = os.pipe2(os.O_NONBLOCK)
_crash.install(writing)
(thread,) = [int(one.name) for one in Path("/proc/self/task").iterdir() if (one / "comm").read_text().strip() == lane]
ctypes.CDLL(None).syscall(234 if os.uname().machine == "x86_64" else 131, os.getpid(), thread, int(signal.SIGSEGV))
while _crash.crashed() is None:
    time.sleep(0.001)
print(*_crash.crashed(), flush=True)
_crash.told()
threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("lane", "action_id"), [("cw-execute", 11), ("cw-execute-1", 22), ("cw-execute-2", 33)]
)
def test_a_crash_names_the_action_of_its_executor(tmp_path: Path, lane: str, action_id: int) -> None:
    rig = CpuRig(tmp_path)
    rig.make().close()
    given = [rig.build(wild.spin()), 32, PAGE_BYTES, lane]
    done = subprocess.run(
        [sys.executable, "-c", CRASH, json.dumps(given)],
        stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, f"{int(signal.SIGSEGV)} {action_id}\n")
