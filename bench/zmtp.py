"""A peer that speaks ZMTP 3.0 over a plain socket, to send any message as fast as possible."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

from clockwork.wire import codec, messages

MORE, LONG, COMMAND = 1, 2, 4


def greeting() -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)


def ready(identity: bytes = b"", kind: bytes = b"DEALER") -> bytes:
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4) + kind
    body += b"\x08Identity" + len(identity).to_bytes(4) + identity
    return frame_head(len(body), COMMAND) + body


def frame_head(size: int, flags: int = 0) -> bytes:
    """The header of a frame of this size."""
    if size < 256:
        return bytes([flags, size])
    return bytes([flags | LONG]) + size.to_bytes(8)


def message(frames: Sequence[bytes]) -> bytes:
    return b"".join(
        frame_head(len(frame), MORE if index + 1 < len(frames) else 0) + frame
        for index, frame in enumerate(frames)
    )


def client_hello() -> bytes:
    return message([codec.encode(messages.ClientHello(messages.PROTOCOL_VERSION, "test", "raw"))])


def worker_hello_header(epoch: int) -> bytes:
    device = {
        "kind": "cpu", "name": "fake", "fingerprint": "test", "page_bytes": 4096, "page_count": 4, "run_ahead": 2,
    }  # fmt: skip
    return codec.encode(
        messages.WorkerHello(messages.PROTOCOL_VERSION, "test", f"raw{epoch}", epoch, [device])
    )


def worker_hello(epoch: int) -> bytes:
    return message([worker_hello_header(epoch)])


def dial(endpoint: str) -> socket.socket:
    """A connected socket, of tcp:// or ipc://, before the greeting."""
    if endpoint.startswith("ipc://"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(endpoint.removeprefix("ipc://"))
        return connection
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


def shake_hands(connection: socket.socket, identity: bytes = b"", kind: bytes = b"DEALER") -> socket.socket:
    """The connection, ready for messages: libzmq ends a connection whose peer does not await its READY."""
    connection.settimeout(20)
    connection.sendall(greeting() + ready(identity, kind))
    _read(connection, len(greeting()))
    assert _read(connection, 1)[0] == COMMAND
    _read(connection, _read(connection, 1)[0])
    connection.settimeout(None)
    return connection


def open_connection(endpoint: str, identity: bytes = b"") -> socket.socket:
    return shake_hands(dial(endpoint), identity)


def deaf(endpoint: str) -> socket.socket:
    """A connection with the smallest receive buffer, which is not read."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    return shake_hands(connection)


def is_shut(connection: socket.socket) -> bool:
    """Whether the other side has ended the connection, even if data is still to be read."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        assert piece, "the connection has ended"
        found += piece
    return found


def read_message(connection: socket.socket) -> list[bytes]:
    """The frames of the next message, past commands."""
    connection.settimeout(20)
    frames = []
    while True:
        flags = _read(connection, 1)[0]
        body = _read(connection, int.from_bytes(_read(connection, 8 if flags & LONG else 1)))
        if not flags & COMMAND:
            frames.append(body)
            if not flags & MORE:
                return frames
