"""A simulated cluster: three controllers, a database, workers and clients, and links between them.

The protocol's parts are those of the processes. Everything around them is simulated: messages take time, and
may come twice, out of order, or be lost with their connection; processes stop and are killed; clocks have
offsets and drift; the database goes away. The judge checks what comes of it.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from clockwork.sim.takeover.desk import Desk
from clockwork.sim.takeover.judge import LIVENESS_NS, Judge, must
from clockwork.sim.takeover.plan import (
    ACTIVE,
    CLIENTS,
    CONTROLLERS,
    DATABASE,
    EVERY,
    LATE_MODEL,
    MODELS,
    MS,
    SECOND,
    SINGLE,
    WORKERS,
    Disruption,
    TakeoverPlan,
    What,
)
from clockwork.takeover.asker import Asker, Deliver, RequestMade
from clockwork.takeover.contender import (
    Activate,
    AnnounceLeader,
    ApplyChanges,
    AwaitLock,
    ChangeAsked,
    ChangeEnded,
    Contender,
    DatabaseLost,
    DatabaseReplied,
    EndConnection,
    HandOverAsked,
    LeaseRole,
    LockFreed,
    QueryLease,
    StepDown,
)
from clockwork.takeover.follower import LedWorker, OrderDone, RunOrder
from clockwork.takeover.inheritance import Inheritance
from clockwork.takeover.lease import LeaseOperation, LeaseTable
from clockwork.takeover.messages import (
    AskedRequest,
    Deed,
    HandOverReady,
    Heard,
    KeepNotes,
    LedOrder,
    Linked,
    Message,
    NotActive,
    TellPeer,
    TimeCame,
    Unlinked,
)

REQUEST_EVERY_NS = 60 * MS  # of each client
CHANGE_EVERY_NS = 120 * MS
LOAD_NS = 60 * MS


@dataclasses.dataclass(frozen=True)
class Parts:
    """The protocol's classes; tests put mutants in their place."""

    contender: type[Contender] = Contender
    inheritance: type[Inheritance] = Inheritance
    follower: type[LedWorker] = LedWorker
    asker: type[Asker] = Asker
    table: type[LeaseTable] = LeaseTable


PARTS = Parts()


class LinkChange(NamedTuple):
    """A connection is up or lost, as its end processes it; later messages go over this generation of it."""

    event: Linked | Unlinked
    generation: int


class Process:
    """A process of the cluster: whether it runs, and its clock."""

    def __init__(self, world: TakeoverWorld, name: str) -> None:
        self.world = world
        self.name = name
        self.is_alive = False
        self.is_stopped = False
        self.starts = 0
        self.stops = 0
        self.inbox: list[Any] = []
        self.generations: dict[str, int] = {}  # of the connection to each other process, as known here
        self._offset_ns = world.draw.randrange(-100 * SECOND, 100 * SECOND)
        drift = world.plan.drift_max_ppm
        self._ppm = world.draw.randrange(-drift, drift + 1)
        self._tick_ns = 0

    def local(self, now_ns: int) -> int:
        """A time of the world by this process's clock."""
        return now_ns + now_ns * self._ppm // 1_000_000 + self._offset_ns

    def give(self, event: Any) -> None:
        """Hand an event to the process, or keep it until the process goes on."""
        if not self.is_alive:
            return
        if self.is_stopped:
            self.inbox.append(event)
            return
        if isinstance(event, LinkChange):
            self.generations[event.event.address] = event.generation
            event = event.event
        self.handle(event, self.local(self.world.now_ns))
        self._wind()

    def stop(self) -> None:
        """SIGSTOP."""
        self.is_stopped = True
        self.stops += 1

    def resume(self) -> None:
        """SIGCONT: process everything that came meanwhile."""
        if not self.is_stopped:
            return
        self.is_stopped = False
        inbox, self.inbox = self.inbox, []
        for event in inbox:
            self.give(event)
        self.give(TimeCame())

    def kill(self) -> None:
        """SIGKILL."""
        self.is_alive = self.is_stopped = False
        self.inbox.clear()
        self.generations.clear()

    def start(self) -> None:
        """Start, with nothing of an earlier life."""
        self.is_alive = True
        self.starts += 1
        self._tick_ns = 0
        self.begin(self.local(self.world.now_ns))
        self.give(TimeCame())

    def _wind(self) -> None:
        """Have a tick come when the process wants it."""
        if not self.is_alive:
            return
        now_ns = self.world.now_ns
        wait_ns = self.due_ns() - self.local(now_ns)
        at_ns = now_ns + max(wait_ns + wait_ns // 1000, 0) + 10_000
        if not now_ns < self._tick_ns <= at_ns:
            self._tick_ns = at_ns
            self.world.at(at_ns, self._tick, at_ns, self.starts)

    def _tick(self, at_ns: int, starts: int) -> None:
        if starts == self.starts and at_ns == self._tick_ns:
            self._tick_ns = 0
            self.give(TimeCame())

    def begin(self, local_ns: int) -> None:
        """Make the process's state."""
        raise NotImplementedError

    def handle(self, event: Any, local_ns: int) -> None:
        """Process an event."""
        raise NotImplementedError

    def due_ns(self) -> int:
        """Return the time of the next tick, by the process's clock."""
        raise NotImplementedError


class ControllerProcess(Process):
    """A controller: its contender, and while it is active a desk."""

    contender: Contender

    def begin(self, local_ns: int) -> None:
        """Start as a standby."""
        self.contender = self.world.parts.contender(f"{self.name}/{self.starts}", (self.name,), local_ns)
        self.inheritance = self.world.parts.inheritance()
        self.catalogue: dict[str, int] = {}
        self.desk: Desk | None = None
        self.connection = 0
        self.changes: dict[str, int] = {}  # those without an answer, and the stops when each came
        self.highest = 0  # epoch that the process was told
        self.hand_overs = 0  # those without an outcome

    def due_ns(self) -> int:
        """Return the time of the next tick."""
        due_ns = self.contender.due_ns()
        if self.desk is not None and (desk_ns := self.desk.due_ns()):
            due_ns = min(due_ns, desk_ns)
        return due_ns

    def handle(self, event: Any, local_ns: int) -> None:
        """Process an event: the contender first, then the desk."""
        if isinstance(event, Unlinked):
            self.inheritance.lose(event.address, local_ns)
            if self.desk is not None:
                self.desk.lose(event.address, local_ns)
        elif not isinstance(event, Linked):
            if isinstance(event, Heard):
                self._note(event)
                if event.source in WORKERS:
                    self.inheritance.saw(event.source, local_ns)
            self._carry_out(self.contender.step(event, local_ns), local_ns)
            if isinstance(event, Heard):
                self._serve(event, local_ns)
        if self.desk is not None:
            self.desk.tick(local_ns)
            self._send(self.desk.take())
        active = self.contender.role is LeaseRole.ACTIVE
        must(active == (self.desk is not None), f"{self.name} serves, and is {self.contender.role.value}")
        must(
            not active or self.contender.own.epoch >= self.highest,
            f"{self.name} is active in epoch {self.contender.own.epoch} and was told of {self.highest}",
        )

    def _note(self, heard: Heard) -> None:
        if not isinstance(heard.message, HandOverReady):
            self.highest = max(self.highest, heard.message.leader.epoch)

    def _serve(self, heard: Heard, local_ns: int) -> None:
        message = heard.message
        if self.desk is not None:
            self.desk.hear(heard.source, message, local_ns)
        elif isinstance(message, AskedRequest):
            self._send([TellPeer(heard.source, NotActive(self.contender.leader, message.number))])

    def _send(self, tells: Iterable[TellPeer]) -> None:
        for tell in tells:
            self.world.send(self.name, tell.target, tell.message)

    def _carry_out(self, commands: Iterable[Any], local_ns: int) -> None:
        world = self.world
        for command in commands:
            if isinstance(command, TellPeer):
                world.send(self.name, command.target, command.message)
            elif isinstance(command, QueryLease):
                world.query(self, command.serial, command.operation)
            elif isinstance(command, EndConnection):
                world.hang_up(self)
            elif isinstance(command, AwaitLock):
                world.await_lock(self, command.lock)
            elif isinstance(command, AnnounceLeader):
                for name in (*CONTROLLERS, *WORKERS, *CLIENTS):
                    if name != self.name:
                        world.send(self.name, name, command.message)
            elif isinstance(command, Activate):
                world.judge.activated(self.name, self.starts, command.leader)
                self.inheritance.begin(local_ns)
                self.desk = Desk(command.leader, self.catalogue, self.inheritance)
            elif isinstance(command, StepDown):
                if self.desk is not None:
                    self.desk.step_down(command.leader)
                    self._send(self.desk.take())
                self.desk = None
            elif isinstance(command, ApplyChanges):
                for change in command.changes:
                    self.catalogue[change.name] = change.value
            elif isinstance(command, ChangeEnded):
                ran = self.changes.pop(command.key) == self.stops
                world.change_ended(self, command, ran)
            else:
                self.hand_overs -= 1


class WorkerProcess(Process):
    """A worker: its follower, and a device that takes time."""

    follower: LedWorker

    def begin(self, local_ns: int) -> None:
        """Start with prepared models and none on the device."""
        self.follower = self.world.parts.follower(CONTROLLERS, (*MODELS, LATE_MODEL), local_ns)
        self.loading: set[str] = set()

    def due_ns(self) -> int:
        """Return the time of the next tick."""
        return self.follower.due_ns()

    def handle(self, event: Any, local_ns: int) -> None:
        """Process an event."""
        world = self.world
        if isinstance(event, Heard) and not isinstance(event.message, HandOverReady):
            if not isinstance(event.message, LedOrder | KeepNotes):
                world.judge.told(self.name, event.message.leader.epoch)
        elif isinstance(event, OrderDone):
            self.loading.discard(event.order.model)
        notes = self.follower.notes
        commands = self.follower.step(event, local_ns)
        if self.follower.notes != notes:
            world.judge.noted(self.name, notes, self.follower.notes)
        for command in commands:
            if isinstance(command, RunOrder):
                self._run(command.order)
            else:
                world.send(self.name, command.target, command.message)

    def _run(self, order: LedOrder) -> None:
        world, model = self.world, order.model
        world.judge.obeyed(self.name, order)
        world.judge.told(self.name, order.leader.epoch)
        took_ns, value = LOAD_NS, 0
        if order.deed is Deed.LOAD:
            held = [
                worker.name for worker in world.workers()
                if worker.is_alive and (model in worker.follower.resident or model in worker.loading)
            ]  # fmt: skip
            must(self.name not in held, f"{self.name} was ordered to load {model}, which it holds or loads")
            if held:
                world.judge.loaded_again(self.name, model)
            self.loading.add(model)
        else:
            must(model in self.follower.resident, f"{self.name} was ordered to run {model}, which it lacks")
            assert order.request is not None
            took_ns = 3 * MS + world.draw.randrange(5 * MS)
            value = order.request[1] * 1000 + order.version
        world.at(world.now_ns + took_ns, self._done, OrderDone(order, value), self.starts)

    def _done(self, done: OrderDone, starts: int) -> None:
        if starts == self.starts:
            self.give(done)


class ClientProcess(Process):
    """A client: its asker, and an application that makes requests."""

    asker: Asker

    @property
    def asks_again(self) -> bool:
        """Whether the client asks again by itself; the last client does not."""
        return self.name != CLIENTS[-1]

    def begin(self, local_ns: int) -> None:
        """Start with no request."""
        self.asker = self.world.parts.asker(CONTROLLERS, self.asks_again, local_ns)

    def due_ns(self) -> int:
        """Return the time of the next tick."""
        return self.asker.due_ns()

    def handle(self, event: Any, local_ns: int) -> None:
        """Process an event."""
        world = self.world
        for command in self.asker.step(event, local_ns):
            if isinstance(command, Deliver):
                world.judge.delivered(
                    self.name, command.number, command.outcome, command.answer, world.now_ns
                )
            else:
                if isinstance(command.message, AskedRequest):
                    world.judge.asked(self.name, command.message.number, self.asks_again)
                world.send(self.name, command.target, command.message)
        if isinstance(event, Heard) and not isinstance(event.message, HandOverReady):
            world.judge.told(self.name, event.message.leader.epoch)
        if isinstance(event, TimeCame):
            world.judge.check_unanswered(self.name, world.now_ns)


class Link:
    """A connection of two processes."""

    __slots__ = ("generation", "is_cut", "is_up", "latest_ns")

    def __init__(self) -> None:
        self.generation = 0
        self.is_cut = False
        self.is_up = False
        self.latest_ns: dict[str, int] = {}  # arrival of the last message from each end


class TakeoverWorld:
    """A cluster on a virtual clock. run() returns at its end, or raises Broken."""

    def __init__(self, plan: TakeoverPlan, parts: Parts = PARTS) -> None:
        self.plan = plan
        self.parts = parts
        self.draw = random.Random(f"world {plan.seed} {plan.kind.value}")
        self.now_ns = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._events = 0
        self.table = parts.table("cluster")
        self.judge = Judge(plan, self.table)
        self.processes: dict[str, Process] = {name: ControllerProcess(self, name) for name in CONTROLLERS}
        self.processes |= {name: WorkerProcess(self, name) for name in WORKERS}
        self.processes |= {name: ClientProcess(self, name) for name in CLIENTS}
        self._links: dict[tuple[str, str], Link] = {}
        for controller in CONTROLLERS:
            for name in self.processes:
                if name not in CONTROLLERS or name > controller:
                    self._links[self._pair(controller, name)] = Link()
        self._database_cut: set[str] = set()
        self._is_away = self._hangs = False
        self._slow_database: list[int] = []  # longest delay of each disruption under way
        self._lossy = 0
        self._connections: set[int] = set()  # those that the database knows
        self._connections_made = 0
        self._waiting: dict[str, tuple[int, int]] = {}  # a controller's connection, and the lock it awaits
        self._database_offset_ns = self.draw.randrange(1000 * SECOND)
        self._database_ppm = self.draw.randrange(-plan.drift_max_ppm, plan.drift_max_ppm + 1)
        self._numbers = 0
        self._versions = 0
        self.epoch_before = 0  # epoch of the lease at the first disturbance

    # ----- the clock -----------------------------------------------------------------------------

    def at(self, at_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        """Have something happen at a time."""
        self._events += 1
        heapq.heappush(self._heap, (at_ns, self._events, call, arguments))

    def run(self) -> Judge:
        """Run the world to its end."""
        plan = self.plan
        for name, process in self.processes.items():
            self.at(self.draw.randrange(20 * MS), self._start, name, process.starts)
        for client in CLIENTS:
            self.at(self.draw.randrange(REQUEST_EVERY_NS), self._make_requests, client)
        self.at(CHANGE_EVERY_NS, self._ask_change)
        for disruption in plan.disruptions:
            self.at(disruption.at_ns, self._disrupt, disruption)
            self.at(disruption.at_ns, self._make_request, CLIENTS[0])  # whose wait is measured
            # A model that nobody asked for before is being loaded when the disturbance comes.
            self.at(disruption.at_ns - LOAD_NS // 2, self._make_request, CLIENTS[1], LATE_MODEL)
        is_single = plan.kind in SINGLE
        settled_ns = plan.ends_ns - SECOND // 2 if is_single else plan.quiet_ns + LIVENESS_NS
        first = self._run_until(plan.disruptions[0].at_ns)
        self.epoch_before = first.epoch
        settled = self._run_until(settled_ns)
        last = self._run_until(plan.ends_ns + 2_500 * MS)
        self.judge.finish(self.now_ns, first, last, settled.epoch)
        self._check_standings()
        return self.judge

    def _run_until(self, until_ns: int) -> Any:
        heap = self._heap
        while heap and heap[0][0] < until_ns:
            self.now_ns, _, call, arguments = heapq.heappop(heap)
            call(*arguments)
        return self.table.lease.leader

    def _check_standings(self) -> None:
        """At rest exactly the holder of the lease is active, and everybody knows it."""
        leader = self.table.lease.leader
        for process in self.processes.values():
            if isinstance(process, ControllerProcess):
                is_active = process.contender.role is LeaseRole.ACTIVE
                is_holder = process.contender.holder == leader.holder
                must(is_active == is_holder, f"{process.name} is {process.contender.role.value} at rest")
                known = process.contender.leader
                values = process.catalogue
                must(not process.hand_overs, f"a hand-over of {process.name} has no outcome")
                must(values == self.table.values, f"{process.name} does not have the catalogue at rest")
            elif isinstance(process, WorkerProcess):
                known = process.follower.obedience.leader
            else:
                assert isinstance(process, ClientProcess)
                known = process.asker.obedience.leader
            must(known == leader, f"{process.name} obeys {known.holder} at rest, not {leader.holder}")

    def workers(self) -> list[WorkerProcess]:
        """All workers."""
        return [process for process in self.processes.values() if isinstance(process, WorkerProcess)]

    # ----- links ---------------------------------------------------------------------------------

    @staticmethod
    def _pair(first: str, second: str) -> tuple[str, str]:
        return (first, second) if first < second else (second, first)

    def _delay(self) -> int:
        draw = self.draw.random()
        base = 100_000 + int(draw * draw * 2 * MS)
        if self.now_ns < self.plan.quiet_ns and self.plan.slow_max_ns > 2 * MS and self.draw.random() < 0.1:
            base += int(self.draw.random() * self.plan.slow_max_ns)
        return base

    def send(self, source: str, target: str, message: Message) -> None:
        """Send a message over the link of two processes."""
        link = self._links[self._pair(source, target)]
        if link.is_cut or not link.is_up or self.processes[source].generations.get(target) != link.generation:
            return
        if self._lossy and self.now_ns < self.plan.quiet_ns and self.draw.random() < 0.05:
            self._reset(source, target)
            return
        self._post(source, target, message, link, self._delay())
        if self.plan.is_hostile and self.now_ns < self.plan.quiet_ns and self.draw.random() < 0.05:
            self._post(source, target, message, link, self._delay() + self.draw.randrange(200 * MS))

    def _post(self, source: str, target: str, message: Message, link: Link, delay_ns: int) -> None:
        at_ns = self.now_ns + delay_ns
        if not self.plan.is_hostile:  # a stream keeps its order
            at_ns = link.latest_ns[source] = max(at_ns, link.latest_ns.get(source, 0) + 1)
        self.at(at_ns, self._arrive, source, target, message, link, link.generation)

    def _arrive(self, source: str, target: str, message: Message, link: Link, generation: int) -> None:
        if link.is_cut or link.generation != generation:
            return
        self.processes[target].give(Heard(source, message))

    def _reset(self, source: str, target: str) -> None:
        """Break a connection, and have it come back."""
        self._break(source, target)
        self.at(self.now_ns + self.draw.randrange(1, 50) * MS, self._connect, source, target)

    def _break(self, source: str, target: str) -> None:
        """Break a connection: both ends are told, and what is on it is lost."""
        link = self._links[self._pair(source, target)]
        link.generation += 1
        if link.is_up:
            link.is_up = False
            # Not at once: a process may be in the middle of its step.
            self.at(self.now_ns, self.processes[source].give, LinkChange(Unlinked(target), link.generation))
            self.at(self.now_ns, self.processes[target].give, LinkChange(Unlinked(source), link.generation))

    def _connect(self, source: str, target: str) -> None:
        """Bring a connection up if both of its ends are there."""
        first, second = self.processes[source], self.processes[target]
        link = self._links[self._pair(source, target)]
        if link.is_up or link.is_cut or not first.is_alive or not second.is_alive:
            return
        link.is_up = True
        first.give(LinkChange(Linked(target), link.generation))
        second.give(LinkChange(Linked(source), link.generation))

    def _cut(self, source: str, target: str) -> None:
        self._links[self._pair(source, target)].is_cut = True

    def _heal(self, source: str, target: str) -> None:
        link = self._links[self._pair(source, target)]
        link.is_cut = False
        self._reset(source, target)

    # ----- the database --------------------------------------------------------------------------

    def _database_now(self) -> int:
        return self.now_ns + self.now_ns * self._database_ppm // 1_000_000 + self._database_offset_ns

    def _database_delay(self) -> int:
        slow_ns = self.draw.randrange(self._slow_database[-1]) if self._slow_database else 0
        return 300_000 + self.draw.randrange(2 * MS) + slow_ns

    def query(self, controller: ControllerProcess, serial: int, operation: LeaseOperation) -> None:
        """Send a transaction to the database."""
        if not controller.connection:
            self._connections_made += 1
            controller.connection = self._connections_made
            if not self._is_away and controller.name not in self._database_cut:
                self._connections.add(controller.connection)
        if controller.name in self._database_cut:
            return
        self.at(
            self.now_ns + self._database_delay(), self._execute,
            controller, controller.connection, controller.starts, serial, operation,
        )  # fmt: skip

    def _execute(
        self,
        controller: ControllerProcess,
        connection: int,
        starts: int,
        serial: int,
        operation: LeaseOperation,
    ) -> None:
        if self._is_away or connection not in self._connections:
            if not self._hangs or not self._is_away:
                self._lose_connection(controller, connection, starts)
            return
        before = self.table.lease
        is_locked = before.lock == 0 or before.lock in self.table.locks
        reply = self.table.execute(operation, connection, self._database_now())
        self.judge.executed(operation, before, is_locked, reply)
        is_lost = self._lossy and self.now_ns < self.plan.quiet_ns and self.draw.random() < 0.1
        if is_lost:
            self.end_connection(connection)
            self._lose_connection(controller, connection, starts)
            return
        event = DatabaseReplied(serial, reply)
        self.at(self.now_ns + self._database_delay(), self._answer, controller, connection, starts, event)

    def _lose_connection(self, controller: ControllerProcess, connection: int, starts: int) -> None:
        """Tell a controller that its connection is gone."""
        self.at(self.now_ns + MS, self._answer, controller, connection, starts, DatabaseLost())

    def _answer(self, controller: ControllerProcess, connection: int, starts: int, event: Any) -> None:
        if controller.starts != starts or controller.connection != connection:
            return
        if controller.name in self._database_cut:
            return
        if isinstance(event, DatabaseLost):
            controller.connection = 0
        controller.give(event)

    def hang_up(self, controller: ControllerProcess) -> None:
        """A controller closes its connection. The database of a link that is cut learns of it late."""
        connection, controller.connection = controller.connection, 0
        late_ns = self.draw.randrange(1_000, 8_000) * MS if controller.name in self._database_cut else 0
        self.at(self.now_ns + MS + late_ns, self.end_connection, connection)

    def end_connection(self, connection: int) -> None:
        """The database ends a connection, and tells of the locks that are free now."""
        self._connections.discard(connection)
        free = self.table.release(connection)
        for name, (waiting, lock) in list(self._waiting.items()):
            if lock in free:
                del self._waiting[name]
                self._tell_free(name, waiting, lock)

    def await_lock(self, controller: ControllerProcess, lock: int) -> None:
        """A controller waits for a lock."""
        if controller.connection in self._connections and controller.name not in self._database_cut:
            self._waiting[controller.name] = (controller.connection, lock)
            if lock not in self.table.locks:
                self._tell_free(controller.name, controller.connection, lock)

    def _tell_free(self, name: str, connection: int, lock: int) -> None:
        controller = self.processes[name]
        assert isinstance(controller, ControllerProcess)
        self.at(
            self.now_ns + self._database_delay(), self._answer,
            controller, connection, controller.starts, LockFreed(lock),
        )  # fmt: skip

    def _go_away(self, hangs: bool) -> None:
        self._is_away, self._hangs = True, hangs
        self._connections.clear()
        self._waiting.clear()
        for connection in set(self.table.locks.values()):
            self.table.release(connection)
        if not hangs:
            for name in CONTROLLERS:
                controller = self.processes[name]
                assert isinstance(controller, ControllerProcess)
                if controller.is_alive and controller.connection:
                    self._lose_connection(controller, controller.connection, controller.starts)

    # ----- load ----------------------------------------------------------------------------------

    def _make_requests(self, client: str) -> None:
        """Make a request now, and others after it."""
        if self.now_ns < self.plan.ends_ns:
            self.at(self.now_ns + REQUEST_EVERY_NS + self.draw.randrange(MS), self._make_requests, client)
        self._make_request(client)

    def _make_request(self, client: str, model: str = "") -> None:
        process = self.processes[client]
        assert isinstance(process, ClientProcess)
        if not process.is_alive or process.is_stopped:
            return
        self._numbers += 1
        slo_ns = self.draw.randrange(self.plan.slo_min_ns, 2_001 * MS)
        if self.now_ns >= self.plan.quiet_ns + LIVENESS_NS:
            slo_ns = 2 * SECOND
        model = model or self.draw.choice(MODELS)
        # The client's clock counts the deadline; the judge allows for its drift.
        deadline_ns = process.local(self.now_ns) + slo_ns
        drift_ns = slo_ns * self.plan.drift_max_ppm // 1_000_000
        epoch = process.asker.obedience.leader.epoch
        self.judge.made(
            client, self._numbers, model, self.now_ns, self.now_ns + slo_ns + drift_ns, slo_ns, epoch
        )
        process.give(RequestMade(self._numbers, model, deadline_ns))

    def _ask_change(self) -> None:
        if self.now_ns < self.plan.ends_ns:
            self.at(self.now_ns + CHANGE_EVERY_NS, self._ask_change)
        client = self.processes[CLIENTS[self.draw.randrange(len(CLIENTS))]]
        assert isinstance(client, ClientProcess)
        addresses = client.asker.obedience.leader.addresses
        if not addresses or not client.is_alive or client.is_stopped:
            return
        link = self._links[self._pair(client.name, addresses[0])]
        controller = self.processes[addresses[0]]
        assert isinstance(controller, ControllerProcess)
        if link.is_cut or not link.is_up or not controller.is_alive:
            return
        self._versions += 1
        key, model = f"change {self._versions}", self.draw.choice(MODELS)
        self.judge.change_asked(key, model, self._versions, self.now_ns)
        controller.changes[key] = -1 if controller.is_stopped else controller.stops
        controller.give(ChangeAsked(key, model, self._versions))

    def change_ended(self, controller: ControllerProcess, ended: ChangeEnded, ran: bool) -> None:
        """A controller answers a change."""
        self.judge.change_ended(ended.key, ended.fate, controller.contender.own.epoch, self.now_ns, ran)

    # ----- disturbances --------------------------------------------------------------------------

    def _start(self, name: str, starts: int) -> None:
        process = self.processes[name]
        if process.is_alive or process.starts != starts:
            return
        self.judge.restarted(name)
        process.start()
        for pair in self._links:
            if name in pair:
                self.at(self.now_ns + self.draw.randrange(1, 10) * MS, self._connect, *pair)

    def _resume(self, name: str, starts: int, stops: int) -> None:
        process = self.processes[name]
        if process.starts == starts and process.stops == stops:
            process.resume()

    def _disrupt(self, disruption: Disruption) -> None:
        what, target = disruption.what, disruption.target
        ends_ns = self.now_ns + disruption.lasts_ns
        if target == EVERY:
            for name in CONTROLLERS:
                share = self.draw.random() * 0.5 + 0.5
                each = disruption._replace(target=name, lasts_ns=int(disruption.lasts_ns * share))
                self._disrupt(each)
            return
        if target == ACTIVE:
            addresses = self.table.lease.leader.addresses
            if not addresses:
                return
            target = addresses[0]
        if what is What.KILL:
            self._kill(target, ends_ns)
        elif what is What.STOP:
            process = self.processes[target]
            if process.is_alive and not process.is_stopped:
                process.stop()
                self.at(ends_ns, self._resume, target, process.starts, process.stops)
        elif what is What.CUT:
            self._isolate(target, disruption.other, ends_ns)
        elif what is What.HAND_OVER:
            others = [name for name in CONTROLLERS if name != target]
            controller = self.processes[target]
            assert isinstance(controller, ControllerProcess)
            if controller.is_alive:
                controller.hand_overs += 1
                controller.give(HandOverAsked(self.draw.choice(others)))
        elif what is What.AWAY:
            self._go_away(disruption.hangs)
            self.at(ends_ns, self._come_back)
        elif what is What.BREAK:
            for pair in self._links:
                if target in pair:
                    self._reset(*pair)
        elif what is What.CLOCK:
            self._database_offset_ns += disruption.lasts_ns * (-1 if disruption.hangs else 1)
        elif what is What.SLOW:
            slow_ns = 300 * MS if disruption.hangs else 110 * MS
            self._slow_database.append(slow_ns)
            self.at(ends_ns, self._slow_database.remove, slow_ns)
        else:
            self._lossy += 1
            self.at(ends_ns, self._be_reliable)

    def _be_reliable(self) -> None:
        self._lossy -= 1

    def _come_back(self) -> None:
        self._is_away = False

    def _kill(self, name: str, ends_ns: int) -> None:
        process = self.processes[name]
        if not process.is_alive:
            return
        if isinstance(process, ControllerProcess):
            for key in process.changes:
                self.judge.change_dropped(key)
            self.hang_up(process)
        process.kill()
        for pair, link in self._links.items():
            if name in pair and not link.is_cut:
                self._break(*pair)
        self.at(ends_ns, self._start, name, process.starts)

    def _isolate(self, name: str, other: str, ends_ns: int) -> None:
        """Cut a process from another, or from everything."""
        if other == DATABASE or (not other and name in CONTROLLERS):
            self._database_cut.add(name)
            self.at(ends_ns, self._reach_database, name)
        for pair in self._links:
            if name in pair and (not other or other in pair):
                self._cut(*pair)
                self.at(ends_ns, self._heal, *pair)

    def _reach_database(self, name: str) -> None:
        self._database_cut.discard(name)
