"""Connections that the exchange has ended by itself, as complaints."""

from __future__ import annotations

from collections import deque

from clockwork.controller._exchange import CLIENTS, WORKERS, Exchange
from clockwork.controller.effects import Complain, Effect

CUT_TEXTS = {
    "crowd": "too many without a hello",
    "silent": "no hello came in time",
    "received": "more was received of one than it may have on the way",
    "received_all": "more was received of all than they may have on the way",
    "unread": "one left too many bytes unread",
    "unread_all": "all together left too many bytes unread",
    "memory": "memory is short",
}
"""Why the exchange ends connections by itself."""


class Cuts:
    """Counts the connections that the exchange has ended, now and then."""

    def __init__(self, exchange: Exchange, effects: deque[Effect]) -> None:
        self._exchange = exchange
        self._effects = effects
        self._counts: dict[tuple[int, str], int] = {}  # numbers of ended connections by port and by bound

    def note(self) -> None:
        """Complain about the connections ended since the last call, by port and by bound."""
        for side, name in ((CLIENTS, "clients"), (WORKERS, "workers")):
            found = self._exchange.connections(side)["cut"]
            for reason, count in found.items():
                before = self._counts.get((side, reason), 0)
                if count > before and reason != "asked":
                    text = f"{count - before} connections of {name} were ended: {CUT_TEXTS[reason]}"
                    self._effects.append(Complain(f"{name} cut", text))
                self._counts[side, reason] = count
