"""A worker that joins, announces itself like any other, and sends false messages."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

from clockwork import __version__
from clockwork.formats.prepared import PreparedModel
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.transport import ConnectionEvent, Poller, Transport
from tests.chaos.processes import World

LIES = (
    "short", "dtype", "shape", "no parts", "too many parts", "twice", "unknown action", "another's action", "nonsense",
    "interface", "hello", "clock", "jitter", "times", "silent", "device fault",
)  # fmt: skip
HEARTBEAT_NS = 200 * MS
FLOAT, DOUBLE = 1, 11


class Liar:
    """A lying worker; it lies from its creation to close()."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.lie = rng.choice(LIES)
        self.told = 0
        self._rng = rng
        self._world = world
        found = next((world.template.root / "worker" / "prepared").rglob("prepared.json"))
        self._fingerprint = json.loads(found.read_text())["fingerprint"]
        self._transport = Transport()
        self._dealer = self._transport.dealer(world.worker_endpoint)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._transport.close()

    def _send(self, message: Any, *frames: bytes) -> None:
        self._dealer.send(codec.encode(message), frames)

    def _run(self) -> None:
        poller = Poller([self._dealer])
        heartbeat_ns, welcome = 0, False
        while not self._over.is_set():
            for change in self._dealer.changes():
                welcome = False
                if change is ConnectionEvent.UP:
                    self._hello()
            while (frames := self._dealer.receive()) is not None:
                message = codec.decode(frames[0], messages.TO_WORKER)
                welcome = welcome or type(message) is messages.WorkerWelcome
                self._answer(message, [bytes(frame) for frame in frames[1:]])
            if welcome and now_ns() > heartbeat_ns:
                heartbeat_ns = now_ns() + HEARTBEAT_NS
                jitter_ns = self._rng.choice([1 << 62, -1, 1 << 40]) if self._lies("jitter") else 0
                self._send(messages.Heartbeat(now_ns(), jitter_ns, {}))
                self._volunteer()
            poller.wait(SECOND // 50)

    def _hello(self) -> None:
        device = {
            "kind": "cpu", "name": "liar", "fingerprint": self._fingerprint, "page_bytes": 1 << 18, "page_count": 56,
            "run_ahead": 2,
        }  # fmt: skip
        if self._lies("hello"):
            device[self._rng.choice(["page_bytes", "page_count", "run_ahead"])] = self._rng.choice(
                [1 << 32, (1 << 63) - 1, -1, 0]
            )
        self._send(
            messages.WorkerHello(
                messages.PROTOCOL_VERSION, __version__, "liar", self._rng.getrandbits(62), [device]
            )
        )

    def _volunteer(self) -> None:
        """Send messages that nobody asked for."""
        if self._lies("unknown action"):
            self._send(self._result(self._rng.randrange(1 << 40), [[[FLOAT, [1, 10], 0]]]), bytes(40))
        elif self._lies("device fault"):
            self._send(messages.DeviceFault(self._rng.choice([0, 1, 7, 1 << 40]), "it broke, it says"))
        elif self._lies("nonsense"):
            self._dealer.send(self._rng.randbytes(self._rng.randrange(1, 200)), ())

    def _answer(self, message: Any, frames: list[bytes]) -> None:
        if type(message) is messages.Ping:
            stamp_ns = now_ns()
            if self._lies("clock"):
                stamp_ns = self._rng.choice(
                    [0, -(1 << 62), (1 << 62), stamp_ns + self._rng.randrange(-SECOND, SECOND)]
                )
            self._send(messages.Pong(message.sent_ns, stamp_ns, stamp_ns))
        elif type(message) is messages.Prepare:
            self._prepare(message)
        elif type(message) is messages.Infer:
            self._infer(message, frames)
        elif hasattr(message, "action_id") and not self._lies("silent"):
            self._send(self._result(message.action_id, []))

    def _prepare(self, message: Any) -> None:
        folders = list((self._world.template.root / "worker" / "prepared").glob(f"{message.digest}-*"))
        if not folders:
            self._send(messages.Prepared(message.model_id, messages.Status.INVALID_MODEL, "not today", {}))
            return
        summary = PreparedModel.read(folders[0]).summary()
        if self._lies("interface"):
            summary["outputs"] = [dict(summary["outputs"][0], shape=("N", 11), name="z")]
        self._send(messages.Prepared(message.model_id, messages.Status.OK, "", summary))

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
            result = self._result(action_id, [], messages.Status.DEVICE_ERROR, "out of order")
            if self._lies("times"):
                absurd = [self._rng.choice([-1, 0, 1 << 62, -(1 << 62)]) for _ in range(3)]
                result = result._replace(received_ns=absurd[0], copy_in=absurd, execute=absurd[::-1])
            self._send(result)
            if self._lies("twice"):
                self._send(result)
            return
        self._send(self._result(message.action_id, parts), *out)

    def _lies(self, lie: str) -> bool:
        """Whether this is the lie that the worker tells; if so, count it as told."""
        self.told += self.lie == lie
        return self.lie == lie

    @staticmethod
    def _result(
        action_id: int, parts: list[Any], status: messages.Status = messages.Status.OK, text: str = ""
    ) -> messages.Result:
        now, nothing = now_ns(), [0, 0, 0]
        return messages.Result(action_id, status, text, now, nothing, [now - MS, now, MS], nothing, parts)
