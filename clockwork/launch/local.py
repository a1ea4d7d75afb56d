"""``clockwork up``: a controller, workers and a gateway as child processes.

A child that ends is restarted (see clockwork.launch.restarts) while the others go on. Each child has a
session of its own, so that Ctrl-C reaches only this process, which ends the children in order. If this
process is killed, the kernel ends the children (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import errno
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from clockwork import config
from clockwork.config.launch import (
    DIVISION_JOINED_NS,
    DIVISION_WHOLE_NS,
    DRAIN_NS,
    FOUND_SHOWN,
    HELD_PORT_ATTEMPTS,
    LAST_LINES,
    READY_NS,
    STOP_NS,
    STOP_WORKERS_NS,
    WORKER_LEAVES_NS,
)
from clockwork.errors import ClockworkError, ConfigError, ConnectionLost, ModelNotFound
from clockwork.launch.cores import CoreWatch, DividedCores
from clockwork.launch.lines import read_line
from clockwork.launch.restarts import Restarts
from clockwork.scheduler.cores import Division
from clockwork.system.clock import SECOND, now_ns, to_seconds
from clockwork.system.words import say_count
from clockwork.wire.keys import CONTROLLER_KEY_FILE, key_file_of
from clockwork.wire.roles import Role

POLL_S = 0.05

DEMO_MODEL = "digits"
PR_SET_PDEATHSIG = 1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Signals that request the end

GATEWAY_PORTS = ("http", "grpc", "metrics")  # The gateway's servers, in the order of their flags


@dataclasses.dataclass(slots=True)
class UpSettings:
    """The settings of the cluster to start."""

    workers: int = 1
    controllers: int = 1  # one is active, the others are standbys
    host: str = "127.0.0.1"
    # Port for clients; the next two are for workers and events, the next three for the next controller. 0:
    # any free ports
    port: int = 5555
    data: Path = dataclasses.field(default_factory=config.data_directory)
    package_arguments: tuple[str, ...] = ()  # the controller's, about where packages are kept
    policy: str = config.POLICY
    memory: str = ""  # policy of loads and evictions; "": the policy's own
    options: tuple[str, ...] = ()  # options of the policy, each NAME=NUMBER
    keys: Path | None = None  # directory made by `clockwork keys new`
    insecure: bool = False
    demo: bool = True
    profiles: str = ""  # a file of profiles to register on emulated devices, or "paper"
    copies: int = 1  # copies of each profile
    verbose: bool = False
    worker_arguments: tuple[str, ...] = ()
    own_arguments: tuple[tuple[str, ...], ...] = ()  # of each worker, in addition; (): none
    own_stores: bool = False  # whether each worker has a store of its own: those with a bound are not shared
    gateway: bool = True
    cores: DividedCores | None = None  # the cores that are divided by what models need; None: they are not
    gateway_ports: tuple[str, ...] = ("8000", "8001", "8002")  # HTTP, gRPC, metrics; "off": none
    gateway_arguments: tuple[str, ...] = ()


class Stop(BaseException):
    """A signal requested the end."""


class ChildEnded(BaseException):
    """A child has ended, and must be restarted or given up."""


class GivenUp(BaseException):
    """A child that the cluster needs has ended, and a restart would not help. The text names the child and
    its end."""


def how_it_ended(status: int) -> str:
    """Return a process's exit status in words."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _subject(name: str) -> str:
    """Return a child's name as the begin of a sentence: "The controller", or the name itself for
    "worker-0"."""
    return name if name.startswith(("worker-", "controller-")) else f"The {name}"


def die_with(parent: int) -> None:
    """Make the kernel end this process (SIGTERM) when its parent ends. Exits if the parent has ended
    already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(1)


class AnyChild(Protocol):
    """The interface of a child to its cluster, on whichever machine the child runs."""

    name: str
    lines: collections.deque[str]

    @property
    def status(self) -> int: ...
    @property
    def serves(self) -> str: ...
    @property
    def settled(self) -> str: ...
    @property
    def stands_by(self) -> bool: ...
    @property
    def lost(self) -> bool: ...
    def ended(self) -> bool: ...
    def signal(self, number: int) -> None: ...
    def end(self) -> None: ...


class ChildOutput:
    """The last lines of a child's output, and its reports among them."""

    def __init__(self, name: str, say: Callable[[str], None], verbose: bool) -> None:
        self.name = name
        self.lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self.serves = ""  # first line by which the child reports that it serves; see lines.py
        self.settled = ""  # first line that reports the repositories' start; see lines.py
        self.stands_by = False  # whether it has reported that it is a standby
        self.lost = False  # whether the child was lost with its machine; a local child never is
        self._say = say
        self._verbose = verbose

    def _take(self, line: str) -> None:
        self.lines.append(line)
        found = read_line(self.name, line)
        self.serves = self.serves or found.serves
        self.settled = self.settled or found.settled
        self.stands_by = self.stands_by or found.stands_by
        if self._verbose or not found.is_routine:
            self._say(found.shown)


class Child(ChildOutput):
    """A process of the cluster."""

    def __init__(self, name: str, arguments: list[str], say: Callable[[str], None], verbose: bool) -> None:
        super().__init__(name, say, verbose)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clockwork", *arguments, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ended(self) -> bool:
        """Return whether the process has ended. It is not reaped, so that its process group still exists."""
        if self.process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    @property
    def status(self) -> int:
        """Exit status, after end()."""
        return int(self.process.returncode)

    def signal(self, number: int) -> None:
        if not self.ended():
            self.process.send_signal(number)

    def end(self) -> None:
        """Kill the process group, with helpers, and reap the process."""
        if self.process.returncode is not None:
            return  # the process id may belong to another process by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(1.0)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for raw in stream:
                self._take(raw.decode(errors="replace").rstrip())


@dataclasses.dataclass(slots=True)
class ChildSlot:
    """A child's place in the cluster, whichever process is in it."""

    name: str
    arguments: list[str]
    child: AnyChild
    begun_ns: int
    restarts: Restarts = dataclasses.field(default_factory=Restarts)
    due_ns: int | None = None  # time of the next start; None: a process runs, or the seat was given up
    is_given_up: bool = False
    is_leaving: bool = False  # whether it was told to end, as another takes its place


def up(
    settings: UpSettings, say: Callable[[str], None], kind: Callable[..., ProcessCluster] | None = None
) -> int:
    """Run a cluster in the foreground. Returns the exit status.

    The cluster ends by a signal, or when a child that it needs is given up.
    """
    with contextlib.ExitStack() as stack:
        ports = [settings.port + index for index in range(3 * settings.controllers)]
        if settings.port == 0:
            ports = stack.enter_context(held_ports(len(ports)))
        cluster = (kind or ProcessCluster)(settings, _endpoints(settings, ports), say)
        stack.callback(cluster.stop)
        try:
            with cluster.signals():
                cluster.start()
                cluster.get_ready()
                cluster.greet()
                while True:
                    cluster.wait_for_signal()
                    cluster.mend()
                    cluster.divide()
        except Stop:
            say("Stopping ...")
            return 0
        except GivenUp as end:
            say(str(end))
            return 1


class ProcessCluster:
    """A cluster of child processes."""

    stop_workers_ns = STOP_WORKERS_NS
    stop_ns = STOP_NS
    drain_ns = DRAIN_NS
    ready_ns = READY_NS

    def __init__(
        self, settings: UpSettings, endpoints: tuple[str, str, str], say: Callable[[str], None]
    ) -> None:
        """endpoints: for clients, workers and events, with commas between those of several controllers."""
        self.started_ns = now_ns()
        self._settings = settings
        self._endpoints = endpoints
        self._say = say
        self._seats: list[ChildSlot] = []  # slots of the children, the controllers' first
        # the last of the controllers' arguments until the cluster is ready
        self._awaits_models: list[str] = []
        self._gateway: ChildSlot | None = None
        self._found = ""  # models from earlier starts, for people
        self._armed = False  # whether a signal may interrupt the main thread
        self._awaits = False  # whether a child's end may interrupt the main thread
        self._is_ready = False
        self._stopping = False
        self._watch: CoreWatch | None = None
        self._division: Division | None = None  # the division to which the workers that come belong
        self._coming: list[ChildSlot] = []  # workers of a new division, until they take the others' place
        self._worker_count = 0  # workers that were started; each has a number of its own
        self._wakeup = -1  # reading end of a pipe into which every signal writes a byte

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn signals into exceptions of the main thread while the block runs."""
        self._wakeup, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        numbers = (*ENDING, signal.SIGCHLD)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            self._armed = False
            # A second Ctrl-C must not interrupt the clean-up.
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if number != signal.SIGCHLD else handler)
            signal.set_wakeup_fd(-1)
            os.close(writing)
            os.close(self._wakeup)

    def greet(self) -> None:
        """Print the addresses of the cluster, once it is ready."""
        rows = [("models", self._gateway.child.settled)] if self._gateway is not None else []
        rows.append(("found", self._found and f"{self._found}, from earlier starts"))
        rows = [row for row in rows if row[1]]
        _greet(self._settings, self._endpoints, self.gateway_urls() + rows, self._say, self.started_ns)

    def wait_for_signal(self) -> None:
        """Return after a signal, or when a child is due to be restarted. A signal before the wait counts,
        too.

        ``signal.pause`` would miss a signal that arrives between the interpreter's last check and the system
        call: its handler, in Python, runs only after the next signal.
        """
        due = [seat.due_ns for seat in self._seats if seat.due_ns is not None]
        due += [seat.begun_ns + WORKER_LEAVES_NS for seat in self._seats if seat.is_leaving]
        timeout_s = max(0.0, to_seconds(min(due) - now_ns())) if due else None
        watched = [] if self._watch is None else [self._watch.fileno()]
        ready = select.select([self._wakeup, *watched], [], [], timeout_s)[0]
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if self._watch is not None:
            self._watch.settle()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = self._stopping or number != signal.SIGCHLD
        if self._armed:
            self._interrupt()

    def _interrupt(self) -> None:
        """Raise Stop or ChildEnded if a pending signal requires it."""
        if self._stopping:
            self._armed = False
            raise Stop
        if self._awaits and any(
            seat.due_ns is None and not (seat.is_leaving or seat.is_given_up) and seat.child.ended()
            for seat in self._seats
        ):
            self._awaits = False
            raise ChildEnded

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Delay the exceptions of signals until the block has ended, so that no step is left half done."""
        armed, self._armed = self._armed, False
        try:
            yield
        finally:
            self._armed = armed
        if armed:
            self._interrupt()

    def get_ready(self) -> None:
        """Wait until every process serves and every model is ready. Children that end meanwhile are
        restarted."""
        while not self._is_ready:
            try:
                self._awaits = True
                self.mend()
                self.wait_until_ready()
                self._awaits = False
                self._is_ready = True
                for seat in self._seats:
                    seat.restarts.served()
            except ChildEnded:
                self.mend()
            except ConnectionLost:
                self._awaits = False
                if not self._wait_for_controller_end():
                    raise
                self.mend()
            # the cluster cannot be ready before the restart
            while any(seat.due_ns is not None for seat in self._seats):
                self.wait_for_signal()
                self.mend()
        self._settle_ports()
        # A restarted controller must not wait for a model that was removed since.
        for seat in self._controllers:
            del seat.arguments[len(seat.arguments) - len(self._awaits_models) :]

    @property
    def _controllers(self) -> list[ChildSlot]:
        return self._seats[: self._settings.controllers]

    def _wait_for_controller_end(self) -> bool:
        """Return whether a controller has ended. Waits up to a second, as its connections may end before
        it."""
        pause, limit_ns = threading.Event(), now_ns() + SECOND
        while now_ns() < limit_ns:
            with self._undisturbed():
                if any(seat.child.ended() for seat in self._controllers):
                    return True
            pause.wait(POLL_S)
        return False

    def mend(self) -> None:
        """Restart the children that have ended and are due. Raises GivenUp."""
        with self._undisturbed():
            for seat in self._seats:
                if seat.is_leaving:
                    continue
                if seat.due_ns is None and not seat.is_given_up and seat.child.ended():
                    self._decide(seat)
                if seat.due_ns is not None and now_ns() >= seat.due_ns:
                    seat.due_ns = None
                    seat.begun_ns = now_ns()
                    seat.child = self._place(seat.name, seat.arguments)

    def _decide(self, seat: ChildSlot) -> None:
        """Set the time of a child's restart after its end, or give its seat up. Raises GivenUp."""
        child = seat.child
        child.end()  # ends the child's helpers, and its output
        now = now_ns()
        how = "was lost with its machine" if child.lost else how_it_ended(child.status)
        has_served = bool(child.serves) or child.stands_by or child.lost
        due_ns = seat.restarts.next_ns(now, seat.begun_ns, has_served, child.status)
        if due_ns is not None:
            pause_s = to_seconds(due_ns - now)
            after = f" in {pause_s:g} s" if pause_s > 0 else ""
            self._say(f"{_subject(seat.name)} {how}; it is started again{after}.")
            seat.due_ns = due_ns
            return
        seat.is_given_up = True
        last = "".join(f"\n  {line}" for line in child.lines.copy())  # a helper may still write
        end = f"{_subject(seat.name)} {how}.{' Its last lines:' if last else ''}{last}"
        if seat in self._coming:
            self._say(f"{end}\nIt is given up.")
            return
        workers = [other for other in self._workers if not other.is_given_up]
        is_last = all(controller.is_given_up for controller in self._controllers)
        if not self._is_ready or is_last or seat is self._gateway or not workers:
            raise GivenUp(end)
        if seat in self._controllers:
            self._say(f"{end}\nIt is given up.")
            return
        self._say(f"{end}\nIt is given up; {len(workers)} of {len(self._workers)} workers are left.")

    def start(self) -> None:
        settings = self._settings
        clients = self._endpoints[0]
        controllers = (
            say_count(settings.controllers, "controller") if settings.controllers > 1 else "a controller"
        )
        parts = f"{controllers} and {say_count(settings.workers, 'worker')}"
        self._say(f"Starting {parts} (models are kept in {settings.data}) ...")
        self._start_controllers()
        for index in range(settings.workers):
            self._start_worker(settings.own_arguments[index] if settings.own_arguments else ())
        # With all ports off, a gateway only serves model repositories.
        if settings.gateway and (
            "--model-repository" in settings.gateway_arguments or set(settings.gateway_ports) != {"off"}
        ):
            self._start_gateway(clients)
        if settings.cores is not None:
            keys = key_file_of(settings.keys, Role.OPERATOR) if settings.keys is not None else None
            self._watch = CoreWatch(dialled(clients), keys, settings.cores)
        # From here on a signal may interrupt, as all children are started.
        self._armed = True
        self._interrupt()

    def _start_controllers(self) -> None:
        """Start the controllers. Of several, the one that comes first is active, whichever that is after each
        restart."""
        settings = self._settings
        arguments = [
            "--data", str(settings.data), *settings.package_arguments, "--policy", settings.policy,
            *(["--memory", settings.memory] if settings.memory else []),
            *(word for option in settings.options for word in ("--option", option)),
        ]  # fmt: skip
        if settings.keys is not None:
            arguments += ["--key", str(settings.keys / CONTROLLER_KEY_FILE)]
        if settings.insecure:
            arguments += ["--insecure"]
        if settings.cores is not None:
            arguments += ["--threads-max", str(settings.cores.threads_max)]
        if settings.controllers > 1:
            arguments += ["--standby"]
        self._awaits_models = [word for name in self._registered_here() for word in ("--await-model", name)]
        places = zip(*(endpoint.split(",") for endpoint in self._endpoints), strict=True)
        for index, (clients, workers, events) in enumerate(places):
            own = ["controller", "--listen", clients, "--worker-listen", workers, "--events", events]
            name = f"controller-{index}" if settings.controllers > 1 else "controller"
            self._spawn(name, [*own, *arguments, *self._awaits_models])

    def _start_worker(self, own: Sequence[str]) -> ChildSlot:
        """Start one more worker. own: its arguments in addition to those of all."""
        settings = self._settings
        name = f"worker-{self._worker_count}"
        self._worker_count += 1
        arguments = [
            "worker",
            "--connect",
            dialled(self._endpoints[1]),
            "--name",
            name,
            "--store",
            str(settings.data / "workers" / name if settings.own_stores else settings.data),
        ]
        arguments += ["--drain", f"{to_seconds(self.drain_ns):g}"]
        if settings.keys is not None:
            arguments += ["--key", str(key_file_of(settings.keys, Role.WORKER))]
        return self._spawn(name, [*arguments, *settings.worker_arguments, *own])

    # ----- the division of the cores -----------------------------------------------------------

    @property
    def _workers(self) -> list[ChildSlot]:
        """The workers that serve: neither those that come nor those that leave."""
        return [
            seat
            for seat in self._seats
            if seat.name.startswith("worker-") and not seat.is_leaving and seat not in self._coming
        ]

    def divide(self) -> None:
        """Go on with the division of the cores that is wanted, without waiting for anything.

        The workers of a new division are started beside the others, which end when the new ones have every
        model: no model is without a worker meanwhile. Until then the cores are shared by both.
        """
        if self._watch is None:
            return
        with self._undisturbed():
            self._end_leaving()
            if self._division is not None:
                self._follow_coming(self._watch, self._division)
            elif (division := self._watch.wanted) != self._watch.present:
                self._begin_division(self._watch, division)

    def _begin_division(self, watch: CoreWatch, division: Division) -> None:
        assert self._settings.cores is not None
        whose = f" for {watch.waiting}" if watch.waiting else ""
        self._say(f"Executors are divided anew{whose}: {division}. Workers for that start beside the others.")
        self._division = division
        self._coming = [self._start_worker(own) for own in self._settings.cores.flags(division)]
        watch.follow(True)

    def _follow_coming(self, watch: CoreWatch, division: Division) -> None:
        names = [seat.name for seat in self._coming]
        took_ns = now_ns() - min(seat.begun_ns for seat in self._coming)
        has_joined = watch.have_joined(names, is_whole=False)
        is_late = took_ns > DIVISION_JOINED_NS and not has_joined
        if any(seat.is_given_up for seat in self._coming) or is_late:
            for seat in self._coming:
                seat.child.end()
                self._seats.remove(seat)
            self._say("The executors stay as they were: not every worker of the new division has joined.")
            watch.refuse(division)
        elif watch.have_joined(names, is_whole=True) or (has_joined and took_ns > DIVISION_WHOLE_NS):
            for seat in self._workers:
                seat.is_leaving, seat.due_ns, seat.begun_ns = True, None, now_ns()
                seat.child.signal(signal.SIGTERM)
            self._say(f"Executors are divided: {division}.")
            watch.became(division)
        else:
            return
        watch.follow(False)
        self._division, self._coming = None, []

    def _end_leaving(self) -> None:
        """Remove the workers that have ended as they were told to, and those that take too long."""
        for seat in [seat for seat in self._seats if seat.is_leaving]:
            if seat.child.ended() or now_ns() >= seat.begun_ns + WORKER_LEAVES_NS:
                seat.child.end()
                self._seats.remove(seat)

    def _start_gateway(self, clients: str) -> None:
        settings = self._settings
        arguments = ["gateway", "--connect", dialled(clients), *settings.gateway_arguments]
        # If other machines need keys to reach the cluster, the gateway must not let them in without keys.
        arguments += ["--host", settings.host, "--insecure"] if settings.insecure else []
        for name, port in zip(GATEWAY_PORTS, settings.gateway_ports):
            arguments += [f"--{name}-port", port]
        if settings.keys is not None:
            # The gateway stays on loopback, so that only this machine can reach it.
            arguments += ["--key", str(key_file_of(settings.keys, Role.GATEWAY))]
            arguments += ["--operator-key", str(key_file_of(settings.keys, Role.OPERATOR))]
        self._gateway = self._spawn("gateway", arguments)

    def gateway_urls(self) -> list[tuple[str, str]]:
        """Return (server, address) of the gateway's servers, from its log. Empty before it serves, or without
        a gateway."""
        found = self._gateway.child.serves.partition(" listens: ")[2] if self._gateway is not None else ""
        return [
            (name, where)
            for name, _, where in (server.partition(" on ") for server in found.split(", ") if server)
        ]

    def _settle_ports(self) -> None:
        """Replace port 0 by the ports in use, so that a restarted gateway keeps them."""
        urls = dict(self.gateway_urls())
        if self._gateway is None:
            return
        for name in GATEWAY_PORTS:
            if name in urls:
                port = urls[name].removesuffix("/metrics").rpartition(":")[2]
                place = self._gateway.arguments.index(f"--{name}-port") + 1
                self._gateway.arguments[place] = port

    def _spawn(self, name: str, arguments: list[str]) -> ChildSlot:
        seat = ChildSlot(name, arguments, self._place(name, arguments), now_ns())
        self._seats.append(seat)
        return seat

    def _place(self, name: str, arguments: list[str]) -> AnyChild:
        return Child(name, arguments, self._say, self._settings.verbose)

    def wait_until_ready(self) -> None:
        """Wait until every worker is connected and has all models ready, including the demo model."""
        from clockwork.client.blocking import Client

        settings = self._settings
        keys = key_file_of(settings.keys, Role.OPERATOR) if settings.keys is not None else None
        limit_ns = self.started_ns + self.ready_ns
        # With thousands of models, or on a busy machine, the controller starts slower than a client's
        # timeout.
        self._wait(lambda: any(seat.child.serves for seat in self._controllers), limit_ns, "the controller")
        with Client(
            dialled(self._endpoints[0]), keys=keys, name="up", timeout=to_seconds(self.ready_ns)
        ) as client:
            self._wait(lambda: len(client.status()["workers"]) >= settings.workers, limit_ns, "the workers")
            if settings.demo:
                self._register_demo(client)
            if settings.profiles:
                self._register_profiles(client)
            self._wait(lambda: not client.status()["models"].get("preparing"), None, "the models")
            self._note_found(client)
        if self._gateway is not None:
            gateway = self._gateway
            self._wait(lambda: bool(gateway.child.serves), limit_ns, "the gateway")
            if "--model-repository" in settings.gateway_arguments:
                self._wait(lambda: bool(gateway.child.settled), None, "the models of the repository")

    def _wait(self, ready: Callable[[], bool], limit_ns: int | None, awaited: str) -> None:
        pause = threading.Event()
        begun_ns = now_ns()
        told_after_s = 2
        while not ready():
            self.divide()
            now = now_ns()
            if limit_ns is not None and now > limit_ns:
                raise ClockworkError(f"{awaited}: not ready within {to_seconds(self.ready_ns):g} s")
            if now - begun_ns > told_after_s * SECOND:
                self._say(f"Waiting for {awaited}, {told_after_s} s by now ...")
                told_after_s *= 2  # keeps the output of a long wait short
            pause.wait(POLL_S)

    def _note_found(self, client: Any) -> None:
        """Note the models in the data directory that neither this command nor a repository provides."""
        ours = {*self._registered_here(), DEMO_MODEL}
        found = [
            f"{info.reference} ({info.state})" if info.state != "ready" else info.reference
            for info in client.models()
            if info.name not in ours and not info.raw.get("origin")
        ]
        more = len(found) - FOUND_SHOWN
        self._found = ", ".join(found[:FOUND_SHOWN]) + (f" and {more} more" if more > 0 else "")

    def _registered_here(self) -> list[str]:
        """Return the models that this command registers. Before they are ready, the gateway is not ready."""
        names = [DEMO_MODEL] if self._settings.demo else []
        if self._settings.profiles:
            from clockwork.launch.profiles import read_profiles

            profiles = read_profiles(self._settings.profiles, self._settings.copies)
            names += [profile.name for profile in profiles]
        return names

    def _register_demo(self, client: Any) -> None:
        path = Path(__file__).parents[1] / "models" / "data" / f"{DEMO_MODEL}.onnx"
        with contextlib.suppress(ModelNotFound):
            # An existing model of that name stays: as its next version, the demo would take over its traffic.
            if client.model(DEMO_MODEL).state in ("preparing", "ready", "unloaded", "set_aside"):
                return
        self._say(f"Registering the demo model {DEMO_MODEL} ...")
        client.register(DEMO_MODEL, path)

    def _register_profiles(self, client: Any) -> None:
        from clockwork.launch.profiles import read_profiles, register_profiles

        profiles = read_profiles(self._settings.profiles, self._settings.copies)
        self._say(f"Registering {len(profiles)} profiles ...")
        register_profiles(client, profiles)

    def stop(self) -> None:
        """End every child: in order, and by force after the time limits."""
        if self._watch is not None:
            self._watch.end()
        begun_ns = now_ns()
        pause = threading.Event()
        # Workers end first, because they treat the controller's end before theirs as a failure.
        children, count = [seat.child for seat in self._seats], self._settings.controllers
        for group, limit_ns in ((children[count:], self.stop_workers_ns), (children[:count], self.stop_ns)):
            for child in group:
                child.signal(signal.SIGTERM)
            while not all(child.ended() for child in group) and now_ns() - begun_ns < limit_ns:
                pause.wait(0.01)
        for child in children:
            child.end()
        if self._watch is not None:
            self._watch.close()
            self._watch = None


def _endpoints(settings: UpSettings, ports: Sequence[int]) -> tuple[str, str, str]:
    """Return the endpoints for clients, workers and events of each controller, with commas between them.

    ports: three for each. Raises ConfigError if a key file is missing."""
    if settings.keys is not None:
        for path in (
            settings.keys / CONTROLLER_KEY_FILE,
            *(key_file_of(settings.keys, role) for role in Role),
        ):
            if not path.is_file():
                raise ConfigError(
                    f"{settings.keys} holds no {path.name} (make all with: clockwork keys new DIR)"
                )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    clients, workers, events = (
        ",".join(f"tcp://{host}:{port}" for port in ports[kind::3]) for kind in range(3)
    )
    return clients, workers, events


@contextlib.contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Yield free ports, reserved on every interface while the block runs.

    The system gives them to no process that requests any free port of whichever address. A process that binds
    a port by number with SO_REUSEADDR, as libzmq does, gets it.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_held_port()) for _ in range(count)]


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    for attempt in range(HELD_PORT_ATTEMPTS):
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(_holder(socket.AF_INET, "0.0.0.0", 0)).getsockname()[1]
            try:
                stack.enter_context(_holder(socket.AF_INET6, "::", port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE and attempt + 1 < HELD_PORT_ATTEMPTS:
                    continue  # somebody has it in the other family alone
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # a machine without IPv6
                    raise
            yield port
            return


def _holder(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """Return a socket that is bound to this port, and does not listen."""
    held = socket.socket(family)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        held.bind((address, port))
    except OSError:
        held.close()
        raise
    return held


def dialled(endpoint: str) -> str:
    """Return the endpoint to dial on this machine: loopback if it listens on all interfaces."""
    for everywhere, here in (
        ("//0.0.0.0:", "//127.0.0.1:"),
        ("//*:", "//127.0.0.1:"),
        ("//[::]:", "//[::1]:"),
    ):
        endpoint = endpoint.replace(everywhere, here)
    return endpoint


def _greet(
    settings: UpSettings,
    endpoints: tuple[str, str, str],
    urls: list[tuple[str, str]],
    say: Callable[[str], None],
    since_ns: int,
) -> None:
    clients, workers, events = endpoints
    options = [] if clients == config.CLIENT_ENDPOINT else ["--endpoint", dialled(clients)]
    if settings.keys is not None:
        # Without a demo the user registers a model first, which needs an operator's key.
        role = Role.CLIENT if settings.demo else Role.OPERATOR
        options += ["--key", str(key_file_of(settings.keys, role))]
    if settings.demo:
        example = ["infer", *options, DEMO_MODEL, "--example", "7"]
    else:
        example = ["status", *options]
    say(
        f"\nReady after {to_seconds(now_ns() - since_ns):.1f} s.\n\n"
        f"  clients  {clients}\n  workers  {workers}\n  events   {events}\n"
        + "".join(f"  {name:<8} {where}\n" for name, where in urls)
        + "\n"
        f"Try it in another terminal:\n\n  {shlex.join([*_command(), *example])}\n\nCtrl-C ends it."
    )


def _command() -> list[str]:
    """Return the command that starts this program from a terminal in the same directory."""
    script = Path(sys.executable).parent / "clockwork"
    if not script.is_file():
        return [_shown(Path(sys.executable)), "-m", "clockwork"]
    found = shutil.which("clockwork")
    return ["clockwork"] if found is not None and Path(found).samefile(script) else [_shown(script)]


def _shown(path: Path) -> str:
    """Return a path for people: relative, if it is below the current directory."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
