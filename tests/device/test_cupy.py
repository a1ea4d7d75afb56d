"""What CuPy is asked for, without CuPy: a module of the few names that are used, over the fake driver's table.

It shows that handles, lifetimes and errors are treated right; whether CuPy is as it is thought to be, only a card shows.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.device import cuda
from clockwork.device._cudriver import CudaError, Table
from clockwork.device.cuda_memory import CardInfo, CupyMemory, open_driver
from clockwork.errors import ConfigError, InvalidModel
from clockwork.messages import Status
from tests.device.cuda_rig import CudaRig
from tests.device.fake import OUT_OF_MEMORY, FakeDriver, environment
from tests.device.rig import Driver, affine, array_of, expected_affine

X = np.arange(12, dtype=np.float32).reshape(3, 4)


class RuntimeFailure(RuntimeError):
    def __init__(self, error: CudaError) -> None:
        super().__init__(str(error).split(": ")[1].replace("CUDA_ERROR_", "cudaError"))
        self.status = error.code


class NoMemory(MemoryError):
    pass


def stub(table: Table) -> types.ModuleType:
    """cupy, as CupyMemory sees it."""
    contexts: dict[int, int] = {}

    def translated(call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except CudaError as error:
            raise (NoMemory if error.code == OUT_OF_MEMORY else RuntimeFailure)(error) from None

    class Device:
        def __init__(self, ordinal: int) -> None:
            self.id = ordinal

        def use(self) -> None:
            if self.id not in contexts:
                contexts[self.id] = translated(table.retain_context, self.id)
            translated(table.make_current, contexts[self.id])

        @property
        def mem_info(self) -> tuple[int, int]:
            return table.memory_info()

    class Memory:
        def __init__(self, size: int) -> None:
            self.ptr = translated(table.allocate, size)
            weakref.finalize(self, table.release, self.ptr)

    class PinnedMemory:
        def __init__(self, size: int, flags: int) -> None:
            assert flags == 1
            self.ptr = translated(table.allocate_host, size)
            weakref.finalize(self, table.release_host, self.ptr)

    class RawModule:
        def __init__(self, path: str) -> None:
            self._path = path
            self._module = 0

        @property
        def module(self) -> int:
            if not self._module:
                self._module = translated(table.load_module, Path(self._path).read_bytes())
                weakref.finalize(self, table.unload_module, self._module)
            return self._module

        def get_function(self, name: str) -> Any:
            pointer = translated(table.function, self.module, name)
            return types.SimpleNamespace(kernel=types.SimpleNamespace(ptr=pointer))

    names = types.SimpleNamespace
    cupy: Any = types.ModuleType("cupy")
    cupy.RawModule = RawModule
    cupy.contexts = contexts
    cupy.cuda = names(
        Device=Device,
        Memory=Memory,
        PinnedMemory=PinnedMemory,
        memory=names(OutOfMemoryError=NoMemory),
        runtime=names(free=lambda _: None, hostAllocPortable=1, CUDARuntimeError=RuntimeFailure),
        driver=names(ctxGetCurrent=lambda: list(contexts.values())[-1], CUDADriverError=RuntimeFailure),
    )
    return cupy


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaRig]:
    with environment(CLOCKWORK_CUDA_DRIVER="fake"):
        table = open_driver()
        cupy: Any = stub(table)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(cuda, "open_memory", lambda table, card: CupyMemory(table, card.ordinal))
        one = CudaRig(tmp_path)
        yield one
        FakeDriver().mend()
        kept = one.fake.live()
        assert {name for name, count in kept.items() if count} <= {"contexts"}  # a process's, for good
        for ordinal in cupy.contexts:
            table.release_context(ordinal)


def test_a_device_on_cupys_memory_serves_and_gives_back(rig: CudaRig) -> None:
    driver = Driver(rig.make(), rig)
    try:
        one, other = affine(), affine(1, width=300)
        model, large = driver.prepare(one), driver.prepare(other)
        driver.end(driver.load(model, 1, [0]))
        driver.end(driver.load(large, 2, [1]))
        done = driver.end(driver.infer(model, 1, [X]))
        assert done.status == Status.OK
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-5, atol=1e-5)
        driver.device.reset()
        driver.device.forget(model)
        assert driver.device.memory()["models"] == 1
    finally:
        driver.device.close()


def test_cupys_errors_are_told_like_any_other(rig: CudaRig) -> None:
    driver = Driver(rig.make(), rig)
    try:
        rig.fake.fail("cuModuleLoadData")
        with pytest.raises(InvalidModel, match=r"kernels\.so: cuModuleLoad: cudaErrorILLEGAL_ADDRESS"):
            driver.prepare(affine())
        rig.fake.fail("cuMemHostAlloc", error=OUT_OF_MEMORY)
        with pytest.raises(MemoryError, match="cudaHostAlloc"):
            driver.prepare(affine())
    finally:
        driver.device.close()
    rig.fake.fail("cuMemAlloc_v2", error=OUT_OF_MEMORY)
    with pytest.raises(ConfigError, match=r"cannot use CUDA device 0 .*: cudaMalloc"):
        rig.make()


def test_without_cupy_it_is_said_what_to_install(rig: CudaRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    card = CardInfo(0, "a card", "", 90, 0)
    with pytest.raises(ConfigError, match=r"install clockwork\[cuda12\] or \[cuda13\]"):
        CupyMemory(open_driver(), card.ordinal)
