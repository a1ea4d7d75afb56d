"""HTTP/2 without a library, so that a peer can do what no library does: connect and send nothing, open calls
without messages, and fill HPACK's table.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, WINDOW_UPDATE = 0, 1, 3, 4, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
TABLE_SIZE, INITIAL_WINDOW = 1, 4
"""The settings for HPACK's table, and for the window of a stream."""

WINDOW = 65_535
"""The initial size of flow-control windows."""

DATA_BYTES_MAX = 16_384
"""The largest DATA frame that a peer accepts by default."""

INFER = "/inference.GRPCInferenceService/ModelInfer"
STATIC_FIELDS = 61
"""Fields of HPACK's static table; the next index is the newest of the dynamic one."""


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body


def hello() -> bytes:
    """The first bytes of a client: its settings, and the acknowledgement of the server's."""
    return PREFACE + frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, ACK, 0, b"")


def field(name: str, value: str, is_kept: bool = False) -> bytes:
    """A header field in full. is_kept: the server is to enter it into its table."""
    return b"".join((
        b"\x40" if is_kept else b"\x00", bytes([len(name)]), name.encode(), bytes([len(value)]), value.encode(),
    ))  # fmt: skip


def kept(index: int) -> bytes:
    """The header field that entered the table `index` entries before the last, in one byte; 0: the last."""
    assert STATIC_FIELDS + 1 + index < 127
    return bytes([0x80 | STATIC_FIELDS + 1 + index])


def call(token: str = "", path: str = INFER) -> bytes:
    """The headers with which a call begins."""
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"), ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]  # fmt: skip
    if token:
        fields.append(("authorization", f"Bearer {token}"))
    return b"".join(field(name, value) for name, value in fields)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    body: bytes


def frames(connection: socket.socket) -> Iterator[Frame]:
    """The frames that arrive on a connection until it ends. Raises TimeoutError as the socket does."""
    buffer = bytearray()
    while True:
        try:
            piece = connection.recv(65_536)
        except ConnectionError:
            return
        if not piece:
            return
        buffer += piece
        while len(buffer) >= 9 and len(buffer) >= 9 + (size := int.from_bytes(buffer[:3])):
            stream = int.from_bytes(buffer[5:9]) & 0x7FFFFFFF
            found = Frame(buffer[3], buffer[4], stream, bytes(buffer[9 : 9 + size]))
            del buffer[: 9 + size]
            yield found


def begin_message(connection: socket.socket, headers: bytes, message_bytes: int, part_bytes: int) -> None:
    """Begin a gRPC call, and send a part of its message as the server's windows permit."""
    connection.sendall(hello() + frame(HEADERS, END_HEADERS, 1, headers))
    rest = memoryview(struct.pack(">BI", 0, message_bytes) + bytes(part_bytes))
    windows, initial = {0: WINDOW, 1: WINDOW}, WINDOW
    come = frames(connection)
    while rest:
        size = min(DATA_BYTES_MAX, len(rest), *windows.values())
        if size > 0:
            connection.sendall(frame(DATA, 0, 1, bytes(rest[:size])))
            rest = rest[size:]
            windows = {stream: window - size for stream, window in windows.items()}
            continue
        found = next(come, None)
        if found is None:
            raise ConnectionError("the server ended the connection")
        if found.kind == WINDOW_UPDATE and found.stream in windows:
            windows[found.stream] += int.from_bytes(found.body)
        elif found.kind == SETTINGS:
            for place in range(0, len(found.body), 6):
                setting, value = struct.unpack_from(">HI", found.body, place)
                if setting == INITIAL_WINDOW:
                    windows[1] += value - initial
                    initial = value
