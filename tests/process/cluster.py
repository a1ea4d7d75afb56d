"""A whole cluster of real processes for a test: a controller and workers, started as a user starts them.

At the end every process is stopped, and the fixture asserts that none is left, that each ended with
status 0, and that the directory for temporary files is as empty as before.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime

from clockwork import Client
from clockwork.launch.local import held_ports
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.description import ClusterStatus
from tests.patience import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
ANYWHERE = "tcp://127.0.0.1:0"

_LISTENS = re.compile(r"listens for clients on (\S+) and for workers on (\S+);")
_JOINED = re.compile(r"\S+ serves controller \S+ as worker \d+")


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))
        return True
    return False


class Program:
    """A process and its output. Its descendants share its session, by which they are found."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: dict[str, str] | None = None,
        *,
        code: str = "",
        root: Path = ROOT,
    ) -> None:
        """Start ``python -m clockwork <arguments>``, or ``python -c <code> <arguments>``.

        root: the checkout that it is of."""
        self.lines: list[str] = []
        self.seen_ns: list[int] = []  # time at which each line was read
        self._changed = threading.Condition()
        self._over = False
        self.process = subprocess.Popen(
            [sys.executable, *(["-c", code] if code else ["-m", "clockwork"]), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=root,
            env={**clean_environment(), **(environment or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        """All that it printed. It must have ended: of a running process, `wait_for` awaits a line."""
        if self.process.poll() is not None:
            self._reader.join(PATIENCE_S)  # its descendants may still hold its output
        assert self._over, f"{self.process.args} still runs; it has printed:\n{self.so_far}"
        return self.so_far

    @property
    def so_far(self) -> str:
        """Its lines that were read until now, for messages."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str | re.Pattern[str], after: int = 0) -> re.Match[str]:
        """Return the first line that matches; only lines from index ``after`` on count."""
        index = after
        deadline_ns = now_ns() + int(PATIENCE_S * SECOND)
        with self._changed:
            while True:
                for line in self.lines[index:]:
                    if match := re.search(pattern, line):
                        return match
                index = len(self.lines)
                assert not self._over, f"it ended without saying {pattern!r}:\n{self.so_far}"
                left_s = (deadline_ns - now_ns()) / SECOND
                assert left_s > 0, f"it did not say {pattern!r}:\n{self.so_far}"
                self._changed.wait(left_s)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Return its exit status, once all of its output has been read."""
        try:
            status = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.process.args} did not end:\n{self.so_far}") from None
        self._reader.join(PATIENCE_S)
        return status

    def stop(self) -> int:
        """Ask it to end, and wait."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        self.process.wait()

    def destroy(self) -> None:
        """Kill it and all its descendants, whatever state they are in."""
        for pid in session_members(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for raw in stream:
                with self._changed:
                    self.lines.append(raw.decode(errors="replace").rstrip())
                    self.seen_ns.append(now_ns())
                    self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that would lead a test's processes to another cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CLOCKWORK_")}


def session_members(session: int) -> list[int]:
    """Return the processes of that session that are not zombies."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process may end meanwhile
                state, _, _, member = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(member) == session and state not in "ZX":
                    members.append(int(entry.name))
    return members


class Cluster:
    """A controller and its workers, on ports that were free."""

    def __init__(self, data: Path, options: Sequence[str] = ()) -> None:
        self.data = data
        self.temporary = data / "tmp"
        self.temporary.mkdir(parents=True)
        self.workers: list[Program] = []
        self._programs: list[Program] = []
        self._killed: list[Program] = []
        self._options = list(options)
        self._held = contextlib.ExitStack()
        ports = self._held.enter_context(held_ports(2))  # a restarted controller gets the same ports again
        self.endpoint, self.worker_endpoint = (f"tcp://127.0.0.1:{port}" for port in ports)
        self.start_controller()

    def start_controller(self) -> None:
        """Start the controller, at the same endpoints as before if there was one."""
        self.controller = self.program([
            "controller", "--listen", self.endpoint, "--worker-listen", self.worker_endpoint,
            "--events", ANYWHERE, "--data", str(self.data / "controller"), *self._options,
        ])  # fmt: skip
        self.endpoint, self.worker_endpoint = self.controller.wait_for(_LISTENS).groups()

    def start_worker(
        self,
        *options: str,
        arena: str = "64MiB",
        name: str = "",
        store: str = "worker",
        endpoint: str = "",
        wait: bool = True,
        environment: dict[str, str] | None = None,
    ) -> Program:
        """Start a worker, and (wait) return once the controller has accepted it."""
        worker = self.program([
            "worker", "--connect", endpoint or self.worker_endpoint, "--arena", arena, "--page-size", "256KiB",
            "--executors", "1",  # on any machine, unless the options say otherwise
            "--store", str(self.data / store), "--name", name or f"worker-{len(self.workers)}", *options,
        ], environment=environment)  # fmt: skip
        self.workers.append(worker)
        if wait:
            worker.wait_for(_JOINED)
        return worker

    def program(
        self, arguments: Sequence[str], *, code: str = "", environment: dict[str, str] | None = None
    ) -> Program:
        """Register a process that must be gone when the test ends."""
        program = Program(arguments, {"TMPDIR": str(self.temporary), **(environment or {})}, code=code)
        self._programs.append(program)
        return program

    def kill(self, program: Program) -> None:
        """Kill a worker; the processes that it started must end by themselves."""
        program.kill()
        self._killed.append(program)

    def client(self, **more: Any) -> Client:
        more.setdefault("timeout", PATIENCE_S)
        return Client(self.endpoint, **more)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command of the CLI on this cluster; return (exit status, output)."""
        program = self.program([*arguments, "--endpoint", self.endpoint])
        return program.wait(), program.text

    def check_end(self) -> None:
        """Stop everything in order; assert that it ends well and leaves nothing."""
        for worker in self.workers:
            if worker not in self._killed:
                assert worker.stop() == 0, worker.text
        for program in self._programs:
            if program not in self._killed and program is not self.controller:
                program.wait()
        if self.controller not in self._killed:
            assert self.controller.stop() == 0, self.controller.text
        for program in self._programs:
            eventually(
                lambda: not session_members(program.pid),  # noqa: B023
                f"descendants of {program.process.args} end",
            )
            assert "Traceback" not in program.text, program.text
        assert not list(self.temporary.iterdir())

    def destroy(self) -> None:
        for program in self._programs:
            program.destroy()
        self._held.close()


AnyCluster = TypeVar("AnyCluster", bound=Cluster)


@contextlib.contextmanager
def ending_well(cluster: AnyCluster) -> Iterator[AnyCluster]:
    """Yield a cluster, which must end well. Its processes' lines are printed where the block fails, and none
    of them is left."""
    try:
        try:
            yield cluster
        except BaseException:
            for program in cluster._programs:
                print(f"--- {program.process.args[1:]}\n{program.so_far[-6000:]}")
            raise
        cluster.check_end()
    finally:
        cluster.destroy()


@contextlib.contextmanager
def running_cluster(
    data: Path, workers: int = 1, controller_options: Sequence[str] = (), **worker_options: Any
) -> Iterator[Cluster]:
    """A running cluster; see the module."""
    with ending_well(Cluster(data, controller_options)) as cluster:
        for _ in range(workers):
            cluster.start_worker(**worker_options, wait=False)
        for worker in cluster.workers:
            worker.wait_for(_JOINED)
        yield cluster


# ----- models and what they should answer -------------------------------------------------------


class Reference:
    """A model in plain ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """Return the first output. A single array is the first input."""
        if not isinstance(inputs, dict):
            inputs = {self._session.get_inputs()[0].name: inputs}
        return np.asarray(self._session.run(None, inputs)[0])


def same(answer: Any, expected: np.ndarray) -> bool:
    """Whether values are equal within a relative 1e-4 of the largest value, and have the same shape and
    type."""
    answer = np.asarray(answer)
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return (
        answer.shape == expected.shape
        and answer.dtype == expected.dtype
        and bool(np.all(np.abs(answer - expected) <= 1e-4 * scale))
    )


def total_results(status: ClusterStatus, outcome: str) -> int:
    """Return the number of results of that status over all workers, as the controller counted them."""
    return sum(worker["results"].get(outcome, 0) for worker in status["workers"])


def total_sent(status: ClusterStatus, kind: str) -> int:
    """Return the number of actions of that kind sent to the present workers."""
    return sum(worker["sent"].get(kind, 0) for worker in status["workers"])
