"""The clients of a controller: their admission, the handling of their messages, and the answers to them.

A client's message, whatever it holds, can do harm to that client alone.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, TypeAlias

from clockwork.config import CLIENTS_MAX, FAILURE_CHARS_MAX, VERSION
from clockwork.config.controller import CHANGED_BY_MAX, SEATS_ASKED_MAX
from clockwork.controller._exchange import CLIENTS, SEAT_FREE, SEAT_NONE
from clockwork.controller.context import Context
from clockwork.controller.effects import Complain, Disconnect, Effect, Post
from clockwork.controller.models.lifecycle import ModelState
from clockwork.controller.models.version import ModelVersion
from clockwork.controller.peers.access import Access
from clockwork.controller.peers.links import (
    OWN_NAME_TEXT,
    WORKER_AT_CLIENTS,
    ClientLink,
    Links,
    is_hello,
    is_older,
    is_ours,
    mismatch,
    named,
)
from clockwork.controller.peers.returning import Returning
from clockwork.controller.ports.flaws import Flaw, request_error
from clockwork.controller.ports.posts import to_client
from clockwork.controller.registration.registrar import Registrar
from clockwork.controller.registration.table import ModelTable, set_aside_text
from clockwork.controller.views.views import Views
from clockwork.errors import (
    ClockworkError,
    Forbidden,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    PolicyFailed,
    Unavailable,
)
from clockwork.system.words import say_count
from clockwork.wire import codec
from clockwork.wire.messages import (
    FROM_CLIENT,
    FROM_WORKER,
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    Bye,
    Cancel,
    ClientHello,
    ClientWelcome,
    Failure,
    Goodbye,
    HandOver,
    HelloNeeded,
    Mismatch,
    Offer,
    Promote,
    Query,
    Register,
    Reply,
    ReportSource,
    Rollback,
    Route,
    Status,
    Unregister,
    UploadChunk,
    WorkerHello,
)
from clockwork.wire.telling import printable

log = logging.getLogger("clockwork.controller")

GiveWay: TypeAlias = Callable[[Callable[[list[str], BaseException | None], bool]], None]
"""Prepares the controller's end in favour of a standby. Calls back with the addresses of standbys, or with
the error of the preparation; the controller ends if that returns True."""

_STATUS_OF = {
    ModelNotFound: Status.MODEL_NOT_FOUND,
    InvalidInput: Status.INVALID_INPUT,
    InvalidModel: Status.INVALID_MODEL,
    Unavailable: Status.UNAVAILABLE,
    Forbidden: Status.FORBIDDEN,
}


class Served:
    """Look-up of the models of requests that no route of the exchange leads to."""

    def __init__(self, table: ModelTable, links: Links) -> None:
        self._table = table
        self._links = links
        self._refusal: Exception | None = None

    def find(self, text: str) -> int:
        """The model of requests for a text that has no route; 0: they are refused, and refusal() is why."""
        try:
            return self._servable(text).model_id
        except Exception as error:  # a defect fails this request alone: ClientPort.wrong_request() reports it
            self._refusal = error
            return 0

    def _servable(self, text: str) -> ModelVersion:
        model = self._table.find(text)
        if model is None and self._table.is_set_aside(text):
            raise Unavailable(self._table.absence(text))
        if model is None:
            raise ModelNotFound(self._table.absence(text))
        if model.record.aside:  # the version is about to be unloaded
            raise Unavailable(set_aside_text(model.record))
        if model.state is ModelState.FAILED:
            raise Unavailable(f"{model.label} cannot be served: {model.text}")
        if model.prepared is None and not self._links.workers:
            raise Unavailable(f"no worker is connected that could prepare {model.label}")
        if model.prepared is None:
            raise Unavailable(f"{model.label} is being prepared")
        return model

    def refusal(self) -> Exception:
        """The reason why the last text led to no model."""
        error, self._refusal = self._refusal, None
        assert error is not None
        return error


class ClientPort:
    """All clients. The exchange, which reads their connections, reports when they come and go."""

    def __init__(
        self,
        context: Context,
        effects: deque[Effect],
        access: Access,
        served: Served,
        table: ModelTable,
        registrar: Registrar,
        views: Views,
        returning: Returning,
        give_way: GiveWay,
    ) -> None:
        self._returning = returning
        self._give_way = give_way
        self._waiting: dict[bytes, tuple[int, ClientHello, str]] = {}  # clients that wait for workers
        self._context = context
        self._effects = effects
        self._exchange = context.exchange
        self._links = context.links
        self._access = access
        self._served = served
        self._table = table
        self._registrar = registrar
        self._views = views

    # ----- coming and going --------------------------------------------------------------------------

    def ended(self) -> None:
        """Let clients go whose connections have ended."""
        for fd in self._exchange.ended(CLIENTS):
            client = self._links.client_of_fd.pop(fd, None)
            if client is not None:
                self._gone(client, "disconnected")

    def lost(self, slots: Iterable[int]) -> None:
        """Let clients go that could not be reached."""
        by_slot = {client.slot: client for client in self._links.clients.values()}
        for slot in slots:
            if slot in by_slot:
                self._gone(by_slot[slot], "cannot be reached")

    def unreachable(self, identity: bytes, fd: int) -> None:
        """Let the client at this descriptor go: a message for it could not be queued."""
        client = self._links.clients.get(identity)
        if client is not None and client.fd == fd:
            self._gone(client, "cannot be reached")

    def revoke(self, keys: Collection[str], why: str) -> None:
        """End the connections of these keys."""
        for client in [link for link in self._links.clients.values() if link.key in keys]:
            log.info("client %s left: %s", client.name, why)
            self._gone(client, why)
            self._effects.append(Disconnect(CLIENTS, client.fd))

    def let_in(self) -> None:
        """Welcome the clients that have waited for workers to come back."""
        waiting, self._waiting = self._waiting, {}
        for identity, (fd, message, key) in waiting.items():
            self._greet(identity, fd, message, key)

    def dismiss(self) -> None:
        """Tell all clients that the controller ends."""
        for client in self._links.clients.values():
            self._effects.append(to_client(client.identity, client.fd, Goodbye()))

    def _gone(self, client: ClientLink, why: str) -> None:
        if self._links.clients.pop(client.identity, None) is None:
            return
        if self._links.client_of_fd.get(client.fd) is client:
            del self._links.client_of_fd[client.fd]
        self._registrar.client_gone(client.identity)
        self._views.reports.client_gone(client.identity)
        self._exchange.client_left(client.slot)

    def _greet(self, identity: bytes, fd: int, message: Any, key: str) -> None:
        try:
            self._access.check(key, message)
        except Forbidden as error:
            self._effects.append(to_client(identity, fd, Mismatch(PROTOCOL_VERSION, str(error))))
            return
        if type(message) is not ClientHello:
            self._effects.append(to_client(identity, fd, HelloNeeded(self._context.epoch)))
        elif self._context.lease.is_over(message.lease, is_worker=False):
            self._effects.append(to_client(identity, fd, Goodbye()))  # another controller is asked then
        elif not self._returning.is_over and len(self._waiting) < CLIENTS_MAX:
            self._waiting[identity] = (fd, message, key)
        elif message.protocol < PROTOCOL_OLDEST:
            self._effects.append(to_client(identity, fd, mismatch(message.protocol, message.version)))
        elif identity in self._links.clients or self._note(identity, fd, printable(message.name), key):
            spoken = min(message.protocol, PROTOCOL_VERSION)
            welcome = ClientWelcome(spoken, VERSION, self._context.epoch, self._context.lease.row)
            self._effects.append(to_client(identity, fd, welcome))

    def _note(self, identity: bytes, fd: int, name: str, key: str) -> bool:
        """Note a new client. False if its connection has ended, since a hello may be read after the end."""
        if not is_ours(identity):
            self._effects.append(to_client(identity, fd, Mismatch(PROTOCOL_VERSION, OWN_NAME_TEXT)))
            return False
        other = self._links.client_of_fd.get(fd)
        if other is not None and is_older(identity, other.identity):
            return False
        if other is not None:  # the end of the connection was read before its hello was
            self._gone(other, "disconnected")
        if not self._make_room(identity, fd, key):
            return False
        slot = self._exchange.client_joined(identity, fd, key)
        if slot is None:
            return False
        self._links.clients[identity] = self._links.client_of_fd[fd] = ClientLink(
            identity, fd, name, slot, key
        )
        return True

    def _make_room(self, identity: bytes, fd: int, key: str) -> bool:
        """Where all seats are taken, dismiss the client that the exchange names, or refuse the newcomer."""
        seat = self._exchange.seat_for(CLIENTS, fd, key)
        for _ in range(SEATS_ASKED_MAX):
            if seat in (SEAT_FREE, SEAT_NONE) or not self._links.client_of_fd[seat].waits:
                break
            # A client that waits, for example for a registration, may be silent
            self._exchange.heard(CLIENTS, seat)
            seat = self._exchange.seat_for(CLIENTS, fd, key)
        if seat == SEAT_NONE:
            text = f"{len(self._links.clients)} clients are connected, which is the most, and all of them are in use"
            self._effects.append(to_client(identity, fd, Mismatch(PROTOCOL_VERSION, text)))
            return False
        if seat != SEAT_FREE:
            idlest = self._links.client_of_fd[seat]
            # Our client library closes its connection at this, and dials again when it is used; any other
            # client has HELLO_NS to go.
            self._effects.append(to_client(idlest.identity, idlest.fd, Goodbye()))
            self._gone(idlest, "gave way to another")
        return True

    # ----- messages ----------------------------------------------------------------------------------

    def message(self) -> None:
        """Handle a message of a client that is no inference request, which the exchange holds."""
        self._from(*self._exchange.message(), self._exchange.key())

    def _from(self, identity: bytes, fd: int, frames: list[Any], key: str) -> None:
        client = self._links.clients.get(identity)
        message: Any = None
        try:
            if not frames:
                raise codec.WireError("a message is a header and at most a bounded number of frames")
            message = codec.decode(frames[0], FROM_CLIENT)
            if client is None or type(message) is ClientHello:
                self._greet(identity, fd if client is None else client.fd, message, key)
            else:
                self._access.check(key, message)
                self._handlers[type(message)](self, client, message, frames)
        except codec.WireError as error:
            if client is None and is_hello(frames, FROM_WORKER, WorkerHello):
                self._effects.append(to_client(identity, fd, WORKER_AT_CLIENTS))
                self._effects.append(Complain("client malformed", "a worker came to the clients' port"))
                return
            _, request_id = codec.addressee(frames[0], FROM_CLIENT) if frames else (None, 0)
            self._tell_why(identity, fd, request_id, "message", error)
        except PolicyFailed:
            raise  # the scheduler's state may be inconsistent
        except Exception as error:
            self._tell_why(identity, fd, getattr(message, "request_id", 0), type(message).__name__, error)

    def _tell_why(self, identity: bytes, fd: int, request_id: int, kind: str, error: Exception) -> None:
        """Tell a client why its message failed."""
        client = self._links.clients.get(identity)
        if client is not None:
            fd = client.fd  # a message with too many frames does not have the descriptor
        if isinstance(error, codec.WireError):
            refusal = Failure(request_id, Status.INVALID_INPUT, f"malformed message: {error}", {})
            self._effects.append(to_client(identity, fd, refusal))
            text = f"malformed message from {named(client)}: {error}"
            self._effects.append(Complain("client malformed", text))
        elif isinstance(error, ClockworkError):
            self._send(identity, failure(request_id, error))
        else:  # a defect of ours; the next message is another client's
            self._effects.append(Complain("client failed", f"failed at a {kind} of {named(client)}", error))
            text = f"the controller failed at this {kind} ({type(error).__name__}): a defect, of which its log has more"
            self._effects.append(to_client(identity, fd, Failure(request_id, Status.INTERNAL, text, {})))

    def wrong_request(self) -> None:
        """Answer a request that the exchange has refused as wrong with the reason."""
        identity, fd, frames = self._exchange.message()
        flaw = self._exchange.flaw()
        error: Exception
        try:
            error = self._error_of(flaw, frames[0])
        except Exception as defect:
            error = defect
        if isinstance(error, ClockworkError):
            self._views.metrics.count_unserved(error)
        self._tell_why(identity, fd, flaw.id, "InferRequest", error)

    def _error_of(self, flaw: Flaw, header: bytes) -> Exception:
        """The error with which a request is refused."""
        if flaw.code == "unserved":
            return self._served.refusal()
        if flaw.header is not None:
            return codec.WireError(codec.complaint(header, FROM_CLIENT, flaw.header))
        return request_error(flaw, self._table.by_id[flaw.model_id].record.name)

    def _cancel(self, client: ClientLink, message: Cancel, frames: list[Any]) -> None:
        """Cancel a request that is no inference."""
        self._registrar.cancel(client.identity, message.request_id)
        client.waits.discard(message.request_id)

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
        by = f"{self._access.name_of(client.key)}client {client.name}"[:CHANGED_BY_MAX]
        self._registrar.request(client.identity, message, client.owner, by)
        client.waits.add(message.request_id)

    def _query(self, client: ClientLink, message: Query, frames: list[Any]) -> None:
        if message.what == "recorder":
            answered = functools.partial(self._recorder_answered, client.identity, message.request_id)
            self._context.flight.ask(message.argument, self._context.now_ns, answered)
            return
        if message.what == "metrics":
            body = self._views.metrics.body(message.argument)
        else:
            body = self._views.queries.answer(message)
        self._send(client.identity, Reply(message.request_id, body))

    def _recorder_answered(
        self, client: bytes, request_id: int, body: Any, error: BaseException | None
    ) -> None:
        if error is None:
            self._send(client, Reply(request_id, body))
        elif isinstance(error, ClockworkError):
            self._send(client, failure(request_id, error))
        else:  # a defect of the controller
            text = "failed at a query for the flight recorder"
            self._effects.append(Complain("storage failed", text, error))
            told = Unavailable("the flight recorder failed: the controller's log says why")
            self._send(client, failure(request_id, told))

    def _report_source(self, client: ClientLink, message: ReportSource, frames: list[Any]) -> None:
        self._views.reports.note(client.identity, message.source, message.text)
        self._send(client.identity, Reply(message.request_id, None))

    def _hand_over(self, client: ClientLink, message: HandOver, frames: list[Any]) -> None:
        self._check_idle()
        identity, request_id = client.identity, message.request_id
        self._give_way(functools.partial(self._gave_way, identity, request_id))

    def _check_idle(self) -> None:
        """Raise Unavailable where a client waits for a change of models: its outcome would be unknown."""
        if count := sum(len(client.waits) for client in self._links.clients.values()):
            raise Unavailable(
                f"{say_count(count, 'change')} of models must end before the controller gives way"
            )

    def _gave_way(
        self, client: bytes, request_id: int, standbys: list[str], error: BaseException | None
    ) -> bool:
        """Answer a hand-over that could begin. Returns whether it does."""
        try:
            self._check_idle()
            if error is not None:
                raise Unavailable(f"the catalogue cannot be left to a standby: {error}")
            if not standbys:
                raise Unavailable("no standby is there to take over: start a controller with --standby")
        except Unavailable as refusal:
            self._send(client, failure(request_id, refusal))
            return False
        self._send(client, Reply(request_id, {"standbys": standbys}))
        return True

    def _bye(self, client: ClientLink, message: Bye, frames: list[Any]) -> None:
        self._gone(client, "left")

    _handlers: ClassVar[dict[type, Any]] = {
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
        HandOver: _hand_over,
        Bye: _bye,
    }

    # ----- telling -----------------------------------------------------------------------------------

    def post(self, client: bytes, message: tuple[Any, ...]) -> Post | None:
        """A message for a client, or None where the client is gone. An answer ends its request's wait."""
        link = self._links.clients.get(client)
        if link is None:
            return None
        if isinstance(message, Reply | Failure):
            link.waits.discard(message.request_id)
        return to_client(link.identity, link.fd, message)

    def _send(self, client: bytes, message: tuple[Any, ...]) -> None:
        if (post := self.post(client, message)) is not None:
            self._effects.append(post)


def failure(request_id: int, error: ClockworkError) -> Failure:
    """The answer to a client's failed request."""
    status = _STATUS_OF.get(type(error), Status.INTERNAL)
    details = {}
    if isinstance(error, InvalidInput):
        facts = {"tensor": error.tensor, "expected": error.expected, "got": error.got}
        details = {key: value[:FAILURE_CHARS_MAX] for key, value in facts.items()}
    return Failure(request_id, status, str(error)[:FAILURE_CHARS_MAX], details)
