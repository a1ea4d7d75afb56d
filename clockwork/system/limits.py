"""What the operating system lets this process have."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from clockwork.config import OOM_SCORE

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container says how much memory its processes may have together; version 2 and version 1."""


def go_first() -> None:
    """Have the kernel end this process, and its children, before others where memory runs out."""
    with contextlib.suppress(
        OSError, ValueError
    ):  # forbidden, or there is no such file: then it is as it was
        path = Path("/proc/self/oom_score_adj")
        if int(path.read_text(encoding="ascii")) < OOM_SCORE:
            path.write_text(str(OOM_SCORE), encoding="ascii")


def raise_descriptor_limit() -> int:
    """Let this process open as many files as the administrator allows; how many it may open from now on.

    The usual soft limit of 1024 is for programs that call select(). A controller holds a descriptor for every
    client and worker, and a worker one for every file that it maps.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # fs.nr_open is lower: what there is has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def memory_bytes() -> int:
    """How much memory this process may have: the machine's, or its container's where that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            limits.append(int(Path(name).read_text(encoding="ascii")))
    return min(limits)


def resident_bytes() -> int:
    """How much of this process is in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
