"""The tests' interface to the fake CUDA driver: it counts calls, fails on demand, and runs at a given
speed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import clockwork

LIBRARY = Path(clockwork.__file__).resolve().parents[1] / "tests" / "device" / "libfakecuda.so"
"""The driver of the build under test, made by `make fake-gpu` or `make debug`."""

DRIVER = {"CLOCKWORK_CUDA_DRIVER": str(LIBRARY)}
"""Environment of a process that is to use the fake driver."""

ILLEGAL_ADDRESS = 700
LAUNCH_FAILED = 719
MISALIGNED_ADDRESS = 716
OUT_OF_MEMORY = 2
NOT_SUPPORTED = 801

ALLOCATING = (
    "cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc", "cuMemFreeHost", "cuStreamCreate", "cuEventCreate",
    "cuModuleLoadData", "cuModuleGetFunction", "cuStreamSynchronize", "cuGraphCreate", "cuGraphInstantiateWithFlags",
    "cuGraphUpload", "cuGraphExecDestroy", "cuCtxSetLimit",
)  # fmt: skip
"""Functions that no action may call."""


class Counts(ctypes.Structure):
    """The objects of the driver that exist, as cw_fake_live() reports them."""

    NAMES = (
        "contexts",
        "streams",
        "events",
        "allocations",
        "device_bytes",
        "host_allocations",
        "host_bytes",
        "modules",
        "graphs",
        "graph_execs",
        "unpinned_copies",
    )
    TOTALS = ("copied_in_bytes",)
    _fields_ = [(name, ctypes.c_int64) for name in (*NAMES, *TOTALS)]

    def as_dict(self) -> dict[str, int]:
        return {name: int(getattr(self, name)) for name in self.NAMES}


STEPS_MAX = 1 << 14
STEP_KINDS = ("copy in", "copy out", "kernel", "write")


class Step(NamedTuple):
    """An operation that a stream has done, by this machine's monotonic clock."""

    kind: str
    begin_ns: int
    end_ns: int
    bytes: int
    issued_ns: int  # time of the call; 0 for a node of a graph


class _Step(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("kind", "begin_ns", "end_ns", "bytes", "issued_ns")]


class FakeDriver:
    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(LIBRARY))
        self._library.cw_fake_calls.restype = ctypes.c_int64

    def setup(self, devices: int = 2, device_bytes: int = 1 << 28, version: int = 12040) -> None:
        self._library.cw_fake_setup(devices, ctypes.c_size_t(device_bytes), version)

    def restore(self) -> None:
        """Reset the driver to its initial settings; its objects and counts stay."""
        self.mend()
        self.speed()
        self.engines()
        self.stall()
        self.keep_kernels(False)
        self.card()
        self.setup()

    def card(self, capability: int = 0) -> None:
        """Make every device a card of this compute capability (86: 8.6); 0: none, and modules for the host
        run."""
        self._library.cw_fake_card(capability)

    def mig(self, card: int, instances: int = 0) -> None:
        """Put a card in MIG mode with so many instances; 0: leave MIG mode."""
        self._library.cw_fake_mig(card, instances)

    def pinned_node(self) -> int:
        """Return the NUMA node that was preferred by the thread that last pinned memory; -1: none."""
        return int(self._library.cw_fake_pinned_node())

    def speed(self, copy_rate: int = 0, link_rate: int = 0, kernel_ns: int = 0, latency_ns: int = 0) -> None:
        """Rates in bytes per second; 0: unlimited."""
        values = (copy_rate, link_rate, kernel_ns, latency_ns)
        self._library.cw_fake_speed(*(ctypes.c_int64(value) for value in values))

    def engines(self, copy_engines: int = 2, call_ns: int = 0) -> None:
        """Set the number of copy engines (one for both directions, or two), and the duration of each call,
        during which other calls wait."""
        self._library.cw_fake_engines(copy_engines, ctypes.c_int64(call_ns))

    def keep_kernels(self, keep: bool = True) -> None:
        """Whether kernels keep running until this is reset."""
        self._library.cw_fake_keep_kernels(int(keep))

    def steps(self) -> list[Step]:
        """Return what streams have done since the last call, in the order of the ends."""
        steps = (_Step * STEPS_MAX)()
        count = self._library.cw_fake_steps(steps, STEPS_MAX)
        return [
            Step(STEP_KINDS[one.kind], one.begin_ns, one.end_ns, one.bytes, one.issued_ns)
            for one in steps[:count]
        ]

    def stall(self, stall_ns: int = 0) -> None:
        """Have calls that a card's driver serialises with other work hold its devices for so long; 0: no call
        does."""
        self._library.cw_fake_stall(ctypes.c_int64(stall_ns))

    def fail(self, function: str, nth: int = 1, error: int = ILLEGAL_ADDRESS, sticky: bool = False) -> None:
        assert self._library.cw_fake_fail(function.encode(), ctypes.c_int64(nth), error, int(sticky)) == 0

    def mend(self) -> None:
        self._library.cw_fake_mend()

    def calls(self, function: str = "") -> int:
        """Return the number of calls so far. "": of all functions except cuEventQuery."""
        count = int(self._library.cw_fake_calls(function.encode()))
        assert count >= 0, function
        return count

    def copied_in(self) -> int:
        """Return the bytes that were copied to devices so far."""
        counts = Counts()
        self._library.cw_fake_live(ctypes.byref(counts))
        return int(counts.copied_in_bytes)

    def live(self) -> dict[str, int]:
        counts = Counts()
        self._library.cw_fake_live(ctypes.byref(counts))
        return counts.as_dict()


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the duration of the context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
