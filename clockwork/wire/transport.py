"""Sockets: the only module that imports ZeroMQ.

Messages are a header frame and further frames. Frames of any size are forwarded as they arrived,
without a copy in Python. Only Poller blocks: it waits for sockets and other descriptors together, with
nanosecond timeouts.
"""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import zmq
import zmq.backend

from clockwork.config import (
    FRAMES_MAX,
    HELLO_NS,
    INFLOW_LOOK_NS,
    MESSAGE_BYTES_MAX,
    RECEIVED_BYTES_MAX,
    SUBSCRIBERS_MAX,
)
from clockwork.config.wire import (
    COPY_BYTES,
    ENDPOINT_DIAL_NS,
    ENDPOINT_GREETING_NS,
    ENDPOINT_ROUNDS_MAX,
    ENDPOINT_WELCOME_NS,
    ENDPOINTS_MAX,
    EVENTS_QUEUE_MAX,
    EVENTS_RECEIVED_BYTES_MAX,
    EVENTS_TOPIC_BYTES_MAX,
    HEARTBEAT_EAGER_MS,
    HEARTBEAT_MS,
    HEARTBEAT_TIMEOUT_EAGER_MS,
    HEARTBEAT_TIMEOUT_MS,
    KEEPALIVE_COUNT,
    KEEPALIVE_S,
    LINGER_MS,
    RECONNECT_EAGER_MS,
    RECONNECT_MAX_MS,
    RECONNECT_MS,
    SEND_QUEUE_MAX,
    SUBSCRIPTIONS_PER_LOOK,
)
from clockwork.errors import ConfigError
from clockwork.system.clock import now_ns
from clockwork.wire.inflow import Inflow
from clockwork.wire.keys import ControllerKeys, PeerKeys
from clockwork.wire.messages import NEVER_NS
from clockwork.wire.roles import ControllerSocket

try:
    import clockwork.system._wait as _wait
    import clockwork.wire._zmq as _zmq
except ModuleNotFoundError:  # clockwork-client alone has no compiled part
    import clockwork.system._plain_wait as _wait  # type: ignore[no-redef]
    import clockwork.wire._plain_zmq as _zmq  # type: ignore[no-redef]

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

Frame: TypeAlias = Any  # A zmq.Frame or bytes-like object; memoryview(frame) is its content


Gate: TypeAlias = Callable[[ControllerSocket, str], bool]
"""Whether a connection with this public key may use that port. Called on the thread that authenticates."""

# Called with plain integers: pyzmq's own send_multipart takes 5 us for three small parts, most of it for
# enums and checks, and this 0.6 us; receiving without a copy takes 0.5 us instead of 2.5.
_send_part: Any = zmq.backend.Socket.send
_receive_part: Any = zmq.backend.Socket.recv
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)

# pyzmq's parse_monitor_message() is not used: its module imports asyncio, which takes a quarter of the time
# that a command without it takes to start.
_CHANGE = struct.Struct("=Hi")
"""The first frame of a monitor's message: the event, and a value, such as a descriptor."""


def new_key_pair() -> tuple[str, str]:
    """A fresh CURVE pair (public, secret), Z85."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def is_local(endpoint: str) -> bool:
    """Whether only this machine can reach the endpoint."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return True
    match = re.fullmatch(r"tcp://(\[[^\]]*\]|[^:]*):.*", endpoint)
    if match is None:
        return False
    host = match[1].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys_beyond_loopback(
    endpoints: Iterable[str], keys: ControllerKeys | None, insecure: bool
) -> None:
    """Raises ConfigError for an endpoint that the network can reach without keys, unless ``insecure``."""
    for endpoint in endpoints:
        if keys is None and not insecure and not is_local(endpoint):
            raise ConfigError(
                f"{endpoint} is reachable from other machines: give a key file "
                "(clockwork keys new DIR, then --key DIR/controller.key) or say --insecure"
            )


def split_endpoints(text: str) -> tuple[str, ...]:
    """Return the endpoints of a list with commas. Raises ConfigError for too many."""
    endpoints = tuple(part.strip() for part in text.split(","))
    if len(endpoints) > ENDPOINTS_MAX:
        raise ConfigError(f"{len(endpoints)} endpoints; at most {ENDPOINTS_MAX} are tried in turn")
    return endpoints


class EndpointTurns:
    """Which of several endpoints is dialled, and until when: the next follows where nobody there lets the
    caller in, and at once where a connection is lost."""

    def __init__(self, endpoints: tuple[str, ...]) -> None:
        self._endpoints = endpoints
        self._place = 0
        self._is_begun = False  # there is, or was, a connection to this endpoint
        self._is_up = False  # its handshake is done
        self._tries = 0  # since a controller last let the caller in
        self._rounds = 0  # through all of them, as of the last dial
        self.due_ns = NEVER_NS  # the time at which advance() is to be called

    def __str__(self) -> str:
        return " or ".join(self._endpoints)

    @property
    def current(self) -> str:
        return self._endpoints[self._place]

    @property
    def are_several(self) -> bool:
        return len(self._endpoints) > 1

    def dialled(self, now: int) -> None:
        """Note that the endpoint is being dialled. Each round through all of them takes longer."""
        self._is_begun = self._is_up = False
        self._rounds = min(self._tries // len(self._endpoints), ENDPOINT_ROUNDS_MAX)
        self._tries += 1
        self.due_ns = now + (ENDPOINT_DIAL_NS << self._rounds) if self.are_several else NEVER_NS

    def settle(self) -> None:
        """Note that a controller has let the caller in, or that the caller wants none."""
        self._is_begun, self._is_up, self._tries, self.due_ns = True, True, 0, NEVER_NS

    def lost(self, now: int) -> None:
        """Note that the connection was lost."""
        if self.are_several:
            self.redial(now)

    def redial(self, at_ns: int) -> None:
        """Have an endpoint dialled at this time, though there is but one."""
        self._is_begun, self._is_up, self.due_ns = True, True, at_ns

    def advance(self, now: int, is_begun: bool, is_up: bool) -> bool:
        """Turn to the next endpoint, which is then to be dialled. False: wait on, as there is a connection.
        is_begun: there is one to this endpoint. is_up: its handshake is done."""
        if is_up and not self._is_up and self.are_several:
            self._is_begun = self._is_up = True
            self.due_ns = now + ENDPOINT_WELCOME_NS
            return False
        if is_begun and not self._is_begun and self.are_several:
            self._is_begun = True
            self.due_ns = now + (ENDPOINT_GREETING_NS << self._rounds)
            return False
        self._place = (self._place + 1) % len(self._endpoints)
        return True


class ConnectionEvent(enum.Enum):
    """A change of a dialled connection's state, as Dealer.changes() reports it."""

    UP = "up"
    DOWN = "down"
    REFUSED = "refused"  # the keys were not accepted; final, libzmq does not try again
    # the connection ended during the handshake, and libzmq tries again: the controller went away,
    FAILED = "failed"
    # or its public key is not the one in our key file


_BEGUN = zmq.EVENT_CONNECTED  # its value is the descriptor
_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DOWN = zmq.EVENT_DISCONNECTED
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_CHANGES: dict[int, ConnectionEvent] = {
    _UP: ConnectionEvent.UP,
    _DOWN: ConnectionEvent.DOWN,
    _FAILED: ConnectionEvent.FAILED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: ConnectionEvent.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: ConnectionEvent.REFUSED,
}


class Transport:
    """A ZeroMQ context and the sockets opened in it; close() leaves nothing behind."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 1023)
        self._sockets: list[Dealer | Router | Publisher] = []
        self._authenticator: ThreadAuthenticator | None = None

    def dealer(self, endpoint: str, keys: PeerKeys | None = None, is_eager: bool = False) -> Dealer:
        """Dial an endpoint. The connection is made, and renewed, in the background; see Dealer.changes().

        is_eager: try again soon, and miss a silent peer soon, as the endpoint is one of several."""
        dealer = Dealer(self._context, endpoint, keys, is_eager)
        self._sockets.append(dealer)
        return dealer

    def hang_up(self, dealer: Dealer) -> None:
        """Close a dealer before the others."""
        dealer.close()
        self._sockets.remove(dealer)

    def router(
        self,
        endpoint: str,
        keys: ControllerKeys | None = None,
        port: ControllerSocket = ControllerSocket.CLIENTS,
        gate: Gate | None = None,
    ) -> Router:
        """Bind an endpoint. With keys, `gate` says which keys may connect; without a gate, the keys' own list
        does.

        Raises ConfigError if the endpoint is in use or cannot be bound.
        """
        self._guard(keys, port, gate)
        router = Router(self._context, endpoint, keys, port)
        self._sockets.append(router)
        return router

    def publisher(
        self,
        endpoint: str,
        keys: ControllerKeys | None = None,
        port: ControllerSocket = ControllerSocket.EVENTS,
        gate: Gate | None = None,
        subscribers_max: int = SUBSCRIBERS_MAX,
    ) -> Publisher:
        """Bind a socket for events. Like router()."""
        self._guard(keys, port, gate)
        publisher = Publisher(self._context, endpoint, keys, port, subscribers_max)
        self._sockets.append(publisher)
        return publisher

    def _guard(self, keys: ControllerKeys | None, port: ControllerSocket, gate: Gate | None) -> None:
        """Start the authenticator before a socket listens, else libzmq refuses early connections for ever."""
        if keys is None:
            return
        if self._authenticator is None:
            from zmq.auth.thread import ThreadAuthenticator  # this import also imports asyncio

            self._authenticator = ThreadAuthenticator(self._context)
            self._authenticator.start()
        listed = frozenset(keys.allowed)
        asked = _Asked(port, gate or (lambda _, public: public in listed))
        self._authenticator.configure_curve_callback(port.value, credentials_provider=asked)

    def close(self) -> None:
        """Close every socket (queued messages still go out for LINGER_MS) and the context."""
        for socket in self._sockets:
            socket.close()
        self._sockets.clear()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()


class _Asked:
    """The authenticator's callback (ZAP) for a port, answered by its gate."""

    def __init__(self, port: ControllerSocket, gate: Gate) -> None:
        self._port = port
        self._gate = gate

    def callback(self, domain: str, key: bytes) -> bool:
        return self._gate(self._port, key.decode())


def _new_socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.set(zmq.LINGER, LINGER_MS)
    socket.set(zmq.SNDHWM, SEND_QUEUE_MAX)
    socket.set(zmq.RCVHWM, SEND_QUEUE_MAX)
    socket.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.copy_threshold = COPY_BYTES
    return socket


def _find_dead_hosts_by_tcp(socket: zmq.Socket[bytes]) -> None:
    """Have TCP keepalive, besides the peers' heartbeats, find dead hosts of a bound socket.

    libzmq 4.3.5 with heartbeats of its own aborts the process ("Assertion failed: !_io_error") when the timer
    comes due for a connection that broke while more messages than RCVHWM waited: any peer could cause that.
    """
    socket.set(zmq.HEARTBEAT_IVL, 0)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    socket.set(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT)
    socket.set(zmq.TCP_MAXRT, KEEPALIVE_S * (KEEPALIVE_COUNT + 1) * 1000)


def _bind(
    socket: zmq.Socket[bytes], endpoint: str, keys: ControllerKeys | None, port: ControllerSocket
) -> str:
    if keys is not None:
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
        socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
        socket.set(zmq.ZAP_DOMAIN, port.value.encode())
    socket.set(zmq.IPV6, 1 if "[" in endpoint else 0)
    socket.set(zmq.HANDSHAKE_IVL, HELLO_NS // 1_000_000)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        hint = " (is another cluster running?)" if error.errno == zmq.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {endpoint}: {zmq.strerror(error.errno or 0)}{hint}") from None
    return socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _read_monitor(monitor: zmq.Socket[bytes], probe: _zmq.Probe) -> Iterator[tuple[int, int]]:
    """(event, value) of each monitor message that is waiting."""
    while probe.readable():
        what, _ = monitor.recv_multipart(zmq.NOBLOCK)
        yield _CHANGE.unpack(what)


def _send(socket: zmq.Socket[bytes], header: bytes, frames: Sequence[Frame]) -> None:
    """Queue a header and its frames, large frames without a copy. Raises zmq.ZMQError, with nothing sent."""
    last = len(frames)
    _send_part(socket, header, _MORE if last else _NOBLOCK)
    for frame in frames:
        last -= 1
        copied = type(frame) is not zmq.Frame and memoryview(frame).nbytes < COPY_BYTES
        _send_part(socket, frame, _MORE if last else _NOBLOCK, copied)


def _rest(socket: zmq.Socket[bytes], probe: _zmq.Probe, frames: list[Frame]) -> bool:
    """Receive the remaining frames of a message. False if there were too many: they are dropped."""
    while probe.more():
        frame = _receive_part(socket, _NOBLOCK, False)
        if len(frames) <= FRAMES_MAX:
            frames.append(frame)
    return len(frames) <= FRAMES_MAX


class Dealer:
    """A dialled connection. Not thread-safe: threads that share it need a lock."""

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        keys: PeerKeys | None,
        is_eager: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.is_lent = False
        """Whether a thread of native code uses the socket, which close() then refuses to close."""
        self._socket = socket = _new_socket(context, zmq.DEALER)
        # Not ZMQ_IMMEDIATE, which would keep messages from queueing for a controller that is not there: it
        # drops the pipe at a loss even between two parts of a message that is being received, and libzmq
        # then aborts the process ("Assertion failed: !_more"). send() asks _up instead.
        self._up = False
        # No bound in messages, at which libzmq stops reading: its heartbeats, which find a controller that
        # hangs, do not survive the end of a connection that is not read (see _find_dead_hosts_by_tcp). look()
        # bounds bytes.
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.RECONNECT_IVL, RECONNECT_EAGER_MS if is_eager else RECONNECT_MS)
        if is_eager:
            socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_EAGER_MS)
            socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_EAGER_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.set(zmq.IPV6, 1 if "[" in endpoint else 0)
        if keys is not None:
            socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
            socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
            socket.set(zmq.CURVE_SERVERKEY, keys.controller.encode())
        self._inflow: Inflow | None = None  # counts from before the handshake on
        self._look_ns = 0
        self._monitor = socket.get_monitor_socket(_BEGUN | _UP | _DOWN | _REFUSED | _FAILED)
        self._probe, self._monitor_probe = _zmq.Probe(socket), _zmq.Probe(self._monitor)
        self.filenos = (int(socket.get(zmq.FD)), int(self._monitor.get(zmq.FD)))
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"{endpoint!r} is no endpoint: {zmq.strerror(error.errno or 0)}; one is tcp://HOST:PORT"
            ) from None

    def send(self, header: bytes, frames: Sequence[Frame] = ()) -> bool:
        """Queue one message. False if there is no connection, or its queue is full.

        Messages queued before changes() reports a loss may reach the next connection, ahead of any
        hello there.
        """
        if not self._up:
            return False
        try:
            _send(self._socket, header, frames)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[Frame] | None:
        """The next message, header (bytes) first, or None. Of too many frames only the header is left."""
        socket = self._socket
        if not self._probe.readable():
            if self._inflow is not None:
                self._inflow.drain()
            return None
        try:
            frames: list[Frame] = [_receive_part(socket, _NOBLOCK)]
        except zmq.Again:
            return None  # the message has gone with its connection since readable()
        if not _rest(socket, self._probe, frames):
            del frames[1:]
        if self._inflow is not None:
            self._inflow.take(sum(map(len, frames)), len(frames))
        return frames

    def look(self, kept_bytes: int = 0) -> bool:
        """End the connection if more bytes wait than may. Returns whether it ended the connection.

        kept_bytes: the bytes that this process holds for its callers (see Inflow.look()). To be called about
        every INFLOW_LOOK_NS, also while receive() has nothing, where a message without end never shows.
        """
        now = now_ns()
        if self._inflow is None or now < self._look_ns:
            return False
        self._look_ns = now + INFLOW_LOOK_NS // 2
        return self._inflow.look(now, RECEIVED_BYTES_MAX, kept_bytes)

    @property
    def is_up(self) -> bool:
        """Whether there is a connection, as of the last changes()."""
        return self._up

    @property
    def is_begun(self) -> bool:
        """Whether a connection was begun, as of the last changes()."""
        return self._inflow is not None

    def changes(self) -> list[ConnectionEvent]:
        """The changes of the connection since the last call, in order."""
        noted = (
            self.note(event, value) for event, value in _read_monitor(self._monitor, self._monitor_probe)
        )
        return [change for change in noted if change is not None]

    def note(self, event: int, value: int) -> ConnectionEvent | None:
        """Take in a monitor's event that changes() or native code has read. Returns the change, if any."""
        if event == _BEGUN:
            self._inflow = Inflow(value, now_ns())
            return None
        change = _CHANGES[event]
        self._up = change is ConnectionEvent.UP
        return change

    def note_received(self, count: int, frames: int, is_drained: bool) -> None:
        """Count what native code has received; is_drained: at some time no whole message was left."""
        if self._inflow is not None:
            if frames:
                self._inflow.take(count, frames)
            if is_drained:
                self._inflow.drain()

    def addresses(self) -> tuple[int, int]:
        """The addresses of the socket and its monitor, for native code that calls libzmq itself, in place of
        this object's send(), receive() and changes(). They are valid until close()."""
        return int(self._socket.underlying), int(self._monitor.underlying)

    def readable(self) -> bool:
        """Whether receive() or changes() has something. Call before waiting on filenos: they are edges."""
        return self._probe.readable() or self._monitor_probe.readable()

    def give_up(self) -> None:
        """Have close() drop the messages that wait, because nobody is left to read them."""
        self._socket.set(zmq.LINGER, 0)

    def close(self) -> None:
        """Close the socket. Waiting messages still go out for LINGER_MS.

        If messages come meanwhile, and the peer then ends the connection, libzmq's heartbeats abort the
        process (see _find_dead_hosts_by_tcp); with nothing left to send, closing takes no time.
        """
        if self.is_lent:
            raise RuntimeError("a thread of native code still uses the socket")
        if not self._socket.closed:
            self._probe.forget()
            self._monitor_probe.forget()
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close()


def socket_functions() -> _zmq.Functions:
    """libzmq's functions (csrc/zmq_api.h), for native code.

    Raises ConfigError where pyzmq was built with a libzmq that does not export its functions.
    """
    try:
        return _zmq.Functions()
    except OSError as error:
        raise ConfigError(f"{error}: install a wheel of pyzmq, or build it against a shared libzmq") from None


class Router:
    """A bound socket with many peers, which native code reads. libzmq assigns each peer's identity.

    Native code has to read the monitor as well, without delay and for each connection that comes or goes:
    libzmq's I/O thread blocks where some thousand events are unread.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        keys: ControllerKeys | None,
        port: ControllerSocket,
    ) -> None:
        self._socket = socket = _new_socket(context, zmq.ROUTER)
        socket.set(zmq.ROUTER_MANDATORY, 1)  # a peer that is gone is an error, not a lost message
        _find_dead_hosts_by_tcp(socket)
        # Opened before the first connection can come.
        self._monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | _DOWN)
        self.filenos = tuple(int(part.get(zmq.FD)) for part in (socket, self._monitor))
        try:
            self.endpoint = _bind(socket, endpoint, keys, port)
        except ConfigError:
            self._monitor.close(0)
            raise

    def addresses(self) -> tuple[int, int]:
        """The addresses of the socket and of its monitor, for native code that calls libzmq itself.

        The descriptors are valid until close(), on the thread that uses this object.
        """
        return int(self._socket.underlying), int(self._monitor.underlying)

    def close(self) -> None:
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close()


_SUBSCRIBES = b"\x01"  # The first byte of a subscription


class _Subscriber:
    """A connection to a publisher."""

    __slots__ = ("address", "fd", "inflow", "since_ns")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.since_ns = now_ns()
        self.inflow = Inflow(fd, self.since_ns)
        self.address = self.inflow.address()


class _Subscribers:
    """Connections by descriptor, the oldest first, and their number by address."""

    def __init__(self) -> None:
        self.by_fd: dict[int, _Subscriber] = {}
        self.counts: Counter[str] = Counter()

    def add(self, subscriber: _Subscriber) -> None:
        self.by_fd[subscriber.fd] = subscriber
        self.counts[subscriber.address] += 1

    def pop(self, fd: int) -> _Subscriber | None:
        subscriber = self.by_fd.pop(fd, None)
        if subscriber is not None:
            self.counts[subscriber.address] -= 1
            if not self.counts[subscriber.address]:
                del self.counts[subscriber.address]
        return subscriber

    def oldest_of_largest(self) -> _Subscriber:
        """The oldest subscriber of the address with the most connections."""
        [(address, _)] = self.counts.most_common(1)
        return next(subscriber for subscriber in self.by_fd.values() if subscriber.address == address)


class Publisher:
    """A socket for events. A subscriber that does not keep up loses some.

    The socket is an XPUB socket, because a PUB socket does not report its subscribers.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        keys: ControllerKeys | None,
        port: ControllerSocket,
        subscribers_max: int,
    ) -> None:
        self._socket = socket = _new_socket(context, zmq.XPUB)
        socket.set(zmq.XPUB_VERBOSE, 1)  # repeated subscriptions, too: each may be another connection's
        _find_dead_hosts_by_tcp(socket)
        socket.set(zmq.SNDHWM, EVENTS_QUEUE_MAX)
        socket.set(zmq.MAXMSGSIZE, EVENTS_TOPIC_BYTES_MAX)
        self._waiting_max = max(1, subscribers_max // 4)
        self._subscribed_max = subscribers_max - self._waiting_max
        self._monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | _DOWN)
        self._probe, self._monitor_probe = _zmq.Probe(socket), _zmq.Probe(self._monitor)
        self.fileno = int(self._monitor.get(zmq.FD))  # readable when follow() has something to do
        self._waiting = _Subscribers()  # connections that have not subscribed yet
        self._subscribed = _Subscribers()
        try:
            self.endpoint = _bind(socket, endpoint, keys, port)
        except ConfigError:
            self._monitor.close(0)
            raise

    def send(self, topic: bytes, body: bytes) -> None:
        self.follow()
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart([topic, body], zmq.NOBLOCK)

    def disconnect_all(self) -> None:
        """End every connection, because libzmq does not tell the key of each. Subscribers whose key is still
        allowed reconnect by themselves, and miss the events sent meanwhile."""
        self.follow()
        for subscriber in self._all():
            subscriber.inflow.end()

    def look(self) -> int:
        """End the connections with too many bytes, or no subscription in time. Returns their number."""
        self.follow()
        now, count = now_ns(), 0
        for subscriber in list(self._waiting.by_fd.values()):
            if now - subscriber.since_ns >= HELLO_NS:
                self._end(self._waiting, subscriber)
                count += 1
        return count + sum(
            subscriber.inflow.look(now, EVENTS_RECEIVED_BYTES_MAX) for subscriber in self._all()
        )

    def follow(self) -> None:
        """Take in the subscribers that have come, gone and subscribed."""
        subscribed = (
            self._take_subscriptions()
        )  # subscriptions are read first, so that the monitor then tells of their connections
        for event, fd in _read_monitor(self._monitor, self._monitor_probe):
            self._waiting.pop(fd)
            self._subscribed.pop(fd)
            if event != _DOWN:
                self._waiting.add(_Subscriber(fd))
        for fd in subscribed:
            subscriber = self._waiting.pop(fd)
            if subscriber is not None:
                self._subscribed.add(subscriber)
                if len(self._subscribed.by_fd) > self._subscribed_max:
                    self._end(self._subscribed, self._superfluous(subscriber))
        while len(self._waiting.by_fd) > self._waiting_max:
            self._end(self._waiting, self._waiting.oldest_of_largest())

    def _all(self) -> list[_Subscriber]:
        return [*self._waiting.by_fd.values(), *self._subscribed.by_fd.values()]

    def _take_subscriptions(self) -> list[int]:
        """Descriptors on which subscriptions came."""
        found: list[int] = []
        for _ in range(SUBSCRIPTIONS_PER_LOOK):
            if not self._probe.readable():
                break
            frame = _receive_part(self._socket, _NOBLOCK, False)
            while self._probe.more():
                _receive_part(self._socket, _NOBLOCK, False)
            if frame.bytes[:1] == _SUBSCRIBES:
                with contextlib.suppress(
                    zmq.ZMQError
                ):  # a peer that speaks the first ZMTP: it has no descriptor
                    found.append(int(frame.get(zmq.SRCFD)))
        return found

    def _superfluous(self, newcomer: _Subscriber) -> _Subscriber:
        """The subscriber that ends for a newcomer: of an address with more of them, or else the newcomer."""
        oldest = self._subscribed.oldest_of_largest()
        counts = self._subscribed.counts
        return oldest if counts[oldest.address] > counts[newcomer.address] else newcomer

    def _end(self, of: _Subscribers, subscriber: _Subscriber) -> None:
        subscriber.inflow.end()
        of.pop(subscriber.fd)

    def close(self) -> None:
        if not self._socket.closed:
            self._probe.forget()
            self._monitor_probe.forget()
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close()


class Poller:
    """Waits on sockets and plain descriptors at once."""

    def __init__(self, sockets: Sequence[Dealer], filenos: Sequence[int] = ()) -> None:
        self._sockets = tuple(sockets)
        self._wait = _wait.DescriptorPoller(
            [fd for socket in sockets for fd in socket.filenos] + list(filenos)
        ).wait

    def wait(self, timeout_ns: int) -> bool:
        """Return when something may be readable, when the time is up (negative: never), or on a signal.

        Returns whether something may be readable; False for a time of 0 without a readable socket.
        """
        for socket in self._sockets:
            if socket.readable():
                return True
        return timeout_ns != 0 and self._wait(timeout_ns)
