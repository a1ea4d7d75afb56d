"""A client's side of the takeover: requests without an answer are asked again at the new active.

Inference changes nothing, so it may be done twice. An application gets one answer for each request: that of
the active that was asked last, or none of them, once the deadline has passed.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple, TypeAlias

from clockwork.config.takeover import ASKED_MAX, BEAT_NS
from clockwork.takeover.messages import (
    ActiveIs,
    AskedRequest,
    AskOutcome,
    Beat,
    Heard,
    Linked,
    NotActive,
    Superseded,
    TellPeer,
    TimeCame,
    ToldAnswer,
    Unlinked,
)
from clockwork.takeover.obedience import Leader, Obedience


class RequestMade(NamedTuple):
    """The application makes a request. deadline_ns: by this process's clock."""

    number: int
    model: str
    deadline_ns: int


class Deliver(NamedTuple):
    """Give a request's only outcome to the application."""

    number: int
    outcome: AskOutcome
    answer: ToldAnswer | None


AskerEvent: TypeAlias = Heard | TimeCame | Linked | Unlinked | RequestMade
AskerCommand: TypeAlias = TellPeer | Deliver


class _Open:
    """A request without an answer."""

    __slots__ = ("deadline_ns", "is_sent", "model")

    def __init__(self, model: str, deadline_ns: int) -> None:
        self.model = model
        self.deadline_ns = deadline_ns
        self.is_sent = False  # to the leader of now, by the connection of now


class Asker:
    """A client's state in the protocol.

    controllers: the addresses of all controllers. asks_again: False: a request that was sent to an active
    that is lost, or is taken over, ends as LOST.
    """

    def __init__(self, controllers: tuple[str, ...], asks_again: bool, now_ns: int) -> None:
        self.obedience = Obedience()
        self._asks_again = asks_again
        self._controllers = controllers
        self._linked: set[str] = set()
        self._open: dict[int, _Open] = {}
        self._deadlines: list[tuple[int, int]] = []  # a heap, with the numbers of requests
        self._beat_ns = now_ns
        self._commands: list[AskerCommand] = []

    def due_ns(self) -> int:
        """Return the time at which TimeCame is due."""
        return min(self._beat_ns, self._deadlines[0][0]) if self._deadlines else self._beat_ns

    def step(self, event: AskerEvent, now_ns: int) -> list[AskerCommand]:
        """Process an event. Returns what is to be done, in order."""
        self._expire(now_ns)  # first: an answer that comes with its deadline behind it is late
        if isinstance(event, Heard):
            self._hear(event, now_ns)
        elif isinstance(event, RequestMade):
            self._make(event, now_ns)
        elif isinstance(event, Linked):
            self._linked.add(event.address)
            self._commands.append(TellPeer(event.address, Beat(self.obedience.leader)))
            self._ask_all(now_ns)
        elif isinstance(event, Unlinked):
            self._linked.discard(event.address)
            if event.address in self.obedience.leader.addresses:
                self._lose(list(self._open))
        if now_ns >= self._beat_ns:
            self._beat(now_ns)
        commands, self._commands = self._commands, []
        return commands

    def _hear(self, heard: Heard, now_ns: int) -> None:
        message = heard.message
        if isinstance(message, ToldAnswer):
            if self.obedience.refuses(message.leader):
                self._commands.append(TellPeer(heard.source, Superseded(self.obedience.leader)))
                return
            if self._open.pop(message.number, None) is not None:
                self._commands.append(Deliver(message.number, AskOutcome.OK, message))
            self._see(message.leader, now_ns)
        elif isinstance(message, NotActive):
            is_known = message.leader.epoch <= self.obedience.leader.epoch
            if is_known and heard.source in self.obedience.leader.addresses:
                self._lose([message.number])  # the lease names a controller that does not know of it yet
            self._see(message.leader, now_ns)
        elif isinstance(message, ActiveIs | Superseded):
            self._see(message.leader, now_ns)
            if message.leader == self.obedience.leader:
                self._ask_all(now_ns)

    def _see(self, leader: Leader, now_ns: int) -> bool:
        is_new = self.obedience.see(leader)
        if is_new:
            self._lose(list(self._open))
            self._ask_all(now_ns)
        return is_new

    def _lose(self, numbers: list[int]) -> None:
        """Take note that these requests, as far as they were sent, will have no answer."""
        for number in numbers:
            request = self._open.get(number)
            if request is None or not request.is_sent:
                continue
            request.is_sent = False
            if not self._asks_again:
                del self._open[number]
                self._commands.append(Deliver(number, AskOutcome.LOST, None))

    def _make(self, made: RequestMade, now_ns: int) -> None:
        if len(self._open) >= ASKED_MAX:
            self._commands.append(Deliver(made.number, AskOutcome.REFUSED, None))
            return
        self._open[made.number] = _Open(made.model, made.deadline_ns)
        heapq.heappush(self._deadlines, (made.deadline_ns, made.number))
        self._ask([made.number], now_ns)

    def _ask_all(self, now_ns: int) -> None:
        self._ask(list(self._open), now_ns)

    def _ask(self, numbers: list[int], now_ns: int) -> None:
        """Send those of these requests that the leader does not have, if it is connected."""
        leader = self.obedience.leader
        address = next((name for name in leader.addresses if name in self._linked), "")
        if not address:
            return
        for number in numbers:
            request = self._open[number]
            if not request.is_sent and now_ns < request.deadline_ns:
                request.is_sent = True
                within_ns = request.deadline_ns - now_ns
                self._commands.append(
                    TellPeer(address, AskedRequest(leader, number, request.model, within_ns))
                )

    def _expire(self, now_ns: int) -> None:
        while self._deadlines and now_ns >= self._deadlines[0][0]:
            _, number = heapq.heappop(self._deadlines)
            if self._open.pop(number, None) is not None:
                self._commands.append(Deliver(number, AskOutcome.MISSED, None))

    def _beat(self, now_ns: int) -> None:
        """Tell every controller the epoch; ask what could not be asked before."""
        self._beat_ns = now_ns + BEAT_NS
        for address in self._controllers:
            if address in self._linked:
                self._commands.append(TellPeer(address, Beat(self.obedience.leader)))
        self._ask_all(now_ns)
