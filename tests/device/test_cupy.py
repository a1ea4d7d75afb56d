"""The calls to CuPy, checked without a card by a stand-in for it (stand_in.py): handles, lifetimes and errors
are treated right. The stand-in is compared with CuPy itself, which can be imported without a driver."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.device import cuda
from clockwork.device._cudriver import CudaError
from clockwork.device.cuda_memory import CardInfo, CupyMemory, _Translated, open_driver
from clockwork.errors import ConfigError, InvalidModel
from clockwork.wire.messages import Status
from tests.device.cuda_rig import CudaRig
from tests.device.fake import DRIVER, OUT_OF_MEMORY, FakeDriver, environment
from tests.device.rig import Driver, affine, array_of, expected_affine
from tests.device.stand_in import stub

X = np.arange(12, dtype=np.float32).reshape(3, 4)


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
        # a context lives as long as the process
        assert {name for name, count in kept.items() if count} <= {"contexts"}
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
    assert rig.fake.live()["modules"] == 0, "all go with the device, though it is referred to"


def test_cupys_errors_are_told_like_any_other(rig: CudaRig) -> None:
    driver = Driver(rig.make(), rig)
    try:
        rig.fake.fail("cuModuleLoadData")
        with pytest.raises(InvalidModel, match=r"kernels\.so: cuModuleLoad: cudaErrorILLEGAL_ADDRESS"):
            driver.prepare(affine())
    finally:
        driver.device.close()
    rig.fake.fail("cuMemHostAlloc", error=OUT_OF_MEMORY)
    with pytest.raises(ConfigError, match=r"cannot pin a host store of \d+ bytes, .*: cudaHostAlloc of"):
        rig.make()
    rig.fake.fail("cuMemAlloc_v2", error=OUT_OF_MEMORY)
    with pytest.raises(ConfigError, match=r"cannot use CUDA device 0 .*: cudaMalloc"):
        rig.make()


def test_without_cupy_it_is_said_what_to_install(rig: CudaRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    card = CardInfo(0, "a card", "", "", -1, 90, 0, 0)
    with pytest.raises(ConfigError, match=r"not installed here.*: install clockwork-serving\[cuda12\]"):
        CupyMemory(open_driver(), card)


@pytest.mark.slow
def test_the_suite_of_a_gpu_passes_where_the_driver_is_taken_for_nvidias(tmp_path: Path) -> None:
    """Run the tests of `make test-gpu`, except whole networks, in a process of its own."""
    driver = tmp_path / "libcuda.so.1"
    shutil.copyfile(DRIVER["CLOCKWORK_CUDA_DRIVER"], driver)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "tests.device.stand_in", "-p", "no:cacheprovider", "-k", "[card",
        "--basetemp", str(tmp_path / "tests"), str(Path(__file__).parent),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "CLOCKWORK_CUDA_DRIVER": str(driver)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 100


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
    module = real.function.Module()
    module.ptr = 0  # setting the pointer to 0 marks the module as unloaded
    assert real.runtime.hostAllocPortable == 1


@needs_cupy
@pytest.mark.slow
def test_what_cupy_raises_where_there_is_no_memory_is_a_memory_error_to_us() -> None:
    """Memory and PinnedMemory call the runtime themselves, past CuPy's pools: their errors are the
    runtime's."""
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
