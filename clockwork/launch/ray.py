"""``clockwork up --ray``: a controller and workers as actors of a Ray cluster, from start to finish.

Ray places each actor and reserves its processors and GPUs; the actor's child process is the same program as
in any other cluster. Ray carries no requests. The controller is placed on the machine where the command runs,
because its data is there. An actor that ends, or is lost with its machine, is restarted (see
clockwork.launch.restarts).

The actors belong to this process: if it is killed, Ray ends them, and they end their children.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import select
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from clockwork.config.launch import END_S, POLL_NS
from clockwork.errors import ConfigError
from clockwork.launch import local
from clockwork.launch.local import AnyChild, Child, ChildEnded, ChildOutput, ProcessCluster, Stop, UpSettings
from clockwork.system.clock import SECOND, now_ns, to_seconds
from clockwork.wire.keys import key_file_of, write_keys
from clockwork.wire.roles import Role

KEYS = "<keys>"
"""Placeholder in a child's arguments for the directory of keys on the machine where the child runs."""

LOOPBACK = "127.0.0.1"


@dataclasses.dataclass(frozen=True, slots=True)
class RaySettings:
    """The address of the Ray cluster, and the resources of a worker."""

    # host:port of its head; "": RAY_ADDRESS, a cluster on this machine, or else a new cluster
    address: str = ""
    cpus: int = 1  # processors of each worker
    gpus: int = 0


class Host:
    """The actor: a child process on a machine of the Ray cluster. The driver calls its methods."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._lines: deque[str] = deque()  # lines printed since the last poll()
        self._directory = ""

    def start(self, name: str, arguments: list[str], keys: dict[str, bytes]) -> None:
        """Start the child. keys: the key files that its arguments name, by file name."""
        self._directory = tempfile.mkdtemp(prefix="clockwork-")
        for file, body in keys.items():
            descriptor = os.open(
                os.path.join(self._directory, file), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600
            )
            with open(descriptor, "wb") as stream:
                stream.write(body)
        placed = [argument.replace(KEYS, self._directory) for argument in arguments]
        self._child = Child(name, placed, lambda line: self._lines.append(line.partition(" | ")[2]), True)

    def poll(self) -> tuple[int | None, list[str]]:
        """Return the child's exit status (None while it runs) and the lines that it printed since the last
        call."""
        status = None
        assert self._child is not None, "nobody asks after the end"
        if self._child.ended():
            self._child.end()
            status, self._child = self._child.status, None
        return status, [self._lines.popleft() for _ in range(len(self._lines))]

    def signal(self, number: int) -> None:
        if self._child is not None:
            self._child.signal(number)

    def end(self) -> None:
        """Kill the child with its helpers, and remove its keys."""
        if self._child is not None:
            self._child.end()
        shutil.rmtree(self._directory, ignore_errors=True)


class Placed(ChildOutput):
    """A child on a machine of the Ray cluster, with the methods of local.Child."""

    def __init__(
        self, ray: Any, actor: Any, name: str, arguments: list[str], keys: dict[str, bytes], say: Callable[[str], None],
        verbose: bool,
    ) -> None:  # fmt: skip
        super().__init__(name, say, verbose)
        self.status = 0  # exit status, once the process has ended
        self._ray = ray
        self._actor = actor
        self._has_ended = False
        self._asked = actor.start.remote(name, arguments, keys)
        self._is_started = False
        self._next_ns = 0

    def look(self) -> None:
        """Process the actor's answer, if it has arrived, and request the next. Never blocks."""
        now = now_ns()
        if self._has_ended or now < self._next_ns:
            return
        self._next_ns = now + POLL_NS
        ready, _ = self._ray.wait([self._asked], timeout=0)
        if not ready:
            return
        try:
            answer = self._ray.get(self._asked)
        except self._ray.exceptions.RayError as error:  # the actor is gone, or has failed
            self._has_ended, self.status = True, 1
            self.lost = isinstance(error, self._ray.exceptions.RayActorError)
            self.lines.append(str(error).strip().splitlines()[0])
            return
        if self._is_started:
            status, lines = answer
            for line in lines:
                self._take(line)
            if status is not None:
                self._has_ended, self.status = True, status
                return
        self._is_started = True
        self._asked = self._actor.poll.remote()

    def ended(self) -> bool:
        self.look()
        return self._has_ended

    def signal(self, number: int) -> None:
        if not self._has_ended:
            self._actor.signal.remote(number)

    def end(self) -> None:
        """Kill the child and its actor, which returns its resources to Ray."""
        if not self.lost and self._is_started:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.get(self._actor.end.remote(), timeout=END_S)
        self._ray.kill(self._actor)


class RayCluster(ProcessCluster):
    """A controller and workers that Ray places."""

    stop_workers_ns = 4 * SECOND
    stop_ns = 6 * SECOND
    drain_ns = 2 * SECOND
    ready_ns = 900 * SECOND  # a Ray cluster may have to start machines first

    def __init__(
        self, ray: Any, wanted: RaySettings, settings: UpSettings, endpoints: tuple[str, str, str],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(settings, endpoints, say)
        self._ray = ray
        self._wanted = wanted
        path = key_file_of(settings.keys, Role.WORKER) if settings.keys is not None else None
        self._worker_key = {path.name: path.read_bytes()} if path is not None else {}

    def _place(self, name: str, arguments: list[str]) -> AnyChild:
        """Place the controller and workers by Ray, and the gateway on this machine."""
        if name != "controller" and not name.startswith("worker-"):
            return super()._place(name, arguments)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray, wanted = self._ray, self._wanted
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "max_restarts": 0}
        if name == "controller":
            here = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
        else:
            options |= {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(Host).options(**options).remote()
        keys = {}
        # The controller runs here, and reads its files in place, as its list of keys may change.
        if self._settings.keys is not None and name != "controller":
            directory = str(self._settings.keys)
            arguments = [argument.replace(directory, KEYS) for argument in arguments]
            keys = self._worker_key
        return Placed(ray, actor, name, arguments, keys, self._say, self._settings.verbose)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = self._stopping or number in local.ENDING
        if self._armed:
            self._interrupt()

    def _interrupt(self) -> None:
        """Raise Stop if a signal requested the end. _check() raises ChildEnded, as Ray cannot be called
        inside a handler."""
        if self._stopping:
            self._armed = False
            raise Stop

    def _check(self) -> None:
        with self._undisturbed():
            has_ended = any(seat.due_ns is None and seat.child.ended() for seat in self._seats)
        if has_ended and self._awaits:
            self._awaits = False
            raise ChildEnded

    def wait_for_signal(self) -> None:
        """Return after a signal, or when the actors must be polled again."""
        readable, _, _ = select.select([self._wakeup], [], [], to_seconds(POLL_NS))
        if readable:
            os.read(self._wakeup, 4096)

    def _wait(self, ready: Callable[[], bool], limit_ns: int | None, awaited: str) -> None:
        wanted = self._wanted
        gpus = f" and {wanted.gpus} GPUs" if wanted.gpus else ""
        if awaited == "the workers":
            awaited = f"the workers, each of which needs {wanted.cpus} CPUs{gpus} of the Ray cluster"

        def look() -> bool:
            self._check()
            return ready()

        super()._wait(look, limit_ns, awaited)


def up(settings: UpSettings, wanted: RaySettings, say: Callable[[str], None]) -> int:
    """Run a cluster on Ray in the foreground until a signal or the controller's end. Returns the exit
    status."""
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed: pip install 'clockwork-serving[ray]'") from None
    if wanted.address.startswith("ray://"):
        raise ConfigError(
            "the command has to run on a machine of the Ray cluster; Ray's client, ray://, has none"
        )
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        try:
            ray.init(address=wanted.address or None, namespace="clockwork", logging_level="warning")
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = wanted.address or "this machine"
            raise ConfigError(f"no Ray cluster at {where}: {str(error).splitlines()[0]}") from None
        if settings.host == LOOPBACK:
            settings = dataclasses.replace(settings, host=ray.util.get_node_ip_address())
        if settings.keys is None and not settings.insecure:
            settings = dataclasses.replace(settings, keys=_new_keys(stack))

        if lack := _lack(ray.cluster_resources(), settings.workers, wanted):
            say(f"The Ray cluster has too little for this, and it waits until there is more: {lack}.")
        return local.up(settings, say, functools.partial(RayCluster, ray, wanted))


def _lack(has: Mapping[str, float], workers: int, wanted: RaySettings) -> str:
    """Return the resources that a Ray cluster lacks for a controller and these workers; "": none."""
    lacking = []
    cpus, gpus = 1 + workers * wanted.cpus, workers * wanted.gpus
    if cpus > has.get("CPU", 0):
        parts = f"1 for the controller, {wanted.cpus} for each of {workers} workers"
        lacking.append(f"{cpus} CPUs are needed ({parts}) and {has.get('CPU', 0):g} are there")
    if gpus > has.get("GPU", 0):
        lacking.append(f"{gpus} GPUs are needed and {has.get('GPU', 0):g} are there")
    return "; ".join(lacking)


def _new_keys(stack: contextlib.ExitStack) -> Path:
    """Return a directory with new keys for this cluster, its clients' included. The directory is removed with
    ``stack``."""
    from clockwork.wire.transport import new_key_pair

    directory = Path(tempfile.mkdtemp(prefix="clockwork-keys-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    write_keys(directory, new_key_pair(), {role: new_key_pair() for role in Role})
    return directory
