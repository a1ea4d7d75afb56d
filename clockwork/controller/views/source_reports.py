"""Gateways' reports about model sources (repositories of models) that they cannot read, as troubles.

Pure bookkeeping. Several gateways may read the same source: its trouble ends when no gateway reports it any
more, because each has withdrawn its report or has left.
"""

from __future__ import annotations

from collections import deque

from clockwork.config.controller import REPORTED_SOURCES_MAX
from clockwork.controller.effects import ClearTrouble, Effect, NoteTrouble
from clockwork.controller.troubles import TroubleKind
from clockwork.errors import InvalidInput


class SourceReports:
    """The reported sources, with the clients that report them."""

    def __init__(self, effects: deque[Effect]) -> None:
        self._effects = effects
        self._clients: dict[str, dict[bytes, None]] = {}  # reporting clients by source

    def note(self, client: bytes, source: str, text: str) -> None:
        """Note a source that a client cannot read; text "": it can again. Raises InvalidInput at a bound."""
        if not text:
            self._withdraw(client, source)
            return
        if source not in self._clients and len(self._clients) >= REPORTED_SOURCES_MAX:
            raise InvalidInput(
                f"{REPORTED_SOURCES_MAX} model sources are reported, which is the most; {source} is not noted"
            )
        self._clients.setdefault(source, {})[client] = None
        self._effects.append(NoteTrouble(TroubleKind.MODEL_SOURCE_FAILED, source, text))

    def client_gone(self, client: bytes) -> None:
        """Withdraw the reports of a client that has left."""
        for source in [source for source, clients in self._clients.items() if client in clients]:
            self._withdraw(client, source)

    def _withdraw(self, client: bytes, source: str) -> None:
        clients = self._clients.get(source, {})
        clients.pop(client, None)
        if source in self._clients and not clients:
            del self._clients[source]
            self._effects.append(ClearTrouble(TroubleKind.MODEL_SOURCE_FAILED, source))
