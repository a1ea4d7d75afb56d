"""The smallest scheduler that an active of the simulated cluster can have: it serves each request by itself.

A request goes to the worker that holds its model and has the fewest orders; a model that no worker holds is
loaded once the inheritance allows it. The protocol's own parts decide what an active does on taking over;
this class stands in for the scheduler and the exchange.
"""

from __future__ import annotations

from collections.abc import Mapping

from clockwork.config.takeover import DESK_ORDER_LIMIT_NS, NOTES_NS
from clockwork.takeover.inheritance import Inheritance
from clockwork.takeover.messages import (
    Admitted,
    AskedRequest,
    Deed,
    Holdings,
    KeepNotes,
    LearntNotes,
    LedOrder,
    Message,
    NotActive,
    OrderEnded,
    RequestKey,
    TellPeer,
    ToldAnswer,
)
from clockwork.takeover.obedience import Leader

WAIT_LOOK_NS = 50_000_000  # Interval at which a request that waits for its model is looked at


class _Held:
    """A worker that has reported."""

    __slots__ = ("loading", "orders", "resident")

    def __init__(self, holdings: Holdings) -> None:
        self.resident = set(holdings.resident)
        self.loading = {order.model for order in holdings.under_way if order.deed is Deed.LOAD}
        self.orders = 0


class _Request:
    __slots__ = ("deadline_ns", "is_waiting", "limit_ns", "model", "worker")

    def __init__(self, model: str, deadline_ns: int) -> None:
        self.model = model
        self.deadline_ns = deadline_ns
        self.worker = ""  # the worker that has it; "": none
        self.is_waiting = False  # for its model
        self.limit_ns = deadline_ns  # time at which it is given to a worker again


class Desk:
    """The requests and workers of an active."""

    def __init__(self, leader: Leader, catalogue: Mapping[str, int], inheritance: Inheritance) -> None:
        self.leader = leader
        self._catalogue = catalogue
        self._inheritance = inheritance
        self._workers: dict[str, _Held] = {}
        self._open: dict[RequestKey, _Request] = {}
        self._actions = 0
        self._learnt = 0  # results seen, by earlier actives too
        self._serial = 0
        self._notes_ns = 0  # time of the next copy for the workers; 0: at the next tick
        self._out: list[TellPeer] = []

    def due_ns(self) -> int:
        """Return the time at which tick() is to be called; 0: at none."""
        times = [min(request.limit_ns, request.deadline_ns) for request in self._open.values()]
        return min(times, default=self._notes_ns)

    def take(self) -> list[TellPeer]:
        """Return the messages of the calls since the last time."""
        out, self._out = self._out, []
        return out

    def hear(self, source: str, message: Message, now_ns: int) -> None:
        """Process a message of a worker or client."""
        if isinstance(message, AskedRequest):
            self._ask(source, message, now_ns)
        elif isinstance(message, Holdings):
            self._report(source, message, now_ns)
        elif isinstance(message, OrderEnded):
            self._ended(source, message, now_ns)

    def lose(self, peer: str, now_ns: int) -> None:
        """Take note that a connection is lost."""
        if self._workers.pop(peer, None) is None:
            for key in [key for key in self._open if key[0] == peer]:
                del self._open[key]
            return
        for key, request in list(self._open.items()):
            if request.worker == peer:
                self._give(key, request, now_ns)

    def tick(self, now_ns: int) -> None:
        """Give up what is past its deadline, and order again what has no result."""
        for key, request in list(self._open.items()):
            if now_ns >= request.deadline_ns:
                del self._open[key]
            elif now_ns >= request.limit_ns:
                self._give(key, request, now_ns)
        self._send_notes(now_ns)

    def _send_notes(self, now_ns: int) -> None:
        """Give every worker a copy of what was learnt, now and then, once all have reported."""
        if not self._notes_ns:
            self._notes_ns = now_ns + NOTES_NS
        elif now_ns >= self._notes_ns:
            self._notes_ns = now_ns + NOTES_NS
            if not self._inheritance.may_load(now_ns):
                return
            self._serial += 1
            notes = LearntNotes(self.leader.epoch, self._serial, self._learnt.to_bytes(8, "big"))
            for worker in self._workers:
                self._out.append(TellPeer(worker, KeepNotes(self.leader, notes)))

    def step_down(self, leader: Leader) -> None:
        """Answer every open request with NotActive."""
        for client, number in self._open:
            self._out.append(TellPeer(client, NotActive(leader, number)))
        self._open.clear()

    def _ask(self, client: str, asked: AskedRequest, now_ns: int) -> None:
        key = (client, asked.number)
        if key in self._open:
            return
        request = self._open[key] = _Request(asked.model, now_ns + asked.within_ns)
        if (ended := self._inheritance.take(key)) is not None:
            self._answer(key, ended)
        elif self._inheritance.is_running(key):
            request.limit_ns = now_ns + DESK_ORDER_LIMIT_NS
        else:
            self._give(key, request, now_ns)

    def _report(self, worker: str, holdings: Holdings, now_ns: int) -> None:
        if worker not in self._workers:  # a report that is repeated may be older than the orders since
            self._workers[worker] = _Held(holdings)
            self._inheritance.report(worker, holdings)
            self._learnt = max(self._learnt, int.from_bytes(self._inheritance.notes.content, "big"))
        self._out.append(TellPeer(worker, Admitted(self.leader)))
        self._give_waiting(now_ns)

    def _ended(self, worker: str, ended: OrderEnded, now_ns: int) -> None:
        order, held = ended.order, self._workers.get(worker)
        is_own = order.leader == self.leader
        self._learnt += 1
        if order.deed is Deed.LOAD:
            if held is not None:
                held.loading.discard(order.model)
                held.resident.add(order.model)
                self._give_waiting(now_ns)
            return
        assert order.request is not None
        if held is not None and is_own:
            held.orders -= 1
        if order.request in self._open:
            self._answer(order.request, ended)
        elif not is_own:
            self._inheritance.keep(ended, now_ns)

    def _answer(self, key: RequestKey, ended: OrderEnded) -> None:
        del self._open[key]
        client, number = key
        self._out.append(TellPeer(client, ToldAnswer(self.leader, number, ended.order.version, ended.value)))

    def _give_waiting(self, now_ns: int) -> None:
        for key, request in self._open.items():
            if request.is_waiting:
                self._give(key, request, now_ns)

    def _give(self, key: RequestKey, request: _Request, now_ns: int) -> None:
        """Order a request, or have it wait while its model is loaded."""
        model = request.model
        holders = [name for name, held in self._workers.items() if model in held.resident]
        request.is_waiting = not holders
        if holders:
            request.worker = min(holders, key=lambda name: self._workers[name].orders)
            request.limit_ns = now_ns + DESK_ORDER_LIMIT_NS
            self._workers[request.worker].orders += 1
            self._order(request.worker, Deed.INFER, model, key)
            return
        request.worker, request.limit_ns = "", now_ns + WAIT_LOOK_NS
        is_loading = any(model in held.loading for held in self._workers.values())
        if self._workers and not is_loading and self._inheritance.may_load(now_ns):
            worker = min(self._workers, key=lambda name: len(self._workers[name].resident))
            self._workers[worker].loading.add(model)
            self._order(worker, Deed.LOAD, model, None)

    def _order(self, worker: str, deed: Deed, model: str, request: RequestKey | None) -> None:
        self._actions += 1
        version = self._catalogue.get(model, 0)
        self._out.append(
            TellPeer(worker, LedOrder(self.leader, self._actions, deed, model, version, request))
        )
