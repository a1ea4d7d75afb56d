"""Advice for CUDA's errors on a machine that is not ready to use a GPU, worded as the end of a sentence."""

from __future__ import annotations

import enum
import os
from pathlib import Path

from clockwork import config


class DriverError(enum.IntEnum):
    """Errors by the driver's names. The runtime, and so CuPy, uses the same numbers."""

    CUDA_ERROR_STUB_LIBRARY = 34
    CUDA_ERROR_DEVICE_UNAVAILABLE = 46
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_OPERATING_SYSTEM = 304
    CUDA_ERROR_SYSTEM_NOT_READY = 802
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803
    CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804
    CUDA_ERROR_MPS_CONNECTION_FAILED = 805
    CUDA_ERROR_MPS_SERVER_NOT_READY = 807
    CUDA_ERROR_UNKNOWN = 999


OF_FILES = (
    DriverError.CUDA_ERROR_NO_DEVICE,
    DriverError.CUDA_ERROR_OPERATING_SYSTEM,
    DriverError.CUDA_ERROR_UNKNOWN,
)
"""Errors that the driver returns if it may not open its files."""

_MPS = "CUDA_MPS_PIPE_DIRECTORY names an MPS daemon that does not answer, or nvidia-cuda-mps-control is to be restarted"

ADVICE = {
    DriverError.CUDA_ERROR_STUB_LIBRARY: "this libcuda.so.1 is the toolkit's stub: take its folder out of LD_LIBRARY_PATH",
    DriverError.CUDA_ERROR_DEVICE_UNAVAILABLE: "another process has it for itself, or its compute mode is prohibited: "
    "nvidia-smi -q -d COMPUTE,PIDS says",
    DriverError.CUDA_ERROR_SYSTEM_NOT_READY: "on a machine with NVSwitch, nvidia-fabricmanager of the driver's version has to run",
    DriverError.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: "libcuda.so.1 and the kernel's driver are of different versions: restart the "
    "machine after an update of the driver, or the container that was started before it",
    DriverError.CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE: "libcuda.so.1 belongs to a cuda-compat package, which this GPU does "
    "not support: remove the package's folder from LD_LIBRARY_PATH",
    DriverError.CUDA_ERROR_MPS_CONNECTION_FAILED: _MPS,
    DriverError.CUDA_ERROR_MPS_SERVER_NOT_READY: _MPS,
}


def advice(code: int, devices: Path = Path("/dev")) -> str:
    """Return the end of a sentence about an error. devices: the folder of the driver's files."""
    found = [ADVICE[DriverError(code)]] if code in ADVICE else []
    if code in OF_FILES:
        found += filter(None, (visibility(), _files(devices)))
        if code == DriverError.CUDA_ERROR_UNKNOWN:
            found.append(
                "if nothing else is wrong, `nvidia-modprobe -u -c 0` loads the missing modules of the kernel's driver"
            )
    return "".join(f"; {hint}" for hint in found)


def visibility() -> str:
    """Return a sentence that names the setting that hides devices from this process; "" if none does."""
    given = config.visible_devices()
    return "" if given is None else f"CUDA_VISIBLE_DEVICES is {given!r}"


def _files(devices: Path) -> str:
    """Return the fault of the files by which the driver reaches the kernel; "" if there is none."""
    files = sorted(path for path in devices.glob("nvidia*") if not path.is_dir())
    closed = [str(path) for path in files if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        return f"this user may not open {', '.join(closed)}"
    if files or (devices / "dxg").exists():  # WSL's device file
        return ""
    return f"there is no {devices}/nvidiactl: the kernel's driver is not loaded, or this container was given no GPU"


__all__ = ["DriverError", "advice", "visibility"]
