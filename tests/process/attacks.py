"""Attacks of strangers on a cluster, each kind as a loop that goes on until it is told to stop.

Every attack draws from a random.Random of its own, made of the seed and its name; timing is not part of the
seed.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import zmq

from clockwork.wire import codec, messages
from clockwork.wire.messages import PROTOCOL_VERSION
from clockwork.wire.transport import ConnectionEvent, Poller, Transport
from tests.fuzz import mutate
from tests.patience import PATIENCE_S

SOON_NS = 20_000_000
TURNS = 40
"""Messages of one connection before the attack dials anew."""

MESSAGE_BYTES = 8 << 20
HALF_OPEN_MAX = 40
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)


class Doors(NamedTuple):
    """The addresses at which a cluster can be reached."""

    clients: str  # endpoints of ZeroMQ sockets
    workers: str
    events: str
    http: int  # ports of the gateway
    grpc: int
    metrics: int

    def ports(self) -> list[int]:
        ours = [int(one.rpartition(":")[2]) for one in (self.clients, self.workers, self.events)]
        return [*ours, self.http, self.grpc, self.metrics]


class Stop(threading.Event):
    """Set when the attack is over.

    The messages sent are counted, so that an attack that reaches nothing is noticed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thrown = 0


Attack = Callable[[Doors, random.Random, Stop], None]


def hang_up(transport: Transport) -> None:
    """End the connections at once, regardless of unsent messages.

    A dialled socket of libzmq 4.3.5 can abort its process by its heartbeats ("Assertion failed: !_io_error"):
    it closes with messages to send, while others come and its peer ends it.
    """
    for one in transport._sockets:
        one._socket.set(zmq.LINGER, 0)
    transport.close()


def _dialled(
    endpoint: str, hello: Any, rng: random.Random, stop: Stop, make: Callable[[], list[Any]]
) -> None:
    """Connections of Clockwork's own protocol: hello (if any), then the messages of make(), with answers read
    now and then."""
    while not stop.is_set():
        transport = Transport()
        try:
            dealer = transport.dealer(endpoint)
            poller = Poller([dealer])
            for _ in range(TURNS):
                if stop.is_set():
                    return
                for change in dealer.changes():
                    if change is ConnectionEvent.UP and hello is not None:
                        dealer.send(codec.encode(hello))
                header, *frames = make()
                stop.thrown += dealer.send(header, frames)
                poller.wait(SOON_NS)
                for _ in range(rng.randrange(4)):
                    dealer.receive()
        finally:
            hang_up(transport)


def _odd_message(rng: random.Random, good: list[Any]) -> list[Any]:
    """A message that is almost valid, with a few frames behind it."""
    while True:
        message = rng.choice(good)
        header = codec.encode(message)
        if rng.random() < 0.4:
            header = mutate.odd_bytes(header, rng)
        else:
            value: Any = [codec.TAG_OF[type(message)], *message]
            for _ in range(rng.randint(1, 3)):
                value = mutate.odd_within(value, rng)
            try:
                header = mutate.packed(value)
            except (ValueError, OverflowError, TypeError, RecursionError):
                continue  # a message that cannot be encoded cannot be sent
        return [header, *(rng.randbytes(rng.choice([0, 4, 256, 4096])) for _ in range(rng.randrange(3)))]


def wild_clients(doors: Doors, rng: random.Random, stop: Stop) -> None:
    hello = messages.ClientHello(PROTOCOL_VERSION, "0", "wild")
    good = [one for one in mutate.every_message() if type(one) in messages.FROM_CLIENT.values()]
    # A client has the right to remove a model or its traffic, so that would be no defect.
    harmless = [one for one in good if type(one) not in (messages.Unregister, messages.Offer, messages.Route)]
    requests = [
        messages.InferRequest(number, "digits", 0, 0, [["", 1, [1, 1, 8, 8], 0]])
        for number in (1, 2, 1 << 40)
    ]
    _dialled(doors.clients, hello, rng, stop, lambda: _odd_message(rng, harmless + requests))


def strangers(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """No hello, and large messages."""

    def make() -> list[Any]:
        if rng.random() < 0.1:
            return [bytes(rng.choice([MESSAGE_BYTES, 16, 5 << 20])), bytes(rng.choice([0, MESSAGE_BYTES]))]
        return _odd_message(rng, mutate.every_message())

    _dialled(rng.choice([doors.clients, doors.workers]), None, rng, stop, make)


def wild_workers(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """Workers with an unusual hello, and arbitrary messages after it."""
    device = {"kind": "wild", "page_bytes": 1 << 20, "page_count": 4, "run_ahead": 2}
    hello = messages.WorkerHello(PROTOCOL_VERSION, "0", "wild", 1, [device])
    good = [one for one in mutate.every_message() if type(one) in messages.FROM_WORKER.values()]
    _dialled(doors.workers, None, rng, stop, lambda: _odd_message(rng, [*good, hello, hello, hello]))


def hellos(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """A flood of complaints, from one connection after the other."""
    hello = codec.encode(messages.ClientHello(PROTOCOL_VERSION, "0", "again"))
    _dialled(doors.clients, None, rng, stop, lambda: [hello])


def ghosts(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """A hello and an end, as fast as possible."""
    hello = codec.encode(messages.ClientHello(PROTOCOL_VERSION, "0", "ghost"))
    context = zmq.Context()
    try:
        while not stop.is_set():
            one = context.socket(zmq.DEALER)
            one.setsockopt(zmq.LINGER, 50)
            one.connect(doors.clients)
            one.send(hello)
            one.close()
            stop.thrown += 1
            stop.wait(0.002)
    finally:
        context.destroy(linger=0)


def silent_readers(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """Valid requests whose answers nobody reads."""
    hello = messages.ClientHello(PROTOCOL_VERSION, "0", "silent")
    number = 0
    while not stop.is_set():
        transport = Transport()
        try:
            dealer = transport.dealer(doors.clients)
            poller = Poller([dealer])
            for _ in range(TURNS * 20):
                if stop.is_set():
                    return
                for change in dealer.changes():
                    if change is ConnectionEvent.UP:
                        dealer.send(codec.encode(hello))
                number += 1
                header = codec.encode(
                    messages.InferRequest(number, "digits", 0, 9, [["", 1, [1, 1, 8, 8], 0]])
                )
                stop.thrown += dealer.send(header, [bytes(256)])
                if number % 8 == 0:
                    poller.wait(SOON_NS // 4)
        finally:
            hang_up(transport)


def half_open(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """Connections to every port that send half of something and then nothing."""
    beginnings = [
        b"",
        GREETING[:10],
        GREETING,
        b"GET /v2 HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"POST / HTTP/1.1\r\nContent-",
    ]
    held: list[socket.socket] = []
    try:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                one = socket.create_connection(("127.0.0.1", rng.choice(doors.ports())), timeout=PATIENCE_S)
                held.append(one)
                one.sendall(rng.choice(beginnings))
                stop.thrown += 1
            while len(held) > HALF_OPEN_MAX:
                held.pop(rng.randrange(len(held))).close()
            stop.wait(0.02)
    finally:
        for one in held:
            one.close()


def noise(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """Bytes that mean nothing to any port, or something to another port."""
    beginnings = [
        b"", GREETING, GREETING + b"\x04\x19\x05READY", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        GREETING + b"\x02" + struct.pack(">Q", 1 << 62),
    ]  # fmt: skip
    while not stop.is_set():
        address = ("127.0.0.1", rng.choice(doors.ports()))
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=PATIENCE_S) as one:
            one.sendall(rng.choice(beginnings) + rng.randbytes(rng.choice([0, 9, 100, 5000])))
            stop.thrown += 1
            if rng.random() < 0.3:
                # closing ends the connection with a reset
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stop.wait(0.005)


def wild_http(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """Bodies that are almost valid, compressed and not, at paths that are almost right."""
    paths = [
        "/v2/models/digits/infer", "/v2/models/digits/versions/1/infer", "/v2/models/" + "x" * 3000, "/v2/models/%00/infer",
        "/v2/models/../../etc/infer", "/v2/repository/index", "/v2", "/v2/models/digits/versions/99999999999999999999/infer",
    ]  # fmt: skip
    while not stop.is_set():
        value: Any = mutate.HTTP
        for _ in range(rng.randint(1, 3)):
            value = mutate.odd_within(value, rng)
        try:
            body = json.dumps(value, default=str).encode()
        except (ValueError, RecursionError, TypeError):
            continue
        headers = {"Content-Type": "application/json"}
        match rng.randrange(6):
            case 0:
                headers["Inference-Header-Content-Length"] = rng.choice(
                    ["0", "-1", "9" * 30, "x", str(len(body) // 2)]
                )
            case 1:
                body, headers["Content-Encoding"] = gzip.compress(bytes(4 << 20) + body), "gzip"
            case 2:
                headers["Content-Encoding"] = rng.choice(["gzip", "deflate", "br", "x"])
            case 3:
                body = mutate.odd_bytes(body, rng)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", doors.http, timeout=PATIENCE_S)
            connection.request(rng.choice(["POST", "POST", "GET", "PUT"]), rng.choice(paths), body, headers)
            stop.thrown += 1
            assert connection.getresponse().status < 600
            connection.close()
        stop.wait(0.005)


def wild_grpc(doors: Doors, rng: random.Random, stop: Stop) -> None:
    """Calls whose messages are invalid."""
    import grpc

    methods = [
        f"/inference.GRPCInferenceService/{name}"
        for name in ("ModelInfer", "ModelMetadata", "ServerLive", "Nothing")
    ]
    with grpc.insecure_channel(f"127.0.0.1:{doors.grpc}") as channel:
        while not stop.is_set():
            call = channel.unary_unary(rng.choice(methods))
            body = mutate.odd_bytes(b"\x0a\x06digits\x1a\x011\x2a\x10" + rng.randbytes(40), rng)
            with contextlib.suppress(grpc.RpcError):
                call(body * rng.choice([1, 1, 1000]), timeout=PATIENCE_S)
            stop.thrown += 1
            stop.wait(0.005)


ATTACKS: dict[str, Attack] = {
    one.__name__: one
    for one in (
        wild_clients, strangers, wild_workers, hellos, ghosts, silent_readers, half_open, noise, wild_http, wild_grpc,
    )
}  # fmt: skip
