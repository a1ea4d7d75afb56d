"""A controller of a few lines, for tests of the client: its answers come from each test's handler."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from clockwork.system.wake import WakeDescriptor
from clockwork.wire import codec
from clockwork.wire.keys import ControllerKeys
from clockwork.wire.messages import (
    FROM_CLIENT,
    NO_LEASE,
    PROTOCOL_VERSION,
    Answer,
    Bye,
    ClientHello,
    ClientWelcome,
    Failure,
    HelloNeeded,
    InferRequest,
    Query,
    Reply,
    Status,
)
from clockwork.wire.transport import Poller, Transport
from tests.patience import PATIENCE_S
from tests.process.python_router import PythonRouter


class FakeController:
    """Runs on a thread of its own. ``handle(controller, identity, message, frames)`` may be replaced.

    The default handler answers every InferRequest with its inputs. Any use of the socket by a test goes
    through do(), which runs it on the controller's thread.
    """

    def __init__(
        self,
        endpoint: str = "tcp://127.0.0.1:0",
        *,
        keys: ControllerKeys | None = None,
        handle: Callable[[FakeController, bytes, Any, list[Any]], None] | None = None,
        greet: bool = True,
        lease: Sequence[Any] = NO_LEASE,
    ) -> None:
        self.handle = handle or echo
        self.greet = greet
        self.lease = lease
        self.received: list[Any] = []
        self.peers: list[bytes] = []
        self._changed = threading.Condition()
        self._work: list[Callable[[], None]] = []
        self._stop = False
        self._wakeup = WakeDescriptor()
        self._transport = Transport()
        self.router = PythonRouter(self._transport, endpoint, keys)
        self.endpoint = self.router.endpoint
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, identity: bytes, message: Any, frames: Any = ()) -> None:
        """Send a message; on the controller's thread only."""
        self.router.send(identity, codec.encode(message), frames)

    def do(self, work: Callable[[], None]) -> None:
        with self._changed:
            self._work.append(work)
        self._wakeup.set()

    def wait_for(self, kind: type, count: int = 1) -> list[Any]:
        """Return the messages of a kind, once there are ``count`` of them."""
        with self._changed:
            ok = self._changed.wait_for(
                lambda: len(self.of(kind)) >= count or self._failure, timeout=PATIENCE_S
            )
            assert self._failure is None, self._failure
            assert ok, self.received
            return self.of(kind)

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.received if type(message) is kind]

    def close(self) -> None:
        if self._thread.is_alive():
            self._stop = True
            self._wakeup.set()
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()
            self._wakeup.close()
        assert self._failure is None, self._failure

    def __enter__(self) -> FakeController:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            poller = Poller([self.router], [self._wakeup.fileno()])
            while not self._stop:
                poller.wait(-1)
                with contextlib.suppress(BlockingIOError):
                    self._wakeup.clear()
                with self._changed:
                    work, self._work = self._work, []
                for one in work:
                    one()
                while (got := self.router.receive()) is not None:
                    self._take(*got)
        except BaseException as failure:
            with self._changed:
                self._failure = failure
                self._changed.notify_all()
            raise
        finally:
            self._transport.close()

    def _take(self, identity: bytes, _: int, frames: list[Any]) -> None:
        message = codec.decode(frames[0], FROM_CLIENT)
        handle = self.handle  # read now: a test may replace it as soon as it sees that this message came
        if type(message) is ClientHello and identity not in self.peers:
            self.peers.append(identity)
        with self._changed:
            self.received.append(message)
            self._changed.notify_all()
        if type(message) is ClientHello:
            if self.greet:
                self.send(identity, ClientWelcome(PROTOCOL_VERSION, "fake", 1, self.lease))
        elif identity not in self.peers:
            self.send(identity, HelloNeeded(1))
        elif type(message) is not Bye:
            handle(self, identity, message, frames[1:])


INPUTS = [{"name": name, "dtype": "float32", "shape": ["N", 2]} for name in ("x", "x1", "a", "b")]
"""Return a fake controller's description of any model."""


def echo(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
    """Answers a request with its own inputs, each named y, y1, y2, ... in order; describes any model."""
    if type(message) is InferRequest:
        tensors = [
            [f"y{index or ''}", dtype, shape, frame]
            for index, (_, dtype, shape, frame) in enumerate(message.tensors)
        ]
        controller.send(identity, Answer(message.request_id, 1, tensors, [0, 0, 0, 0]), frames)
    elif type(message) is Query and message.what == "model":
        described = {"name": message.argument, "version": 1, "state": "ready", "inputs": INPUTS}
        controller.send(identity, Reply(message.request_id, described))


def silent(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
    """Answers nothing."""


def failing(status: Status, text: str, details: dict[str, Any] | None = None) -> Any:
    """Return a handler that answers every request with one failure."""

    def handle(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if hasattr(message, "request_id"):
            controller.send(identity, Failure(message.request_id, status, text, details or {}))

    return handle
