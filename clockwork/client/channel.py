"""A client's channel to a controller: a socket that any number of threads share, reconnected after every
loss.

The socket's *owner* does its I/O. In the common case of one thread that calls and waits, this thread owns the
socket for as long as its call lasts. To hand the call to another thread and back would cost more than the
rest of a round trip (130 of 240 us, when it was measured). When another thread calls meanwhile, or a call
returns a future, an I/O thread takes over the socket and the call under way; the I/O thread ends after
CLIENT_THREAD_IDLE_NS without work.

A pending call is in exactly one of these places: in ``_queue`` (for the owner to take), in ``_calls`` and
``_waiting`` (no connection yet), in ``_calls`` alone (sent), or done.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import heapq
import itertools
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from clockwork import config
from clockwork.client import idle
from clockwork.client.calls import Arguments, Call, Value, asked_again, error_of
from clockwork.client.pending import CallFuture, PendingCall, Received
from clockwork.config import client as bounds
from clockwork.config.client import CLOSE_S
from clockwork.errors import (
    Cancelled,
    ClockworkError,
    ConnectionLost,
    DeadlineMissed,
    ProtocolMismatch,
    Refused,
    RequestTimeout,
    Unavailable,
)
from clockwork.system.clock import now_ns, to_seconds
from clockwork.system.wake import WakeDescriptor
from clockwork.takeover.obedience import Obedience
from clockwork.wire import codec
from clockwork.wire.keys import PeerKeys
from clockwork.wire.messages import (
    NEVER_NS,
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    TO_CLIENT,
    Answer,
    Bye,
    Cancel,
    ClientHello,
    ClientWelcome,
    Failure,
    Goodbye,
    HelloNeeded,
    Mismatch,
    Progress,
    Reason,
    Reply,
    UploadAck,
    UploadNeed,
)
from clockwork.wire.roles import Role
from clockwork.wire.telling import tell
from clockwork.wire.transport import (
    ConnectionEvent,
    Dealer,
    EndpointTurns,
    Frame,
    Poller,
    Transport,
    split_endpoints,
)

_forks = itertools.count()
_generation = next(_forks)


def _after_fork() -> None:
    global _generation
    _generation = next(_forks)


if hasattr(os, "register_at_fork"):  # only on systems with fork()
    os.register_at_fork(after_in_child=_after_fork)


class CallStream:
    """A call of several messages each way, such as an upload. For one thread at a time."""

    def __init__(self, channel: Channel, call: PendingCall) -> None:
        self.request_id = call.request_id
        self._channel = channel
        self._call = call

    def send(self, message: tuple[Any, ...], frames: Sequence[Frame]) -> None:
        """Send a further message. A lost connection is reported by receive()."""
        self._channel.post(self._call, codec.encode(message), frames)

    def receive(self) -> Received:
        """Return the next message of the controller. Raises the error that ended the call."""
        assert self._call.inbox is not None
        received = self._call.inbox.get()
        if isinstance(received, ClockworkError):
            raise received
        return received

    def close(self) -> None:
        """Cancel the call, at the controller too, unless it has ended."""
        self._channel.abandon(self._call)


class Owner(enum.Enum):
    """The kinds of threads that may do the socket's I/O."""

    NOBODY = "nobody"
    CALLER = "caller"
    THREAD = "thread"
    LOOP = "loop"  # an event loop: see clockwork.client.loop


class _State(enum.Enum):
    DOWN = "down"
    GREETING = "greeting"  # the dealer is connected, and the hello is under way
    READY = "ready"


class Channel:
    """A client's channel; see the module. Every method may be called from any thread.

    endpoint: where the controller listens; of several, with commas between them, one at a time is dialled,
    and the next where nobody there lets this client in. name: how this client appears in the controller's
    logs. asks_again: whether calls that change nothing are asked again after a loss of the connection.
    Raises ConfigError for an endpoint that cannot be dialled.
    """

    def __init__(self, endpoint: str, keys: PeerKeys | None, name: str, asks_again: bool = True) -> None:
        endpoints = split_endpoints(endpoint)
        self._turns = EndpointTurns(endpoints)
        self._asks_again = asks_again
        self._keys = keys
        self._name = name
        # Bytes that the process holds for its callers; see Inflow.look().
        self.kept_bytes: Callable[[], int] = lambda: 0
        self._generation = _generation
        self._ids = itertools.count(1)
        # Fields guarded by _lock:
        self._lock = threading.Lock()
        self._owner = Owner.NOBODY
        self._queue: collections.deque[Callable[[], None]] = collections.deque()
        self._closing = False
        self._closed = threading.Event()
        # Fields that only the owner uses:
        self._thread: threading.Thread | None = None
        self._calls: dict[int, PendingCall] = {}
        self._waiting: collections.deque[PendingCall] = collections.deque()
        self._deadlines: list[tuple[int, int, PendingCall]] = []
        self._state = _State.DOWN
        # Changes of the connection that came after messages which were not taken in yet.
        self._unapplied: list[ConnectionEvent] = []
        self._broken = 0  # consecutive handshakes that broke off
        self._obedience = Obedience()
        self._sleeping = False
        self._woken = False
        self._lone = 0  # consecutive blocking calls during which no other call was pending
        self._wake_lock = threading.Lock()  # held to write to the wake-up descriptor, and to close it
        self._wakeup = WakeDescriptor()
        self._transport: Transport | None = None
        self._dealer: Dealer | None = None
        self._poller = Poller([], [self._wakeup.fileno()])
        try:
            for _ in endpoints[1:]:  # each is checked
                self._turns.advance(0, False, False)
                self._dial()
                self._hang_up()
            if len(endpoints) > 1:
                self._turns.advance(0, False, False)
            self._dial()
        except BaseException:
            self._release()
            raise
        idle.attend(self)

    @property
    def endpoint(self) -> str:
        """The endpoint that is dialled."""
        return self._turns.current

    # ----- for callers -----------------------------------------------------------------------

    def call(self, call: Call[Value, *Arguments], timeout_ns: int, *arguments: *Arguments) -> Value:
        """Carry out a call. Blocks until the call ends, and raises its error."""
        pending = self._pending_call(call, timeout_ns, *arguments)
        direct = False
        # KeyboardInterrupt may come anywhere: the call is then cancelled, and the socket released.
        try:
            with self._lock:
                self._check_usable()
                if self._owner is Owner.NOBODY:
                    self._owner = Owner.CALLER
                    direct = True
                else:
                    if threading.current_thread() is self._thread:
                        raise ClockworkError("a blocking call inside a callback of a future would never end")
                    self._check_room()
                    pending.lock = _held_lock()
                    self._queue.append(lambda: self._begin(pending, True))
            if direct:
                self._drive(pending)
            else:
                self._wake()
                pending.lock.acquire()  # type: ignore[union-attr]
        except ClockworkError:
            raise
        except BaseException:
            if direct:
                self._abandon(pending)
            else:
                self.abandon(pending)
            raise
        finally:
            if direct:
                self._let_go(pending)
        if direct and pending.lock is not None:
            try:
                pending.lock.acquire()
            except BaseException:
                self.abandon(pending)
                raise
        return call.decode(*pending.result())

    def submit(
        self, call: Call[Value, *Arguments], timeout_ns: int, *arguments: *Arguments
    ) -> CallFuture[Value]:
        """Begin a call, and return a future of its value."""
        pending = self._pending_call(call, timeout_ns, *arguments)
        pending.future = future = CallFuture(pending, call.decode, self.abandon)
        self._hand_in(lambda: self._begin(pending, True), True)
        return future

    def open_stream(
        self, call: Call[Any, *Arguments], timeout_ns: int, renewed: bool, *arguments: *Arguments
    ) -> CallStream:
        """Begin a call of several messages. renewed: each sign of progress restarts the timeout."""
        pending = self._pending_call(call, timeout_ns, *arguments)
        pending.renewed = renewed
        pending.inbox = queue.SimpleQueue()
        self._hand_in(lambda: self._begin(pending, True), True)
        return CallStream(self, pending)

    def _pending_call(
        self, call: Call[Any, *Arguments], timeout_ns: int, *arguments: *Arguments
    ) -> PendingCall:
        request_id = next(self._ids)
        header, frames = call.encode(request_id, *arguments)
        again = bounds.CLIENT_ASKS_AGAIN_MAX if self._asks_again and call.repeats else 0
        return PendingCall(request_id, header, frames, timeout_ns, again)

    def post(self, call: PendingCall, header: bytes, frames: Sequence[Frame]) -> None:
        """Send a further message of a stream, unless the stream has ended."""
        self._hand_in(lambda: self._post(call, header, frames), False)

    def abandon(self, call: PendingCall) -> None:
        """Cancel a call whose caller no longer waits, at the controller too, unless the call has ended."""
        with contextlib.suppress(ClockworkError):
            self._hand_in(lambda: self._abandon(call), False)

    def close(self) -> None:
        """End every call with ConnectionLost and disconnect. Idempotent."""
        if self._generation != _generation:
            return  # after a fork, the socket belongs to the parent process
        with self._lock:
            first = not self._closing
            self._closing = True
            mine = first and self._owner is Owner.NOBODY
            if mine:
                self._owner = Owner.CALLER
        if mine:
            self._finish()
            return
        if not self._closed.is_set():
            self._wake(force=True)
            if threading.current_thread() is not self._thread:
                self._closed.wait(CLOSE_S)

    def turn_if_idle(self) -> None:
        """Take in received messages while no thread owns the socket.

        Called on the thread of clockwork.client.idle.
        """
        with self._lock:
            if self._closing or self._owner is not Owner.NOBODY or self._generation != _generation:
                return
            self._owner = Owner.CALLER
        try:
            self._pump()
        finally:
            self._give_back()

    # ----- ownership -------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._generation != _generation:
            raise ClockworkError("this client was made before a fork; make a new one in the child process")
        if self._closing:
            raise ConnectionLost("the client is closed")

    def _check_room(self) -> None:
        if len(self._calls) + len(self._queue) >= bounds.CLIENT_CALLS_MAX:
            raise Refused(
                f"this client waits for {bounds.CLIENT_CALLS_MAX} answers already", Reason.OVERLOADED.value
            )

    def _hand_in(self, work: Callable[[], None], bounded: bool) -> None:
        """Queue ``work`` for the owner; start an I/O thread as the owner if there is none.

        bounded: raise Refused past CLIENT_CALLS_MAX.
        """
        with self._lock:
            self._check_usable()
            if bounded:
                self._check_room()
            self._queue.append(work)
            if self._owner is Owner.NOBODY:
                try:
                    self._start_thread()
                except RuntimeError as error:
                    self._queue.pop()
                    raise _no_thread(error) from None
                return
        self._wake()

    def _wake(self, force: bool = False) -> None:
        """Wake the owner for its queue, if the owner sleeps."""
        if self._sleeping or force:
            with self._wake_lock:  # a closed descriptor's number may belong to another file
                if self._wakeup.fileno() < 0:
                    return
                self._wakeup.set()
                # Set after the write, and cleared before the descriptor is drained, so that no wake-up stays
                # unread.
                self._woken = True

    def _start_thread(self) -> None:
        """Start an I/O thread as the owner. Called with _lock held, by the owner or where there is none."""
        before = self._owner
        self._lone = 0
        # Set before start(), because the thread may run a callback before start() returns.
        self._owner = Owner.THREAD
        self._thread = threading.Thread(target=self._run_thread, name="clockwork-client", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._owner, self._thread = before, None
            raise

    def _drive(self, call: PendingCall) -> None:
        """Do I/O on the calling thread, until the call is done or other calls need the socket."""
        self._begin(call, False)
        while not call.done:
            self._sleeping = True
            if self._queue or self._closing:
                return
            self._sleep(min(call.deadline_ns, call.connect_ns if not call.sent else NEVER_NS))
            # The message is most likely the answer, which makes the rest of _pump() unnecessary.
            if self._dealer is not None and (frames := self._dealer.receive()) is not None:
                self._take(frames)
                if call.done:
                    return
            self._pump()
            if not call.done:
                self._expire_call(call, now_ns())

    def _let_go(self, call: PendingCall) -> None:
        """Release the socket, to an I/O thread where work is left; then wait for call.lock."""
        self._sleeping = False
        self._give_back(call)

    def _give_back(self, call: PendingCall | None = None) -> None:
        """Release the socket, to an I/O thread where work is left. Called by the owner.

        Where no thread can be started, every call ends with Unavailable, because no thread would receive its
        answer.
        """
        while True:
            with self._lock:
                if self._closing:
                    break
                is_done = call is None or call.done
                if is_done and not self._queue:
                    self._owner = Owner.NOBODY
                    return
                if call is not None and not is_done:
                    call.lock = _held_lock()
                    self._push_deadline(call)
                try:
                    self._start_thread()
                    return
                except RuntimeError as error:
                    failure = _no_thread(error)
            self._end_all(failure, True)
        self._finish()

    def _run_thread(self) -> None:
        """Run the I/O thread: own the socket until there was no work for CLIENT_THREAD_IDLE_NS."""
        error = ClockworkError("the client's I/O thread failed")
        try:
            idle_since = now_ns()
            while not self._closing:
                while self._queue:
                    self._queue.popleft()()
                self._pump()
                now = now_ns()
                self._expire(now)
                if self._calls or self._queue:
                    idle_since = now
                elif (
                    now - idle_since >= bounds.CLIENT_THREAD_IDLE_NS or self._lone >= bounds.CLIENT_LONE_CALLS
                ):
                    with self._lock:
                        if not self._queue and not self._closing:
                            self._owner = Owner.NOBODY
                            self._thread = None
                            return
                self._sleeping = True
                if not self._queue and not self._closing:
                    self._sleep(min(self._next_deadline_ns(), idle_since + bounds.CLIENT_THREAD_IDLE_NS))
                self._sleeping = False
            error = ConnectionLost("the client was closed")
        finally:
            self._sleeping = False
            with self._lock:
                leaving = self._owner is Owner.THREAD and self._thread is threading.current_thread()
                self._closing = self._closing or leaving
            if leaving:
                self._finish(error)

    def _finish(self, error: ClockworkError | None = None) -> None:
        """End every call, say goodbye to the controller and close the socket. Called by the last owner."""
        try:
            self._end_all(error or ConnectionLost("the client was closed"))
            if self._dealer is not None and self._state is _State.READY:
                self._dealer.send(codec.encode(Bye()))
        finally:
            self._release()
            self._closed.set()

    def _end_all(self, error: ClockworkError, is_told: bool = False) -> None:
        """End every call, queued calls included. is_told: cancel the calls at the controller, too."""
        while self._queue:
            self._queue.popleft()()
        for call in list(self._calls.values()):
            self._end(call, None, type(error)(str(error)))
            if is_told:
                self._send_cancel(call)
        self._waiting.clear()

    def _release(self) -> None:
        idle.dismiss(self)
        if self._transport is not None:
            self._transport.close()
        self._transport = self._dealer = None
        with self._wake_lock:
            self._wakeup.close()

    # ----- the owner's work ------------------------------------------------------------------

    def _dial(self) -> None:
        self._transport = Transport()
        self._dealer = self._transport.dealer(self.endpoint, self._keys, self._turns.are_several)
        self._poller = Poller([self._dealer], [self._wakeup.fileno()])
        self._state = _State.DOWN
        self._unapplied = []
        self._broken = 0
        self._turns.dialled(now_ns())

    def _hang_up(self) -> None:
        """Close the socket; the next call dials again."""
        assert self._transport is not None
        self._turns.settle()  # nobody waits for a connection
        self._state = _State.DOWN
        self._poller = Poller([], [self._wakeup.fileno()])
        self._transport.close()
        self._transport = self._dealer = None

    def _switch(self, now: int) -> None:
        """Dial the next endpoint, or the only one anew, unless a connection has just begun."""
        if self._dealer is not None:
            self._unapplied += self._dealer.changes()
            is_up = self._state is not _State.DOWN or self._dealer.is_up
            if not self._turns.advance(now, is_up or self._dealer.is_begun, is_up):
                return
            self._dealer.give_up()  # the calls are asked elsewhere, without waiting for these messages
            self._hang_up()
        self._dial()

    def _sleep(self, until_ns: int) -> None:
        until_ns = min(until_ns, self._turns.due_ns)
        self._poller.wait(max(0, min(until_ns - now_ns(), config.INFLOW_LOOK_NS)))
        if self._wake_lock.locked():
            # A thread has written and has not set the flag yet. Until it runs again, the descriptor is
            # readable: the owner would turn without a pause, and keep that thread from the interpreter.
            with self._wake_lock:
                pass
        if self._woken:
            self._woken = False
            self._wakeup.clear()

    def _begin(self, call: PendingCall, timed: bool) -> None:
        """Send a call, or let it wait for a connection. timed: put its deadline into the heap."""
        if call.future is not None and call.future.cancelled():
            call.finish(None, None)
            return
        if self._dealer is None:
            self._dial()
        self._lone = self._lone + 1 if call.lock is not None and not self._calls else 0
        self._calls[call.request_id] = call
        if timed:
            self._push_deadline(call)
        # After a reconnection, the hello comes before any call.
        assert self._dealer is not None
        changes = self._dealer.changes()
        if changes or self._unapplied or self._state is not _State.READY:
            self._pump(changes)
            if self._state is _State.DOWN and self._dealer is not None and self._dealer.is_up:
                self._greet()  # the controller said goodbye, and the connection stands
            if call.done:
                return
        if self._state is _State.READY and not self._waiting:
            self._send(call)
        if not call.sent:
            self._waiting.append(call)

    def _send(self, call: PendingCall) -> None:
        assert self._dealer is not None
        call.sent = True  # set first, so that KeyboardInterrupt at any point finds a request to cancel
        call.sent = self._dealer.send(call.header, call.frames)

    def _post(self, call: PendingCall, header: bytes, frames: Sequence[Frame]) -> None:
        if call.done or self._dealer is None:
            return
        if not self._dealer.send(header, frames):
            self._end(call, None, ConnectionLost(f"the connection to {self.endpoint} was lost"))

    def _abandon(self, call: PendingCall) -> None:
        if call.request_id in self._calls:
            self._end(call, None, Cancelled("the request was cancelled"))
            self._send_cancel(call)
        else:
            call.finish(None, Cancelled("the request was cancelled"))

    def _send_cancel(self, call: PendingCall) -> None:
        if call.sent and self._dealer is not None and self._state is _State.READY:
            self._dealer.send(codec.encode(Cancel(call.request_id)))

    def _end(self, call: PendingCall, received: Received | None, error: ClockworkError | None) -> None:
        self._calls.pop(call.request_id, None)
        call.finish(received, error)

    def _pump(self, changes: list[ConnectionEvent] | None = None) -> None:
        """Take in received messages. changes: the result of Dealer.changes(), if it was called already.

        A call takes at most CLIENT_MESSAGES_PER_TURN messages, so that a flood does not delay the check of
        deadlines. The dealer stays readable for the rest.
        """
        left = bounds.CLIENT_MESSAGES_PER_TURN
        if self._turns.due_ns != NEVER_NS and (now := now_ns()) >= self._turns.due_ns:
            self._unapplied += changes or []
            self._switch(now)
            changes = None
        if self._dealer is not None:
            self._dealer.look(self.kept_bytes())
        while (dealer := self._dealer) is not None:
            # Changes are read first and applied last, so that messages that came before a loss still count.
            changes = self._unapplied + (dealer.changes() if changes is None else changes)
            self._unapplied = []
            while self._dealer is dealer and left > 0 and (frames := dealer.receive()) is not None:
                left -= 1
                self._take(frames)
            if left <= 0 and self._dealer is dealer and dealer.readable():
                self._unapplied = changes
                break
            for change in changes:
                if self._dealer is dealer:
                    self._apply(change)
            if not changes:
                break
            changes = None
        if self._waiting and self._state is _State.READY:
            self._flush()

    def _flush(self) -> None:
        while self._waiting:
            call = self._waiting[0]
            if not call.done:
                call.asked_ns = now_ns()
                self._send(call)
                if not call.sent:
                    return
            self._waiting.popleft()

    def _apply(self, change: ConnectionEvent) -> None:
        if change is ConnectionEvent.UP:
            self._broken = 0
            self._greet()
        elif change is ConnectionEvent.FAILED and self._broken + 1 < config.HANDSHAKES_BROKEN_MAX:
            self._broken += (
                1  # the controller disconnected during the handshake, or has another key; libzmq reconnects
            )
        elif change is ConnectionEvent.DOWN:
            self._state = _State.DOWN
            self._lose_sent(f"the connection to {self.endpoint} was lost")
            self._turns.lost(now_ns())
        else:
            text = f"the controller at {self.endpoint} does not accept this client's keys"
            if self._keys is None:
                text += " (it was given none; see --key and CLOCKWORK_KEY)"
            elif self._keys.role is Role.WORKER:
                text += " (they are a worker's; see docs/security.md)"
            self._lose_all(ConnectionLost, text)
            self._hang_up()

    def _greet(self) -> None:
        assert self._dealer is not None
        self._state = _State.GREETING
        hello = ClientHello(PROTOCOL_VERSION, config.VERSION, self._name, self._obedience.lease)
        self._dealer.send(codec.encode(hello))

    def _lose_sent(self, text: str) -> None:
        """End the calls that were sent, or have them wait for the next connection if they change nothing."""
        now = now_ns()
        for call in [call for call in self._calls.values() if call.sent]:
            if call.asks_left == 0:
                self._end(call, None, ConnectionLost(text))
                continue
            call.header, left_ns = asked_again(call.header, now - call.asked_ns)
            call.sent = False
            call.asks_left -= 1
            call.missed_ns = min(now + left_ns, NEVER_NS)
            call.connect_ns = min(now + bounds.CLIENT_CONNECT_NS, call.missed_ns)
            self._waiting.append(call)
            self._push_deadline(call)

    def _lose_all(self, kind: type[ClockworkError], text: str) -> None:
        self._waiting.clear()
        for call in list(self._calls.values()):
            self._end(call, None, kind(text))

    def _take(self, frames: list[Frame]) -> None:
        """Handle a message. A damaged message fails every call, and the owner continues."""
        try:
            message = codec.decode(frames[0], TO_CLIENT)
            self._obey(message, frames)
        except codec.WireError as error:
            if self._state is _State.READY and isinstance(error, codec.UnknownKind):
                return  # a later release tells more than this one knows
            self._lose_all(ProtocolMismatch, f"{self.endpoint} does not speak Clockwork's protocol: {error}")
            self._hang_up()
        # A defect of the client: every call fails with it, and the owner continues
        except Exception as error:
            text = f"this client failed at a message of {self.endpoint}: {type(error).__name__}: {tell(str(error))}"
            self._lose_all(ClockworkError, text)
            self._hang_up()

    def _obey(self, message: Any, frames: list[Frame]) -> None:
        kind = type(message)
        if kind is Answer or kind is Reply:
            call = self._calls.get(message.request_id)
            if call is not None:
                self._end(call, (message, frames[1:]), None)
        elif kind is Failure:
            call = self._calls.get(message.request_id)
            if call is not None:
                self._end(call, None, error_of(message))
        elif kind is UploadNeed or kind is UploadAck or kind is Progress:
            call = self._calls.get(message.request_id)
            if call is not None and call.inbox is not None:
                if call.inbox.qsize() >= bounds.CLIENT_INBOX_MAX:
                    text = f"{bounds.CLIENT_INBOX_MAX} messages of {self.endpoint} wait for this call to read them"
                    self._end(call, None, ClockworkError(text))
                    return
                if call.renewed:
                    call.deadline_ns = now_ns() + call.timeout_ns
                call.inbox.put((message, []))  # these messages have no frames; received frames are dropped
        elif kind is ClientWelcome:
            if not PROTOCOL_OLDEST <= message.protocol <= PROTOCOL_VERSION:
                self._mismatch(f"the controller speaks protocol {message.protocol}")
            elif self._obedience.follow(*message.lease):
                self._state = _State.READY
                self._turns.settle()
            else:  # the controller was taken over, and does not know it
                self._turns.redial(now_ns() + bounds.CLIENT_REDIAL_NS)
        elif kind is Mismatch:
            self._mismatch(message.text)
        elif kind is HelloNeeded and self._state is _State.READY:
            # Ignored while a hello is under way: the message was sent before the last connection ended.
            self._lose_sent(f"the controller at {self.endpoint} was restarted")
            self._greet()
        elif kind is Goodbye:
            self._state = _State.DOWN
            self._lose_sent(f"the controller at {self.endpoint} shut down")
            if self._calls:
                self._turns.redial(now_ns() + bounds.CLIENT_REDIAL_NS)
            else:  # the controller may have needed the seat; the next call dials again
                self._hang_up()

    def _mismatch(self, text: str) -> None:
        self._lose_all(
            ProtocolMismatch,
            f"{text} (this client: {config.VERSION}, protocol {PROTOCOL_VERSION}; {self.endpoint})",
        )
        self._hang_up()

    # ----- time ------------------------------------------------------------------------------

    def _push_deadline(self, call: PendingCall) -> None:
        due_ns = call.deadline_ns if call.sent else min(call.deadline_ns, call.connect_ns)
        heapq.heappush(self._deadlines, (due_ns, call.request_id, call))
        if len(self._deadlines) > 64 + 2 * len(self._calls):
            # Most calls end long before their deadlines; their entries are dropped before they accumulate.
            self._deadlines = [entry for entry in self._deadlines if not entry[2].done]
            heapq.heapify(self._deadlines)

    def _next_deadline_ns(self) -> int:
        return self._deadlines[0][0] if self._deadlines else NEVER_NS

    def _expire(self, now: int) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            call = heapq.heappop(self._deadlines)[2]
            if not call.done:
                self._expire_call(call, now)
                if not call.done:
                    self._push_deadline(call)

    def _expire_call(self, call: PendingCall, now: int) -> None:
        if not call.sent and now >= call.missed_ns:
            text = f"the connection to {self.endpoint} was lost, and no controller could be asked in time"
            self._end(call, None, DeadlineMissed(text))
        elif not call.sent and now >= min(call.connect_ns, call.deadline_ns):
            self._end(
                call,
                None,
                ConnectionLost(f"no controller answers at {self._turns} (is a cluster running there?)"),
            )
        elif now >= call.deadline_ns:
            self._end(call, None, RequestTimeout(f"no answer within {to_seconds(call.timeout_ns):g} s"))
            self._send_cancel(call)
        while self._waiting and self._waiting[0].done:
            self._waiting.popleft()


def _no_thread(error: RuntimeError) -> Unavailable:
    """Return the error for a thread that cannot be started, for lack of resources or at Python's exit."""
    return Unavailable(f"the client needs a thread for this: {error}")


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
