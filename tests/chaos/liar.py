"""A worker that joins, announces itself like any other, and sends false messages."""

from __future__ import annotations

import json
import random
from typing import Any

from clockwork import __version__
from clockwork.formats.prepared import PreparedModel
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.transport import ConnectionEvent
from tests.chaos.processes import World
from tests.process.peers import result_of
from tests.process.threaded_worker import ThreadedWorker

LIES = (
    "short", "dtype", "shape", "no parts", "too many parts", "twice", "unknown action", "another's action", "nonsense",
    "interface", "hello", "clock", "jitter", "times", "silent", "device fault",
)  # fmt: skip
FLOAT, DOUBLE = 1, 11


class Liar(ThreadedWorker):
    """A lying worker; it lies from its creation to close(), to every controller that comes up."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.kind = rng.choice(LIES)
        self.told = 0
        self._rng = rng
        self._world = world
        found = next((world.template.root / "worker" / "prepared").rglob("prepared.json"))
        self._fingerprint = json.loads(found.read_text())["fingerprint"]
        self._is_welcome = False
        super().__init__(world, 0)

    def send(self, message: Any, *frames: Any) -> None:
        """Send a message, or drop it where no controller is connected."""
        self.dealer.send(codec.encode(message), frames)

    def changed(self, change: ConnectionEvent) -> None:
        self._is_welcome = False
        if change is ConnectionEvent.UP:
            self.hello()

    def beat(self) -> None:
        if self._is_welcome:
            jitter_ns = self._rng.choice([1 << 62, -1, 1 << 40]) if self._lies("jitter") else 0
            self.send(messages.Heartbeat(now_ns(), jitter_ns, {}))
            self._volunteer()

    def hello(self) -> None:
        device = {
            "kind": "cpu", "name": "liar", "fingerprint": self._fingerprint, "page_bytes": 1 << 18, "page_count": 56,
            "run_ahead": 2,
        }  # fmt: skip
        if self._lies("hello"):
            device[self._rng.choice(["page_bytes", "page_count", "run_ahead"])] = self._rng.choice(
                [1 << 32, (1 << 63) - 1, -1, 0]
            )
        self.send(
            messages.WorkerHello(
                messages.PROTOCOL_VERSION, __version__, "liar", self._rng.getrandbits(62), [device]
            )
        )

    def _volunteer(self) -> None:
        """Send messages that nobody asked for."""
        if self._lies("unknown action"):
            self.send(result_of(self._rng.randrange(1 << 40), [[[FLOAT, [1, 10], 0]]]), bytes(40))
        elif self._lies("device fault"):
            self.send(messages.DeviceFault(self._rng.choice([0, 1, 7, 1 << 40]), "it broke, it says"))
        elif self._lies("nonsense"):
            self.dealer.send(self._rng.randbytes(self._rng.randrange(1, 200)), ())

    def obey(self, message: Any, frames: list[bytes]) -> None:
        if type(message) is messages.WorkerWelcome:
            self._is_welcome = True
        elif type(message) is messages.Ping:
            stamp_ns = now_ns()
            if self._lies("clock"):
                stamp_ns = self._rng.choice(
                    [0, -(1 << 62), (1 << 62), stamp_ns + self._rng.randrange(-SECOND, SECOND)]
                )
            self.send(messages.Pong(message.sent_ns, stamp_ns, stamp_ns))
        elif type(message) is messages.Prepare:
            self._prepare(message)
        elif type(message) is messages.Infer:
            self._infer(message, frames)
        elif hasattr(message, "action_id") and not self._lies("silent"):
            self.send(result_of(message.action_id))

    def _prepare(self, message: Any) -> None:
        folders = list((self._world.template.root / "worker" / "prepared").glob(f"{message.digest}-*"))
        if not folders:
            self.send(messages.Prepared(message.model_id, messages.Status.INVALID_MODEL, "not today", {}))
            return
        summary = PreparedModel.read(folders[0]).summary()
        if self._lies("interface"):
            summary["outputs"] = [dict(summary["outputs"][0], shape=("N", 11), name="z")]
        self.send(messages.Prepared(message.model_id, messages.Status.OK, "", summary))

    def _infer(self, message: Any, frames: list[bytes]) -> None:
        """Send an answer of zeros if the lie is in its form; otherwise report the device broken, because this
        worker cannot compute."""
        if self._lies("silent"):
            return
        rows = [part[0][1][0] for part in message.parts]
        dtype = DOUBLE if self._lies("dtype") else FLOAT
        columns = [10, 1] if self._lies("shape") else [10]
        short = 4 if self._lies("short") else 0
        parts: list[list[Any]] = []
        out: list[bytes] = []
        for number, count in enumerate(rows):
            parts.append([[dtype, [count, *columns], number]])
            out.append(bytes(count * 10 * (8 if dtype == DOUBLE else 4) - short))
        if self._lies("no parts"):
            parts, out = [], []
        elif self._lies("too many parts"):
            parts.append([[FLOAT, [1, 10], len(out)]])
            out.append(bytes(40))
        elif not (dtype == DOUBLE or len(columns) > 1 or short):
            action_id = message.action_id + (
                self._rng.choice((-1, 1)) if self._lies("another's action") else 0
            )
            result = result_of(action_id, status=messages.Status.DEVICE_ERROR, text="out of order")
            if self._lies("times"):
                absurd = [self._rng.choice([-1, 0, 1 << 62, -(1 << 62)]) for _ in range(3)]
                result = result._replace(received_ns=absurd[0], copy_in=absurd, execute=absurd[::-1])
            self.send(result)
            if self._lies("twice"):
                self.send(result)
            return
        self.send(result_of(message.action_id, parts), *out)

    def _lies(self, lie: str) -> bool:
        """Whether this is the lie that the worker tells; if so, count it as told."""
        self.told += self.kind == lie
        return self.kind == lie
