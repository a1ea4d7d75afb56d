"""Messages that grow when a gateway decodes them, and answers of a gateway that nobody reads."""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
from collections import Counter
from typing import NamedTuple

import grpc
import onnx

from bench import http2
from bench.attacks.messages import grpc_call, grpc_status, listed, varint
from bench.attacks.site import ATTACK_S_MAX, MIB, SEED, Attack, Site
from clockwork.models import zoo
from clockwork.protocol import inference_pb2 as pb
from clockwork.system.clock import SECOND, now_ns

INFER = "/inference.GRPCInferenceService/ModelInfer"
PATH = "/v2/models/vast/infer"
TINY: dict[str, object] = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0]}


class Size(NamedTuple):
    """Sizes of the attacks."""

    message_bytes: int = 15_000_000
    calls: int = 4
    json_bytes: int = (8 << 20) - 64
    bodies: int = 8
    answer_floats: int = 8 << 20
    readers: int = 24
    parts: int = 12
    part_bytes: int = 60 << 20


QUICK, WHOLE = Size(3_000_000, 2, 2 << 20, 2, 1 << 20, 8, 4, 8 << 20), Size()


def _size(quick: bool) -> Size:
    return QUICK if quick else WHOLE


def vast(quick: bool) -> dict[str, onnx.ModelProto]:
    """A model whose answer to one number is millions of numbers."""
    width = _size(quick).answer_floats
    graph = zoo.GraphBuilder(SEED)
    graph.node("Tile", ["x", graph.constant([1, width])], "y")
    return {"vast": graph.model("vast", [zoo.tensor("x", [1])], zoo.tensor("y", [width]))}


# ----- requests -------------------------------------------------------------------------------


def grpc_messages(site: Site, quick: bool, unit: bytes) -> str:
    """Concurrent calls whose message repeats the same few bytes."""
    size = _size(quick)
    message = unit * max(1, size.message_bytes // len(unit))
    codes: Counter[str] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{site.grpc_port}") as channel:
        ask = channel.unary_unary(INFER)
        metadata = (("authorization", f"Bearer {site.token}"),)
        for call in [ask.future(message, ATTACK_S_MAX, metadata) for _ in range(size.calls)]:
            codes[call.code().name] += 1
    return f"answered {listed(codes)}"


def grpc_parts(site: Site, quick: bool) -> str:
    """Concurrent calls whose messages each lack their last bytes."""
    size = _size(quick)
    poll, ended = select.poll(), 0
    with contextlib.ExitStack() as stack:
        for _ in range(size.parts):
            connection = socket.create_connection(("127.0.0.1", site.grpc_port), ATTACK_S_MAX)
            stack.enter_context(connection)
            try:
                http2.begin_message(connection, http2.call(site.token), size.part_bytes + 1, size.part_bytes)
                poll.register(connection, select.POLLRDHUP)
            except ConnectionError:
                ended += 1
        after = _after_them(site)
        return f"{ended + len(poll.poll(0))} of {size.parts} ended; {after}"


def contents(elements: int) -> bytes:
    """A message whose tensor is a list of booleans, one byte for each."""
    packed = b"\x0a" + varint(elements) + bytes(elements)
    tensor = b"\x0a\x01x\x12\x04BOOL\x2a" + varint(len(packed)) + packed
    return b"\x0a\x01m\x2a" + varint(len(tensor)) + tensor


def json_bodies(site: Site, quick: bool, unit: bytes) -> str:
    """Concurrent requests whose JSON body is a list that repeats one value."""
    size = _size(quick)
    head, tail = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[', b"0]}]}"
    body = head + unit * ((size.json_bytes - len(head) - len(tail)) // len(unit)) + tail
    with contextlib.ExitStack() as stack:
        dialled = [stack.enter_context(_asked(site, body)) for _ in range(size.bodies)]
        codes = Counter(_status(connection) for connection in dialled)
    return f"answered {listed(codes)}"


def _asked(site: Site, body: bytes, deaf: bool = False) -> socket.socket:
    """A connection on which a request has been sent. deaf: its receive buffer holds only a few kilobytes."""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    connection = socket.socket()
    if deaf:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(ATTACK_S_MAX)
    connection.connect(("127.0.0.1", site.http_port))
    connection.sendall(head + body)
    return connection


def _status(connection: socket.socket) -> str:
    try:
        return (connection.recv(4096) + b" none").split(b" ")[1].decode()
    except ConnectionError:
        return "none"


# ----- answers --------------------------------------------------------------------------------


def json_answer(site: Site, quick: bool) -> str:
    """A request of a few bytes whose JSON answer has millions of numbers."""
    with _asked(site, json.dumps({"inputs": [TINY]}).encode()) as connection:
        begun_ns, received, status = now_ns(), 0, ""
        while (piece := connection.recv(MIB)) and now_ns() - begun_ns < ATTACK_S_MAX * SECOND:
            status = status or piece.split(b" ")[1].decode()
            received += len(piece)
            if piece.endswith((b"}", b"0\r\n\r\n")):
                break
    return f"answered {status} with {received / MIB:.3g} MiB"


def unread_http(site: Site, quick: bool) -> str:
    """HTTP requests for large binary answers, which are never read."""
    size = _size(quick)
    body = json.dumps({"inputs": [TINY], "parameters": {"binary_data_output": True}}).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(size.readers):
            stack.enter_context(_asked(site, body, deaf=True))
        return _after_them(site)


def unread_grpc(site: Site, quick: bool) -> str:
    """Calls for large answers, on connections whose flow-control windows are never opened."""
    size = _size(quick)
    request = pb.ModelInferRequest(model_name="vast", raw_input_contents=[bytes(4)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    data = grpc_call(gzip.compress(request.SerializeToString()), site.token)
    with contextlib.ExitStack() as stack:
        for _ in range(size.readers):
            connection = stack.enter_context(
                socket.create_connection(("127.0.0.1", site.grpc_port), ATTACK_S_MAX)
            )
            connection.sendall(data)
        return _after_them(site)


def _after_them(site: Site) -> str:
    """The outcome of a call for a large answer while the attacker's answers wait to be read."""
    request = pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(256)])
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    data = grpc_call(gzip.compress(request.SerializeToString()), site.token)
    counts: Counter[str] = Counter()
    until_ns = now_ns() + 3 * SECOND
    while now_ns() < until_ns:
        with socket.create_connection(("127.0.0.1", site.grpc_port), ATTACK_S_MAX) as connection:
            connection.sendall(data)
            counts[grpc_status(connection)] += 1
    return f"others meanwhile {listed(counts)}"


ATTACKS = {
    "gRPC submessages": Attack("gateway", lambda site, quick: grpc_messages(site, quick, b"\x2a\0")),
    "gRPC empty bytes": Attack("gateway", lambda site, quick: grpc_messages(site, quick, b"\x3a\0")),
    "gRPC contents": Attack("gateway", lambda site, quick: grpc_messages(site, quick, contents(5 << 20))),
    "gRPC parts": Attack("gateway", grpc_parts),
    "JSON lists": Attack("gateway", lambda site, quick: json_bodies(site, quick, b"[],"), vast),
    "JSON numbers": Attack("gateway", lambda site, quick: json_bodies(site, quick, b"1,"), vast),
    "JSON answer": Attack("gateway", json_answer, vast),
    "unread HTTP": Attack("gateway", unread_http, vast),
    "unread gRPC": Attack("gateway", unread_grpc, vast),
}
