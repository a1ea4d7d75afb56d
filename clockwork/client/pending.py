"""Calls of a client: what was asked, who waits for it, and how a failure becomes an exception."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from clockwork import config
from clockwork.errors import (
    Cancelled,
    ClockworkError,
    DeadlineMissed,
    ExecutionFailed,
    Forbidden,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    ProtocolMismatch,
    Refused,
    Unavailable,
)
from clockwork.system.clock import now_ns, to_seconds
from clockwork.wire.messages import Failure, Status
from clockwork.wire.transport import Frame

Received: TypeAlias = tuple[Any, list[Frame]]
"""A message of the controller and its frames."""


def error_of(failure: Failure) -> ClockworkError:
    """The exception that says the same as a Failure message."""
    text, details = failure.text, failure.details
    match failure.status:
        case Status.REFUSED:
            return Refused(
                text,
                str(details.get("reason", "")),
                _seconds_or_none(details.get("feasible_slo_ns")),
                _seconds_or_none(details.get("retry_after_ns")),
            )
        case Status.INVALID_INPUT:
            return InvalidInput(text, *(str(details.get(key, "")) for key in ("tensor", "expected", "got")))
    return _ERRORS.get(failure.status, ClockworkError)(text)


_ERRORS: dict[int, type[ClockworkError]] = {
    Status.DEADLINE_MISSED: DeadlineMissed,
    Status.CANCELLED: Cancelled,
    Status.MODEL_NOT_FOUND: ModelNotFound,
    Status.EXECUTION_FAILED: ExecutionFailed,
    Status.UNAVAILABLE: Unavailable,
    Status.PROTOCOL_MISMATCH: ProtocolMismatch,
    Status.INVALID_MODEL: InvalidModel,
    Status.FORBIDDEN: Forbidden,
}


def _seconds_or_none(ns: Any) -> float | None:
    return to_seconds(ns) if isinstance(ns, int) and ns > 0 else None


class PendingCall:
    """One request and what becomes of it. Its fields belong to the owner until ``done``."""

    __slots__ = (
        "connect_ns", "deadline_ns", "done", "error", "frames", "future", "header", "inbox", "lock",
        "received", "renewed", "request_id", "sent", "timeout_ns",
    )  # fmt: skip

    def __init__(self, request_id: int, header: bytes, frames: Sequence[Frame], timeout_ns: int) -> None:
        now = now_ns()
        self.request_id = request_id
        self.header = header
        self.frames = frames
        self.timeout_ns = timeout_ns
        self.deadline_ns = now + timeout_ns
        self.connect_ns = now + config.CLIENT_CONNECT_NS
        self.renewed = False
        self.sent = False
        self.done = False
        self.received: Received | None = None
        self.error: ClockworkError | None = None
        self.lock: threading.Lock | None = None  # held until done: what a waiting thread waits for
        self.future: CallFuture | None = None
        self.inbox: queue.SimpleQueue[Received | ClockworkError] | None = None  # of a stream

    def finish(self, received: Received | None, error: ClockworkError | None) -> None:
        if self.done:
            return
        self.received, self.error = received, error
        self.done = True
        self.frames = ()
        if self.lock is not None:
            self.lock.release()
        elif self.future is not None:
            self.future.finish(received, error)
        elif self.inbox is not None:
            self.inbox.put(error if error is not None else present(received))

    def result(self) -> Received:
        if self.error is not None:
            raise self.error
        return present(self.received)


def present(received: Received | None) -> Received:
    assert received is not None
    return received


class CallFuture(concurrent.futures.Future[Any]):
    """The future of a call. Its callbacks run on the channel's I/O thread and must not block.

    cancel() also tells the controller, which then drops the request if it can.
    """

    def __init__(
        self,
        call: PendingCall,
        convert: Callable[[Any, list[Frame]], Any],
        abandon: Callable[[PendingCall], None],
    ) -> None:
        super().__init__()
        self._call = call
        self._convert = convert
        self._abandon = abandon

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._abandon(self._call)
        return cancelled

    def finish(self, received: Received | None, error: ClockworkError | None) -> None:
        if not self.set_running_or_notify_cancel():
            return
        if error is None:
            try:
                self.set_result(self._convert(*present(received)))
            except Exception as wrong:  # the caller's to see, whatever it is: the I/O thread goes on
                self.set_exception(wrong)
        else:
            self.set_exception(error)
