"""Pending calls: requests under way, and the futures of calls for which no thread waits."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from clockwork.config import client as bounds
from clockwork.errors import ClockworkError
from clockwork.system.clock import now_ns
from clockwork.wire.messages import NEVER_NS
from clockwork.wire.transport import Frame

if TYPE_CHECKING:
    import asyncio

Received: TypeAlias = tuple[Any, list[Frame]]  # A message of the controller and its frames

Value = TypeVar("Value")


class Receiver(Protocol):
    """The interface of futures that a pending call needs."""

    def cancelled(self) -> bool: ...

    def finish(self, received: Received | None, error: ClockworkError | None) -> None: ...


class PendingCall:
    """A request under way. Its fields belong to the socket's owner until ``done``."""

    __slots__ = (
        "asked_ns", "asks_left", "connect_ns", "deadline_ns", "done", "error", "frames", "future", "header", "inbox", "lock", "missed_ns",
        "received", "renewed", "request_id", "sent", "timeout_ns",
    )  # fmt: skip

    def __init__(
        self, request_id: int, header: bytes, frames: Sequence[Frame], timeout_ns: int, asks_left: int = 0
    ) -> None:
        now = now_ns()
        self.asked_ns = now  # the time from which the header's SLO counts
        self.asks_left = asks_left  # times that it is asked again where the connection is lost
        self.request_id = request_id
        self.header = header
        self.frames = frames
        self.timeout_ns = timeout_ns
        self.deadline_ns = now + timeout_ns
        self.connect_ns = now + bounds.CLIENT_CONNECT_NS
        self.missed_ns = NEVER_NS  # the time from which a call that waits to be asked again is late
        self.renewed = False
        self.sent = False
        self.done = False
        self.received: Received | None = None
        self.error: ClockworkError | None = None
        self.lock: threading.Lock | None = None  # held until the call is done, where a thread waits
        self.future: Receiver | None = None
        self.inbox: queue.SimpleQueue[Received | ClockworkError] | None = None  # the messages of a stream

    def finish(self, received: Received | None, error: ClockworkError | None) -> None:
        """End the call, unless it has ended: ``received`` or ``error`` is set.

        The channel keeps an ended call until its deadline. Therefore the call does not keep the answer, which
        may be large: the future, the inbox or the caller of result() gets it.
        """
        if self.done:
            return
        self.done = True
        self.frames = ()
        if self.future is not None:
            # The future refers to the call: no reference cycle is left
            future, self.future = self.future, None
            future.finish(received, error)
        elif self.inbox is not None:
            self.inbox.put(error if error is not None else present(received))
        else:
            self.received, self.error = received, error
            if self.lock is not None:
                self.lock.release()

    def result(self) -> Received:
        """Return the answer of a done call without a future, and drop it.

        Raises the error that ended the call.
        """
        received, self.received = self.received, None
        if self.error is not None:
            raise self.error
        return present(received)


def present(received: Received | None) -> Received:
    assert received is not None
    return received


class CallFuture(concurrent.futures.Future[Value], Generic[Value]):
    """The future of a call. Its callbacks run on the channel's I/O thread and must not block.

    cancel() also cancels the request at the controller, which drops it if it can.
    """

    def __init__(
        self,
        call: PendingCall,
        decode: Callable[[Any, list[Frame]], Value],
        abandon: Callable[[PendingCall], None],
    ) -> None:
        super().__init__()
        self._call = call
        self._decode = decode
        self._abandon = abandon

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._abandon(self._call)
        return cancelled

    def finish(self, received: Received | None, error: ClockworkError | None) -> None:
        if self.set_running_or_notify_cancel():
            settle(self, self._decode, received, error)


def settle(
    future: concurrent.futures.Future[Value] | asyncio.Future[Value],
    decode: Callable[[Any, list[Frame]], Value],
    received: Received | None,
    error: ClockworkError | None,
) -> None:
    """Set a future's result or exception from the message or the error that ended its call."""
    if error is None:
        try:
            future.set_result(decode(*present(received)))
        # The caller gets any exception of decoding, and the socket's owner continues
        except Exception as wrong:
            future.set_exception(wrong)
    else:
        future.set_exception(error)
