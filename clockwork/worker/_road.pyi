"""Types of the native road, for checkers. Any thread may call the methods; start() and stop() are for one."""

from collections.abc import Sequence
from typing import Any

from clockwork.device.base import Completion, TensorView
from clockwork.wire._zmq import Functions

# Kinds of notices; see csrc/worker/road.h.
MESSAGE: int
NEWS: int
SHARED: int
ENDED: int
CHECK: int
FAULT: int
STUCK: int
REVOKE: int
TWICE: int
UNSENT: int
DRAINED: int
FAILED: int

class Ended:
    """An INFER that has ended on its device and whose result is Python's to make; close() frees it."""

    completion: Completion
    inputs: list[list[TensorView]]
    """Of each part, without their bytes."""

    received_ns: int
    model_id: int
    def close(self) -> None: ...

class Road:
    def __init__(
        self,
        functions: Functions,
        socket: int,
        monitor: int,
        filenos: Sequence[int],
        clock: tuple[int, int, int],
        *,
        limits: dict[str, int],
        messages_per_turn: int,
        frames_per_message: int,
        queued_actions: int,
        notice_bytes: int,
        copied_frame_bytes: int,
        jitter_window: int,
    ) -> None:
        """socket, monitor: their addresses; filenos: their descriptors. clock: WorkerClock.settings."""

    def add_device(self, port: object, run_ahead: int) -> None:
        """port: a capsule of the device's. Before start()."""

    def add_outlet(self, outlet: object) -> None:
        """outlet: a capsule. Before start()."""

    def start(self) -> None: ...
    def stop(self) -> None:
        """Nothing is received or answered any more. Devices may be closed from then on."""

    def fileno(self) -> int:
        """Readable while take() has something."""

    def take(self) -> list[tuple[int, int, int, int, Any]]:
        """What there is to do: (kind, number, value, when it came in ns, frames or text or an Ended)."""

    def serve(self, serves: bool) -> None:
        """Whether actions are taken."""

    def send(self, header: bytes, frames: Sequence[Any] = ()) -> bool:
        """False: the connection's queue is full."""

    def renumber(self, kept: Sequence[int]) -> None:
        """kept: of the devices that go on, the numbers of add_device(), in order. Nothing may be held."""

    def reset(self) -> None:
        """Forget every action."""

    def cancel(self, action_id: int = 0, status: int = 0, text: str = "") -> None:
        """Answer every action as cancelled, but for one with this outcome, and refuse all that come."""

    def drain(self) -> None:
        """Have DRAINED be told once nothing is held."""

    def model_ready(
        self,
        model_id: int,
        outputs: Sequence[tuple[int, list[int] | None]],
        verified: bool,
        batches: bool,
        strings_max: int,
        output_bytes_max: int,
    ) -> None:
        """Actions may name the model. outputs: (dtype, dimensions with -1 for any, or None for any shape) each."""

    def model_gone(self, model_id: int, absence: str = "") -> None:
        """Actions may not name the model. absence: why, as a sentence; "": it is not known."""

    def model_whole(self, model_id: int) -> None:
        """The model's stored bytes are whole: LOADs that waited for that start."""

    def deliver(self, frames: Sequence[Any], now: int) -> bool:
        """Take an action that came before the session began. False: it is no action."""

    def receive_copied(self, header: bytes, tensors: Sequence[Any], now: int) -> None:
        """Queue an INFER whose inputs were copied, or refuse it. tensors: the bytes of all of them, in order."""

    def holds(self, action_id: int) -> bool:
        """Whether an action has been received and not answered."""

    def lost(self, device: int) -> None:
        """A device's fault was told: its orders are answered again. device: the number of add_device()."""

    @property
    def count(self) -> int:
        """Actions that have not been answered."""

    def counts(self, device: int) -> tuple[int, int]:
        """Actions of a device that wait, and that it was given."""

    def jitter_p99_ns(self) -> int:
        """The 99th percentile of the lateness of timed waits."""

    def take_received(self) -> tuple[int, int, bool]:
        """(bytes, frames, whether at some time none was left) of what was received since the last call."""
