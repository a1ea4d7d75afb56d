"""Room for the answers that a gateway holds until their callers have taken them, bounded for each caller and in all.

Pure: time comes in with each call. A caller that does not read costs an answer's bytes for as long as the gateway lets
it; small requests may ask for large answers, so nothing that is bounded on the way in bounds them. The obvious mend, to
refuse whoever comes while the room is full, would let those who do not read shut out everybody else. So where room is
short, the connection whose answer has moved least of late is ended; and small answers have room that large ones cannot
take.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable

from clockwork.config.gateway import (
    ANSWER_BYTES_PER_S,
    ANSWER_MODELS_MAX,
    ANSWER_STALL_NS,
    ANSWERS_BYTES_MAX,
    CALLER_ANSWERS_BYTES_MAX,
    JOINED_BYTES_MAX,
    SMALL_ANSWERS_BYTES_MAX,
)
from clockwork.errors import Refused
from clockwork.system.clock import SECOND, to_ns
from clockwork.wire.messages import Reason


class Held:
    """Room of a request's answer."""

    __slots__ = ("begun_ns", "caller", "copies", "end", "model", "moved_ns", "released", "size")

    def __init__(self, caller: Hashable, copies: int, end: Callable[[], None]) -> None:
        """caller: whatever names the connection. copies: how many times it has the answer's bytes. end: ends it."""
        self.caller = caller
        self.copies = copies
        self.end = end
        self.model = ""
        self.size = 0  # bytes: as expected, then as they are
        # When it came, and when the caller last took some of it; 0: it is not there yet.
        self.begun_ns = self.moved_ns = 0
        self.released = False


class Answers:
    """See the module."""

    def __init__(self, answer_s: float) -> None:
        """answer_s: within which an answer must be taken, beside the time that its size allows."""
        self._limit_ns = to_ns(answer_s)
        self.bytes = 0
        self._of_callers: collections.Counter[Hashable] = collections.Counter()
        self._there: dict[Held, None] = {}  # answers that have come, by their last progress
        # Of models' last two answers, if either was large; the last one first.
        self._sizes: collections.OrderedDict[str, tuple[int, int]] = collections.OrderedDict()

    def ask(self, held: Held, model: str, now: int) -> None:
        """Take room for an answer of the model, as large as the smaller of its last two. Raises Refused. release() must
        follow.

        Not as large as the last one: whoever asks for a single large answer would have others wait for as much room."""
        held.model = model
        if expected := min(self._sizes.get(model, (0, 0))):
            self._take(held, expected * held.copies, now)

    def come(self, held: Held, size: int, now: int) -> None:
        """An answer of ``size`` bytes is there. Raises Refused; then its bytes are not to be kept."""
        last, _ = self._sizes.pop(held.model, (0, 0))
        if max(size, last) > JOINED_BYTES_MAX and held.model:
            self._sizes[held.model] = size, last
            if len(self._sizes) > ANSWER_MODELS_MAX:
                self._sizes.popitem(last=False)
        if held.released:  # the caller has gone meanwhile
            return
        self._give_back(held)
        self._take(held, size * held.copies, now)
        held.begun_ns = held.moved_ns = now
        self._there[held] = None

    def move(self, held: Held, now: int) -> None:
        """The caller has taken a part of an answer."""
        held.moved_ns = now
        if held in self._there:
            del self._there[held]
            self._there[held] = None

    def release(self, held: Held) -> None:
        """The answer is kept no longer. Idempotent."""
        held.released = True
        self._give_back(held)
        self._there.pop(held, None)

    def sweep(self, now: int) -> None:
        """End the connections on which an answer takes too long."""
        for held in list(self._there):
            if now - held.begun_ns > self._limit_ns + held.size * SECOND // ANSWER_BYTES_PER_S:
                held.end()

    def _take(self, held: Held, size: int, now: int) -> None:
        mine = self._of_callers[held.caller] if self._of_callers else 0
        if mine and mine + size > CALLER_ANSWERS_BYTES_MAX:
            raise _full(
                f"{mine} bytes of answers on this connection wait to be read", CALLER_ANSWERS_BYTES_MAX
            )
        limit = ANSWERS_BYTES_MAX
        if size <= JOINED_BYTES_MAX:
            limit += SMALL_ANSWERS_BYTES_MAX
        if self.bytes + size > limit:
            longest = next(iter(self._there), None)
            if longest is not None and now - longest.moved_ns > ANSWER_STALL_NS:
                longest.end()
            raise _full(f"{self.bytes} bytes of answers wait to be read, and this one has {size}", limit)
        held.size = size
        self.bytes += size
        if size:
            self._of_callers[held.caller] += size

    def _give_back(self, held: Held) -> None:
        if held.size:
            self.bytes -= held.size
            self._of_callers[held.caller] -= held.size
            if not self._of_callers[held.caller]:
                del self._of_callers[held.caller]
        held.size = 0


def _full(text: str, limit: int) -> Refused:
    return Refused(f"{text}; the gateway holds at most {limit}", Reason.OVERLOADED.value)
