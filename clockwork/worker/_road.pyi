"""Types of the native road, for checkers. Any thread may call methods; start() and stop() share one."""

from collections.abc import Sequence
from typing import Any

from clockwork.device.base import TensorView
from clockwork.wire._zmq import Functions

# Kinds of notices; see csrc/worker/road.h.
MESSAGE: int
NEWS: int
ENDED: int
CHECK: int
FAULT: int
STUCK: int
TWICE: int
UNSENT: int
DRAINED: int
FAILED: int
STORE_FETCH: int
STORE_DROP: int

class Ended:
    """An ended INFER whose outputs are not as its model declares."""

    inputs: list[list[TensorView]]
    """The inputs of each part, without their bytes."""

    outputs: list[list[TensorView]]
    """The outputs of each part, valid until answer()."""

    model_id: int
    def answer(self, text: str) -> None:
        """Answer the INFER. text: the sentence with which it fails; "": its outputs are sent."""

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
        lending: dict[str, int],
        messages_per_turn: int,
        frames_per_message: int,
        queued_actions: int,
        notice_bytes: int,
        copied_frame_bytes: int,
        jitter_window: int,
    ) -> None:
        """socket, monitor: their addresses; filenos: their descriptors. clock: WorkerClock.settings."""

    def add_device(self, port: object, run_ahead: int) -> None:
        """Add a device by the capsule of its port. Called before start()."""

    def add_outlet(self, outlet: object) -> None:
        """Add an outlet, given as a capsule. Called before start()."""

    def keep_store(self) -> None:
        """Have FETCH and DROP come as notices, which store_ended() answers. Called before start()."""

    def start(self) -> None: ...
    def stop(self) -> None:
        """Stop receiving and answering. Devices may be closed from then on."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while take() has notices."""

    def take(self) -> list[tuple[int, int, int, int, Any]]:
        """Return the notices since the last call: (kind, number, value, time in ns, frames, text or an
        Ended)."""

    def serve(self, serves: bool) -> None:
        """Set whether actions are taken."""

    def send(self, header: bytes, frames: Sequence[Any] = ()) -> bool:
        """Send a message. False: the connection's queue is full."""

    def adopt(self, socket: int, monitor: int, filenos: Sequence[int]) -> None:
        """Take another socket in place of the road's, which it does not use any more. socket, monitor: their
        addresses; filenos: their descriptors."""

    def renumber(self, kept: Sequence[int]) -> None:
        """Give the remaining devices new indices. kept: their add_device() numbers. No action may be held."""

    def reset(self) -> None:
        """Forget every action."""

    def cancel(self, action_id: int = 0, status: int = 0, text: str = "") -> None:
        """Answer `action_id` with this outcome and all other actions as cancelled; refuse later actions."""

    def drain(self) -> None:
        """Request the notice DRAINED, which comes once no action is held."""

    def model_ready(
        self,
        model_id: int,
        outputs: Sequence[tuple[int, list[int] | None]],
        verified: bool,
        batches: bool,
        strings_max: int,
        output_bytes_max: int,
    ) -> None:
        """Let actions name the model. outputs: (dtype, dimensions, -1 for any size, or None for any shape)
        each."""

    def model_gone(self, model_id: int, absence: str = "") -> None:
        """Have actions that name the model refused. absence: why, as a sentence; "": the model is unknown."""

    def model_whole(self, model_id: int) -> None:
        """Start the LOADs that waited for the model's files to be checked: the files are whole."""

    def deliver(self, frames: Sequence[Any], now: int) -> bool:
        """Take an action that came before the session began. False: the message is no action."""

    def store_ended(self, action_id: int, status: int, text: str = "") -> None:
        """Answer the action of a notice STORE_FETCH or STORE_DROP; one that was forgotten has no answer."""

    def holds(self, action_id: int) -> bool:
        """Whether an action has been received and not answered."""

    def lost(self, device: int) -> None:
        """Answer a broken device's orders again, after its fault was sent. device: the number of
        add_device()."""

    @property
    def count(self) -> int:
        """Return the number of actions that have not been answered."""

    def counts(self, device: int) -> tuple[int, int]:
        """Return the numbers of a device's actions that wait, and of those that it was given."""

    def jitter_p99_ns(self) -> int:
        """Return the 99th percentile of the lateness of timed waits, in ns."""

    def take_received(self) -> tuple[int, int, bool]:
        """Return (bytes, frames, whether at some time none was left) received since the last call."""

    def copied_bytes(self) -> int:
        """Return the bytes held by copies of inputs from clients' memory."""

    def tidy(self, now: int) -> None:
        """Give memory that has been unused for a while back to the system."""
