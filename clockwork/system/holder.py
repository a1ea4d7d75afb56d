"""The holder of a data directory's lock, as a standby sees it: whether it goes on, or has to be ended.

A controller that has the lock writes into the lock's file which process it is, and touches the file at each
beat of its loop. A process that was stopped (SIGSTOP, a debugger) or hangs keeps its lock, and would keep
every standby waiting. It is ended by SIGKILL, after which nothing of it can change the directory: a standby
never serves beside it.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config.controller import HOLDER_BYTES_MAX, HOLDER_HUNG_NS, HOLDER_STOPPED_NS

STOPPED = "Tt"  # states of a process in /proc: stopped, or stopped by a debugger


class HolderProcess(NamedTuple):
    """A process of this machine that no other is taken for. begun: its start in ticks since boot. space: its
    namespace of process ids; another container's may have the same id."""

    pid: int
    begun: int
    space: str


class Seen(NamedTuple):
    """A look at a holder. touched_ns: when it last touched the file, by any clock. state: of its process in
    /proc; "": the process is none of this namespace, or is gone."""

    touched_ns: int
    process: HolderProcess | None
    state: str


class HolderWatch:
    """Decides whether a holder is to be ended. Pure; times are of the standby's clock."""

    def __init__(self) -> None:
        self._touched_ns = -1
        self._since_ns = 0  # since when the file is not touched, as far as looks can tell

    def must_end(self, seen: Seen, now_ns: int) -> bool:
        """Take a look. Returns whether the process is to be ended: it has done nothing for too long."""
        if seen.touched_ns != self._touched_ns:
            self._touched_ns, self._since_ns = seen.touched_ns, now_ns
        if seen.process is None or not seen.state:
            return False
        limit_ns = HOLDER_STOPPED_NS if seen.state in STOPPED else HOLDER_HUNG_NS
        return now_ns - self._since_ns >= limit_ns


def sign(descriptor: int) -> None:
    """Write into a lock's file that this process has it. Raises OSError."""
    state = _stat_of(os.getpid())
    body = json.dumps(HolderProcess(os.getpid(), state[1] if state else 0, _space("self"))._asdict()).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, body, 0)


def look(path: Path) -> Seen:
    """Look at the holder of a lock's file. Raises OSError."""
    with open(path, "rb") as file:
        body = file.read(HOLDER_BYTES_MAX)
        touched_ns = os.fstat(file.fileno()).st_mtime_ns
    process = _process_in(body)
    if process is None or process.space != _space("self"):
        return Seen(touched_ns, None, "")
    state = _stat_of(process.pid)
    is_same = state is not None and state[1] == process.begun
    return Seen(touched_ns, process, state[0] if state is not None and is_same else "")


def end(process: HolderProcess) -> None:
    """End a process for good, if it is still the same."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        state = _stat_of(process.pid)  # of the process that the descriptor stands for
        if state is not None and state[1] == process.begun:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _process_in(body: bytes) -> HolderProcess | None:
    try:
        found: Any = json.loads(body)
        process = HolderProcess(**found)
    except (ValueError, TypeError, RecursionError):
        return None
    is_sound = type(process.pid) is int and type(process.begun) is int and type(process.space) is str
    return process if is_sound and process.pid > 1 and process.begun > 0 else None


def _space(pid: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def _stat_of(pid: int) -> tuple[str, int] | None:
    """The state of a process and its start in ticks since boot; None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0].decode(), int(fields[19])
