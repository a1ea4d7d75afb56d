"""Peers of a controller that a test controls: a raw client, and a worker without a device."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import struct
import threading
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnx
from onnx import helper

from clockwork.controller.ports import workers
from clockwork.controller.process import Controller
from clockwork.controller.settings import ControllerSettings
from clockwork.formats.prepared import FORMAT_VERSION, PreparedModel, TensorSpec
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.keys import PeerKeys
from clockwork.wire.transport import ConnectionEvent, Dealer, Poller, Transport
from tests.patience import PATIENCE_NS


def controller_settings(data: Path, **more: Any) -> ControllerSettings:
    anywhere = "tcp://127.0.0.1:0"
    endpoints = dict.fromkeys(("client_endpoint", "worker_endpoint", "events_endpoint"), anywhere)
    return ControllerSettings(**{**endpoints, "data": data, **more})


def on_loop(controller: Controller, work: Callable[[], Any]) -> Any:
    """Return the result of ``work``, called on the thread of the controller's loop."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    controller._storage.submit(lambda: None, lambda *_: found.put(work()))
    return found.get(timeout=PATIENCE_NS / SECOND)


@contextlib.contextmanager
def running_controller(data: Path, **more: Any) -> Iterator[Controller]:
    """A controller on a thread; an exception of its loop is raised again at the end.

    Time limit for silence: a fake worker answers pings only while its test looks.
    """
    controller = Controller(controller_settings(data, **more))
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            controller.run()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=serve)
    with unittest.mock.patch.object(workers, "WORKER_TIMEOUT_NS", PATIENCE_NS):
        thread.start()
        try:
            yield controller
        finally:
            controller.stop()
            controller._storage.wake()  # without this the loop would check only at its next heartbeat
            thread.join()
            controller.close()
            # The loop has frozen all objects for the collector, itself included: gigabytes in a few hundred
            # tests.
            vars(controller).clear()
        if failure:
            raise failure[0]


class Peer:
    """A dialled connection with a long timeout."""

    def __init__(self, endpoint: str, answers: dict[int, type], keys: PeerKeys | None = None) -> None:
        self._transport = Transport()
        self.dealer: Dealer = self._transport.dealer(endpoint, keys)
        self._poller = Poller([self.dealer])
        self._answers = answers
        deadline = now_ns() + PATIENCE_NS
        self.changes = self.dealer.changes()  # the first changes of the connection's state
        while not self.changes:
            assert now_ns() < deadline, f"no connection to {endpoint}"
            self._poller.wait(SECOND)
            self.changes = self.dealer.changes()

    @property
    def is_refused(self) -> bool:
        """Whether the controller refused the connection's keys."""
        return ConnectionEvent.REFUSED in self.changes

    def wait_for_end(self) -> None:
        """Wait until the connection has ended."""
        deadline = now_ns() + PATIENCE_NS
        while ConnectionEvent.DOWN not in self.dealer.changes():
            assert now_ns() < deadline, "the connection did not end"
            self.dealer.receive()
            self._poller.wait(SECOND)

    def send(self, message: Any, *frames: Any) -> None:
        assert self.dealer.send(codec.encode(message), frames)

    def receive(self, kind: type | None = None, within_ns: int = PATIENCE_NS) -> tuple[Any, list[bytes]]:
        """Return the next message (of that kind: others are passed over) and its frames."""
        deadline = now_ns() + within_ns
        while True:
            frames = self.dealer.receive()
            if frames is None:
                left = deadline - now_ns()
                assert left > 0, f"no {kind.__name__ if kind else 'message'} came"
                self._poller.wait(left)
                continue
            message = codec.decode(frames[0], self._answers)
            if kind is None or type(message) is kind:
                return message, [bytes(frame) for frame in frames[1:]]

    def wait(self, timeout_ns: int) -> None:
        self._poller.wait(timeout_ns)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawClient(Peer):
    def __init__(self, controller: Controller, *, hello: bool = True, keys: PeerKeys | None = None) -> None:
        super().__init__(controller.client_endpoint, messages.TO_CLIENT, keys)
        if hello:
            self.send(messages.ClientHello(messages.PROTOCOL_VERSION, "test", "test"))
            self.receive(messages.ClientWelcome)

    def register(self, name: str, content: bytes, request_id: int = 1, **options: Any) -> Any:
        """Upload a file and wait for the outcome: a Reply or a Failure."""
        row = ["model.onnx", len(content), hashlib.sha256(content).hexdigest()]
        self.send(messages.Register(request_id, name, [row], options))
        while True:
            message, _ = self.receive()
            if type(message) is messages.UploadNeed:
                for offset in range(0, len(content), message.chunk_bytes):
                    piece = content[offset : offset + message.chunk_bytes]
                    self.send(messages.UploadChunk(request_id, 0, offset), piece)
            elif type(message) in (messages.Reply, messages.Failure) and message.request_id == request_id:
                return message

    def infer(self, model: str, request_id: int, shape: list[int], data: bytes, slo_ns: int = 0) -> None:
        ref = ["x", 1, shape, 0]
        self.send(messages.InferRequest(request_id, model, slo_ns, 0, [ref]), data)


def echo_model(columns: int | str = 2, note: str = "") -> onnx.ModelProto:
    """The model that prepared_model() describes: an input x [N, columns] and an equal output y."""
    shape = ["N", columns]
    tensors = [helper.make_tensor_value_info(name, 1, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", tensors[:1], tensors[1:])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, doc_string=note
    )


def prepared_model(**changes: Any) -> PreparedModel:
    """Return a worker's summary of a small model with one input x [N, 2] and one output y [N, 2]."""
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "digest": "0" * 64,
        "fingerprint": "test",
        "program": "program",
        "holding": "bound",
        "inputs": [TensorSpec("x", 1, ("N", 2))],
        "outputs": [TensorSpec("y", 1, ("N", 2))],
        "batches": True,
        "batching_note": "",
        "batch_max": 8,
        "page_bytes": 4096,
        "runs": [1],
        "weights": [],
        "weights_bytes": 100,
        "resident_bytes": 4096,
        "load_ns": 100_000,
        "profile": [ProfilePoint(((2,),), batch, 1_000_000 + batch * 10_000) for batch in (1, 2, 4, 8)],
        "constants_note": "",
        "metadata": {},
        "example": [[1, 2]],
    }
    return PreparedModel(**(fields | changes))


class HasWorkers(Protocol):
    """A controller, in this process or another."""

    worker_endpoint: str


def result_of(
    action_id: int,
    parts: Sequence[Any] = (),
    status: messages.Status = messages.Status.OK,
    text: str = "",
    took_ns: int = 50_000,
) -> messages.Result:
    """Return the result of an action that began took_ns ago and ends now."""
    now, nothing = now_ns(), [0, 0, 0]
    phase = [now - took_ns, now, took_ns]
    return messages.Result(action_id, status, text, now, nothing, phase, nothing, list(parts))


class FakeWorker(Peer):
    """A worker whose model returns its input. It answers only when the test has it answer."""

    def __init__(
        self, controller: HasWorkers, epoch: int = 1, pages: int = 4, keys: PeerKeys | None = None
    ) -> None:
        super().__init__(controller.worker_endpoint, messages.TO_WORKER, keys)
        self.epoch, self.pages = epoch, pages
        self.hello()

    def hello(self) -> None:
        """Join the controller."""
        device = {
            "kind": "cpu", "name": "fake", "fingerprint": "test", "page_bytes": 4096, "page_count": self.pages,
            "run_ahead": 2,
        }  # fmt: skip
        name = f"fake{self.epoch}"
        self.send(messages.WorkerHello(messages.PROTOCOL_VERSION, "test", name, self.epoch, [device]))
        while not isinstance(answer := self.receive()[0], messages.WorkerWelcome):
            assert not isinstance(answer, messages.Mismatch), answer.text

    def prepare(self, status: messages.Status = messages.Status.OK, text: str = "", **changes: Any) -> Any:
        """Wait for Prepare and answer it."""
        message, _ = self.receive(messages.Prepare)
        changes = {"digest": message.digest} | changes
        summary = prepared_model(**changes).summary() if status == messages.Status.OK else {}
        self.send(messages.Prepared(message.model_id, status, text, summary))
        return message

    @contextlib.contextmanager
    def preparing(self, *args: Any, **changes: Any) -> Iterator[None]:
        """Answer a Prepare, as prepare() does, that comes while the block runs; the block waits for what
        follows."""
        thread = threading.Thread(target=self.prepare, args=args, kwargs=changes)
        thread.start()
        yield
        thread.join()

    def next_action(self) -> tuple[Any, list[bytes]]:
        deadline = now_ns() + PATIENCE_NS
        while True:
            assert now_ns() < deadline, "no action came"
            message, frames = self.receive()
            if type(message) is messages.Ping:
                self.pong(message)
            elif type(message) is not messages.Prepare:
                return message, frames

    def pong(self, message: Any) -> None:
        self.send(messages.Pong(message.sent_ns, now_ns(), now_ns()))

    def answer(
        self,
        action: Any,
        frames: list[bytes],
        status: messages.Status = messages.Status.OK,
        text: str = "",
        took_ns: int = 50_000,
    ) -> None:
        """Answer an action as done, with this duration; INFER echoes its inputs."""
        parts = action.parts if type(action) is messages.Infer and status == messages.Status.OK else []
        self.send(result_of(action.action_id, parts, status, text, took_ns), *(frames if parts else ()))

    def serve_one(self, took_ns: int = 50_000) -> Any:
        """Do the required LOADs until an INFER has been answered; return that action."""
        while True:
            action, frames = self.next_action()
            self.answer(action, frames, took_ns=took_ns)
            if type(action) is messages.Infer:
                return action


ROW = struct.pack("<2f", 1.5, -2.5)
"""An input for Served's model."""


class Served:
    """A controller with an honest client and an honest worker, whose model ``m`` echoes [N, 2] floats."""

    def __init__(self, controller: Controller, worker: FakeWorker, client: RawClient) -> None:
        self.controller = controller
        self.worker = worker
        self.client = client
        self._request_id = 100

    def check(self) -> None:
        """Check that the honest peers are served as if they were alone."""
        self._request_id += 1
        self.client.infer("m", self._request_id, [1, 2], ROW)
        self.worker.serve_one()
        answer, frames = self.client.receive(messages.Answer)
        assert (answer.request_id, frames) == (self._request_id, [ROW])

    def status(self) -> Any:
        self._request_id += 1
        self.client.send(messages.Query(self._request_id, "status", ""))
        while (reply := self.client.receive(messages.Reply)[0]).request_id != self._request_id:
            pass
        return reply.body


@contextlib.contextmanager
def serving(data: Path, epoch: int = 1) -> Iterator[Served]:
    """A Served. epoch: the honest worker's; a worker with the same epoch counts as that worker, restarted."""
    with (
        running_controller(data) as controller,
        FakeWorker(controller, epoch=epoch) as worker,
        RawClient(controller) as client,
    ):
        with worker.preparing():
            assert type(client.register("m", b"model")) is messages.Reply
        yield Served(controller, worker, client)
