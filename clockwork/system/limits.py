"""Limits of this process set by the operating system: memory and open files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from clockwork.config.system import OOM_SCORE

CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Files with a container's limits, for cgroup version 2 and version 1: the folder, the file with the limit of
memory, the file with the memory in use, and the field in memory.stat of the cached files that it includes."""


def go_first(score: int = OOM_SCORE) -> None:
    """Make the kernel end this process and its children before others when memory runs out."""
    with contextlib.suppress(OSError, ValueError):  # forbidden, or no such file: the score stays as it was
        path = Path("/proc/self/oom_score_adj")
        if int(path.read_text(encoding="ascii")) < score:
            path.write_text(str(score), encoding="ascii")


def raise_descriptor_limit() -> int:
    """Raise the limit of open files to the administrator's bound. Returns the new limit.

    The usual soft limit of 1024 is for programs that call select(). A controller holds a descriptor for every
    client and worker, and a worker holds a descriptor for every file that it maps.
    """
    import resource  # imported here, because a client on Windows imports this module

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # fs.nr_open is lower: the limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return descriptor_limit()


def memory_bytes() -> int:
    """Return the memory that this process may have: the machine's, or its container's if that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, limit, _, _ in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # the file does not exist, or its content is "max"
            limits.append(int(_content(f"{folder}/{limit}")))
    return min(limits)


def free_bytes() -> int:
    """Return the memory that this process could get now: the machine's, or its container's if that is
    less."""
    free = [_field("/proc/meminfo", "MemAvailable:") * 1024]
    for folder, limit, used, cached in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # the file does not exist, or its content is "max"
            most, taken = int(_content(f"{folder}/{limit}")), int(_content(f"{folder}/{used}"))
            free.append(most - taken + _field(f"{folder}/memory.stat", cached))
    return max(0, min(free))


def _field(path: str, name: str) -> int:
    """Return the number after a name in a file of the kernel. Raises OSError, ValueError."""
    found = re.search(rb"^%s\s+(\d+)" % name.encode(), _content(path), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} has no {name}")
    return int(found[1])


def _content(path: str) -> bytes:
    """Return the content of a file of the kernel. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.read(-1) or b""


@contextlib.contextmanager
def bounded_memory(bytes_: int) -> Iterator[None]:
    """Bound the further memory of this process and of its children to ``bytes_`` while the block runs.

    RLIMIT_DATA counts private writable memory: the heap and anonymous mappings. It counts neither mapped
    files nor reserved addresses, which RLIMIT_AS would count by gigabytes. Beyond the limit allocations fail.
    """
    import resource  # imported here, because a client on Windows imports this module

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _field("/proc/self/status", "VmData:") * 1024 + bytes_
    resource.setrlimit(
        resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def resident_bytes() -> int:
    """Return the bytes of this process in memory. 0: not on Linux, or no descriptor is free."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return 0


def descriptor_limit() -> int:
    """Return the number of descriptors that this process may have open."""
    import resource  # the module is missing on some systems, see raise_descriptor_limit()

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd")) - 1  # not counting the descriptor of this listing
