"""Limits that the operating system sets to this process: memory and open files."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from clockwork.config import OOM_SCORE

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of a container; cgroup version 2 and version 1."""


def go_first() -> None:
    """Have the kernel end this process, and its children, before others when memory runs out."""
    with contextlib.suppress(OSError, ValueError):  # forbidden, or no such file: the score stays as it was
        path = Path("/proc/self/oom_score_adj")
        if int(path.read_text(encoding="ascii")) < OOM_SCORE:
            path.write_text(str(OOM_SCORE), encoding="ascii")


def raise_descriptor_limit() -> int:
    """Let this process open as many files as the administrator allows. Returns that number.

    The usual soft limit of 1024 is for programs that call select(). A controller holds a descriptor for every
    client and worker, and a worker one for every file that it maps.
    """
    import resource  # here, because a client on Windows imports this module

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # fs.nr_open is lower: the limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def memory_bytes() -> int:
    """Memory that this process may have: the machine's, or its container's where that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or it says "max"
            limits.append(int(Path(name).read_text(encoding="ascii")))
    return min(limits)


def resident_bytes() -> int:
    """Bytes of this process that are in memory; 0 on systems that do not say so in /proc."""
    if not sys.platform.startswith("linux"):
        return 0
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
