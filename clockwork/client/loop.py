"""A client whose I/O is done by an asyncio event loop itself, without a thread of its own.

AsyncClient hands every call to an I/O thread, which hands the answer back, so that any loop and any thread
may share the client. These two changes of thread would be most of a gateway's cost for a call. Here the event
loop itself owns the socket (see clockwork.client.channel).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic

from clockwork.client.aio import AsyncClient
from clockwork.client.blocking import Client
from clockwork.client.calls import INFER_FRAMES, AnswerFrames, Arguments, Call, Value
from clockwork.client.channel import Channel, Owner
from clockwork.client.pending import PendingCall, Received, settle
from clockwork.config import INFLOW_LOOK_NS
from clockwork.errors import ClockworkError
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.keys import PeerKeys
from clockwork.wire.messages import NEVER_NS, NamedTensorRef
from clockwork.wire.transport import Dealer, Frame


class _LoopFuture(asyncio.Future[Value], Generic[Value]):
    """The future of a call that the loop's thread began. cancel() cancels the call at the controller, too."""

    def __init__(
        self,
        call: PendingCall,
        decode: Callable[[Any, list[Frame]], Value],
        abandon: Callable[[PendingCall], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop=loop)
        self._call = call
        self._decode = decode
        self._abandon = abandon

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._abandon(self._call)
        return cancelled

    def finish(self, received: Received | None, error: ClockworkError | None) -> None:
        if not self.done():
            settle(self, self._decode, received, error)


class LoopChannel(Channel):
    """A channel whose socket belongs to the running loop from start() on. Any thread may call its methods."""

    def __init__(self, endpoint: str, keys: PeerKeys | None, name: str, asks_again: bool = True) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: Dealer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = NEVER_NS
        self._busy = False  # whether _turn() runs
        self._again: asyncio.Handle | None = None  # the scheduled next turn, where messages are left
        super().__init__(endpoint, keys, name, asks_again)

    def start(self) -> None:
        """Make the running loop the socket's owner until close(). To be called before the first call."""
        self._loop = asyncio.get_running_loop()
        with self._lock:
            assert self._owner is Owner.NOBODY
            self._owner = Owner.LOOP
            self._thread = threading.current_thread()
        self._sleeping = True  # true for other threads, which write to the descriptor that the loop watches
        self._loop.add_reader(self._wakeup.fileno(), self._woken_up)
        self._turn()

    def submit_on_loop(
        self, call: Call[Value, *Arguments], timeout_ns: int, *arguments: *Arguments
    ) -> asyncio.Future[Value]:
        """Like submit(), for callers on the loop's thread. Raises Refused past the bound."""
        assert self._loop is not None
        pending = self._pending_call(call, timeout_ns, *arguments)
        pending.future = future = _LoopFuture(pending, call.decode, self.abandon, self._loop)
        self._check_usable()
        self._check_room()
        self._now_or_later(lambda: self._begin(pending, True))
        return future

    # ----- the loop's work ---------------------------------------------------------------------

    def _hand_in(self, work: Callable[[], None], bounded: bool) -> None:
        if self._loop is None or threading.current_thread() is not self._thread:
            super()._hand_in(work, bounded)
            return
        self._check_usable()
        if bounded:
            self._check_room()
        self._now_or_later(work)

    def _now_or_later(self, work: Callable[[], None]) -> None:
        if self._busy:  # called inside _turn(), which empties the queue before it ends
            self._queue.append(work)
            return
        work()
        # Sending may consume the event that the socket's descriptor would have signalled.
        if self._dealer is not self._watched or (self._dealer is not None and self._dealer.readable()):
            self._turn()
        else:
            self._arm()

    def _woken_up(self) -> None:
        self._wakeup.clear()
        self._turn()

    def _turn(self) -> None:
        """Do the queued work, receive, and schedule the next turn.

        The next turn comes at the next deadline, or, where a flood leaves messages, after other handlers.
        """
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._busy = True
        try:
            while True:
                while self._queue:
                    self._queue.popleft()()
                if self._closing:
                    self._finish()
                    return
                self._pump()
                self._expire(now_ns())
                if self._queue:
                    continue
                if self._dealer is not None and self._dealer.readable() and self._loop is not None:
                    self._again = self._loop.call_soon(self._turn)
                break
            self._watch()
        finally:
            self._busy = False
        self._arm()

    def _watch(self) -> None:
        if self._dealer is not self._watched and self._loop is not None:
            self._unwatch()
            if self._dealer is not None:
                for fd in self._dealer.filenos:
                    self._loop.add_reader(fd, self._turn)
            self._watched = self._dealer

    def _unwatch(self) -> None:
        if self._watched is not None and self._loop is not None and not self._loop.is_closed():
            for fd in self._watched.filenos:
                self._loop.remove_reader(fd)
        self._watched = None

    def _arm(self) -> None:
        due_ns = min(self._next_deadline_ns(), self._turns.due_ns, now_ns() + INFLOW_LOOK_NS)
        if due_ns < self._timer_ns and self._loop is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_ns = due_ns
            self._timer = self._loop.call_later(max(0, due_ns - now_ns()) / SECOND, self._timed)

    def _timed(self) -> None:
        self._timer, self._timer_ns = None, NEVER_NS
        self._turn()

    def _hang_up(self) -> None:
        self._unwatch()
        super()._hang_up()

    def _release(self) -> None:
        self._unwatch()
        for handle in (self._timer, self._again):
            if handle is not None:
                handle.cancel()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._wakeup.fileno())
        super()._release()


class _LoopedClient(Client):
    channel_type = LoopChannel


class LoopClient(AsyncClient):
    """AsyncClient whose I/O runs on an event loop's thread. Made, used and closed while that loop runs."""

    client_type = _LoopedClient
    _channel: LoopChannel

    def start(self) -> None:
        """Make the running loop the socket's owner. To be called before the first call."""
        self._channel.start()

    def discount(self, kept_bytes: Callable[[], int]) -> None:
        """Leave bytes that the process holds for its callers out of the controller's; see Inflow.look()."""
        self._channel.kept_bytes = kept_bytes

    async def _ask(
        self, call: Call[Value, *Arguments], timeout: float | None, *arguments: *Arguments
    ) -> Value:
        return await self._channel.submit_on_loop(call, self._client._limit_ns(timeout), *arguments)

    def infer_frames(
        self,
        model: str,
        references: list[NamedTensorRef],
        frames: Sequence[Frame],
        slo_ns: int,
        priority: int,
        timeout_ns: int,
    ) -> asyncio.Future[AnswerFrames]:
        """Like infer() with encoded tensors; return a future of the Answer and its frames.

        Only the controller checks the references against the model. The frames must not change before the
        future is done. Raises InvalidInput for a message that is too large, which the controller would drop.
        """
        return self._channel.submit_on_loop(
            INFER_FRAMES, timeout_ns, model, references, frames, slo_ns, priority
        )
