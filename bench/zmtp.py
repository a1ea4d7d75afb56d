"""A peer that speaks ZMTP 3.0 over a plain socket, to send messages that no library would, as fast as possible."""

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
        one = socket.socket(socket.AF_UNIX)
        one.connect(endpoint.removeprefix("ipc://"))
        return one
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


def shake_hands(one: socket.socket, identity: bytes = b"", kind: bytes = b"DEALER") -> socket.socket:
    """The connection, once messages may be sent: libzmq ends one that does not wait for its READY."""
    one.settimeout(20)
    one.sendall(greeting() + ready(identity, kind))
    _read(one, len(greeting()))
    assert _read(one, 1)[0] == COMMAND
    _read(one, _read(one, 1)[0])
    one.settimeout(None)
    return one


def open_connection(endpoint: str, identity: bytes = b"") -> socket.socket:
    return shake_hands(dial(endpoint), identity)


def deaf(endpoint: str) -> socket.socket:
    """A connection with the smallest receive buffer, which is not read."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect((host, int(port)))
    return shake_hands(one)


def is_shut(one: socket.socket) -> bool:
    """Whether the other side has ended the connection, whatever is still to be read."""
    poll = select.poll()
    poll.register(one, select.POLLRDHUP)
    return bool(poll.poll(0))


def _read(one: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = one.recv(size - len(found))
        assert piece, "the connection has ended"
        found += piece
    return found


def read_message(one: socket.socket) -> list[bytes]:
    """The frames of the next message, past commands."""
    one.settimeout(20)
    frames = []
    while True:
        flags = _read(one, 1)[0]
        body = _read(one, int.from_bytes(_read(one, 8 if flags & LONG else 1)))
        if not flags & COMMAND:
            frames.append(body)
            if not flags & MORE:
                return frames
