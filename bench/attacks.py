"""What can one hostile peer take from a cluster: its memory, and the time of an honest client?

    python -m bench.attacks [--quick] [--json] [--attacks "unread answers,endless message"]

For each attack a controller, a worker and a gateway of their own, two honest clients that ask without an end
(ZeroMQ and HTTP, every answer checked), and then the attack. Printed is how much more memory the attacked process
had at its peak than before (the kernel's VmHWM, which misses nothing), the longest that an honest client waited
for an answer before and during the attack, and what became of the attacker.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import secrets
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from bench import gateway, report, zmtp
from bench.cluster import Cluster
from bench.honest import Honest, over_http
from bench.reference import Plain, relative_error
from clockwork.config import CHUNK_BYTES
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec, messages

SEED = 7
MIB = 1 << 20
TOLERANCE = 1e-4
PAUSE_S = 0.002
ATTACK_S_MAX = 60.0
"""Time after which an attack is broken off; its row says so."""

REQUEST_WIDTH = 4096
"""float32 values of a request: 16 KiB."""


class Size(NamedTuple):
    """Sizes of the attacks."""

    calm_s: float = 3.0  # of honest requests before the attack
    answer_times: int = 256  # an answer's size over its request's: 4 MiB
    requests: int = 600
    package_width: int = 1100  # its square is the package's floats: 18 MB
    fetches: int = 200
    message_bytes: int = 2_700_000_000
    bodies: int = 40
    body_bytes: int = 60 << 20
    calls: int = 100


QUICK = Size(0.3, 64, 400, 300, 100, 600 << 20, 10, 16 << 20, 10)


class Site(NamedTuple):
    """A cluster and a gateway to attack."""

    cluster: Cluster
    gateway: subprocess.Popen[str]
    http_port: int
    grpc_port: int
    token: str
    packages: dict[str, str]  # digests, by model


@contextlib.contextmanager
def site(size: Size) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster())
        packages: dict[str, str] = {}
        with cluster.client() as client:
            models = {"digits": zoo.digits(), "wide": _wide(size), "bulky": _bulky(size)}
            for name, model in models.items():
                before = set((cluster.data / "packages").iterdir()) if packages else set()
                client.register(name, model)
                [package] = set((cluster.data / "packages").iterdir()) - before
                packages[name] = package.name
        token = secrets.token_hex(16)
        path = cluster.data / "token"
        path.write_text(token)
        process, http_port, grpc_port = gateway.started(cluster.endpoint, "--token-file", str(path))
        assert process.stderr is not None
        stack.enter_context(process.stderr)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        yield Site(cluster, process, http_port, grpc_port, token, packages)


def _wide(size: Size) -> onnx.ModelProto:
    """A model that answers with its input, many times over."""
    graph = zoo.Graph(SEED)
    graph.node("Tile", ["x", graph.constant([1, size.answer_times])], "y")
    width = REQUEST_WIDTH * size.answer_times
    return graph.model("wide", [zoo.tensor("x", [REQUEST_WIDTH])], zoo.tensor("y", [width]))


def _bulky(size: Size) -> onnx.ModelProto:
    """A model whose weights fill a large package."""
    width = 2 * size.package_width
    graph = zoo.Graph(SEED)
    graph.node("MatMul", ["x", graph.weight("w", graph.normal((width, width), 0.01))], "y")
    return graph.model("bulky", [zoo.tensor("x", [width])], zoo.tensor("y", [width]))


# ----- the attacks: each returns the attacker's fate --------------------------------------------------


def unread_answers(site: Site, size: Size) -> str:
    """Small requests whose large answers are not read."""
    body = bytes(4 * REQUEST_WIDTH)
    request = messages.InferRequest(1, "wide", 60 * SECOND, 0, [["x", 1, [1, REQUEST_WIDTH], 0]])
    with zmtp.deaf(site.cluster.endpoint) as connection:
        connection.sendall(zmtp.client_hello())
        pieces = (
            zmtp.message([codec.encode(request._replace(request_id=number)), body])
            for number in range(1, size.requests + 1)
        )
        return _thrown(connection, pieces)


def unread_packages(site: Site, size: Size) -> str:
    """A worker that asks for a package again and again, and reads nothing."""
    fetch = messages.Fetch(site.packages["bulky"], 0, 0, CHUNK_BYTES)
    with zmtp.deaf(site.cluster.worker_endpoint) as connection:
        connection.sendall(zmtp.worker_hello(9))
        return _thrown(connection, (zmtp.message([codec.encode(fetch)]) for _ in range(size.fetches)))


def endless_message(site: Site, size: Size) -> str:
    """A frame of gigabytes, before any hello."""
    piece = bytes(MIB)
    with zmtp.open_connection(site.cluster.endpoint) as connection:
        connection.sendall(zmtp.frame_head(size.message_bytes))
        return _thrown(connection, (piece for _ in range(size.message_bytes // MIB)))


def _thrown(connection: socket.socket, pieces: Iterator[bytes]) -> str:
    """Send as much as is taken, then wait briefly for the connection's end."""
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
    deadline_ns = now_ns() + 2 * SECOND
    pause = threading.Event()
    while now_ns() < deadline_ns:
        if zmtp.is_shut(connection):
            return f"disconnected after {sent / MIB:.3g} MiB"
        pause.wait(0.01)
    return f"still connected after {sent / MIB:.3g} MiB"


def http_bodies(site: Site, size: Size) -> str:
    """Bodies of some KB, at once, that inflate to megabytes."""
    body = gzip.compress(bytes(size.body_bytes))
    head = (
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
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
    return f"answered {_listed(codes)}"


def grpc_messages(site: Site, size: Size, token: bool) -> str:
    """Calls of some KB, at once, whose messages inflate to megabytes."""
    message = gzip.compress(b"\x3a" + _varint(size.body_bytes) + bytes(size.body_bytes))  # raw_input_contents
    data = grpc_call(message, site.token if token else "")
    with contextlib.ExitStack() as stack:
        dialled = [
            stack.enter_context(socket.create_connection(("127.0.0.1", site.grpc_port), ATTACK_S_MAX))
            for _ in range(size.calls)
        ]
        for connection in dialled:
            connection.sendall(data)
        codes = Counter(grpc_status(connection) for connection in dialled)
    return f"answered {_listed(codes)}"


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def grpc_call(message: bytes, token: str, path: str = "/inference.GRPCInferenceService/ModelInfer") -> bytes:
    """A connection's bytes for a call with a gzip message: HTTP/2 by hand, so that no client inflates it.

    The message must fit the window that a peer has before it is told of another: 65,535 bytes.
    """
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers"),
        ("content-type", "application/grpc"), ("grpc-encoding", "gzip"),
    ]  # fmt: skip
    if token:
        fields.append(("authorization", f"Bearer {token}"))
    headers = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields
    )
    data = struct.pack(">BI", 1, len(message)) + message
    assert len(data) <= 65_535
    pieces = [data[begin : begin + 16_384] for begin in range(0, len(data), 16_384)]
    frames = [_h2_frame(4, 0, 0, b""), _h2_frame(1, 4, 1, headers)]
    frames += [_h2_frame(0, piece is pieces[-1], 1, piece) for piece in pieces]
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(frames)


def _h2_frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body


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


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{code} x {count}" for code, count in sorted(counts.items()))


class Attack(NamedTuple):
    on: str  # the process that is attacked
    throw: Callable[[Site, Size], str]


ATTACKS = {
    "unread answers": Attack("controller", unread_answers),
    "unread packages": Attack("controller", unread_packages),
    "endless message": Attack("controller", endless_message),
    "HTTP bodies": Attack("gateway", http_bodies),
    "gRPC without token": Attack("gateway", lambda site, size: grpc_messages(site, size, False)),
    "gRPC with token": Attack("gateway", lambda site, size: grpc_messages(site, size, True)),
}


# ----- measurement ------------------------------------------------------------------------------------


def peak_bytes(pid: int) -> int:
    """Peak memory of a process since forget_peak()."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def row(name: str, here: Site, size: Size) -> dict[str, Any]:
    """A row of the table: an attack on a site without other users."""
    attack = ATTACKS[name]
    pid = (here.cluster.controller if attack.on == "controller" else here.gateway).pid
    model = zoo.digits()
    with here.cluster.client() as client:

        def checked(by: str, infer: Callable[[np.ndarray], np.ndarray]) -> Honest:
            plain = Plain(model)
            return Honest(
                by,
                infer,
                lambda x, y: bool(relative_error(y, plain.run({"image": x})[0]) < TOLERANCE),
            )

        honest = [
            checked("ZeroMQ", lambda x: np.asarray(client.infer("digits", x, slo=20.0))),
            checked("HTTP", over_http(here.http_port, here.token)),
        ]
        end = threading.Event()
        threads = [threading.Thread(target=sender.work, args=(end, SEED, PAUSE_S)) for sender in honest]
        for thread in threads:
            thread.start()
        try:
            end.wait(size.calm_s)
            calm = [sender.longest_s for sender in honest]
            for sender in honest:
                sender.longest_s = 0.0
            forget_peak(pid)
            before, begun_ns = peak_bytes(pid), now_ns()
            became = attack.throw(here, size)
            took_ns = now_ns() - begun_ns
            end.wait(0.1)  # requests under way count, too
        finally:
            end.set()
            for thread in threads:
                thread.join()
    for process in (here.cluster.controller, *here.cluster.workers, here.gateway):
        if process.poll() is not None:
            raise RuntimeError(f"{name}: a process ended with status {process.returncode}")
    return {
        "attack": name,
        "on": attack.on,
        "grew_MiB": round((peak_bytes(pid) - before) / MIB, 1),
        "took_s": round(took_ns / SECOND, 2),
        **{f"{sender.name}_calm_ms": round(1e3 * longest, 1) for sender, longest in zip(honest, calm)},
        **{f"{sender.name}_attacked_ms": round(1e3 * sender.longest_s, 1) for sender in honest},
        "answers": sum(sender.answers for sender in honest),
        "wrong": sum(len(sender.wrong) for sender in honest),
        "attacker": became,
    }


def measure(size: Size, names: list[str], apart: bool = True) -> list[dict[str, Any]]:
    """A row for each attack. apart: each on a cluster of its own, so that none finds the memory that another left."""
    if apart:
        rows = []
        for name in names:
            with site(size) as here:
                rows.append(row(name, here, size))
        return rows
    with site(size) as here:
        return [row(name, here, size) for name in names]


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--attacks", default="", help="names, with commas between them  [default: all]")
    arguments = parser.parse_args()
    names = arguments.attacks.split(",") if arguments.attacks else list(ATTACKS)
    if unknown := [name for name in names if name not in ATTACKS]:
        parser.error(f"no attack {unknown[0]!r}; there are {', '.join(ATTACKS)}")
    rows = measure(QUICK if arguments.quick else Size(), names, not arguments.quick)
    report.show("hostile peers", SEED, rows, {}, arguments.json)


if __name__ == "__main__":
    main()
