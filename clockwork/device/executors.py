"""The executors of a CPU's arena: how many there may be, and the processors of their threads."""

from __future__ import annotations

import os

from clockwork import config
from clockwork.config import device as bounds
from clockwork.errors import ConfigError


def check_executors(executors: int, threads: int) -> None:
    """Check the number of executors of an arena, each of so many threads. Raises ConfigError.

    Executors share sessions, and the executions of a session share its threads if there are more than one. So
    an execution would take longer while another executor runs the same program.
    """
    if not 1 <= executors <= config.EXECUTORS_MAX:
        raise ConfigError(f"a CPU device has 1 to {config.EXECUTORS_MAX} executors, not {executors}")
    if executors > 1 and threads > 1:
        raise ConfigError(
            f"{executors} executors of {threads} threads: executors of one device have one thread each"
        )


def processors_for(count: int) -> list[int]:
    """Return a processor for each of so many executors; an empty list if this process may use no more.

    Without a processor to spare, executors could not make room for the worker's road and for other processes:
    with two pinned executors on two processors an INFER of the null model took 9 to 19 us of processor time,
    5.3 us without pinning, and 5.1 us on two devices, which are not pinned. Processors of different cores
    come first, because two processors of a core share its arithmetic units.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) <= count:
        return []
    seen: dict[str, int] = {}  # processors taken so far, by their core
    ranked = []
    for processor in usable:
        core = _core_of(processor)
        seen[core] = seen.get(core, 0) + 1
        ranked.append((seen[core], processor))
    return [processor for _, processor in sorted(ranked)[:count]]


def _core_of(processor: int) -> str:
    """Return the list of the processors that share a processor's core, as text; its number if unknown."""
    path = bounds.sysfs() / f"devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return str(processor)
