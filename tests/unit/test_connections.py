"""The bounds of connections, on sockets of which a test holds both ends."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator, Sequence

import pytest

from clockwork.config.controller import ConnectionBounds
from clockwork.controller._exchange import SEAT_FREE, SEAT_NONE
from clockwork.system.clock import SECOND
from tests.native._tested import Connections

KIB = 1 << 10

Pair = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def tcp_pairs(count: int, addresses: Sequence[str] = ("127.0.0.1",)) -> Iterator[list[Pair]]:
    """Return (accepted, dialled) pairs, dialled from these addresses in turn."""
    with contextlib.ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
        pairs = []
        for number in range(count):
            source = (addresses[number % len(addresses)], 0)
            dialled = stack.enter_context(socket.create_connection(listener.getsockname(), None, source))
            pairs.append((stack.enter_context(listener.accept()[0]), dialled))
        yield pairs


def is_over(one: socket.socket) -> bool:
    """Whether the other end has closed."""
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == "tcp":
        with tcp_pairs(1) as (one,):
            yield one
    else:
        ends = socket.socketpair()
        with ends[0], ends[1]:
            yield ends


def test_a_connection_that_is_cut_ends_and_no_descriptor_is_left(pair: Pair) -> None:
    accepted, dialled = pair
    before = len(os.listdir("/proc/self/fd"))
    connections = Connections(ConnectionBounds())
    connections.accepted(accepted.fileno(), 0)
    assert not is_over(dialled)
    assert connections.cut(accepted.fileno())
    assert is_over(dialled)
    assert not connections.cut(accepted.fileno()), "it was cut already"
    assert not connections.may_send(accepted.fileno(), 0)
    assert connections.describe()["cut"] == {"asked": 1}
    assert connections.ended(accepted.fileno())
    assert not connections.ended(accepted.fileno())
    del connections
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_descriptor_that_is_somebody_elses_by_now_is_left_alone(pair: Pair) -> None:
    accepted, _ = pair
    connections = Connections(ConnectionBounds())
    connections.accepted(accepted.fileno(), 0)
    other, peer = socket.socketpair()
    with other, peer:
        # libzmq closes the socket on its own thread, and another file is opened before its end is read.
        os.dup2(other.fileno(), accepted.fileno())
        assert connections.cut(accepted.fileno())
        assert not is_over(peer)
        peer.send(b"still here")
        assert other.recv(100) == b"still here"


def test_a_file_where_a_connection_was_is_left_alone(pair: Pair) -> None:
    accepted, _ = pair
    connections = Connections(ConnectionBounds(hello_bytes=1))
    connections.accepted(accepted.fileno(), 0)
    with open("/dev/null", "rb") as other:
        os.dup2(other.fileno(), accepted.fileno())
        connections.look(SECOND)
        assert not connections.is_cut(accepted.fileno())
        assert connections.cut(accepted.fileno())


def test_bytes_that_another_connection_received_on_the_same_number_cut_nobody() -> None:
    with tcp_pairs(2) as [(first, _), (second, dialled)]:
        connections = Connections(ConnectionBounds(hello_bytes=KIB))
        connections.accepted(first.fileno(), 0)
        dialled.sendall(bytes(4 * KIB))
        assert second.recv(1) == b"\0"
        os.dup2(second.fileno(), first.fileno())
        connections.look(SECOND)
        assert not connections.is_cut(first.fileno())
        assert not is_over(dialled)


def test_before_a_hello_little_is_received_and_after_it_more() -> None:
    with tcp_pairs(3) as pairs:
        connections = Connections(ConnectionBounds(hello_bytes=8 * KIB, received_bytes=32 * KIB))
        for (accepted, dialled), size in zip(pairs, (16, 16, 64), strict=True):
            connections.accepted(accepted.fileno(), 0)
            dialled.sendall(bytes(size * KIB))
            assert len(accepted.recv(size * KIB, socket.MSG_WAITALL)) == size * KIB
        connections.greet(pairs[1][0].fileno())
        connections.greet(pairs[2][0].fileno())
        connections.look(1)
        assert [is_over(dialled) for _, dialled in pairs] == [True, False, True]
        assert connections.describe()["cut"] == {"received": 2}


def test_what_is_taken_may_be_sent_again_and_credit_is_not_saved_up() -> None:
    with tcp_pairs(1) as [(accepted, dialled)]:
        connections = Connections(ConnectionBounds(hello_bytes=8 * KIB, hello_ns=60 * SECOND))
        connections.accepted(accepted.fileno(), 0)
        for turn in range(1, 11):
            dialled.sendall(bytes(6 * KIB))
            accepted.recv(6 * KIB, socket.MSG_WAITALL)
            connections.taken(accepted.fileno(), 60 * KIB)  # far more bytes than before
            connections.look(turn * SECOND)
        assert not connections.is_cut(accepted.fileno())
        dialled.sendall(bytes(16 * KIB))
        accepted.recv(16 * KIB, socket.MSG_WAITALL)
        connections.look(11 * SECOND)
        assert connections.is_cut(accepted.fileno())


def test_an_idle_connections_heartbeats_add_up_to_nothing() -> None:
    with tcp_pairs(1) as [(accepted, dialled)]:
        connections = Connections(ConnectionBounds(hello_bytes=2 * KIB, hello_ns=60 * SECOND))
        connections.accepted(accepted.fileno(), 0)
        for turn in range(1, 201):
            dialled.sendall(bytes(100))
            accepted.recv(100, socket.MSG_WAITALL)
            connections.look(turn * SECOND // 4)
        assert not connections.is_cut(accepted.fileno())


def test_where_all_together_are_too_much_the_largest_goes_first() -> None:
    with tcp_pairs(4) as pairs:
        connections = Connections(ConnectionBounds(received_bytes_all=40 * KIB))
        for (accepted, dialled), size in zip(pairs, (8, 24, 12, 16), strict=True):
            connections.accepted(accepted.fileno(), 0)
            connections.greet(accepted.fileno())
            dialled.sendall(bytes(size * KIB))
            accepted.recv(size * KIB, socket.MSG_WAITALL)
        connections.look(SECOND)
        assert [is_over(dialled) for _, dialled in pairs] == [False, True, False, False]
        assert connections.describe()["cut"] == {"received_all": 1}
        assert connections.describe()["received_bytes"] <= 40 * KIB


def test_who_has_not_read_what_was_sent_is_sent_no_more(pair: Pair) -> None:
    accepted, dialled = pair
    connections = Connections(ConnectionBounds(unread_bytes=8 * KIB))
    connections.accepted(accepted.fileno(), 0)
    connections.queued(accepted.fileno(), 8 * KIB)
    assert connections.may_send(accepted.fileno(), 0)  # a further message of any size may be sent
    connections.queued(accepted.fileno(), 80 * KIB)
    assert not connections.may_send(accepted.fileno(), 0)
    assert is_over(dialled)
    assert connections.describe()["cut"] == {"unread": 1}


def test_answers_wait_as_far_as_there_is_credit_and_small_ones_beside_them(pair: Pair) -> None:
    accepted, _ = pair
    connections = Connections(ConnectionBounds(unread_bytes=256 * KIB, unread_bytes_all=1_024 * KIB))
    connections.accepted(accepted.fileno(), 0)
    assert connections.has_room(accepted.fileno(), 900 * KIB), "the first, however large"
    assert not connections.has_room(accepted.fileno(), 1_100 * KIB), "but not beyond all that may wait"
    connections.queued(accepted.fileno(), 200 * KIB)
    assert not connections.has_room(accepted.fileno(), 80 * KIB)
    assert connections.has_room(accepted.fileno(), 64 * KIB)


def test_what_was_read_is_credit_up_to_half_of_what_all_may_leave_unread() -> None:
    with tcp_pairs(1) as [(accepted, dialled)]:
        connections = Connections(ConnectionBounds(unread_bytes=256 * KIB, unread_bytes_all=2_048 * KIB))
        connections.accepted(accepted.fileno(), 0)
        connections.queued(accepted.fileno(), 200 * KIB)
        assert not connections.has_room(accepted.fileno(), 100 * KIB)
        for _ in range(40):
            accepted.sendall(bytes(100 * KIB))
            dialled.recv(100 * KIB, socket.MSG_WAITALL)
        connections.look(SECOND)
        assert connections.has_room(accepted.fileno(), 824 * KIB)
        assert not connections.has_room(accepted.fileno(), 825 * KIB)


def test_a_peer_that_reads_too_little_of_much_is_ended() -> None:
    with tcp_pairs(3) as pairs:
        connections = Connections(ConnectionBounds(unread_ns=10 * SECOND))
        for accepted, _ in pairs:
            connections.accepted(accepted.fileno(), 0)
            connections.greet(accepted.fileno())
        for (accepted, _), size in zip(pairs, (2_048, 2_048, 900), strict=True):
            connections.queued(accepted.fileno(), size * KIB)
        for turn in range(1, 11):
            assert [is_over(dialled) for _, dialled in pairs] == [False, False, False]
            pairs[1][0].sendall(bytes(300 * KIB))  # the second peer reads
            pairs[1][1].recv(300 * KIB, socket.MSG_WAITALL)
            connections.look(turn * SECOND)
        assert [is_over(dialled) for _, dialled in pairs] == [True, False, False]


def test_of_too_many_without_a_hello_the_oldest_goes() -> None:
    with tcp_pairs(5) as pairs:
        connections = Connections(ConnectionBounds(ungreeted=2))
        for place, (accepted, _) in enumerate(pairs):
            connections.accepted(accepted.fileno(), 0)
            if place == 0:
                connections.greet(accepted.fileno())
        assert [is_over(dialled) for _, dialled in pairs] == [False, True, True, False, False]
        assert connections.describe() == {
            "open": 5, "ungreeted": 2, "greeted": 1, "unread_bytes": 0, "received_bytes": 0, "cut": {"crowd": 2},
        }  # fmt: skip


def test_of_too_many_without_a_hello_the_address_with_the_most_loses_its_oldest() -> None:
    with tcp_pairs(6, ("127.0.0.1", "127.0.0.2", "127.0.0.2")) as pairs:
        connections = Connections(ConnectionBounds(ungreeted=4))
        for accepted, _ in pairs:
            connections.accepted(accepted.fileno(), 0)
        assert [is_over(dialled) for _, dialled in pairs] == [False, True, True, False, False, False]


def test_a_connection_without_a_hello_has_its_time_and_again_when_its_peer_is_forgotten() -> None:
    with tcp_pairs(2) as pairs:
        connections = Connections(ConnectionBounds(hello_ns=10 * SECOND))
        for accepted, _ in pairs:
            connections.accepted(accepted.fileno(), 0)
        connections.greet(pairs[0][0].fileno(), SECOND)
        connections.look(10 * SECOND)
        assert [is_over(dialled) for _, dialled in pairs] == [False, True]
        connections.forget(pairs[0][0].fileno(), 60 * SECOND)
        connections.look(69 * SECOND)
        assert not is_over(pairs[0][1])
        connections.look(70 * SECOND)
        assert is_over(pairs[0][1])
        assert connections.describe()["cut"] == {"silent": 2}


def test_answers_to_a_peer_without_a_hello_give_it_no_more_time() -> None:
    """Every message of the peer is answered, so that it could stay for as long as it sends."""
    with tcp_pairs(1) as ((accepted, dialled),):
        connections = Connections(ConnectionBounds(hello_ns=10 * SECOND))
        connections.accepted(accepted.fileno(), 0)
        connections.heard(accepted.fileno(), 9 * SECOND)
        connections.look(10 * SECOND)
        assert is_over(dialled)


def test_where_all_addresses_have_one_connection_without_a_hello_the_oldest_goes() -> None:
    """The choice does not depend on an order of addresses, in which the last would never get in."""
    addresses = [f"127.0.0.{number}" for number in range(1, 5)]
    with tcp_pairs(4, addresses) as pairs:
        connections = Connections(ConnectionBounds(ungreeted=3))
        for accepted, _ in pairs:
            connections.accepted(accepted.fileno(), 0)
        assert [is_over(dialled) for _, dialled in pairs] == [True, False, False, False]


def test_the_seat_of_a_holder_with_more_of_them_is_free_at_once() -> None:
    with tcp_pairs(4, ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2")) as pairs:
        connections = Connections(ConnectionBounds(greeted=3, idle_ns=5 * SECOND))
        first, second, third, other = (accepted.fileno() for accepted, _ in pairs)
        for one in (first, second, third, other):
            connections.accepted(one, 0)
            assert connections.seat_for(one, b"", 0) == SEAT_FREE
        for at, one in enumerate((first, second, third)):
            connections.greet(one, at)
        connections.heard(first, 10)
        assert connections.seat_for(other, b"", 10) == second, "the idlest of the address with the most"
        assert connections.seat_for(other, b"key", 10) == second, "a key holds by itself"
        connections.forget(second, 10)
        connections.greet(other, 10)
        assert connections.seat_for(second, b"", 10) == SEAT_NONE, "of its own address nobody is idle"
        assert connections.seat_for(second, b"", 5 * SECOND + 2) == third
        assert connections.seat_for(second, b"key", 5 * SECOND + 2) == third, (
            "the second has two, and a key none"
        )


@pytest.mark.parametrize("seed", range(20))
def test_whatever_connections_do_there_are_no_more_of_them_than_seats(seed: int) -> None:
    """Random connections come, say hello, send, leave and are cut, as the controller is told."""
    rng = random.Random(seed)
    bounds = ConnectionBounds(ungreeted=5, greeted=6, hello_ns=SECOND, idle_ns=SECOND // 5)
    with tcp_pairs(24, ("127.0.0.1", "127.0.0.1", "127.0.0.2")) as pairs:
        connections = Connections(bounds)
        fds = [accepted.fileno() for accepted, _ in pairs]
        here: dict[int, bool] = {}  # for each open connection, whether a peer is noted
        for now in range(0, 8 * SECOND, SECOND // 50):
            fd = rng.choice(fds)
            deed = rng.choice(["accept", "hello", "hello", "speak", "speak", "forget", "end", "cut", "look"])
            key = rng.choice([b"", b"one", b"other"])
            if deed == "accept" and fd not in here:
                connections.accepted(fd, now)
                here[fd] = False
            elif deed == "hello" and here.get(fd) is False and not connections.is_cut(fd):
                seat = connections.seat_for(fd, key, now)
                if seat >= 0:
                    connections.forget(seat, now)
                    here[seat] = False
                # The connection that gave way has no hello again, and may have replaced this one.
                if seat != SEAT_NONE and not connections.is_cut(fd):
                    connections.greet(fd, now, key)
                    here[fd] = True
            elif deed == "speak" and fd in here:
                connections.heard(fd, now)
            elif deed == "forget" and here.get(fd):
                connections.forget(fd, now)
                here[fd] = False
            elif deed == "cut" and fd in here:
                connections.cut(fd)
            elif deed == "end" and fd in here:
                assert connections.ended(fd)
                del here[fd]
            elif deed == "look":
                connections.look(now)
            found = connections.describe()
            assert found["open"] == len(here)
            assert found["ungreeted"] <= bounds.ungreeted
            noted = sum(is_noted and not connections.is_cut(fd) for fd, is_noted in here.items())
            assert found["greeted"] == noted <= bounds.greeted


def test_each_of_thousands_is_looked_at() -> None:
    count = 1_500  # more connections than one look examines
    with tcp_pairs(count) as pairs:
        connections = Connections(ConnectionBounds(received_bytes=KIB))
        for accepted, _ in pairs:
            connections.accepted(accepted.fileno(), 0)
            connections.greet(accepted.fileno())
        for accepted, dialled in (pairs[3], pairs[-3]):
            dialled.sendall(bytes(4 * KIB))
            accepted.recv(4 * KIB, socket.MSG_WAITALL)
        due = 0
        for _ in range(4):
            due = connections.look(due)
        assert due < SECOND
        assert [index for index, (_, dialled) in enumerate(pairs) if is_over(dialled)] == [3, count - 3]


def test_where_memory_is_short_who_sent_the_most_goes_first() -> None:
    with tcp_pairs(3) as pairs:
        connections = Connections(ConnectionBounds(memory_share=0.0))
        for (accepted, dialled), size in zip(pairs, (8, 32, 4), strict=True):
            connections.accepted(accepted.fileno(), 0)
            dialled.sendall(bytes(size * KIB))
            accepted.recv(size * KIB, socket.MSG_WAITALL)
        connections.look(1)
        assert [is_over(dialled) for _, dialled in pairs] == [False, True, False]
        assert connections.describe()["cut"] == {"memory": 1}


def test_all_together_may_send_little_before_their_hellos() -> None:
    with tcp_pairs(4) as pairs:
        connections = Connections(ConnectionBounds(hello_bytes_all=20 * KIB))
        for (accepted, dialled), size in zip(pairs, (8, 12, 10, 64), strict=True):
            connections.accepted(accepted.fileno(), 0)
            dialled.sendall(bytes(size * KIB))
            accepted.recv(size * KIB, socket.MSG_WAITALL)
        connections.greet(pairs[3][0].fileno())
        connections.look(1)
        assert [is_over(dialled) for _, dialled in pairs] == [False, True, False, False]
