"""The controller's side of a worker's conversation, played by hand, and a worker process to talk to."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clockwork import __version__
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec
from clockwork.wire.messages import (
    FROM_WORKER,
    NEVER_NS,
    NO_LEASE,
    PROTOCOL_VERSION,
    BundleOffer,
    BundleWanted,
    Chunk,
    Fetch,
    Heartbeat,
    Infer,
    Load,
    Prepare,
    Prepared,
    Result,
    Status,
    StillResident,
    Unload,
    WorkerHello,
    WorkerWelcome,
)
from clockwork.wire.transport import Poller, Transport
from tests.patience import PATIENCE_S, eventually
from tests.process.python_router import PythonRouter

ALWAYS = (-NEVER_NS, NEVER_NS)
"""The window of an action that may start at any time: a worker's clock may read less than 0."""

MAIN = """
import json, pathlib, sys
from clockwork.worker.process import main
from clockwork.worker.settings import WorkerSettings
settings = json.loads(sys.argv[1])
settings["store"] = pathlib.Path(settings["store"])
settings["key"] = pathlib.Path(settings["key"]) if settings.get("key") else None
raise SystemExit(main(WorkerSettings(**settings)))
"""


@dataclasses.dataclass
class Package:
    """A package as a controller would have it: its files' contents, and the fields of its Prepare."""

    contents: list[bytes]
    files: list[PackageFile]
    digest: str


def package(model: bytes) -> Package:
    files = [PackageFile("model.onnx", len(model), hashlib.sha256(model).hexdigest())]
    return Package([model], files, digest_of(files))


class SchedulerSide:
    """The side of a single worker at a time; everything happens on the caller's thread."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:0", keys: Any = None) -> None:
        self._transport = Transport()
        self.router = PythonRouter(self._transport, endpoint, keys)
        self.endpoint = self.router.endpoint
        self._poller = Poller([self.router])
        self.identity = b""
        self.packages: dict[str, Package] = {}
        self.fetched_bytes = 0
        self.heartbeats: list[Heartbeat] = []
        self.residents: list[StillResident] = []
        self._action_id = 0

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> SchedulerSide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----- messages ----------------------------------------------------------------------------

    def receive(self, timeout_s: float = PATIENCE_S) -> tuple[Any, list[Any]]:
        """Return the next message and its frames. Fetches are served, heartbeats and residencies kept."""
        deadline_ns = now_ns() + round(timeout_s * SECOND)
        while True:
            received = self.router.receive()
            if received is None:
                left_ns = deadline_ns - now_ns()
                assert left_ns > 0, "the worker says nothing"
                self._poller.wait(left_ns)
                continue
            identity, _, frames = received
            message = codec.decode(frames[0], FROM_WORKER)
            if isinstance(message, WorkerHello):
                self.identity = identity
            if isinstance(message, Fetch) and message.digest in self.packages:
                self._serve(message)
            elif isinstance(message, StillResident):
                self.residents.append(message)
            elif isinstance(message, BundleWanted):
                self.send(BundleOffer(message.model_id, "", []))
            elif isinstance(message, Heartbeat):
                self.heartbeats.append(message)
                return message, []
            else:
                return message, frames[1:]

    def _serve(self, fetch: Fetch) -> None:
        body = self.packages[fetch.digest].contents[fetch.file][fetch.offset : fetch.offset + fetch.length]
        self.fetched_bytes += len(body)
        self.send(Chunk(fetch.digest, fetch.file, fetch.offset, Status.OK), [body])

    def expect(self, kind: type, timeout_s: float = PATIENCE_S) -> Any:
        """Return the next message, which has to be of this kind (heartbeats apart), and have no frames."""
        return self.expect_frames(kind, timeout_s)[0]

    def expect_frames(self, kind: type, timeout_s: float = PATIENCE_S) -> tuple[Any, list[Any]]:
        deadline_ns = now_ns() + round(timeout_s * SECOND)
        while True:  # heartbeats do not extend the time limit
            message, frames = self.receive(max(deadline_ns - now_ns(), 0) / SECOND)
            if isinstance(message, kind):
                return message, frames
            assert isinstance(message, Heartbeat), message

    def send(self, message: Any, frames: Sequence[Any] = ()) -> None:
        assert self.router.send(self.identity, codec.encode(message), frames)

    def send_raw(self, header: bytes, frames: Sequence[Any] = ()) -> None:
        assert self.router.send(self.identity, header, frames)

    # ----- conversations -----------------------------------------------------------------------

    def welcome(self, epoch: int = 1, lease: Sequence[Any] = NO_LEASE) -> WorkerHello:
        """Accept a worker."""
        hello: WorkerHello = self.expect(WorkerHello)
        self.let_in(epoch, lease)
        return hello

    def let_in(self, epoch: int, lease: Sequence[Any]) -> None:
        """Welcome a worker as a controller with this lease does."""
        self.send(WorkerWelcome(PROTOCOL_VERSION, __version__, epoch, 7, lease))

    def announce(self, model_id: int, package: Package, **options: Any) -> None:
        self.packages[package.digest] = package
        self.send(
            Prepare(model_id, f"model{model_id}", 1, package.digest, rows_of(package.files), options, 0)
        )

    def prepare(self, model_id: int, package: Package, **options: Any) -> dict[str, Any]:
        """Have a model prepared; return its summary."""
        self.announce(model_id, package, **options)
        prepared: Prepared = self.expect(Prepared)
        assert (prepared.model_id, Status(prepared.status), prepared.text) == (model_id, Status.OK, "")
        return prepared.summary

    def next_action(self) -> int:
        self._action_id += 1
        return self._action_id

    def load(
        self,
        model_id: int,
        load_id: int,
        starts: list[int],
        latest_ns: int = NEVER_NS,
        earliest_ns: int = -NEVER_NS,
    ) -> Result:
        action_id = self.next_action()
        self.send(Load(action_id, 0, model_id, load_id, starts, earliest_ns, latest_ns, 1_000_000))
        return self.result(action_id)

    def unload(self, model_id: int, load_id: int) -> Result:
        action_id = self.next_action()
        self.send(Unload(action_id, 0, model_id, load_id, -NEVER_NS, NEVER_NS, 1_000))
        return self.result(action_id)

    def send_infer(
        self,
        model_id: int,
        load_id: int,
        parts: list[list[list[Any]]],
        frames: Sequence[Any],
        window: tuple[int, int] = ALWAYS,
        device: int = 0,
    ) -> int:
        action_id = self.next_action()
        self.send(Infer(action_id, device, model_id, load_id, *window, 1_000_000, parts), frames)
        return action_id

    def result(self, action_id: int) -> Result:
        return self.result_frames(action_id)[0]

    def result_frames(self, action_id: int) -> tuple[Result, list[Any]]:
        result, frames = self.expect_frames(Result)
        assert result.action_id == action_id
        return result, frames


class WorkerProcess:
    """A worker in a process of its own."""

    def __init__(self, endpoint: str, store: Path, log: Path, **settings: Any) -> None:
        self.log = log
        body = {"endpoint": endpoint, "name": "w", "store": str(store), "arena_bytes": 64 << 20, **settings}
        body.setdefault("page_bytes", 1 << 16)
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen([sys.executable, "-c", MAIN, json.dumps(body)], stderr=stderr)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def log_text(self) -> str:
        return self.log.read_text()

    def children(self) -> list[int]:
        """Return the process ids of the worker's children."""
        return [pid for pid, parent in _parents().items() if parent == self.process.pid]

    def wait_for_child(self) -> int:
        children: list[int] = eventually(self.children, "the worker has a child")
        return children[0]


def _parents() -> dict[int, int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # a process may end meanwhile
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return parents


@contextlib.contextmanager
def running_worker(endpoint: str, store: Path, **settings: Any) -> Iterator[WorkerProcess]:
    """Run a worker for the duration of the context; it must leave nothing behind, however it ends."""
    descriptor, log = tempfile.mkstemp(suffix=".log", prefix="worker-")
    os.close(descriptor)
    worker = WorkerProcess(endpoint, store, Path(log), **settings)
    try:
        yield worker
    except BaseException:
        print(worker.log_text(), file=sys.stderr)
        raise
    finally:
        children = worker.children()
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.wait()
        eventually(lambda: all(_is_zombie(pid) for pid in children), "the worker's children end")
        worker.log.unlink()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
