"""Costs of large tensors in messages and in shared memory on one machine: time of a request, and processor
time of each process.

    python -m bench.shared_memory [--quick] [--json] [--publish]

One client sends one request at a time to one worker, for models that cost next to nothing: `max` answers with
the largest element of a large input, `same` with the input. Ways: Client.infer() with its tensors in the
message, and with shared_memory=True; HTTP with the tensors in bodies, and in system shared memory. Blocks of
the ways alternate in one run, so that noise affects all of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench import published, report
from bench.cluster import Cluster, thread_cpu_s
from clockwork.system.clock import now_ns

SEED = 1
SIZES = {"600 KB": 150_000, "10 MB": 2_500_000}
"""Elements of the input, of 4 bytes."""

BLOCKS, QUICK_BLOCKS = 12, 1
BLOCK_BYTES, QUICK_BLOCK_BYTES = 100_000_000, 20_000_000
"""Bytes of inputs in a block: 10 requests of the larger size, or 2."""

HEADER_LENGTH = "Inference-Header-Content-Length"


def model(kind: str, width: int) -> onnx.ModelProto:
    """A model that maps x (N, width) to y. `max`: y (N, 1) is its largest element. `same`: y is x."""
    give = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1 if kind == "max" else width])
    axes = [helper.make_tensor("axes", TensorProto.INT64, [1], [1])]
    node = (
        helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=1)
        if kind == "max"
        else helper.make_node("Identity", ["x"], ["y"])
    )
    take = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph([node], kind, [take], [give], axes if kind == "max" else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


class Case(NamedTuple):
    """A model and a tensor's size."""

    kind: str
    size: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{SIZES[self.size]}"


Way = Callable[[Case, np.ndarray], np.ndarray]
"""Carries out one request; returns the model's answer."""


@contextlib.contextmanager
def http_ways(endpoint: str) -> Iterator[tuple[dict[str, Way], int]]:
    """Requests over HTTP to a gateway of its own, and the gateway's process."""
    command = [
        *("-m", "clockwork", "gateway", "--connect", endpoint, "--http-port", "0", "--grpc-port", "off"),
        *("--metrics-port", "off", "--parent", str(os.getpid())),
    ]
    gateway = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    memory = SharedMemory(
        f"clockwork-bench-{secrets.token_hex(8)}", create=True, size=2 * 4 * max(SIZES.values())
    )
    try:
        assert gateway.stderr is not None
        found = next(filter(None, (re.search(r"http://127.0.0.1:(\d+)", line) for line in gateway.stderr)))
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]))
        half = memory.size // 2

        def post(path: str, body: bytes, headers: dict[str, str]) -> tuple[dict[str, Any], memoryview]:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                raise AssertionError(f"{path} answered {response.status}: {data[:500]!r}")
            length = int(response.headers.get(HEADER_LENGTH, len(data)))
            return json.loads(data[:length]), memoryview(data)[length:]

        def infer(
            case: Case, x: np.ndarray, given: dict[str, Any], wanted: dict[str, Any], raw: bytes
        ) -> memoryview:
            body = {
                "inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": given}],
                "outputs": [{"name": "y", "parameters": wanted}],
            }
            header = json.dumps(body).encode()
            headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
            return post(f"/v2/models/{case.name}/infer", header + raw, headers)[1]

        def sent(case: Case, x: np.ndarray) -> np.ndarray:
            wanted = {"binary_data": True}
            return np.frombuffer(
                infer(case, x, {"binary_data_size": x.nbytes}, wanted, x.tobytes()), np.float32
            )

        def shared(case: Case, x: np.ndarray) -> np.ndarray:
            np.frombuffer(memory.buf, np.float32, x.size)[:] = x[0]
            answer_bytes = 4 if case.kind == "max" else x.nbytes
            region = {"shared_memory_region": "bench"}
            given = region | {"shared_memory_byte_size": x.nbytes}
            wanted = region | {"shared_memory_byte_size": answer_bytes, "shared_memory_offset": half}
            infer(case, x, given, wanted, b"")
            return np.frombuffer(memory.buf, np.float32, answer_bytes // 4, half).copy()

        where = {"key": memory.name, "offset": 0, "byte_size": memory.size}
        post(
            "/v2/systemsharedmemory/region/bench/register",
            json.dumps(where).encode(),
            {"Content-Type": "application/json"},
        )
        yield {"HTTP, sent": sent, "HTTP, shared": shared}, gateway.pid
        connection.close()
    finally:
        gateway.terminate()
        gateway.wait()
        memory.close()
        memory.unlink()


def measure(blocks: int, block_bytes: int = BLOCK_BYTES) -> list[dict[str, Any]]:
    """A row for each case and way. Raises where an answer is wrong."""
    rng = np.random.default_rng(SEED)
    cases = [Case(kind, size) for size in SIZES for kind in ("max", "same")]
    rows = []
    with Cluster() as cluster, contextlib.ExitStack() as stack:
        sending = stack.enter_context(cluster.client())
        sharing = stack.enter_context(cluster.client(shared_memory=True))
        for case in cases:
            sending.register(case.name, model(case.kind, SIZES[case.size]))

        def native(client: Any) -> Way:
            return lambda case, x: np.asarray(client.infer(case.name, x))[0]

        ways: dict[str, Way] = {"sent": native(sending), "shared": native(sharing)}
        processes = {"controller": cluster.controller.pid, "worker": cluster.workers[0].pid}
        try:
            import aiohttp  # noqa: F401  # whether the gateway can run
        except ModuleNotFoundError:
            print("without the gateway's libraries: no HTTP", file=sys.stderr)
        else:
            over_http, pid = stack.enter_context(http_ways(cluster.endpoint))
            ways |= over_http
            processes["gateway"] = pid
        for case in cases:
            x = rng.random((1, SIZES[case.size]), dtype=np.float32)
            expected = x.max(axis=1) if case.kind == "max" else x[0]
            count = max(1, block_bytes // x.nbytes)
            took: dict[str, list[int]] = {way: [] for way in ways}
            spent: dict[str, dict[str, float]] = {
                way: dict.fromkeys(("client", *processes), 0.0) for way in ways
            }
            for block in range(-1, blocks):
                for way, ask in ways.items():
                    before = {name: sum(thread_cpu_s(pid).values()) for name, pid in processes.items()}
                    mine = time.process_time()
                    for _ in range(count):
                        began_ns = now_ns()
                        y = ask(case, x)
                        took[way].append(now_ns() - began_ns)
                    mine = time.process_time() - mine
                    if not np.array_equal(y, expected):
                        raise AssertionError(f"{way} gave a wrong answer of {case.name}")
                    if block < 0:
                        took[way].clear()
                        continue
                    spent[way]["client"] += mine
                    for name, pid in processes.items():
                        spent[way][name] += sum(thread_cpu_s(pid).values()) - before[name]
            assert sharing._memory is not None
            if sharing._memory.is_paused:
                raise AssertionError("the worker could not use the client's memory")
            for way in ways:
                row: dict[str, Any] = {
                    "tensor": case.size,
                    "model": case.kind,
                    "way": way,
                    "requests": len(took[way]),
                }
                row |= {
                    key.replace("_us", "_ms"): value / 1000
                    for key, value in report.percentiles(took[way]).items()
                }
                for name, seconds in spent[way].items():
                    row[f"{name}_cpu_ms"] = 1000 * seconds / len(took[way])
                rows.append(
                    {key: round(value, 2) if type(value) is float else value for key, value in row.items()}
                )
    return rows


def main() -> None:
    parser = report.command_line(__doc__)
    report.publishing(parser)
    arguments = parser.parse_args()
    rows = measure(QUICK_BLOCKS, QUICK_BLOCK_BYTES) if arguments.quick else measure(BLOCKS)
    if arguments.publish:
        published.save("shared-memory", {"rows": rows}, SEED)
    report.show("large tensors, sent and shared", SEED, rows, {}, arguments.json)


if __name__ == "__main__":
    main()
