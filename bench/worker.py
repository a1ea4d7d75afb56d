"""Effect of Python work in a worker on its actions, and the worker's processor time for an INFER.

    python -m bench.worker [--quick] [--json] [--rounds 4] [--seconds 5] [--base DIRECTORY]

A worker with a CPU device serves the null model; this program acts as its controller over one socket.

*Lateness*: INFERs come at 200 a second, each with a window that opens 2 ms later. The parts of a round last
some seconds each, and every round begins with another part: nothing else happens in the worker; a Python
thread of the worker spins; a Python thread allocates cyclic objects and runs the garbage collector; or models
of new architectures are prepared one after another. The lateness of a start is the time from the opening of
the window to the start of the execution; that of a result is the time from the end of the execution to its
arrival here. Goal: p99.9 at most 0.3 ms more than while nothing else happens. The benchmark, the worker's
threads and the disturbances share the machine: two busy processors delay all of them.

*Throughput*: INFERs with an open window, WINDOW of them under way. Shown are results a second, and the
worker's processor time for each. --base: the same for the checkout in DIRECTORY, in turn, in one run; the
checkout must be built, with the same dependencies. Goal: three times better than a checkout from before
actions were handled natively.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench import report, zmtp
from clockwork import __version__
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.models import zoo
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import codec
from clockwork.wire.messages import (
    FROM_WORKER,
    NEVER_NS,
    PROTOCOL_VERSION,
    BundleOffer,
    BundleWanted,
    Chunk,
    Fetch,
    Infer,
    Load,
    Prepare,
    Prepared,
    Result,
    Status,
    WorkerHello,
    WorkerWelcome,
)
from clockwork.wire.transport import Poller, Transport
from tests.process.python_router import PythonRouter

SEED = 1
FLOAT = 1
WAIT_NS = 60 * SECOND
RATE_HZ = 200
AHEAD_NS = 2 * MS
WINDOW = 64
"""INFERs under way while throughput is measured."""

MODES = ("nothing", "a thread spins", "a thread allocates", "models are prepared")

WORKER = """
import gc, json, pathlib, sys, threading
from clockwork.worker.process import main
from clockwork.worker.settings import WorkerSettings

mode = threading.Condition()
wanted = ""

def follow():
    global wanted
    for line in sys.stdin:
        with mode:
            wanted = line.strip()
            mode.notify_all()

def disturb(name, step):
    while True:
        with mode:
            mode.wait_for(lambda: wanted == name)
        while wanted == name:
            step()

def spin():
    for _ in range(1000):
        pass

def allocate():
    cycles = []
    for _ in range(20_000):
        cycle = []
        cycle.append(cycle)
        cycles.append(cycle)
    del cycles
    gc.collect()

for target, arguments in ((follow, ()), (disturb, ("a thread spins", spin)), (disturb, ("a thread allocates", allocate))):
    threading.Thread(target=target, args=arguments, daemon=True).start()
settings = json.loads(sys.argv[1])
settings["store"] = pathlib.Path(settings["store"])
raise SystemExit(main(WorkerSettings(**settings)))
"""


class BareRouter:
    """The controller's socket as a plain one, for one worker: a block of messages costs it one call."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._frames: list[bytes] = []

    def send(self, identity: bytes, header: bytes, frames: Sequence[bytes] = ()) -> bool:
        self.write(zmtp.message([header, *frames]))
        return True

    def write(self, content: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(content)

    def receive(self) -> tuple[bytes, str, list[bytes]] | None:
        """The next message, which is waited for: a worker sends heartbeats."""
        while (frames := self._take()) is None:
            self._fill()
        return b"worker", "", frames

    def count(self) -> tuple[int, list[list[bytes]]]:
        """Wait for bytes; how many messages of two frames came whole, and all others."""
        self._fill()
        found, others = 0, []
        while (frames := self._take()) is not None:
            if len(frames) == 2:
                found += 1
            else:
                others.append(frames)
        return found, others

    def _fill(self) -> None:
        if self._socket is None:
            self._socket, _ = self._listener.accept()
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            zmtp.shake_hands(self._socket, kind=b"ROUTER")
        received = self._socket.recv(1 << 18)
        if not received:
            raise AssertionError("the worker has ended the connection")
        self._buffer += received

    def _take(self) -> list[bytes] | None:
        buffer = self._buffer
        at = 0
        while len(buffer) - at >= 2:
            flags = buffer[at]
            head = 9 if flags & zmtp.LONG else 2
            if len(buffer) - at < head:
                break
            size = int.from_bytes(buffer[at + 1 : at + head])
            if len(buffer) - at < head + size:
                break
            body = bytes(buffer[at + head : at + head + size])
            at += head + size
            if flags & zmtp.COMMAND:
                if body.startswith(b"\x04PING"):
                    pong = b"\x04PONG" + body[7:]
                    self.write(zmtp.frame_head(len(pong), zmtp.COMMAND) + pong)
                continue
            self._frames.append(body)
            if not flags & zmtp.MORE:
                frames, self._frames = self._frames, []
                del buffer[:at]
                return frames
        del buffer[:at]
        return None

    def close(self) -> None:
        self._listener.close()
        if self._socket is not None:
            self._socket.close()


class Worker:
    """A worker process of a checkout, and its controller's side of the conversation."""

    def __init__(self, store: Path, checkout: Path, bare: BareRouter | None = None) -> None:
        self.transport = Transport()
        self.router: Any = bare if bare is not None else PythonRouter(self.transport)
        self._poller = Poller([] if bare is not None else [self.router])
        settings = {
            "endpoint": self.router.endpoint,
            "name": "w",
            "store": str(store),
            "arena_bytes": 64 << 20,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(settings)],
            stdin=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stderr=subprocess.DEVNULL,
        )
        self.identity = b""
        self.last_id = 0
        self.contents: dict[str, bytes] = {}
        self.prepared: list[Prepared] = []
        self.expect(WorkerHello)
        self.send(WorkerWelcome(PROTOCOL_VERSION, __version__, 1, 1))

    def send(self, message: Any, frames: Sequence[bytes] = ()) -> None:
        if not self.router.send(self.identity, codec.encode(message), frames):
            raise AssertionError("the worker takes nothing")

    def receive(self, until_ns: int) -> Any:
        """The next message except heartbeats and fetches, which are served; None if there is none by
        until_ns.
        """
        while True:
            received = self.router.receive()
            if received is None:
                left_ns = until_ns - now_ns()
                if left_ns <= 0:
                    return None
                self._poller.wait(left_ns)
                continue
            identity, _, frames = received
            self.identity = self.identity or identity
            message = codec.decode(frames[0], FROM_WORKER)
            if isinstance(message, Fetch):
                body = self.contents[message.digest][message.offset : message.offset + message.length]
                self.send(Chunk(message.digest, message.file, message.offset, Status.OK), [body])
            elif isinstance(message, BundleWanted):
                self.send(BundleOffer(message.model_id, "", []))
            elif isinstance(message, Prepared):
                self.prepared.append(message)
                return message
            elif isinstance(message, Result | WorkerHello):
                return message

    def expect(self, kind: type) -> Any:
        until_ns = now_ns() + WAIT_NS
        while now_ns() < until_ns:
            message = self.receive(until_ns)
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} came")

    def announce(self, model_id: int, model: onnx.ModelProto) -> None:
        content = model.SerializeToString()
        files = [PackageFile("model.onnx", len(content), hashlib.sha256(content).hexdigest())]
        digest = digest_of(files)
        self.contents[digest] = content
        self.send(Prepare(model_id, f"m{model_id}", 1, digest, rows_of(files), {"batching": "off"}, 0))

    def serve_null(self) -> None:
        """Prepare and load the null model as model 1, load 1."""
        self.announce(1, zoo.build("null", seed=SEED))
        prepared = self.expect(Prepared)
        if prepared.status != Status.OK:
            raise AssertionError(prepared.text)
        starts, page = [], 0
        for pages in prepared.summary["runs"]:
            starts.append(page)
            page += pages
        self.last_id += 1
        self.send(Load(self.last_id, 0, 1, 1, starts, -NEVER_NS, NEVER_NS, MS))
        result = self.expect(Result)
        if result.status != Status.OK:
            raise AssertionError(result.text)

    def infer(self, earliest_ns: int, latest_ns: int) -> int:
        self.last_id += 1
        parts = [[[FLOAT, [1, 4], 0]]]
        self.send(Infer(self.last_id, 0, 1, 1, earliest_ns, latest_ns, MS // 20, parts), [bytes(16)])
        return self.last_id

    def disturb(self, mode: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()

    def processor_ns(self) -> int:
        """Processor time of all threads of the worker so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.transport.close()


@contextlib.contextmanager
def serving(checkout: Path, bare: BareRouter | None = None) -> Iterator[Worker]:
    """A worker with the null model. bare: its controller's socket, where not libzmq's."""
    with tempfile.TemporaryDirectory() as store:
        worker = Worker(Path(store), checkout, bare)
        try:
            worker.serve_null()
            yield worker
        finally:
            worker.close()


def unseen(seed: int) -> onnx.ModelProto:
    """A small network of an architecture that no other seed has."""
    rng = np.random.default_rng(seed)
    width = 64 + seed
    weights = {f"w{index}": rng.standard_normal((width, width)).astype(np.float32) for index in range(3)}
    nodes, last = [], "x"
    for name in weights:
        nodes.append(helper.make_node("MatMul", [last, name], [f"{name}.product"]))
        nodes.append(helper.make_node("Relu", [f"{name}.product"], [f"{name}.out"]))
        last = f"{name}.out"
    graph = helper.make_graph(
        nodes,
        "unseen",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def pace(worker: Worker, mode: str, count: int, seeds: Iterator[int]) -> tuple[list[int], list[int]]:
    """The lateness in ns of the starts and results of INFERs, while something else happens in the worker."""
    starts: list[int] = []
    results: list[int] = []
    under_way: dict[int, int] = {}  # for each action, the time at which it was to begin
    model_id = 0
    worker.disturb(mode)
    next_ns = now_ns() + 100 * MS
    sent = 0
    while sent < count or under_way:
        if mode == MODES[3] and len(worker.prepared) > 0 and sent < count:
            worker.prepared.clear()
            model_id = next(seeds)
            worker.announce(model_id, unseen(model_id))
        if sent < count and now_ns() >= next_ns:
            earliest_ns = now_ns() + AHEAD_NS
            under_way[worker.infer(earliest_ns, earliest_ns + SECOND)] = earliest_ns
            next_ns += SECOND // RATE_HZ
            sent += 1
        message = worker.receive(next_ns if sent < count else now_ns() + WAIT_NS)
        arrived_ns = now_ns()
        if not isinstance(message, Result) or message.action_id not in under_way:
            continue
        if message.status != Status.OK:
            raise AssertionError(f"an INFER ended as {Status(message.status).name}: {message.text}")
        starts.append(message.copy_in[0] - under_way.pop(message.action_id))
        results.append(arrived_ns - message.copy_out[1])
    worker.disturb("nothing")
    while mode == MODES[3] and not worker.prepared:
        worker.receive(now_ns() + WAIT_NS)
    return starts, results


def lateness(rounds: int, count: int) -> list[dict[str, Any]]:
    """Percentiles of the lateness of starts and results by what happens meanwhile."""
    found: dict[str, tuple[list[int], list[int]]] = {mode: ([], []) for mode in MODES}
    seeds = iter(range(2, 10_000))
    with serving(Path.cwd()) as worker:
        pace(worker, MODES[0], count // 4 + 1, seeds)  # warm-up load
        for number in range(rounds):
            for place in range(len(MODES)):
                mode = MODES[(number + place) % len(MODES)]
                starts, results = pace(worker, mode, count, seeds)
                found[mode][0].extend(starts)
                found[mode][1].extend(results)
    return [
        {
            "meanwhile": mode,
            "INFERs": len(starts),
            **{
                f"{name} p{mark} us": round(float(np.percentile(values, mark)) / 1e3, 1)
                for name, values in (("start", starts), ("result", results))
                for mark in (50, 99, 99.9)
            },
        }
        for mode, (starts, results) in found.items()
    ]


def flood(worker: Worker, router: BareRouter, count: int) -> tuple[float, float]:
    """Results a second, and processor time in us for each, with WINDOW under way.

    Messages are encoded before, and results only counted, so that this program keeps up with the worker."""
    parts, inputs = [[[FLOAT, [1, 4], 0]]], bytes(16)
    messages = [
        zmtp.message([codec.encode(Infer(number, 0, 1, 1, -NEVER_NS, NEVER_NS, MS // 20, parts)), inputs])
        for number in range(worker.last_id + 1, worker.last_id + 1 + count)
    ]
    worker.last_id += count
    sent = done = 0
    begin_ns, begin_cpu_ns = now_ns(), worker.processor_ns()
    while done < count:
        if (room := min(WINDOW - (sent - done), count - sent)) > 0:
            router.write(b"".join(messages[sent : sent + room]))
            sent += room
        ended, others = router.count()
        done += ended
        for frames in others:
            if isinstance(message := codec.decode(frames[0], FROM_WORKER), Result):
                raise AssertionError(f"an INFER ended as {Status(message.status).name}: {message.text}")
    took_ns = now_ns() - begin_ns
    return count * 1e9 / took_ns, (worker.processor_ns() - begin_cpu_ns) / count / 1e3


def throughput(checkouts: dict[str, Path], rounds: int, count: int) -> list[dict[str, Any]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    with contextlib.ExitStack() as stack:
        workers: dict[str, tuple[Worker, BareRouter]] = {}
        for name, path in checkouts.items():
            router = stack.enter_context(contextlib.closing(BareRouter()))
            workers[name] = stack.enter_context(serving(path, router)), router
        for worker, router in workers.values():
            flood(worker, router, count // 4 + 1)
        for _ in range(rounds):
            for name, (worker, router) in workers.items():
                found[name].append(flood(worker, router, count))
    return [
        {
            "worker": name,
            "INFERs/s": round(float(np.median([rate for rate, _ in rows]))),
            "processor us each": round(float(np.median([cost for _, cost in rows])), 1),
        }
        for name, rows in found.items()
    ]


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each part of a round")
    parser.add_argument("--base", type=Path, help="a checkout to compare with")
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.5) if arguments.quick else (arguments.rounds, arguments.seconds)
    checkouts = {"this": Path.cwd()}
    if arguments.base is not None:
        checkouts["base"] = arguments.base.resolve()
    costs = throughput(checkouts, rounds, 500 if arguments.quick else 5_000)
    facts: dict[str, Any] = {}
    if len(costs) > 1:
        facts = {
            "INFERs/s, times base": round(costs[0]["INFERs/s"] / costs[1]["INFERs/s"], 2),
            "processor time, times base": round(
                costs[0]["processor us each"] / costs[1]["processor us each"], 2
            ),
        }
    report.show("a null model through one worker", SEED, costs, facts, arguments.json)
    rows = lateness(rounds, round(RATE_HZ * seconds))
    facts = {
        f"p99.9 of {name}s beyond the quiet, us": max(
            round(row[f"{name} p99.9 us"] - rows[0][f"{name} p99.9 us"], 1) for row in rows[1:]
        )
        for name in ("start", "result")
    }
    report.show("lateness of a worker's INFERs", SEED, rows, facts, arguments.json)


if __name__ == "__main__":
    main()
