"""A worker without a device that serves by itself, on a thread: honest, or with a lie that the test gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from clockwork.system.clock import MS, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.transport import ConnectionEvent
from tests.process.peers import FakeWorker, HasWorkers, prepared_model, result_of

Lie = Callable[[messages.Result, list[bytes]], tuple[Any, list[Any]]]
"""A function that replaces an honest result and its frames."""


class ThreadedWorker(FakeWorker):
    """Echoes the inputs of ``m`` [N, 2], as FakeWorker does, until it is closed; answers pings and prepares
    models.

    prepares: how; a text: it fails with that text. lie: changes the results of INFERs.
    """

    def __init__(
        self,
        controller: HasWorkers,
        epoch: int,
        prepares: dict[str, Any] | str | None = None,
        lie: Lie | None = None,
    ) -> None:
        super().__init__(controller, epoch)
        self.name = f"fake{epoch}"
        self.prepares: dict[str, Any] | str = prepares if prepares is not None else {}
        self.lie = lie
        self.asked = 0
        self.forgotten: list[int] = []
        self.batches: list[int] = []
        self.runs: list[int] = []
        self.is_let_go = False
        self._leave = threading.Event()
        self._draining = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def drain(self) -> None:
        """Say Goodbye, and answer the remaining actions."""
        self._leave.set()

    def _serve(self) -> None:
        beat_ns = 0
        while not self._stop.is_set():
            for change in self.dealer.changes():
                self.changed(change)
            if now_ns() >= beat_ns:
                beat_ns = now_ns() + 100 * MS
                self.beat()
            if self._leave.is_set() and not self._draining:
                self._draining = True
                self.send(messages.Goodbye())
            frames = self.dealer.receive()
            if frames is None:
                self.wait(5 * MS)
                continue
            message = codec.decode(frames[0], messages.TO_WORKER)
            self.obey(message, [bytes(frame) for frame in frames[1:]])

    def changed(self, change: ConnectionEvent) -> None:
        """The connection came up, or went down. An honest worker has one controller."""

    def beat(self) -> None:
        self.send(messages.Heartbeat(now_ns(), 0, {}))

    def obey(self, message: Any, frames: list[bytes]) -> None:
        match message:
            case messages.Ping():
                self.pong(message)
            case messages.Prepare():
                self._prepare(message)
            case messages.Forget():
                self.forgotten.append(message.model_id)
            case messages.HelloNeeded() | messages.Mismatch():
                self.is_let_go = True
            case messages.Infer():
                self.batches.append(len(message.parts))
                self._infer(message, frames)
            case messages.Load():
                self.runs.append(len(message.run_starts))
                self.answer(message, [])
            case messages.Unload() | messages.Profile():
                self.answer(message, [])

    def _prepare(self, message: Any) -> None:
        self.asked += 1
        if isinstance(self.prepares, str):
            self.send(messages.Prepared(message.model_id, messages.Status.INTERNAL, self.prepares, {}))
        else:
            summary = prepared_model(**({"digest": message.digest} | self.prepares)).summary()
            self.send(messages.Prepared(message.model_id, messages.Status.OK, "", summary))

    def _infer(self, action: messages.Infer, frames: list[bytes]) -> None:
        result = result_of(action.action_id, action.parts)
        if self.lie is not None:
            lied, frames = self.lie(result, frames)
            self.send(lied, *frames)
        else:
            self.send(result, *frames)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        super().close()


@contextmanager
def threaded_worker(controller: HasWorkers, epoch: int, *args: Any, **more: Any) -> Iterator[ThreadedWorker]:
    worker = ThreadedWorker(controller, epoch, *args, **more)
    try:
        yield worker
    finally:
        worker.close()
