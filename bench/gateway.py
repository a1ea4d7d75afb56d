"""Processor time that a request costs a gateway: all threads of its process, kernel included.

    python -m bench.gateway [--quick] [--bytes 49152] [--connections 1,8] [--answer-bytes 4000] [--json]

A controller of a few lines answers every request at once with a tensor of --answer-bytes. Clients send binary
requests of --bytes from --connections at a time, over HTTP (each on a connection of its own) and over gRPC
(calls of one channel). The controller and the clients are other processes than the gateway, so that their
cost is not in the figures. Rounds of the cases alternate.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bench.cluster import thread_cpu_s
from bench.report import command_line, show
from clockwork.launch.local import die_with
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec
from clockwork.wire.messages import (
    FROM_CLIENT,
    PROTOCOL_VERSION,
    Answer,
    ClientHello,
    ClientWelcome,
    InferRequest,
)
from clockwork.wire.tensors import FLOAT
from clockwork.wire.transport import Poller, Transport
from tests.process.python_router import PythonRouter

ROOT = Path(__file__).parent.parent
SEED = 1
WARM_UP = 300
HEADER_LENGTH = "Inference-Header-Content-Length"


def controller(parent: int, answer_bytes: int) -> None:
    """Answer every request with the same tensor, until the parent ends."""
    die_with(parent)
    transport = Transport()
    router = PythonRouter(transport)
    print(router.endpoint, flush=True)
    poller = Poller([router])
    answer = bytes(answer_bytes)
    tensor = ["y", FLOAT, [1, answer_bytes // 4], 0]
    while True:
        poller.wait(-1)
        while (got := router.receive()) is not None:
            identity, _, frames = got
            message = codec.decode(frames[0], FROM_CLIENT)
            if type(message) is ClientHello:
                router.send(identity, codec.encode(ClientWelcome(PROTOCOL_VERSION, "bench", 1)))
            elif type(message) is InferRequest:
                reply = Answer(message.request_id, 1, [tensor], [0, 0, 0, 0])
                router.send(identity, codec.encode(reply), [answer])


class HttpCaller:
    """Connections with a request under way on each."""

    def __init__(self, port: int, count: int, size: int) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, size // 4]}
        body = {
            "inputs": [tensor | {"parameters": {"binary_data_size": size}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
        header = json.dumps(body).encode()
        lines = (
            "POST /v2/models/m/infer HTTP/1.1", "Host: localhost", "Content-Type: application/octet-stream",
            f"{HEADER_LENGTH}: {len(header)}", f"Content-Length: {len(header) + size}", "", "",
        )  # fmt: skip
        self._request = "\r\n".join(lines).encode() + header + bytes(size)
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        for connection in self._sockets:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def round(self) -> None:
        """Send a request on every connection, and wait for the answers."""
        for connection in self._sockets:
            connection.sendall(self._request)
        for connection in self._sockets:
            data = connection.recv(1 << 20)
            while b"\r\n\r\n" not in data:
                data += connection.recv(1 << 20)
            head, _, rest = data.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), data[:500]
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None
            left = int(length[1]) - len(rest)
            while left > 0:
                left -= len(connection.recv(1 << 20))

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()


class GrpcCaller:
    """A channel with calls under way."""

    def __init__(self, port: int, count: int, size: int) -> None:
        import grpc

        from clockwork.protocol import inference_pb2 as pb

        request: Any = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(size)])
        request.inputs.add(name="x", datatype="FP32", shape=[1, size // 4])
        self._request = request.SerializeToString()
        self._count = count
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._call = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def round(self) -> None:
        if self._count == 1:
            self._call(self._request)
            return
        for call in [self._call.future(self._request) for _ in range(self._count)]:
            call.result()

    def close(self) -> None:
        self._channel.close()


def started(endpoint: str, *arguments: str) -> tuple[subprocess.Popen[str], int, int]:
    """A gateway of that controller, in a process of its own, and its ports for HTTP and gRPC."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "clockwork", "gateway", "--connect", endpoint, "--http-port", "0",
            "--grpc-port", "0", "--metrics-port", "off", "--parent", str(os.getpid()), *arguments,
        ],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if (found := re.search(r"http on https?://[\d.]+:(\d+), grpc on [\d.]+:(\d+)", line)) is not None:
            return process, int(found[1]), int(found[2])
    process.wait()
    raise RuntimeError(f"the gateway ended with status {process.returncode}:\n{''.join(lines)}")


class Gateway:
    """A controller of a few lines and its gateway, each a process; use as a context manager."""

    def __init__(self, answer_bytes: int, *arguments: str) -> None:
        self._controller = subprocess.Popen(
            [sys.executable, "-m", "bench.gateway", "controller", str(os.getpid()), str(answer_bytes)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._controller.stdout is not None
        endpoint = self._controller.stdout.readline().strip()
        self.process, self.http_port, self.grpc_port = started(endpoint, *arguments)

    def cpu_s(self) -> float:
        return sum(thread_cpu_s(self.process.pid).values())

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in (self.process, self._controller):
            child.terminate()
            child.wait()
            for stream in (child.stdout, child.stderr):
                if stream is not None:
                    stream.close()


def measure(
    gateway: Gateway, callers: dict[str, tuple[Callable[[], None], int]], requests: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for each caller; the cases take turns."""
    spent: dict[str, list[float]] = {name: [] for name in callers}
    wall: dict[str, list[float]] = {name: [] for name in callers}
    for turn in range(-1, rounds):
        for name, (call, count) in callers.items():
            before_s, begun_ns = gateway.cpu_s(), now_ns()
            times = max(1, (WARM_UP if turn < 0 else requests) // count)
            for _ in range(times):
                call()
            if turn >= 0:
                spent[name].append((gateway.cpu_s() - before_s) / times / count * 1e6)
                wall[name].append((now_ns() - begun_ns) / SECOND / times / count * 1e6)
    return [
        {
            "case": name,
            "requests": requests * rounds,
            "cpu_us/request": round(float(np.median(spent[name])), 1),
            "least": round(min(spent[name]), 1),
            "most": round(max(spent[name]), 1),
            "wall_us/request": round(float(np.median(wall[name])), 1),
        }
        for name in callers
    ]


def main() -> None:
    if sys.argv[1:2] == ["controller"]:
        controller(int(sys.argv[2]), int(sys.argv[3]))
        return
    parser = command_line(__doc__)
    parser.add_argument("--bytes", type=int, default=49_152)
    parser.add_argument("--answer-bytes", type=int, default=4_000)
    parser.add_argument("--connections", default="1,8")
    parser.add_argument("--requests", type=int, default=2_000, help="requests of each case and turn")
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.connections.split(",")]
    with Gateway(arguments.answer_bytes) as gateway:
        cases: list[tuple[str, HttpCaller | GrpcCaller, int]] = []
        for count in counts:
            cases.append(
                (f"HTTP, {count} at once", HttpCaller(gateway.http_port, count, arguments.bytes), count)
            )
            cases.append(
                (f"gRPC, {count} at once", GrpcCaller(gateway.grpc_port, count, arguments.bytes), count)
            )
        callers = {name: (caller.round, count) for name, caller, count in cases}
        requests, rounds = (100, 1) if arguments.quick else (arguments.requests, 5)
        rows = measure(gateway, callers, requests, rounds)
        for _, caller, _ in cases:
            caller.close()
    facts = {"request_bytes": arguments.bytes, "answer_bytes": arguments.answer_bytes}
    show("what a request costs a gateway", SEED, rows, facts, arguments.json)


if __name__ == "__main__":
    main()
