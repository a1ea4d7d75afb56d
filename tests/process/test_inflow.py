"""Bounds on the memory that peers can make a process hold: a controller its clients and workers, a subscriber
the controller.

Each message of the floods here has no end, so that no reader is ever told of it: libzmq would receive it
whole.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import zmtp
from clockwork import Client, ConnectionLost, config
from clockwork.config.wire import EVENTS_TOPIC_BYTES_MAX, HEARTBEAT_MS
from clockwork.system.clock import SECOND
from clockwork.system.limits import resident_bytes
from clockwork.wire import codec
from clockwork.wire.messages import PROTOCOL_VERSION, ClientHello, WorkerWelcome
from clockwork.wire.transport import ConnectionEvent, Publisher, Transport
from tests.patience import PATIENCE_S, eventually
from tests.process.endless import Endless, after_a_request, welcome
from tests.process.fake_controller import FakeController
from tests.process.fake_scheduler_side import running_worker

X = np.array([[1.5, -2.0]], np.float32)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> int:
    bytes_max = 32 << 20
    monkeypatch.setattr("clockwork.wire.transport.RECEIVED_BYTES_MAX", bytes_max)
    return bytes_max


HOW: dict[str, Callable[[Client], Any]] = {
    "blocking": lambda client: client.infer("m", X, timeout=PATIENCE_S),
    "future": lambda client: client.submit("m", X, timeout=PATIENCE_S).result(PATIENCE_S),
}


@pytest.mark.parametrize("how", HOW)
def test_a_message_without_an_end_ends_its_connection(how: str, bound: int) -> None:
    with (
        contextlib.closing(Endless(after_a_request)) as controller,
        Client(controller.endpoint, ask_again=False) as client,
    ):
        with pytest.raises(ConnectionLost, match="was lost"):
            HOW[how](client)
        controller.wait_for_end()
        assert controller.sent[0] >= bound


def test_a_client_that_nobody_uses_takes_no_more_than_its_bound(bound: int) -> None:
    with contextlib.closing(Endless(welcome)) as controller, Client(controller.endpoint):
        controller.wait_for_end()
        assert controller.sent[0] >= bound


@pytest.mark.parametrize("flags", [zmtp.MORE, 0], ids=["frames", "messages"])
def test_small_frames_are_bounded_by_the_memory_that_they_take(flags: int, bound: int) -> None:
    """Three bytes on the wire are 64 in memory: the process's growth ends the connection, long before the
    bytes do."""
    data = (zmtp.frame_head(1, flags) + b"x") * 100_000
    transport = Transport()
    try:
        with contextlib.closing(Endless(lambda one: None, data)) as controller:
            dealer = transport.dealer(controller.endpoint)
            before = resident_bytes()
            begun = time.monotonic()
            while not dealer.look():  # received messages are not read
                dealer.changes()
                assert time.monotonic() - begun < PATIENCE_S
            assert resident_bytes() - before < 1 << 30
            controller.wait_for_end()
            assert controller.sent[0] < 8 * bound
    finally:
        transport.close()


def test_messages_that_are_kept_end_no_connection(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway keeps answers that its callers do not read; meanwhile the next answer is always half
    there."""
    monkeypatch.setattr("clockwork.wire.transport.INFLOW_LOOK_NS", 0)
    data = zmtp.message([bytes(bound // 4)])
    half = len(data) // 2
    transport, kept = Transport(), []
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dealer = transport.dealer(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
            one, _ = listener.accept()
            with one:
                zmtp.shake_hands(one)
                eventually(lambda: dealer.changes() and dealer.is_up, "it counts from its first byte on")
                one.sendall(data[:half])
                for _ in range(16):
                    one.sendall(data[half:] + data[:half])
                    begun = time.monotonic()
                    while (frames := dealer.receive()) is None:
                        assert time.monotonic() - begun < PATIENCE_S
                        dealer.changes()
                    kept.append(frames)
                    assert dealer.receive() is None
                    assert not dealer.look()
            assert sum(len(frames[0]) for frames in kept) == 4 * bound
    finally:
        transport.close()


def reset(one: socket.socket) -> None:
    """End a connection at once, with bytes on their way."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def fill(one: socket.socket, data: bytes) -> None:
    """Send until nothing is accepted any more, or enough for any bound in messages."""
    one.settimeout(0.5)
    with contextlib.suppress(OSError):
        for _ in range(200):
            one.sendall(data)


def test_a_connection_that_breaks_off_while_it_is_not_read_ends_no_process() -> None:
    """libzmq's heartbeats abort where it had stopped to read: a controller's flood would end clients and
    workers."""
    transport = Transport()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dealer = transport.dealer(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
            one, _ = listener.accept()
            zmtp.shake_hands(one)
            fill(one, zmtp.message([b"x"]) * 10_000)
            reset(one)
            listener.settimeout(PATIENCE_S)
            again, _ = listener.accept()  # the I/O thread does so, if it lives
            again.close()
            pause(2 * HEARTBEAT_MS / 1_000)
            assert ConnectionEvent.DOWN in dealer.changes()
    finally:
        transport.close()


def test_a_subscriber_that_breaks_off_ends_no_controller(publisher: Publisher) -> None:
    greedy = subscriber(publisher)
    fill(greedy, zmtp.message([b"\x01x"]) * 10_000)
    reset(greedy)
    pause(2 * HEARTBEAT_MS / 1_000)
    with subscriber(publisher) as honest:
        check_hears(publisher, honest)


def pause(seconds: float) -> None:
    """libzmq's timers come due meanwhile, unseen by the reader."""
    threading.Event().wait(seconds)


def test_what_is_taken_does_not_count(bound: int) -> None:
    """More than the bound passes, in messages that the client reads."""
    x = np.zeros((1, bound // 16), np.float32)
    with FakeController() as controller, Client(controller.endpoint) as client:
        begun = time.monotonic()
        for _ in range(8):
            assert client.infer("m", x, timeout=PATIENCE_S).shape == x.shape
        while time.monotonic() - begun < 3 * config.INFLOW_LOOK_NS / SECOND:  # checked while idle as well
            client.infer("m", X, timeout=PATIENCE_S)
        assert len(controller.of(ClientHello)) == 1


@pytest.mark.slow
def test_a_worker_ends_a_connection_that_brings_more_than_it_takes(tmp_path: Path) -> None:
    """At the real bound, in a process of its own; then the peer sends hello again."""
    hellos = 0

    def once(one: socket.socket) -> None:
        nonlocal hellos
        zmtp.read_message(one)
        hellos += 1
        assert hellos == 1
        one.sendall(zmtp.message([codec.encode(WorkerWelcome(PROTOCOL_VERSION, "endless", 1, 7))]))
        one.settimeout(None)

    with (
        contextlib.closing(Endless(once)) as controller,
        running_worker(controller.endpoint, tmp_path / "store") as worker,
    ):
        controller.wait_for_end(2)
        assert hellos >= 2
        assert controller.sent[0] >= config.RECEIVED_BYTES_MAX
        assert worker.process.poll() is None
        assert "sent more than this worker could take in" in worker.log_text()


# ----- the publisher of events --------------------------------------------------------------------


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    transport = Transport()
    try:
        yield transport.publisher("tcp://127.0.0.1:0")
    finally:
        transport.close()


def subscriber(publisher: Publisher, topic: bytes = b"") -> socket.socket:
    one = zmtp.shake_hands(zmtp.dial(publisher.endpoint), kind=b"SUB")
    one.sendall(zmtp.message([b"\x01" + topic]))
    return one


def check_hears(publisher: Publisher, one: socket.socket) -> None:
    """A subscriber gets the messages published from now on; a subscription is in force a moment after it was
    sent."""
    one.settimeout(0.05)
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE_S:
        publisher.send(b"topic", b"body")
        with contextlib.suppress(TimeoutError):
            assert one.recv(1 << 10)
            return
    raise AssertionError("nothing comes")


def has_ended(one: socket.socket) -> bool:
    one.settimeout(0.05)
    try:
        while piece := one.recv(1 << 16):
            del piece
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_a_subscriber_that_says_too_much_is_ended_and_others_are_not(publisher: Publisher) -> None:
    with subscriber(publisher) as honest, subscriber(publisher) as greedy:
        check_hears(publisher, honest)
        assert publisher.look() == 0
        with contextlib.suppress(OSError):
            for number in range(1_000):
                greedy.sendall(zmtp.message([b"\x01" + b"%0200d" % number]))
        begun = time.monotonic()
        while publisher.look() == 0:
            assert time.monotonic() - begun < PATIENCE_S
        assert has_ended(greedy)
        check_hears(publisher, honest)


def test_a_topic_has_a_size(publisher: Publisher) -> None:
    with subscriber(publisher) as honest, subscriber(publisher) as greedy:
        with contextlib.suppress(OSError):
            greedy.sendall(zmtp.message([b"\x01" + bytes(EVENTS_TOPIC_BYTES_MAX)]))
        begun = time.monotonic()
        while not has_ended(greedy):
            assert time.monotonic() - begun < PATIENCE_S
        check_hears(publisher, honest)


@pytest.fixture
def small() -> Iterator[Publisher]:
    """A controller with room for three subscribers, and for one connection that has not subscribed yet."""
    transport = Transport()
    try:
        yield transport.publisher("tcp://127.0.0.1:0", subscribers_max=4)
    finally:
        transport.close()


def check_ends(publisher: Publisher, one: socket.socket) -> None:
    begun = time.monotonic()
    while not has_ended(one):
        publisher.look()
        assert time.monotonic() - begun < PATIENCE_S


def subscribers(stack: contextlib.ExitStack, publisher: Publisher) -> list[socket.socket]:
    """Three subscribers, one after the other: until each has subscribed, it has the only seat for that."""
    found = []
    for _ in range(3):
        found.append(stack.enter_context(subscriber(publisher)))
        check_hears(publisher, found[-1])
    return found


def test_subscribers_have_a_number(small: Publisher) -> None:
    with contextlib.ExitStack() as stack:
        honest = subscribers(stack, small)
        check_ends(small, stack.enter_context(subscriber(small)))
        for one in honest:
            check_hears(small, one)


def test_an_address_with_many_subscribers_gives_way_to_another_address(small: Publisher) -> None:
    host, _, port = small.endpoint.removeprefix("tcp://").rpartition(":")
    with contextlib.ExitStack() as stack:
        many = subscribers(stack, small)
        dialled = socket.create_connection((host, int(port)), None, ("127.0.0.2", 0))
        other = stack.enter_context(zmtp.shake_hands(dialled, kind=b"SUB"))
        other.sendall(zmtp.message([b"\x01"]))
        check_hears(small, other)
        check_ends(small, many[0])


def test_connections_without_a_subscription_give_way_to_one_another(small: Publisher) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(zmtp.dial(small.endpoint)) for _ in range(20)]
        for one in silent[:-1]:
            check_ends(small, one)
        check_hears(small, stack.enter_context(subscriber(small)))


def test_a_connection_without_a_subscription_has_seconds(
    monkeypatch: pytest.MonkeyPatch, publisher: Publisher
) -> None:
    monkeypatch.setattr("clockwork.wire.transport.HELLO_NS", SECOND // 5)
    with subscriber(publisher) as honest, contextlib.ExitStack() as stack:
        check_hears(publisher, honest)
        check_ends(publisher, stack.enter_context(zmtp.dial(publisher.endpoint)))
        check_ends(
            publisher, stack.enter_context(zmtp.shake_hands(zmtp.dial(publisher.endpoint), kind=b"SUB"))
        )
        check_hears(publisher, honest)


def test_a_subscriber_that_does_not_read_holds_a_few_events(publisher: Publisher) -> None:
    with subscriber(publisher) as lazy:
        check_hears(publisher, lazy)
        before = resident_bytes()
        for _ in range(20_000):
            publisher.send(b"topic", bytes(8 << 10))
        assert resident_bytes() - before < 64 << 20, "160 MB were published"
        check_hears(publisher, lazy)
