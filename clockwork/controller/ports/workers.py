"""The workers of a controller: their admission, the handling of their messages, and their dismissal.

A worker's message, whatever it holds, can do harm to that worker alone.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar

from clockwork.config import FAILURE_CHARS_MAX, VERSION, WORKERS_MAX
from clockwork.config.controller import (
    COPIES_DRAIN_NS,
    FETCHES_MAX,
    JITTER_COUNTED_MAX_NS,
    STATS_BYTES_DEVICE,
    STATS_BYTES_WORKER,
    STATS_VALUES_DEVICE,
    STATS_VALUES_WORKER,
    WORKER_FAULTS_MAX,
    WORKER_TIMEOUT_NS,
    planned_store_bytes,
)
from clockwork.controller._exchange import SEAT_FREE, SEAT_NONE, WORKERS
from clockwork.controller.catalog.objects import StoreFailed
from clockwork.controller.context import Context
from clockwork.controller.effects import (
    Alert,
    ClearTrouble,
    Complain,
    CountDevices,
    Disconnect,
    Effect,
    FailAction,
    FailActions,
    ForgetReferences,
    LetGo,
    NoteTrouble,
    PingWorker,
    Publish,
    ReadChunk,
    SetClock,
    ShareMachine,
    Tell,
)
from clockwork.controller.peers.access import Access
from clockwork.controller.peers.links import (
    CLIENT_AT_WORKERS,
    OWN_NAME_TEXT,
    WorkerLink,
    bundle_kind,
    check_stats,
    count_values,
    is_hello,
    is_older,
    is_ours,
    mismatch,
    named,
    new_damage,
    parse_devices,
    sharing,
    why_no_store,
    why_not_shared,
)
from clockwork.controller.ports.flaws import Flaw, result_text
from clockwork.controller.ports.posts import to_worker
from clockwork.controller.registration.registrar import Registrar
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.registration.versions import StoreBound
from clockwork.controller.storage.repairs import Repairs
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import Forbidden, InvalidInput, PolicyFailed
from clockwork.formats.package import DamagedPackage
from clockwork.scheduler.types import (
    DeviceClock,
    DeviceLost,
    LinkMeasured,
    ModelKept,
    TimeWanted,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    device_shape,
)
from clockwork.wire import codec
from clockwork.wire.forms import INT64_MAX
from clockwork.wire.messages import (
    FROM_CLIENT,
    FROM_WORKER,
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    BundleRefused,
    BundleWanted,
    Chunk,
    ClientHello,
    ClockChanged,
    DeviceFault,
    Fetch,
    Goodbye,
    Heartbeat,
    HelloNeeded,
    Mismatch,
    NotStored,
    Pong,
    Prepared,
    Status,
    StillResident,
    TimeNeeded,
    WorkerHello,
    WorkerWelcome,
)
from clockwork.wire.shared import MACHINE, machine_id
from clockwork.wire.telling import printable

log = logging.getLogger("clockwork.controller")


class WorkerPort:
    """All workers. They come and go by their messages, and as the exchange reports of their connections.

    policy, plans_fetches, sole_copies: the scheduler's; see Scheduler. joined: told the name and the number
    of each worker that joins.
    """

    def __init__(
        self,
        context: Context,
        access: Access,
        effects: deque[Effect],
        table: ModelTable,
        registrar: Registrar,
        repairs: Repairs,
        policy: str,
        plans_fetches: bool,
        sole_copies: Callable[[int], int],
        joined: Callable[[str, int], None],
    ) -> None:
        self._context = context
        self._exchange = context.exchange
        self._links = context.links
        self._access = access
        self._effects = effects
        self._table = table
        self._registrar = registrar
        self._repairs = repairs
        self._bundles = registrar.versions.bundles
        self._policy = policy
        self._plans_fetches = plans_fetches
        self._sole_copies = sole_copies
        self._joined = joined
        # By epochs of workers that were let go: the reason; they are not admitted again
        self._let_go: dict[int, str] = {}
        self._next_id = 1
        self._machine = machine_id()

    # ----- coming and going --------------------------------------------------------------------------

    def ended(self) -> None:
        """Let workers go whose connections have ended."""
        for fd in self._exchange.ended(WORKERS):
            worker = self._links.worker_of_fd.pop(fd, None)
            if worker is not None:
                self._gone(worker, "disconnected")

    def lost(self, worker_ids: Iterable[int]) -> None:
        """Let workers go that could not be reached."""
        for worker_id in worker_ids:
            worker = self._links.worker_by_id.get(worker_id)
            if worker is not None:
                self._gone(worker, "cannot be reached")

    def unreachable(self, identity: bytes, fd: int) -> None:
        """Let the worker at this descriptor go: a message for it could not be queued."""
        worker = self._links.workers.get(identity)
        if worker is not None and worker.fd == fd:
            self._gone(worker, "cannot be reached")

    def revoke(self, keys: Collection[str], why: str) -> None:
        """End the connections of these keys."""
        for worker in [link for link in self._links.workers.values() if link.key in keys]:
            self._gone(worker, why)
            self._effects.append(Disconnect(WORKERS, worker.fd))

    def dismiss(self) -> None:
        """Tell all workers that the controller ends."""
        for worker in self._links.workers.values():
            self._effects.append(to_worker(worker.identity, worker.fd, Goodbye()))

    def beat(self) -> None:
        """Ping all workers for their clocks, and let silent workers go. Called at each heartbeat."""
        for worker in list(self._links.workers.values()):
            if self._context.now_ns - self._exchange.heard_ns(worker.slot) > WORKER_TIMEOUT_NS:
                self._gone(worker, f"unheard of for {WORKER_TIMEOUT_NS / 1e9:g} s")
                self._effects.append(to_worker(worker.identity, worker.fd, HelloNeeded(self._context.epoch)))
            else:
                self._watch_clock(worker)
                self._ping(worker)
                if worker.copies_until_ns:
                    self._release_if_copied(worker)

    def _greet(self, identity: bytes, fd: int, known: WorkerLink | None, message: Any, key: str) -> None:
        if type(message) is not WorkerHello:
            self._effects.append(to_worker(identity, fd, HelloNeeded(self._context.epoch)))
            return
        if message.protocol < PROTOCOL_OLDEST:
            self._effects.append(to_worker(identity, fd, mismatch(message.protocol, message.version)))
            return
        if self._context.lease.is_over(message.lease, is_worker=True):
            return  # it serves the other
        devices = parse_devices(message.devices)
        if why := why_not_shared(devices):
            self._reject(identity, fd, why)
            return
        if message.worker_epoch in self._let_go:
            self._reject(identity, fd, _let_go_text(self._let_go[message.worker_epoch]))
            return
        if devices[0].host_bytes and not self._plans_fetches:
            text = (
                f"policy {self._policy} cannot plan for a host store with a budget (--host-bytes): "
                f"start the controller with --policy adaptive, or the worker without a budget"
            )
            self._reject(identity, fd, text)
            return
        kind = bundle_kind(devices, message.version)
        if why := why_no_store(devices, kind):
            self._reject(identity, fd, why)
            return
        for other in list(self._links.workers.values()):
            if other.worker_epoch == message.worker_epoch or other is known:
                self._gone(other, "reconnected")
        other_at = self._links.worker_of_fd.get(fd)
        if not is_ours(identity):
            self._reject(identity, fd, OWN_NAME_TEXT)
            return
        if other_at is not None and is_older(identity, other_at.identity):
            return
        if other_at is not None:  # the end of the connection was read before its hello was
            self._gone(other_at, "disconnected")
        seat = self._exchange.seat_for(WORKERS, fd, key)
        if seat == SEAT_NONE:
            text = f"{len(self._links.workers)} workers are connected, which is the most"
            self._reject(identity, fd, text)
            return
        if seat != SEAT_FREE:
            self._gone(self._links.worker_of_fd[seat], "gave way to another")
        slot = self._exchange.worker_joined(identity, fd, key, self._next_id, len(devices))
        if slot is None:
            return  # the connection has ended: a hello may be read after that
        now, name, worker_id = self._context.now_ns, printable(message.name), self._next_id
        self._next_id += 1
        worker = WorkerLink(identity, fd, slot, worker_id, name, message.worker_epoch, devices, now, key)
        self._links.workers[identity] = self._links.worker_of_fd[fd] = worker
        self._links.worker_by_id[worker_id] = worker
        welcome = WorkerWelcome(
            min(message.protocol, PROTOCOL_VERSION),
            VERSION,
            self._context.epoch,
            worker_id,
            self._context.lease.row,
        )
        self._effects.append(to_worker(identity, fd, welcome))
        self._ping(worker)
        self._count_devices()
        shapes = tuple(
            device_shape(
                f"{device.kind}/{device.fingerprint}",
                device.page_bytes,
                device.page_count,
                device.run_ahead,
                device.arena,
                device.slowdown_thousandths,
            )
            for device in devices
        )
        stored = devices[0].store_bytes
        planned = planned_store_bytes(stored)
        self._effects.append(Tell(WorkerJoined(now, worker_id, shapes, devices[0].host_bytes, planned)))
        self._bundles.joined(worker_id, name, kind)
        self._joined(name, worker_id)
        self._registrar.worker_joined(
            worker_id,
            name,
            lambda model_id: sum(self._exchange.outcomes(model_id)),
            StoreBound(kind, stored) if stored else None,
            devices[0].threads,
        )
        kinds = ", ".join(device.kind for device in devices)
        log.info("worker %s joined as %d with %s", name, worker_id, kinds)
        self._effects.append(Publish("worker", {"worker": name, "state": "joined"}))

    def _reject(self, identity: bytes, fd: int, text: str) -> None:
        self._effects.append(to_worker(identity, fd, Mismatch(PROTOCOL_VERSION, text)))

    def _gone(self, worker: WorkerLink, why: str) -> None:
        if self._links.workers.pop(worker.identity, None) is None:
            return
        if self._links.worker_of_fd.get(worker.fd) is worker:
            del self._links.worker_of_fd[worker.fd]
        del self._links.worker_by_id[worker.worker_id]
        if worker.clock_is_lost:
            self._effects.append(ClearTrouble(TroubleKind.WORKER_CLOCK, worker.name))
        self._count_devices()
        self._exchange.worker_left(worker.slot)
        self._effects.append(ForgetReferences())
        self._effects.append(Tell(WorkerLeft(self._context.now_ns, worker.worker_id)))
        self._registrar.worker_left(worker.worker_id)
        self._repairs.worker_left(worker.worker_id)
        for index in worker.offline:
            self._effects.append(ClearTrouble(TroubleKind.DEVICE_LOST, f"{worker.name}/{index}"))
        log.info("worker %s (%d) left: %s", worker.name, worker.worker_id, why)
        if not worker.is_draining:
            self._effects.append(Alert("worker-lost"))
        self._effects.append(Publish("worker", {"worker": worker.name, "state": "left", "why": why}))

    def _fault(self, worker: WorkerLink, why: str) -> bool:
        """Count an impossible statement of a worker; False if it was the last that is tolerated."""
        if worker.worker_epoch in self._let_go:
            return False  # the worker is leaving already
        worker.faults += 1
        text = f"worker {worker.name} sent an impossible answer: {why}"
        self._effects.append(Complain("worker fault", text))
        if worker.faults < WORKER_FAULTS_MAX:
            return True
        text = f"{worker.faults} of its answers were none: {why}"
        self._effects.append(NoteTrouble(TroubleKind.WORKER_LET_GO, worker.name, text))
        if len(self._let_go) >= WORKERS_MAX:
            del self._let_go[next(iter(self._let_go))]
        self._let_go[worker.worker_epoch] = why
        # The worker is treated like one that leaves in order: no model is at fault for its unfinished
        # actions.
        self._effects.append(Tell(WorkerDraining(self._context.now_ns, worker.worker_id)))
        self._effects.append(FailActions(worker.worker_id, "the worker that had it was let go"))
        self._reject(worker.identity, worker.fd, _let_go_text(why))
        self._effects.append(LetGo(worker.worker_id, "was let go"))
        return False

    def _count_devices(self) -> None:
        count = sum(len(worker.devices) for worker in self._links.workers.values())
        self._effects.append(CountDevices(max(1, count)))
        self._compare_machines()

    def _compare_machines(self) -> None:
        """Tell the exchange the machine that all workers are on, if there is one (see wire/shared.py), and
        the relay of bundles which workers are alone on theirs."""
        machines = {number: _machine_of(worker) for number, worker in self._links.worker_by_id.items()}
        counts = Counter([*machines.values(), self._machine])
        for number, machine in machines.items():
            self._bundles.shares_machine(number, not machine or counts[machine] > 1)
        first = next(iter(machines.values()), 0)
        self._effects.append(ShareMachine(first if set(machines.values()) == {first} else 0))

    def _watch_clock(self, worker: WorkerLink) -> None:
        """Note a trouble of a worker whose clock cannot be followed, since its windows are meaningless."""
        complaint = worker.clock.complaint(worker.joined_ns, self._context.now_ns)
        if complaint and not worker.clock_is_lost:
            log.warning("the clock of worker %s cannot be followed: %s", worker.name, complaint)
            self._effects.append(NoteTrouble(TroubleKind.WORKER_CLOCK, worker.name, complaint))
        elif worker.clock_is_lost and not complaint:
            self._effects.append(ClearTrouble(TroubleKind.WORKER_CLOCK, worker.name))
        worker.clock_is_lost = bool(complaint)

    def _ping(self, worker: WorkerLink) -> None:
        self._effects.append(PingWorker(worker.worker_id))

    # ----- messages ----------------------------------------------------------------------------------

    def message(self) -> None:
        """Handle a message of a worker that is no result, which the exchange holds."""
        self._from(*self._exchange.message(), self._exchange.key())

    def _from(self, identity: bytes, fd: int, frames: list[Any], key: str) -> None:
        worker = self._links.workers.get(identity)
        kind = "message"
        try:
            if not frames:
                raise codec.WireError("a message is a header and at most a bounded number of frames")
            message = codec.decode(frames[0], FROM_WORKER)
            kind = type(message).__name__
            self._access.check(key, message)
            if worker is None or type(message) is WorkerHello:
                self._greet(identity, fd, worker, message, key)
            else:
                self._handlers[type(message)](self, worker, message, frames)
        except Forbidden as error:
            self._reject(identity, fd, str(error))
        except PolicyFailed:
            raise  # the scheduler's state may be inconsistent
        except Exception as error:
            if worker is None and is_hello(frames, FROM_CLIENT, ClientHello):
                self._effects.append(to_worker(identity, fd, CLIENT_AT_WORKERS))
                self._effects.append(Complain("worker malformed", "a client came to the workers' port"))
                return
            if worker is not None and isinstance(error, codec.UnknownKind):
                # A later release may tell more than this one knows.
                self._effects.append(Complain("worker malformed", f"{named(worker)}: {error}"))
                return
            self._turn_away(identity, fd, worker, kind, error)

    def _turn_away(
        self, identity: bytes, fd: int, worker: WorkerLink | None, kind: str, error: Exception
    ) -> None:
        """Let a worker go whose message could not be handled: its state and ours may differ from then on."""
        if isinstance(error, codec.WireError | InvalidInput):
            text = f"malformed message from {named(worker)}: {error}"
            self._effects.append(Complain("worker malformed", text))
            why = str(error)
        else:  # a defect of ours; the next message is another worker's
            self._effects.append(Complain("worker failed", f"failed at a {kind} of {named(worker)}", error))
            why = f"the controller failed at this worker's {kind}"
        link = self._links.workers.get(identity)  # the worker may have joined by that very message
        if link is not None:
            self._gone(link, "speaks nonsense")
        if worker is None:
            self._reject(identity, fd, why[:FAILURE_CHARS_MAX])

    def wrong_result(self) -> None:
        """Hold an impossible result, which the exchange has found, against its worker."""
        identity, fd, frames = self._exchange.message()
        worker = self._links.workers[identity]
        try:
            self._hold_against(worker, self._exchange.flaw(), frames[0])
        except PolicyFailed:
            raise  # the scheduler's state may be inconsistent
        except Exception as error:
            self._turn_away(identity, fd, worker, "Result", error)

    def _hold_against(self, worker: WorkerLink, flaw: Flaw, header: bytes) -> None:
        if flaw.header is not None:
            raise codec.WireError(codec.complaint(header, FROM_WORKER, flaw.header))
        if self._fault(worker, result_text(flaw)):
            # The scheduler plans the action's requests anew.
            self._effects.append(FailAction(worker.worker_id, flaw.id, "a worker's answer was none"))

    def _heartbeat(self, worker: WorkerLink, message: Heartbeat, frames: list[Any]) -> None:
        bytes_max = STATS_BYTES_WORKER + STATS_BYTES_DEVICE * len(worker.devices)
        values_max = STATS_VALUES_WORKER + STATS_VALUES_DEVICE * len(worker.devices)
        if len(frames[0]) > bytes_max:
            raise InvalidInput(
                f"a heartbeat of {len(frames[0])} bytes, of which a worker of {len(worker.devices)} devices "
                f"has {bytes_max}"
            )
        if count_values(message.stats, values_max) > values_max:
            raise InvalidInput(f"stats of more than {values_max} values, for {len(worker.devices)} devices")
        check_stats(message.stats, len(worker.devices))
        worker.jitter_ns = message.jitter_ns
        if text := new_damage(worker.stats, message.stats):
            subject = f"store of worker {worker.name}"
            self._effects.append(NoteTrouble(TroubleKind.FILE_REPAIRED, subject, text))
        has_moved = worker.stats.get(MACHINE) != message.stats.get(MACHINE)
        worker.stats = message.stats
        if has_moved:
            self._compare_machines()

    def _pong(self, worker: WorkerLink, message: Pong, frames: list[Any]) -> None:
        worker.clock.pong(message.sent_ns, message.received_ns, message.returned_ns, self._context.now_ns)
        self._effects.append(SetClock(worker.worker_id, worker.clock.bounds()))
        there, back = worker.clock.there_ns(), worker.clock.back_ns()
        there += min(worker.jitter_ns, JITTER_COUNTED_MAX_NS)
        self._effects.append(Tell(LinkMeasured(self._context.now_ns, worker.worker_id, there, back)))

    def _fetch(self, worker: WorkerLink, message: Fetch, frames: list[Any]) -> None:
        files = self._table.files_of(message.digest)
        if worker.fetches >= FETCHES_MAX:
            raise InvalidInput(f"a worker waits for at most {FETCHES_MAX} chunks at once")
        if not files and self._bundles.fetch(worker.worker_id, message, self._context.now_ns):
            return
        if message.file >= len(files):
            chunk = Chunk(message.digest, message.file, message.offset, Status.INTERNAL)
            self._effects.append(to_worker(worker.identity, worker.fd, chunk, [b""]))
            return
        worker.fetches += 1
        file = files[message.file]
        job = ReadChunk(worker.worker_id, message.digest, message.file, file, message.offset, message.length)
        self._effects.append(job)

    def _chunk(self, worker: WorkerLink, message: Chunk, frames: list[Any]) -> None:
        frame = frames[1] if len(frames) > 1 else None
        if not self._bundles.chunk(worker.worker_id, message, frame, self._context.now_ns):
            self._repairs.on_chunk(worker.worker_id, message, frame)

    def _bundle_wanted(self, worker: WorkerLink, message: BundleWanted, frames: list[Any]) -> None:
        self._bundles.wanted(worker.worker_id, message.model_id)

    def _bundle_refused(self, worker: WorkerLink, message: BundleRefused, frames: list[Any]) -> None:
        self._registrar.bundle_refused(worker.worker_id, message)

    def _not_stored(self, worker: WorkerLink, message: NotStored, frames: list[Any]) -> None:
        self._registrar.not_stored(worker.worker_id, message)

    def _prepared(self, worker: WorkerLink, message: Prepared, frames: list[Any]) -> None:
        self._registrar.prepared(worker.worker_id, message, self._context.now_ns)
        self._effects.append(ForgetReferences())  # a version may have failed everywhere

    def _device_fault(self, worker: WorkerLink, message: DeviceFault, frames: list[Any]) -> None:
        index = message.device
        if index >= len(worker.devices):
            raise InvalidInput(f"device {index} of {len(worker.devices)}")
        if index in worker.offline:
            return
        self._effects.append(Tell(DeviceLost(self._context.now_ns, worker.worker_id, index)))
        for lost in sharing(worker.devices, index):
            self._note_lost(worker, lost, message.text)

    def _note_lost(self, worker: WorkerLink, index: int, text: str) -> None:
        worker.offline[index] = text[:300]
        name = worker.devices[index].name
        log.error("device %d (%s) of worker %s is offline: %s", index, name, worker.name, text[:300])
        self._effects.append(NoteTrouble(TroubleKind.DEVICE_LOST, f"{worker.name}/{index}", text))
        lost = {"worker": worker.name, "state": "device lost", "device": index, "why": worker.offline[index]}
        self._effects.append(Publish("worker", lost))

    def _clock_changed(self, worker: WorkerLink, message: ClockChanged, frames: list[Any]) -> None:
        if message.device >= len(worker.devices):
            raise InvalidInput(f"device {message.device} of {len(worker.devices)}")
        event = DeviceClock(self._context.now_ns, worker.worker_id, message.device, message.mhz)
        self._effects.append(Tell(event))

    def _time_needed(self, worker: WorkerLink, message: TimeNeeded, frames: list[Any]) -> None:
        if message.device >= len(worker.devices):
            raise InvalidInput(f"device {message.device} of {len(worker.devices)}")
        pages = worker.devices[message.device].page_count
        if sum(message.runs) > pages:
            raise InvalidInput(f"{sum(message.runs)} pages of {pages}")
        now, device, runs = self._context.now_ns, message.device, tuple(message.runs)
        wanted = TimeWanted(now, worker.worker_id, device, message.model_id, message.expected_ns, runs)
        self._effects.append(Tell(wanted))

    def _still_resident(self, worker: WorkerLink, message: StillResident, frames: list[Any]) -> None:
        if message.device >= len(worker.devices):
            raise InvalidInput(f"device {message.device} of {len(worker.devices)}")
        now, starts = self._context.now_ns, tuple(message.run_starts)
        kept = ModelKept(now, worker.worker_id, message.device, message.model_id, message.load_id, starts)
        self._effects.append(Tell(kept))

    def _leaves(self, worker: WorkerLink, message: Goodbye, frames: list[Any]) -> None:
        self._effects.append(Tell(WorkerDraining(self._context.now_ns, worker.worker_id)))
        worker.is_draining = True
        self._registrar.worker_drains(worker.worker_id)
        log.info("worker %s (%d) is leaving", worker.name, worker.worker_id)
        self._effects.append(Publish("worker", {"worker": worker.name, "state": "draining"}))
        if worker.devices[0].store_bytes:  # the scheduler is to know first that it leaves
            worker.copies_until_ns = self._context.now_ns + COPIES_DRAIN_NS
        else:
            self._release(worker)

    def _release_if_copied(self, worker: WorkerLink) -> None:
        """Answer a worker that leaves, unless others are still to fetch what only its store has."""
        has_elsewhere = self._registrar.versions.has_elsewhere(worker.worker_id)
        is_due = self._context.now_ns >= worker.copies_until_ns
        if is_due or not (has_elsewhere and self._sole_copies(worker.worker_id)):
            self._release(worker)

    def _release(self, worker: WorkerLink) -> None:
        """Answer a worker that leaves."""
        worker.copies_until_ns = 0
        self._bundles.drains(worker.worker_id)
        # All its orders were sent before this, and it gets no more: once the worker has answered them, it may
        # go.
        self._effects.append(to_worker(worker.identity, worker.fd, Goodbye()))

    _handlers: ClassVar[dict[type, Any]] = {
        Heartbeat: _heartbeat,
        Pong: _pong,
        Fetch: _fetch,
        Chunk: _chunk,
        Prepared: _prepared,
        BundleWanted: _bundle_wanted,
        BundleRefused: _bundle_refused,
        StillResident: _still_resident,
        NotStored: _not_stored,
        DeviceFault: _device_fault,
        ClockChanged: _clock_changed,
        TimeNeeded: _time_needed,
        Goodbye: _leaves,
    }

    # ----- what others have found --------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of the workers that are to come back where the controller is lost."""
        return sorted(worker.name for worker in self._links.workers.values() if not worker.is_draining)

    def name(self, worker_id: int) -> str:
        """The name of a connected worker, else ""."""
        worker = self._links.worker_by_id.get(worker_id)
        return worker.name if worker else ""

    def let_go(self, worker_id: int, why: str) -> None:
        """Let a worker go, if it has not left already."""
        worker = self._links.worker_by_id.get(worker_id)
        if worker is not None:
            self._gone(worker, why)

    def blame(self, worker_id: int, why: str) -> None:
        """Hold an impossible statement against a worker."""
        worker = self._links.worker_by_id.get(worker_id)
        if worker is not None:
            self._fault(worker, why)

    def chunk_read(self, job: ReadChunk, data: bytes | None, error: BaseException | None) -> None:
        """Send a worker the piece of a package that storage has read, or that the read failed."""
        if isinstance(error, OSError | DamagedPackage) and not isinstance(error, StoreFailed):
            self._repairs.inspect(job.digest)
        worker = self._links.worker_by_id.get(job.worker)
        if worker is None:
            return
        worker.fetches -= 1
        status = Status.OK if error is None else Status.INTERNAL
        chunk = Chunk(job.digest, job.file_index, job.offset, status)
        self._effects.append(to_worker(worker.identity, worker.fd, chunk, [data if error is None else b""]))


def _machine_of(worker: WorkerLink) -> int:
    """The machine that a worker tells; 0: it has told none."""
    machine = worker.stats.get(MACHINE, 0)
    return machine if type(machine) is int and 0 < machine <= INT64_MAX else 0


def _let_go_text(why: str) -> str:
    return f"{WORKER_FAULTS_MAX} of this worker's answers were none, the last: {why}; it is let go until it is started anew"[
        :FAILURE_CHARS_MAX
    ]
