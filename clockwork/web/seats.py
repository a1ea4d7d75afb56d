"""A server's bounded seats for connections, and the rule for the connection to close when they run out.

A plain limit lets an attacker keep everybody out: a thousand silent connections are enough. So a newcomer is
always seated, and the seat of lowest value is vacated. Only connections that wait for their peer (for a
handshake, a header, a body, the next request) can lose their seat. The order is: lowest standing first; then
the address with the most connections; then the longest wait. A connection with a pending request keeps its
seat. If all seats have one, the newcomer is closed.

Every newcomer is a stranger, so a flood of strangers displaces strangers. If that held for any number of
strangers, the flood would displace a newcomer before its first request was read. So an eighth of the seats is
for strangers: while fewer of them wait, a client that waits for its next request is displaced instead.
"""

from __future__ import annotations

import enum
from collections.abc import Callable


class Standing(enum.IntEnum):
    """The server's trust in a peer, from least to most."""

    STRANGER = 0  # has not made an allowed request yet
    CLIENT = 1
    OPERATOR = 2  # has shown the operator's token


class Seat:
    """A connection. The server reports when it waits for the peer, and when it works on a request. Times must
    not decrease."""

    __slots__ = ("_seats", "address", "close", "idle_since_ns", "standing", "working")

    def __init__(self, address: str, now_ns: int, close: Callable[[], None]) -> None:
        """close: closes the connection at once; the server calls it for a vacated seat."""
        self.address = address
        self.close = close
        self.standing = Standing.STRANGER
        self.idle_since_ns = now_ns  # time of the peer's last progress
        self.working = 0  # requests on which the server works
        self._seats: ServerSeats | None = None  # the table of seats; None: not seated

    def begin(self) -> None:
        """Note that the server works on a request of the peer."""
        if not self.working and self._seats is not None:
            self._seats._remove(self)
        self.working += 1

    def end(self, now_ns: int) -> None:
        """Note that the server has finished a request."""
        assert self.working > 0
        self.working -= 1
        self.idle_since_ns = now_ns
        if not self.working and self._seats is not None:
            self._seats._append(self)

    def progress(self, now_ns: int) -> None:
        """Note progress of the peer, such as a part of a request."""
        self.idle_since_ns = now_ns
        if not self.working and self._seats is not None:
            self._seats._remove(self)
            self._seats._append(self)


class ServerSeats:
    """All seats of a server."""

    def __init__(self, seats_max: int) -> None:
        assert seats_max > 0
        self.seats_max = seats_max
        self.strangers_min = seats_max // 8
        self._count = 0
        self._strangers = 0  # number of strangers that wait
        # Waiting seats by address. The seats of an address are in the order in which their wait began,
        # because a scan of 5,000 seats took 1.5 ms.
        self._waiting: dict[Standing, dict[str, dict[Seat, None]]] = {standing: {} for standing in Standing}

    def __len__(self) -> int:
        return self._count

    def __contains__(self, seat: Seat) -> bool:
        return seat._seats is self

    def take(self, seat: Seat) -> Seat | None:
        """Seat a newcomer. Returns the vacated seat, whose connection must be closed; it may be the
        newcomer's own.

        Returns None if there was room.
        """
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
        """Raise the standing of a peer. A standing is never lost."""
        if standing <= seat.standing:
            return
        waits = seat in self and not seat.working
        if waits:
            self._remove(seat)
        seat.standing = standing
        if waits:
            self._append(seat)

    def leave(self, seat: Seat) -> None:
        """Free the seat of a closed connection. Does nothing for a vacated seat."""
        if seat not in self:
            return
        if not seat.working:
            self._remove(seat)
        seat._seats = None
        self._count -= 1

    def vacate(self) -> Seat | None:
        """Vacate the seat of lowest value. Returns None if the server works on a request of every seat."""
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
        """Vacate the seats of strangers that have waited longer than ``stranger_ns``. Returns them."""
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
