"""An execution stays within its limits of memory and time, and its memory is released."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.attacks.measure import forget_peak, peak_bytes
from bench.attacks.operators import many_scans, operator_model
from clockwork import config
from clockwork.config.device import (
    EXECUTION_WORKSPACE_BYTES,
    EXECUTION_WORKSPACE_FACTOR,
    execution_workspace_bytes,
    workspace_bytes_max,
)
from clockwork.device.base import TensorView
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.messages import Status
from tests.device import wild
from tests.device.rig import (
    Case,
    CpuRig,
    Driver,
    SecondExecutorRig,
    affine,
    array_of,
    expected_affine,
    lane_time_ns,
)
from tests.patience import PATIENCE_NS

RIGS = [CpuRig, SecondExecutorRig]
BUDGET = 64 << 20
WITHOUT_ASAN = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="ASan has a heap of its own"
)


def number(value: int) -> np.ndarray:
    return np.array([value], np.int64)


@pytest.fixture
def bounded(make: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A device on which an execution may take BUDGET bytes."""
    monkeypatch.setattr("clockwork.config.device.execution_workspace_bytes", lambda measured: BUDGET)
    return make()


def check_it_serves(driver: Driver) -> None:
    """Check that an ordinary model still gets right answers."""
    one = affine(3)
    model = driver.prepare(one)
    assert driver.end(driver.load(model, 1, [20])).status == Status.OK
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    done = driver.end(driver.infer(model, 1, [x]))
    assert done.status == Status.OK, done.text
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, x), rtol=1e-5)


@pytest.mark.parametrize("name", wild.MEMORY)
@pytest.mark.parametrize("n", [10**6 * 20, 10**12, 2**40, 2**62])
def test_memory_that_a_request_asks_for_is_bounded(name: str, n: int, bounded: Driver) -> None:
    if name in ("Tile", "Pad", "Loop", "Resize") and n == 2**62:
        n = 2**50
    model = bounded.prepare(wild.MEMORY[name])
    assert bounded.end(bounded.load(model, 1, [])).status == Status.OK
    before = bounded.device.memory()["workspace_bytes"]
    done = bounded.end(bounded.infer(model, 1, [number(n)]))
    assert done.status == Status.EXECUTION_FAILED
    assert done.text
    assert bounded.device.memory()["workspace_bytes"] <= before + BUDGET
    done = bounded.end(bounded.infer(model, 1, [number(3)]))
    assert done.status == Status.OK, done.text
    check_it_serves(bounded)


@WITHOUT_ASAN
@pytest.mark.parametrize("name", ["NonZero", "strings", "long strings"])
def test_memory_of_the_heap_is_bounded_as_well(name: str, bounded: Driver) -> None:
    """Memory that ONNX Runtime allocates outside of the workspace counts: 1.5 GB for long strings."""
    model = bounded.prepare(wild.non_zero() if name == "NonZero" else wild.repeated())
    assert bounded.end(bounded.load(model, 1, [])).status == Status.OK
    text = np.array(["x" * (1 << 20 if name == "long strings" else 100)], object)

    def inputs(n: int) -> list[np.ndarray]:
        return [number(n)] if name == "NonZero" else [text, number(n)]

    assert bounded.end(bounded.infer(model, 1, inputs(3))).status == Status.OK
    forget_peak(os.getpid())
    before = peak_bytes(os.getpid())
    done = bounded.end(
        bounded.infer(model, 1, inputs({"NonZero": 40 << 20, "strings": 1 << 20}.get(name, 1500)))
    )
    assert done.status == Status.EXECUTION_FAILED
    assert f"of at most {BUDGET}" in done.text
    assert peak_bytes(os.getpid()) - before < 2 * BUDGET
    done = bounded.end(bounded.infer(model, 1, inputs(30)))
    assert done.status == Status.OK, done.text
    check_it_serves(bounded)


def test_memory_is_taken_for_no_more_strings_than_there_are_bytes_of(make: Callable[..., Driver]) -> None:
    driver = make()
    model = driver.prepare(wild.repeated())
    driver.end(driver.load(model, 1, []))
    forget_peak(os.getpid())
    before = peak_bytes(os.getpid())
    done = driver.end(driver.infer(model, 1, [TensorView(8, (1 << 25,), bytes(400)), number(1)]))
    assert done.status == Status.INVALID_INPUT
    assert f"{1 << 25} strings, which take {4 << 25} bytes at least, got 400" in done.text
    assert peak_bytes(os.getpid()) - before < 2 * BUDGET


@WITHOUT_ASAN
@pytest.mark.parametrize(("each", "rounds"), [(1, 100), (300, 2)])
def test_memory_may_run_out_anywhere_in_an_execution(
    each: int, rounds: int, make: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is reached in a kernel, and where ONNX Runtime cannot bear an exception of operator new:
    between two rounds of a loop."""
    driver = make()
    became = set()
    for limit in range(1000, 120_000, 1009):
        monkeypatch.setattr(
            "clockwork.config.device.execution_workspace_bytes", lambda measured, most=limit: most
        )
        model = driver.prepare(wild.strings_of_rounds(each))
        driver.end(driver.load(model, 1, []))
        done = driver.end(driver.infer(model, 1, [number(rounds)]))
        assert done.status == Status.OK or f"of at most {limit}" in done.text
        became.add(done.status)
    assert became == {Status.OK, Status.EXECUTION_FAILED}


@WITHOUT_ASAN
def test_memory_that_libjpeg_takes_is_bounded_as_well(bounded: Driver) -> None:
    """The coefficients of a progressive image take twice the size of its pixels, which fit."""
    model = bounded.prepare(Case(operator_model("DecodeJpeg", channels=1)))
    bounded.end(bounded.load(model, 1, []))

    def decoded(data: bytes) -> Any:
        text = TensorView(8, (1,), len(data).to_bytes(4, "little") + data)
        return bounded.end(bounded.infer(model, 1, [text]))

    assert decoded(many_scans(3000, 3000, 3)).status == Status.OK
    done = decoded(many_scans(5792, 5792, 3))
    assert done.status == Status.EXECUTION_FAILED
    assert f"of at most {BUDGET}" in done.text
    assert decoded(many_scans(3000, 3000, 3)).status == Status.OK


@WITHOUT_ASAN
def test_memory_of_the_heap_counts_in_what_an_execution_took(make: Callable[..., Driver]) -> None:
    driver = make()
    model = driver.prepare(wild.repeated())
    driver.end(driver.load(model, 1, []))
    text = np.array(["x" * 10_000], object)
    for count in (1000, 100, 1000):
        assert driver.end(driver.infer(model, 1, [text, number(count)])).status == Status.OK
        assert 10_000 * count <= driver.device.workspace_peak_bytes < 10_200 * count + (1 << 16)


@WITHOUT_ASAN
def test_a_heap_that_cannot_be_counted_is_said_at_the_start(tmp_path: Path) -> None:
    """A preloaded library has an operator new of its own, as jemalloc has."""
    source, library = tmp_path / "heap.cpp", tmp_path / "heap.so"
    source.write_text(
        "#include <cstdlib>\n#include <new>\n"
        "void* operator new(std::size_t bytes) { return std::malloc(bytes); }\n"
        "void operator delete(void* pointer) noexcept { std::free(pointer); }\n"
        "void operator delete(void* pointer, std::size_t) noexcept { std::free(pointer); }\n"
    )
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    command = [sys.executable, "-c", "from clockwork.device._ort import runtime; runtime()"]
    for preload, says in (("", False), (str(library), True)):
        said = subprocess.run(
            command, env={**os.environ, "LD_PRELOAD": preload}, capture_output=True, text=True, check=True
        )
        assert (
            f"is not counted, so no bound holds for it: operator new is not libstdc++'s in this process (LD_PRELOAD={preload})"
            in said.stderr
        ) == says, said.stderr


def test_what_an_execution_asked_for_is_said(bounded: Driver) -> None:
    model = bounded.prepare(wild.constant_of_shape())
    bounded.end(bounded.load(model, 1, []))
    done = bounded.end(bounded.infer(model, 1, [number(10**12)]))
    assert f"{4 * 10**12} bytes" in done.text
    assert f"at most {BUDGET}" in done.text


def test_the_workspace_as_a_whole_has_a_bound(
    make: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clockwork.config.device.execution_workspace_bytes", lambda measured: 1 << 45)
    driver = make()
    model = driver.prepare(wild.constant_of_shape())
    driver.end(driver.load(model, 1, []))
    done = driver.end(driver.infer(model, 1, [number(workspace_bytes_max() // 4 + 1)]))
    assert done.status == Status.EXECUTION_FAILED
    check_it_serves(driver)


def test_memory_of_an_execution_that_failed_goes_back_to_the_system(bounded: Driver) -> None:
    model = bounded.prepare(wild.loop(1 << 20))
    bounded.end(bounded.load(model, 1, []))
    before = bounded.device.memory()["workspace_bytes"]
    assert bounded.end(bounded.infer(model, 1, [number(100)])).status == Status.EXECUTION_FAILED
    assert bounded.device.memory()["workspace_bytes"] <= before + (8 << 20)


def test_an_execution_may_take_what_its_profile_took_many_times_over() -> None:
    most = workspace_bytes_max()
    assert execution_workspace_bytes(0) == most  # prepared before the workspace was measured
    assert execution_workspace_bytes(1) == EXECUTION_WORKSPACE_BYTES
    taken = EXECUTION_WORKSPACE_BYTES // 4
    assert execution_workspace_bytes(taken) == min(EXECUTION_WORKSPACE_FACTOR * taken, most)
    assert execution_workspace_bytes(1 << 60) == most


def test_what_an_execution_took_is_measured(make: Callable[..., Driver]) -> None:
    driver = make()
    model = driver.prepare(wild.constant_of_shape())
    driver.end(driver.load(model, 1, []))
    for size in (1 << 20, 1 << 22, 1 << 18):
        assert driver.end(driver.infer(model, 1, [number(size)])).status == Status.OK
        assert 4 * size <= driver.device.workspace_peak_bytes < 4 * size + (1 << 16)


def test_an_output_that_no_answer_can_carry_fails_and_the_worker_keeps_its_connection(
    make: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "MESSAGE_BYTES_MAX", 1 << 20)
    driver = make()
    model = driver.prepare(wild.whole(1 << 16))
    driver.end(driver.load(model, 1, []))
    assert driver.end(driver.infer(model, 1, [number(16)])).status == Status.OK
    done = driver.end(driver.infer(model, 1, [number(17)]))
    assert done.status == Status.EXECUTION_FAILED
    assert f"at most {1 << 20}" in done.text


def end_when_running(device: Any, action_id: int) -> None:
    """Repeat the call until the execution has ended, as the worker's watch does."""
    limit_ns = now_ns() + PATIENCE_NS
    while device.running() != action_id and now_ns() < limit_ns:
        pass
    while device.running() == action_id and now_ns() < limit_ns:
        device.end_run(action_id)


def test_an_endless_loop_is_ended_and_the_next_execution_is_not(make: Callable[..., Driver]) -> None:
    driver = make()
    model = driver.prepare(wild.spin())
    driver.end(driver.load(model, 1, []))
    for _ in range(3):
        endless = driver.infer(model, 1, [number(2**62)])
        behind = driver.infer(model, 1, [number(5)])
        watcher = threading.Thread(target=end_when_running, args=(driver.device, endless))
        watcher.start()
        done, after = driver.wait(endless, behind)
        watcher.join()
        assert done.status == Status.OVERRUN
        assert "longer than it may" in done.text
        assert after.status == Status.OK, after.text
        assert array_of(after.parts[0][0]) == 5
    assert driver.device.running() == 0


def test_only_the_execution_that_is_named_is_ended(make: Callable[..., Driver]) -> None:
    driver = make()
    model = driver.prepare(wild.spin())
    driver.end(driver.load(model, 1, []))
    driver.device.end_run(4711)
    one = driver.infer(model, 1, [number(1000)])
    driver.device.end_run(one + 1)
    assert driver.end(one).status == Status.OK
    driver.device.end_run(one)
    assert driver.end(driver.infer(model, 1, [number(1000)])).status == Status.OK


def test_an_operator_of_clockworks_is_ended_in_the_middle(make: Callable[..., Driver]) -> None:
    """ONNX Runtime checks its flag between nodes only.

    Twelve such texts take more than half a minute of processor time.
    """
    driver = make()
    model = driver.prepare(Case(operator_model("BytePairs", tokens_max=1 << 20), batches=True))
    driver.end(driver.load(model, 1, []))
    driver.end(driver.infer(model, 1, [np.array(["hi"], object)]))  # the lane's thread has its name by now
    texts = np.array(["a" * (4 << 20)] * 12, object)
    spent_ns = lane_time_ns(driver.rig.lane)
    endless = driver.infer(model, 1, [texts])
    watcher = threading.Thread(target=end_when_running, args=(driver.device, endless))
    watcher.start()
    done = driver.end(endless)
    watcher.join()
    assert done.status == Status.OVERRUN
    assert lane_time_ns(driver.rig.lane) - spent_ns < 20 * SECOND
    few = driver.end(driver.infer(model, 1, [np.array(["hi"], object)]))
    assert few.status == Status.OK, few.text
    assert array_of(few.parts[0][0]).tolist() == [[301, 299, 302]]


def test_a_device_that_is_closed_ends_what_runs(make: Callable[..., Driver]) -> None:
    driver = make()
    model = driver.prepare(wild.spin())
    driver.end(driver.load(model, 1, []))
    endless = driver.infer(model, 1, [number(2**62)])
    while driver.device.running() != endless:
        pass
    began = now_ns()
    driver.device.close()
    assert now_ns() - began < PATIENCE_NS
