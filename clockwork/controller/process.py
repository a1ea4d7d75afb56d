"""The controller's process: sockets, timers and books. Every decision is the scheduler's.

One thread drains the sockets, lets the scheduler decide once for all that came together, and carries its orders
out. Requests, results, and the orders and answers that they lead to are the exchange's (``_exchange``), which needs no
Python for them but for names, and for the sentences about what is wrong. What is rare stops there and comes to this
module, which hands it on: messages to ``clients`` and ``workers``. Disk work happens on the storage thread, preparation
on the workers.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from clockwork.config import FRAMES_MAX, HEARTBEAT_NS, PRIORITY_DEFAULT, QUEUED_REQUESTS_MAX, VERSION
from clockwork.config.controller import DRAIN_BATCH_EVENTS, TURN_HEADER_BYTES, TURN_PYTHON_NS
from clockwork.config.recorder import RECORDER_SPAN_NS
from clockwork.controller._exchange import (
    CLIENT_MESSAGE,
    CLIENTS,
    CLIENTS_LEFT,
    ORDER,
    ORDERS_DONE,
    OTHER,
    PAUSED,
    WORKER_MESSAGE,
    WORKERS,
    WORKERS_LEFT,
    WRONG_REQUEST,
    WRONG_RESULT,
    Exchange,
    Ring,
)
from clockwork.controller.catalog.store import Catalog
from clockwork.controller.context import COMPLAINTS, Context
from clockwork.controller.effects import (
    Blame,
    ClearTrouble,
    Effect,
    Forward,
    Inspect,
    Job,
    NoteTrouble,
    PackageArrived,
    PackagePrepared,
    Publish,
    ReadChunk,
    Refuse,
    ReplyModel,
    ReplyRoute,
    ScheduleReady,
    ScheduleRemoval,
    SendClient,
    SendWorker,
    Serve,
    Withdraw,
)
from clockwork.controller.mirror import ExchangeMirror
from clockwork.controller.peers.access import Access
from clockwork.controller.peers.links import Links
from clockwork.controller.peers.seats import divide
from clockwork.controller.ports.clients import Clients, Served
from clockwork.controller.ports.workers import Workers
from clockwork.controller.recording.recorder import FlightRecorder, RecordingFile
from clockwork.controller.recording.telemetry import TelemetryProcess
from clockwork.controller.registration.registrar import Registrar
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.settings import ControllerSettings
from clockwork.controller.storage.repairs import Repairs
from clockwork.controller.storage.thread import CatalogJobs, StorageThread
from clockwork.controller.troubles import TroubleKind, Troubles
from clockwork.controller.views.metrics import MetricsQuery
from clockwork.controller.views.queries import OUTCOMES, Queries
from clockwork.controller.views.source_reports import SourceReports
from clockwork.errors import ConfigError, PolicyFailed
from clockwork.scheduler import make_scheduler
from clockwork.scheduler._core import TEXTS
from clockwork.scheduler.recording import Header
from clockwork.scheduler.types import ModelFault, ModelGone, ModelReady, ModelRemoved
from clockwork.system.clock import now_ns
from clockwork.system.limits import descriptor_limit, open_descriptors, raise_descriptor_limit
from clockwork.system.words import say_count
from clockwork.wire.complaints import Complaints
from clockwork.wire.logs import start_log
from clockwork.wire.messages import Reason, Reply, Status
from clockwork.wire.roles import Port
from clockwork.wire.transport import Transport, require_keys_beyond_loopback, socket_functions

log = logging.getLogger("clockwork.controller")

CUT_TEXTS = {
    "crowd": "too many without a hello",
    "silent": "no hello came in time",
    "received": "more was received of one than it may have on the way",
    "received_all": "more was received of all than they may have on the way",
    "unread": "one left too many bytes unread",
    "unread_all": "all together left too many bytes unread",
    "memory": "memory is short",
}
"""Why the exchange ends connections by itself."""


class Controller:
    """Everything of one controller. run() returns when stop() was called or a signal came."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._access = access = Access(settings.key, settings.allowed)
        keys, gate = access.keys, access.admits
        endpoints = (settings.client_endpoint, settings.worker_endpoint, settings.events_endpoint)
        require_keys_beyond_loopback(endpoints, keys, settings.insecure)
        self.troubles = Troubles()
        self._complaints = Complaints(log, COMPLAINTS)
        self._scheduler = make_scheduler(settings.policy, settings.memory, settings.options)
        self._ring = Ring(settings.recorder_bytes, RECORDER_SPAN_NS)
        header = Header(settings.policy, settings.memory, settings.options, VERSION)
        functions = socket_functions()
        epoch = int.from_bytes(os.urandom(7), "big")
        started_ns = now_ns()
        self._heartbeat_ns = started_ns
        self._cuts: dict[tuple[int, str], int] = {}  # connections ended, by port and by bound
        self._stopping = False
        self._recording: RecordingFile | None = None
        self._telemetry: TelemetryProcess | None = None
        self.seats = seats = divide(descriptor_limit(), open_descriptors())
        self._catalog = Catalog(settings.data)
        self._catalog.open()
        self._transport = Transport()
        try:
            self._client_router = self._transport.router(
                settings.client_endpoint, keys, Port.CLIENTS, gate, monitored=True
            )
            self._worker_router = self._transport.router(
                settings.worker_endpoint, keys, Port.WORKERS, gate, monitored=True
            )
            self._publisher = self._transport.publisher(
                settings.events_endpoint, keys, Port.EVENTS, gate, seats.subscribers
            )
            # Last, so that one that cannot start spoils no files of another that runs.
            if settings.record is not None:
                self._recording = RecordingFile(
                    settings.record, header, self._ring, settings.record_bytes_max
                )
            if settings.telemetry is not None:
                self._telemetry = TelemetryProcess(
                    settings.telemetry,
                    settings.telemetry_bytes_max,
                    header,
                    self._ring,
                    time.time_ns() - now_ns(),
                )
        except ConfigError:
            if self._recording is not None:
                self._recording.close()
            self._transport.close()
            self._catalog.close()
            raise
        self.client_endpoint = self._client_router.endpoint
        self.worker_endpoint = self._worker_router.endpoint
        self.events_endpoint = self._publisher.endpoint
        self._effects: deque[Effect] = deque()  # of the parts below, to be carried out in this order
        self._table = ModelTable(self._effects)
        self._links = Links()
        served = Served(self._table, self._links)
        self._exchange = Exchange(
            self._scheduler, served.find, functions, self._worker_router.addresses(), self._client_router.addresses(),
            TEXTS, ("", *Reason), drain_messages=DRAIN_BATCH_EVENTS, message_frames=FRAMES_MAX,
            turn_bytes=TURN_HEADER_BYTES, turn_python_ns=TURN_PYTHON_NS,
            priority_default=PRIORITY_DEFAULT, queued_requests=QUEUED_REQUESTS_MAX,
            connections={
                CLIENTS: settings.client_bounds.within(seats.clients, seats.clients_ungreeted),
                WORKERS: settings.worker_bounds.within(seats.workers, seats.workers_ungreeted),
            }, ring=self._ring,
        )  # fmt: skip
        self._flight = FlightRecorder(
            self._ring, header, settings.data, self._scheduler.held, epoch, self._scheduler.save, self._exchange.pause
        )  # fmt: skip
        self._context = context = Context(
            self._exchange,
            self._links,
            self._flight,
            self._publisher,
            self.troubles,
            self._complaints,
            epoch,
            started_ns,
        )
        self._mirror = ExchangeMirror(self._exchange)
        self._storage = StorageThread()
        self._jobs = CatalogJobs(self._catalog)
        self._repairs = Repairs(self._effects, self._catalog, self._table)
        self._registrar = Registrar(self._effects, self._table, self._repairs.lacks)
        reports = SourceReports(self.troubles)
        metrics = MetricsQuery(
            context, self._scheduler, self._table, self._registrar.versions, settings.policy, started_ns
        )
        self.queries = Queries(
            context,
            self._scheduler,
            self._table,
            self._registrar.versions,
            self._repairs,
            settings.policy,
            started_ns,
            seats,
        )
        self._clients = Clients(
            context, access, served, self._table, self._registrar, reports, metrics, self.queries
        )
        self._workers = Workers(
            context, access, self._effects, self._table, self._registrar, self._repairs, settings.policy,
            self._scheduler.plans_fetches,
        )  # fmt: skip
        self._needs: dict[int, Callable[[], None]] = {
            OTHER: self._other,
            WORKERS_LEFT: self._workers.ended,
            CLIENTS_LEFT: self._clients.ended,
            WORKER_MESSAGE: self._workers.message,
            CLIENT_MESSAGE: self._clients.message,
            WRONG_RESULT: self._workers.wrong_result,
            WRONG_REQUEST: self._clients.wrong_request,
            ORDER: self._order,
            ORDERS_DONE: self._orders_done,
            PAUSED: self._paused,
        }
        records, complaints = self._catalog.records()
        self._registrar.restore(records, complaints, *self._catalog.routes())
        self._registrar.versions.await_names(settings.await_models)
        self._carry_out()
        self._repairs.start()
        log.info(
            "controller %s listens for clients on %s and for workers on %s; %s in %s; room for %d clients, %d workers and "
            "%d subscribers",
            VERSION, self.client_endpoint, self.worker_endpoint, say_count(len(records), "model"), settings.data,
            seats.clients, seats.workers, seats.subscribers,
        )  # fmt: skip

    def stop(self) -> None:
        """Have run() return after this turn of its loop."""
        self._stopping = True

    def run(self, wake_fd: int = -1) -> None:
        """Serve until stop(). wake_fd: a descriptor that becomes readable when a signal has come."""
        others = [self._storage.fileno(), self._repairs.fileno(), self._flight.fileno()]
        others.append(self._publisher.fileno)
        others += [wake_fd] if wake_fd >= 0 else []
        exchange, context, needs = self._exchange, self._context, self._needs
        exchange.wait_on([*self._worker_router.filenos, *self._client_router.filenos], others)
        gc.collect()
        gc.freeze()
        while not self._stopping:
            need = exchange.run(self._heartbeat_ns)
            context.now_ns = exchange.now_ns
            needs[need]()
            if self._effects:
                self._carry_out()
            if need != ORDER:  # between decisions
                context.tell_events()

    def time_stages(self) -> None:
        """Count what the processor time of this thread goes to."""
        self._exchange.is_timed = True

    def stages_ns(self) -> dict[str, int]:
        """That, since time_stages(), by stage of the loop; libzmq's own thread is not in it."""
        return self._exchange.spent_ns()

    def close(self) -> None:
        """Answer what is open, say goodbye, release everything."""
        text = "the controller is shutting down"
        self._exchange.fail_all(Status.UNAVAILABLE, text)
        self._clients.dismiss()
        self._workers.dismiss()
        if self._recording is not None:
            self._recording.close()
        if self._telemetry is not None:
            self._telemetry.close()
        self._storage.close()
        self._repairs.close()
        self._flight.close()
        self._transport.close()
        self._catalog.close()

    # ----- what the exchange stops for ---------------------------------------------------------------

    def _other(self) -> None:
        """What is neither a message nor an order."""
        self._storage.drain(self._after_job_failed)
        self._repairs.drain(self._after_job_failed)
        self._flight.drain(self._after_job_failed)
        self._publisher.follow()
        if self._context.now_ns >= self._heartbeat_ns:
            self._beat()

    def _after_job_failed(self, error: Exception) -> None:
        """What follows a job of the storage thread raised: whoever waits for that hears nothing, and all others do."""
        self._context.complain("storage failed", "failed at what follows a job of the storage thread", error)

    def _order(self) -> None:
        order = self._exchange.order()
        if type(order) is ModelFault:
            self._registrar.faulted(
                order.model_id, order.fault, self._workers.name(order.worker), order.set_aside
            )
        else:
            assert type(order) is ModelGone, order
            self._registrar.drained(order.model_id)

    def _paused(self) -> None:
        self._flight.paused(self._context.now_ns)

    def _orders_done(self) -> None:
        """The orders of one decision have been carried out, as far as they could."""
        self._exchange.end_orders()
        clients, workers = self._exchange.lost()
        self._clients.lost(clients)
        self._workers.lost(workers)

    # ----- timers --------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._heartbeat_ns = self._context.now_ns + HEARTBEAT_NS
        self._workers.beat()
        self._registrar.beat(self._context.now_ns)
        self._complaints.settle(self._context.now_ns)
        self._note_cuts()
        counts = dict(zip(OUTCOMES, self._exchange.outcomes(), strict=True))
        bad = counts["refused"] + counts["missed"] + counts["failed"]
        self._flight.beat(counts["answered"], bad, self._context.now_ns)
        if self._telemetry is not None and (failure := self._telemetry.failure()):
            self._context.note_trouble(TroubleKind.TELEMETRY_FAILED, str(self._telemetry.folder), failure)
        if self._access.has_changed():
            self._read_keys()
        for text in self._access.refusals():
            self._complaints.note("key refused", self._context.now_ns, text)
        if count := self._publisher.look():
            self._context.complain(
                "events cut",
                f"{count} connections for events were ended: they said more than a subscriber has to, or nothing in time",
            )
        self._context.publish("counts", {"held": self._exchange.held_count, **self.queries.count_all()})

    def _note_cuts(self) -> None:
        """Say in the log whose connections were ended since the last beat, by port and by bound."""
        for side, name in ((CLIENTS, "clients"), (WORKERS, "workers")):
            found = self._exchange.connections(side)["cut"]
            for reason, count in found.items():
                before = self._cuts.get((side, reason), 0)
                if count > before and reason != "asked":
                    text = f"{count - before} connections of {name} were ended: {CUT_TEXTS[reason]}"
                    self._context.complain(f"{name} cut", text)
                self._cuts[side, reason] = count

    def _read_keys(self) -> None:
        """Take in the list of keys as it is now, and end the connections of keys that lost what they were let in for."""
        try:
            revoked = self._access.read_again()
        except ConfigError as error:
            log.error("%s; the keys that were let in before still are", error)
            self._context.note_trouble(TroubleKind.KEYS_UNREADABLE, "keys", str(error))
            return
        self._context.clear_trouble(TroubleKind.KEYS_UNREADABLE, "keys")
        log.info("the list of keys was read again: %d are no longer let in as before", len(revoked))
        if not revoked:
            return
        why = "its key was revoked"
        self._workers.revoke(revoked, why)
        self._clients.revoke(revoked, why)
        self._publisher.disconnect_all()

    # ----- what registration and repairs have done (see controller.effects) --------------------------

    def _carry_out(self) -> None:
        """Do what the parts have ordered so far, and what follows from that."""
        while self._effects:
            effect = self._effects.popleft()
            try:
                self._carry_out_one(effect)
            except PolicyFailed:
                raise  # the scheduler is in the middle of something
            except Exception as error:  # a defect of ours; the next effect is another's
                self._context.complain("storage failed", f"failed at {type(effect).__name__}", error)

    def _carry_out_one(self, effect: Effect) -> None:
        match effect:
            case SendClient(client, message):
                self._clients.send(client, message)
            case Refuse(waiter, error):
                self._clients.fail(waiter.client, waiter.request_id, error)
            case ReplyModel(waiter, model):
                self._clients.send(waiter.client, Reply(waiter.request_id, self.queries.describe(model)))
            case ReplyRoute(waiter, name):
                body = self.queries.describe_route(name)
                self._clients.send(waiter.client, Reply(waiter.request_id, body))
                self._context.publish("route", {"model": name, **body})
            case SendWorker(worker, message):
                self._workers.send(worker, message)
            case Publish(topic, body):
                self._context.publish(topic, body)
            case NoteTrouble(kind, subject, text):
                self._context.note_trouble(kind, subject, text)
            case ClearTrouble(kind, subject):
                self._context.clear_trouble(kind, subject)
            case Blame(worker, why):
                self._workers.blame(worker, why)
            case ScheduleReady(worker, spec):
                self._context.events.append(ModelReady(self._context.now_ns, worker, spec))
            case ScheduleRemoval(model_id):
                self._context.events.append(ModelRemoved(self._context.now_ns, model_id))
            case Serve(model):
                self._mirror.serve(model)
            case Forward():
                self._mirror.forward(effect)
            case Withdraw(model_id):
                self._mirror.withdraw(model_id)
            case Inspect(digest):
                self._repairs.inspect(digest)
            case PackageArrived(digest):
                self._repairs.arrived(digest)
            case PackagePrepared(worker, digest):
                self._repairs.worker_ready(worker, digest)
            case _:
                self._storage.submit(
                    functools.partial(self._jobs.run, effect), functools.partial(self._job_ended, effect)
                )

    def _job_ended(self, job: Job, value: Any, error: BaseException | None) -> None:
        """Storage has done a job, or has failed at it."""
        if isinstance(job, ReadChunk):
            self._workers.chunk_read(job, value, error)
        else:
            self._registrar.ended(job, value, error, self._context.now_ns)
        self._carry_out()


def main(settings: ControllerSettings) -> int:
    """Run a controller until SIGINT or SIGTERM; returns the exit status. Raises ConfigError."""
    start_log("controller")
    # A signal may come while it starts, too: it then ends in order before it has begun.
    stopped = False
    controller: Controller | None = None

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        if controller is not None:
            controller.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    raise_descriptor_limit()
    controller = Controller(settings)
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    if stopped:
        controller.stop()
    try:
        controller.run(read_end)
        log.info("shutting down")
    finally:
        controller.close()
        signal.set_wakeup_fd(-1)
        os.close(read_end)
        os.close(write_end)
    return 0
