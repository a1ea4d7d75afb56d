"""Behaviour of the CPU device alone: two holdings, ONNX Runtime's workspace, laid-out files kept mapped."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from clockwork.config import device as bounds
from clockwork.device import _ort
from clockwork.device.cpu import CpuArena, fingerprint, slot_bytes
from clockwork.device.machine import ArenaPlace
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.checksums import seal, unseal
from clockwork.formats.prepared import PACKED_FILE, PREPARED_FILE, WEIGHTS_FILE, PreparedModel
from clockwork.scheduler._core import PageAllocator
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire.messages import Status
from tests.device.rig import (
    PAGE_BYTES,
    Case,
    CpuRig,
    Driver,
    affine,
    array_of,
    case,
    expected_affine,
    repeated,
)
from tests.patience import PATIENCE_NS, PATIENCE_S, eventually

RIGS = [CpuRig]
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def starts_of(device: Any, directory: str, page: int = 0) -> list[int]:
    starts = []
    for pages in PreparedModel.read(directory).runs:
        starts.append(page)
        page += pages
    return starts


def resident_kib(field: str = "VmRSS") -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def convolution() -> Case:
    """A convolution and a wide product: weights of several runs, which the runtime likes to prepack."""
    random = np.random.default_rng(0)
    weights = {
        "k": random.standard_normal((32, 3, 5, 5)).astype(np.float32),
        "w": random.standard_normal((32, 4000)).astype(np.float32) / 10,
        "b": random.standard_normal(4000).astype(np.float32),
    }
    return case(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], pads=[2, 2, 2, 2]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["n", 3, 16, 16])},
        {"y": (TensorProto.FLOAT, ["n", 4000])},
        weights,
    )


def test_packed_and_bound_answer_alike_and_charge_the_same_pages(make: Callable[..., Driver]) -> None:
    driver = make()
    one = convolution()
    bound, packed = driver.rig.build(one), driver.rig.build(one, "packed")
    driver.device.open(1, bound)
    driver.device.open(2, packed)
    pages = sum(PreparedModel.read(bound).runs)
    for model, directory, first in ((1, bound, 0), (2, packed, pages)):
        done = driver.end(driver.load(model, 1, starts_of(driver.device, directory, first)))
        assert done.status == Status.OK, done.text
    assert driver.device.memory()["resident_bytes"] == 2 * pages * PAGE_BYTES
    assert driver.device.memory()["packed_bytes"] == pages * PAGE_BYTES
    x = np.random.default_rng(1).standard_normal((5, 3, 16, 16)).astype(np.float32)
    done = driver.wait(driver.infer(1, 1, [x[:2]], [x[2:]]), driver.infer(2, 1, [x[:2]], [x[2:]]))
    for ours, theirs in zip(done[0].parts, done[1].parts, strict=True):
        np.testing.assert_allclose(array_of(ours[0]), array_of(theirs[0]), rtol=1e-4, atol=1e-4)
    assert driver.end(driver.unload(2, 1)).status == Status.OK
    assert driver.device.memory()["packed_bytes"] == 0


def test_a_packed_models_pages_give_up_their_memory_until_a_bound_one_needs_it(
    make: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SPARE_PAGES_NS", 1_000_000)
    driver = make(pages=512)  # an arena of 32 MiB
    weights = {"w": np.zeros(4_000_000, np.float32)}  # weights of 16 MB
    one = case(
        [helper.make_node("Add", ["x", "w"], ["t"]), helper.make_node("ReduceSum", ["t"], ["y"], keepdims=0)],
        {"x": (TensorProto.FLOAT, [1])}, {"y": (TensorProto.FLOAT, [])}, weights, batches=False,
    )  # fmt: skip
    directory = driver.rig.build(one, "packed")
    driver.device.open(1, directory)
    bound = driver.rig.build(one)
    driver.device.open(2, bound)  # from now on memory exists in all of the arena
    arena_kib = resident_kib("RssAnon")
    assert driver.end(driver.load(1, 1, starts_of(driver.device, directory))).status == Status.OK
    eventually(lambda: resident_kib("RssAnon") < arena_kib - 14_000, "the pages give up their memory")
    assert driver.end(driver.unload(1, 1)).status == Status.OK
    # No thread touches all pages between an UNLOAD and the next LOAD, not even for a packed model: that would
    # take longer than the UNLOAD.
    assert resident_kib("RssAnon") < arena_kib - 14_000
    assert driver.end(driver.load(1, 2, starts_of(driver.device, directory))).status == Status.OK
    assert driver.end(driver.unload(1, 2)).status == Status.OK
    # A bound model finds memory there like any other model.
    # includes the memory that the allocator keeps after making both holdings
    before_kib = resident_kib("RssAnon")
    assert driver.end(driver.load(2, 3, starts_of(driver.device, bound))).status == Status.OK
    assert 14_000 < resident_kib("RssAnon") - before_kib < 18_000
    done = driver.end(driver.infer(2, 3, [np.ones(1, np.float32)]))
    assert array_of(done.parts[0][0]) == 4_000_000


def test_a_bound_model_soon_after_a_packed_one_finds_memory_in_place(make: Callable[..., Driver]) -> None:
    driver = make(pages=512)
    weights = {"w": np.ones(4_000_000, np.float32)}
    one = case(
        [helper.make_node("Add", ["x", "w"], ["t"]), helper.make_node("ReduceSum", ["t"], ["y"], keepdims=0)],
        {"x": (TensorProto.FLOAT, [1])}, {"y": (TensorProto.FLOAT, [])}, weights, batches=False,
    )  # fmt: skip
    directories = [driver.rig.build(one, "packed"), driver.rig.build(one)]
    for model_id, directory in enumerate(directories, 1):
        driver.device.open(model_id, directory)
    held = driver.device.memory()["touched_bytes"]
    for load_id in range(1, 5):
        model_id = 1 + load_id % 2
        starts = starts_of(driver.device, directories[model_id - 1])
        assert driver.end(driver.load(model_id, load_id, starts)).status == Status.OK
        done = driver.end(driver.infer(model_id, load_id, [np.zeros(1, np.float32)]))
        assert array_of(done.parts[0][0]) == 4_000_000
        assert driver.device.memory()["touched_bytes"] == held
        assert driver.end(driver.unload(model_id, load_id)).status == Status.OK


ARENA_PAGES = 1024
"""An arena of 64 MiB, of which the models below take a part."""


def kib(*pages: int) -> int:
    return sum(pages) * PAGE_BYTES >> 10


def test_an_arena_holds_memory_for_the_models_that_are_known(make: Callable[..., Driver]) -> None:
    before_kib = resident_kib("RssAnon")
    driver = make(pages=ARENA_PAGES)
    memory = driver.device.memory()
    assert (memory["arena_bytes"], memory["touched_bytes"]) == (ARENA_PAGES * PAGE_BYTES, 0)
    assert resident_kib("RssAnon") - before_kib < kib(ARENA_PAGES) / 2
    directory = driver.rig.build(convolution())
    pages = sum(PreparedModel.read(directory).runs)
    known = 0
    for model in (1, 2, 3):
        driver.device.open(model, directory)
        known += pages * PAGE_BYTES
        # memory comes in huge pages
        assert known <= driver.device.memory()["touched_bytes"] < known + (2 << 20)
    page = 0
    for model in (1, 2, 3):
        done = driver.end(driver.load(model, 1, starts_of(driver.device, directory, page)))
        assert done.status == Status.OK, done.text
        page += pages
    memory = driver.device.memory()
    assert (memory["late_pages"], memory["touched_bytes"] < known + (2 << 20)) == (0, True)


@pytest.mark.parametrize("seed", range(3))
def test_no_load_finds_a_page_without_memory(make: Callable[..., Driver], seed: int) -> None:
    """Models of many sizes are loaded and unloaded at the pages that the controller chooses, with more and
    more gaps."""
    random = np.random.default_rng(seed)
    driver = make(pages=ARENA_PAGES)
    allocator = PageAllocator(ARENA_PAGES)
    runs: dict[int, tuple[int, ...]] = {}
    places: dict[
        int, tuple[int, tuple[int, ...]]
    ] = {}  # for each resident model, its load and the first pages of its runs
    for model in range(1, 9):
        directory = driver.rig.build(affine(model, int(random.integers(40, 500))))
        runs[model] = tuple(PreparedModel.read(directory).runs)
        driver.device.open(model, directory)
    for number in range(1, 120):
        model = int(random.integers(1, 9))
        if model in places:
            load_id, starts = places.pop(model)
            assert driver.end(driver.unload(model, load_id)).status == Status.OK
            allocator.free(starts, runs[model])
            held = [
                page + count for one, (_, starts) in places.items() for page, count in zip(starts, runs[one])
            ]
            away = sum(sum(counts) for one, counts in runs.items() if one not in places)
            wait_for_memory(driver, (max(held, default=0) + away) * PAGE_BYTES)
        else:
            starts = allocator.allocate(runs[model])
            assert starts is not None
            done = driver.end(driver.load(model, number, list(starts)))
            assert done.status == Status.OK, done.text
            places[model] = number, starts
            assert driver.device.memory()["late_pages"] == 0, number
    assert driver.device.memory()["touched_bytes"] < ARENA_PAGES * PAGE_BYTES / 2


def test_packed_models_alone_need_no_memory_of_the_arena(make: Callable[..., Driver]) -> None:
    driver = make(pages=ARENA_PAGES)
    packed, bound = driver.rig.build(convolution(), "packed"), driver.rig.build(convolution())
    pages = sum(PreparedModel.read(packed).runs)
    driver.device.open(1, packed)
    assert driver.end(driver.load(1, 1, starts_of(driver.device, packed))).status == Status.OK
    assert driver.device.memory()["touched_bytes"] == 0
    driver.device.open(2, bound)
    done = driver.end(driver.load(2, 1, starts_of(driver.device, bound, pages)))
    assert (done.status, driver.device.memory()["late_pages"]) == (Status.OK, 0)


def wait_for_memory(driver: Driver, size: int) -> None:
    """Return once so many bytes of the arena have memory.

    The thread that gives memory to the arena may get no processor for long.
    """
    deadline_ns = now_ns() + PATIENCE_NS
    while driver.device.memory()["touched_bytes"] < size:
        assert now_ns() < deadline_ns, "no memory came to the pages"
        time.sleep(0.001)


def test_a_load_to_where_there_is_no_memory_yet_brings_it(make: Callable[..., Driver]) -> None:
    driver = make(pages=ARENA_PAGES)
    one = affine()
    driver.device.open(1, driver.rig.build(one))
    assert driver.end(driver.load(1, 1, [ARENA_PAGES - 1])).status == Status.OK
    assert driver.device.memory()["late_pages"] == 1
    done = driver.end(driver.infer(1, 1, [X]))
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-5)


def test_a_packed_file_that_is_damaged_fails_at_load_and_keeps_nothing(make: Callable[..., Driver]) -> None:
    driver = make()
    directory = driver.rig.build(affine(), "packed")
    driver.device.open(1, directory)
    path = Path(directory, PACKED_FILE)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    done = driver.end(driver.load(1, 1, [0]))
    assert done.status == Status.DEVICE_ERROR
    assert done.text
    assert driver.device.memory()["resident_bytes"] == 0
    assert driver.end(driver.infer(1, 1, [X])).status == Status.NOT_RESIDENT
    path.write_bytes(whole)
    assert driver.end(driver.load(1, 2, [0])).status == Status.OK
    assert driver.end(driver.infer(1, 2, [X])).status == Status.OK


def test_memory_is_flat_over_inferences_and_loads(make: Callable[..., Driver]) -> None:
    driver = make()
    one = convolution()
    bound, packed = driver.rig.build(one), driver.rig.build(one, "packed")
    null = driver.prepare(
        case([helper.make_node("Identity", ["x"], ["y"])], {"x": (1, ["n"])}, {"y": (1, ["n"])})
    )
    driver.end(driver.load(null, 1, []))
    driver.device.open(8, bound)
    driver.device.open(9, packed)
    starts = starts_of(driver.device, bound)
    x = np.zeros((4, 3, 16, 16), np.float32)
    tiny = np.zeros(1, np.float32)

    def work(rounds: int) -> None:
        for load_id in range(rounds):
            for model in (8, 9):
                driver.end(driver.load(model, load_id, starts))
                done = driver.end(driver.infer(model, load_id, [x[: 1 + load_id % 3]], [x[:1]]))
                assert done.status == Status.OK, done.text
                driver.end(driver.unload(model, load_id))
            for _ in range(40):
                driver.end(driver.infer(null, 1, [tiny]))

    work(30)
    before = resident_kib()
    reserved = driver.device.memory()["workspace_bytes"]
    work(250)  # 500 loads and unloads, 10,500 inferences
    assert resident_kib() - before < 2_048
    assert driver.device.memory()["workspace_bytes"] == reserved


def test_the_first_inference_after_a_load_takes_no_new_memory(make: Callable[..., Driver]) -> None:
    driver = make()
    directory = driver.rig.build(convolution())
    driver.device.open(1, directory)
    starts = starts_of(driver.device, directory)
    x = np.zeros((4, 3, 16, 16), np.float32)
    driver.end(driver.load(1, 1, starts))
    driver.end(driver.infer(1, 1, [x]))
    driver.end(driver.unload(1, 1))
    reserved = driver.device.memory()["workspace_bytes"]
    for load_id in range(2, 8):
        driver.end(driver.load(1, load_id, starts))
        driver.end(driver.infer(1, load_id, [x]))
        assert driver.device.memory()["workspace_bytes"] == reserved
        driver.end(driver.unload(1, load_id))


def test_lock_store_keeps_the_weights_in_this_process(make: Callable[..., Driver]) -> None:
    driver = make(lock_store=True)
    one = affine()
    bound, packed = driver.rig.build(one), driver.rig.build(one, "packed")
    driver.device.open(1, bound)
    os.truncate(Path(bound, WEIGHTS_FILE), 0)  # a copy from the mapped file would fail from now on
    assert driver.end(driver.load(1, 1, [0])).status == Status.OK
    done = driver.end(driver.infer(1, 1, [X]))
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-5, atol=1e-5)
    driver.device.open(2, packed)
    assert driver.end(driver.load(2, 1, [1])).status == Status.OK
    memory = driver.device.memory()
    assert 0 <= memory["locked_bytes"] <= memory["store_bytes"]


def edit(directory: str, **changes: Any) -> None:
    path = Path(directory, PREPARED_FILE)
    path.write_bytes(seal({**unseal(path.read_bytes())[0], **changes}))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fingerprint": "0" * 12}, "prepared for 000000000000"),
        ({"page_bytes": PAGE_BYTES * 2}, "pages of"),
        ({"holding": "loose"}, "holding 'loose'"),
        ({"runs": [0]}, "no pages"),
        ({"runs": []}, "in a run of 0"),
        ({"runs": [2]}, "runs"),
        ({"program": "f" * 64}, "No such file"),
        ({"weights": []}, "takes 3 inputs"),
        ({"outputs": []}, "gives 1 outputs"),
        ({"format_version": 0}, "format"),
    ],
)
def test_a_directory_that_is_not_for_this_device(driver: Driver, changes: dict[str, Any], what: str) -> None:
    directory = driver.rig.build(affine())
    edit(directory, **changes)
    with pytest.raises(InvalidModel, match=what):
        driver.device.open(1, directory)
    assert driver.device.memory()["models"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"offset": PAGE_BYTES},
        {"offset": -64},
        {"run": 1},
        {"run": -1},
        {"bytes": 63},
        {"shape": [-4, -4]},
        {"shape": [2**40, 2**40]},
        {"dtype": 8},
        {"dtype": 99},
    ],
)
def test_a_weight_outside_its_run_is_never_mapped(driver: Driver, change: dict[str, Any]) -> None:
    directory = driver.rig.build(affine())
    weights = [dataclasses.asdict(one) for one in PreparedModel.read(directory).weights]
    edit(directory, weights=[{**weights[0], **change}, weights[1]])
    with pytest.raises(InvalidModel, match="weight"):
        driver.device.open(1, directory)


def test_an_output_that_is_not_a_tensor_is_refused_at_preparation(driver: Driver) -> None:
    one = case([helper.make_node("SplitToSequence", ["x"], ["y"])], {"x": (1, ["n"])}, {"y": (1, ["n"])})
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
    one.model.graph.output[0].CopyFrom(helper.make_value_info("y", sequence))
    with pytest.raises(InvalidModel, match="output 'y' is not a tensor"):
        driver.prepare(one)


def test_cpu_time_leaves_out_what_the_thread_did_not_get(make: Callable[..., Driver]) -> None:
    driver = make(cpu_time=True)
    model = driver.prepare(repeated())
    driver.end(driver.load(model, 1, [0]))
    done = driver.end(driver.infer(model, 1, [np.array(50, np.int64)]))
    begin_ns, end_ns, duration_ns = done.execute
    assert 0 < duration_ns <= end_ns - begin_ns


def test_threads_compute_the_same(make: Callable[..., Driver]) -> None:
    one = convolution()
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    answers = []
    for threads in (1, 2):
        driver = make(threads=threads)
        directory = driver.rig.build(one)
        driver.device.open(1, directory)
        driver.end(driver.load(1, 1, starts_of(driver.device, directory)))
        answers.append(array_of(driver.end(driver.infer(1, 1, [x])).parts[0][0]))
        driver.device.close()
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-4)
    assert fingerprint(1) != fingerprint(2)


@pytest.mark.parametrize(
    "options",
    [{"page_bytes": 1000}, {"page_bytes": 0}, {"arena_bytes": 100}, {"threads": 0}, {"run_ahead": 0},
     {"threads": 2, "cpu_time": True}, {"place": ArenaPlace(0)}, {"place": ArenaPlace(257)},
     {"place": ArenaPlace(2), "threads": 2}, {"place": ArenaPlace(2, pins=(0,))}],
)  # fmt: skip
def test_settings_that_make_no_device(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CpuArena(**{"arena_bytes": 1 << 20, "page_bytes": PAGE_BYTES, **options})


def test_an_arena_that_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(MemoryError, match="arena of"):
        CpuArena(1 << 60, PAGE_BYTES)


def test_a_runtime_that_is_missing_or_something_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes.util

    other = ctypes.util.find_library("z") or "libm.so.6"
    with pytest.raises(ConfigError, match="no OrtGetApiBase"):
        _ort.Runtime(other)
    with pytest.raises(ConfigError, match="cannot load"):
        _ort.Runtime(str(tmp_path / "libonnxruntime.so.1"))


def test_onnxruntime_is_not_imported() -> None:
    code = "import sys, clockwork.device.cpu as c; c.fingerprint(1); sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_interpreter_ends_although_a_device_was_not_closed(tmp_path: Path) -> None:
    rig = CpuRig(tmp_path)
    device = rig.make()
    directory = rig.build(affine())
    device.close()
    code = f"""
from clockwork.device.cpu import CpuArena
from clockwork.wire.messages import NEVER_NS, Load
(device,) = CpuArena({32 * PAGE_BYTES}, {PAGE_BYTES}).devices
device.open(1, {directory!r})
device.start(Load(1, 0, 1, 1, [0], 2**61, NEVER_NS, 0))
print("made", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "made\n", "")


def test_close_cuts_a_long_run_short(driver: Driver) -> None:
    model = driver.prepare(repeated())
    driver.end(driver.load(model, 1, [0]))
    driver.infer(model, 1, [np.array(10**9, np.int64)])  # this execution would take hours
    started_ns = now_ns()
    driver.device.close()
    assert now_ns() - started_ns < PATIENCE_NS


def test_wait_keeps_what_it_was_not_asked_for(driver: Driver) -> None:
    model = driver.prepare(affine())
    load = driver.load(model, 1, [0])
    infer = driver.infer(model, 99, [X])
    assert driver.wait(infer)[0].status == Status.NOT_RESIDENT
    assert driver.wait(load)[0].status == Status.OK
    held = driver.load(model, 2, [1], earliest_ns=now_ns() + 3600 * SECOND)
    with pytest.raises(TimeoutError, match=str(held)):
        driver.device.wait([held], 0.01)
    driver.device.revoke(held)
    assert [one.action_id for one in driver.device.poll()] == [held]


def test_slots_are_sized_for_the_largest_batch_that_was_profiled(driver: Driver) -> None:
    prepared = PreparedModel.read(driver.rig.build(affine()))
    assert slot_bytes(prepared) == 0
    prepared.profile = [ProfilePoint(((4,),), 1, 1), ProfilePoint(((4,),), 5, 1), ProfilePoint(((4,),), 2, 1)]
    assert slot_bytes(prepared) == 128  # 5 rows of 16 bytes, in units of 64
    prepared.example = [[9, 4]]
    assert slot_bytes(prepared) == 192


def test_an_action_starts_soon_after_its_window_opens(driver: Driver) -> None:
    """The lateness depends on the machine, but a correct lane starts some actions within 2 ms."""
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    soon, limit_ns = 0, now_ns() + PATIENCE_NS
    while soon < 5:
        assert now_ns() < limit_ns, "all actions start late"
        earliest_ns = now_ns() + 2 * MS
        late_ns = driver.end(driver.infer(model, 1, [X], earliest_ns=earliest_ns)).copy_in[0] - earliest_ns
        assert late_ns >= 0
        soon += late_ns < 2 * MS
