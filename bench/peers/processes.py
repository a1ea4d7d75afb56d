"""A server under a keeper: its log, its processes' resources, and its end."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from bench.cluster import rss_bytes
from bench.peers import keeper
from clockwork.system.clock import SECOND, now_ns

GRACE_S = 5.0
"""Time that a server may take to end when it is asked to; then its processes are killed."""

LAST_LINES = 15
TROUBLE = re.compile(r"error|exception|fail|traceback", re.IGNORECASE)
_TICK = os.sysconf("SC_CLK_TCK")


class Kept:
    """A command and all its descendants; use as a context manager."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
        directory: Path | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._log = log
        self._grace_s = grace_s
        with log.open("wb") as file:
            self._keeper = subprocess.Popen(
                [sys.executable, keeper.__file__, str(os.getpid()), str(grace_s), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=directory,
                env=os.environ | (environment or {}),
                start_new_session=True,  # Ctrl-C reaches only the benchmark, which ends the server in order
            )

    @property
    def status(self) -> int | None:
        """The command's exit status, once it has ended."""
        return self._keeper.poll()

    def pids(self) -> list[int]:
        """The server's processes."""
        return keeper.descendants(self._keeper.pid)

    def cpu_s(self) -> float:
        """Processor time of the server's processes so far, to a hundredth of a second."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                # time of the process, and of its children that have ended
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / _TICK

    def cores(self, seconds: float) -> float:
        """Measure the processes' processor time per second from now on."""
        before_s, begin_ns = self.cpu_s(), now_ns()
        threading.Event().wait(seconds)
        return (self.cpu_s() - before_s) / ((now_ns() - begin_ns) / SECOND)

    def rss_bytes(self) -> int:
        """Resident memory of the server's processes, with shared memory counted in each."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, IndexError):
                total += rss_bytes(pid)
        return total

    def log(self) -> str:
        """The last lines of the log; only those about errors if there are any."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(
            [line for line in lines if TROUBLE.search(line)][-LAST_LINES:] or lines[-LAST_LINES:]
        )

    def stop(self) -> None:
        """End the server in bounded time: in order, or else by SIGKILL."""
        if self._keeper.poll() is None:
            self._keeper.terminate()
            try:
                self._keeper.wait(self._grace_s + 2 * keeper.KILL_ROUNDS * 0.01 + 5)
            except subprocess.TimeoutExpired:
                pids = self.pids()
                self._keeper.kill()
                keeper.kill_all(pids)
        self._keeper.wait()

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
