"""The connections of gRPC's port, each on a seat.

gRPC accepts and reads on threads of its own, and says of a connection nothing but the peer of a call on it. So its
connections are found among this process's descriptors, again and again; one whose seat is vacated is shut down there, and
gRPC finds that it has ended. Between two looks gRPC may accept more than there are seats, up to a bound of its own.

gRPC also takes in a message until it is whole, however long that takes and however many do so, and does not say how much
of it has come. So the bytes that wait are counted as wire/inflow.py counts them: the kernel's count of the bytes that came
on a connection, less those of the messages that were whole.
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
from clockwork.web.seats import Seat, Seats
from clockwork.wire import inflow


class _Receiving:
    """What has come on a connection, and what of it was messages."""

    __slots__ = ("calls", "has_had_calls", "held", "taken", "waiting")

    def __init__(self) -> None:
        self.calls = 0  # that wait for a message
        self.has_had_calls = False  # since all that had come was counted as taken
        self.taken = 0
        self.waiting = 0  # bytes of messages that are not whole, as of the last look
        self.held = 0  # those bytes, added up over the looks since there were few of them

    def look(self, received: int) -> None:
        # An overestimate is no credit for later.
        self.taken = min(self.taken + round(HEARTBEAT_BYTES_PER_S * GRPC_SWEEP_S), received)
        self.waiting = received - self.taken
        self.held = self.held + self.waiting if self.waiting > INFLOW_SMALL_BYTES else 0

    def take_all(self, received: int) -> None:
        """No call waits: what came of calls that were refused or given up is not kept either."""
        self.taken = received
        self.waiting = self.held = 0
        self.has_had_calls = False


class Connections:
    """The connections to one port. Not for several threads."""

    def __init__(self, port: int, seats: Seats) -> None:
        self._port = port
        self._seats = seats
        self._by_peer: dict[str, Seat] = {}  # by gRPC's name of the peer
        self._descriptors: dict[str, _Descriptor] = {}  # this process's, by number
        self._looks = 0
        self._ending: dict[str, None] = {}  # peers whose seats were vacated
        self._receiving: dict[str, _Receiving] = {}  # by peer

    def seat_of(self, peer: str) -> Seat:
        """The seat of a call's connection. peer: as gRPC says it, ipv4:HOST:PORT or ipv6:%5BHOST%5D:PORT."""
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
        """While a call waits for its message, or for any message of its stream."""
        found = self._receiving.setdefault(peer, _Receiving())
        found.calls += 1
        found.has_had_calls = True
        try:
            yield
        finally:
            found.calls -= 1

    def take(self, peer: str, count: int) -> None:
        """Count bytes that were received on a connection and wait no longer, or more than they are."""
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
        """Seat new connections, forget those that have ended, and shut down those whose seats were vacated, and strangers
        that have made no call they may make for longer than this. Raises OSError where no descriptor is left to look with;
        the next sweep goes on."""
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
                # gRPC has yet to find out, and close it: meanwhile it is no newcomer.
                self._descriptors[descriptor] = self._descriptors[descriptor]._replace(peer="")
            del self._ending[peer]

    def _end_receiving(self, found: dict[str, str]) -> None:
        """Have connections shut down while more bytes of messages that are not whole wait than may: first those that have
        held most of them for longest."""
        for peer, one in list(self._receiving.items()):
            if peer not in found:
                if not one.calls:
                    del self._receiving[peer]
                one.waiting = 0
            elif one.calls:
                one.look(_received(int(found[peer]), self._port, peer))
            elif one.has_had_calls:
                one.take_all(_received(int(found[peer]), self._port, peer))
        waiting = sum(one.waiting for one in self._receiving.values())
        if waiting > GRPC_RECEIVING_BYTES_MAX:
            for peer, one in sorted(self._receiving.items(), key=lambda item: -item[1].held):
                self.end(peer)
                waiting -= one.waiting
                if waiting <= GRPC_RECEIVING_BYTES_MAX:
                    break

    def _look(self, thoroughly: bool) -> dict[str, str]:
        """The number of the descriptor of every connection to the port, by peer. thoroughly: look again at numbers that
        were looked at before, because the system gives those of connections that have ended to others."""
        found: dict[str, _Descriptor] = {}
        for number in os.listdir("/proc/self/fd"):
            known = self._descriptors.get(number, NONE)
            found[number] = self._examined(int(number), known) if thoroughly or known is NONE else known
        self._descriptors = found
        return {one.peer: number for number, one in found.items() if one.peer}

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
    peer: str  # of a connection to the port; "": it is none, or was shut down


NONE = _Descriptor(0, "")


def _peer(descriptor: int, port: int) -> str:
    """The peer of a connection to the port, as gRPC says it; "" for any other socket. Raises OSError as _duplicate()."""
    one = _duplicate(descriptor)
    if one is None:
        return ""
    with one:
        return _peer_of(one, port)


def _duplicate(descriptor: int) -> socket.socket | None:
    """A descriptor as a socket of its own; None if it is no socket, because gRPC's threads have closed it and another file
    has its number. Raises OSError where this process can have no more descriptors."""
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


def _peer_of(one: socket.socket, port: int) -> str:
    if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
        return ""
    try:
        if one.getsockname()[1] != port:
            return ""
        host, peer_port, *more = one.getpeername()
    except OSError:  # it has none by now
        return ""
    host = host.partition("%")[0]
    if "." in host:
        return f"ipv4:{host.removeprefix('::ffff:')}:{peer_port}"
    scope = f"%25{more[1]}" if more[1] else ""  # by number, where Python has the interface's name
    return f"ipv6:%5B{host}{scope}%5D:{peer_port}"


def _received(descriptor: int, port: int, peer: str) -> int:
    """The bytes that have come on a connection; 0 if the descriptor is no longer its own. Raises OSError as _duplicate()."""
    one = _duplicate(descriptor)
    if one is None:
        return 0
    with one:
        return inflow.received_bytes(one) if _peer_of(one, port) == peer else 0


def _shut_down(descriptor: int, port: int, peer: str) -> None:
    """Shut down a connection, if the descriptor is still its own. Raises OSError as _duplicate()."""
    one = _duplicate(descriptor)
    if one is not None:
        with one:
            if _peer_of(one, port) == peer:
                inflow.end(one)
