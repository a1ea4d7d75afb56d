"""The connections to gRPC's port, each of which has a seat.

gRPC accepts and reads on threads of its own, and reveals of a connection only the peer of a call on it.
Therefore each sweep finds the connections among this process's descriptors. A connection whose seat was
vacated is shut down by its descriptor, and gRPC then finds that it has ended. Between two sweeps gRPC may
accept more connections than there are seats, up to a bound of its own.

gRPC receives a message without a limit of time, receives any number of them at once, and does not tell how
much has come. Therefore the bytes of incomplete messages are counted as in wire/inflow.py: the kernel's count
of bytes received on a connection, less the bytes of complete messages.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from typing import NamedTuple

from clockwork.config import INFLOW_SMALL_BYTES
from clockwork.config.gateway import GRPC_RECEIVING_BYTES_MAX, GRPC_SWEEP_S, THOROUGH_LOOKS
from clockwork.config.wire import HEARTBEAT_BYTES_PER_S
from clockwork.gateway.listener import NO_ROOM
from clockwork.system.clock import now_ns
from clockwork.web.seats import Seat, ServerSeats
from clockwork.wire import inflow


class _Receiving:
    """Bytes that came on a connection, and those of them that belong to complete messages."""

    __slots__ = ("calls", "has_had_calls", "held", "taken", "waiting")

    def __init__(self) -> None:
        self.calls = 0  # calls that wait for a message
        self.has_had_calls = False  # since take_all() was last called
        self.taken = 0
        self.waiting = 0  # bytes of incomplete messages at the last look
        self.held = 0  # ``waiting``, summed over the looks since it was last small

    def look(self, received: int) -> None:
        # ``taken`` may be an overestimate; the excess must not cover bytes that come later.
        self.taken = min(self.taken + round(HEARTBEAT_BYTES_PER_S * GRPC_SWEEP_S), received)
        self.waiting = received - self.taken
        self.held = self.held + self.waiting if self.waiting > INFLOW_SMALL_BYTES else 0

    def take_all(self, received: int) -> None:
        """Count all received bytes as taken, when no call waits.

        Bytes of calls that were refused or given up are not kept in memory either.
        """
        self.taken = received
        self.waiting = self.held = 0
        self.has_had_calls = False


class ServerConnections:
    """The connections to one port. Not for several threads."""

    def __init__(self, port: int, seats: ServerSeats) -> None:
        self._port = port
        self._seats = seats
        self._by_peer: dict[str, Seat] = {}  # seats by gRPC's name of the peer
        self._descriptors: dict[str, _Descriptor] = {}  # descriptors of this process, by number
        self._looks = 0
        self._ending: dict[str, None] = {}  # peers whose seats were vacated
        self._receiving: dict[str, _Receiving] = {}  # incomplete messages by peer

    def seat_of(self, peer: str) -> Seat:
        """Return the seat of a call's connection.

        peer: in gRPC's form, ipv4:HOST:PORT or ipv6:%5BHOST%5D:PORT.
        """
        seat = self._by_peer.get(peer)
        return self._seated(peer) if seat is None else seat

    def _seated(self, peer: str) -> Seat:
        seat = Seat(peer.rpartition(":")[0], now_ns(), lambda: self._end(peer))
        self._by_peer[peer] = seat
        vacated = self._seats.take(seat)
        if vacated is not None:
            vacated.close()
        return seat

    @contextlib.contextmanager
    def receiving(self, peer: str) -> Iterator[None]:
        """Count a call as waiting for its message, or for any message of its stream, while the context is
        open."""
        found = self._receiving.setdefault(peer, _Receiving())
        found.calls += 1
        found.has_had_calls = True
        try:
            yield
        finally:
            found.calls -= 1

    def take(self, peer: str, count: int) -> None:
        """Count bytes of a connection as taken; ``count`` may be an overestimate."""
        if peer in self._receiving:
            self._receiving[peer].taken += count

    def end(self, peer: str) -> None:
        """Have a connection shut down at the next look."""
        seat = self._by_peer.get(peer)
        if seat is not None:
            self._seats.leave(seat)
            seat.close()

    def _end(self, peer: str) -> None:
        self._by_peer.pop(peer, None)
        self._ending[peer] = None

    def sweep(self, stranger_ns: int) -> None:
        """Seat new connections, forget ended ones, and shut down those that have to end.

        These are connections whose seats were vacated, and strangers that have made no permitted call for
        longer than ``stranger_ns``. Raises OSError where the process has no descriptor left for the sweep;
        the next sweep continues.
        """
        thoroughly = self._looks % THOROUGH_LOOKS == 0 or len(self._seats) > self._seats.seats_max // 2
        self._looks += 1
        found = self._look(thoroughly)
        if not thoroughly and not self._by_peer.keys() <= found.keys():
            found = self._look(thoroughly=True)  # some have ended, or have the numbers of others
        for peer in [peer for peer in self._by_peer if peer not in found]:
            self._seats.leave(self._by_peer.pop(peer))
        for peer in found:
            if peer not in self._by_peer and peer not in self._ending:
                self._seated(peer)
        for seat in self._seats.overdue(now_ns(), stranger_ns):
            seat.close()
        self._end_receiving(found)
        for peer in list(self._ending):
            if peer in found:
                descriptor = found[peer]
                _shut_down(int(descriptor), self._port, peer)
                # gRPC closes the descriptor later: until then it must not count as a new connection.
                self._descriptors[descriptor] = self._descriptors[descriptor]._replace(peer="")
            del self._ending[peer]

    def _end_receiving(self, found: dict[str, str]) -> None:
        """Shut down connections while incomplete messages take more than GRPC_RECEIVING_BYTES_MAX bytes.

        Connections with the largest sum of bytes over time (``held``) are shut down first.
        """
        for peer, receiving in list(self._receiving.items()):
            if peer not in found:
                if not receiving.calls:
                    del self._receiving[peer]
                receiving.waiting = 0
            elif receiving.calls:
                receiving.look(_received(int(found[peer]), self._port, peer))
            elif receiving.has_had_calls:
                receiving.take_all(_received(int(found[peer]), self._port, peer))
        waiting = sum(receiving.waiting for receiving in self._receiving.values())
        if waiting > GRPC_RECEIVING_BYTES_MAX:
            for peer, receiving in sorted(self._receiving.items(), key=lambda item: -item[1].held):
                self.end(peer)
                waiting -= receiving.waiting
                if waiting <= GRPC_RECEIVING_BYTES_MAX:
                    break

    def _look(self, thoroughly: bool) -> dict[str, str]:
        """Return the number of the descriptor of every connection to the port, by peer.

        thoroughly: also examine numbers that are known, because the system reuses numbers of closed
        descriptors.
        """
        found: dict[str, _Descriptor] = {}
        for number in os.listdir("/proc/self/fd"):
            known = self._descriptors.get(number, NONE)
            found[number] = self._examined(int(number), known) if thoroughly or known is NONE else known
        self._descriptors = found
        return {descriptor.peer: number for number, descriptor in found.items() if descriptor.peer}

    def _examined(self, number: int, known: _Descriptor) -> _Descriptor:
        try:
            status = os.fstat(number)
        except OSError:  # closed since it was listed
            return NONE
        if status.st_ino == known.inode:
            return known
        return _Descriptor(status.st_ino, _peer(number, self._port) if stat.S_ISSOCK(status.st_mode) else "")


class _Descriptor(NamedTuple):
    inode: int
    # peer of a connection to the port; "": the descriptor is another's, or its connection was shut down
    peer: str


NONE = _Descriptor(0, "")


def _peer(descriptor: int, port: int) -> str:
    """Return the peer of a connection to the port, in gRPC's form; "" for any other socket.

    Raises as _duplicate().
    """
    duplicate = _duplicate(descriptor)
    if duplicate is None:
        return ""
    with duplicate:
        return _peer_of(duplicate, port)


def _duplicate(descriptor: int) -> socket.socket | None:
    """Return a socket by a duplicate of the descriptor.

    None: the descriptor is no socket, because gRPC's threads have closed it and another file has its number.
    Raises OSError where this process can have no more descriptors.
    """
    try:
        number = os.dup(descriptor)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        return None
    try:
        return socket.socket(fileno=number)
    except OSError:
        os.close(number)
        return None


def _peer_of(connection: socket.socket, port: int) -> str:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return ""
    try:
        if connection.getsockname()[1] != port:
            return ""
        host, peer_port, *more = connection.getpeername()
    except OSError:  # the connection has ended
        return ""
    host = host.partition("%")[0]
    if "." in host:
        return f"ipv4:{host.removeprefix('::ffff:')}:{peer_port}"
    scope = f"%25{more[1]}" if more[1] else ""  # by number, where Python has the interface's name
    return f"ipv6:%5B{host}{scope}%5D:{peer_port}"


def _received(descriptor: int, port: int, peer: str) -> int:
    """Return the bytes received on a connection; 0 if the descriptor is another's by now.

    Raises as _duplicate().
    """
    duplicate = _duplicate(descriptor)
    if duplicate is None:
        return 0
    with duplicate:
        return inflow.received_bytes(duplicate) if _peer_of(duplicate, port) == peer else 0


def _shut_down(descriptor: int, port: int, peer: str) -> None:
    """Shut down a connection, unless the descriptor is another's by now. Raises as _duplicate()."""
    duplicate = _duplicate(descriptor)
    if duplicate is not None:
        with duplicate:
            if _peer_of(duplicate, port) == peer:
                inflow.end(duplicate)
