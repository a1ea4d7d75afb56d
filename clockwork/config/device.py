"""Bounds of devices, and their settings from environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from clockwork.config import environment, machine_bytes, parse_bytes
from clockwork.errors import ConfigError

# ----- lanes and executions --------------------------------------------------------------------

LANE_SPIN_NS = 30_000
"""Time before an action's window opens, or before what a GPU does is predicted to end, at which a lane stops
sleeping and spins: about the cost of a wake-up, so that starting on time takes a core for no longer than
that."""

SPARE_PAGES_NS = 5_000_000_000
"""Time after which pages of an arena that need no memory, because their model has its own, return it to the
system. Until then a bound model that is loaded there finds it in place."""

EXECUTION_WORKSPACE_BYTES = 512 << 20
"""Memory that every execution on a CPU device may take, whatever its profile says: inputs of a shape that was
not measured may need far more."""

EXECUTION_WORKSPACE_FACTOR = 16
"""An execution may take this many times the memory of its profile, or EXECUTION_WORKSPACE_BYTES if that is
more."""

WORKSPACE_SHARE = 2
"""All executions of a process may take 1 / WORKSPACE_SHARE of the machine's memory, unless
CLOCKWORK_WORKSPACE_BYTES says how much."""

CORES_EACH_RESERVED = 8
"""By default a CPU's worker has an executor for each core but one of so many, on which its other threads run,
and the controller and gateways where they share the machine."""
CORES_ALL_EXECUTE = 2
"""A machine of so many cores has an executor for each: one core left of two costs more than it gives."""

SYSFS_BYTES_MAX = 64 << 10  # Largest file of the kernel's description of a machine that is read
CGROUP_LINES_MAX = 64  # Most control groups of a process that are looked at
CGROUP_DEPTH_MAX = 64  # Most groups above a control group whose quotas count

SLOWDOWN_ROUNDS, SLOWDOWN_SPAN_NS = 3, 15_000_000
"""A worker measures at its start how much the executors of an arena slow each other: so many times, for so
long each, two kinds of work on one thread and on all."""

SLOWDOWN_BYTES, SLOWDOWN_BYTES_ALL = 8 << 20, 128 << 20
"""Memory that each thread reads and writes in this measurement, and all threads together at most."""

# ----- operators ---------------------------------------------------------------------------------

SEARCHED_BYTES_MAX = 8 << 20
"""Size of an ONNX file beyond which it is mapped, not read, to search it for operators. Below it, faults of
pages take longer than a copy."""

# ----- CUDA devices ------------------------------------------------------------------------------

CUDA_LOAD_PIECE_BYTES = 4 << 20
"""Weights that a LOAD copies at a time. Three such pieces are on their way to the GPU, so that an input waits
for 12 MiB at most (0.5 ms at 25 GB/s), and the link is busy for two of them while the end of one is noticed.
"""

CUDA_DRIVER = "libcuda.so.1"  # The driver's library, unless CLOCKWORK_CUDA_DRIVER names another, or its path
CUDA_DRIVER_OLDEST = 11040  # CUDA 11.4: the first driver with every function that is called
CUDA_EXTRAS_OLDEST = 12000  # CUDA 12.0: the first driver for which CuPy is among this package's extras

CUDA_ARENA_SHARE = 0.85
"""Default size of a CUDA arena, as a part of the memory that is free when the device is opened. The rest is
for workspace and slots, and for the modules."""

CUDA_WORKSPACE_BYTES = 256 << 20
"""Workspace of a CUDA device at start; it grows when a model that needs more is prepared."""

CUDA_GRAPHS_MAX = 4096
"""Most CUDA graphs of a device: one for each variant of a program and slot. The driver takes device
memory for each, and does not report how much. Further variants are launched kernel by kernel."""

CUDA_IO_SLOT_BYTES = 16 << 20
"""Initial size of each slot for inputs and outputs of a CUDA device; it grows with the models' needs."""

RESERVE_STALL_NS = 10_000_000
"""Time of a device that a worker reserves to load a program's modules, until loads of modules have been
measured."""

CLOCK_SAMPLE_NS = 200_000_000  # Interval at which a thread of a worker asks NVML for the clocks of its GPUs

CLOCK_STEP_RATIO = 0.005
"""Relative change of a clock below which it is not reported: the clock of a GPU that boosts always moves."""

# ----- emulated devices --------------------------------------------------------------------------

EMULATED_SPIN_NS = 60_000
"""Time before the end of an emulated action at which the process wakes and spins, where it may."""

STALE_EVENTS_MAX = 1024
"""Stale entries that the heap of emulated lanes may have beyond one for each lane, before it is built anew.
"""

ELEMENTS_MAX = 1 << 40  # Most elements of an input, as on other devices
NOISE_SIGMA_MAX = 2.0


def cuda_driver() -> str:
    return environment("CUDA_DRIVER", CUDA_DRIVER)


def cuda_graphs() -> bool:
    """CLOCKWORK_CUDA_GRAPHS: whether CUDA devices launch recorded graphs (1), or kernel by kernel (0). Raises
    ConfigError."""
    said = environment("CUDA_GRAPHS", "1")
    if said not in ("0", "1"):
        raise ConfigError(f"CLOCKWORK_CUDA_GRAPHS is {said!r}: it is 1 or 0")
    return said == "1"


def is_nvidias(driver: str) -> bool:
    """Whether a CUDA driver, by its name or path, is NVIDIA's own."""
    return Path(driver).name.startswith("libcuda.so")


def fake_clocks() -> Path | None:
    """CLOCKWORK_FAKE_CLOCKS: the file to which a test writes the clocks of devices that are not GPUs."""
    name = environment("FAKE_CLOCKS", "")
    return Path(name) if name else None


def sysfs() -> Path:
    """CLOCKWORK_SYSFS: the folder in which a test has the kernel's description of the machine."""
    return Path(environment("SYSFS", "/sys"))


def workspace_bytes_max() -> int:
    """Return the memory that all executions on this process's CPU devices may take. Raises ConfigError."""
    said = environment("WORKSPACE_BYTES", "")
    return parse_bytes(said) if said else machine_bytes() // WORKSPACE_SHARE


def execution_workspace_bytes(measured: int) -> int:
    """Return the memory that an execution may take. measured: the profile's maximum; 0: not measured."""
    most = workspace_bytes_max()
    if measured == 0:
        return most
    return min(max(EXECUTION_WORKSPACE_BYTES, EXECUTION_WORKSPACE_FACTOR * measured), most)


def load_kernels_eagerly() -> None:
    """Make CUDA load kernels with their module, not at their first launch during an INFER.

    To be called before the driver is initialised.
    """
    os.environ["CUDA_MODULE_LOADING"] = "EAGER"
