"""Run a command, and at its end or the keeper's end every process that it started, directly or indirectly.

    python keeper.py PARENT GRACE_S COMMAND...

Servers start processes of their own, some of them in sessions of their own, and some outlive the process that
started them. The keeper is the subreaper of them all (prctl(2)): a process that loses its parent becomes the
keeper's child, so that a walk down from the keeper finds every process. SIGTERM asks the command to end;
processes that are left after GRACE_S seconds are killed. The kernel sends the keeper SIGTERM when PARENT
ends. The keeper needs only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KILL_ROUNDS = 100
"""Times that remaining processes are killed: a single pass may miss a process that forks meanwhile."""


def descendants(pid: int) -> list[int]:
    """The descendants of a process, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(children.get(pid, ()))
    for child in found:  # the list grows while it is walked
        found.extend(children.get(child, ()))
    return found


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def reap() -> dict[int, int]:
    """Statuses of the children that have ended, by process."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def keep(parent: int, grace_s: float, command: list[str]) -> int:
    """Run the command to its end; its status, or 128 plus the signal that ended it."""
    libc = ctypes.CDLL(None, use_errno=True)
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        asked.append(number)

    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in ENDING:
        signal.signal(number, ask)
    for option, value in ((PR_SET_CHILD_SUBREAPER, 1), (PR_SET_PDEATHSIG, signal.SIGTERM)):
        if libc.prctl(option, value) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option})")
    if os.getppid() != parent:
        return 1
    child = subprocess.Popen(command)
    deadline = None
    status = None
    while status is None:
        if asked and deadline is None:
            deadline = time.monotonic() + grace_s
            child.send_signal(signal.SIGTERM)
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        select.select([woken], [], [], left)
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        status = reap().get(child.pid)
    for _ in range(KILL_ROUNDS):
        left_over = descendants(os.getpid())
        if not left_over:
            break
        kill_all(left_over)
        time.sleep(0.01)
        reap()
    return 128 + signal.SIGKILL if status is None else status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
