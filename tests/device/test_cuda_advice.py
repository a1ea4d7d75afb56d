"""The messages for a machine that is not ready to use a GPU: each says what is wrong, by how much, and what
to do."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from clockwork.device import cuda_memory
from clockwork.device.cuda import CudaDevice
from clockwork.device.cuda_advice import DriverError, advice
from clockwork.device.cuda_memory import CupyMemory, find_card, open_driver, open_memory, why_unusable
from clockwork.errors import ConfigError
from tests.device.cuda_rig import PAGE_BYTES
from tests.device.fake import OUT_OF_MEMORY, FakeDriver
from tests.device.stand_in import stub

GIB = 1 << 30


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """The files of a driver with one card, as in /dev."""
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DriverError.CUDA_ERROR_STUB_LIBRARY, "toolkit's stub: take its folder out of LD_LIBRARY_PATH"),
        (DriverError.CUDA_ERROR_SYSTEM_NOT_READY, "nvidia-fabricmanager of the driver's version has to run"),
        (DriverError.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "restart the machine after an update of the driver"),
        (DriverError.CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, "cuda-compat package, which this GPU does not support"),
        (DriverError.CUDA_ERROR_MPS_SERVER_NOT_READY, "nvidia-cuda-mps-control is to be restarted"),
        (DriverError.CUDA_ERROR_UNKNOWN, "nvidia-modprobe -u -c 0"),
    ],
)  # fmt: skip
def test_a_driver_that_cannot_start_says_why(fake: FakeDriver, error: DriverError, said: str) -> None:
    fake.fail("cuInit", error=error)
    with pytest.raises(ConfigError, match=rf"cannot use a CUDA device: cuInit: .*; .*{said}"):
        open_driver()


def test_hidden_devices_are_named(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0")
    said = r"cuInit: CUDA_ERROR_NO_DEVICE; CUDA_VISIBLE_DEVICES is 'GPU-0'"
    with pytest.raises(ConfigError, match=said):
        open_driver()
    assert "CUDA_VISIBLE_DEVICES is 'GPU-0'" in why_unusable()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    open_driver()


def test_files_that_are_missing_or_not_to_be_opened_are_named(
    devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert advice(DriverError.CUDA_ERROR_NO_DEVICE, devices) == ""
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "nvidia0" and mode == os.R_OK | os.W_OK)
    assert advice(DriverError.CUDA_ERROR_NO_DEVICE, devices) == f"; this user may not open {devices}/nvidia0"
    none = tmp_path / "none"
    none.mkdir()
    assert f"there is no {none}/nvidiactl" in advice(DriverError.CUDA_ERROR_NO_DEVICE, none)
    assert f"there is no {none}/nvidiactl" in advice(DriverError.CUDA_ERROR_UNKNOWN, none)
    (none / "dxg").touch()
    assert advice(DriverError.CUDA_ERROR_NO_DEVICE, none) == ""


def test_a_card_that_another_process_has_for_itself_is_named(fake: FakeDriver) -> None:
    table = open_driver()
    card = find_card(table, "1")
    fake.fail("cuDevicePrimaryCtxRetain", error=DriverError.CUDA_ERROR_DEVICE_UNAVAILABLE)
    with pytest.raises(ConfigError, match=r"CUDA device 1 \(fake GPU 1\): cuDevicePrimaryCtxRetain.*COMPUTE"):
        open_memory(table, card)


def full(memory: object) -> tuple[int, int]:
    """A stand-in for CuPy's module."""
    raise MemoryError("no room")


def test_memory_that_is_taken_is_told_with_what_was_wanted(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.setup(device_bytes=GIB)
    small = {"workspace_bytes": 1 << 20, "io_slot_bytes": 1 << 20, "pinned_bytes": PAGE_BYTES}
    said = r"{} bytes {} are free, .* take {} and the arena {}: cuMemAlloc: .*, asked for"
    with pytest.raises(ConfigError, match=r"\(fake GPU 0\): of " + said.format(GIB, GIB, 3 << 20, GIB)):
        CudaDevice(arena_bytes=GIB, page_bytes=PAGE_BYTES, run_ahead=1, **small)
    left = 2 << 20  # another process has the rest
    fake.setup(device_bytes=left)
    with pytest.raises(ConfigError, match=said.format(left, left, 3 << 20, PAGE_BYTES)):
        CudaDevice(page_bytes=PAGE_BYTES, run_ahead=1, **small)
    with monkeypatch.context() as patched:
        patched.setattr(cuda_memory.TableMemory, "memory_info", full)
        with pytest.raises(ConfigError, match=r"fake GPU 0\): its memory is full: no room"):
            CudaDevice(page_bytes=PAGE_BYTES, run_ahead=1, **small)
    fake.fail("cuMemHostAlloc", error=OUT_OF_MEMORY)
    with pytest.raises(
        ConfigError, match=r"cannot pin .* of 65536 bytes, where machine or container have \d+: .*--pinned-b"
    ):
        CudaDevice(page_bytes=PAGE_BYTES, run_ahead=1, **small)
    monkeypatch.setitem(sys.modules, "cupy", stub(table := open_driver()))
    fake.fail("cuDevicePrimaryCtxRetain", error=OUT_OF_MEMORY)
    monkeypatch.setattr(cuda_memory.bounds, "is_nvidias", lambda path: True)
    with pytest.raises(
        ConfigError, match=rf"CUDA device 0 .*: of its {left} bytes there are too few for a context"
    ):
        open_memory(table, find_card(table, "0"))


@pytest.mark.parametrize(
    ("version", "installed", "said"),
    [
        (12040, "cupy-cuda13x", r"CuPy is for CUDA 13, and the driver for 12.4: install clockwork-serving\[cuda12\]"),
        (11080, "cupy-cuda12x", r"CuPy is for CUDA 12, and the driver for 11.8: a newer driver is needed"),
        (13000, "cupy-cuda12x", ""),
        (12040, "cupy", ""),  # a CuPy that the user has built
    ],
)  # fmt: skip
def test_a_cupy_that_is_too_new_for_the_driver_is_named(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, version: int, installed: str, said: str
) -> None:
    def found(package: str) -> str:
        if package != installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return "14.2.0"

    fake.setup(version=version)
    table = open_driver()
    monkeypatch.setattr(importlib.metadata, "version", found)
    monkeypatch.setattr(cuda_memory.bounds, "is_nvidias", lambda path: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", stub(table))
    if not said:
        assert why_unusable() == ""
        CupyMemory(table, find_card(table, "0"))
        table.release_context(0)
        return
    with pytest.raises(ConfigError, match=rf"cannot use CUDA device 0 \(fake GPU 0\): {said}"):
        open_memory(table, find_card(table, "0"))
    assert why_unusable().startswith(said[:20])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_unusable().startswith("CuPy is not installed: install clockwork-serving[cuda12]")
