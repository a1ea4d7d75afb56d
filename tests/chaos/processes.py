"""A controller, two workers and a gateway as processes, with a supervisor that restarts those that die."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.links import Link
from clockwork import Client
from clockwork.errors import ClockworkError
from clockwork.system.clock import SECOND, now_ns
from tests.chaos.template import WORKERS, Template
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Program, session_members

ARENA = "14MiB"
"""Arena of each worker: room for two of the large models or four of the small ones, so that models are loaded
and evicted."""

DISK_BYTES = 48 << 20
"""Size of each data directory that is a file system of its own."""

_addresses = itertools.count(1)


def own_address() -> str:
    """Return a loopback address that no other cluster of this machine has.

    On it, ports need not be searched: a port that is free now may be taken by another process before a killed
    controller binds it again.
    """
    number = (os.getpid() << 6) + next(_addresses)
    return f"127.{64 + (number >> 14) % 128}.{(number >> 7) % 128}.{1 + number % 128}"


def first_said(
    printed: Callable[[], Iterable[tuple[str, int]]], pattern: str, since_ns: int, within_s: float
) -> int:
    """Return the time at which a matching line was first printed after the given time; 0 if not in time.

    printed: returns the lines so far, each with the time at which it was read.
    """
    deadline_ns = now_ns() + int(within_s * SECOND)
    pause = threading.Event()
    while True:
        for line, seen_ns in printed():
            if seen_ns >= since_ns and re.search(pattern, line):
                return seen_ns
        if now_ns() > deadline_ns:
            return 0
        pause.wait(0.01)


class Supervised:
    """A process that is restarted as soon as it has ended, unless it is held down."""

    def __init__(self, name: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.environment = environment
        self.programs: list[Program] = []
        self.exits_ns: list[int] = []  # time at which the end of each program but the last was seen
        self._may_run = threading.Event()
        self._may_run.set()
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._start()
        self._thread.start()

    @property
    def program(self) -> Program:
        return self.programs[-1]

    @property
    def starts(self) -> int:
        return len(self.programs)

    def said(self, pattern: str, since_ns: int, within_s: float = PATIENCE_S) -> int:
        """Return the time at which any of the programs first printed a matching line; see first_said()."""
        return first_said(
            lambda: (line for program in [*self.programs] for line in zip(program.lines, program.seen_ns)),
            pattern,
            since_ns,
            within_s,
        )

    def end(self, number: int) -> int:
        """Send a signal that ends the process; return the time at which its end was noticed."""
        count = len(self.exits_ns)
        self.program.send(number)
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.exits_ns) > count, PATIENCE_S), (
                f"{self.name} did not end"
            )
        return self.exits_ns[count]

    def hold(self) -> None:
        """Keep the process from being restarted until release()."""
        self._may_run.clear()

    def release(self) -> None:
        self._may_run.set()

    def stop(self) -> int:
        """Ask the process to end for good; return its exit status."""
        self._stopping = True
        self._may_run.set()
        program = self.program
        if program.process.poll() is None:
            program.send(signal.SIGCONT)
            program.send(signal.SIGTERM)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"{self.name} did not end"
        return self.program.wait()

    def destroy(self) -> None:
        self._stopping = True
        self._may_run.set()
        for program in list(self.programs):
            program.destroy()

    def _start(self) -> None:
        self.programs.append(Program(self.arguments, self.environment))

    def _supervise(self) -> None:
        while True:
            self.program.process.wait()
            noticed_ns = now_ns()
            with self._changed:
                self.exits_ns.append(noticed_ns)
                self._changed.notify_all()
            self._may_run.wait()
            if self._stopping:
                return
            self._start()


@dataclasses.dataclass(slots=True)
class Usage:
    """The resources that a process holds."""

    rss_bytes: int
    descriptors: int
    threads: int
    sockets: int


def usage(pid: int) -> Usage | None:
    """Return the resources of a process; None once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        targets = []
        for entry in os.listdir(f"/proc/{pid}/fd"):
            try:
                targets.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
            except FileNotFoundError:  # the descriptor was closed meanwhile
                continue
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return Usage(
        int(fields["VmRSS"].split()[0]) << 10,
        len(targets),
        int(fields["Threads"]),
        sum(target.startswith("socket:") for target in targets),
    )


CLONE_NEWNS = 0x00020000


def isolate() -> bool:
    """Give this process a mount namespace with a /dev/shm of its own: mounts vanish with its last process,
    and files left in shared memory belong to this cluster. False if the process lacks the right."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0:
        return False
    commands = (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"])
    return all(subprocess.run(command, capture_output=True).returncode == 0 for command in commands)


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


class World:
    """A cluster with its links.

    Every worker reaches the controller over a link of its own; so does a single client.
    """

    def __init__(
        self,
        root: Path,
        template: Template,
        *,
        preload: Callable[[str], dict[str, str]] | None = None,
        arena: str = ARENA,
        own_disks: bool = False,
    ) -> None:
        """root: an empty directory. preload: additional environment for the process of that name. own_disks:
        give each data directory a small file system of its own, where this process may."""
        self.root = root
        self.template = template
        self.temporary = root / "tmp"
        self.temporary.mkdir(parents=True)
        self._mounts: list[Path] = []
        if own_disks:
            self._mount("controller", *(f"worker-{index}" for index in range(WORKERS)))
        template.copy(root)
        self.address = address = own_address()
        self.endpoint = f"tcp://{address}:5555"
        self.worker_endpoint = f"tcp://{address}:5556"
        self.gateway_address = (address, 8000)
        self._environment = {"TMPDIR": str(self.temporary)}
        self.others: list[Program] = []
        self.links: list[Link] = []
        self.supervised: list[Supervised] = []
        self.workers: list[Supervised] = []
        self.worker_links: list[Link] = []
        try:
            self._start(arena, preload or (lambda name: {}))
            self.client = Client(self.endpoint, timeout=PATIENCE_S, name="harness")
            for worker in self.workers:
                assert worker.said("serves controller", 0), worker.program.so_far
            assert self.gateway.said(" listens: ", 0), self.gateway.program.so_far
        except BaseException:
            self.destroy()
            raise

    def _start(self, arena: str, more: Callable[[str], dict[str, str]]) -> None:
        """Start all processes, and the links between them."""
        # The flight recorder's ring is touched as it fills, 135 bytes a request: a small ring is full before
        # a soak measures growth.
        self.controller = self._supervise("controller", [
            "controller", "--listen", self.endpoint, "--worker-listen", self.worker_endpoint,
            "--events", f"tcp://{self.address}:5557", "--data", str(self.root / "controller"), "--policy", "edf",
            "--recorder-bytes", "1MiB",
        ], more)  # fmt: skip
        assert self.controller.said("listens for clients", 0), self.controller.program.so_far
        self.worker_links = [self._link(self.worker_endpoint) for _ in range(WORKERS)]
        self.client_link = self._link(self.endpoint)
        for index, link in enumerate(self.worker_links):
            name = f"worker-{index}"
            self.workers.append(self._supervise(name, [
                "worker", "--connect", link.endpoint, "--arena", arena, "--page-size", "256KiB",
                "--store", str(self.root / name), "--name", name,
            ], more))  # fmt: skip
        self.gateway = self._supervise("gateway", [
            "gateway", "--connect", self.endpoint, "--host", self.address, "--http-port", "8000",
            "--grpc-port", "off", "--metrics-port", "off",
        ], more)  # fmt: skip

    def _mount(self, *names: str) -> None:
        for name in names:
            path = self.root / name
            path.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
            if subprocess.run(command, capture_output=True).returncode != 0:
                return  # no right to mount; faults that need it report that
            self._mounts.append(path)

    def _supervise(
        self, name: str, arguments: Sequence[str], more: Callable[[str], dict[str, str]]
    ) -> Supervised:
        one = Supervised(name, arguments, {**self._environment, **more(name)})
        self.supervised.append(one)
        return one

    def _link(self, target: str) -> Link:
        link = Link(target)
        self.links.append(link)
        return link

    def program(self, arguments: Sequence[str], *, module: str) -> Program:
        """Start a process beside the cluster: ``python -m module arguments``."""
        code = "import runpy, sys; sys.argv[0] = sys.argv.pop(1); runpy.run_module(sys.argv[0], run_name='__main__')"
        environment = {**self._environment, "ORT_DISABLE_TELEMETRY": "1"}
        program = Program([module, *arguments], environment, code=code)
        self.others.append(program)
        return program

    def whole(self) -> bool:
        """Whether both workers serve every model of the template."""
        try:
            status = self.client.status(timeout=2.0)
            models = [self.client.model(name, timeout=2.0) for name in self.template.models]
        except ClockworkError:
            return False
        return len(status["workers"]) == WORKERS and all(
            list(model.raw["workers"].values()) == ["ready"] * WORKERS for model in models
        )

    def wait_until_whole(self, within_s: float = PATIENCE_S) -> None:
        eventually(self.whole, "both workers serve every model", within_s)

    def stop(self) -> list[str]:
        """End everything in order; return a sentence for each process that did not end well, or left
        something."""
        self.client.close()
        wrong = self._end()
        for link in self.links:
            link.close()
        for one in self.supervised:
            for program in one.programs:
                if "Traceback" in program.text:
                    wrong.append(f"{one.name} printed a traceback: {program.text[-3000:]}")
        for program in [*self.others, *(program for one in self.supervised for program in one.programs)]:
            try:
                eventually(lambda: not session_members(program.pid), "its descendants end")  # noqa: B023
            except AssertionError:
                wrong.append(
                    f"descendants of {program.process.args[1:4]} are left: {session_members(program.pid)}"
                )
        wrong += [f"left in TMPDIR: {entry.name}" for entry in self.temporary.iterdir()]
        return wrong

    def _end(self) -> list[str]:
        """Have every process end; return a sentence for each that failed to."""
        wrong = []
        for one in [self.gateway, *self.workers, self.controller]:
            status = one.stop()
            if status != 0:
                wrong.append(f"{one.name} ended with status {status}: {one.program.text[-1500:]}")
        return wrong

    def destroy(self) -> None:
        """Kill all processes; safe after stop()."""
        for program in self.others:
            program.destroy()
        for one in self.supervised:
            one.destroy()
        for link in self.links:
            link.close()
        while self._mounts:
            # Unmounted lazily and repeatedly: a fault that was cut short may have left bind mounts of its
            # directories.
            subprocess.run(["umount", "--lazy", "--recursive", str(self._mounts.pop())], check=True)
