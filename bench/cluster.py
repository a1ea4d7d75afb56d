"""A controller and workers as processes for a benchmark: free ports, a temporary data directory, an orderly
end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from clockwork.client.blocking import Client
from clockwork.errors import ClockworkError, ConnectionLost
from clockwork.launch.local import held_ports
from clockwork.system.clock import SECOND, now_ns

READY_NS = 60 * SECOND
STOP_S = 3.0
POLL_S = 0.02
ARENA = "256M"
"""Default arena: touching all pages of a large one takes seconds."""


class Site(Protocol):
    """The networks in which the processes of a cluster run."""

    def endpoints(self, data: Path) -> tuple[str, str, str]:
        """Where the controller listens for clients, workers and subscribers of events."""
        ...

    def enter(self, name: str) -> Sequence[str]:
        """The words before the command of a process, "controller" or a worker's name, which keeps its id."""
        ...


class Cluster:
    """A controller and workers; use as a context manager.

    worker_arguments: further flags of every worker, such as ("--arena", "512M"). controller_arguments:
    further flags of the controller. controller: the interpreter's arguments that start it, up to its flags.
    directory: the checkout of the controller; None for this one. through: maps the controller's endpoint to
    the one that workers dial, for a link between them; None for the same. data: the data directory; None for
    a temporary one that is removed at the end. site: the networks of the processes; None: they share this
    machine's, and listen on loopback.
    """

    def __init__(
        self,
        workers: int = 1,
        worker_arguments: Sequence[str] = (),
        data: Path | None = None,
        controller_arguments: Sequence[str] = (),
        controller: Sequence[str] = ("-m", "clockwork", "controller"),
        directory: str | None = None,
        through: Callable[[str], str] | None = None,
        site: Site | None = None,
    ) -> None:
        self._kept = data is not None
        self.data = data if data is not None else Path(tempfile.mkdtemp(prefix="clockwork-bench-"))
        # one executor, whatever the machine, unless a flag says otherwise
        self._worker_arguments = ["--arena", ARENA, "--executors", "1", *worker_arguments]
        self._controller_arguments = list(controller_arguments)
        self._controller_command = list(controller)
        self._directory = directory
        self._through = through
        self._site = site
        self.controller: subprocess.Popen[bytes]
        self.workers: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
        self._worker_count = workers
        self._held = contextlib.ExitStack()  # releases the reserved ports
        self.endpoint = self.worker_endpoint = self.events_endpoint = self._dialled = ""

    def start(self) -> int:
        """Start everything. Returns the nanoseconds until all workers had joined and no model was in
        preparation.
        """
        started_ns = now_ns()
        if self._site is not None:
            clients, dialled, events = self._site.endpoints(self.data)
        else:
            ports = self._held.enter_context(held_ports(3))
            clients, dialled, events = (f"tcp://127.0.0.1:{port}" for port in ports)
        self.endpoint, self.worker_endpoint, self.events_endpoint = clients, dialled, events
        arguments = ["--listen", clients, "--worker-listen", dialled, "--events", events]
        dialled = self._through(dialled) if self._through else dialled
        self._dialled = dialled
        self.controller = self._spawn(
            "controller", [*arguments, "--data", str(self.data), *self._controller_arguments]
        )
        self.workers = []
        for index in range(self._worker_count):
            self._start_worker(f"worker-{index}", self.data, self._worker_arguments)
        pause = threading.Event()
        with self.client() as client:
            while True:
                try:
                    status = client.status(timeout=30.0)
                    if len(status["workers"]) >= self._worker_count and not status["models"].get("preparing"):
                        return now_ns() - started_ns
                except ConnectionLost:
                    pass  # the controller still reads its models: thousands of records from a cold disk
                except ClockworkError as error:
                    self.stop()
                    raise RuntimeError(f"the cluster does not start: {error}\n{self.log()}") from error
                self._check()
                if now_ns() - started_ns > READY_NS:
                    raise TimeoutError(f"the cluster was not ready in time:\n{self.log()}")
                pause.wait(POLL_S)

    def _start_worker(self, name: str, store: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        flags = ["--connect", self._dialled, "--name", name, "--store", str(store), *arguments]
        self.workers.append(self._spawn(name, flags))
        return self.workers[-1]

    def add_worker(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a further worker, with a store of its own, and do not wait for it."""
        return self._start_worker(name, self.data / name, arguments)

    def remove_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Have a worker leave in order, and wait for its end."""
        worker.send_signal(signal.SIGTERM)
        worker.wait()
        self.workers.remove(worker)

    def client(self, **options: Any) -> Client:
        return Client(self.endpoint, **{"timeout": 120.0, "name": "bench", **options})

    def stop(self) -> None:
        """End every process, by SIGKILL if it does not end in order."""
        children = [*self.workers, *([self.controller] if hasattr(self, "controller") else [])]
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        for child in children:
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        self.workers = []
        for log in self._logs:
            log.close()
        self._logs.clear()
        self._held.close()

    def close(self) -> None:
        """stop(), and remove the data directory unless it was given."""
        self.stop()
        if not self._kept:
            shutil.rmtree(self.data, ignore_errors=True)

    def log(self) -> str:
        """The output of the processes so far."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.data.glob("*.log"))

    def rss_bytes(self) -> tuple[int, int]:
        """Resident memory of the controller and of the workers together."""
        return rss_bytes(self.controller.pid), sum(rss_bytes(worker.pid) for worker in self.workers)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spawn(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        log = (self.data / f"{name}.log").open("ab")
        self._logs.append(log)
        command = self._controller_command if name == "controller" else ["-m", "clockwork", "worker"]
        elsewhere = self._directory if name == "controller" else None
        before = self._site.enter(name) if self._site is not None else ()
        return subprocess.Popen(
            [*before, sys.executable, *command, *arguments, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=elsewhere,
            env={**os.environ, **({"PYTHONPATH": elsewhere} if elsewhere else {})},
        )

    def _check(self) -> None:
        for child in [self.controller, *self.workers]:
            if child.poll() is not None:
                raise RuntimeError(f"a process ended with status {child.returncode}:\n{self.log()}")


def loads_of(client: Client) -> int:
    """LOADs that all workers have been sent so far."""
    return sum(int(worker["sent"].get("load", 0)) for worker in client.status()["workers"])


# ----- open-loop load from a process of its own -------------------------------------------------


def start_load(
    cluster: Cluster, models: Sequence[str], rate: float, seconds: float, seed: int, slo_s: float, *flags: str
) -> subprocess.Popen[str]:
    """Start `clockwork load`. rate: requests/s. flags: further flags of the command."""
    command = [
        *(sys.executable, "-m", "clockwork", "load", "--endpoint", cluster.endpoint, *models),
        *("--rate", f"{rate:.3f}", "--duration", f"{seconds:g}", "--slo", f"{slo_s:g}"),
        *("--seed", str(seed), "--json", *flags),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_load(
    cluster: Cluster, child: subprocess.Popen[str], seconds: float, patience_s: float = 60.0
) -> dict[str, Any]:
    """Return the report of a load of ``seconds``. Raises RuntimeError if it failed, or takes patience_s
    longer."""
    try:
        out, errors = child.communicate(timeout=seconds + patience_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise RuntimeError(f"the load generator did not end:\n{cluster.log()}") from None
    if child.returncode:
        raise RuntimeError(f"the load generator failed: {errors}\n{cluster.log()}")
    found: dict[str, Any] = json.loads(out)
    return found


def offer_zipf(
    cluster: Cluster,
    models: Sequence[str],
    rate: float,
    seconds: float,
    seed: int,
    slo_s: float,
    zipf: float,
    patience_s: float = 60.0,
) -> dict[str, Any]:
    """Offer requests to models, of which the popular ones are drawn by the seed. Returns the report."""
    shuffled = list(models)
    random.Random(seed).shuffle(shuffled)
    child = start_load(cluster, shuffled, rate, seconds, seed, slo_s, "--zipf", f"{zipf:g}")
    return finish_load(cluster, child, seconds, patience_s)


# ----- the system's figures of a process --------------------------------------------------------


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def thread_cpu_s(pid: int) -> dict[str, float]:
    """Processor time of each current thread of a process, in ns, by thread name."""
    found: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        found[name] = found.get(name, 0.0) + int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def exact_cpu_s(pid: int) -> float:
    """Processor time that a running process has used so far, in ns and not in ticks."""
    return time.clock_gettime((~pid << 3) | 2)  # the id that clock_getcpuclockid() returns


def cpu_s(pid: int) -> float:
    """Processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
