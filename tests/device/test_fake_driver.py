"""The fake driver is as strict as a card's, so that what a card would refuse or wait for fails a test here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.device._cudriver import Table
from clockwork.device.cuda_memory import TableMemory, open_driver
from clockwork.system.clock import MS, now_ns
from clockwork.wire.messages import Status
from tests.device.cuda_rig import CudaRig, compiled_kernels
from tests.device.fake import DRIVER, FakeDriver, environment
from tests.device.rig import Driver, affine
from tests.process.cluster import eventually

RIGS = [CudaRig]

X = np.ones((3, 4), np.float32)
KERNEL_NS = 20 * MS
STALL_NS = 30 * MS


@pytest.fixture
def fake() -> Iterator[FakeDriver]:
    one = FakeDriver()
    one.setup()
    with environment(**DRIVER):
        yield one
    one.mend()
    one.speed()
    one.stall()
    one.setup()


@pytest.fixture
def memory(fake: FakeDriver) -> Iterator[TableMemory]:
    """Of the device 0, current in this thread."""
    one = TableMemory(open_driver(), 0)
    one.make_current()
    yield one
    fake.stall()
    one.make_current()
    one.close()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "kernels.so").write_bytes(compiled_kernels())
    return tmp_path / "kernels.so"


# ----- calls that stall -------------------------------------------------------------------------


PAIRS: dict[str, Callable[[TableMemory, Path], tuple[Callable[[], Any], Callable[[Any], None]]]] = {
    "device memory": lambda memory, module: (lambda: memory.allocate(512), memory.release),
    "pinned memory": lambda memory, module: (lambda: memory.allocate_host(4096), memory.release_host),
    "modules": lambda memory, module: (lambda: memory.load_module(module), memory.unload_module),
}
"""What takes something, and what gives it back."""


@pytest.mark.parametrize("back", [False, True], ids=["take", "give back"])
@pytest.mark.parametrize("what", PAIRS)
def test_a_call_that_stalls_ends_after_what_is_queued_and_keeps_every_other_call_waiting(
    driver: Driver, fake: FakeDriver, memory: TableMemory, module: Path, what: str, back: bool
) -> None:
    model = driver.prepare(affine())
    assert driver.end(driver.load(model, 1, [0])).status == Status.OK
    take, give_back = PAIRS[what](memory, module)
    taken = take() if back else None
    launches = fake.calls("cuLaunchKernel")
    fake.speed(kernel_ns=KERNEL_NS)
    fake.stall(STALL_NS)
    begin_ns = now_ns()
    action = driver.infer(model, 1, [X])  # two kernels
    eventually(lambda: fake.calls("cuLaunchKernel") == launches + 2, "both are launched")
    if back:
        give_back(taken)
    else:
        taken = take()
    stalled_ns = now_ns() - begin_ns
    fake.stall()
    if not back:
        give_back(taken)
    done = driver.end(action)
    assert stalled_ns >= 2 * KERNEL_NS + STALL_NS
    # The device was done long before anybody could learn of it.
    assert done.execute[2] < 2 * KERNEL_NS + STALL_NS / 2
    assert done.execute[1] - done.execute[0] >= 2 * KERNEL_NS + STALL_NS / 2
    fake.speed()


@pytest.mark.parametrize("what", ["device memory", "pinned memory"])
def test_only_pinned_memory_stalls_the_other_devices(
    fake: FakeDriver, memory: TableMemory, module: Path, what: str
) -> None:
    other = TableMemory(open_driver(), 1)
    other.make_current()
    take, _ = PAIRS[what](memory, module)
    function = {"device memory": "cuMemAlloc_v2", "pinned memory": "cuMemHostAlloc"}[what]
    begun = fake.calls(function)
    fake.stall(250 * MS)

    def stalling() -> None:
        memory.make_current()
        take()

    begin_ns = now_ns()
    thread = threading.Thread(target=stalling)
    thread.start()
    eventually(lambda: fake.calls(function) > begun, "it stalls")
    other.memory_info()
    assert (now_ns() - begin_ns >= 250 * MS) == (what == "pinned memory")
    thread.join()
    other.close()


@pytest.mark.parametrize("loading", ["LAZY", "EAGER"])
def test_the_first_launch_of_a_kernel_that_is_loaded_lazily_stalls(
    driver: Driver, fake: FakeDriver, loading: str
) -> None:
    """And never otherwise: not its second launch, nor where kernels are loaded with their module."""
    with environment(CUDA_MODULE_LOADING=loading):
        Table(DRIVER["CLOCKWORK_CUDA_DRIVER"])  # the driver reads it when it is initialised
    model = driver.prepare(affine())
    assert driver.end(driver.load(model, 1, [0])).status == Status.OK
    fake.stall(STALL_NS)
    first, second = (driver.end(driver.infer(model, 1, [X])) for _ in range(2))
    assert (first.execute[2] >= 2 * STALL_NS) == (loading == "LAZY")
    assert second.execute[2] < STALL_NS
    fake.stall()
    open_driver()
