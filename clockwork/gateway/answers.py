"""Accounts for the bytes of answers that callers have not read yet, with bounds per caller and in all.

The module is pure: each call is given the time. A caller that does not read keeps its answer's bytes in
memory. Bounds on requests do not bound answers, because a small request may have a large answer. To refuse
new requests while the memory is full would let callers that do not read shut out all others. Therefore, where
memory is short, the gateway ends the connection whose answer has made no progress for longest. Part of the
memory is for small answers alone.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable

from clockwork.config import gateway as bounds
from clockwork.errors import Refused
from clockwork.system.clock import SECOND, to_ns
from clockwork.wire.messages import Reason


class HeldAnswer:
    """The memory that is reserved for the answer of one request."""

    __slots__ = ("begun_ns", "caller", "copies", "end", "model", "moved_ns", "released", "size")

    def __init__(self, caller: Hashable, copies: int, end: Callable[[], None]) -> None:
        """Reserve nothing yet.

        caller: identifies the connection. copies: the number of copies of the answer's bytes that the
        connection holds. end: ends the connection.
        """
        self.caller = caller
        self.copies = copies
        self.end = end
        self.model = ""
        self.size = 0  # size in bytes: first the expected, then the true one
        # Times of the answer's arrival, and of its caller's last read; 0: the answer has not arrived.
        self.begun_ns = self.moved_ns = 0
        self.released = False


class AnswerMemory:
    """The accounts of all answers of one server; see the module."""

    def __init__(self, answer_s: float) -> None:
        """answer_s: time limit for reading an answer, to which time for its size is added."""
        self._limit_ns = to_ns(answer_s)
        self.bytes = 0
        self._of_callers: collections.Counter[Hashable] = collections.Counter()
        # answers that have come, in the order of their last progress
        self._there: dict[HeldAnswer, None] = {}
        # By model: the sizes of its last two answers, the latest first, if either was large.
        self._sizes: collections.OrderedDict[str, tuple[int, int]] = collections.OrderedDict()

    def ask(self, held: HeldAnswer, model: str, now: int) -> None:
        """Reserve memory for an answer of the model: as much as the smaller of its last two answers took.

        The last answer alone would not do: after a single large answer, all requests of the model would
        reserve as much. Raises Refused. release() must follow.
        """
        held.model = model
        if expected := min(self._sizes.get(model, (0, 0))):
            self._take(held, expected * held.copies, now)

    def come(self, held: HeldAnswer, size: int, now: int) -> None:
        """Note the arrival of an answer of ``size`` bytes.

        Raises Refused; the caller of this method then drops the bytes.
        """
        last, _ = self._sizes.pop(held.model, (0, 0))
        if max(size, last) > bounds.JOINED_BYTES_MAX and held.model:
            self._sizes[held.model] = size, last
            if len(self._sizes) > bounds.ANSWER_MODELS_MAX:
                self._sizes.popitem(last=False)
        if held.released:  # the caller has gone meanwhile
            return
        self._give_back(held)
        self._take(held, size * held.copies, now)
        held.begun_ns = held.moved_ns = now
        self._there[held] = None

    def move(self, held: HeldAnswer, now: int) -> None:
        """Note that the caller has read a part of an answer."""
        held.moved_ns = now
        if held in self._there:
            del self._there[held]
            self._there[held] = None

    def release(self, held: HeldAnswer) -> None:
        """Give back the memory that is reserved for an answer. Idempotent."""
        held.released = True
        self._give_back(held)
        self._there.pop(held, None)

    def sweep(self, now: int) -> None:
        """End the connections whose answers have not been read within their time limits."""
        for held in list(self._there):
            if now - held.begun_ns > self._limit_ns + held.size * SECOND // bounds.ANSWER_BYTES_PER_S:
                held.end()

    def _take(self, held: HeldAnswer, size: int, now: int) -> None:
        mine = self._of_callers[held.caller] if self._of_callers else 0
        if mine and mine + size > bounds.CALLER_ANSWERS_BYTES_MAX:
            raise _full(
                f"{mine} bytes of answers on this connection wait to be read", bounds.CALLER_ANSWERS_BYTES_MAX
            )
        limit = bounds.ANSWERS_BYTES_MAX
        if size <= bounds.JOINED_BYTES_MAX:
            limit += bounds.SMALL_ANSWERS_BYTES_MAX
        if self.bytes + size > limit:
            longest = next(iter(self._there), None)
            if longest is not None and now - longest.moved_ns > bounds.ANSWER_STALL_NS:
                longest.end()
            raise _full(f"{self.bytes} bytes of answers wait to be read, and this one has {size}", limit)
        held.size = size
        self.bytes += size
        if size:
            self._of_callers[held.caller] += size

    def _give_back(self, held: HeldAnswer) -> None:
        if held.size:
            self.bytes -= held.size
            self._of_callers[held.caller] -= held.size
            if not self._of_callers[held.caller]:
                del self._of_callers[held.caller]
        held.size = 0


def _full(text: str, limit: int) -> Refused:
    return Refused(f"{text}; the gateway holds at most {limit}", Reason.OVERLOADED.value)
