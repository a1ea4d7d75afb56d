"""Seats for connections: which connection is closed when they run out."""

from __future__ import annotations

import random

import pytest

from clockwork.system.clock import SECOND
from clockwork.web.seats import Seat, ServerSeats, Standing


def seated(
    seats: ServerSeats, now_s: int, address: str = "10.0.0.1", standing: Standing = Standing.STRANGER
) -> Seat:
    """A connection that finds room."""
    seat = Seat(address, now_s * SECOND, lambda: None)
    assert seats.take(seat) is None
    seats.recognize(seat, standing)
    return seat


def test_the_stranger_that_has_waited_longest_makes_room() -> None:
    seats = ServerSeats(4)
    client = seated(seats, 0, standing=Standing.CLIENT)
    first, second = seated(seats, 1, "10.0.0.1"), seated(seats, 2, "10.0.0.2")
    seated(seats, 3, standing=Standing.OPERATOR)
    newcomer = Seat("10.0.0.3", 4 * SECOND, lambda: None)
    assert seats.take(newcomer) is first
    assert first not in seats
    second.progress(5 * SECOND)
    assert seats.take(Seat("10.0.0.4", 6 * SECOND, lambda: None)) is newcomer
    assert client in seats
    seats.check_invariants()


def test_strangers_displace_each_other_and_an_eighth_of_the_clients_at_most() -> None:
    seats = ServerSeats(16)
    clients = [seated(seats, at, standing=Standing.CLIENT) for at in range(16)]
    newcomers = [Seat(f"10.0.1.{at}", at * SECOND, lambda: None) for at in range(20, 200)]
    went = [seats.take(newcomer) for newcomer in newcomers]
    assert went == [*clients[:2], *newcomers[:-2]], "a newcomer stays while another comes"
    assert [client in seats for client in clients] == [False] * 2 + [True] * 14


def test_what_is_worked_for_stays_and_the_newcomer_goes() -> None:
    seats = ServerSeats(2)
    for at in range(2):
        seated(seats, at, standing=Standing.CLIENT).begin()
    newcomer = Seat("10.0.0.9", 9 * SECOND, lambda: None)
    assert seats.take(newcomer) is newcomer
    assert seats.vacate() is None
    assert len(seats) == 2


def test_a_client_of_lower_standing_goes_before_an_operator() -> None:
    seats = ServerSeats(2)
    operator = seated(seats, 0, standing=Standing.OPERATOR)
    client = seated(seats, 9, standing=Standing.CLIENT)
    seats.recognize(operator, Standing.CLIENT)
    assert operator.standing == Standing.OPERATOR, "a standing is never lost"
    assert seats.vacate() is client
    assert seats.vacate() is operator


@pytest.mark.parametrize("standing", list(Standing))
def test_the_address_with_the_most_seats_loses_its_longest_waiting_one(standing: Standing) -> None:
    seats = ServerSeats(4)
    patient = seated(seats, 0, "10.0.0.2", standing)
    flood = [seated(seats, at, standing=standing) for at in range(1, 4)]
    flood[0].progress(4 * SECOND)
    assert seats.take(Seat("10.0.0.3", 5 * SECOND, lambda: None)) is flood[1]
    assert patient in seats
    seats.leave(patient)
    seats.leave(patient)
    assert len(seats) == 3
    seats.check_invariants()


def test_strangers_have_seconds() -> None:
    seats = ServerSeats(8)
    slow, working, known = seated(seats, 0), seated(seats, 0), seated(seats, 0, standing=Standing.CLIENT)
    working.begin()
    late = seated(seats, 8)
    assert seats.overdue(10 * SECOND, 10 * SECOND) == []
    assert seats.overdue(11 * SECOND, 10 * SECOND) == [slow]
    working.end(11 * SECOND)
    assert seats.overdue(20 * SECOND, 10 * SECOND) == [late]
    assert known in seats


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_bounds_hold_and_the_worst_goes(seed: int) -> None:
    random_ = random.Random(seed)
    seats, alive = ServerSeats(random_.randint(1, 9)), []
    for now_ns in range(400):
        deed = random_.randrange(6)
        if deed <= 1 or not alive:
            seat = Seat(random_.choice("abc"), now_ns, lambda: None)
            alive.append(seat)
            vacated = seats.take(seat)
            if vacated is not None:
                assert vacated is seat or not vacated.working
                strangers = [
                    other for other in alive if other in seats and other.standing == Standing.STRANGER
                ]
                assert vacated.standing == Standing.STRANGER or (
                    sum(not other.working for other in strangers if other is not seat) <= seats.strangers_min
                )
                assert vacated not in seats
        else:
            seat = random_.choice(alive)
            if deed == 2:
                seat.begin()
            elif deed == 3 and seat.working:
                seat.end(now_ns)
            elif deed == 4:
                seats.recognize(seat, random_.choice(list(Standing)))
            elif deed == 5:
                seats.leave(seat)
        alive = [seat for seat in alive if seat in seats]
        seats.check_invariants()
