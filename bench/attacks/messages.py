"""Messages, frames and bodies that are large or inflate to a large size, and answers that nobody reads."""

from __future__ import annotations

import contextlib
import gzip
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import onnx

from bench import http2, zmtp
from bench.attacks.site import ATTACK_S_MAX, MIB, SEED, Attack, Site
from clockwork.config import CHUNK_BYTES
from clockwork.config.controller import UNREAD_NS
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec, messages

REQUEST_WIDTH = 4096
"""float32 values of a request: 16 KiB."""


class Size(NamedTuple):
    """Sizes of the attacks."""

    answer_times: int = 256  # the size of an answer over its request's: 4 MiB
    requests: int = 600
    package_width: int = 1100  # the package has the square of the width in floats: 18 MB
    fetches: int = 200
    message_bytes: int = 2_700_000_000
    bodies: int = 40
    body_bytes: int = 60 << 20
    calls: int = 100


QUICK, WHOLE = Size(64, 400, 300, 100, 600 << 20, 10, 16 << 20, 10), Size()


def _size(quick: bool) -> Size:
    return QUICK if quick else WHOLE


def _wide(quick: bool) -> onnx.ModelProto:
    """A model that answers with many copies of its input."""
    graph = zoo.GraphBuilder(SEED)
    graph.node("Tile", ["x", graph.constant([1, _size(quick).answer_times])], "y")
    width = REQUEST_WIDTH * _size(quick).answer_times
    return graph.model("wide", [zoo.tensor("x", [REQUEST_WIDTH])], zoo.tensor("y", [width]))


def _bulky(quick: bool) -> onnx.ModelProto:
    """A model whose weights make a large package."""
    width = 2 * _size(quick).package_width
    graph = zoo.GraphBuilder(SEED)
    graph.node("MatMul", ["x", graph.weight("w", graph.normal((width, width), 0.01))], "y")
    return graph.model("bulky", [zoo.tensor("x", [width])], zoo.tensor("y", [width]))


def unread_answers(site: Site, quick: bool) -> str:
    """Small requests whose large answers are not read."""
    with zmtp.deaf(site.endpoint) as connection:
        connection.sendall(zmtp.client_hello())
        cancel = zmtp.message([codec.encode(messages.Cancel(0))])
        return thrown(connection, wide_requests(_size(quick).requests), cancel)


def wide_requests(count: int) -> Iterator[bytes]:
    """Requests for the model of ``answering``, numbered from 1."""
    body = bytes(4 * REQUEST_WIDTH)
    request = messages.InferRequest(1, "wide", 60 * SECOND, 0, [["x", 1, [1, REQUEST_WIDTH], 0]])
    for number in range(1, count + 1):
        yield zmtp.message([codec.encode(request._replace(request_id=number)), body])


def unread_packages(site: Site, quick: bool) -> str:
    """A worker that requests a package again and again, and reads nothing."""
    size = _size(quick)
    fetch = messages.Fetch(site.packages["bulky"], 0, 0, CHUNK_BYTES)
    with zmtp.deaf(site.worker_endpoint) as connection:
        connection.sendall(zmtp.worker_hello(9))
        return thrown(connection, (zmtp.message([codec.encode(fetch)]) for _ in range(size.fetches)))


def endless_message(site: Site, quick: bool) -> str:
    """A frame of gigabytes that is sent before any hello."""
    size = _size(quick)
    piece = bytes(MIB)
    with zmtp.open_connection(site.endpoint) as connection:
        connection.sendall(zmtp.frame_head(size.message_bytes))
        return thrown(connection, (piece for _ in range(size.message_bytes // MIB)))


def thrown(connection: socket.socket, pieces: Iterator[bytes], again: bytes = b"") -> str:
    """Send as much as the peer takes, then wait for it to end the connection.

    again: bytes to send now and then meanwhile. Their failure shows that the connection has ended, because
    the kernel ends a connection that reads nothing silently, after 3 s.
    """
    connection.settimeout(ATTACK_S_MAX)
    sent = 0
    try:
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
    except ConnectionError:
        return f"disconnected after {sent / MIB:.3g} MiB"
    except TimeoutError:
        return f"not read after {sent / MIB:.3g} MiB"
    deadline_ns = now_ns() + UNREAD_NS + 5 * SECOND
    pause = threading.Event()
    while now_ns() < deadline_ns:
        if zmtp.is_shut(connection):
            return f"disconnected after {sent / MIB:.3g} MiB"
        pause.wait(0.01)
        try:
            connection.sendall(again)
        except ConnectionError:
            return f"disconnected after {sent / MIB:.3g} MiB"
    return f"still connected after {sent / MIB:.3g} MiB"


def http_bodies(site: Site, quick: bool) -> str:
    """Concurrent HTTP bodies of some KB that inflate to megabytes."""
    size = _size(quick)
    body = gzip.compress(bytes(size.body_bytes))
    head = (
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Authorization: Bearer {site.token}\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as stack:
        dialled = [
            stack.enter_context(socket.create_connection(("127.0.0.1", site.http_port), ATTACK_S_MAX))
            for _ in range(size.bodies)
        ]
        for connection in dialled:
            connection.sendall(head + body)
        codes = Counter(connection.recv(4096).split(b" ")[1].decode() for connection in dialled)
    return f"answered {listed(codes)}"


def grpc_messages(site: Site, quick: bool, token: bool) -> str:
    """Concurrent calls of some KB whose messages inflate to megabytes."""
    size = _size(quick)
    # the field raw_input_contents
    message = gzip.compress(b"\x3a" + varint(size.body_bytes) + bytes(size.body_bytes))
    data = grpc_call(message, site.token if token else "")
    with contextlib.ExitStack() as stack:
        dialled = [
            stack.enter_context(socket.create_connection(("127.0.0.1", site.grpc_port), ATTACK_S_MAX))
            for _ in range(size.calls)
        ]
        for connection in dialled:
            connection.sendall(data)
        codes = Counter(grpc_status(connection) for connection in dialled)
    return f"answered {listed(codes)}"


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def grpc_call(message: bytes, token: str, path: str = http2.INFER) -> bytes:
    """The bytes of a connection with a gzip-compressed call, built without an HTTP/2 library, which would
    inflate it.

    The message must fit the initial flow-control window of 65,535 bytes.
    """
    headers = http2.call(token, path) + http2.field("grpc-encoding", "gzip")
    data = struct.pack(">BI", 1, len(message)) + message
    assert len(data) <= 65_535
    pieces = [data[begin : begin + 16_384] for begin in range(0, len(data), 16_384)]
    frames = [
        http2.frame(http2.SETTINGS, 0, 0, b""),
        http2.frame(http2.HEADERS, http2.END_HEADERS, 1, headers),
    ]
    frames += [
        http2.frame(http2.DATA, http2.END_STREAM if piece is pieces[-1] else 0, 1, piece) for piece in pieces
    ]
    return http2.PREFACE + b"".join(frames)


def grpc_status(connection: socket.socket) -> str:
    """The status of the only call on a connection, from its trailers."""
    found = b""
    try:
        while (status := re.search(rb"grpc-status[\x01\x02](\d+)", found)) is None:
            piece = connection.recv(65_536)
            if not piece:
                return "no status"
            found += piece
    except ConnectionError:
        return "no status"
    return status[1].decode()


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{code} x {count}" for code, count in sorted(counts.items()))


def answering(quick: bool) -> dict[str, onnx.ModelProto]:
    return {"wide": _wide(quick)}


def _storing(quick: bool) -> dict[str, onnx.ModelProto]:
    return {"bulky": _bulky(quick)}


ATTACKS = {
    "unread answers": Attack("controller", unread_answers, answering),
    "unread packages": Attack("controller", unread_packages, _storing),
    "endless message": Attack("controller", endless_message),
    "HTTP bodies": Attack("gateway", http_bodies),
    "gRPC without token": Attack("gateway", lambda site, quick: grpc_messages(site, quick, False)),
    "gRPC with token": Attack("gateway", lambda site, quick: grpc_messages(site, quick, True)),
}
