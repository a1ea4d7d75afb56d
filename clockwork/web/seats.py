"""A server's bounded seats, one for each connection, and the connection that goes when they run out.

A plain limit lets whoever comes first keep everybody else out: a thousand silent connections are enough. So a newcomer is
always seated, and the seat that is worth least is vacated in its place: of the connections that wait for their peer (for a
handshake, a header, a body, the next request), those of the lowest standing; of these, those of the address that has the
most; and of these the one that has waited longest. A connection whose request the server is working on keeps its seat; if
there is no other, the newcomer goes.

Every newcomer is a stranger, so that a flood of strangers displaces strangers. If it did so however few they are, the next
of the flood would displace a newcomer before its first request was read. So an eighth of the seats is for strangers:
while fewer of them wait, a client that waits for nothing but its next request goes in their place.
"""

from __future__ import annotations

import enum
from collections.abc import Callable


class Standing(enum.IntEnum):
    """How much the server knows of a peer, from least to most."""

    STRANGER = 0  # has not yet made a request that it may make
    CLIENT = 1
    OPERATOR = 2  # has shown the operator's token


class Seat:
    """One connection. The server says when it waits for its peer, and when for the server's own work. Time goes forward."""

    __slots__ = ("_seats", "address", "close", "idle_since_ns", "standing", "working")

    def __init__(self, address: str, now_ns: int, close: Callable[[], None]) -> None:
        """close: ends the connection at once; the server calls it for a seat that was vacated."""
        self.address = address
        self.close = close
        self.standing = Standing.STRANGER
        self.idle_since_ns = now_ns  # the peer's last progress
        self.working = 0  # requests that the server is working on
        self._seats: Seats | None = None  # None: not seated

    def begin(self) -> None:
        """The server works on a request of the peer, and no longer waits for it."""
        if not self.working and self._seats is not None:
            self._seats._remove(self)
        self.working += 1

    def end(self, now_ns: int) -> None:
        """The server has done one request's work."""
        assert self.working > 0
        self.working -= 1
        self.idle_since_ns = now_ns
        if not self.working and self._seats is not None:
            self._seats._append(self)

    def progress(self, now_ns: int) -> None:
        """The peer has done its part of what the server waits for."""
        self.idle_since_ns = now_ns
        if not self.working and self._seats is not None:
            self._seats._remove(self)
            self._seats._append(self)


class Seats:
    """All seats of one server."""

    def __init__(self, seats_max: int) -> None:
        assert seats_max > 0
        self.seats_max = seats_max
        self.strangers_min = seats_max // 8
        self._count = 0
        self._strangers = 0  # that wait
        # Seats that wait for their peer, by address, those of an address in the order in which they began to: a scan of
        # all of them took 1.5 ms of 5,000.
        self._waiting: dict[Standing, dict[str, dict[Seat, None]]] = {standing: {} for standing in Standing}

    def __len__(self) -> int:
        return self._count

    def __contains__(self, seat: Seat) -> bool:
        return seat._seats is self

    def take(self, seat: Seat) -> Seat | None:
        """Seat a newcomer. The seat that is vacated for it, whose connection is to be closed; it may be the newcomer's own.
        None: there was room."""
        vacated = None
        if self._count >= self.seats_max:
            vacated = self.vacate()
            if vacated is None:
                return seat
        seat._seats = self
        self._count += 1
        self._append(seat)
        return vacated

    def recognize(self, seat: Seat, standing: Standing) -> None:
        """The peer has shown that it is of this standing. A standing is never lost."""
        if standing <= seat.standing:
            return
        waits = seat in self and not seat.working
        if waits:
            self._remove(seat)
        seat.standing = standing
        if waits:
            self._append(seat)

    def leave(self, seat: Seat) -> None:
        """The connection has ended. Harmless for a seat that was vacated."""
        if seat not in self:
            return
        if not seat.working:
            self._remove(seat)
        seat._seats = None
        self._count -= 1

    def vacate(self) -> Seat | None:
        """Vacate the seat that is worth least. None: all are worked for."""
        strangers, *known = self._waiting.values()
        spared = self._strangers < self.strangers_min
        for groups in (*known, strangers) if spared else (strangers, *known):
            if groups:
                most = min(groups.values(), key=lambda group: (-len(group), next(iter(group)).idle_since_ns))
                vacated = next(iter(most))
                self.leave(vacated)
                return vacated
        return None

    def overdue(self, now_ns: int, stranger_ns: int) -> list[Seat]:
        """Vacate the seats of strangers that have waited for longer than this."""
        found = []
        for group in self._waiting[Standing.STRANGER].values():
            for seat in group:
                if now_ns - seat.idle_since_ns <= stranger_ns:
                    break
                found.append(seat)
        for seat in found:
            self.leave(seat)
        return found

    def _append(self, seat: Seat) -> None:
        self._waiting[seat.standing].setdefault(seat.address, {})[seat] = None
        self._strangers += seat.standing == Standing.STRANGER

    def _remove(self, seat: Seat) -> None:
        groups = self._waiting[seat.standing]
        group = groups[seat.address]
        del group[seat]
        self._strangers -= seat.standing == Standing.STRANGER
        if not group:
            del groups[seat.address]

    def check_invariants(self) -> None:
        waiting = [
            (standing, address, seat)
            for standing, groups in self._waiting.items()
            for address, group in groups.items()
            for seat in group
        ]
        assert len(waiting) <= self._count <= self.seats_max
        assert self._strangers == sum(standing == Standing.STRANGER for standing, _, _ in waiting)
        assert all(seat in self and not seat.working for _, _, seat in waiting)
        assert all(
            (seat.standing, seat.address) == (standing, address) for standing, address, seat in waiting
        )
        for group in self._waiting[Standing.STRANGER].values():
            since = [seat.idle_since_ns for seat in group]
            assert since
            assert since == sorted(since)
