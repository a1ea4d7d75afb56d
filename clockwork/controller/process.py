"""The controller's process: sockets, timers and books. Every decision is the scheduler's.

One thread drains the sockets, lets the scheduler decide once for all that came together, and carries its orders
out. Requests, results, and the orders and answers that they lead to are the exchange's (``_exchange``), which needs no
Python for them but for names, and for the sentences about what is wrong. What is rare stops there and is this module's.
Disk work happens on the storage thread, preparation on the workers.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import sys
import time
from collections import deque
from typing import Any, ClassVar

import msgpack

from clockwork.config import (
    CLIENTS_MAX,
    DRAIN_BATCH_EVENTS,
    FAILURE_CHARS_MAX,
    FETCHES_MAX,
    FRAMES_MAX,
    HEARTBEAT_NS,
    JITTER_COUNTED_MAX_NS,
    PRIORITY_DEFAULT,
    QUEUED_REQUESTS_MAX,
    TURN_HEADER_BYTES,
    TURN_PYTHON_NS,
    VERSION,
    WORKER_FAULTS_MAX,
    WORKER_TIMEOUT_NS,
    WORKERS_MAX,
)
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
from clockwork.controller.access import Access
from clockwork.controller.catalog import Catalog
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
from clockwork.controller.flaws import Flaw, request_error, result_text
from clockwork.controller.lifecycle import ModelState
from clockwork.controller.links import ClientLink, WorkerLink, new_damage, parse_devices
from clockwork.controller.metrics import MetricsQuery
from clockwork.controller.mirror import ExchangeMirror
from clockwork.controller.models import ModelTable, ModelVersion, set_aside_text
from clockwork.controller.queries import OUTCOMES, Queries
from clockwork.controller.recorder import FlightRecorder, RecordingFile
from clockwork.controller.registration import Registrar
from clockwork.controller.repairs import Repairs
from clockwork.controller.settings import ControllerSettings
from clockwork.controller.source_reports import SourceReports
from clockwork.controller.storage import CatalogJobs, StorageThread
from clockwork.controller.telemetry import TelemetryProcess
from clockwork.controller.troubles import ALERTING, TroubleKind, Troubles
from clockwork.errors import (
    ClockworkError,
    ConfigError,
    Forbidden,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    PolicyFailed,
    Unavailable,
)
from clockwork.scheduler import make_scheduler
from clockwork.scheduler._core import TEXTS
from clockwork.scheduler.recording import Header
from clockwork.scheduler.types import (
    DeviceClock,
    DeviceLost,
    Event,
    LinkMeasured,
    ModelFault,
    ModelGone,
    ModelReady,
    ModelRemoved,
    TimeWanted,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
)
from clockwork.system.clock import now_ns
from clockwork.system.limits import raise_descriptor_limit
from clockwork.wire import codec
from clockwork.wire.complaints import Complaints
from clockwork.wire.forms import INT64_MAX
from clockwork.wire.messages import (
    FROM_CLIENT,
    FROM_WORKER,
    PROTOCOL_VERSION,
    Bye,
    Cancel,
    Chunk,
    ClientHello,
    ClientWelcome,
    ClockChanged,
    DeviceFault,
    Failure,
    Fetch,
    Goodbye,
    Heartbeat,
    HelloNeeded,
    Mismatch,
    Offer,
    Ping,
    Pong,
    Prepared,
    Promote,
    Query,
    Reason,
    Register,
    Reply,
    ReportSource,
    Rollback,
    Route,
    Status,
    TimeNeeded,
    Unregister,
    UploadChunk,
    WorkerHello,
    WorkerWelcome,
)
from clockwork.wire.roles import Port
from clockwork.wire.shared import MACHINE
from clockwork.wire.telling import printable
from clockwork.wire.transport import Transport, require_keys_beyond_loopback, socket_functions

log = logging.getLogger("clockwork.controller")

OWN_NAME_TEXT = (
    "a peer must not name itself (ZMQ_ROUTING_ID): the controller tells peers apart by names of its own"
)

CUT_TEXTS = {
    "crowd": "too many without a hello",
    "received": "more was received of one than it may have on the way",
    "received_all": "more was received of all than they may have on the way",
    "unread": "one left too many bytes unread",
    "unread_all": "all together left too many bytes unread",
    "memory": "memory is short",
}
"""Why the exchange ends connections by itself."""

_COMPLAINTS = ("client malformed", "client failed", "worker malformed", "worker failed", "worker fault",
               "storage failed", "key refused", "clients cut", "workers cut", "events cut")  # fmt: skip
"""From whom a message was, and whether it made no sense, met a defect of ours, or was an answer that cannot be; and
connections that were not let in, or were ended."""

_STATUS_OF = {
    ModelNotFound: Status.MODEL_NOT_FOUND,
    InvalidInput: Status.INVALID_INPUT,
    InvalidModel: Status.INVALID_MODEL,
    Unavailable: Status.UNAVAILABLE,
    Forbidden: Status.FORBIDDEN,
}


class Controller:
    """Everything of one controller. run() returns when stop() was called or a signal came."""

    def __init__(self, settings: ControllerSettings) -> None:
        self._access = access = Access(settings.key, settings.allowed)
        keys, gate = access.keys, access.admits
        endpoints = (settings.client_endpoint, settings.worker_endpoint, settings.events_endpoint)
        require_keys_beyond_loopback(endpoints, keys, settings.insecure)
        self._settings = settings
        self.troubles = Troubles()
        self._source_reports = SourceReports(self.troubles)
        self._complaints = Complaints(log, _COMPLAINTS)
        self._scheduler = make_scheduler(settings.policy, settings.memory, settings.options)
        self._ring = Ring(settings.recorder_bytes, RECORDER_SPAN_NS)
        header = Header(settings.policy, settings.memory, settings.options, VERSION)
        functions = socket_functions()
        self._epoch = int.from_bytes(os.urandom(7), "big")
        self._started_ns = now_ns()
        self._now = self._started_ns
        self._events: list[Event] = []
        self._clients: dict[bytes, ClientLink] = {}
        self._workers: dict[bytes, WorkerLink] = {}
        self._worker_by_id: dict[int, WorkerLink] = {}
        self._client_of_fd: dict[int, ClientLink] = {}
        self._worker_of_fd: dict[int, WorkerLink] = {}
        self._let_go: dict[int, str] = {}  # by epochs of workers: why; they are not taken in again
        self._next_worker = 1
        self._heartbeat_ns = self._started_ns
        self._cuts: dict[tuple[int, str], int] = {}  # connections ended, by port and by bound
        self._stopping = False
        self._recording: RecordingFile | None = None
        self._telemetry: TelemetryProcess | None = None
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
            self._publisher = self._transport.publisher(settings.events_endpoint, keys, Port.EVENTS, gate)
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
        self._refusal: Exception | None = None
        self._exchange = Exchange(
            self._scheduler, self._find_served, functions, self._worker_router.addresses(), self._client_router.addresses(),
            TEXTS, ("", *Reason), drain_messages=DRAIN_BATCH_EVENTS, message_frames=FRAMES_MAX,
            turn_bytes=TURN_HEADER_BYTES, turn_python_ns=TURN_PYTHON_NS,
            priority_default=PRIORITY_DEFAULT, queued_requests=QUEUED_REQUESTS_MAX,
            connections={CLIENTS: settings.client_bounds, WORKERS: settings.worker_bounds}, ring=self._ring,
        )  # fmt: skip
        self._flight = FlightRecorder(
            self._ring, header, settings.data, self._scheduler.held, self._epoch, self._scheduler.save, self._exchange.pause
        )  # fmt: skip
        self._mirror = ExchangeMirror(self._exchange)
        self._storage = StorageThread()
        self._jobs = CatalogJobs(self._catalog)
        self._effects: deque[Effect] = deque()  # of the parts below, to be carried out in this order
        self._table = ModelTable(self._effects)
        self._repairs = Repairs(self._effects, self._catalog, self._table)
        self._registrar = Registrar(self._effects, self._table)
        self._metrics = MetricsQuery(
            self._exchange, self._scheduler, self._table, self._registrar.versions, self.troubles, self._complaints,
            settings.policy, self._started_ns,
        )  # fmt: skip
        self.queries = Queries(
            self._exchange, self._scheduler, self._table, self._registrar.versions, self._repairs, self.troubles,
            self._complaints, self._workers, self._clients, settings.policy, self._epoch, self._started_ns,
        )  # fmt: skip
        records, complaints = self._catalog.records()
        self._registrar.restore(records, complaints, *self._catalog.routes())
        self._registrar.versions.await_names(settings.await_models)
        self._carry_out()
        self._repairs.start()
        log.info(
            "controller %s listens for clients on %s and for workers on %s; %d models in %s",
            VERSION, self.client_endpoint, self.worker_endpoint, len(records), settings.data,
        )  # fmt: skip

    def stop(self) -> None:
        """Have run() return after this turn of its loop."""
        self._stopping = True

    def run(self, wake_fd: int = -1) -> None:
        """Serve until stop(). wake_fd: a descriptor that becomes readable when a signal has come."""
        others = [self._storage.fileno(), self._repairs.fileno(), self._flight.fileno()]
        others += [wake_fd] if wake_fd >= 0 else []
        exchange = self._exchange
        exchange.wait_on([*self._worker_router.filenos, *self._client_router.filenos], others)
        gc.collect()
        gc.freeze()
        while not self._stopping:
            need = exchange.run(self._heartbeat_ns)
            self._now = exchange.now_ns
            self._needs[need](self)
            if self._effects:
                self._carry_out()
            if (
                need != ORDER
            ):  # between decisions: the scheduler hears of it before anything that happened later
                for event in self._events:
                    self._tell_scheduler(event)
                self._events.clear()

    def _tell_scheduler(self, event: Event) -> None:
        self._flight.told(event)
        self._exchange.note(event)

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
        for client in self._clients.values():
            self._tell_client(client.identity, client.fd, Goodbye())
        for worker in self._workers.values():
            self._tell_worker(worker.identity, worker.fd, Goodbye())
        if self._recording is not None:
            self._recording.close()
        if self._telemetry is not None:
            self._telemetry.close()
        self._storage.close()
        self._repairs.close()
        self._flight.close()
        self._transport.close()
        self._catalog.close()

    # ----- taking messages -----------------------------------------------------------------------

    def _workers_left(self) -> None:
        for fd in self._exchange.ended(WORKERS):
            worker = self._worker_of_fd.pop(fd, None)
            if worker is not None:
                self._worker_gone(worker, "disconnected")

    def _clients_left(self) -> None:
        for fd in self._exchange.ended(CLIENTS):
            client = self._client_of_fd.pop(fd, None)
            if client is not None:
                self._client_gone(client, "disconnected")

    def _worker_message(self) -> None:
        self._from_worker(*self._exchange.message(), self._exchange.key())

    def _client_message(self) -> None:
        self._from_client(*self._exchange.message(), self._exchange.key())

    def _other(self) -> None:
        """What is neither a message nor an order."""
        self._storage.drain(self._after_job_failed)
        self._repairs.drain(self._after_job_failed)
        self._flight.drain(self._after_job_failed)
        if self._now >= self._heartbeat_ns:
            self._beat()

    def _from_client(self, identity: bytes, fd: int, frames: list[Any], key: str) -> None:
        """Whatever a message of a client is, and whatever it leads to, costs that client alone."""
        client = self._clients.get(identity)
        message: Any = None
        try:
            if not frames:
                raise codec.WireError("a message is a header and at most a bounded number of frames")
            message = codec.decode(frames[0], FROM_CLIENT)
            if client is None or type(message) is ClientHello:
                self._greet_client(identity, fd if client is None else client.fd, message, key)
            else:
                self._access.check(key, message)
                self._client_handlers[type(message)](self, client, message, frames)
        except codec.WireError as error:
            _, request_id = codec.addressee(frames[0], FROM_CLIENT) if frames else (None, 0)
            self._tell_why(identity, fd, request_id, "message", error)
        except PolicyFailed:
            raise  # the scheduler is in the middle of something
        except Exception as error:
            self._tell_why(identity, fd, getattr(message, "request_id", 0), type(message).__name__, error)

    def _tell_why(self, identity: bytes, fd: int, request_id: int, kind: str, error: Exception) -> None:
        """Tell a client why its message led to nothing."""
        client = self._clients.get(identity)
        if client is not None:
            fd = client.fd  # which a message with too many frames does not tell
        if isinstance(error, codec.WireError):
            self._tell_client(
                identity, fd, Failure(request_id, Status.INVALID_INPUT, f"malformed message: {error}", {})
            )
            self._complain("client malformed", f"malformed message from {_named(client)}: {error}")
        elif isinstance(error, ClockworkError):
            self.fail(identity, request_id, error)
        else:  # a defect of ours; the next message is another client's
            self._complain("client failed", f"failed at a {kind} of {_named(client)}", error)
            text = f"the controller failed at this {kind} ({type(error).__name__}): a defect, of which its log has more"
            self._tell_client(identity, fd, Failure(request_id, Status.INTERNAL, text, {}))

    def _wrong_request(self) -> None:
        """The exchange has turned a request down: say why."""
        identity, fd, frames = self._exchange.message()
        flaw = self._exchange.flaw()
        error: Exception
        try:
            error = self._error_of(flaw, frames[0])
        except Exception as defect:
            error = defect
        if isinstance(error, ClockworkError):
            self._metrics.count_unserved(error)
        self._tell_why(identity, fd, flaw.id, "InferRequest", error)

    def _error_of(self, flaw: Flaw, header: bytes) -> Exception:
        """What a request is turned down with."""
        if flaw.code == "unserved":
            error, self._refusal = self._refusal, None
            assert error is not None
            return error
        if flaw.header is not None:
            return codec.WireError(codec.complaint(header, FROM_CLIENT, flaw.header))
        return request_error(flaw, self._table.by_id[flaw.model_id].record.name)

    def _find_served(self, text: str) -> int:
        """The model that requests for a text are for which is no route's; 0: they are turned away, and _refusal is why."""
        try:
            return self._servable(text).model_id
        except Exception as error:  # a defect costs this request alone, too: _wrong_request() tells it
            self._refusal = error
            return 0

    def _greet_client(self, identity: bytes, fd: int, message: Any, key: str) -> None:
        try:
            self._access.check(key, message)
        except Forbidden as error:
            self._tell_client(identity, fd, Mismatch(PROTOCOL_VERSION, str(error)))
            return
        if type(message) is not ClientHello:
            self._tell_client(identity, fd, HelloNeeded(self._epoch))
        elif message.protocol != PROTOCOL_VERSION:
            self._tell_client(identity, fd, _mismatch(message.protocol, message.version))
        elif len(self._clients) >= CLIENTS_MAX and identity not in self._clients:
            text = f"{CLIENTS_MAX} clients are connected, which is the most"
            self._tell_client(identity, fd, Mismatch(PROTOCOL_VERSION, text))
        elif identity in self._clients or self._note_client(identity, fd, printable(message.name), key):
            welcome = ClientWelcome(PROTOCOL_VERSION, VERSION, self._epoch)
            if not self._tell_client(identity, fd, welcome):
                self._client_gone(self._clients[identity], "cannot be reached")

    def _note_client(self, identity: bytes, fd: int, name: str, key: str) -> bool:
        """False if its connection has ended: a hello may be read after that."""
        if not _is_ours(identity):
            self._tell_client(identity, fd, Mismatch(PROTOCOL_VERSION, OWN_NAME_TEXT))
            return False
        other = self._client_of_fd.get(fd)
        if other is not None and _is_older(identity, other.identity):
            return False
        if other is not None:  # its end was read before its hello was
            self._client_gone(other, "disconnected")
        slot = self._exchange.client_joined(identity, fd)
        if slot is None:
            return False
        self._clients[identity] = self._client_of_fd[fd] = ClientLink(identity, fd, name, slot, key)
        return True

    def _client_gone(self, client: ClientLink, why: str) -> None:
        if self._clients.pop(client.identity, None) is None:
            return
        if self._client_of_fd.get(client.fd) is client:
            del self._client_of_fd[client.fd]
        self._registrar.client_gone(client.identity)
        self._source_reports.client_gone(client.identity)
        self._exchange.client_left(client.slot)

    # ----- requests ------------------------------------------------------------------------------

    def _servable(self, text: str) -> ModelVersion:
        model = self._table.find(text)
        if model is None and self._table.is_set_aside(text):
            raise Unavailable(self._table.absence(text))
        if model is None:
            raise ModelNotFound(self._table.absence(text))
        if model.record.aside:  # and going, which takes a moment
            raise Unavailable(set_aside_text(model.record))
        if model.state is ModelState.FAILED:
            raise Unavailable(f"{model.label} cannot be served: {model.text}")
        if model.prepared is None and not self._workers:
            raise Unavailable(f"no worker is connected that could prepare {model.label}")
        if model.prepared is None:
            raise Unavailable(f"{model.label} is being prepared")
        return model

    def _cancel(self, client: ClientLink, message: Cancel, frames: list[Any]) -> None:
        """Of what is no inference's."""
        self._registrar.cancel(client.identity, message.request_id)

    def _upload(self, client: ClientLink, message: UploadChunk, frames: list[Any]) -> None:
        if len(frames) != 2:
            raise InvalidInput(f"an upload's chunk is one frame, got {len(frames) - 1}")
        self._registrar.chunk(client.identity, message, frames[1])

    def _change_models(
        self,
        client: ClientLink,
        message: Register | Unregister | Offer | Route | Promote | Rollback,
        frames: list[Any],
    ) -> None:
        self._registrar.request(client.identity, message)

    def _query(self, client: ClientLink, message: Query, frames: list[Any]) -> None:
        if message.what == "recorder":
            answered = functools.partial(self._recorder_answered, client.identity, message.request_id)
            self._flight.ask(message.argument, self._now, answered)
            return
        if message.what == "metrics":
            body = self._metrics.body(message.argument, self._workers.values(), len(self._clients))
        else:
            body = self.queries.answer(message)
        self._send_client(client, Reply(message.request_id, body))

    def _recorder_answered(
        self, client: bytes, request_id: int, body: Any, error: BaseException | None
    ) -> None:
        if error is None:
            self._to_client(client, Reply(request_id, body))
        elif isinstance(error, ClockworkError):
            self.fail(client, request_id, error)
        else:  # a defect of ours
            self._complain("storage failed", "failed at a query for the flight recorder", error)
            self.fail(
                client, request_id, Unavailable("the flight recorder failed: the controller's log says why")
            )

    def _report_source(self, client: ClientLink, message: ReportSource, frames: list[Any]) -> None:
        self._source_reports.note(client.identity, message.source, message.text, self._now)
        self._send_client(client, Reply(message.request_id, None))

    def _bye(self, client: ClientLink, message: Bye, frames: list[Any]) -> None:
        self._client_gone(client, "left")

    _client_handlers: ClassVar[dict[type, Any]] = {
        Cancel: _cancel,
        Register: _change_models,
        UploadChunk: _upload,
        Unregister: _change_models,
        Offer: _change_models,
        Route: _change_models,
        Promote: _change_models,
        Rollback: _change_models,
        ReportSource: _report_source,
        Query: _query,
        Bye: _bye,
    }

    # ----- workers -------------------------------------------------------------------------------

    def _from_worker(self, identity: bytes, fd: int, frames: list[Any], key: str) -> None:
        """Whatever a message of a worker is, and whatever it leads to, costs that worker alone."""
        worker = self._workers.get(identity)
        kind = "message"
        try:
            if not frames:
                raise codec.WireError("a message is a header and at most a bounded number of frames")
            message = codec.decode(frames[0], FROM_WORKER)
            kind = type(message).__name__
            self._access.check(key, message)
            if worker is None or type(message) is WorkerHello:
                self._greet_worker(identity, fd, worker, message, key)
            else:
                self._worker_handlers[type(message)](self, worker, message, frames)
        except Forbidden as error:
            self._tell_worker(identity, fd, Mismatch(PROTOCOL_VERSION, str(error)))
        except PolicyFailed:
            raise  # the scheduler is in the middle of something
        except Exception as error:
            self._turn_away(identity, fd, worker, kind, error)

    def _turn_away(
        self, identity: bytes, fd: int, worker: WorkerLink | None, kind: str, error: Exception
    ) -> None:
        """Let go of a worker whose message could not be dealt with: its books and ours may differ from here on."""
        if isinstance(error, codec.WireError | InvalidInput):
            self._complain("worker malformed", f"malformed message from {_named(worker)}: {error}")
            why = str(error)
        else:  # a defect of ours; the next message is another worker's
            self._complain("worker failed", f"failed at a {kind} of {_named(worker)}", error)
            why = f"the controller failed at this worker's {kind}"
        link = self._workers.get(identity)  # it may have joined by that very message
        if link is not None:
            self._worker_gone(link, "speaks nonsense")
        if worker is None:
            self._tell_worker(identity, fd, Mismatch(PROTOCOL_VERSION, why[:FAILURE_CHARS_MAX]))

    def _wrong_result(self) -> None:
        """The exchange has found a result that cannot be: hold it against its worker."""
        identity, fd, frames = self._exchange.message()
        worker = self._workers[identity]
        try:
            self._hold_against(worker, self._exchange.flaw(), frames[0])
        except PolicyFailed:
            raise  # the scheduler is in the middle of something
        except Exception as error:
            self._turn_away(identity, fd, worker, "Result", error)

    def _hold_against(self, worker: WorkerLink, flaw: Flaw, header: bytes) -> None:
        if flaw.header is not None:
            raise codec.WireError(codec.complaint(header, FROM_WORKER, flaw.header))
        if self._fault(worker, result_text(flaw)):
            # What it was for is planned anew.
            self._exchange.fail_action(worker.slot, flaw.id, "a worker's answer was none")

    def _complain(self, kind: str, text: str, error: BaseException | None = None) -> None:
        self._complaints.note(kind, self._now, text, error)
        self.note_trouble(TroubleKind.MESSAGE_REJECTED, kind, text)

    def _after_job_failed(self, error: Exception) -> None:
        """What follows a job of the storage thread raised: whoever waits for that hears nothing, and all others do."""
        self._complain("storage failed", "failed at what follows a job of the storage thread", error)

    def _greet_worker(
        self, identity: bytes, fd: int, known: WorkerLink | None, message: Any, key: str
    ) -> None:
        if type(message) is not WorkerHello:
            self._tell_worker(identity, fd, HelloNeeded(self._epoch))
            return
        if message.protocol != PROTOCOL_VERSION:
            self._tell_worker(identity, fd, _mismatch(message.protocol, message.version))
            return
        devices = parse_devices(message.devices)
        if message.worker_epoch in self._let_go:
            text = _let_go_text(self._let_go[message.worker_epoch])
            self._tell_worker(identity, fd, Mismatch(PROTOCOL_VERSION, text))
            return
        if devices[0].host_bytes and not self._scheduler.plans_fetches:
            text = (
                f"policy {self._settings.policy} cannot plan for a host store with a budget (--host-bytes): "
                f"start the controller with --policy adaptive, or the worker without a budget"
            )
            self._tell_worker(identity, fd, Mismatch(PROTOCOL_VERSION, text))
            return
        for other in list(self._workers.values()):
            if other.worker_epoch == message.worker_epoch or other is known:
                self._worker_gone(other, "reconnected")
        if len(self._workers) >= WORKERS_MAX:
            text = f"{WORKERS_MAX} workers are connected, which is the most"
            self._tell_worker(identity, fd, Mismatch(PROTOCOL_VERSION, text))
            return
        other_at = self._worker_of_fd.get(fd)
        if not _is_ours(identity):
            self._tell_worker(identity, fd, Mismatch(PROTOCOL_VERSION, OWN_NAME_TEXT))
            return
        if other_at is not None and _is_older(identity, other_at.identity):
            return
        if other_at is not None:  # its end was read before its hello was
            self._worker_gone(other_at, "disconnected")
        slot = self._exchange.worker_joined(identity, fd, self._next_worker, len(devices))
        if slot is None:
            return  # its connection has ended: a hello may be read after that
        worker = WorkerLink(
            identity,
            fd,
            slot,
            self._next_worker,
            printable(message.name),
            message.worker_epoch,
            devices,
            self._now,
            key,
        )
        self._next_worker += 1
        self._workers[identity] = self._worker_of_fd[fd] = self._worker_by_id[worker.worker_id] = worker
        welcome = WorkerWelcome(PROTOCOL_VERSION, VERSION, self._epoch, worker.worker_id)
        if not self._tell_worker(identity, fd, welcome):
            self._worker_gone(worker, "cannot be reached")
            return
        self._ping(worker)
        self._count_devices()
        shapes = tuple(
            (f"{one.kind}/{one.fingerprint}", one.page_bytes, one.page_count, one.run_ahead)
            for one in devices
        )
        self._events.append(WorkerJoined(self._now, worker.worker_id, shapes, devices[0].host_bytes))
        self._registrar.worker_joined(worker.worker_id, worker.name)
        log.info(
            "worker %s joined as %d with %s",
            worker.name,
            worker.worker_id,
            ", ".join(d.kind for d in devices),
        )
        self.publish("worker", {"worker": worker.name, "state": "joined"})

    def _compare_machines(self) -> None:
        """Have the exchange know the machine whose memory all workers see, if they are all on one; see wire/shared.py."""
        machines = [worker.stats.get(MACHINE, 0) for worker in self._workers.values()]
        is_one = bool(machines) and all(
            type(machine) is int and machine == machines[0] for machine in machines
        )
        self._exchange.shared_machine = machines[0] if is_one and 0 < machines[0] <= INT64_MAX else 0

    def _count_devices(self) -> None:
        self._exchange.shadow_width = max(1, sum(len(worker.devices) for worker in self._workers.values()))
        self._compare_machines()

    def _worker_gone(self, worker: WorkerLink, why: str) -> None:
        if self._workers.pop(worker.identity, None) is None:
            return
        if self._worker_of_fd.get(worker.fd) is worker:
            del self._worker_of_fd[worker.fd]
        del self._worker_by_id[worker.worker_id]
        if worker.clock_is_lost:
            self.clear_trouble(TroubleKind.WORKER_CLOCK, worker.name)
        self._count_devices()
        self._exchange.worker_left(worker.slot)
        self._exchange.forget_references()
        self._events.append(WorkerLeft(self._now, worker.worker_id))
        self._registrar.worker_left(worker.worker_id)
        self._repairs.worker_left(worker.worker_id)
        for index in worker.offline:
            self.clear_trouble(TroubleKind.DEVICE_LOST, f"{worker.name}/{index}")
        log.info("worker %s (%d) left: %s", worker.name, worker.worker_id, why)
        if not worker.is_draining:
            self._flight.alert("worker-lost", self._now)
        self.publish("worker", {"worker": worker.name, "state": "left", "why": why})

    def _fault(self, worker: WorkerLink, why: str) -> bool:
        """A worker said what cannot be, and does not have many more tries; False if that was its last."""
        worker.faults += 1
        text = f"worker {worker.name} answered what cannot be: {why}"
        self._complain("worker fault", text)
        if worker.faults < WORKER_FAULTS_MAX:
            return True
        self.note_trouble(
            TroubleKind.WORKER_LET_GO, worker.name, f"{worker.faults} of its answers were none: {why}"
        )
        if len(self._let_go) >= WORKERS_MAX:
            del self._let_go[next(iter(self._let_go))]
        self._let_go[worker.worker_epoch] = why
        # It goes like one that leaves in order: what it had under way is nobody's fault but its own.
        self._tell_scheduler(WorkerDraining(self._now, worker.worker_id))
        self._exchange.fail_actions(worker.slot, "the worker that had it was let go")
        self._tell_worker(worker.identity, worker.fd, Mismatch(PROTOCOL_VERSION, _let_go_text(why)))
        self._worker_gone(worker, "was let go")
        return False

    def _heartbeat(self, worker: WorkerLink, message: Heartbeat, frames: list[Any]) -> None:
        worker.jitter_ns = message.jitter_ns
        if text := new_damage(worker.stats, message.stats):
            self.note_trouble(TroubleKind.FILE_REPAIRED, f"store of worker {worker.name}", text)
        has_moved = worker.stats.get(MACHINE) != message.stats.get(MACHINE)
        worker.stats = message.stats
        if has_moved:
            self._compare_machines()

    def _pong(self, worker: WorkerLink, message: Pong, frames: list[Any]) -> None:
        worker.clock.pong(message.sent_ns, message.received_ns, message.returned_ns, self._now)
        self._exchange.set_clock(worker.slot, *worker.clock.bounds())
        there = worker.clock.there_ns() + min(worker.jitter_ns, JITTER_COUNTED_MAX_NS)
        self._events.append(LinkMeasured(self._now, worker.worker_id, there, worker.clock.back_ns()))

    def _fetch(self, worker: WorkerLink, message: Fetch, frames: list[Any]) -> None:
        files = self._table.files_of(message.digest)
        if worker.fetches >= FETCHES_MAX:
            raise InvalidInput(f"a worker waits for at most {FETCHES_MAX} chunks at once")
        if message.file >= len(files):
            chunk = Chunk(message.digest, message.file, message.offset, Status.INTERNAL)
            self._tell_worker(worker.identity, worker.fd, chunk, [b""])
            return
        worker.fetches += 1
        file = files[message.file]
        job = ReadChunk(worker.worker_id, message.digest, message.file, file, message.offset, message.length)
        self._effects.append(job)

    def _chunk_read(self, job: ReadChunk, data: bytes | None, error: BaseException | None) -> None:
        if isinstance(error, OSError):
            self._repairs.inspect(job.digest)
        worker = self._worker_by_id.get(job.worker)
        if worker is None:
            return
        worker.fetches -= 1
        status = Status.OK if error is None else Status.INTERNAL
        chunk = Chunk(job.digest, job.file_index, job.offset, status)
        self._tell_worker(worker.identity, worker.fd, chunk, [data if error is None else b""])

    def _chunk(self, worker: WorkerLink, message: Chunk, frames: list[Any]) -> None:
        self._repairs.on_chunk(worker.worker_id, message, frames[1] if len(frames) > 1 else None)

    def _prepared(self, worker: WorkerLink, message: Prepared, frames: list[Any]) -> None:
        self._registrar.prepared(worker.worker_id, message, self._now)
        self._exchange.forget_references()  # a version may have failed everywhere

    def _device_lost(self, worker: WorkerLink, message: DeviceFault, frames: list[Any]) -> None:
        index = message.device
        if index >= len(worker.devices):
            raise InvalidInput(f"device {index} of {len(worker.devices)}")
        if index in worker.offline:
            return
        worker.offline[index] = message.text[:300]
        self._events.append(DeviceLost(self._now, worker.worker_id, index))
        name = worker.devices[index].name
        log.error("device %d (%s) of worker %s is offline: %s", index, name, worker.name, message.text[:300])
        self.note_trouble(TroubleKind.DEVICE_LOST, f"{worker.name}/{index}", message.text)
        self.publish(
            "worker",
            {"worker": worker.name, "state": "device lost", "device": index, "why": worker.offline[index]},
        )

    def _clock_changed(self, worker: WorkerLink, message: ClockChanged, frames: list[Any]) -> None:
        if message.device >= len(worker.devices):
            raise InvalidInput(f"device {message.device} of {len(worker.devices)}")
        self._events.append(DeviceClock(self._now, worker.worker_id, message.device, message.mhz))

    def _time_needed(self, worker: WorkerLink, message: TimeNeeded, frames: list[Any]) -> None:
        if message.device >= len(worker.devices):
            raise InvalidInput(f"device {message.device} of {len(worker.devices)}")
        pages = worker.devices[message.device].page_count
        if sum(message.runs) > pages:
            raise InvalidInput(f"{sum(message.runs)} pages of {pages}")
        runs = tuple(message.runs)
        self._events.append(
            TimeWanted(
                self._now, worker.worker_id, message.device, message.model_id, message.expected_ns, runs
            )
        )

    def _worker_leaves(self, worker: WorkerLink, message: Goodbye, frames: list[Any]) -> None:
        self._events.append(WorkerDraining(self._now, worker.worker_id))
        worker.is_draining = True
        self._registrar.worker_drains(worker.worker_id)
        # Whatever was ordered of it went before this, and from here on it is ordered nothing: once it has answered
        # what it has, it may go.
        self._tell_worker(worker.identity, worker.fd, Goodbye())
        log.info("worker %s (%d) is leaving", worker.name, worker.worker_id)
        self.publish("worker", {"worker": worker.name, "state": "draining"})

    _worker_handlers: ClassVar[dict[type, Any]] = {
        Heartbeat: _heartbeat,
        Pong: _pong,
        Fetch: _fetch,
        Chunk: _chunk,
        Prepared: _prepared,
        DeviceFault: _device_lost,
        ClockChanged: _clock_changed,
        TimeNeeded: _time_needed,
        Goodbye: _worker_leaves,
    }

    # ----- orders --------------------------------------------------------------------------------

    def _order(self) -> None:
        order = self._exchange.order()
        if type(order) is ModelFault:
            self._model_fault(order)
        else:
            assert type(order) is ModelGone, order
            self._registrar.drained(order.model_id)

    def _model_fault(self, order: ModelFault) -> None:
        worker = self._worker_by_id.get(order.worker)
        name = worker.name if worker else ""
        self._registrar.faulted(order.model_id, order.fault, name, order.set_aside)

    def _paused(self) -> None:
        self._flight.paused(self._now)

    def _orders_done(self) -> None:
        """The orders of one decision have been carried out, as far as they could."""
        self._exchange.end_orders()
        clients, workers = self._exchange.lost()
        if clients:
            by_slot = {client.slot: client for client in self._clients.values()}
            for slot in clients:
                if slot in by_slot:
                    self._client_gone(by_slot[slot], "cannot be reached")
        for worker_id in workers:
            worker = self._worker_by_id.get(worker_id)
            if worker is not None:
                self._worker_gone(worker, "cannot be reached")

    _needs: ClassVar[dict[int, Any]] = {
        OTHER: _other,
        WORKERS_LEFT: _workers_left,
        CLIENTS_LEFT: _clients_left,
        WORKER_MESSAGE: _worker_message,
        CLIENT_MESSAGE: _client_message,
        WRONG_RESULT: _wrong_result,
        WRONG_REQUEST: _wrong_request,
        ORDER: _order,
        ORDERS_DONE: _orders_done,
        PAUSED: _paused,
    }

    # ----- timers --------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._heartbeat_ns = self._now + HEARTBEAT_NS
        for worker in list(self._workers.values()):
            if self._now - self._exchange.heard_ns(worker.slot) > WORKER_TIMEOUT_NS:
                self._worker_gone(worker, f"unheard of for {WORKER_TIMEOUT_NS / 1e9:g} s")
                self._tell_worker(worker.identity, worker.fd, HelloNeeded(self._epoch))
            else:
                self._watch_clock(worker)
                self._ping(worker)
        self._registrar.beat(self._now)
        self._complaints.settle(self._now)
        self._note_cuts()
        counts = dict(zip(OUTCOMES, self._exchange.outcomes(), strict=True))
        bad = counts["refused"] + counts["missed"] + counts["failed"]
        self._flight.beat(counts["answered"], bad, self._now)
        if self._telemetry is not None and (failure := self._telemetry.failure()):
            self.note_trouble(TroubleKind.TELEMETRY_FAILED, str(self._telemetry.folder), failure)
        if self._access.has_changed():
            self._read_keys()
        for text in self._access.refusals():
            self._complaints.note("key refused", self._now, text)
        if count := self._publisher.look():
            self._complain(
                "events cut",
                f"{count} connections for events were ended: they say more than a subscriber has to",
            )
        self.publish("counts", {"held": self._exchange.held_count, **self.queries.count_all()})

    def _note_cuts(self) -> None:
        """Say in the log whose connections were ended since the last beat, by port and by bound."""
        for side, name in ((CLIENTS, "clients"), (WORKERS, "workers")):
            found = self._exchange.connections(side)["cut"]
            for reason, count in found.items():
                before = self._cuts.get((side, reason), 0)
                if count > before and reason != "asked":
                    text = f"{count - before} connections of {name} were ended: {CUT_TEXTS[reason]}"
                    self._complain(f"{name} cut", text)
                self._cuts[side, reason] = count

    def _watch_clock(self, worker: WorkerLink) -> None:
        """Name a worker whose clock cannot be followed: its windows mean nothing."""
        complaint = worker.clock.complaint(worker.joined_ns, self._now)
        if complaint and not worker.clock_is_lost:
            log.warning("the clock of worker %s cannot be followed: %s", worker.name, complaint)
            self.note_trouble(TroubleKind.WORKER_CLOCK, worker.name, complaint)
        elif worker.clock_is_lost and not complaint:
            self.clear_trouble(TroubleKind.WORKER_CLOCK, worker.name)
        worker.clock_is_lost = bool(complaint)

    def _read_keys(self) -> None:
        """Take in the list of keys as it is now, and end the connections of keys that lost what they were let in for."""
        try:
            revoked = self._access.read_again()
        except ConfigError as error:
            log.error("%s; the keys that were let in before still are", error)
            self.note_trouble(TroubleKind.KEYS_UNREADABLE, "keys", str(error))
            return
        self.clear_trouble(TroubleKind.KEYS_UNREADABLE, "keys")
        log.info("the list of keys was read again: %d are no longer let in as before", len(revoked))
        if not revoked:
            return
        why = "its key was revoked"
        for worker in [link for link in self._workers.values() if link.key in revoked]:
            self._worker_gone(worker, why)
            self._exchange.disconnect(WORKERS, worker.fd)
        for client in [link for link in self._clients.values() if link.key in revoked]:
            log.info("client %s left: %s", client.name, why)
            self._client_gone(client, why)
            self._exchange.disconnect(CLIENTS, client.fd)
        self._publisher.disconnect_all()

    def _ping(self, worker: WorkerLink) -> None:
        self._tell_worker(worker.identity, worker.fd, Ping(now_ns()))

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
                self._complain("storage failed", f"failed at {type(effect).__name__}", error)

    def _carry_out_one(self, effect: Effect) -> None:
        match effect:
            case SendClient(client, message):
                self._to_client(client, message)
            case Refuse(waiter, error):
                self.fail(waiter.client, waiter.request_id, error)
            case ReplyModel(waiter, model):
                self._to_client(waiter.client, Reply(waiter.request_id, self.queries.describe(model)))
            case ReplyRoute(waiter, name):
                body = self.queries.describe_route(name)
                self._to_client(waiter.client, Reply(waiter.request_id, body))
                self.publish("route", {"model": name, **body})
            case SendWorker(worker, message):
                link = self._worker_by_id.get(worker)
                if link is not None:
                    self._tell_worker(link.identity, link.fd, message)
            case Publish(topic, body):
                self.publish(topic, body)
            case NoteTrouble(kind, subject, text):
                self.note_trouble(kind, subject, text)
            case ClearTrouble(kind, subject):
                self.clear_trouble(kind, subject)
            case Blame(worker, why):
                link = self._worker_by_id.get(worker)
                if link is not None:
                    self._fault(link, why)
            case ScheduleReady(worker, spec):
                self._events.append(ModelReady(self._now, worker, spec))
            case ScheduleRemoval(model_id):
                self._events.append(ModelRemoved(self._now, model_id))
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
            self._chunk_read(job, value, error)
        else:
            self._registrar.ended(job, value, error, self._now)
        self._carry_out()

    def _to_client(self, client: bytes, message: tuple[Any, ...]) -> None:
        link = self._clients.get(client)
        if link is not None:
            self._send_client(link, message)

    def fail(self, client: bytes, request_id: int, error: ClockworkError) -> None:
        link = self._clients.get(client)
        if link is not None:
            self._fail(link, request_id, error)

    def now(self) -> int:
        return self._now

    def note_trouble(self, kind: TroubleKind, subject: str, text: str) -> None:
        """Have status and metrics say so until it is cleared, or a day if nothing can mend it."""
        if kind in ALERTING:
            self._flight.alert(kind.value.replace("_", "-"), self._now)
        self.troubles.note(kind, subject, text, self._now)

    def clear_trouble(self, kind: TroubleKind, subject: str) -> None:
        self.troubles.clear(kind, subject)

    def publish(self, topic: str, body: dict[str, Any]) -> None:
        self._publisher.send(topic.encode(), msgpack.packb(body))

    # ----- inside --------------------------------------------------------------------------------

    def _tell_client(self, identity: bytes, fd: int, message: tuple[Any, ...], frames: Any = ()) -> bool:
        """Queue a message for the client at a descriptor. False if it is gone or has left too much unread."""
        if type(message) is Reply:
            header, rest = codec.encode_reply(message)
        else:
            header, rest = codec.encode(message), b""
        return self._exchange.send(CLIENTS, identity, fd, header, frames, rest)

    def _tell_worker(self, identity: bytes, fd: int, message: tuple[Any, ...], frames: Any = ()) -> bool:
        """The same of a worker."""
        return self._exchange.send(WORKERS, identity, fd, codec.encode(message), frames)

    def _send_client(
        self, client: ClientLink, message: tuple[Any, ...], frames: list[Any] | None = None
    ) -> None:
        """Send to a client that may be gone: then there is nobody to tell."""
        if not self._tell_client(client.identity, client.fd, message, frames or ()):
            self._client_gone(client, "cannot be reached")

    def _fail(self, client: ClientLink, request_id: int, error: ClockworkError) -> None:
        status = _STATUS_OF.get(type(error), Status.INTERNAL)
        details = {}
        if isinstance(error, InvalidInput):
            facts = {"tensor": error.tensor, "expected": error.expected, "got": error.got}
            details = {key: value[:FAILURE_CHARS_MAX] for key, value in facts.items()}
        self._send_client(client, Failure(request_id, status, str(error)[:FAILURE_CHARS_MAX], details))


def _named(peer: ClientLink | WorkerLink | None) -> str:
    """A peer's name for a sentence. A client says nothing better than what it calls itself."""
    return (
        "an unknown peer"
        if peer is None
        else f"{'worker' if isinstance(peer, WorkerLink) else 'client'} {peer.name}"
    )


def _is_ours(identity: bytes) -> bool:
    """Whether libzmq numbered this peer, as it does unless the peer names itself."""
    return len(identity) == 5 and identity[0] == 0


def _is_older(identity: bytes, other: bytes) -> bool:
    """Whether this peer connected before the other one. libzmq counts peers in 32 bits, from any number on."""
    return (int.from_bytes(identity[1:]) - int.from_bytes(other[1:])) % (1 << 32) >= 1 << 31


def _let_go_text(why: str) -> str:
    return f"{WORKER_FAULTS_MAX} of this worker's answers were none, the last: {why}; it is let go until it is started anew"[
        :FAILURE_CHARS_MAX
    ]


def _mismatch(protocol: int, version: str) -> Mismatch:
    return Mismatch(
        PROTOCOL_VERSION,
        f"the controller ({VERSION}) speaks protocol {PROTOCOL_VERSION}, "
        f"the peer ({printable(version, 40)}) speaks {protocol}",
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
