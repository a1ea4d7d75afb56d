"""Allocates memory on a NUMA node: of a PCI device, so that copies do not cross to another socket, or of an
arena's executors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Any

from clockwork.config import device as bounds
from clockwork.device.machine import UNKNOWN, read_list

_CALLS = {"x86_64": (238, 239), "aarch64": (237, 236)}
"""The numbers of set_mempolicy() and get_mempolicy(), by machine."""
_DEFAULT, _PREFERRED = 0, 1
"""Memory policies: the node on which the thread runs; a given node while it has memory."""
_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)


def node_of(bus: str) -> int:
    """Return the node of a PCI device ("0000:3b:00.0")."""
    try:
        return int((bounds.sysfs() / "bus/pci/devices" / bus / "numa_node").read_text())
    except (OSError, ValueError):
        return UNKNOWN


def processors_of(node: int) -> set[int]:
    """Return the processors of a node; an empty set if the node is unknown."""
    return read_list(bounds.sysfs() / f"devices/system/node/node{node}/cpulist") or set()


@contextlib.contextmanager
def near(node: int) -> Iterator[None]:
    """Prefer a node's memory for this thread's allocations, unless a policy was set at start (numactl).

    Where the kernel refuses the policy (as in many containers), the thread runs on the node's processors
    meanwhile, whose memory the kernel prefers by default.
    """
    if node == UNKNOWN or has_policy():
        yield
    elif set_policy(node):
        try:
            yield
        finally:
            set_policy(UNKNOWN)
    elif processors := processors_of(node) & (before := os.sched_getaffinity(0)):
        os.sched_setaffinity(0, processors)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
    else:
        yield


def set_policy(node: int) -> bool:
    """Prefer a node's memory in this thread (UNKNOWN: where it runs). False if the kernel refuses."""
    number, _ = _CALLS.get(platform.machine(), (None, None))
    if number is None:
        return False
    if node == UNKNOWN:
        return _call(number, _DEFAULT, None, ctypes.c_ulong(0))
    words = (ctypes.c_ulong * (node // _WORD_BITS + 1))()
    words[node // _WORD_BITS] = 1 << node % _WORD_BITS
    # The kernel reads one bit less than the given count.
    return _call(number, _PREFERRED, words, ctypes.c_ulong(len(words) * _WORD_BITS + 1))


def has_policy() -> bool:
    """Whether this thread has a policy other than the default, memory of the node where it runs."""
    _, number = _CALLS.get(platform.machine(), (None, None))
    mode = ctypes.c_int(_DEFAULT)
    found = number is not None and _call(
        number, ctypes.byref(mode), None, ctypes.c_ulong(0), None, ctypes.c_ulong(0)
    )
    return found and mode.value != _DEFAULT


def _call(*arguments: Any) -> bool:
    return bool(ctypes.CDLL(None).syscall(*arguments) == 0)


__all__ = ["UNKNOWN", "has_policy", "near", "node_of", "processors_of", "set_policy"]
