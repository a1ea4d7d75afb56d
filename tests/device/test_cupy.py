"""What CuPy is asked for, without a card: a module of the few names that are used, over the fake driver's table.

It shows that handles, lifetimes and errors are treated right. The stand-in is held against CuPy itself, which imports
without a driver, as far as that shows anything there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.device import cuda
from clockwork.device._cudriver import Context, CudaError, Table
from clockwork.device.cuda_memory import CardInfo, CupyMemory, _Translated, open_driver
from clockwork.errors import ConfigError, InvalidModel
from clockwork.wire.messages import Status
from tests.device.cuda_rig import CudaRig
from tests.device.fake import DRIVER, OUT_OF_MEMORY, FakeDriver, environment
from tests.device.rig import Driver, affine, array_of, expected_affine

X = np.arange(12, dtype=np.float32).reshape(3, 4)


class RuntimeFailure(RuntimeError):
    def __init__(self, error: CudaError) -> None:
        super().__init__(str(error).split(": ")[1].replace("CUDA_ERROR_", "cudaError"))
        self.status = error.code


def stub(table: Table) -> types.ModuleType:
    """cupy, as CupyMemory sees it."""
    contexts: dict[int, Context] = {}

    def translated(call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except CudaError as error:
            raise RuntimeFailure(error) from None

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
            memory = translated(table.allocate, size)
            self.ptr = memory.address
            weakref.finalize(self, table.release, memory)

    class PinnedMemory:
        def __init__(self, size: int, flags: int) -> None:
            assert flags == 1
            memory = translated(table.allocate_host, size)
            self.ptr = memory.address
            weakref.finalize(self, table.release_host, memory)

    class Module:
        def load_file(self, path: str) -> None:
            self._module = translated(table.load_module, Path(path).read_bytes())
            weakref.finalize(self, table.unload_module, self._module)

        def get_function(self, name: str) -> Any:
            return types.SimpleNamespace(ptr=translated(table.function, self._module, name).address)

    names = types.SimpleNamespace
    cupy: Any = types.ModuleType("cupy")
    cupy.contexts = contexts
    cupy.cuda = names(
        Device=Device,
        Memory=Memory,
        PinnedMemory=PinnedMemory,
        function=names(Module=Module),
        memory=names(OutOfMemoryError=MemoryError),
        runtime=names(free=lambda _: None, hostAllocPortable=1, CUDARuntimeError=RuntimeFailure),
        driver=names(
            ctxGetCurrent=lambda: list(contexts.values())[-1].address, CUDADriverError=RuntimeFailure
        ),
    )
    return cupy


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaRig]:
    with environment(**DRIVER):
        table = open_driver()
        cupy: Any = stub(table)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(cuda, "open_memory", lambda table, card: CupyMemory(table, card))
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
        modules = rig.fake.live()["modules"]
        driver.device.forget(model)
        driver.device.tidy()
        assert driver.device.memory()["models"] == 1
        assert rig.fake.live()["modules"] == modules - 1, "the module of a removed model goes with it"
    finally:
        driver.device.close()


def test_cupys_errors_are_told_like_any_other(rig: CudaRig) -> None:
    driver = Driver(rig.make(), rig)
    try:
        rig.fake.fail("cuModuleLoadData")
        with pytest.raises(InvalidModel, match=r"kernels\.so: cuModuleLoad: cudaErrorILLEGAL_ADDRESS"):
            driver.prepare(affine())
    finally:
        driver.device.close()
    rig.fake.fail("cuMemHostAlloc", error=OUT_OF_MEMORY)
    with pytest.raises(ConfigError, match=r"cannot pin a host store of \d+ bytes: cudaHostAlloc"):
        rig.make()
    rig.fake.fail("cuMemAlloc_v2", error=OUT_OF_MEMORY)
    with pytest.raises(ConfigError, match=r"cannot use CUDA device 0 .*: cudaMalloc"):
        rig.make()


def test_without_cupy_it_is_said_what_to_install(rig: CudaRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    card = CardInfo(0, "a card", "", "", -1, 90, 0, 0)
    with pytest.raises(ConfigError, match=r"install clockwork-serving\[cuda12\] or \[cuda13\]"):
        CupyMemory(open_driver(), card)


# ----- CuPy itself -----------------------------------------------------------------------------

needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None, reason="CuPy is not installed (clockwork-serving[cuda12])"
)


def cuda_of_cupy() -> Any:
    return importlib.import_module("cupy").cuda


@needs_cupy
@pytest.mark.slow
def test_cupy_has_what_the_stand_in_has() -> None:
    real = cuda_of_cupy()
    with environment(**DRIVER):
        stand_in = stub(open_driver()).cuda
    for name, value in vars(stand_in).items():
        assert hasattr(real, name), name
        for inner in vars(value) if isinstance(value, types.SimpleNamespace) else ():
            assert hasattr(getattr(real, name), inner), f"{name}.{inner}"
    for method in ("load_file", "get_function"):
        assert callable(getattr(real.function.Module(), method))
    assert real.runtime.hostAllocPortable == 1


@needs_cupy
@pytest.mark.slow
def test_what_cupy_raises_where_there_is_no_memory_is_a_memory_error_to_us() -> None:
    """Memory and PinnedMemory call the runtime themselves, past CuPy's pools: what they raise is the runtime's."""
    real = cuda_of_cupy()
    cupy = importlib.import_module("cupy")
    error = real.runtime.CUDARuntimeError(OUT_OF_MEMORY)
    assert not isinstance(error, MemoryError)
    with pytest.raises(MemoryError, match=r"cudaMalloc: .*out of memory"), _Translated(cupy, "cudaMalloc"):
        raise error
    with (
        pytest.raises(CudaError, match="cudaMalloc: cudaErrorInvalidValue") as told,
        _Translated(cupy, "cudaMalloc"),
    ):
        raise real.runtime.CUDARuntimeError(1)
    assert told.value.code == 1
