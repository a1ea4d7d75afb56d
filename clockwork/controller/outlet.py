"""The single exit of the controller's decisions: carries effects out in the order of the decisions."""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

import msgpack

from clockwork.controller._exchange import CLIENTS, WORKERS
from clockwork.controller.context import Context
from clockwork.controller.effects import (
    Alert,
    Blame,
    ClearTrouble,
    Complain,
    CountDevices,
    Disconnect,
    Effect,
    FailAction,
    FailActions,
    ForgetReferences,
    Forward,
    Inspect,
    Job,
    LetGo,
    NoteTrouble,
    PackageArrived,
    PackageMended,
    PackagePrepared,
    PingWorker,
    Post,
    Publish,
    ReadChunk,
    Refuse,
    ReplyModel,
    ReplyRoute,
    ScheduleLoss,
    ScheduleReady,
    ScheduleRemoval,
    ScheduleRoom,
    SendClient,
    SendWorker,
    Serve,
    SetClock,
    ShareMachine,
    Tell,
    Withdraw,
)
from clockwork.controller.mirror import ExchangeMirror
from clockwork.controller.ports.clients import ClientPort, failure
from clockwork.controller.ports.posts import to_worker
from clockwork.controller.ports.workers import WorkerPort
from clockwork.controller.registration.registrar import Registrar
from clockwork.controller.storage.repairs import Repairs
from clockwork.controller.storage.thread import CatalogJobs
from clockwork.controller.troubles import ALERTING, TroubleKind
from clockwork.controller.views.queries import Queries
from clockwork.errors import PolicyFailed
from clockwork.scheduler.types import CopyLost, Event, ModelReady, ModelRemoved, RoomWanted
from clockwork.system.clock import now_ns
from clockwork.wire.messages import Ping, Reply
from clockwork.wire.transport import Publisher


class Outlet:
    """Carries effects out, on the controller's thread. effects: the queue that all parts append to."""

    def __init__(
        self,
        effects: deque[Effect],
        context: Context,
        publisher: Publisher,
        clients: ClientPort,
        workers: WorkerPort,
        registrar: Registrar,
        repairs: Repairs,
        queries: Queries,
        jobs: CatalogJobs,
    ) -> None:
        self._effects = effects
        self._context = context
        self._exchange = context.exchange
        self._publisher = publisher
        self._clients = clients
        self._workers = workers
        self._registrar = registrar
        self._repairs = repairs
        self._queries = queries
        self._jobs = jobs
        self._mirror = ExchangeMirror(context.exchange)
        self._is_deciding = False
        self._late: list[Event] = []  # events for the scheduler, once the current decision is over

    def carry_out(self, is_deciding: bool = False) -> None:
        """Carry out every effect in the queue, and those that follow from them.

        is_deciding: the scheduler's orders are being carried out; it is told of no event before that has
        ended.
        """
        self._is_deciding = is_deciding
        if self._late and not is_deciding:
            late, self._late = self._late, []
            for event in late:
                self._tell_now(event)
        while self._effects:
            effect = self._effects.popleft()
            match effect:
                case Tell(event):
                    self._tell(event)
                case ScheduleReady(worker, spec, is_stored):
                    self._tell(ModelReady(self._context.now_ns, worker, spec, is_stored))
                case ScheduleLoss(worker, model_id):
                    self._tell(CopyLost(self._context.now_ns, worker, model_id))
                case ScheduleRoom(worker, size):
                    self._tell(RoomWanted(self._context.now_ns, worker, size))
                case ScheduleRemoval(model_id):
                    self._tell(ModelRemoved(self._context.now_ns, model_id))
                case _:
                    self._attempt(effect)

    def _tell(self, event: Event) -> None:
        if self._is_deciding:
            self._late.append(event)
        else:
            self._tell_now(event)

    def _tell_now(self, event: Event) -> None:
        self._context.flight.told(event)
        self._exchange.note(event)

    def _attempt(self, effect: Effect) -> None:
        try:
            self._carry_out_one(effect)
        except PolicyFailed:
            raise  # the scheduler is in the middle of something
        except Exception as error:  # a defect of ours; the next effect is another's
            self._complain("storage failed", f"failed at {type(effect).__name__}", error)

    def _carry_out_one(self, effect: Effect) -> None:
        match effect:
            # ----- messages
            case Post():
                self._post(effect)
            case SendClient(client, message):
                self._to_client(client, message)
            case Refuse(waiter, error):
                self._to_client(waiter.client, failure(waiter.request_id, error))
            case ReplyModel(waiter, model):
                self._to_client(waiter.client, Reply(waiter.request_id, self._queries.describe(model)))
            case ReplyRoute(waiter, name):
                body = self._queries.describe_route(name)
                self._to_client(waiter.client, Reply(waiter.request_id, body))
                self._publish("route", {"model": name, **body})
            case SendWorker(worker_id, message, frames):
                worker = self._context.links.worker_by_id.get(worker_id)
                if worker is not None:  # otherwise no worker is left to tell
                    self._post(to_worker(worker.identity, worker.fd, message, frames))
            case PingWorker(worker_id):
                worker = self._context.links.worker_by_id.get(worker_id)
                if worker is not None:
                    self._post(to_worker(worker.identity, worker.fd, Ping(now_ns())))
            case Publish(topic, body):
                self._publish(topic, body)
            # ----- what is wrong
            case NoteTrouble(kind, subject, text):
                self._note_trouble(kind, subject, text)
            case ClearTrouble(kind, subject):
                self._context.troubles.clear(kind, subject)
            case Complain(kind, text, error):
                self._complain(kind, text, error)
            case Alert(what):
                self._context.flight.alert(what, self._context.now_ns)
            case Blame(worker_id, why):
                self._workers.blame(worker_id, why)
            case LetGo(worker_id, why):
                self._workers.let_go(worker_id, why)
            # ----- the exchange
            case Serve(model):
                self._mirror.serve(model)
            case Forward():
                self._mirror.forward(effect)
            case Withdraw(model_id):
                self._mirror.withdraw(model_id)
            case ForgetReferences():
                self._exchange.forget_references()
            case CountDevices(count):
                self._exchange.shadow_width = count
            case ShareMachine(machine):
                self._exchange.shared_machine = machine
            case SetClock(worker_id, bounds):
                if (slot := self._slot(worker_id)) is not None:
                    self._exchange.set_clock(slot, *bounds)
            case FailAction(worker_id, action_id, text):
                if (slot := self._slot(worker_id)) is not None:
                    self._exchange.fail_action(slot, action_id, text)
            case FailActions(worker_id, text):
                if (slot := self._slot(worker_id)) is not None:
                    self._exchange.fail_actions(slot, text)
            case Disconnect(side, fd):
                self._exchange.disconnect(side, fd)
            # ----- packages and storage
            case Inspect(digest):
                self._repairs.inspect(digest)
            case PackageArrived(digest):
                self._repairs.arrived(digest)
            case PackageMended(digest):
                self._registrar.package_mended(digest)
            case PackagePrepared(worker_id, digest):
                self._repairs.worker_ready(worker_id, digest)
            case Tell() | ScheduleReady() | ScheduleLoss() | ScheduleRoom() | ScheduleRemoval():
                raise AssertionError(f"{effect} is carry_out()'s")
            case job:
                self._jobs.submit(job, functools.partial(self._job_ended, job))

    def _job_ended(self, job: Job, value: Any, error: BaseException | None) -> None:
        """Take in a job of the storage thread that has ended or failed."""
        if isinstance(job, ReadChunk):
            self._workers.chunk_read(job, value, error)
        else:
            self._registrar.ended(job, value, error, self._context.now_ns)
        self.carry_out()

    def _slot(self, worker_id: int) -> int | None:
        """A known worker's slot in the exchange; None of an unknown worker."""
        worker = self._context.links.worker_by_id.get(worker_id)
        return None if worker is None else worker.slot

    def _to_client(self, client: bytes, message: tuple[Any, ...]) -> None:
        """Send to a client; nothing is sent to a client that is gone."""
        post = self._clients.post(client, message)
        if post is not None:
            self._post(post)

    def _post(self, post: Post) -> None:
        if self._exchange.send(post.side, post.identity, post.fd, post.header, post.frames, post.rest):
            return
        if post.side == CLIENTS:
            self._clients.unreachable(post.identity, post.fd)
        else:
            assert post.side == WORKERS
            self._workers.unreachable(post.identity, post.fd)

    def _publish(self, topic: str, body: dict[str, Any]) -> None:
        self._publisher.send(topic.encode(), msgpack.packb(body))

    def _note_trouble(self, kind: TroubleKind, subject: str, text: str) -> None:
        """Show a trouble in status and metrics until it is cleared; a passing event for a day."""
        if kind in ALERTING:
            self._context.flight.alert(kind.value.replace("_", "-"), self._context.now_ns)
        self._context.troubles.note(kind, subject, text, self._context.now_ns)

    def _complain(self, kind: str, text: str, error: BaseException | None) -> None:
        self._context.complaints.note(kind, self._context.now_ns, text, error)
        self._note_trouble(TroubleKind.MESSAGE_REJECTED, kind, text)
