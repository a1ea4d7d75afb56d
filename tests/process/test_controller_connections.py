"""The cost of a controller's connections is bounded: peers that vanish, that send without end, that read
nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bench import zmtp
from clockwork import config
from clockwork.config.controller import FETCHES_MAX, ConnectionBounds
from clockwork.config.wire import HEARTBEAT_MS
from clockwork.controller._exchange import CLIENTS, WORKERS
from clockwork.controller.process import Controller
from clockwork.formats.prepared import TensorSpec
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.clock import SECOND, now_ns
from clockwork.system.limits import raise_descriptor_limit
from clockwork.wire import codec, keys, messages, transport
from tests.patience import PATIENCE_NS, eventually
from tests.process.peers import FakeWorker, RawClient, on_loop, running_controller

MIB = 1 << 20

ROW = struct.pack("<2f", 1.5, -2.5)


@dataclasses.dataclass
class Place:
    """A controller, and the addresses and keys to reach it."""

    controller: Controller
    keys: keys.PeerKeys | None  # keys of an operator
    worker_keys: keys.PeerKeys | None

    def connections(self, side: int) -> dict[str, Any]:
        found: dict[str, Any] = on_loop(self.controller, lambda: self.controller._exchange.connections(side))
        return found

    def noted(self) -> tuple[int, int]:
        """(clients, workers)."""
        found: tuple[int, int] = on_loop(
            self.controller,
            lambda: (len(self.controller._links.clients), len(self.controller._links.workers)),
        )
        return found


@contextlib.contextmanager
def running(data: Path, kind: str = "tcp", curve: bool = False, **more: Any) -> Iterator[Place]:
    operator = worker = None
    if kind == "ipc":
        more |= {f"{side}_endpoint": f"ipc://{data}/{side}" for side in ("client", "worker", "events")}
    if curve:
        pairs = {role: transport.new_key_pair() for role in (keys.Role.OPERATOR, keys.Role.WORKER)}
        ours = transport.new_key_pair()
        keys.write_keys(data / "keys", ours, pairs)
        more["key"] = data / "keys" / keys.CONTROLLER_KEY_FILE
        operator, worker = (keys.PeerKeys(*pair, ours[0]) for pair in pairs.values())
    with running_controller(data / "data", **more) as controller:
        yield Place(controller, operator, worker)


@pytest.fixture(params=["tcp", "tcp+curve", "ipc", "ipc+curve"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind, _, curve = request.param.partition("+")
    with running(tmp_path, kind, bool(curve)) as one:
        yield one


def serve(place: Place, worker: FakeWorker, client: RawClient, width: int = 2) -> None:
    """Have the worker serve the model ``m``, which echoes [N, width] floats."""
    changes: dict[str, Any] = {
        "inputs": [TensorSpec("x", 1, ("N", width))],
        "outputs": [TensorSpec("y", 1, ("N", width))],
        "profile": [ProfilePoint(((width,),), batch, 1_000_000) for batch in (1, 2, 4, 8)],
        "example": [[1, width]],
    }
    with worker.preparing(**changes):
        assert type(client.register("m", b"model")) is messages.Reply


# ----- peers that are gone ------------------------------------------------------------------------


def hello_and_close(place: Place, side: int, count: int) -> None:
    """Open that many sockets, each of which sends hello and closes at once."""
    endpoint = place.controller.client_endpoint if side == CLIENTS else place.controller.worker_endpoint
    if place.keys is None:
        for number in range(count):
            one = zmtp.open_connection(endpoint)
            one.sendall(zmtp.client_hello() if side == CLIENTS else zmtp.worker_hello(number))
            one.close()
        return
    hello = messages.ClientHello(messages.PROTOCOL_VERSION, "test", "test")
    theirs = place.keys if side == CLIENTS else place.worker_keys
    assert theirs is not None
    with zmq.Context() as context:
        for _ in range(0, count, 50):
            sockets = [context.socket(zmq.DEALER) for _ in range(50)]
            for one in sockets:
                one.curve_publickey, one.curve_secretkey = (
                    theirs.public.encode(),
                    theirs.secret.encode(),
                )
                one.curve_serverkey = theirs.controller.encode()
                one.connect(endpoint)
                one.send(codec.encode(hello) if side == CLIENTS else zmtp.worker_hello_header(1))
            for one in sockets:
                one.poll(1000)  # the welcome: by then the controller has noted the connection, or is about to
                one.close(0)


@pytest.mark.parametrize("side", [CLIENTS, WORKERS])
def test_thousands_that_say_hello_and_close_leave_nobody_behind(place: Place, side: int) -> None:
    raise_descriptor_limit()
    # The race is rare: without the records of connections, 6 of 1,000 clients stayed for ever.
    count = 1_000 if place.keys is None else 250
    threads = [threading.Thread(target=hello_and_close, args=(place, side, count)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: place.connections(side)["open"] == 0, "the connections end")
    assert place.noted() == (0, 0)
    with (
        FakeWorker(place.controller, keys=place.worker_keys) as worker,
        RawClient(place.controller, keys=place.keys) as fresh,
    ):
        serve(place, worker, fresh)
        fresh.infer("m", 7, [1, 2], ROW)
        worker.serve_one()
        assert fresh.receive(messages.Answer)[0].request_id == 7


def test_a_peer_that_names_itself_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as place:
        for endpoint, hello, answers in (
            (place.controller.client_endpoint, zmtp.client_hello(), messages.TO_CLIENT),
            (place.controller.worker_endpoint, zmtp.worker_hello(1), messages.TO_WORKER),
        ):
            with zmtp.open_connection(endpoint, b"me") as one:
                one.sendall(hello)
                refusal = codec.decode(zmtp.read_message(one)[0], answers)
            assert type(refusal) is messages.Mismatch
            assert "must not name itself" in refusal.text
        assert place.noted() == (0, 0)


def test_a_client_that_says_goodbye_and_stays_counts_as_one_without_a_hello(tmp_path: Path) -> None:
    with (
        running(tmp_path, client_bounds=ConnectionBounds(ungreeted=8)) as place,
        contextlib.ExitStack() as stack,
    ):
        goodbye = zmtp.message([codec.encode(messages.Bye())])
        for _ in range(40):
            one = stack.enter_context(zmtp.open_connection(place.controller.client_endpoint))
            one.sendall(zmtp.client_hello() + goodbye)
        eventually(lambda: place.connections(CLIENTS)["open"] <= 8, "the oldest are ended")
        assert place.noted() == (0, 0)
        with RawClient(place.controller) as fresh:
            fresh.send(messages.Query(1, "status", ""))
            assert type(fresh.receive(messages.Reply)[0]) is messages.Reply


# ----- disconnecting one --------------------------------------------------------------------------


def test_one_peer_is_disconnected_and_the_others_stay(place: Place) -> None:
    controller = place.controller
    with (
        RawClient(controller, keys=place.keys) as first,
        RawClient(controller, keys=place.keys) as second,
        FakeWorker(controller, 1, keys=place.worker_keys) as worker,
        FakeWorker(controller, 2, keys=place.worker_keys) as other,
    ):
        client_fd = on_loop(controller, lambda: next(iter(controller._links.clients.values())).fd)
        worker_fd = on_loop(controller, lambda: next(iter(controller._links.workers.values())).fd)
        exchange = controller._exchange
        assert on_loop(controller, lambda: exchange.disconnect(CLIENTS, client_fd))
        assert on_loop(controller, lambda: exchange.disconnect(WORKERS, worker_fd))
        eventually(lambda: place.noted() == (1, 1), "both are noted no more")
        assert not on_loop(controller, lambda: exchange.disconnect(CLIENTS, 99_999))
        for gone in (first, worker):
            eventually(lambda: transport.ConnectionEvent.DOWN in gone.dealer.changes(), "it hears of it")  # noqa: B023
        serve(place, other, second)
        second.infer("m", 7, [1, 2], ROW)
        other.serve_one()
        assert second.receive(messages.Answer)[0].request_id == 7


# ----- what comes in ------------------------------------------------------------------------------


def sent_until_ended(one: socket.socket, limit_bytes: int) -> int:
    """Return the bytes of a message without an end that the other side accepted."""
    piece = zmtp.frame_head(MIB, zmtp.MORE) + bytes(MIB)
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while sent < limit_bytes:
            one.sendall(piece)
            sent += len(piece)
    return sent


def send_again(one: socket.socket, piece: bytes, count: int) -> None:
    for _ in range(count):
        one.sendall(piece)


LIMIT_BYTES = 1 << 30
"""The most bytes that a peer sends of a message without an end: unbounded, all of it would be in memory."""


@pytest.mark.parametrize("endpoint", ["client_endpoint", "worker_endpoint"])
def test_a_message_without_an_end_before_any_hello_ends_its_connection(tmp_path: Path, endpoint: str) -> None:
    with (
        running(tmp_path) as place,
        FakeWorker(place.controller) as worker,
        RawClient(place.controller) as client,
        zmtp.open_connection(getattr(place.controller, endpoint)) as one,
    ):
        serve(place, worker, client)
        assert sent_until_ended(one, LIMIT_BYTES) < LIMIT_BYTES
        side = CLIENTS if endpoint == "client_endpoint" else WORKERS
        assert place.connections(side)["cut"] == {"received": 1}
        client.infer("m", 7, [1, 2], ROW)
        worker.serve_one()
        assert client.receive(messages.Answer)[0].request_id == 7


def test_a_frame_as_large_as_may_be_ends_its_connection_before_any_hello(tmp_path: Path) -> None:
    with running(tmp_path) as place, zmtp.open_connection(place.controller.client_endpoint) as one:
        one.sendall(zmtp.frame_head(config.MESSAGE_BYTES_MAX))
        with pytest.raises(ConnectionError):
            send_again(one, bytes(MIB), config.MESSAGE_BYTES_MAX // MIB)
        assert place.connections(CLIENTS)["cut"] == {"received": 1}


def test_a_message_without_an_end_after_the_hello_ends_its_connection(tmp_path: Path) -> None:
    bounds = ConnectionBounds(received_bytes=64 * MIB)
    with (
        running(tmp_path, client_bounds=bounds) as place,
        zmtp.open_connection(place.controller.client_endpoint) as one,
    ):
        one.sendall(zmtp.client_hello())
        eventually(lambda: place.noted() == (1, 0), "it is noted")
        assert sent_until_ended(one, LIMIT_BYTES) < LIMIT_BYTES
        eventually(lambda: place.noted() == (0, 0), "it is gone")
        assert place.connections(CLIENTS)["cut"] == {"received": 1}


def test_of_many_that_send_too_much_together_the_largest_goes(tmp_path: Path) -> None:
    bounds = ConnectionBounds(received_bytes_all=32 * MIB)
    with running(tmp_path, client_bounds=bounds) as place, contextlib.ExitStack() as stack:
        client = stack.enter_context(RawClient(place.controller))
        raw = []
        for _ in range(4):
            raw.append(stack.enter_context(zmtp.open_connection(place.controller.client_endpoint)))
            raw[-1].sendall(zmtp.client_hello())
        eventually(lambda: place.noted() == (5, 0), "they are noted")
        for one, size in zip(raw, (4, 24, 6, 8), strict=True):
            # the last byte of the frame never comes
            one.sendall(zmtp.frame_head(size * MIB + 1) + bytes(size * MIB))
        eventually(lambda: place.noted() == (4, 0), "one is gone")
        assert place.connections(CLIENTS)["cut"] == {"received_all": 1}
        eventually(lambda: zmtp.is_shut(raw[1]), "it hears of it")
        assert [zmtp.is_shut(one) for one in raw] == [False, True, False, False]
        client.send(messages.Query(1, "status", ""))
        client.receive(messages.Reply)


# ----- what goes out ------------------------------------------------------------------------------


@contextlib.contextmanager
def working(worker: FakeWorker) -> Iterator[None]:
    """Have the worker do its actions while the block runs."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            frames = worker.dealer.receive()
            if frames is None:
                worker.wait(SECOND // 100)
                continue
            order = codec.decode(frames[0], messages.TO_WORKER)
            if type(order) is messages.Ping:
                worker.pong(order)
            elif type(order) in (messages.Load, messages.Unload, messages.Infer):
                worker.answer(order, [bytes(frame) for frame in frames[1:]])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


WIDTH = 100_000
"""Number of float32 values of a request, and of its answer: 400 KB."""


def large_request(number: int) -> bytes:
    request = messages.InferRequest(number, "m", 0, 0, [["x", 1, [1, WIDTH], 0]])
    return zmtp.message([codec.encode(request), bytes(4 * WIDTH)])


def test_a_client_that_reads_no_answers_is_ended_and_the_others_get_theirs(tmp_path: Path) -> None:
    bounds = ConnectionBounds(unread_bytes=2 * MIB, unread_ns=SECOND)
    with (
        running(tmp_path, client_bounds=bounds) as place,
        FakeWorker(place.controller) as worker,
        RawClient(place.controller) as client,
        zmtp.deaf(place.controller.client_endpoint) as one,
    ):
        serve(place, worker, client, WIDTH)
        one.sendall(zmtp.client_hello())
        with working(worker):
            number = 0
            deadline = now_ns() + PATIENCE_NS
            while not zmtp.is_shut(one):
                number += 1
                assert now_ns() < deadline, "it may stay"
                with contextlib.suppress(ConnectionError):
                    one.sendall(large_request(number))
                client.infer("m", number, [1, WIDTH], bytes(4 * WIDTH))
                assert client.receive(messages.Answer)[0].request_id == number
                assert place.connections(CLIENTS)["unread_bytes"] < 3 * MIB
        found = place.connections(CLIENTS)
        assert found["cut"] == {"unread": 1}, found
        eventually(
            lambda: place.connections(CLIENTS)["unread_bytes"] == 0, "what was queued for it is let go of"
        )
        eventually(lambda: place.noted() == (1, 1), "it is gone")


def test_a_client_that_asks_for_more_than_it_reads_is_refused_some_and_stays(tmp_path: Path) -> None:
    bounds = ConnectionBounds(unread_bytes=2 * MIB, unread_ns=3_600 * SECOND)
    count = 40  # 16 MB, over a unix socket: over TCP the kernel ends a connection that reads nothing for 3 s
    with (
        running(tmp_path, "ipc", client_bounds=bounds) as place,
        FakeWorker(place.controller) as worker,
        RawClient(place.controller) as client,
        zmtp.open_connection(place.controller.client_endpoint) as one,
    ):
        serve(place, worker, client, WIDTH)
        one.sendall(zmtp.client_hello())
        assert codec.decode(zmtp.read_message(one)[0], messages.TO_CLIENT).protocol
        with working(worker):
            for number in range(1, count + 1):
                one.sendall(large_request(number))
            eventually(lambda: on_loop(place.controller, lambda: sum(place.controller._exchange.outcomes())) >= count, "all are answered")  # fmt: skip
            assert place.connections(CLIENTS)["unread_bytes"] < 3 * MIB
            found = [codec.decode(zmtp.read_message(one)[0], messages.TO_CLIENT) for _ in range(count)]
            refused = [message for message in found if type(message) is messages.Failure]
            assert {message.request_id for message in found} == set(range(1, count + 1))
            assert 0 < len(refused) < count
            assert {(one.status, one.details["reason"]) for one in refused} == {
                (messages.Status.REFUSED, messages.Reason.OVERLOADED)
            }
            assert "an answer of 400000 bytes cannot wait" in refused[0].text
            # The controller has read those, and may let as much more wait.
            one.sendall(large_request(count + 1))
            assert type(codec.decode(zmtp.read_message(one)[0], messages.TO_CLIENT)) is messages.Answer
        assert place.connections(CLIENTS)["cut"] == {}


@pytest.mark.parametrize("greeted", [True, False])
def test_a_client_that_reads_no_errors_is_ended(tmp_path: Path, greeted: bool) -> None:
    # The controller's unsent bytes are not bounded here: on a busy machine it may be further behind with
    # reading.
    bounds = ConnectionBounds(unread_bytes=MIB // 4, hello_bytes=1 << 30, hello_bytes_all=1 << 30)
    with running(tmp_path, client_bounds=bounds) as place, zmtp.deaf(place.controller.client_endpoint) as one:
        if greeted:
            one.sendall(zmtp.client_hello())
        query = zmtp.message([codec.encode(messages.Query(1, "nothing", ""))]) * 1_000
        with pytest.raises(ConnectionError):
            send_again(one, query, 1_000)
        assert place.connections(CLIENTS)["cut"] == {"unread": 1}
        eventually(
            lambda: place.connections(CLIENTS)["unread_bytes"] == 0, "what was queued for it is let go of"
        )


def test_a_worker_that_reads_no_chunks_is_ended(tmp_path: Path) -> None:
    content = bytes(config.CHUNK_BYTES)
    bounds = ConnectionBounds(unread_bytes=8 * MIB)
    with (
        running(tmp_path, worker_bounds=bounds) as place,
        FakeWorker(place.controller) as worker,
        RawClient(place.controller) as client,
        zmtp.deaf(place.controller.worker_endpoint) as one,
    ):
        with worker.preparing():
            client.register("m", content)
        digest = on_loop(
            place.controller, lambda: next(iter(place.controller._table.by_id.values())).record.digest
        )
        one.sendall(zmtp.worker_hello(9))
        fetch = zmtp.message([codec.encode(messages.Fetch(digest, 0, 0, config.CHUNK_BYTES))])
        for _ in range(200):
            with contextlib.suppress(ConnectionError):
                one.sendall(fetch)
        eventually(lambda: place.noted() == (1, 1), "it is gone")
        eventually(
            lambda: place.connections(WORKERS)["unread_bytes"] < MIB, "what was queued for it is let go of"
        )
        client.infer("m", 7, [1, 2], ROW)
        worker.serve_one()
        assert client.receive(messages.Answer)[0].request_id == 7


def test_a_worker_that_asks_for_more_chunks_than_it_may_is_let_go(tmp_path: Path) -> None:
    with (
        running(tmp_path) as place,
        FakeWorker(place.controller) as worker,
        RawClient(place.controller) as client,
    ):
        busy, done = threading.Event(), threading.Event()
        with worker.preparing():
            client.register("m", b"model")
        digest = on_loop(
            place.controller, lambda: next(iter(place.controller._table.by_id.values())).record.digest
        )
        place.controller._storage.submit(lambda: (busy.set(), done.wait()), lambda *_: None)
        busy.wait()
        try:
            for _ in range(FETCHES_MAX):
                worker.send(messages.Fetch(digest, 0, 0, 5))
            client.send(messages.Query(1, "status", ""))
            client.receive(messages.Reply)
            assert place.controller._links.workers, "so many it may ask for"
            deadline = now_ns() + PATIENCE_NS
            while place.controller._links.workers:
                assert now_ns() < deadline, "it may ask without end"
                # so that the worker is not given up for its silence
                worker.send(messages.Fetch(digest, 0, 0, 5))
                client.send(messages.Query(2, "status", ""))
                client.receive(messages.Reply)
        finally:
            done.set()


def test_of_many_that_read_nothing_the_largest_goes(tmp_path: Path) -> None:
    bounds = ConnectionBounds(unread_bytes_all=MIB)
    with running(tmp_path, client_bounds=bounds) as place, contextlib.ExitStack() as stack:
        raw = [stack.enter_context(zmtp.deaf(place.controller.client_endpoint)) for _ in range(8)]
        query = zmtp.message([codec.encode(messages.Query(1, "status", ""))]) * 100
        for one in raw:
            one.sendall(zmtp.client_hello())
        deadline = now_ns() + PATIENCE_NS
        while not place.connections(CLIENTS)["cut"]:
            assert now_ns() < deadline
            for one in raw:
                with contextlib.suppress(ConnectionError):
                    one.sendall(query)
        assert place.connections(CLIENTS)["cut"].keys() == {"unread_all"}
        with RawClient(place.controller) as fresh:
            fresh.send(messages.Query(1, "status", ""))
            fresh.receive(messages.Reply)


def test_a_reader_as_slow_as_it_likes_gets_everything(tmp_path: Path) -> None:
    """Written bytes no longer count: far more than the bound passes through in time."""
    bounds = ConnectionBounds(unread_bytes=MIB)
    with running(tmp_path, client_bounds=bounds) as place, RawClient(place.controller) as client:
        for number in range(4_000):
            client.send(messages.Query(number, "status", ""))
            assert client.receive(messages.Reply)[0].request_id == number
        assert place.connections(CLIENTS)["cut"] == {}
        assert place.connections(CLIENTS)["unread_bytes"] <= 16 << 10


def test_a_flood_that_breaks_off_while_it_is_not_read_ends_nothing(tmp_path: Path) -> None:
    """libzmq stops reading a connection at RCVHWM; with heartbeats of its own it did not survive that
    connection's end."""
    flood = zmtp.message([codec.encode(messages.Query(1, "nothing", ""))]) * 1_000
    with running(tmp_path) as place, RawClient(place.controller) as client:
        one = zmtp.open_connection(place.controller.client_endpoint)
        one.sendall(zmtp.client_hello())
        eventually(lambda: place.noted() == (2, 0), "it is noted")
        busy, done = threading.Event(), threading.Event()
        place.controller._storage.submit(lambda: None, lambda *_: (busy.set(), done.wait()))
        busy.wait()
        one.settimeout(0.5)
        with pytest.raises(TimeoutError):
            send_again(one, flood, 1_000)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()  # closing ends the connection at once, with a reset
        done.wait(2 * HEARTBEAT_MS / 1_000)
        done.set()
        client.send(messages.Query(1, "status", ""))
        client.receive(messages.Reply)
        eventually(lambda: place.noted() == (1, 0), "it is gone")


@contextlib.contextmanager
def held(controller: Controller) -> Iterator[None]:
    """Block the controller's loop; arriving messages wait for it."""
    begun, end = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        end.wait(PATIENCE_NS / SECOND)

    controller._storage.submit(lambda: None, hold)
    assert begun.wait(PATIENCE_NS / SECOND)
    try:
        yield
    finally:
        end.set()


def test_what_a_worker_says_last_counts_though_its_end_is_known_as_well(tmp_path: Path) -> None:
    """A worker that is done, or crashes, sends a message and closes: both may wait for the loop at once."""
    with running(tmp_path) as place, RawClient(place.controller) as client:
        worker = FakeWorker(place.controller)
        serve(place, worker, client)
        client.infer("m", 2, [1, 2], ROW)
        action, frames = worker.next_action()
        while type(action) is not messages.Infer:
            worker.answer(action, frames)
            action, frames = worker.next_action()
        (link,) = on_loop(place.controller, lambda: list(place.controller._links.workers.values()))
        path = f"/proc/self/fd/{link.fd}"
        connection = os.readlink(path)
        with held(place.controller):
            worker.answer(action, frames)
            worker.close()
            eventually(
                lambda: not os.path.lexists(path) or os.readlink(path) != connection, "the end is noticed"
            )
        answer, content = client.receive(messages.Answer)
        assert (answer.request_id, content) == (2, [ROW])
        eventually(lambda: place.noted() == (1, 0), "the worker is gone")
