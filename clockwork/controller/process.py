"""The controller's process: sockets, timers and books. Every decision is the scheduler's.

One thread turns messages into events, steps the scheduler once for all that came together, and turns
its commands into messages. Disk work happens on the storage thread, preparation on the workers.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from typing import Any, ClassVar

import msgpack

from clockwork import __version__, wire
from clockwork.clock import now_ns
from clockwork.config import (
    CLIENTS_MAX,
    DRAIN_BATCH_EVENTS,
    HEARTBEAT_NS,
    JITTER_COUNTED_MAX_NS,
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    QUEUED_REQUESTS_MAX,
    WORKER_TIMEOUT_NS,
    WORKERS_MAX,
)
from clockwork.controller.catalog import Catalog
from clockwork.controller.intake import check_request
from clockwork.controller.links import ClientLink, WorkerLink, check_result, check_stamps, parse_devices
from clockwork.controller.models import Counts, ModelState, ModelTable, ServedModel
from clockwork.controller.record import Recorder
from clockwork.controller.registration import Registrar
from clockwork.controller.settings import ControllerSettings
from clockwork.controller.storage import StorageThread
from clockwork.errors import (
    ClockworkError,
    ConfigError,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    Unavailable,
)
from clockwork.keys import read_controller_keys
from clockwork.limits import raise_descriptor_limit
from clockwork.messages import (
    FROM_CLIENT,
    FROM_WORKER,
    NEVER_NS,
    PROTOCOL_VERSION,
    Answer,
    Bye,
    Cancel,
    Chunk,
    ClientHello,
    ClientWelcome,
    Failure,
    Fetch,
    Goodbye,
    Heartbeat,
    HelloNeeded,
    Infer,
    InferRequest,
    Load,
    Mismatch,
    Ping,
    Pong,
    Prepared,
    Profile,
    Query,
    Register,
    Reply,
    Result,
    Revoke,
    Status,
    Unload,
    Unregister,
    UploadChunk,
    WorkerHello,
    WorkerWelcome,
)
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    Event,
    LinkMeasured,
    ModelGone,
    Request,
    RequestCancelled,
    SendInfer,
    SendLoad,
    SendProfile,
    SendRevoke,
    SendUnload,
    Tick,
    Wake,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.transport import Router, Transport, Waiter, require_keys_beyond_loopback

log = logging.getLogger("clockwork.controller")

_STATUS_OF = {
    ModelNotFound: Status.MODEL_NOT_FOUND,
    InvalidInput: Status.INVALID_INPUT,
    InvalidModel: Status.INVALID_MODEL,
    Unavailable: Status.UNAVAILABLE,
}


class _Held:
    """A request between its arrival and its answer: who asked, and the tensors on their way."""

    __slots__ = ("client", "model", "request_id", "tensors")

    def __init__(
        self,
        client: ClientLink,
        request_id: int,
        model: ServedModel,
        tensors: list[tuple[int, list[int], Any]],
    ) -> None:
        self.client = client
        self.request_id = request_id
        self.model = model
        self.tensors = tensors


class Controller:
    """Everything of one controller. run() returns when stop() was called or a signal came."""

    def __init__(self, settings: ControllerSettings) -> None:
        keys = read_controller_keys(settings.key) if settings.key is not None else None
        endpoints = (settings.client_endpoint, settings.worker_endpoint, settings.events_endpoint)
        require_keys_beyond_loopback(endpoints, keys, settings.insecure)
        self._settings = settings
        self._scheduler = make_scheduler(settings.policy)
        self._recorder: Recorder | None = None
        if settings.record is not None:
            self._recorder = Recorder(settings.record, settings.policy, settings.record_bytes_max)
        self._epoch = int.from_bytes(os.urandom(7), "big")
        self._started_ns = now_ns()
        self._now = self._started_ns
        self._events: list[Event] = []
        self._held: dict[int, _Held] = {}
        self._results: dict[int, tuple[list[Any], list[Any]]] = {}
        self._clients: dict[bytes, ClientLink] = {}
        self._workers: dict[bytes, WorkerLink] = {}
        self._worker_by_id: dict[int, WorkerLink] = {}
        self._client_of_fd: dict[int, ClientLink] = {}
        self._worker_of_fd: dict[int, WorkerLink] = {}
        self._next_request = 1
        self._next_worker = 1
        self._wake_ns = NEVER_NS
        self._heartbeat_ns = self._started_ns
        self._counts = Counts()
        self._refusals: dict[str, int] = {}
        self._stopping = False
        self._table = ModelTable()
        self._catalog = Catalog(settings.data)
        self._catalog.open()
        self._transport = Transport()
        try:
            self._client_router = self._transport.router(settings.client_endpoint, keys)
            self._worker_router = self._transport.router(settings.worker_endpoint, keys)
            self._publisher = self._transport.publisher(settings.events_endpoint, keys)
        except ConfigError:
            self._transport.close()
            self._catalog.close()
            raise
        self.client_endpoint = self._client_router.endpoint
        self.worker_endpoint = self._worker_router.endpoint
        self.events_endpoint = self._publisher.endpoint
        self._storage = StorageThread()
        self._registrar = Registrar(self, self._catalog, self._storage, self._table)
        restored = self._registrar.restore()
        log.info(
            "controller %s listens for clients on %s and for workers on %s; %d models in %s",
            __version__, self.client_endpoint, self.worker_endpoint, restored, settings.data,
        )  # fmt: skip

    def stop(self) -> None:
        """Have run() return after this turn of its loop."""
        self._stopping = True

    def run(self, wake_fd: int = -1) -> None:
        """Serve until stop(). wake_fd: a descriptor that becomes readable when a signal has come."""
        filenos = [self._storage.fileno()] + ([wake_fd] if wake_fd >= 0 else [])
        waiter = Waiter([self._worker_router, self._client_router], filenos)
        gc.collect()
        gc.freeze()
        while not self._stopping:
            waiter.wait(max(min(self._wake_ns, self._heartbeat_ns) - now_ns(), 0))
            self.turn()

    def turn(self) -> None:
        """One turn of the loop: take what has come, decide once, send."""
        self._now = now_ns()
        self._take(self._worker_router, self._worker_of_fd, self._from_worker, self._worker_gone)
        self._take(self._client_router, self._client_of_fd, self._from_client, self._client_gone)
        self._storage.drain()
        if self._now >= self._heartbeat_ns:
            self._beat()
        if self._now >= self._wake_ns:
            self._wake_ns = NEVER_NS
            self._events.append(Tick(self._now))
        while self._events:
            events, self._events = self._events, []
            commands = self._scheduler.step_many(events)
            if self._recorder is not None:
                self._recorder.record(events, commands)
            for command in commands:
                self._commands[type(command)](self, command)
        self._results.clear()

    def close(self) -> None:
        """Answer what is open, say goodbye, release everything."""
        text = "the controller is shutting down"
        for held in self._held.values():
            self._send_client(held.client, Failure(held.request_id, Status.UNAVAILABLE, text, {}))
        for client in self._clients.values():
            self._client_router.send(client.identity, wire.encode(Goodbye()))
        for worker in self._workers.values():
            self._worker_router.send(worker.identity, wire.encode(Goodbye()))
        if self._recorder is not None:
            self._recorder.close()
        self._storage.close()
        self._transport.close()
        self._catalog.close()

    # ----- taking messages -----------------------------------------------------------------------

    def _take(self, router: Router, links: dict[int, Any], handle: Any, gone: Any) -> None:
        batch: list[tuple[bytes, int, list[Any]]] = []
        while len(batch) < DRAIN_BATCH_EVENTS and (message := router.receive()) is not None:
            batch.append(message)
        for fd in router.disconnected():
            link = links.pop(fd, None)
            if link is not None:
                gone(link, "disconnected")
        for identity, fd, frames in batch:
            handle(identity, fd, frames)

    def _from_client(self, identity: bytes, fd: int, frames: list[Any]) -> None:
        client = self._clients.get(identity)
        try:
            if not frames:
                raise wire.WireError("a message is a header and at most a bounded number of frames")
            message = wire.decode(frames[0], FROM_CLIENT)
        except wire.WireError as error:
            failure = Failure(0, Status.INVALID_INPUT, f"malformed message: {error}", {})
            self._client_router.send(identity, wire.encode(failure))
            return
        if client is None or type(message) is ClientHello:
            self._greet_client(identity, fd, message)
            return
        try:
            self._client_handlers[type(message)](self, client, message, frames)
        except ClockworkError as error:
            self._fail(client, message.request_id, error)

    def _greet_client(self, identity: bytes, fd: int, message: Any) -> None:
        if type(message) is not ClientHello:
            self._client_router.send(identity, wire.encode(HelloNeeded(self._epoch)))
        elif message.protocol != PROTOCOL_VERSION:
            self._client_router.send(identity, wire.encode(_mismatch(message.protocol, message.version)))
        elif len(self._clients) >= CLIENTS_MAX and identity not in self._clients:
            text = f"{CLIENTS_MAX} clients are connected, which is the most"
            self._client_router.send(identity, wire.encode(Mismatch(PROTOCOL_VERSION, text)))
        else:
            if identity not in self._clients:
                link = ClientLink(identity, fd, message.name[:80])
                self._clients[identity] = self._client_of_fd[fd] = link
            self._client_router.send(
                identity, wire.encode(ClientWelcome(PROTOCOL_VERSION, __version__, self._epoch))
            )

    def _client_gone(self, client: ClientLink, why: str) -> None:
        if self._clients.pop(client.identity, None) is None:
            return
        if self._client_of_fd.get(client.fd) is client:
            del self._client_of_fd[client.fd]
        self._registrar.client_gone(client.identity)
        for request in client.requests.values():
            self._events.append(RequestCancelled(self._now, request))

    # ----- requests ------------------------------------------------------------------------------

    def _infer(self, client: ClientLink, message: InferRequest, frames: list[Any]) -> None:
        model = self._table.routes.get(message.model) or self._servable(message.model)
        if message.request_id in client.requests:
            raise InvalidInput(f"request {message.request_id} is in use")
        if not 0 <= message.slo_ns < NEVER_NS:
            raise InvalidInput(
                f"slo_ns must be between 0 (the model's default) and {NEVER_NS}, got {message.slo_ns}"
            )
        if not 0 <= message.priority <= PRIORITY_MAX:
            raise InvalidInput(
                f"priority must be between 0 (the default) and {PRIORITY_MAX}, got {message.priority}"
            )
        checked = check_request(model, message.tensors, frames[1:])
        slo = message.slo_ns or model.slo_ns
        request = Request(
            id=self._next_request,
            model_id=model.model_id,
            rows=checked.rows,
            shape=checked.shape,
            bytes=checked.bytes,
            arrived_ns=self._now,
            deadline_ns=self._now + slo if slo else NEVER_NS,
            priority=message.priority or PRIORITY_DEFAULT,
        )
        self._next_request += 1
        self._held[request.id] = _Held(client, message.request_id, model, checked.tensors)
        client.requests[message.request_id] = request.id
        self._events.append(Arrived(self._now, request))

    def _servable(self, text: str) -> ServedModel:
        model = self._table.find(text)
        if model is None:
            raise ModelNotFound(f"no model {text[:200]!r} is registered")
        if not self._workers:
            raise Unavailable(f"no worker is connected that could serve {model.label}")
        if model.state is ModelState.FAILED:
            raise Unavailable(f"{model.label} cannot be served: {model.text}")
        if model.prepared is None:
            raise Unavailable(f"{model.label} is being prepared")
        return model

    def _cancel(self, client: ClientLink, message: Cancel, frames: list[Any]) -> None:
        request = client.requests.get(message.request_id)
        if request is not None:
            self._events.append(RequestCancelled(self._now, request))
        else:
            self._registrar.cancel(client.identity, message.request_id)

    def _register(self, client: ClientLink, message: Register, frames: list[Any]) -> None:
        self._registrar.register(client.identity, message)

    def _upload(self, client: ClientLink, message: UploadChunk, frames: list[Any]) -> None:
        if len(frames) != 2:
            raise InvalidInput(f"an upload's chunk is one frame, got {len(frames) - 1}")
        self._registrar.chunk(client.identity, message, frames[1])

    def _unregister(self, client: ClientLink, message: Unregister, frames: list[Any]) -> None:
        self._registrar.unregister(client.identity, message.request_id, message.model)

    def _query(self, client: ClientLink, message: Query, frames: list[Any]) -> None:
        body: Any
        if message.what == "status":
            body = self.status()
        elif message.what == "models":
            body = [
                self._describe_briefly(model)
                for versions in self._table.versions.values()
                for model in versions.values()
            ]
        elif message.what == "model":
            found = self._table.find(message.argument)
            if found is None:
                raise ModelNotFound(f"no model {message.argument[:200]!r} is registered")
            body = self.describe(found)
        else:
            raise InvalidInput(f"a query is for status, models or model, not {message.what[:80]!r}")
        self._send_client(client, Reply(message.request_id, body))

    def _bye(self, client: ClientLink, message: Bye, frames: list[Any]) -> None:
        self._client_gone(client, "left")

    _client_handlers: ClassVar[dict[type, Any]] = {
        InferRequest: _infer,
        Cancel: _cancel,
        Register: _register,
        UploadChunk: _upload,
        Unregister: _unregister,
        Query: _query,
        Bye: _bye,
    }

    # ----- workers -------------------------------------------------------------------------------

    def _from_worker(self, identity: bytes, fd: int, frames: list[Any]) -> None:
        worker = self._workers.get(identity)
        try:
            if not frames:
                raise wire.WireError("a message is a header and at most a bounded number of frames")
            message = wire.decode(frames[0], FROM_WORKER)
            if worker is None or type(message) is WorkerHello:
                self._greet_worker(identity, fd, worker, message)
            else:
                worker.heard_ns = self._now
                self._worker_handlers[type(message)](self, worker, message, frames)
        except (wire.WireError, InvalidInput) as error:
            log.warning(
                "malformed message from %s: %s", worker.name if worker else "an unknown worker", error
            )
            if worker is None:
                self._worker_router.send(identity, wire.encode(Mismatch(PROTOCOL_VERSION, str(error))))
            else:
                self._worker_gone(worker, "speaks nonsense")

    def _greet_worker(self, identity: bytes, fd: int, known: WorkerLink | None, message: Any) -> None:
        if type(message) is not WorkerHello:
            self._worker_router.send(identity, wire.encode(HelloNeeded(self._epoch)))
            return
        if message.protocol != PROTOCOL_VERSION:
            self._worker_router.send(identity, wire.encode(_mismatch(message.protocol, message.version)))
            return
        devices = parse_devices(message.devices)
        for other in list(self._workers.values()):
            if other.worker_epoch == message.worker_epoch or other is known:
                self._worker_gone(other, "reconnected")
        if len(self._workers) >= WORKERS_MAX:
            text = f"{WORKERS_MAX} workers are connected, which is the most"
            self._worker_router.send(identity, wire.encode(Mismatch(PROTOCOL_VERSION, text)))
            return
        worker = WorkerLink(identity, fd, self._next_worker, message.name[:80], message.worker_epoch, devices)
        worker.heard_ns = self._now
        self._next_worker += 1
        self._workers[identity] = self._worker_of_fd[fd] = self._worker_by_id[worker.worker_id] = worker
        self._worker_router.send(
            identity, wire.encode(WorkerWelcome(PROTOCOL_VERSION, __version__, self._epoch, worker.worker_id))
        )
        self._ping(worker)
        shapes = tuple(
            (f"{one.kind}/{one.fingerprint}", one.page_bytes, one.page_count, one.run_ahead)
            for one in devices
        )
        self._events.append(WorkerJoined(self._now, worker.worker_id, shapes))
        self._registrar.worker_joined(worker.worker_id)
        log.info(
            "worker %s joined as %d with %s",
            worker.name,
            worker.worker_id,
            ", ".join(d.kind for d in devices),
        )
        self.publish("worker", {"worker": worker.name, "state": "joined"})

    def _worker_gone(self, worker: WorkerLink, why: str) -> None:
        if self._workers.pop(worker.identity, None) is None:
            return
        if self._worker_of_fd.get(worker.fd) is worker:
            del self._worker_of_fd[worker.fd]
        del self._worker_by_id[worker.worker_id]
        self._events.append(WorkerLeft(self._now, worker.worker_id))
        self._registrar.worker_left(worker.worker_id)
        log.info("worker %s (%d) left: %s", worker.name, worker.worker_id, why)
        self.publish("worker", {"worker": worker.name, "state": "left", "why": why})

    def _result(self, worker: WorkerLink, message: Result, frames: list[Any]) -> None:
        expected = worker.actions.pop(message.action_id, None)
        if expected is None:
            return  # of an action that was given up
        begin_ns, end_ns, duration_ns = check_result(message, len(frames) - 1, *expected)
        outcome = Status(message.status).name.lower()
        worker.results[outcome] = worker.results.get(outcome, 0) + 1
        clock = worker.clock
        self._results[message.action_id] = (message.parts, frames)
        self._events.append(
            ActionDone(
                self._now,
                worker.worker_id,
                message.action_id,
                Status(message.status),
                message.text,
                clock.to_controller(begin_ns, self._now) if begin_ns else self._now,
                clock.to_controller(end_ns, self._now) if end_ns else self._now,
                duration_ns,
            )
        )

    def _heartbeat(self, worker: WorkerLink, message: Heartbeat, frames: list[Any]) -> None:
        worker.jitter_ns = message.jitter_ns
        worker.stats = message.stats

    def _pong(self, worker: WorkerLink, message: Pong, frames: list[Any]) -> None:
        check_stamps(message.sent_ns, message.received_ns, message.returned_ns)
        worker.clock.pong(message.sent_ns, message.received_ns, message.returned_ns, self._now)
        there = worker.clock.there_ns() + min(worker.jitter_ns, JITTER_COUNTED_MAX_NS)
        self._events.append(LinkMeasured(self._now, worker.worker_id, there, worker.clock.back_ns()))

    def _fetch(self, worker: WorkerLink, message: Fetch, frames: list[Any]) -> None:
        files = self._table.files_of(message.digest)
        identity = worker.identity

        def answer(data: Any, error: BaseException | None) -> None:
            status = Status.OK if error is None else Status.INTERNAL
            chunk = Chunk(message.digest, message.file, message.offset, status)
            self._worker_router.send(identity, wire.encode(chunk), [data if error is None else b""])

        if not 0 <= message.file < len(files) or message.offset < 0 or not 0 <= message.length <= 1 << 24:
            answer(None, InvalidInput("no such chunk"))
            return
        file = files[message.file]
        self._storage.submit(
            lambda: self._catalog.read_chunk(message.digest, file, message.offset, message.length), answer
        )

    def _prepared(self, worker: WorkerLink, message: Prepared, frames: list[Any]) -> None:
        self._registrar.prepared(worker.worker_id, message)

    def _worker_leaves(self, worker: WorkerLink, message: Goodbye, frames: list[Any]) -> None:
        self._events.append(WorkerDraining(self._now, worker.worker_id))
        self.publish("worker", {"worker": worker.name, "state": "draining"})

    _worker_handlers: ClassVar[dict[type, Any]] = {
        Result: _result,
        Heartbeat: _heartbeat,
        Pong: _pong,
        Fetch: _fetch,
        Prepared: _prepared,
        Goodbye: _worker_leaves,
    }

    # ----- commands ------------------------------------------------------------------------------

    def _order(
        self,
        worker_id: int,
        action_id: int,
        message: tuple[Any, ...],
        frames: list[Any],
        expected: tuple[int, int] = (0, 0),
    ) -> None:
        """Send an action; a worker that cannot take it has left, which the scheduler hears next.

        expected: how many parts a result has that is OK, and how many tensors each.
        """
        worker = self._worker_by_id.get(worker_id)
        if worker is None:
            return  # it left in this very turn; WorkerLeft is on its way to the scheduler
        worker.actions[action_id] = expected
        kind = type(message).__name__.lower()
        worker.sent[kind] = worker.sent.get(kind, 0) + 1
        if not self._worker_router.send(worker.identity, wire.encode(message), frames):
            self._worker_gone(worker, "cannot be reached")

    def _send_infer(self, command: SendInfer) -> None:
        worker = self._worker_by_id.get(command.worker)
        if worker is None:
            return
        clock = worker.clock
        frames: list[Any] = []
        parts = []
        for request in command.requests:
            part = []
            for dtype, shape, frame in self._held[request].tensors:
                part.append((dtype, shape, len(frames)))
                frames.append(frame)
            parts.append(part)
        message = Infer(
            command.action_id,
            command.device,
            command.model_id,
            command.load_id,
            clock.to_worker_earliest(command.earliest_ns),
            clock.to_worker_latest(command.latest_ns),
            command.expected_ns,
            parts,  # type: ignore[arg-type]
        )
        outputs = self._held[command.requests[0]].model.prepared
        assert outputs is not None
        expected = (len(parts), len(outputs.outputs))
        self._order(command.worker, command.action_id, message, frames, expected)

    def _send_load(self, command: SendLoad) -> None:
        worker = self._worker_by_id.get(command.worker)
        if worker is not None:
            message = Load(
                command.action_id, command.device, command.model_id, command.load_id, list(command.run_starts),
                worker.clock.to_worker_earliest(command.earliest_ns),
                worker.clock.to_worker_latest(command.latest_ns), command.expected_ns,
            )  # fmt: skip
            self._order(command.worker, command.action_id, message, [])

    def _send_unload(self, command: SendUnload) -> None:
        worker = self._worker_by_id.get(command.worker)
        if worker is not None:
            message = Unload(
                command.action_id, command.device, command.model_id, command.load_id,
                worker.clock.to_worker_earliest(command.earliest_ns),
                worker.clock.to_worker_latest(command.latest_ns), command.expected_ns,
            )  # fmt: skip
            self._order(command.worker, command.action_id, message, [])

    def _send_profile(self, command: SendProfile) -> None:
        worker = self._worker_by_id.get(command.worker)
        model = self._table.by_id.get(command.model_id)
        if worker is None or model is None or model.prepared is None:
            return
        batches = model.prepared.batches
        shapes = [[command.rows, *shape] if batches else list(shape) for shape in command.shape]
        message = Profile(
            command.action_id, command.device, command.model_id, command.load_id,
            worker.clock.to_worker_earliest(command.earliest_ns),
            worker.clock.to_worker_latest(command.latest_ns), command.expected_ns, shapes,
        )  # fmt: skip
        self._order(command.worker, command.action_id, message, [])

    def _send_revoke(self, command: SendRevoke) -> None:
        worker = self._worker_by_id.get(command.worker)
        if worker is not None:
            self._worker_router.send(worker.identity, wire.encode(Revoke(command.action_id)))

    def _answer_ok(self, command: AnswerOk) -> None:
        held = self._release(command.request_id)
        parts, frames = self._results[command.action_id]
        prepared = held.model.prepared
        assert prepared is not None
        tensors = []
        sent: list[Any] = []
        for spec, (dtype, shape, frame) in zip(prepared.outputs, parts[command.part]):
            tensors.append((spec.name, dtype, shape, len(sent)))
            sent.append(frames[frame + 1])
        times = [command.queue_ns, command.load_ns, command.exec_ns, 0]
        held.model.counts.answered += 1
        self._counts.answered += 1
        message = Answer(held.request_id, held.model.record.version, tensors, times)  # type: ignore[arg-type]
        self._send_client(held.client, message, sent)

    def _answer_failed(self, command: AnswerFailed) -> None:
        held = self._release(command.request_id)
        details: dict[str, Any] = {}
        counts = (self._counts, held.model.counts)
        if command.status is Status.REFUSED:
            details = {
                "reason": str(command.reason),
                "feasible_slo_ns": command.feasible_slo_ns,
                "retry_after_ns": command.retry_after_ns,
            }
            self._refusals[str(command.reason)] = self._refusals.get(str(command.reason), 0) + 1
            for one in counts:
                one.refused += 1
        elif command.status is Status.DEADLINE_MISSED:
            for one in counts:
                one.missed += 1
        elif command.status is Status.CANCELLED:
            for one in counts:
                one.cancelled += 1
        else:
            for one in counts:
                one.failed += 1
        self._send_client(held.client, Failure(held.request_id, command.status, command.text, details))

    def _model_gone(self, command: ModelGone) -> None:
        self._registrar.gone(command.model_id)

    def _wake(self, command: Wake) -> None:
        self._wake_ns = command.at_ns

    _commands: ClassVar[dict[type, Any]] = {
        SendInfer: _send_infer,
        AnswerOk: _answer_ok,
        AnswerFailed: _answer_failed,
        SendLoad: _send_load,
        SendUnload: _send_unload,
        SendProfile: _send_profile,
        SendRevoke: _send_revoke,
        ModelGone: _model_gone,
        Wake: _wake,
    }

    def _release(self, request: int) -> _Held:
        held = self._held.pop(request)
        held.client.requests.pop(held.request_id, None)
        return held

    # ----- timers --------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._heartbeat_ns = self._now + HEARTBEAT_NS
        for worker in list(self._workers.values()):
            if self._now - worker.heard_ns > WORKER_TIMEOUT_NS:
                self._worker_gone(worker, f"unheard of for {WORKER_TIMEOUT_NS / 1e9:g} s")
                self._worker_router.send(worker.identity, wire.encode(HelloNeeded(self._epoch)))
            else:
                self._ping(worker)
        self.publish("counts", {"held": len(self._held), **self._count_all()})

    def _ping(self, worker: WorkerLink) -> None:
        self._worker_router.send(worker.identity, wire.encode(Ping(now_ns())))

    # ----- what registration needs (see registration.Outside) --------------------------------------

    def to_client(self, client: bytes, message: tuple[Any, ...]) -> None:
        link = self._clients.get(client)
        if link is not None:
            self._send_client(link, message)

    def fail(self, client: bytes, request_id: int, error: ClockworkError) -> None:
        link = self._clients.get(client)
        if link is not None:
            self._fail(link, request_id, error)

    def to_worker(self, worker: int, message: tuple[Any, ...]) -> None:
        link = self._worker_by_id.get(worker)
        if link is not None:
            self._worker_router.send(link.identity, wire.encode(message))

    def schedule(self, event: Event) -> None:
        self._events.append(event)

    def now(self) -> int:
        return self._now

    def worker_ids(self) -> list[int]:
        return list(self._worker_by_id)

    def publish(self, topic: str, body: dict[str, Any]) -> None:
        self._publisher.send(topic.encode(), msgpack.packb(body))

    def describe(self, model: ServedModel) -> dict[str, Any]:
        names = {worker.worker_id: worker.name for worker in self._workers.values()}
        resident = [
            {"worker": names.get(worker, str(worker)), "device": device, "state": state}
            for worker, device, state in self._scheduler.whereabouts(model.model_id)
        ]
        return model.describe(names, resident)

    # ----- inside --------------------------------------------------------------------------------

    def _describe_briefly(self, model: ServedModel) -> dict[str, Any]:
        prepared = model.prepared
        return {
            "name": model.record.name,
            "version": model.record.version,
            "state": model.state.value,
            "text": model.text,
            "current": self._table.routes.get(model.record.name) is model,
            "slo_ns": model.slo_ns,
            "holding": prepared.holding if prepared else "",
            "batches": prepared.batches if prepared else False,
            "weights_bytes": prepared.weights_bytes if prepared else 0,
            "program": prepared.program if prepared else "",
            "exec_ns": min((point.exec_ns for point in prepared.profile), default=0) if prepared else 0,
            "load_ns": prepared.load_ns if prepared else 0,
        }

    def status(self) -> dict[str, Any]:
        """What ``clockwork status`` shows."""
        plans: dict[int, list[dict[str, Any]]] = {}
        for plan in self._scheduler.devices():
            plans.setdefault(plan["worker"], []).append(plan)
        workers = []
        for worker in self._workers.values():
            clock = worker.clock
            devices = [
                info.describe() | {"plan": plan}
                for info, plan in zip(worker.devices, plans.get(worker.worker_id, ()))
            ]
            workers.append(
                {
                    "id": worker.worker_id,
                    "name": worker.name,
                    "rtt_ns": clock.there_ns() + clock.back_ns(),
                    "clock_uncertainty_ns": clock.uncertainty_ns(self._now) if clock.known else 0,
                    "jitter_ns": worker.jitter_ns,
                    "actions": len(worker.actions),
                    "sent": dict(worker.sent),
                    "results": dict(worker.results),
                    "devices": devices,
                    "stats": worker.stats,
                }
            )
        states: dict[str, int] = {}
        for model in self._table.by_id.values():
            states[model.state.value] = states.get(model.state.value, 0) + 1
        return {
            "version": __version__,
            "epoch": self._epoch,
            "policy": self._settings.policy,
            "uptime_ns": now_ns() - self._started_ns,
            "clients": len(self._clients),
            "models": states,
            "programs": len(
                {m.prepared.program for m in self._table.by_id.values() if m.prepared is not None}
            ),
            "requests_held": len(self._held),
            "requests_held_max": QUEUED_REQUESTS_MAX,
            "counts": self._count_all(),
            "predictions": self._scheduler.predictions(),
            "workers": workers,
        }

    def _count_all(self) -> dict[str, Any]:
        counts = self._counts
        return {
            "answered": counts.answered,
            "refused": counts.refused,
            "missed": counts.missed,
            "cancelled": counts.cancelled,
            "failed": counts.failed,
            "refusals": dict(self._refusals),
        }

    def _send_client(
        self, client: ClientLink, message: tuple[Any, ...], frames: list[Any] | None = None
    ) -> None:
        """Send to a client that may be gone: then there is nobody to tell."""
        if not self._client_router.send(client.identity, wire.encode(message), frames or ()):
            self._client_gone(client, "cannot be reached")

    def _fail(self, client: ClientLink, request_id: int, error: ClockworkError) -> None:
        status = _STATUS_OF.get(type(error), Status.INTERNAL)
        details = {}
        if isinstance(error, InvalidInput):
            details = {"tensor": error.tensor, "expected": error.expected, "got": error.got}
        self._send_client(client, Failure(request_id, status, str(error), details))


def _mismatch(protocol: int, version: str) -> Mismatch:
    return Mismatch(
        PROTOCOL_VERSION,
        f"the controller ({__version__}) speaks protocol {PROTOCOL_VERSION}, "
        f"the peer ({version[:40]}) speaks {protocol}",
    )


def main(settings: ControllerSettings) -> int:
    """Run a controller until SIGINT or SIGTERM; returns the exit status. Raises ConfigError."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s controller %(levelname).1s %(message)s"
    )
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
