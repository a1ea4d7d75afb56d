"""`clockwork up` in a process of its own, with its children."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from clockwork import Client
from clockwork.errors import ClockworkError
from clockwork.system.clock import now_ns
from tests.process.cluster import Program, session_members


class Up(Program):
    """A running `clockwork up`."""

    def __init__(self, data: Path, *options: str, code: str = "") -> None:
        super().__init__(["up", "--port", "0", "--arena", "16MiB", "--data", str(data), *options], code=code)

    def ready(self) -> None:
        """Return once it serves; from then on ``endpoint`` is that of its clients."""
        self.endpoint = self.wait_for(r"^  clients +(tcp://\S+)")[1]
        self.wait_for("Ctrl-C ends it")

    def commands(self) -> dict[int, list[str]]:
        """Return the command lines of its children, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # the process has ended
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if words[-3:-1] == ["--parent", str(self.pid)]:
                        found[int(entry.name)] = words
        return found

    def child(self, name: str) -> int:
        """Return the id of the process of that name (controller, gateway, worker-0, ...); 0: none."""
        for pid, words in self.commands().items():
            if name in words[3:4] or ("--name" in words and words[words.index("--name") + 1] == name):
                return pid
        return 0

    def kill_child(self, name: str) -> int:
        """Send SIGKILL; return the time of it."""
        pid = self.child(name)
        assert pid, f"there is no {name}"
        os.kill(pid, signal.SIGKILL)
        return now_ns()

    def workers(self, client: Client) -> list[str]:
        try:
            return sorted(one["name"] for one in client.status()["workers"])
        except ClockworkError:
            return []

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal that ends it, if it has not ended; return its exit status. No child may be left."""
        if self.process.poll() is None:
            self.send(number)
        status = self.wait()
        assert not self.commands()
        assert not session_members(self.pid)
        assert "Traceback" not in self.text, self.text
        return status


@contextlib.contextmanager
def starting(data: Path, *options: str, code: str = "") -> Iterator[Up]:
    """`clockwork up` from its first moment; its processes are killed at the end."""
    up = Up(data, *options, code=code)
    try:
        yield up
    finally:
        up.destroy()


@contextlib.contextmanager
def running(data: Path, *options: str, code: str = "") -> Iterator[Up]:
    """`clockwork up` that serves; its processes are killed at the end."""
    with starting(data, *options, code=code) as up:
        up.ready()
        yield up
