"""The kinds of faults: how each is injected, and from when on the cluster must serve everything again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from clockwork.config import HEARTBEAT_NS
from clockwork.config.controller import WORKER_TIMEOUT_NS
from clockwork.config.wire import HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS
from clockwork.system.clock import MS, SECOND, now_ns
from tests.chaos.liar import Liar
from tests.chaos.processes import Supervised, World
from tests.chaos.scenario import Fault, Kind

CLIENTS = frozenset(("sync", "linked", "async", "raw", "http"))
"""The kinds of clients in load.py."""

NOTICED_S = 8.0
"""Time limit for the cluster to notice a failure."""

EXIT_NS = SECOND // 2
"""Bound on the time to notice a killed process or a reset connection: the end of the process, a turn of a
loop, and slack for a busy machine."""

CONNECTION_TIMEOUT_NS = (HEARTBEAT_MS + HEARTBEAT_TIMEOUT_MS) * MS + SECOND // 4
"""Bound on the time to notice a silent connection by ZeroMQ's heartbeats, counted from the last heartbeat
received."""

BLOCK_BYTES = 1 << 20
LOUD_SHARE = 0.5
"""Share of flipped bits of weights that are the highest bit of an exponent: few other bits change an answer
visibly."""

HOUR_NS = 3600 * SECOND


NOTICED_WITHIN_NS = {
    **dict.fromkeys((Kind.KILL_WORKER, Kind.KILL_WORKERS, Kind.KILL_CONTROLLER, Kind.KILL_GATEWAY), EXIT_NS),
    **dict.fromkeys((Kind.CUT_WORKER_LINK, Kind.FLIP_WORKER_STORE), EXIT_NS),
    **dict.fromkeys((Kind.STOP_WORKER, Kind.HOLD_WORKER_LINK), WORKER_TIMEOUT_NS + 2 * HEARTBEAT_NS),
    **dict.fromkeys((Kind.STOP_CONTROLLER, Kind.HOLD_CLIENT_LINK), CONNECTION_TIMEOUT_NS),
}
"""The bounds that docs/chaos.md states for the detection of each kind of fault."""


@dataclasses.dataclass(slots=True)
class Effect:
    """The effect of a fault: the injection, and the time at which the cluster noticed it."""

    fault: Fault
    begin_ns: int
    due_ns: int = 0  # the cluster must serve everything again SERVED_AGAIN_NS after this time
    lossy: frozenset[str] = frozenset()  # kinds of clients that may get errors until then
    how: str = ""  # how the failure shows: "exit" (a closed socket, an ended process) or "silence"
    detected_ns: int = 0  # 0: the fault was not noticed, or need not be
    note: str = ""
    skipped: str = ""  # why the fault could not be injected here
    whole_ns: int = 0  # time at which both workers served every model again


Handler = Callable[[World, Fault, Effect, random.Random], None]
_HANDLERS: dict[Kind, Handler] = {}


def handles(*kinds: Kind) -> Callable[[Handler], Handler]:
    def note(handler: Handler) -> Handler:
        for kind in kinds:
            _HANDLERS[kind] = handler
        return handler

    return note


def apply(world: World, fault: Fault) -> Effect:
    """Inject the fault, and return once it is over."""
    effect = Effect(fault, now_ns())
    _HANDLERS[fault.kind](world, fault, effect, random.Random(fault.draw))
    effect.due_ns = effect.due_ns or effect.detected_ns or now_ns()
    return effect


def _pass(fault: Fault) -> None:
    threading.Event().wait(fault.duration_ms / 1000)  # the fault's own duration


def _notice(effect: Effect, how: str, observer: Supervised, pattern: str) -> None:
    effect.how = how
    effect.detected_ns = observer.said(pattern, effect.begin_ns, NOTICED_S)


def _left(index: int) -> str:
    return rf"worker worker-{index} \(\d+\) left: "


# ----- processes --------------------------------------------------------------------------------


@handles(Kind.KILL_WORKER)
def _kill_worker(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    world.workers[fault.target].end(signal.SIGKILL)
    _notice(effect, "exit", world.controller, _left(fault.target))


@handles(Kind.KILL_WORKERS)
def _kill_workers(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    for worker in world.workers:
        worker.program.send(signal.SIGKILL)
    _notice(effect, "exit", world.controller, _left(fault.target))
    for worker in world.workers:
        effect.due_ns = max(effect.due_ns, worker.said("serves controller", effect.begin_ns))
    effect.lossy = CLIENTS  # no process is left to serve them


@handles(Kind.KILL_CONTROLLER, Kind.END_CONTROLLER)
def _end_controller(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    number = signal.SIGKILL if fault.kind is Kind.KILL_CONTROLLER else signal.SIGTERM
    effect.how, effect.lossy = "exit", CLIENTS
    effect.detected_ns = world.controller.end(number)


@handles(Kind.KILL_GATEWAY, Kind.END_GATEWAY)
def _end_gateway(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    number = signal.SIGKILL if fault.kind is Kind.KILL_GATEWAY else signal.SIGTERM
    effect.how, effect.lossy = "exit", frozenset(("http",))
    effect.detected_ns = world.gateway.end(number)
    effect.due_ns = world.gateway.said(" listens: ", effect.begin_ns)


@handles(Kind.END_WORKER)
def _end_worker(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    # the worker leaves with a goodbye, so no request may be lost
    world.workers[fault.target].end(signal.SIGTERM)


@handles(Kind.PAUSE_WORKER, Kind.PAUSE_CONTROLLER, Kind.PAUSE_GATEWAY)
def _pause(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    kinds = {Kind.PAUSE_WORKER: world.workers[fault.target], Kind.PAUSE_CONTROLLER: world.controller}
    with _stopped(kinds.get(fault.kind, world.gateway)):
        _pass(fault)
    effect.due_ns = now_ns()


@handles(Kind.STOP_WORKER)
def _stop_worker(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    with _stopped(world.workers[fault.target]):
        _pass(fault)
        _notice(effect, "silence", world.controller, _left(fault.target))


@handles(Kind.STOP_CONTROLLER)
def _stop_controller(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    effect.lossy = CLIENTS
    with _stopped(world.controller):
        _pass(fault)
        _notice(effect, "silence", world.workers[fault.target], "connection to .* lost")
    effect.due_ns = now_ns()


@contextlib.contextmanager
def _stopped(one: Supervised) -> Iterator[None]:
    program = one.program
    program.send(signal.SIGSTOP)
    try:
        yield
    finally:
        program.send(signal.SIGCONT)


# ----- links ------------------------------------------------------------------------------------


@handles(Kind.CUT_WORKER_LINK)
def _cut_worker_link(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    world.worker_links[fault.target].cut()
    _notice(effect, "exit", world.controller, _left(fault.target))


@handles(Kind.HOLD_WORKER_LINK)
def _hold_worker_link(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    link = world.worker_links[fault.target]
    link.hold()
    _pass(fault)
    _notice(effect, "silence", world.controller, _left(fault.target))
    link.release()


@handles(Kind.SLOW_WORKER_LINK, Kind.SLOW_CLIENT_LINK)
def _slow_link(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    link = world.client_link if fault.kind is Kind.SLOW_CLIENT_LINK else world.worker_links[fault.target]
    there, back = ((low, low + rng.uniform(0, 40)) for low in (rng.uniform(0, 100), rng.uniform(0, 100)))
    link.delay(there, back)
    _pass(fault)
    link.delay((0, 0), (0, 0))
    effect.note = f"{there[0]:.0f} to {there[1]:.0f} ms there, {back[0]:.0f} to {back[1]:.0f} ms back"


@handles(Kind.CUT_CLIENT_LINK)
def _cut_client_link(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    effect.lossy = frozenset(("linked",))
    world.client_link.cut()


@handles(Kind.HOLD_CLIENT_LINK)
def _hold_client_link(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    """The time at which the client notices is in the client's records; see oracle.py."""
    effect.lossy, effect.how = frozenset(("linked",)), "silence"
    world.client_link.hold()
    _pass(fault)
    world.client_link.release()


# ----- disks ------------------------------------------------------------------------------------


@handles(Kind.FULL_CONTROLLER_DISK, Kind.FULL_WORKER_DISK)
def _full_disk(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    disk = _disk(world, fault)
    if not os.path.ismount(disk):
        effect.skipped = "a file system of its own takes the right to mount one"
        return
    ballast = disk / "ballast"
    with open(ballast, "wb") as file, contextlib.suppress(OSError):  # writes the ballast that fills the disk
        while True:
            file.write(bytes(BLOCK_BYTES))
            file.flush()
    # fills the disk's last pages
    with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    _pass(fault)
    ballast.unlink()


@handles(Kind.READ_ONLY_CONTROLLER_DISK, Kind.READ_ONLY_WORKER_DISK)
def _read_only_disk(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    """Cover the directories by read-only bind mounts of themselves: a file system with files open for writing
    cannot be remounted read-only."""
    disk = _disk(world, fault)
    if not os.path.ismount(disk):
        effect.skipped = "a read-only view takes the right to mount one"
        return
    folders = [entry for entry in sorted(disk.iterdir()) if entry.is_dir()]
    for folder in folders:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    _pass(fault)
    for folder in folders:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _disk(world: World, fault: Fault) -> Path:
    on_controller = fault.kind in (Kind.FULL_CONTROLLER_DISK, Kind.READ_ONLY_CONTROLLER_DISK)
    return world.root / ("controller" if on_controller else f"worker-{fault.target}")


@handles(Kind.FLIP_WORKER_STORE)
def _flip_worker_store(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    worker = world.workers[fault.target]
    worker.hold()
    worker.end(signal.SIGKILL)
    _notice(effect, "exit", world.controller, _left(fault.target))
    store = world.root / f"worker-{fault.target}"
    files = sorted(
        path for folder in ("packages", "prepared", "programs") for path in (store / folder).rglob("*")
    )
    files = [path for path in files if path.is_file() and path.stat().st_size]
    effect.note = ", ".join(flip(path, rng, store) for path in rng.sample(files, rng.randint(1, 3)))
    worker.release()


@handles(Kind.FLIP_CATALOG)
def _flip_catalog(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    """Remove a package from the store of a worker."""
    worker = world.workers[fault.target]
    for one in (worker, world.controller):
        one.hold()
        one.end(signal.SIGKILL)
    data = world.root / "controller"
    package = rng.choice(sorted((data / "packages").glob("[0-9a-f]*")))
    effect.note = flip(package / "model.onnx", rng, data)
    store = world.root / f"worker-{fault.target}"
    for path in [store / "packages" / package.name, *(store / "prepared").glob(f"{package.name}-*")]:
        subprocess.run(["rm", "-rf", path], check=True)
    effect.lossy = CLIENTS
    released_ns = now_ns()
    world.controller.release()
    worker.release()
    effect.due_ns = world.workers[1 - fault.target].said("serves controller", released_ns)


def flip(path: Path, rng: random.Random, root: Path) -> str:
    """Flip a bit of a file and return its place. The file is replaced, because other links to it may
    exist."""
    data = bytearray(path.read_bytes())
    index, bit = rng.randrange(len(data)), rng.randrange(8)
    if rng.random() < LOUD_SHARE and len(data) >= 4:
        index, bit = index // 4 * 4 + 3, 6
        index = min(index, len(data) // 4 * 4 - 1)
    data[index] ^= 1 << bit
    other = path.with_name(".flipped")
    other.write_bytes(data)
    os.replace(other, path)
    return f"bit {bit} of byte {index} of {len(data)} of {path.relative_to(root)}"


# ----- lies and clocks --------------------------------------------------------------------------


@handles(Kind.LYING_WORKER)
def _lying_worker(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    """Replace an honest worker by a lying one, so that the liar gets work."""
    effect.lossy = CLIENTS  # a request to a liar may fail, but must not get a wrong answer
    honest = world.workers[fault.target]
    with Liar(world, rng) as liar:
        honest.hold()
        honest.end(signal.SIGTERM)
        _pass(fault)
    honest.release()
    effect.due_ns = now_ns()
    effect.note = f"{liar.kind}, told {liar.told} times"


@handles(Kind.JUMP_WALL_CLOCK)
def _jump_wall_clock(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    """Jump the wall clock of every process, and jump it back. Only texts for people may depend on that
    clock."""
    by_ns = rng.choice((-1, 1)) * int(10 ** rng.uniform(0, 3.5) * HOUR_NS / 10)
    files = [world.root / f"clocks-{one.name}" for one in world.supervised]
    for file in files:
        set_clocks(file, wall_ns=by_ns)
    _pass(fault)
    for file in files:
        set_clocks(file, wall_ns=0)
    effect.note = f"by {by_ns / HOUR_NS:.1f} h and back"


@handles(Kind.JUMP_WORKER_CLOCK)
def _jump_worker_clock(world: World, fault: Fault, effect: Effect, rng: random.Random) -> None:
    """Jump the monotonic clock of a worker.

    No time protocol sets that clock, but a host that suspends a virtual machine may jump it.
    """
    by_ns = rng.choice((-1, 1)) * int(10 ** rng.uniform(1, 3.5) * MS)
    set_clocks(world.root / f"clocks-worker-{fault.target}", monotonic_ns=by_ns)
    _pass(fault)
    effect.note = f"by {by_ns / MS:.0f} ms"


def set_clocks(file: Path, *, wall_ns: int = 0, monotonic_ns: int = 0) -> None:
    """Write the values that clock_shim.c reads in place: it has the file mapped."""
    with open(file, "r+b") as target:
        target.write(struct.pack("=qq", wall_ns, monotonic_ns))
