"""Copies of models that are missing in workers' stores with a bound (--store-bytes), as troubles.

Pure bookkeeping. A worker that is restarted, or a model that is being copied, is no trouble: copies
have to be missing for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from clockwork.config.controller import STORES_TROUBLE_NS
from clockwork.controller.effects import ClearTrouble, Effect, NoteTrouble
from clockwork.controller.troubles import TroubleKind
from clockwork.system.words import say_count

SUBJECT = "stores"


class StoreReports:
    """Since when copies are missing, and whether that was told."""

    def __init__(self, effects: deque[Effect]) -> None:
        self._effects = effects
        self._since_ns: dict[TroubleKind, int] = {}
        self._told: dict[TroubleKind, None] = {}

    def look(self, status: Mapping[str, int], now_ns: int) -> None:
        """Take the scheduler's store_status()."""
        lost, cramped = status["lost"], status["cramped"]
        text = (
            f"no worker has {say_count(lost, 'model')} any more: they are prepared again where there is room"
        )
        self._follow(TroubleKind.MODELS_LOST, lost, text, now_ns)
        text = (
            f"{say_count(cramped, 'model')} should have another copy, and no store has room for it: the emptiest has "
            f"{status['room']} bytes left, all together use {status['used']} of {status['bytes']}; raise "
            f"--store-bytes, start further workers, or lower --stored-copies"
        )
        self._follow(TroubleKind.STORES_FULL, cramped, text, now_ns)

    def _follow(self, kind: TroubleKind, count: int, text: str, now_ns: int) -> None:
        if not count:
            self._since_ns.pop(kind, None)
            if kind in self._told:
                del self._told[kind]
                self._effects.append(ClearTrouble(kind, SUBJECT))
        elif now_ns - self._since_ns.setdefault(kind, now_ns) >= STORES_TROUBLE_NS and kind not in self._told:
            self._told[kind] = None
            self._effects.append(NoteTrouble(kind, SUBJECT, text))
