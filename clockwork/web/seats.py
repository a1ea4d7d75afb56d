"""A server's bounded seats, one for each connection, and the connection that goes when they run out.

A plain limit lets whoever comes first keep everybody else out: a thousand silent connections are enough. So a newcomer is
always seated, and the seat that is worth least is vacated in its place: of the connections that wait for their peer (for a
handshake, a header, a body, the next request), first those of the lowest standing, and among them the one that has waited
longest. A connection whose request the server is working on keeps its seat; if there is no other, the newcomer goes. Every
newcomer is a stranger, so that a flood of strangers displaces strangers: at most one connection of a known client goes
before the seat of a stranger is there to be vacated. Strangers of one address have a bound of their own, beyond which they
displace each other.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable


class Standing(enum.IntEnum):
    """How much the server knows of a peer, from least to most."""

    STRANGER = 0  # has not yet made a request that it may make
    CLIENT = 1
    OPERATOR = 2  # has shown the operator's token


class Seat:
    """One connection. The server says when it waits for its peer, and when for the server's own work."""

    __slots__ = ("address", "close", "idle_since_ns", "standing", "working")

    def __init__(self, address: str, now_ns: int, close: Callable[[], None]) -> None:
        """close: ends the connection at once; the server calls it for a seat that was vacated."""
        self.address = address
        self.close = close
        self.standing = Standing.STRANGER
        self.idle_since_ns = now_ns  # the peer's last progress
        self.working = 0  # requests that the server is working on

    def begin(self) -> None:
        """The server works on a request of the peer, and no longer waits for it."""
        self.working += 1

    def end(self, now_ns: int) -> None:
        """The server has done one request's work."""
        assert self.working > 0
        self.working -= 1
        self.idle_since_ns = now_ns

    def progress(self, now_ns: int) -> None:
        """The peer has done its part of what the server waits for."""
        self.idle_since_ns = now_ns


class Seats:
    """All seats of one server."""

    def __init__(self, seats_max: int) -> None:
        assert seats_max > 0
        self.seats_max = seats_max
        self.strangers_max = max(1, seats_max // 2)  # of one address
        self._seats: dict[Seat, None] = {}  # in the order in which they were taken
        self._strangers: Counter[str] = Counter()  # by address

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, seat: Seat) -> bool:
        return seat in self._seats

    def take(self, seat: Seat) -> Seat | None:
        """Seat a newcomer. The seat that is vacated for it, whose connection is to be closed; it may be the newcomer's own.
        None: there was room."""
        self._seats[seat] = None
        self._strangers[seat.address] += 1
        vacated = None
        if self._strangers[seat.address] > self.strangers_max:
            vacated = self._least(
                lambda other: other.standing == Standing.STRANGER and other.address == seat.address
            )
        elif len(self._seats) > self.seats_max:
            vacated = self._least(lambda other: other is not seat) or seat
        if vacated is not None:
            self.leave(vacated)
        return vacated

    def recognize(self, seat: Seat, standing: Standing) -> None:
        """The peer has shown that it is of this standing. A standing is never lost."""
        if standing <= seat.standing or seat not in self._seats:
            return
        if seat.standing == Standing.STRANGER:
            self._forget_stranger(seat)
        seat.standing = standing

    def leave(self, seat: Seat) -> None:
        """The connection has ended. Harmless for a seat that was vacated."""
        if self._seats.pop(seat, self) is self:
            return
        if seat.standing == Standing.STRANGER:
            self._forget_stranger(seat)

    def vacate(self) -> Seat | None:
        """Vacate the seat that is worth least, because a newcomer cannot even be accepted. None: all are worked for."""
        vacated = self._least(lambda seat: True)
        if vacated is not None:
            self.leave(vacated)
        return vacated

    def overdue(self, now_ns: int, stranger_ns: int) -> list[Seat]:
        """Vacate the seats of strangers that have waited for longer than this."""
        found = [
            seat
            for seat in self._seats
            if seat.standing == Standing.STRANGER
            and not seat.working
            and now_ns - seat.idle_since_ns > stranger_ns
        ]
        for seat in found:
            self.leave(seat)
        return found

    def _least(self, may_go: Callable[[Seat], bool]) -> Seat | None:
        """The seat that is worth least of those that wait for their peers; of equals, the one that was taken first."""
        waiting = (seat for seat in self._seats if not seat.working and may_go(seat))
        return min(waiting, key=lambda seat: (seat.standing, seat.idle_since_ns), default=None)

    def _forget_stranger(self, seat: Seat) -> None:
        self._strangers[seat.address] -= 1
        if not self._strangers[seat.address]:
            del self._strangers[seat.address]

    def check_invariants(self) -> None:
        assert len(self._seats) <= self.seats_max
        strangers = Counter(seat.address for seat in self._seats if seat.standing == Standing.STRANGER)
        assert strangers == self._strangers
        assert all(count <= self.strangers_max for count in strangers.values())
