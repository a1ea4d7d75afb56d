"""A worker's side of the takeover: it obeys the highest epoch, and reports what it holds to a new active."""

from __future__ import annotations

import collections
from typing import NamedTuple, TypeAlias

from clockwork.config.takeover import BEAT_NS, ORDERS_REMEMBERED_MAX, RESULTS_UNSENT_MAX
from clockwork.takeover.messages import (
    NO_NOTES,
    ActiveIs,
    Admitted,
    Beat,
    Deed,
    Heard,
    Holdings,
    KeepNotes,
    LedOrder,
    Linked,
    OrderEnded,
    Superseded,
    TellPeer,
    TimeCame,
    Unlinked,
)
from clockwork.takeover.obedience import Leader, Obedience


class OrderDone(NamedTuple):
    """The device has carried out an order."""

    order: LedOrder
    value: int


class RunOrder(NamedTuple):
    """Have the device carry out an order."""

    order: LedOrder


LedWorkerEvent: TypeAlias = Heard | TimeCame | Linked | Unlinked | OrderDone
LedWorkerCommand: TypeAlias = TellPeer | RunOrder


class LedWorker:
    """A worker's state in the protocol. controllers: the addresses of all controllers."""

    def __init__(self, controllers: tuple[str, ...], prepared: tuple[str, ...], now_ns: int) -> None:
        self.obedience = Obedience()
        self.prepared = prepared
        self.resident: set[str] = set()
        self.notes = NO_NOTES  # the newest that an active gave to this worker
        self._controllers = controllers
        self._linked: set[str] = set()
        self._admitted = 0  # epoch of the active that has this worker's report; 0: none on this connection
        self._under_way: dict[tuple[int, int], LedOrder] = {}
        self._remembered: dict[tuple[int, int], None] = {}  # orders that came, the oldest first
        self._unsent: collections.deque[OrderEnded] = collections.deque(maxlen=RESULTS_UNSENT_MAX)
        self._beat_ns = now_ns
        self._commands: list[LedWorkerCommand] = []

    def due_ns(self) -> int:
        """Return the time at which TimeCame is due."""
        return self._beat_ns

    def step(self, event: LedWorkerEvent, now_ns: int) -> list[LedWorkerCommand]:
        """Process an event. Returns what is to be done, in order."""
        if isinstance(event, Heard):
            self._hear(event)
        elif isinstance(event, OrderDone):
            self._finish(event)
        elif isinstance(event, Linked):
            self._linked.add(event.address)
            if event.address in self.obedience.leader.addresses:
                self._report()
            else:
                self._commands.append(TellPeer(event.address, Beat(self.obedience.leader)))
        elif isinstance(event, Unlinked):
            self._linked.discard(event.address)
            if event.address in self.obedience.leader.addresses:
                self._admitted = 0
        if now_ns >= self._beat_ns:
            self._beat(now_ns)
        commands, self._commands = self._commands, []
        return commands

    def _address(self) -> str:
        """The address of the leader; "": it is not connected."""
        return next((name for name in self.obedience.leader.addresses if name in self._linked), "")

    def _hear(self, heard: Heard) -> None:
        message = heard.message
        if isinstance(message, LedOrder | KeepNotes):
            if self.obedience.refuses(message.leader):
                self._commands.append(TellPeer(heard.source, Superseded(self.obedience.leader)))
                return
            self._see(message.leader)
            if isinstance(message, LedOrder):
                self._order(message)
            elif message.notes[:2] > self.notes[:2]:
                self.notes = message.notes
        elif isinstance(message, Admitted):
            self._see(message.leader)
            if message.leader == self.obedience.leader:
                self._admitted = message.leader.epoch
                self._send_unsent()
        elif isinstance(message, ActiveIs | Superseded):
            is_new = self._see(message.leader)
            if message.leader == self.obedience.leader and not is_new:
                self._report_again()

    def _see(self, leader: Leader) -> bool:
        is_new = self.obedience.see(leader)
        if is_new:
            self._admitted = 0
            self._report()
        return is_new

    def _report_again(self) -> None:
        """Repeat a report that the leader has not confirmed: it may have come before the leader knew."""
        if not self._admitted:
            self._report()

    def _report(self) -> None:
        """Report to the leader, if it is connected."""
        leader = self.obedience.leader
        if address := self._address():
            resident = tuple(sorted(self.resident))
            under_way = tuple(self._under_way.values())
            holdings = Holdings(leader, self.prepared, resident, under_way, self.notes)
            self._commands.append(TellPeer(address, holdings))

    def _order(self, order: LedOrder) -> None:
        key = (order.leader.epoch, order.action)
        if key in self._remembered:
            return  # the message came twice
        self._remembered[key] = None
        if len(self._remembered) > ORDERS_REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]
        self._under_way[key] = order
        self._commands.append(RunOrder(order))

    def _finish(self, done: OrderDone) -> None:
        order = done.order
        del self._under_way[order.leader.epoch, order.action]
        if order.deed is Deed.LOAD:
            self.resident.add(order.model)
        self._unsent.append(OrderEnded(self.obedience.leader, order, done.value))
        if self._admitted:
            self._send_unsent()

    def _send_unsent(self) -> None:
        """Send results to the active of now, which need not have ordered them."""
        leader = self.obedience.leader
        address = self._address()
        while address and self._unsent:
            ended = self._unsent.popleft()
            self._commands.append(TellPeer(address, OrderEnded(leader, ended.order, ended.value)))

    def _beat(self, now_ns: int) -> None:
        """Tell every controller the epoch; repeat a report that the active has not confirmed."""
        self._beat_ns = now_ns + BEAT_NS
        for address in self._controllers:
            if address in self._linked:
                self._commands.append(TellPeer(address, Beat(self.obedience.leader)))
        self._report_again()
