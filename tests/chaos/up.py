"""A cluster under `clockwork up`, which restarts dead children: the faults hit its children."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from clockwork.system.clock import now_ns
from tests.chaos.processes import World, first_said
from tests.chaos.scenario import Kind
from tests.chaos.template import WORKERS
from tests.patience import PATIENCE_S, eventually, readable
from tests.process.cluster import Program

KINDS = (
    Kind.KILL_WORKER, Kind.KILL_WORKERS, Kind.KILL_CONTROLLER, Kind.KILL_GATEWAY, Kind.PAUSE_WORKER,
    Kind.STOP_WORKER, Kind.PAUSE_CONTROLLER, Kind.STOP_CONTROLLER, Kind.PAUSE_GATEWAY, Kind.CUT_CLIENT_LINK,
    Kind.HOLD_CLIENT_LINK, Kind.SLOW_CLIENT_LINK,
)  # fmt: skip
"""The faults that apply: the workers have no links of their own, and only `clockwork up` can hold its
children down."""


LISTENS = r"^gateway \| .* listens: http on http://([0-9.]+):(\d+)"
"""Start `clockwork up`. With --http-port 0 it takes any port, and keeps it when it is started again."""


class Child:
    """A child of `clockwork up`, by its name, with the functions of tests.chaos.processes.Supervised for
    faults and reports."""

    def __init__(self, name: str, up: Program, mark: str) -> None:
        """mark: text that the child's command line has, and no other child's."""
        self.name = name
        self.program = self  # the process to which faults send signals
        self._up = up
        self._mark = mark
        self.pids: list[int] = []

    @property
    def pid(self) -> int:
        """Return the id of the running process, or of the last one that ran."""
        children = Path(f"/proc/{self._up.pid}/task").glob("*/children")
        for pid in [pid for one in children for pid in one.read_text().split()]:
            with contextlib.suppress(OSError):  # the process has ended
                if f"\0{self._mark}\0" in Path(f"/proc/{pid}/cmdline").read_text():
                    if int(pid) not in self.pids:
                        self.pids.append(int(pid))
                    break
        return self.pids[-1]

    @property
    def programs(self) -> list[Child]:
        return [self]

    @property
    def lines(self) -> list[str]:
        return [line for line in self._up.lines if line.startswith(f"{self.name} | ")]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self, pattern: str, since_ns: int, within_s: float = PATIENCE_S) -> int:
        """Wait for a line of the child, like Supervised.said()."""
        mine = f"{self.name} | "
        return first_said(
            lambda: (one for one in zip(self._up.lines, self._up.seen_ns) if one[0].startswith(mine)),
            pattern,
            since_ns,
            within_s,
        )

    def end(self, number: int) -> int:
        """Send a signal that ends the process; return the time of its end."""
        pid = self.pid
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, number)
            ready = readable(descriptor)
            assert ready, f"{self.name} did not end"
            return now_ns()
        finally:
            os.close(descriptor)


class UpWorld(World):
    """A cluster in the process group of `clockwork up`, with a single data directory."""

    def _start(self, arena: str, more: Callable[[str], dict[str, str]]) -> None:
        data = self.root / "controller"
        self.template.copy_as_one(data)
        self.up = Program([
            "up", "--workers", str(WORKERS), "--host", self.address, "--port", "5555", "--data", str(data),
            "--no-demo", "--verbose", "--http-port", "0", "--grpc-port", "off", "--metrics-port", "off",
            "--arena", arena, "--page-size", "256KiB", "--policy", "edf",
        ], self._environment)  # fmt: skip
        self.others.append(self.up)
        self.up.wait_for(LISTENS)
        self.controller = Child("controller", self.up, "controller")
        self.workers = [Child(f"worker-{index}", self.up, f"worker-{index}") for index in range(WORKERS)]
        self.gateway = Child("gateway", self.up, "gateway")
        self.supervised = [self.controller, *self.workers, self.gateway]
        self.client_link = self._link(self.endpoint)
        found = self.up.wait_for(LISTENS)
        self.gateway_address = (found[1], int(found[2]))

    def _end(self) -> list[str]:
        pids = [pid for one in self.supervised for pid in (one.pid, *one.pids)]
        status = self.up.stop()
        wrong = [] if status == 0 else [f"up ended with status {status}: {self.up.text[-3000:]}"]
        if "Traceback" in self.up.text:
            wrong.append(f"up printed a traceback: {self.up.text[-3000:]}")
        self.supervised = []
        for pid in dict.fromkeys(pids):
            try:
                eventually(lambda: not os.path.exists(f"/proc/{pid}"), "it ends")  # noqa: B023
            except AssertionError:
                wrong.append(f"child {pid} of up is left")
        return wrong

    def destroy(self) -> None:
        for one in self.supervised:
            with contextlib.suppress(OSError, IndexError):  # the process has ended, or was never seen
                os.kill(one.pid, signal.SIGKILL)
        self.supervised = []
        super().destroy()
