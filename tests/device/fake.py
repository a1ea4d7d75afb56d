"""The fake CUDA driver, as a test sees it: it counts, it fails when told to, it is as slow as asked."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import clockwork

LIBRARY = Path(clockwork.__file__).resolve().parents[1] / "tests" / "device" / "libfakecuda.so"
"""Of the build that is tested: `make fake-gpu` and `make debug` make it."""

DRIVER = {"CLOCKWORK_CUDA_DRIVER": str(LIBRARY)}
"""In the environment of a process that is to use it."""

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
"""What no action may call."""


class Counts(ctypes.Structure):
    """What exists of the driver, as cw_fake_live() tells it."""

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
    """What a stream has done, by this machine's monotonic clock."""

    kind: str
    begin_ns: int
    end_ns: int
    bytes: int


class _Step(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("kind", "begin_ns", "end_ns", "bytes")]


class FakeDriver:
    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(LIBRARY))
        self._library.cw_fake_calls.restype = ctypes.c_int64

    def setup(self, devices: int = 2, device_bytes: int = 1 << 28, version: int = 12040) -> None:
        self._library.cw_fake_setup(devices, ctypes.c_size_t(device_bytes), version)

    def restore(self) -> None:
        """Have it be as it is at first, but for what exists of it and was counted."""
        self.mend()
        self.speed()
        self.engines()
        self.stall()
        self.keep_kernels(False)
        self.card()
        self.setup()

    def card(self, capability: int = 0) -> None:
        """Have every device be a card of this compute capability (86: 8.6); 0: none, which runs modules for the host."""
        self._library.cw_fake_card(capability)

    def mig(self, card: int, instances: int = 0) -> None:
        """Have a card be in MIG mode, with so many instances; 0: not."""
        self._library.cw_fake_mig(card, instances)

    def pinned_node(self) -> int:
        """The NUMA node whose memory the thread preferred that last pinned some; -1: none."""
        return int(self._library.cw_fake_pinned_node())

    def speed(self, copy_rate: int = 0, link_rate: int = 0, kernel_ns: int = 0, latency_ns: int = 0) -> None:
        """Rates in bytes per second; 0: unlimited."""
        values = (copy_rate, link_rate, kernel_ns, latency_ns)
        self._library.cw_fake_speed(*(ctypes.c_int64(value) for value in values))

    def engines(self, copy_engines: int = 2, call_ns: int = 0) -> None:
        """One copy engine for both directions, or two; and how long each call takes, while every other waits."""
        self._library.cw_fake_engines(copy_engines, ctypes.c_int64(call_ns))

    def keep_kernels(self, keep: bool = True) -> None:
        """Whether kernels go on until this is said otherwise."""
        self._library.cw_fake_keep_kernels(int(keep))

    def steps(self) -> list[Step]:
        """What streams have done since this was last asked, in the order of the ends."""
        steps = (_Step * STEPS_MAX)()
        count = self._library.cw_fake_steps(steps, STEPS_MAX)
        return [Step(STEP_KINDS[one.kind], one.begin_ns, one.end_ns, one.bytes) for one in steps[:count]]

    def stall(self, stall_ns: int = 0) -> None:
        """Have calls that a card's driver does not do beside others hold its devices for so long; 0: none does."""
        self._library.cw_fake_stall(ctypes.c_int64(stall_ns))

    def fail(self, function: str, nth: int = 1, error: int = ILLEGAL_ADDRESS, sticky: bool = False) -> None:
        assert self._library.cw_fake_fail(function.encode(), ctypes.c_int64(nth), error, int(sticky)) == 0

    def mend(self) -> None:
        self._library.cw_fake_mend()

    def calls(self, function: str = "") -> int:
        """So far. "": of every function but cuEventQuery."""
        count = int(self._library.cw_fake_calls(function.encode()))
        assert count >= 0, function
        return count

    def copied_in(self) -> int:
        """Bytes that were copied to devices so far."""
        counts = Counts()
        self._library.cw_fake_live(ctypes.byref(counts))
        return int(counts.copied_in_bytes)

    def live(self) -> dict[str, int]:
        counts = Counts()
        self._library.cw_fake_live(ctypes.byref(counts))
        return counts.as_dict()


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """With these environment variables set."""
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
